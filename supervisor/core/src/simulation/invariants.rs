//! What must hold after every step.

use super::world::*;

/// A set of slots, of which there are few here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slots(u64);

impl Slots {
    pub(crate) fn has(self, slot: Slot) -> bool {
        self.0 & (1 << slot.0) != 0
    }

    pub(crate) fn count(self) -> usize {
        self.0.count_ones() as usize
    }
}

/// One past the last slot that is filled, or will be if the reload succeeds.
fn wanted_end(view: &View) -> u16 {
    view.reload.map_or(0, |reload| reload.slots).max(view.open)
}

impl World {
    /// A slot whose workers keep failing is not refilled more often than the back-off allows.
    pub(crate) fn count_spawn(&mut self, slot: Slot) {
        let now = self.now;
        let recent = |times: &mut VecDeque<Time>| {
            while times.front().is_some_and(|time| now - *time > MINUTE) {
                times.pop_front();
            }
            times.len()
        };
        let operations = recent(&mut self.operations);
        let times = &mut self.spawns[slot.index()];
        times.push_back(now);
        let spawns = recent(times);
        // 0 + 0.05 + 0.1 + ... s at the fastest: ten in the first minute; each operation restarts
        // the series. A worker that has served for a second may leave, each time.
        let left = self
            .excused
            .iter()
            .filter(|(at, where_)| now - *at <= MINUTE && *where_ == slot)
            .count();
        let most = 12 * (1 + operations) + 2 + left;
        invariant!(
            self,
            spawns <= most,
            "spawns a slot and minute are bounded: {spawns} in slot {slot}"
        );
    }

    /// The first start is not given up while a worker may still become ready.
    pub(crate) fn check_given_up(&self) {
        let starting = |process: &Process| {
            !process.killed && process.aborted_at.is_none() && process.drained_at.is_none()
        };
        let starts = self.processes.values().any(starting);
        invariant!(
            self,
            !starts,
            "the first start waits for every worker that is starting: {:?}",
            self.core.view()
        );
    }

    /// No operation takes a slot out of service without a permit.
    pub(crate) fn check_permits(&mut self) {
        self.operations.push_back(self.now);
        let (out, most) = self.core.permits();
        invariant!(
            self,
            out <= most,
            "a permit is needed: {out} slots are out, {most} may be"
        );
    }

    /// A recycled worker has reached a limit, and no other change is in progress.
    pub(crate) fn check_recycling(&mut self, who: WorkerRef, excess: RecycleReason) {
        self.check_permits();
        let view = self.core.view();
        let serving =
            matches!(view.state, State::Serving | State::Degraded) && view.reload.is_none();
        invariant!(self, serving, "no worker is recycled now: {who:?} {view:?}");
        let limits = self
            .fates
            .get(&who.generation)
            .map(|fate| fate.1.recycle)
            .unwrap_or_default();
        let part = |whole: Option<u64>| whole.map_or(u64::MAX, |whole| whole * 4 / 5);
        let deserved = match excess {
            RecycleReason::Requests(done, _) => done >= part(limits.requests),
            RecycleReason::Memory(used, _) => used >= part(limits.memory),
            RecycleReason::Age(age, _) => limits.age.is_some_and(|most| age >= most.mul_f64(0.8)),
        };
        invariant!(
            self,
            deserved,
            "no worker is recycled too early: {who:?} {excess:?} {limits:?}"
        );
    }

    /// A worker that is being replaced drains when its successor is ready.
    fn is_relieved(&self, who: WorkerRef) -> bool {
        let follows = |(id, process): (&WorkerId, &Process)| {
            *id != who.worker
                && process.slot == who.slot
                && process.ready
                && process.drained_at.is_none()
        };
        self.processes.iter().any(follows)
    }

    /// A reload is over when no old worker accepts connections any more, or after a second, or when
    /// the server is about to stop.
    pub(crate) fn check_reloaded(&self, generation: GenerationId) {
        let accepts = |process: &Process| {
            process.generation != generation && !process.stopped_accepting && !process.killed
        };
        let quiesced = !self.processes.values().any(accepts);
        let waited = self.now - self.committed_at >= Duration::from_secs(1);
        let ends = matches!(
            self.core.view().state,
            State::Draining | State::Stopping | State::PreStop
        );
        invariant!(
            self,
            quiesced || waited || ends,
            "a reload is over when no old worker accepts connections: {generation}"
        );
        let late = self.now - self.committed_at > Duration::from_secs(2);
        let slept = self
            .sleeps
            .iter()
            .any(|(_, until)| *until >= self.committed_at);
        invariant!(
            self,
            !late || slept,
            "a reload is over a second after its commit: {generation}"
        );
    }

    pub(crate) fn check_relieved(&mut self, who: WorkerRef) {
        let replacement_succeeded = self.is_relieved(who);
        invariant!(
            self,
            replacement_succeeded,
            "the replacement is ready before {who:?} drains"
        );
    }

    /// The autoscaler stays within its range and the memory limit, and drains no worker with a
    /// request in flight.
    pub(crate) fn check_scaled(&mut self, from: u16, to: u16, reason: ScaleReason) {
        let view = self.core.view();
        self.operations.push_back(self.now);
        self.served_before = 0;
        let Some(plan) = self.fates.get(&view.generation).map(|fate| fate.1) else {
            invariant!(self, false, "the generation that serves is held");
            return;
        };
        let Some(autoscale) = plan.autoscale else {
            invariant!(
                self,
                false,
                "a fixed number of workers is not changed by the load: {from}, {to}"
            );
            return;
        };
        let serving = matches!(view.state, State::Serving | State::Degraded);
        invariant!(
            self,
            serving && view.reload.is_none(),
            "the load changes nothing now: {view:?}"
        );
        let most = plan.max_workers.max(plan.workers);
        invariant!(
            self,
            to >= plan.workers && to <= most,
            "the range holds: {from}, {to} of {plan:?}"
        );
        let alive = self.processes.len() as u64;
        if to > from {
            let after = (alive + u64::from(to - from)) * MEMORY;
            let fits = autoscale.memory.is_none_or(|most| after <= most);
            invariant!(
                self,
                fits,
                "no worker is started beyond the memory limit: {from}, {to}, {alive} alive"
            );
            invariant!(
                self,
                !matches!(reason, ScaleReason::Unneeded(..)),
                "it grows for a reason: {reason:?}"
            );
            return;
        }
        invariant!(self, to + 1 == from, "workers go one by one: {from}, {to}");
        let manual_minimum = self.by_hand.unwrap_or(0).min(most);
        invariant!(
            self,
            to >= manual_minimum,
            "what was set by hand is the least: {to} of {manual_minimum}"
        );
        let busy = self
            .processes
            .values()
            .any(|process| process.slot.0 == to && process.in_flight > 0);
        invariant!(
            self,
            !busy,
            "a worker with a request in flight is not drained: slot {to}"
        );
    }

    /// Whether a worker that leaves cleanly now has done nothing wrong.
    pub(crate) fn excuses(&self, process: &Process) -> bool {
        // Time in which nothing was observed does not count.
        let watched = self
            .sleeps
            .iter()
            .all(|(_, until)| *until < process.ready_at);
        process.serves()
            && !process.visits
            && watched
            && self.now - process.ready_at >= Duration::from_secs(1)
    }

    /// The core has processed a worker's exit: the cause is the right one, and so is the successor.
    pub(crate) fn check_death(&mut self, process: &Process, excused: bool) {
        let view = self.core.view();
        let Some(WorkerExit { cause, grade, .. }) = self.worker_exit.take() else {
            invariant!(self, false, "every exit is reported");
            return;
        };
        let failed = !excused && process.serves();
        invariant!(
            self,
            !failed || grade == Grade::Failure || cause == Cause::Left,
            "a failure is called one"
        );
        let expected = match (
            process.violated_protocol,
            process.drained_at,
            process.aborted_at,
        ) {
            (false, None, None) if process.killed => Some(Cause::Stop),
            (false, None, None) if excused => Some(Cause::Left),
            _ => None,
        };
        invariant!(
            self,
            expected.is_none_or(|expected| expected == cause),
            "a death has the cause that it had: {cause:?}, not {expected:?}"
        );
        let wanted = matches!(
            view.state,
            State::Serving | State::Degraded | State::Starting
        ) && !self.stopping
            && view.reload.is_none()
            && process.generation == view.generation
            && process.slot.0 < view.open;
        let followed = self
            .processes
            .values()
            .any(|other| other.slot == process.slot);
        invariant!(
            self,
            !(excused && wanted) || followed,
            "a worker that leaves cleanly has a successor at once: slot {}",
            process.slot
        );
    }

    /// A worker of the committed generation drains only when another one serves its slot, or none
    /// should.
    pub(crate) fn check_drain(&self, worker: WorkerId) {
        let process = &self.processes[&worker];
        let view = self.core.view();
        let held = view.held.contains(&process.slot);
        let retired =
            self.stopping || view.state == State::Draining || process.slot.0 >= view.open || held;
        let successor = self.processes.iter().any(|(id, other)| {
            *id != worker
                && other.slot == process.slot
                && other.ready
                && other.drained_at.is_none()
                && !other.killed
        });
        if !retired && process.ready {
            invariant!(
                self,
                successor,
                "no slot is taken out of service without a permit: worker {worker}"
            );
        }
        let replaces = |other: &&Process| {
            other.slot == process.slot
                && other.generation > process.generation
                && other.ready
                && other.drained_at.is_none()
        };
        for newer in self
            .processes
            .values()
            .filter(replaces)
            .filter(|_| !retired && !process.visits)
        {
            let min_ready = self
                .fates
                .get(&newer.generation)
                .map_or(Duration::ZERO, |fate| fate.1.min_ready);
            let survived = self.now - newer.ready_at;
            invariant!(
                self,
                survived >= min_ready,
                "a successor is ready for min_ready first: {worker}, {survived:?}"
            );
        }
        let is_candidate = view.reload.is_some_and(|reload| {
            process.slot.0 >= reload.passed && reload.generation != process.generation
        });
        // Or when another one of its own generation serves there: one was the other's replacement.
        let of_its_own = self.processes.iter().any(|(id, other)| {
            *id != worker
                && other.slot == process.slot
                && other.generation == process.generation
                && other.ready
                && other.drained_at.is_none()
        });
        if is_candidate && !retired && !of_its_own {
            invariant!(
                self,
                false,
                "an old worker drains only after min_ready of the new one: {worker}"
            );
        }
    }

    /// The slots of the processes that match. Computed once per step: asking for each slot again
    /// took half of the time of a step.
    pub(crate) fn slots(&self, is_so: impl Fn(&Process) -> bool) -> Slots {
        let processes = self.processes.values().filter(|process| is_so(process));
        Slots(processes.fold(0, |slots, process| slots | 1 << process.slot.0))
    }

    /// Those of them that are not retired.
    fn wanted(&self, slots: Slots) -> Slots {
        Slots(
            self.core
                .retired()
                .fold(slots.0, |slots, slot| slots & !(1 << slot.0)),
        )
    }

    pub(crate) fn check(&mut self) {
        if self.exited {
            return;
        }
        let view = self.core.view();
        if let Some(due) = self.core.next_deadline() {
            invariant!(
                self,
                due > self.now,
                "the next deadline is in the future: {due:?}"
            );
        }
        let serving = self.slots(Process::serves);
        self.check_rotation(&view, serving);
        // Rescue workers do not count.
        let served = self.wanted(serving).count();
        if self.healthy && matches!(view.state, State::Serving) && served < self.served_before {
            let least = view.reload.map_or(view.open, |reload| {
                if reload.slots > 0 {
                    reload.slots.min(view.open)
                } else {
                    view.open
                }
            });
            invariant!(
                self,
                served >= usize::from(least),
                "served slots never fall below the fewer of old and new: {served} of {least}"
            );
        }
        self.served_before = served;
        for (id, process) in &self.processes {
            if let (Some((at, grace)), false) = (process.drained_at, process.killed) {
                let over = self.now - at;
                invariant!(
                    self,
                    over <= grace + self.slept_since(at) + Duration::from_millis(1500),
                    "a drain ends by its deadline: worker {id}, {over:?}"
                );
            }
            if let (Some(at), false) = (process.aborted_at, process.killed) {
                let over = self.now - at;
                invariant!(
                    self,
                    over <= ABORT_GRACE + self.slept_since(at) + Duration::from_millis(1500),
                    "an abort ends by a kill: worker {id}, {over:?}"
                );
            }
            self.check_hangs(*id, process);
        }
        self.check_stalls(&view);
        self.check_stranded(&view);
    }

    /// Stranded connections are served, while workers can be started and serve.
    fn check_stranded(&mut self, view: &View) {
        if view.state != State::Serving {
            self.serving_since = self.now;
            return;
        }
        // A worker that is there and accepts nothing costs two minutes, and then its time to drain.
        let (since, patience) = match self.calm_since {
            _ if self.healthy => (self.serving_since, MINUTE),
            Some(calm) => (calm.max(self.serving_since), MINUTE * 4),
            None => return,
        };
        let wanted_end = wanted_end(view);
        for (slot, queue) in self
            .queues
            .iter()
            .filter(|(slot, queue)| slot.0 >= wanted_end && queue.length > 0)
        {
            let waits = self.now - queue.still_since.max(since);
            invariant!(
                self,
                waits <= patience,
                "no connection is stranded for ever: {slot}, {waits:?}"
            );
        }
    }

    /// Time since then in which the supervisor itself was not running.
    pub(crate) fn slept_since(&self, then: Time) -> Duration {
        self.sleeps
            .iter()
            .filter(|(_, to)| *to > then)
            .map(|(from, to)| *to - (*from).max(then))
            .sum::<Duration>()
            * 2
    }

    fn check_rotation(&self, view: &View, serving: Slots) {
        if self.rotation.is_empty()
            || !matches!(
                view.state,
                State::Serving | State::Degraded | State::Starting
            )
        {
            return;
        }
        let coming = self.slots(|process| !process.ready && process.drained_at.is_none());
        for slot in &self.rotation {
            let fine = serving.has(*slot) || coming.has(*slot) || self.wanted(serving).count() == 0;
            invariant!(
                self,
                fine,
                "a slot in rotation is served or about to be: {slot}"
            );
        }
        let wanted_end = wanted_end(view);
        let served = self.wanted(serving).count() > 0;
        let parked = self
            .rotation
            .iter()
            .filter(|slot| slot.0 >= wanted_end)
            .count();
        invariant!(
            self,
            parked == 0 || !served,
            "a retired slot is not in rotation: {:?} of {wanted_end}",
            self.rotation
        );
        for slot in (0..view.open).map(Slot).filter(|slot| serving.has(*slot)) {
            let stalled = view
                .workers
                .iter()
                .any(|w| w.slot == slot && w.state == WorkerState::Stalled);
            if !stalled && !view.held.contains(&slot) {
                invariant!(
                    self,
                    self.rotation.contains(&slot),
                    "a served slot is in rotation: {slot}"
                );
            }
        }
    }

    /// No worker is aborted that serves, or that may still recover.
    pub(crate) fn check_abort(&self, worker: WorkerId) {
        let process = &self.processes[&worker];
        let Some(plan) = self.plan_of(process).filter(|_| process.ready) else {
            return;
        };
        let lasts = |since: Option<Time>, limit: Option<Duration>, error: Duration| {
            since
                .zip(limit)
                .is_some_and(|(since, limit)| self.now - since + error >= limit)
        };
        // Its last heartbeat was at most a period before it fell silent.
        let period = if self.kind == Kind::Feeds {
            plan.hang_timeout.unwrap_or_default() / 2
        } else {
            plan.heartbeat
        };
        let silent = !self.kind.is_mute() && lasts(process.silent_since, plan.hang_timeout, period);
        let starts = self.kind == Kind::Mute { greets: false } && process.done == 0;
        let patience = plan.hang_timeout.map(|limit| {
            if starts {
                limit.max(plan.start_timeout)
            } else {
                limit
            }
        });
        // Connections accepted and replaced between two observations are invisible.
        let unseen = self
            .queues
            .get(&process.slot)
            .map(|queue| queue.seen_since.max(process.ready_at));
        let stuck = self
            .stuck_since(process)
            .map(|since| unseen.map_or(since, |unseen| since.min(unseen)));
        let stuck = self.kind.is_mute() && lasts(stuck, patience, Duration::ZERO);
        let limit = plan
            .request_timeout
            .map(|limit| limit + Duration::from_secs(1));
        let overdue = lasts(process.busy_since, limit, Duration::ZERO);
        invariant!(
            self,
            silent || stuck || overdue,
            "no worker is aborted before it has not served for the whole timeout: {worker}"
        );
    }

    /// Returns since when nothing has been accepted from a slot's queue while this process was
    /// there.
    fn stuck_since(&self, process: &Process) -> Option<Time> {
        let waits = self
            .queues
            .get(&process.slot)
            .filter(|queue| queue.length > 0);
        waits.map(|queue| queue.still_since.max(process.ready_at))
    }

    /// No healthy worker counts as stalled.
    pub(crate) fn check_stalled(&self, who: WorkerRef, why: Stall) {
        invariant!(
            self,
            !self.stalled_supervisor,
            "a supervisor that was stopped marks no worker stalled: {}",
            who.worker
        );
        let Some(process) = self.processes.get(&who.worker) else {
            invariant!(self, false, "no fact names a dead worker: {}", who.worker);
            return;
        };
        let reason = match why {
            Stall::Silent => process.silent_since.is_some(),
            Stall::Stuck => self.stuck_since(process).is_some(),
            Stall::Overdue => false,
        };
        invariant!(
            self,
            reason,
            "no worker stalls without a reason: {}, {why:?}",
            who.worker
        );
    }

    /// A worker that has not served for much longer than allowed is aborted.
    fn check_hangs(&self, id: WorkerId, process: &Process) {
        let Some(plan) = self.plan_of(process).filter(|_| process.serves()) else {
            return;
        };
        let silent = process.silent_since.filter(|_| !self.kind.is_mute());
        let stuck = self.stuck_since(process).filter(|_| self.kind.is_mute());
        for (since, limit) in [
            (silent, plan.hang_timeout),
            (
                stuck,
                plan.hang_timeout.map(|limit| limit.max(plan.start_timeout)),
            ),
            (process.busy_since, plan.request_timeout),
        ] {
            let (Some(since), Some(limit)) = (since, limit) else {
                continue;
            };
            let lasted = self.now - since;
            let seen = lasted <= limit * 2 + self.slept_since(since) + Duration::from_secs(4);
            invariant!(self, seen, "a hung worker is seen: {id}, {lasted:?}");
        }
    }

    /// A slot with stalled workers is not in rotation while another one can serve; one that has
    /// recovered is.
    fn check_stalls(&self, view: &View) {
        let state = |id: &WorkerId| {
            view.workers
                .iter()
                .find(|worker| worker.worker == *id)
                .map(|worker| worker.state)
        };
        for (id, process) in self.processes.iter().filter(|(_, process)| process.takes()) {
            let stalled = state(id) == Some(WorkerState::Stalled);
            let patience = Duration::from_secs(4) + self.slept_since(process.well_since);
            let known = !process.troubled || self.now - process.well_since > patience;
            invariant!(
                self,
                !(stalled && known),
                "a recovered worker is back in rotation: {id}"
            );
        }
        let well = |(id, process): &(&WorkerId, &Process)| {
            process.serves() && state(id) == Some(WorkerState::Ready)
        };
        let well = self
            .processes
            .iter()
            .filter(well)
            .fold(0, |slots, (_, process)| slots | 1 << process.slot.0);
        for slot in &self.rotation {
            let others = self.wanted(Slots(well & !(1 << slot.0))).count() > 0;
            let here = || {
                self.processes
                    .values()
                    .filter(|process| process.slot == *slot)
            };
            let serving = || here().filter(|process| process.serves());
            let useless = serving().all(|process| self.surely_stalls(process))
                && (serving().next().is_some()
                    || here().any(|process| process.aborted_at.is_some() && !process.killed));
            invariant!(
                self,
                !(useless && others),
                "a slot that stalls is not in rotation while another one is well: {slot}"
            );
        }
    }

    fn surely_stalls(&self, process: &Process) -> bool {
        let Some(plan) = self
            .plan_of(process)
            .filter(|plan| plan.hang_timeout.is_some())
        else {
            return false;
        };
        let lasts =
            |since: Time, limit: Duration| self.now - since > limit + self.slept_since(since);
        let silence = plan.heartbeat * 3 + Duration::from_millis(500);
        let silent = process
            .silent_since
            .is_some_and(|since| lasts(since, silence));
        let stuck = self
            .stuck_since(process)
            .is_some_and(|since| lasts(since, Duration::from_secs(2)));
        (self.kind.is_rust() && silent) || (!process.takes() && stuck)
    }
}
