//! Whether accept(2) waits for a connection on the listening sockets that a worker is given.
//!
//! `O_NONBLOCK` belongs to the open file, which all workers of a slot, all generations and the
//! supervisor share. External programs find it clear, as under systemd, unless they are to have it
//! set (`--nonblocking-sockets`). Rust workers want it set, and do without it where they must.
//!
//! So it is changed when a worker starts, and only where that harms no other worker of the socket:
//! a running program has found it as it was, or has set it itself, and its successor of the same
//! command gets along with that, too. Another command gets it as configured. When such a command is
//! rolled back, the flag is as before again.

use super::Server;
use log::debug;
use prefork_os::{is_nonblocking, set_blocking, set_nonblocking};
use prefork_protocol::{GenerationId, Slot, WorkerId};
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Workers for which a flag was cleared that another command had set.
#[derive(Debug, Default)]
pub(crate) struct Displaced(BTreeSet<WorkerId>);

/// Another worker that holds a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Rust,
    SameCommand,
    OtherCommand,
}

impl Server {
    /// Makes the sockets of a worker that is about to start blocking or not.
    pub(crate) fn set_blocking_for(&mut self, worker: WorkerId, slot: Slot, id: GenerationId) {
        let Some(generation) = self.generations.held.get_mut(&id) else {
            return;
        };
        // If it fails, so does the launch.
        let count = generation.config.slots().max(slot.0 + 1);
        let _ = generation.listen(count);
        let Some(generation) = self.generations.get(id) else {
            return;
        };
        let mut displaced = false;
        for (_, socket) in generation.sockets.for_slot(generation.queue_of(slot)) {
            let holders = self.holders_of(socket, id, worker);
            let external = |holder: &Holder| *holder != Holder::Rust;
            let done = if generation.has_channel() {
                if holders.iter().any(external) {
                    continue;
                }
                set_nonblocking(socket)
            } else if generation.config.nonblocking_sockets {
                set_nonblocking(socket)
            } else if holders.contains(&Holder::SameCommand) {
                continue;
            } else {
                displaced |= holders.contains(&Holder::OtherCommand)
                    && is_nonblocking(socket).unwrap_or(false);
                set_blocking(socket)
            };
            if let Err(error) = done {
                debug!("cannot change O_NONBLOCK of a listening socket: {error}");
            }
        }
        if displaced {
            self.workers.displaced.0.insert(worker);
        }
    }

    /// Makes the sockets of a worker that is gone non-blocking again, where the workers that remain
    /// want that.
    pub(crate) fn restore_blocking_after(
        &mut self,
        worker: WorkerId,
        slot: Slot,
        id: GenerationId,
    ) {
        let displaced = self.workers.displaced.0.remove(&worker) && id != self.generations.accepted;
        let Some(generation) = self.generations.get(id).filter(|gone| !gone.has_channel()) else {
            return;
        };
        for (_, socket) in generation.sockets.for_slot(generation.queue_of(slot)) {
            let holders = self.holders_of(socket, id, worker);
            let restored = match holders.last() {
                Some(Holder::Rust) => true,
                Some(Holder::OtherCommand) => displaced && !holders.contains(&Holder::SameCommand),
                Some(Holder::SameCommand) | None => false,
            };
            if restored && let Err(error) = set_nonblocking(socket) {
                debug!("cannot change O_NONBLOCK of a listening socket: {error}");
            }
        }
    }

    /// Returns which other workers hold a socket, seen from a worker of this generation.
    fn holders_of(
        &self,
        socket: BorrowedFd<'_>,
        id: GenerationId,
        worker: WorkerId,
    ) -> BTreeSet<Holder> {
        let number: RawFd = socket.as_raw_fd();
        let program = self.generations.get(id).map(|own| &own.config.program);
        let handles = self.workers.handles.values();
        let others = handles.filter(|handle| handle.id != worker);
        let holder = others.filter_map(|handle| {
            let generation = self.generations.get(handle.generation)?;
            let queues = generation
                .sockets
                .for_slot(generation.queue_of(handle.slot));
            let holds = queues.iter().any(|(_, own)| own.as_raw_fd() == number);
            holds.then(|| match &generation.config.program {
                _ if generation.has_channel() => Holder::Rust,
                same if Some(same) == program => Holder::SameCommand,
                _ => Holder::OtherCommand,
            })
        });
        holder.collect()
    }
}
