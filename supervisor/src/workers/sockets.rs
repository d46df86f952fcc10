//! Which queues a worker takes connections from.
//!
//! A Rust worker gets its own slot's sockets and, to steal from, those of its siblings: it watches the nearest like its
//! own, and looks into the others now and then, so that nobody waits for ever in the queue of a slot that has no worker.
//! A foreign program expects one socket per name, and gets its own slot's only.

use crate::generation::Generation;
use prefork_protocol::Slot;
use prefork_protocol::settings::Accept;
use std::os::fd::BorrowedFd;

/// Slots that a worker watches besides its own. More would cost each registration's memory and walk, and save nobody
/// any time: of eight workers one is idle, or the machine is full.
const NEAR: usize = 7;
/// Sockets of siblings that a worker inherits at most: its limit of descriptors is for clients.
const MOST: usize = 256;

/// The queues of one worker.
pub(crate) struct WorkerSockets<'a> {
    /// What it gets as `LISTEN_FDS`, with the names.
    pub(crate) own: Vec<(String, BorrowedFd<'a>)>,
    /// Sockets that it watches when it steals.
    pub(crate) near: Vec<BorrowedFd<'a>>,
    /// Sockets that it looks at now and then.
    pub(crate) far: Vec<BorrowedFd<'a>>,
}

/// How far a sibling is where the number of workers follows the load. Most of the time the last slots have none, so the ring
/// is not closed: whoever watches only what comes next around it might watch nobody. Both sides are watched in turn.
fn distance(slot: u16, other: u16) -> u32 {
    u32::from(slot.abs_diff(other)) * 2 - u32::from(other > slot)
}

impl<'a> WorkerSockets<'a> {
    /// Of the worker of `slot`, whose sockets listen already.
    pub(crate) fn of(generation: &'a Generation, slot: Slot) -> Self {
        let Generation {
            config, sockets, ..
        } = generation;
        // Where all share the first slot's queue, nobody has one of their own.
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
        // Without stealing, the others' queues are those of slots that a reload or a scale-down took out of service.
        let near = if config.accept == Accept::Steal {
            slots.get(..NEAR).unwrap_or(&slots)
        } else {
            &[]
        };
        let (near, far): (Vec<_>, Vec<_>) = siblings
            .into_iter()
            .take(MOST)
            .partition(|(slot, _)| near.contains(slot));
        let sockets = |siblings: Vec<(u16, BorrowedFd<'a>)>| {
            siblings.into_iter().map(|(_, socket)| socket).collect()
        };
        Self {
            own,
            near: sockets(near),
            far: sockets(far),
        }
    }

    /// The value of `PREFORK_SIBLINGS`.
    pub(crate) fn siblings(&self) -> String {
        format!("{},{}", self.near.len(), self.far.len())
    }
}
