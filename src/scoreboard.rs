//! Shared memory in which workers count and beat, and which the supervisor reads.
//!
//! Every worker has a [`Row`] in a sealed memory file of its own, which nobody but that worker and the supervisor has:
//! a worker that writes what it likes, or goes on writing after its time, spoils its own numbers and nobody else's.
//!
//! The supervisor believes none of it: a number is a number, and only the heartbeat and the oldest request of a
//! worker that serves, and whether its counters move, have consequences (for that worker). What a dead worker leaves behind is [folded](Totals::fold) into its slot, so
//! that a slot's totals never go back.

use crate::sys::{AnyBytes, SharedMemory, monotonic_ms, sealed_memory};
use serde::Serialize;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// What one worker writes. Times are milliseconds of [`monotonic_ms`], 0 meaning never.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct Row {
    heartbeat: AtomicU64,
    requests: AtomicU64,
    connections: AtomicU64,
    open: AtomicU64,
    busy: AtomicU64,
    busy_since: AtomicU64,
    oldest: AtomicU64,
}

#[allow(unsafe_code)]
// SAFETY: every field is an AtomicU64.
unsafe impl AnyBytes for Row {}

impl Row {
    /// The worker is alive: to be called from a thread that serves, since a helper thread would go on
    /// beating for a server that hangs. Any one of several serving threads keeps the worker alive.
    pub fn beat(&self) {
        self.heartbeat.fetch_max(monotonic_ms(), Relaxed);
    }

    /// A connection was accepted.
    pub fn connection_opened(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
    }

    /// A connection that was counted as opened is gone.
    pub fn connection_closed(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// A request (or, for a raw protocol, a connection's service) begins.
    pub fn request_begun(&self) {
        if self.busy.fetch_add(1, Relaxed) == 0 {
            let now = monotonic_ms();
            self.busy_since.store(now, Relaxed);
            self.oldest.store(now, Relaxed);
        }
    }

    /// A request that was counted as begun was answered, or its client is gone.
    pub fn request_ended(&self) {
        self.requests.fetch_add(1, Relaxed);
        if self.busy.fetch_sub(1, Relaxed) == 1 {
            self.busy_since.store(0, Relaxed);
            self.oldest.store(0, Relaxed);
        }
    }

    /// Corrects the start of the oldest request whose handler runs, which a worker that has several knows better than the
    /// row: 0 for none. A response that its client is slow to read is no handler's fault.
    pub fn set_oldest(&self, started_ms: u64) {
        self.oldest.store(started_ms, Relaxed);
    }

    /// A consistent-enough copy: each number is true at some time during the call.
    pub fn read(&self) -> Reading {
        Reading {
            heartbeat: self.heartbeat.load(Relaxed),
            requests: self.requests.load(Relaxed),
            connections: self.connections.load(Relaxed),
            open: self.open.load(Relaxed),
            busy: self.busy.load(Relaxed),
            busy_since: self.busy_since.load(Relaxed),
            oldest: self.oldest.load(Relaxed),
        }
    }
}

/// The numbers of a [`Row`] at one time. Untrusted: a worker may have written anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// When a serving thread last beat.
    pub heartbeat: u64,
    /// Requests answered since the worker started.
    pub requests: u64,
    /// Connections accepted since the worker started.
    pub connections: u64,
    /// Connections open now.
    pub open: u64,
    /// Requests in hand now.
    pub busy: u64,
    /// Since when at least one request has been in hand.
    pub busy_since: u64,
    /// When the handler that has been running longest began.
    pub oldest: u64,
}

/// What all dead workers of a slot have done.
///
/// ```
/// use prefork::scoreboard::{Reading, Totals};
/// let mut totals = Totals::default();
/// totals.fold(&Reading { requests: 5, connections: 2, ..Reading::default() });
/// assert_eq!(totals.requests, 5);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Requests answered.
    pub requests: u64,
    /// Connections accepted.
    pub connections: u64,
}

impl Totals {
    /// Adds what a worker has done. Saturates, since the numbers may be lies.
    pub fn fold(&mut self, reading: &Reading) {
        self.requests = self.requests.saturating_add(reading.requests);
        self.connections = self.connections.saturating_add(reading.connections);
    }
}

/// A row, mapped: the supervisor's and the worker's view of the same memory.
#[derive(Debug)]
pub struct SharedRow {
    memory: SharedMemory,
    file: OwnedFd,
}

impl SharedRow {
    /// Makes a new one, all zero.
    ///
    /// # Errors
    /// When the system refuses the memory.
    pub fn create() -> io::Result<Self> {
        Self::open(sealed_memory("prefork-row", size_of::<Row>())?)
    }

    /// Maps one that somebody else made.
    ///
    /// # Errors
    /// When `file` is no row (too short), or cannot be mapped.
    pub fn open(file: OwnedFd) -> io::Result<Self> {
        Ok(Self { memory: SharedMemory::map(file.as_fd(), size_of::<Row>())?, file })
    }
}

impl Deref for SharedRow {
    type Target = Row;

    fn deref(&self) -> &Row {
        self.memory.at(0)
    }
}

impl AsFd for SharedRow {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_see_the_same_row() {
        let ours = SharedRow::create().expect("memfd");
        let theirs = SharedRow::open(ours.as_fd().try_clone_to_owned().expect("dup")).expect("map");
        theirs.connection_opened();
        theirs.request_begun();
        theirs.beat();
        let seen = ours.read();
        assert_eq!((seen.connections, seen.open, seen.busy), (1, 1, 1));
        assert!(seen.heartbeat > 0 && seen.oldest > 0);
        theirs.request_ended();
        theirs.connection_closed();
        let seen = ours.read();
        assert_eq!((seen.requests, seen.open, seen.busy, seen.oldest), (1, 0, 0, 0));
        assert_eq!(
            SharedRow::create().expect("memfd").read(),
            Reading::default(),
            "another one is not touched"
        );
    }

    #[test]
    fn rows_do_not_share_cache_lines() {
        assert_eq!(size_of::<Row>() % 128, 0);
    }
}
