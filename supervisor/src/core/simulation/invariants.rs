//! What must hold after every step.

use super::*;

impl World {
    /// A slot whose workers keep failing is not refilled more often than the back-off allows.
    pub(super) fn count_spawn(&mut self, slot: Slot) {
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
        // 0 + 0.05 + 0.1 + ... s at the fastest: ten in the first minute; each operation starts a row anew.
        let most = 12 * (1 + operations) + 2;
        invariant!(self, spawns <= most, "spawns a slot and minute are bounded: {spawns} in slot {slot}");
    }

    /// A worker of the accepted generation drains only when another one serves its slot, or nobody is to.
    pub(super) fn check_drain(&self, worker: WorkerId) {
        let process = &self.processes[&worker];
        let view = self.core.view();
        let retired = self.stopping || view.state == State::Draining || process.slot.0 >= view.open;
        let successor = self.processes.iter().any(|(id, other)| {
            *id != worker
                && other.slot == process.slot
                && other.ready
                && other.drained_at.is_none()
                && !other.killed
        });
        if !retired && process.ready {
            invariant!(self, successor, "nobody takes a slot out of service: worker {worker}");
        }
        let replaces = |other: &&Process| {
            other.slot == process.slot
                && other.generation > process.generation
                && other.ready
                && other.drained_at.is_none()
        };
        for newer in self.processes.values().filter(replaces).filter(|_| !retired) {
            let probation = self.fates.get(&newer.generation).map_or(Duration::ZERO, |fate| fate.1.probation);
            let survived = self.now - newer.ready_at;
            invariant!(
                self,
                survived >= probation,
                "a successor survives its probation first: {worker}, {survived:?}"
            );
        }
        let on_trial = view
            .reload
            .is_some_and(|reload| process.slot.0 >= reload.passed && reload.generation != process.generation);
        if on_trial && !retired {
            invariant!(self, false, "an old worker drains only after the probation of the new one: {worker}");
        }
    }

    pub(super) fn serves(&self, slot: Slot) -> bool {
        self.processes.values().any(|p| {
            p.slot == slot && p.ready && p.drained_at.is_none() && p.aborted_at.is_none() && !p.killed
        })
    }

    pub(super) fn check(&mut self) {
        if self.exited {
            return;
        }
        let view = self.core.view();
        if let Some(due) = self.core.next_deadline() {
            invariant!(self, due > self.now, "the next deadline is in the future: {due:?}");
        }
        self.check_rotation(&view);
        let served = (0..64).map(Slot).filter(|slot| self.serves(*slot)).count();
        if self.healthy && matches!(view.state, State::Serving) && served < self.served_before {
            let least = view.reload.map_or(view.open, |reload| {
                if reload.slots > 0 { reload.slots.min(view.open) } else { view.open }
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
                    over <= grace + self.stalled_since(at) + Duration::from_millis(1500),
                    "a drain ends by its deadline: worker {id}, {over:?}"
                );
            }
            if let (Some(at), false) = (process.aborted_at, process.killed) {
                let over = self.now - at;
                invariant!(
                    self,
                    over <= ABORT_GRACE + self.stalled_since(at) + Duration::from_millis(1500),
                    "an abort ends by a kill: worker {id}, {over:?}"
                );
            }
            let hung = process.ready
                && process.drained_at.is_none()
                && process.aborted_at.is_none()
                && !process.killed;
            if let (Some(since), Some(timeout), true) = (
                process.silent_since,
                self.fates.get(&process.generation).and_then(|fate| fate.1.hang_timeout),
                hung,
            ) {
                let silent = self.now - since;
                invariant!(
                    self,
                    silent <= timeout * 2 + self.stalled_since(since) + Duration::from_secs(2),
                    "a hung worker is seen: {id}, {silent:?}"
                );
            }
        }
    }

    /// Time since then in which the supervisor itself was not running.
    pub(super) fn stalled_since(&self, then: Time) -> Duration {
        self.stalls
            .iter()
            .filter(|(_, to)| *to > then)
            .map(|(from, to)| *to - (*from).max(then))
            .sum::<Duration>()
            * 2
    }

    pub(super) fn check_rotation(&self, view: &View) {
        if self.rotation.is_empty()
            || !matches!(view.state, State::Serving | State::Degraded | State::Starting)
        {
            return;
        }
        let anybody = (0..64).map(Slot).any(|slot| self.serves(slot));
        for slot in &self.rotation {
            let coming =
                self.processes.values().any(|p| p.slot == *slot && !p.ready && p.drained_at.is_none());
            let fine = self.serves(*slot) || coming || !anybody;
            invariant!(self, fine, "a slot in rotation is served or about to be: {slot}");
        }
        for slot in (0..view.open).map(Slot) {
            let stalled = view.workers.iter().any(|w| w.slot == slot && w.state == WorkerState::Stalled);
            if self.serves(slot) && !stalled {
                invariant!(self, self.rotation.contains(&slot), "a served slot is in rotation: {slot}");
            }
        }
    }
}
