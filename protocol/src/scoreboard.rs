//! Shared memory in which workers count and beat, and which the supervisor reads.
//!
//! Every worker has a sealed memory file of its own, shared with the supervisor only: a worker that
//! writes arbitrary values, or writes for too long, spoils only its own numbers. Each serving
//! thread is the only writer of its [`Row`] in that file. So counting needs no locked instruction,
//! and threads do not wait for each other's cache lines; the worker's figures are the sum of its
//! [rows](SharedRows).
//!
//! The supervisor trusts none of it: a number is a number, and only the heartbeat, the oldest
//! request of a worker that serves, and whether its counters move, have consequences (for that
//! worker). What a dead worker leaves behind is [folded](Totals::fold) into its slot, so that a
//! slot's totals never decrease.
//!
//! **Between versions.** A row's fields are only ever appended, and it never gets shorter. A
//! supervisor that takes over rows of another version receives their [layout](Layout): fields that
//! an older version lacks read as zero, and those that a newer one has added are ignored.

use prefork_os::{SharedMemory, monotonic_ms, sealed_memory, shared_row};
use serde::Serialize;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// The upper ends of the latency buckets, in microseconds. A request that took exactly as long
/// belongs to the bucket; one more bucket holds what took longer than the last.
pub const LATENCY_BOUNDS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// How many latency buckets there are.
pub const BUCKETS: usize = LATENCY_BOUNDS_US.len() + 1;

/// Returns the bucket of a request that took this many microseconds.
///
/// ```
/// use prefork_protocol::scoreboard::{BUCKETS, bucket};
/// assert_eq!((bucket(0), bucket(500), bucket(501), bucket(u64::MAX)), (0, 0, 1, BUCKETS - 1));
/// ```
pub fn bucket(took_us: u64) -> usize {
    // Nearly all are in one of the first.
    LATENCY_BOUNDS_US
        .iter()
        .position(|&bound| took_us <= bound)
        .unwrap_or(LATENCY_BOUNDS_US.len())
}

shared_row! {
    /// What one serving thread writes, as its only writer. Times are milliseconds of
    /// [`monotonic_ms`], 0 meaning never.
    ///
    /// The order of the fields is the layout that another process reads by: new ones go to the end.
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
        errors: AtomicU64,
        bytes_in: AtomicU64,
        bytes_out: AtomicU64,
        busy_us: AtomicU64,
        latency: [AtomicU64; BUCKETS],
    }
}

const _: () = assert!(
    size_of::<Row>() == Layout::SIZE as usize && align_of::<Row>() == Layout::ALIGN as usize
);

/// Adds to a number that has no other writer.
fn add(number: &AtomicU64, more: u64) -> u64 {
    let sum = number.load(Relaxed).wrapping_add(more);
    number.store(sum, Relaxed);
    sum
}

impl Row {
    /// Records that the thread is alive. Call it from a thread that serves, since a helper thread
    /// would go on beating for a server that hangs. Any one of several serving threads keeps the
    /// worker alive.
    pub fn beat(&self) {
        self.heartbeat.store(monotonic_ms(), Relaxed);
    }

    /// Counts an accepted connection.
    pub fn connection_opened(&self) {
        add(&self.connections, 1);
        add(&self.open, 1);
    }

    /// Counts a connection, counted as opened, that is gone.
    pub fn connection_closed(&self) {
        add(&self.open, 1_u64.wrapping_neg());
    }

    /// Counts a request that begins now (or, for a raw protocol, a connection's service).
    pub fn request_begun(&self, now_ms: u64) {
        if add(&self.busy, 1) == 1 {
            self.busy_since.store(now_ms, Relaxed);
            self.oldest.store(now_ms, Relaxed);
        }
    }

    /// Counts a request, counted as begun, that was answered after this many microseconds, or whose
    /// client is gone. `failed`: the response had a status of 500 or more.
    pub fn request_ended(&self, took_us: u64, failed: bool) {
        add(&self.requests, 1);
        add(&self.busy_us, took_us);
        add(&self.latency[bucket(took_us)], 1);
        if failed {
            add(&self.errors, 1);
        }
        if add(&self.busy, 1_u64.wrapping_neg()) == 0 {
            self.busy_since.store(0, Relaxed);
            self.oldest.store(0, Relaxed);
        }
    }

    /// Counts bytes received from clients, and sent to them.
    pub fn add_bytes(&self, received: u64, sent: u64) {
        add(&self.bytes_in, received);
        add(&self.bytes_out, sent);
    }

    /// Corrects the start of the oldest request whose handler runs, 0 for none: a thread that has
    /// several knows better than the row. A response that its client is slow to read is not the
    /// handler's fault.
    pub fn set_oldest(&self, started_ms: u64) {
        self.oldest.store(started_ms, Relaxed);
    }
}

/// What a worker's rows say at one time. Untrusted: a worker may have written anything.
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
    /// Active requests.
    pub busy: u64,
    /// Since when at least one request has been active.
    pub busy_since: u64,
    /// When the handler that has been running longest began.
    pub oldest: u64,
    /// Requests answered with a status of 500 or more.
    pub errors: u64,
    /// Bytes received from clients.
    pub bytes_in: u64,
    /// Bytes sent to clients.
    pub bytes_out: u64,
    /// The sum of the durations of all answered requests, in microseconds.
    pub busy_us: u64,
    /// How many requests took how long: by [`LATENCY_BOUNDS_US`].
    pub latency: [u64; BUCKETS],
}

/// Where a row's latency buckets begin.
const LATENCY: usize = 11;

impl Reading {
    /// A row's numbers by their place in it.
    fn from_fields(field: impl Fn(usize) -> u64) -> Self {
        Self {
            heartbeat: field(0),
            requests: field(1),
            connections: field(2),
            open: field(3),
            busy: field(4),
            busy_since: field(5),
            oldest: field(6),
            errors: field(7),
            bytes_in: field(8),
            bytes_out: field(9),
            busy_us: field(10),
            latency: std::array::from_fn(|bucket| field(LATENCY + bucket)),
        }
    }

    /// Adds what another thread of the same worker says.
    fn merge(&mut self, other: &Self) {
        let earlier = |one: u64, two: u64| {
            if one == 0 || (two != 0 && two < one) {
                two
            } else {
                one
            }
        };
        self.heartbeat = self.heartbeat.max(other.heartbeat);
        self.busy_since = earlier(self.busy_since, other.busy_since);
        self.oldest = earlier(self.oldest, other.oldest);
        for (sum, more) in [
            (&mut self.requests, other.requests),
            (&mut self.connections, other.connections),
            (&mut self.open, other.open),
            (&mut self.busy, other.busy),
            (&mut self.errors, other.errors),
            (&mut self.bytes_in, other.bytes_in),
            (&mut self.bytes_out, other.bytes_out),
            (&mut self.busy_us, other.busy_us),
        ] {
            *sum = sum.saturating_add(more);
        }
        add_all(&mut self.latency, &other.latency);
    }
}

/// The totals of all dead workers of a slot.
///
/// ```
/// use prefork_protocol::scoreboard::{Reading, Totals};
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
    /// Requests answered with a status of 500 or more.
    pub errors: u64,
    /// Bytes received from clients.
    pub bytes_in: u64,
    /// Bytes sent to clients.
    pub bytes_out: u64,
    /// The sum of the durations of all answered requests, in microseconds.
    pub busy_us: u64,
    /// How many requests took how long: by [`LATENCY_BOUNDS_US`].
    pub latency: [u64; BUCKETS],
}

impl Totals {
    /// Adds what a worker has done. Saturates, since the numbers are untrusted.
    pub fn fold(&mut self, reading: &Reading) {
        for (sum, more) in [
            (&mut self.requests, reading.requests),
            (&mut self.connections, reading.connections),
            (&mut self.errors, reading.errors),
            (&mut self.bytes_in, reading.bytes_in),
            (&mut self.bytes_out, reading.bytes_out),
            (&mut self.busy_us, reading.busy_us),
        ] {
            *sum = sum.saturating_add(more);
        }
        add_all(&mut self.latency, &reading.latency);
    }
}

fn add_all(sums: &mut [u64; BUCKETS], more: &[u64; BUCKETS]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum = sum.saturating_add(*more);
    }
}

/// How a worker's rows lie in their memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// From one row to the next, in bytes.
    pub size: u32,
    /// How many there are.
    pub rows: u32,
}

impl Layout {
    /// Rows are aligned to this, so their size is a multiple of it.
    const ALIGN: u32 = 128;
    /// The size of a row of this version.
    const SIZE: u32 = 256;
    /// More than any worker has threads.
    const MOST: u32 = 1 << 16;

    /// The layout of this version, for a worker with this many serving threads.
    pub fn of(threads: u16) -> Self {
        Self {
            size: Self::SIZE,
            rows: u32::from(threads.max(1)),
        }
    }

    fn bytes(self) -> io::Result<usize> {
        let good = self.size >= Self::ALIGN
            && self.size.is_multiple_of(Self::ALIGN)
            && (1..=Self::MOST).contains(&self.rows);
        let bytes = u64::from(self.size) * u64::from(self.rows);
        usize::try_from(bytes).ok().filter(|_| good).ok_or_else(|| {
            let Self { size, rows } = self;
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{rows} rows of {size} bytes are no scoreboard"),
            )
        })
    }
}

/// A worker's rows, mapped: the supervisor's and the worker's view of the same memory.
#[derive(Debug)]
pub struct SharedRows {
    memory: SharedMemory,
    file: OwnedFd,
    layout: Layout,
}

impl SharedRows {
    /// Creates the rows of a worker with this many serving threads, all zero.
    ///
    /// # Errors
    /// When the system refuses the memory.
    pub fn create(threads: u16) -> io::Result<Self> {
        let layout = Layout::of(threads);
        Self::open(sealed_memory("prefork-rows", layout.bytes()?)?, layout)
    }

    /// Maps rows that another process has made, perhaps of another version.
    ///
    /// # Errors
    /// When `file` is shorter than it should be or cannot be mapped, or when there are no
    /// such rows.
    pub fn open(file: OwnedFd, layout: Layout) -> io::Result<Self> {
        Ok(Self {
            memory: SharedMemory::map(file.as_fd(), layout.bytes()?)?,
            file,
            layout,
        })
    }

    /// How they lie in memory.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The row of a serving thread, to be written by it alone.
    ///
    /// # Panics
    /// When there is none, or when rows are not this version's.
    pub fn row(&self, thread: usize) -> &Row {
        assert!(thread < self.layout.rows as usize, "a row for each thread");
        self.memory.at(thread * self.layout.size as usize)
    }

    /// A consistent-enough sum: each number is true at some time during the call.
    pub fn read(&self) -> Reading {
        let mut all = self.read_row(0);
        for row in 1..self.layout.rows as usize {
            all.merge(&self.read_row(row));
        }
        all
    }

    /// Returns how long requests have been active so far, until `now_ms`: for a worker whose
    /// threads have one at a time each, the time that they were busy.
    pub fn busy_time(&self, now_ms: u64) -> Duration {
        let of_row = |row: usize| {
            let reading = self.read_row(row);
            let present = if reading.busy > 0 {
                now_ms.saturating_sub(reading.busy_since)
            } else {
                0
            };
            reading.busy_us.saturating_add(present.saturating_mul(1000))
        };
        let rows = self.layout.rows as usize;
        Duration::from_micros((0..rows).map(of_row).fold(0, u64::saturating_add))
    }

    /// What one row says, as far as its layout has it.
    fn read_row(&self, row: usize) -> Reading {
        let size = self.layout.size as usize;
        Reading::from_fields(|field| {
            let offset = field * size_of::<AtomicU64>();
            if offset < size {
                self.memory
                    .at::<AtomicU64>(row * size + offset)
                    .load(Relaxed)
            } else {
                0
            }
        })
    }
}

impl AsFd for SharedRows {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(rows: &SharedRows, layout: Layout) -> SharedRows {
        SharedRows::open(rows.as_fd().try_clone_to_owned().expect("dup"), layout).expect("map")
    }

    #[test]
    fn both_sides_see_the_same_row() {
        let ours = SharedRows::create(1).expect("memfd");
        let shared = same(&ours, Layout::of(1));
        let theirs = shared.row(0);
        theirs.connection_opened();
        theirs.request_begun(monotonic_ms());
        theirs.beat();
        let seen = ours.read();
        assert_eq!((seen.connections, seen.open, seen.busy), (1, 1, 1));
        assert!(seen.heartbeat > 0 && seen.oldest > 0);
        theirs.request_ended(700, true);
        theirs.add_bytes(10, 20);
        theirs.connection_closed();
        let seen = ours.read();
        assert_eq!(
            (seen.requests, seen.open, seen.busy, seen.oldest),
            (1, 0, 0, 0)
        );
        assert_eq!(
            (seen.errors, seen.bytes_in, seen.bytes_out, seen.busy_us),
            (1, 10, 20, 700)
        );
        assert_eq!(seen.latency[..3], [0, 1, 0]);
        assert_eq!(
            SharedRows::create(1).expect("memfd").read(),
            Reading::default(),
            "another one is not touched"
        );
    }

    #[test]
    fn a_worker_is_the_sum_of_its_threads() {
        let rows = SharedRows::create(3).expect("memfd");
        rows.row(0).request_begun(500);
        rows.row(2).request_begun(400);
        rows.row(2).set_oldest(450);
        for (thread, took) in [(0, 400), (1, 20_000_000), (2, 400)] {
            let row = rows.row(thread);
            row.request_begun(600);
            row.request_ended(took, false);
            row.add_bytes(u64::MAX / 2, 1);
        }
        let all = rows.read();
        assert_eq!(
            (all.requests, all.busy, all.busy_since, all.oldest),
            (3, 2, 400, 450)
        );
        assert_eq!(
            (all.latency[0], all.latency[BUCKETS - 1], all.busy_us),
            (2, 1, 20_000_800)
        );
        assert_eq!(
            (all.bytes_in, all.bytes_out),
            (u64::MAX, 3),
            "sums stay numbers"
        );
    }

    #[test]
    fn every_field_is_read_from_where_it_is_written() {
        let rows = SharedRows::create(1).expect("memfd");
        let row = rows.row(0);
        let fields = [
            &row.heartbeat,
            &row.requests,
            &row.connections,
            &row.open,
            &row.busy,
            &row.busy_since,
            &row.oldest,
            &row.errors,
            &row.bytes_in,
            &row.bytes_out,
            &row.busy_us,
        ];
        assert_eq!(fields.len(), LATENCY);
        for (field, number) in fields.into_iter().chain(&row.latency).zip(1..) {
            field.store(number, Relaxed);
        }
        let expected = Reading::from_fields(|field| field as u64 + 1);
        assert_eq!(rows.read(), expected);
        assert_eq!(
            (expected.heartbeat, expected.busy_us, expected.latency[0]),
            (1, 11, 12)
        );
    }

    #[test]
    fn rows_of_other_versions_are_read_as_far_as_both_know_them() {
        let rows = SharedRows::create(4).expect("memfd");
        // An older version: two short rows. What they lack reads as nothing.
        let short = same(&rows, Layout { size: 128, rows: 2 });
        let old = short.memory.at::<AtomicU64>(128 + 8);
        old.store(7, Relaxed);
        short.memory.at::<AtomicU64>(120).store(3, Relaxed);
        let seen = short.read();
        assert_eq!(
            (
                seen.requests,
                seen.latency[4],
                seen.latency[5..].iter().sum::<u64>()
            ),
            (7, 3, 0)
        );
        // A newer version: what it has more is not looked at.
        let rows = SharedRows::create(4).expect("memfd");
        let long = same(&rows, Layout { size: 512, rows: 2 });
        long.row(1).request_begun(1);
        long.row(1).request_ended(u64::MAX, false);
        long.memory.at::<AtomicU64>(1024 - 8).store(99, Relaxed);
        let seen = long.read();
        assert_eq!(
            (seen.requests, seen.busy_us, seen.latency[BUCKETS - 1]),
            (1, u64::MAX, 1)
        );
        // What is no layout is refused.
        for (size, rows) in [
            (0, 1),
            (64, 1),
            (200, 1),
            (256, 0),
            (256, 1 << 17),
            (1 << 31, 4),
            (256, 5),
        ] {
            let file = long.as_fd().try_clone_to_owned().expect("dup");
            assert!(
                SharedRows::open(file, Layout { size, rows }).is_err(),
                "{rows} of {size}"
            );
        }
    }

    #[test]
    fn totals_saturate() {
        let reading = Reading::from_fields(|_| u64::MAX);
        let mut totals = Totals::default();
        totals.fold(&reading);
        totals.fold(&reading);
        assert_eq!(
            (totals.requests, totals.busy_us, totals.latency),
            (u64::MAX, u64::MAX, [u64::MAX; BUCKETS])
        );
    }

    #[test]
    fn rows_do_not_share_cache_lines() {
        assert_eq!(size_of::<Row>() % 128, 0);
        assert!(
            size_of::<Row>() >= 128,
            "the first release's rows had so much"
        );
    }
}
