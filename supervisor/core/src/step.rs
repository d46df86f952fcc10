//! The entry point of the core: events and commands edit intent, `converge` does the rest.

use crate::backoff::MIN_SERVED;
use crate::event::{Action, Command, Event, Fact};
use crate::exit::Cause;
use crate::exit::{Grade, ProcessEnd, Successor, WorkerExit};
use crate::id::WorkerId;
use crate::liveness::Liveness;
use crate::machine::{Core, Phase, STOPPING};
use crate::time::Time;
use crate::worker::{MIN_WAIT, Stage, Worker};
use std::time::Duration;

/// A step this late means that the supervisor itself was stopped.
pub(crate) const LONG_STALL: Duration = Duration::from_secs(1);
/// A step this late means that the machine stood still, which must not count towards `min_ready`.
const SHORT_STALL: Duration = Duration::from_millis(100);

impl Core {
    /// Takes one event and returns what must be done about it. Events about workers that are not
    /// alive (any more) are ignored.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        if self.phase == Phase::Gone {
            return Vec::new();
        }
        let missed = self.catch_up(now);
        match event {
            Event::Command(command) => self.command(now, command),
            Event::Prepared(generation, plan) => self.prepared(generation, plan),
            Event::Refused(generation, reason) => self.refused(generation, &reason),
            Event::Ready(worker) => self.worker_ready(now, worker),
            Event::Observation(observation) => {
                self.observe(now, &observation, missed);
                self.measure(now, &observation);
            }
            Event::Failed(worker, reason) => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.failure_reason = Some(reason).filter(|reason| !reason.is_empty());
                }
            }
            Event::Unobservable(worker, reason) => self.start_failed(now, worker, &reason),
            Event::StoppedAccepting(worker) => self.stopped_accepting(now, worker),
            Event::ProtocolViolation(worker, reason) => {
                self.protocol_violation(now, worker, &reason);
            }
            Event::Died(worker, end) => self.worker_died(now, worker, end),
            Event::Tick => {}
        }
        self.converge(now);
        self.last_step = now;
        self.deadline = self.earliest_deadline(now);
        std::mem::take(&mut self.out)
    }

    /// Postpones every deadline if the supervisor was stopped (by SIGSTOP, or with its machine): it
    /// must not judge what it could not observe. Returns how much time it missed.
    fn catch_up(&mut self, now: Time) -> Duration {
        let late = self.deadline.map_or(Duration::ZERO, |due| now - due);
        let gap = now - self.last_step;
        if late > SHORT_STALL {
            // Time in which workers may not have run proves nothing about new ones.
            self.workers
                .values_mut()
                .for_each(|worker| worker.extend_min_ready(gap));
            self.workers
                .values_mut()
                .for_each(|worker| worker.forgive(now, late));
        }
        if late > LONG_STALL {
            self.workers
                .values_mut()
                .for_each(|worker| worker.put_off(late, gap));
            self.put_off_retired(gap);
            if let Some(quiesce) = &mut self.quiesce {
                quiesce.deadline += gap;
            }
            self.autoscaler.put_off(gap);
            self.report(Fact::SupervisorStalled(gap));
            return gap;
        }
        if late > SHORT_STALL {
            late
        } else {
            Duration::ZERO
        }
    }

    fn command(&mut self, now: Time, command: Command) {
        match (command, self.phase) {
            (Command::Stop, Phase::Stopping { .. }) | (Command::StopNow, _) => self.stop(true),
            (Command::Stop, Phase::Serving) if !self.stable.plan.pre_stop_delay.is_zero() => {
                self.begin_pre_stop(now);
            }
            (Command::Stop, _) => self.stop(false),
            (_, Phase::Stopping { .. } | Phase::PreStop { .. }) => {
                self.refuse_while_stopping(command);
            }
            (Command::Reload(request), _) => {
                self.pending_reload.get_or_insert_default().extend(request);
            }
            (Command::DrainAll, Phase::Drained) => {
                self.ignore(command, "all workers drain already");
            }
            (Command::DrainAll, _) => {
                self.end_reload();
                self.abandon_candidate("all workers were asked to drain");
                self.abandon_all_slot_operations("all workers were asked to drain");
                self.phase = Phase::Drained;
                self.report(Fact::DrainingAll);
            }
            (Command::Resize(_), Phase::Drained) => {
                self.ignore(
                    command,
                    "all workers were asked to drain (reload to start them again)",
                );
            }
            (Command::Resize(by), _) => self.resize(by),
            (Command::Scale(to, request), _) => self.scale(to, request),
            (Command::Restart(slot, request), _) => self.restart(slot, request),
            (Command::Drain(slot, request), _) => self.drain(slot, request),
        }
    }

    /// Begins the pre-stop delay: nothing new begins, and the server serves as before until it is
    /// over.
    fn begin_pre_stop(&mut self, now: Time) {
        let delay = self.stable.plan.pre_stop_delay;
        self.abandon_all_requests();
        self.phase = Phase::PreStop { until: now + delay };
        self.report(Fact::PreStop(delay));
    }

    pub(crate) fn end_pre_stop(&mut self, now: Time) {
        if self.pre_stop_until().is_some_and(|until| until <= now) {
            self.stop(false);
        }
    }

    fn abandon_all_requests(&mut self) {
        self.end_reload();
        self.abandon_candidate(STOPPING);
        for request in self.pending_reload.take().unwrap_or_default() {
            self.reply(Some(request), Err(STOPPING.to_owned()));
        }
        self.abandon_all_slot_operations(STOPPING);
    }

    fn stop(&mut self, now: bool) {
        let status = match self.phase {
            Phase::Stopping { status, .. } => status,
            Phase::Preparing
            | Phase::Booting
            | Phase::Serving
            | Phase::Drained
            | Phase::Gone
            | Phase::PreStop { .. } => 0,
        };
        let already = matches!(self.phase, Phase::Stopping { now: true, .. });
        self.abandon_all_requests();
        self.phase = Phase::Stopping { now, status };
        if !already {
            let grace = self.stable.plan.graceful_timeout;
            self.report(Fact::Stopping((!now).then_some(grace)));
        }
    }

    /// Stops a server whose first generation cannot be had.
    pub(crate) fn refuse_first(&mut self, reason: &str) {
        self.abandon_all_requests();
        self.report(Fact::StartupFailed(reason.to_owned()));
        self.phase = Phase::Stopping {
            now: true,
            status: 1,
        };
    }

    fn resize(&mut self, by: i32) {
        let command = Command::Resize(by);
        let (from, most) = self.size();
        let least = self.fewest();
        let shift = |count: u16| {
            let count = i32::from(count)
                .saturating_add(by)
                .clamp(i32::from(least), i32::from(most.max(least)));
            u16::try_from(count).unwrap_or(1)
        };
        let to = shift(from);
        if to == from {
            let limit = match (by > 0, least) {
                (true, _) => "the server has max-workers already",
                (false, 1) => "one worker is the least",
                (false, _) => "the server has the fewest workers of its range already",
            };
            return self.ignore(command, limit);
        }
        self.set_open(self.within_range(shift(self.open)));
        if let Some(candidate) = &mut self.candidate {
            candidate.resize(to);
        }
        self.set_manual_minimum(to);
        self.report(Fact::Resized(from, to));
    }

    fn worker_ready(&mut self, now: Time, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let Stage::Starting { .. } = worker.stage else {
            return;
        };
        worker.stage = Stage::Ready {
            since: now,
            liveness: Liveness::new(now),
        };
        let fact = Fact::WorkerReady(worker.worker_ref(), now - worker.born);
        self.ever_ready = true;
        self.report(fact);
    }

    /// Handles a worker that fills its slot and stopped accepting without being asked to.
    pub(crate) fn worker_leaves(&mut self, now: Time, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let before = worker.clone();
        worker.stage = Stage::Draining {
            deadline: now + worker.plan.graceful_timeout.max(MIN_WAIT),
        };
        worker.cause = Some(Cause::Left);
        let successor = self.worker_lost(now, &before, "left unasked", true);
        self.report(Fact::LeavesUnasked(before.worker_ref(), successor));
    }

    fn protocol_violation(&mut self, now: Time, id: WorkerId, reason: &str) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let was_occupant = worker.is_occupant();
        if worker.stage == Stage::Killed {
            return;
        }
        let before = worker.clone();
        worker.stage = Stage::Killed;
        worker.cause = Some(Cause::Protocol);
        self.report(Fact::ProtocolViolation(
            before.worker_ref(),
            reason.to_owned(),
        ));
        self.out.push(Action::Kill(id));
        if was_occupant {
            self.worker_lost(now, &before, reason, false);
        }
    }

    /// Handles a worker whose start can never succeed, because nothing would show it.
    fn start_failed(&mut self, now: Time, id: WorkerId, reason: &str) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let Stage::Starting { .. } = worker.stage else {
            return;
        };
        let before = worker.clone();
        worker.stage = Stage::Killed;
        worker.cause = Some(Cause::StartTimeout);
        worker.failure_reason = Some(reason.to_owned());
        self.out.push(Action::Kill(id));
        self.worker_lost(now, &before, reason, false);
    }

    fn worker_died(&mut self, now: Time, id: WorkerId, end: ProcessEnd) {
        let Some(worker) = self.workers.remove(&id) else {
            return;
        };
        let (cause, grade) = worker.judge_end(&end);
        let how = worker.with_reason(end.how);
        let successor = if worker.is_occupant() {
            let when = match worker.ready_since() {
                Some(since) => format!("{:.1?} after it was ready", now - since),
                None => "before it was ready".to_owned(),
            };
            let mut reason = format!("{how}, {when}");
            // A worker that has said why has mostly written the same.
            if grade != Grade::Clean && worker.failure_reason.is_none() && !end.output.is_empty() {
                reason = format!("{reason}: {}", end.output);
            }
            self.worker_lost(now, &worker, &reason, grade == Grade::Clean)
        } else {
            let occupant = self.in_slot(worker.slot).find(|other| other.is_occupant());
            occupant.map_or(Successor::None, |other| Successor::Known(other.id))
        };
        self.report(Fact::Died(
            worker.worker_ref(),
            WorkerExit {
                cause,
                how,
                grade,
                age: now - worker.born,
                successor,
            },
        ));
    }

    /// Handles a worker that no longer fills its slot, unasked. Returns its successor. `orderly`:
    /// it left as a program may, for instance after a number of requests, which is no failure if it
    /// had served for a while.
    pub(crate) fn worker_lost(
        &mut self,
        now: Time,
        worker: &Worker,
        how: &str,
        orderly: bool,
    ) -> Successor {
        let reason = format!("worker {} (slot {}) {how}", worker.id, worker.slot);
        if self
            .candidate
            .as_ref()
            .is_some_and(|candidate| candidate.generation() == worker.generation)
        {
            self.fail_candidate(&reason);
            return Successor::Refused;
        }
        if worker.generation != self.stable.id {
            return Successor::Refused;
        }
        if let Some(serving) = self.replacement_failed(now, worker, &reason) {
            return Successor::Known(serving);
        }
        let wait = self.back_off(now, worker, reason, orderly);
        match self
            .occupant(worker.slot, worker.generation)
            .filter(|other| other.id != worker.id)
        {
            Some(other) => Successor::Known(other.id),
            None => Successor::New(wait),
        }
    }

    /// Returns how long a slot stays empty that has lost its worker.
    fn back_off(&mut self, now: Time, worker: &Worker, reason: String, orderly: bool) -> Duration {
        let served = worker
            .ready_since()
            .map_or(Duration::ZERO, |since| now - since);
        if orderly && served >= MIN_SERVED {
            self.backoffs.excuse(worker.slot, now);
            return Duration::ZERO;
        }
        if !self.ever_ready {
            self.boot_failures += 1;
        }
        self.last_failure = reason;
        self.backoffs.fail(worker.slot, now, served, &mut self.rng)
    }
}
