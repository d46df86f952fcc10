//! The end of a reload: the new generation is committed, and the old workers accept no more
//! connections.
//!
//! A candidate is committed when its workers are good, and only then do the old ones drain. For a
//! moment these may still accept a connection. A client that waits for the verdict (`supervisor
//! reload --wait`, and so `systemctl reload`) relies on the next request getting the new code. So a
//! reload is over, reported and answered, when every old worker has reported that it stopped
//! accepting or is dead. A program that never reports it has [`TIMEOUT`].
//!
//! *Invariant*: not part of an upgrade's state. The shell hands over only while no reload quiesces.

use crate::event::{Done, Fact, RequestId};
use crate::id::{GenerationId, WorkerId};
use crate::machine::Core;
use crate::time::Time;
use std::time::Duration;

/// The longest wait for a program that does not report that it stopped accepting.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);

/// A committed reload whose old workers may still accept connections.
#[derive(Debug, Clone)]
pub(crate) struct Quiesce {
    pub(crate) generation: GenerationId,
    /// How many workers serve it.
    pub(crate) workers: u16,
    pub(crate) requests: Vec<RequestId>,
    pub(crate) deadline: Time,
}

impl Core {
    /// Whether a reload is committed and not over yet. Lasts a second at most.
    pub fn is_quiescing(&self) -> bool {
        self.quiesce.is_some()
    }

    pub(crate) fn stopped_accepting(&mut self, now: Time, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.stopped_accepting = true;
        if worker.is_occupant() {
            self.worker_leaves(now, id);
        }
    }

    /// Ends the reload if its time has come.
    pub(crate) fn quiesce(&mut self, now: Time) {
        let accepts = |quiesce: &Quiesce| {
            self.workers
                .values()
                .any(|worker| worker.generation != quiesce.generation && !worker.stopped_accepting)
        };
        let over = |quiesce: &Quiesce| quiesce.deadline <= now || !accepts(quiesce);
        if self.quiesce.as_ref().is_some_and(over) {
            self.end_reload();
        }
    }

    /// Ends the reload, if one is committed: something else is about to begin.
    pub(crate) fn end_reload(&mut self) {
        let Some(quiesce) = self.quiesce.take() else {
            return;
        };
        let generation = quiesce.generation;
        self.report(Fact::Reloaded(generation, quiesce.workers));
        for request in quiesce.requests {
            self.reply(Some(request), Ok(Done::Reloaded(generation)));
        }
    }
}
