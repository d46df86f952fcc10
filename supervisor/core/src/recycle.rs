//! Recycling: workers are replaced before they have leaked too much, by requests, age or memory.
//!
//! Each worker draws its own limits when it is started: those of the configuration less a random
//! share, so that workers started together do not go together. A worker that has reached a limit
//! has a *pending recycle*. It is then replaced as if an operator had requested it: it gets a
//! [`Replacement`], which requires a permit, serves until the new worker is ready, and keeps
//! serving if that one fails. The recycle that has been pending for longest goes first.
//!
//! None begins during a reload, which replaces every worker anyway, before the server serves, or
//! when it stops.

use crate::event::{Fact, Observation, WorkerSample};
use crate::id::{Slot, WorkerId};
use crate::limits::RecyclePending;
use crate::machine::{Core, Phase};
use crate::slots::Permit;
use crate::time::Time;
use crate::worker::{Replacement, Stage, Worker};

impl Worker {
    /// Records that the worker has reached a limit.
    fn measure(&mut self, now: Time, sample: Option<&WorkerSample>) {
        if self.recycle_pending.is_some() || self.ready_since().is_none() {
            return;
        }
        let requests = sample.and_then(|sample| sample.requests);
        let memory = sample.and_then(|sample| sample.memory);
        let reached = self.limits.reached(now - self.born, requests, memory);
        self.recycle_pending = reached.map(|why| RecyclePending { since: now, why });
    }

    /// Returns when it reaches its age limit, if no recycle is pending yet.
    fn old_at(&self) -> Option<Time> {
        let age = self.limits.age.filter(|_| self.recycle_pending.is_none())?;
        matches!(self.stage, Stage::Ready { .. }).then(|| self.born + age)
    }
}

impl Core {
    /// Records which workers have reached a limit.
    pub(crate) fn measure(&mut self, now: Time, observation: &Observation) {
        for (id, sample) in &observation.workers {
            if let Some(worker) = self.workers.get_mut(id) {
                worker.measure(now, Some(sample));
            }
        }
    }

    /// Replaces workers with a pending recycle, as far as there are permits.
    pub(crate) fn recycle(&mut self, now: Time) {
        self.workers
            .values_mut()
            .for_each(|worker| worker.measure(now, None));
        if !self.may_recycle() {
            return;
        }
        let mut due: Vec<(Time, WorkerId, Slot)> = self
            .workers
            .values()
            .filter(|worker| self.is_to_recycle(worker))
            .filter_map(|worker| Some((worker.recycle_pending?.since, worker.id, worker.slot)))
            .collect();
        due.sort();
        for (_, id, slot) in due {
            let alone = self.in_slot(slot).count() == 1;
            if alone && self.next_attempt(slot) <= now && self.permit(slot) == Permit::Granted {
                self.begin_replacement(id, Replacement::Recycle);
            }
        }
    }

    fn may_recycle(&self) -> bool {
        self.phase == Phase::Serving && !self.is_reloading()
    }

    fn is_to_recycle(&self, worker: &Worker) -> bool {
        let open = worker.slot.0 < self.open && !self.held_slots.contains(&worker.slot);
        open && worker.replacement.is_none()
            && worker.generation == self.stable.id
            && worker.ready_since().is_some()
            && worker.recycle_pending.is_some()
    }

    /// Returns when a replacement may be tried again in a slot where one has failed.
    fn next_attempt(&self, slot: Slot) -> Time {
        self.replacement_backoffs.not_before(slot)
    }

    /// Returns when the next worker reaches a limit or a retry is allowed.
    pub(crate) fn next_recycle(&self, now: Time) -> Option<Time> {
        if !self.may_recycle() {
            return None;
        }
        let old = self.workers.values().filter_map(Worker::old_at);
        let to_recycle = self
            .workers
            .values()
            .filter(|worker| self.is_to_recycle(worker));
        let retries = to_recycle.map(|worker| self.next_attempt(worker.slot));
        old.chain(retries).filter(|at| *at > now).min()
    }

    /// Ends the back-off of a slot whose replacement has succeeded.
    pub(crate) fn replacement_succeeded(&mut self, slot: Slot) {
        self.replacement_backoffs.reset(slot);
    }

    /// Returns the fact to report when a worker is recycled.
    pub(crate) fn recycling(worker: &Worker) -> Option<Fact> {
        worker
            .recycle_pending
            .map(|due| Fact::Recycling(worker.worker_ref(), due.why))
    }
}
