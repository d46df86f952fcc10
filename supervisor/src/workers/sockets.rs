//! Which listening sockets a worker inherits.
//!
//! A Rust worker gets its own slot's sockets and, to steal from, those of its siblings. It watches
//! the nearest like its own, and polls the others now and then, so that no connection waits for
//! ever in the queue of a slot that has no worker. An external program expects one socket per name,
//! and gets its own slot's only.

use crate::generation::Generation;
use prefork_protocol::Slot;
use prefork_protocol::settings::Accept;
use std::os::fd::BorrowedFd;

/// Slots that a worker watches besides its own. Watching more would cost memory and time for each
/// registration for nothing: of eight workers one is idle, or the machine is full.
const MAX_WATCHED_SLOTS: usize = 7;
/// Sockets of siblings that a worker inherits at most: its limit of descriptors is for clients.
const MAX_SIBLING_SOCKETS: usize = 256;

/// The listening sockets of one worker.
#[derive(Debug)]
pub(crate) struct WorkerSockets<'a> {
    /// What it gets as `LISTEN_FDS`, with the names.
    pub(crate) own: Vec<(String, BorrowedFd<'a>)>,
    /// Sockets of siblings that it watches when it steals.
    pub(crate) watched: Vec<BorrowedFd<'a>>,
    /// Sockets of siblings that it polls now and then.
    pub(crate) polled: Vec<BorrowedFd<'a>>,
}

/// Returns how far a sibling is where the number of workers follows the load. Most of the time the
/// last slots have no worker, so the slots are no ring: a worker that watches only the slots after
/// its own might watch none that is used. Slots on both sides are watched in turn.
fn distance(slot: u16, other: u16) -> u32 {
    u32::from(slot.abs_diff(other)) * 2 - u32::from(other > slot)
}

impl<'a> WorkerSockets<'a> {
    /// Chooses the sockets of the worker of `slot`. They listen already.
    pub(crate) fn of(generation: &'a Generation, slot: Slot) -> Self {
        let Generation {
            config, sockets, ..
        } = generation;
        // Where all share the first slot's queue, no slot has one of its own.
        let queue = generation.queue_of(slot);
        let own = sockets.for_slot(queue);
        let siblings = match config.accept {
            Accept::Steal | Accept::Shared if generation.has_channel() => {
                let mut siblings = sockets.siblings(queue, config.slots().max(slot.0 + 1));
                if config.range {
                    siblings.sort_by_key(|(other, _)| distance(queue, *other));
                }
                siblings
            }
            Accept::Own | Accept::Steal | Accept::Shared => Vec::new(),
        };
        let mut slots: Vec<u16> = siblings.iter().map(|(slot, _)| *slot).collect();
        slots.dedup();
        // Without stealing, the other queues are those of slots that a reload or a scale-down took
        // out of service.
        let watched = if config.accept == Accept::Steal {
            slots.get(..MAX_WATCHED_SLOTS).unwrap_or(&slots)
        } else {
            &[]
        };
        let (watched, polled): (Vec<_>, Vec<_>) = siblings
            .into_iter()
            .take(MAX_SIBLING_SOCKETS)
            .partition(|(slot, _)| watched.contains(slot));
        let sockets = |siblings: Vec<(u16, BorrowedFd<'a>)>| {
            siblings.into_iter().map(|(_, socket)| socket).collect()
        };
        Self {
            own,
            watched: sockets(watched),
            polled: sockets(polled),
        }
    }

    /// Returns the value of `PREFORK_SIBLINGS`.
    pub(crate) fn siblings(&self) -> String {
        format!("{},{}", self.watched.len(), self.polled.len())
    }
}
