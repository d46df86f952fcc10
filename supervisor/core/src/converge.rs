//! Moves reality towards intent, one possible step at a time.

use crate::event::{Action, Fact, Stall};
use crate::exit::{Cause, DrainReason};
use crate::id::{GenerationId, Slot, WorkerId};
use crate::machine::{Core, Phase};
use crate::time::Time;
use crate::worker::{ABORT_GRACE, MIN_WAIT, Stage, UNREADY_GRACE, Worker};

/// The most workers alive in a slot: one that leaves, and its successor.
const MAX_WORKERS_PER_SLOT: usize = 2;

/// The first start is given up after this many failures (or one for every slot, if that is more),
/// once no worker is starting any more.
const MAX_BOOT_FAILURES: u32 = 3;

impl Core {
    /// Takes every step that is possible now.
    pub(crate) fn converge(&mut self, now: Time) {
        self.end_pre_stop(now);
        self.enforce_deadlines(now);
        self.judge_stalls(now);
        self.judge_boot();
        self.advance_candidate(now);
        self.quiesce(now);
        self.begin_reload();
        self.run_slot_operations(now);
        self.recycle(now);
        self.retire(now);
        self.fill(now);
        // Steer first: new connections must go elsewhere before a worker stops accepting.
        let leaving = self.leave(now);
        self.steer();
        self.out.extend(leaving);
        self.note_degraded();
        self.forget();
        if let Phase::Stopping { status, .. } = self.phase
            && self.workers.is_empty()
        {
            self.phase = Phase::Gone;
            self.out.push(Action::Exit(status));
        }
    }

    fn enforce_deadlines(&mut self, now: Time) {
        let late: Vec<WorkerId> = self
            .workers
            .values()
            .filter(|worker| worker.deadline().is_some_and(|deadline| deadline <= now))
            .map(|worker| worker.id)
            .collect();
        for id in late {
            let Some(worker) = self.workers.get_mut(&id) else {
                continue;
            };
            let before = worker.clone();
            match worker.stage {
                Stage::Starting { .. } => {
                    worker.stage = Stage::Aborting {
                        kill_at: now + ABORT_GRACE,
                    };
                    worker.cause = Some(Cause::StartTimeout);
                    let timeout = worker.plan.start_timeout;
                    let readiness = worker.plan.readiness;
                    self.report(Fact::StartTimedOut(before.worker_ref(), timeout, readiness));
                    self.out.push(Action::Abort(id));
                    let how = before
                        .with_reason(format!("did not get ready within {timeout:?}{readiness}"));
                    self.worker_lost(now, &before, &how, false);
                }
                Stage::Ready { liveness, .. } => {
                    let Some((why, span)) = liveness.hang(now, &worker.plan) else {
                        continue;
                    };
                    worker.stage = Stage::Aborting {
                        kill_at: now + ABORT_GRACE,
                    };
                    worker.cause = Some(match why {
                        Stall::Silent | Stall::Stuck => Cause::Hang,
                        Stall::Overdue => Cause::RequestTimeout,
                    });
                    self.report(Fact::Hung(before.worker_ref(), why, span));
                    self.out.push(Action::Abort(id));
                    let how = match why {
                        Stall::Silent => format!("was silent for {span:.1?}"),
                        Stall::Stuck => format!("took nothing out of its queue for {span:.1?}"),
                        Stall::Overdue => format!("has had a request in flight for {span:.1?}"),
                    };
                    self.worker_lost(now, &before, &before.with_reason(how), false);
                }
                Stage::Draining { .. } => {
                    worker.stage = Stage::Killed;
                    worker.cause = Some(Cause::DrainTimeout);
                    let timeout = worker.plan.graceful_timeout;
                    self.report(Fact::DrainTimedOut(before.worker_ref(), timeout));
                    self.out.push(Action::Kill(id));
                }
                Stage::Aborting { .. } => {
                    worker.stage = Stage::Killed;
                    self.out.push(Action::Kill(id));
                }
                Stage::Killed => {}
            }
        }
    }

    /// Completes the first start when every slot is filled; gives it up when no worker ever became
    /// ready and none may still do so.
    fn judge_boot(&mut self) {
        if self.phase != Phase::Booting {
            return;
        }
        let filled = (0..self.open).map(Slot).all(|slot| {
            self.occupant(slot, self.stable.id)
                .is_some_and(|worker| worker.ready_since().is_some())
        });
        if filled {
            self.begin_serving();
        } else if self.has_failed_to_boot() && !self.workers.values().any(Worker::is_occupant) {
            self.report(Fact::StartupFailed(self.last_failure.clone()));
            self.phase = Phase::Stopping {
                now: true,
                status: 1,
            };
        }
    }

    /// Whether workers have failed too often for another attempt of the first start. Those that are
    /// starting already may still become ready.
    fn has_failed_to_boot(&self) -> bool {
        self.phase == Phase::Booting
            && !self.ever_ready
            && self.candidate.is_none()
            && self.pending_reload.is_none()
            && self.boot_failures >= MAX_BOOT_FAILURES.max(u32::from(self.open))
    }

    pub(crate) fn begin_serving(&mut self) {
        self.phase = Phase::Serving;
        self.report(Fact::ServerReady(self.stable.id, self.open));
    }

    /// Spawns missing workers where the slot has room and the back-off is over.
    fn fill(&mut self, now: Time) {
        for slot in (0..self.slots_end()).map(Slot) {
            let missing: Vec<GenerationId> = self
                .wanted_in(slot)
                .filter(|generation| self.occupant(slot, *generation).is_none())
                .collect();
            for generation in missing {
                if self
                    .may_spawn_at(slot, generation)
                    .is_some_and(|at| at <= now)
                {
                    self.spawn(now, slot, generation);
                }
            }
        }
    }

    /// Returns when a missing worker may be spawned; `None` while the slot is full.
    fn may_spawn_at(&self, slot: Slot, generation: GenerationId) -> Option<Time> {
        if self.in_slot(slot).count() >= MAX_WORKERS_PER_SLOT || self.has_failed_to_boot() {
            return None;
        }
        let backed_off = generation == self.stable.id;
        Some(if backed_off {
            self.backoffs.not_before(slot)
        } else {
            Time::default()
        })
    }

    fn spawn(&mut self, now: Time, slot: Slot, generation: GenerationId) {
        let candidate = self
            .candidate
            .as_ref()
            .filter(|candidate| candidate.generation() == generation);
        let plan = candidate
            .and_then(super::candidate::Candidate::plan)
            .unwrap_or(self.stable.plan);
        let id = WorkerId(self.last_worker.0 + 1);
        self.last_worker = id;
        let deadline = now + plan.start_timeout.max(MIN_WAIT);
        let stage = Stage::Starting { deadline };
        let worker = Worker {
            id,
            slot,
            generation,
            plan,
            born: now,
            stage,
            failure_reason: None,
            cause: None,
            replacement: None,
            limits: plan.recycle.draw(&mut self.rng),
            recycle_pending: None,
            stopped_accepting: false,
        };
        self.report(Fact::Spawning(worker.worker_ref()));
        self.workers.insert(id, worker);
        self.out.push(Action::Spawn {
            worker: id,
            slot,
            generation,
        });
    }

    /// Drains workers that are not needed. One that serves a wanted slot drains only once another
    /// serves it.
    fn leave(&mut self, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Phase::Stopping { now: true, .. } = self.phase {
            for worker in self
                .workers
                .values_mut()
                .filter(|worker| worker.stage != Stage::Killed)
            {
                if !matches!(worker.stage, Stage::Aborting { .. }) {
                    worker.cause = Some(Cause::Stop);
                }
                worker.stage = Stage::Killed;
                actions.push(Action::Kill(worker.id));
            }
            return actions;
        }
        let unwanted: Vec<WorkerId> = self
            .workers
            .values()
            .filter(|worker| worker.is_occupant() && !self.is_needed(worker))
            .map(|worker| worker.id)
            .collect();
        for id in unwanted {
            let Some(worker) = self.workers.get(&id) else {
                continue;
            };
            let why = self.why_leave(worker);
            let grace = match worker.stage {
                Stage::Ready { .. } => worker.plan.graceful_timeout.max(MIN_WAIT),
                Stage::Starting { .. }
                | Stage::Draining { .. }
                | Stage::Aborting { .. }
                | Stage::Killed => worker.plan.graceful_timeout.clamp(MIN_WAIT, UNREADY_GRACE),
            };
            let slot = worker.slot;
            let followed = self
                .in_slot(slot)
                .any(|other| other.id != id && other.is_occupant());
            let fact = Fact::Draining(worker.worker_ref(), why);
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.stage = Stage::Draining {
                    deadline: now + grace,
                };
                worker.cause = Some(why.into());
            }
            self.report(fact);
            if why == DrainReason::Restarted || why == DrainReason::Recycled {
                self.replacement_succeeded(slot);
            }
            actions.push(Action::Drain {
                worker: id,
                grace,
                empty_queue: !followed,
            });
        }
        actions
    }

    fn is_needed(&self, worker: &Worker) -> bool {
        let mut wanted = self.wanted_in(worker.slot).peekable();
        if wanted.peek().is_none() {
            return false;
        }
        let mut served_otherwise = false;
        for generation in wanted {
            if generation == worker.generation && worker.replacement.is_none() {
                return true;
            }
            served_otherwise |= self
                .occupant(worker.slot, generation)
                .is_some_and(|other| other.ready_since().is_some());
        }
        worker.ready_since().is_some() && !served_otherwise
    }

    fn why_leave(&self, worker: &Worker) -> DrainReason {
        match self.phase {
            Phase::Stopping { .. } | Phase::Gone => return DrainReason::Stop,
            Phase::Drained => return DrainReason::DrainAll,
            Phase::Preparing | Phase::Booting | Phase::Serving | Phase::PreStop { .. } => {}
        }
        let is_candidate = self
            .candidate
            .as_ref()
            .is_some_and(|candidate| candidate.generation() == worker.generation);
        if worker.generation > self.stable.id && !is_candidate {
            DrainReason::RolledBack
        } else if !is_candidate && self.held_slots.contains(&worker.slot) {
            DrainReason::Held
        } else if is_candidate || self.wanted_in(worker.slot).next().is_none() {
            DrainReason::Retired
        } else {
            worker
                .replacement
                .map_or(DrainReason::Replaced, DrainReason::from)
        }
    }

    /// Steers new connections to slots with a healthy worker, or whose first replacement is
    /// starting. If there are none, to slots with stalled workers; never to none.
    fn steer(&mut self) {
        let slots = || {
            (0..self.slots_end())
                .map(Slot)
                .filter(|slot| !self.needs_rescue(*slot))
        };
        let serves = |slot: &Slot| {
            let replaced_at_once = !self.backoffs.is_looping(*slot)
                && self.rotation.contains(slot)
                && self.in_slot(*slot).any(Worker::is_occupant)
                && !self.in_slot(*slot).any(Worker::is_in_the_way);
            self.in_slot(*slot).any(Worker::is_healthy) || replaced_at_once
        };
        let mut rotation: Vec<Slot> = slots().filter(serves).collect();
        if rotation.is_empty() {
            rotation = slots().filter(|slot| self.is_served(*slot)).collect();
        }
        if !rotation.is_empty() && rotation != self.rotation {
            self.rotation.clone_from(&rotation);
            self.out.push(Action::Steer(rotation));
        }
    }

    fn note_degraded(&mut self) {
        if !self.is_to_serve() {
            self.degraded = 0;
            return;
        }
        let to_serve = (0..self.open)
            .map(Slot)
            .filter(|slot| !self.held_slots.contains(slot));
        let unserved = to_serve.filter(|slot| !self.is_served(*slot));
        let looping = unserved
            .clone()
            .filter(|slot| self.backoffs.is_looping(*slot))
            .count();
        let looping = u16::try_from(looping).unwrap_or(u16::MAX);
        if looping > self.degraded {
            self.report(Fact::Degraded(looping, self.last_failure.clone()));
            self.degraded = looping;
        } else if self.degraded > 0 && unserved.count() == 0 {
            self.report(Fact::Recovered);
            self.degraded = 0;
        }
    }

    fn forget(&mut self) {
        let candidate = self
            .candidate
            .as_ref()
            .map(super::candidate::Candidate::generation);
        let useless: Vec<GenerationId> = self
            .held_generations
            .iter()
            .copied()
            .filter(|held| *held != self.stable.id && Some(*held) != candidate)
            .filter(|held| {
                self.workers
                    .values()
                    .all(|worker| worker.generation != *held)
            })
            .collect();
        for generation in useless {
            self.held_generations.remove(&generation);
            self.out.push(Action::Forget(generation));
        }
    }

    /// Returns when something is due next.
    pub(crate) fn earliest_deadline(&self, now: Time) -> Option<Time> {
        if self.phase == Phase::Gone {
            return None;
        }
        let workers = self.workers.values().filter_map(Worker::deadline);
        let retries = (0..self.slots_end()).map(Slot).flat_map(|slot| {
            self.wanted_in(slot)
                .filter(move |generation| self.occupant(slot, *generation).is_none())
                .filter_map(move |generation| self.may_spawn_at(slot, generation))
        });
        workers
            .chain(self.next_observation(now))
            .chain(retries)
            .chain(self.candidate_proven_at())
            .chain(self.next_recycle(now))
            .chain(self.pre_stop_until())
            .chain(self.quiesce.as_ref().map(|quiesce| quiesce.deadline))
            .min()
    }
}
