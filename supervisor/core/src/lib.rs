//! The supervision logic, as a value: events in, actions out.
//!
//! [`Core::step`] is the only door. The core knows no clock, process, descriptor or log: time is an argument, workers
//! are numbers, and what is to be done or said comes out as [`Action`]s. That is why a test can put it through an
//! hour of crashes in a millisecond.
//!
//! How it works: commands and events only *edit intent* (which generation, how many slots, stop or not) or note
//! what became of a worker. Then one function, `converge`, compares intent with reality and takes whatever
//! steps are possible now. So a reload, a scale-down and a stop share the same draining code, and a worker that
//! dies in the middle of any of them needs no case of its own.
//!
//! * `event` – the words: [`Event`], [`Action`], [`Fact`], [`Plan`];
//! * `converge` – deadlines, filling and emptying slots, steering, the end;
//! * `slots` – what is asked of single slots, and the permits for it;
//! * `recycle` – workers that are replaced before they have leaked too much;
//! * `reload` – the candidate of a new generation, its acceptance, its rollback;
//! * `pulse` – whether a worker stalls or hangs;
//! * `adapt` – the number of workers follows the load;
//! * `stranded connections` – who still waits in the queue of a slot that is retired;
//! * `cause` – what a worker died of;
//! * `worker`, `backoff`, `time` – what their names say;
//! * `handover` – the whole core, written down for the next version of the program;
//! * `view` – a picture of it all for `supervisor status`.
//!
//! *Invariant*: nothing in here waits. Whatever must be waited for is a state with a deadline.

mod autoscale;
mod backoff;
mod cause;
mod converge;
mod event;
mod id;
mod liveness;
#[doc(hidden)]
pub mod record;
mod recycle;
mod reload;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod simulation;
mod slots;
mod snapshot;
mod stranded;
mod time;
mod view;
mod worker;

pub use crate::snapshot::CoreState;
pub use autoscale::{Autoscale, ScaleReason, WorkerLoad};
pub use cause::{Cause, Grade, Manner, ProcessEnd, Successor, WorkerExit};
pub use converge::sampling_period;
pub use event::{
    Action, Command, Done, DrainReason, Event, Fact, Observation, Plan, ReadinessSignal, RequestId,
    Share, Stall, WorkerRef, WorkerSample,
};
pub use id::{GenerationId, Slot, WorkerId};
pub use recycle::{Limits, RecycleReason};
pub use time::Time;
pub use view::{ReloadView, State, View, WorkerState, WorkerView};

use autoscale::Autoscaler;
use backoff::{Backoff, MIN_SERVED, Rng};
use liveness::Liveness;
use reload::Candidate;
use slots::SlotOperation;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use stranded::Retired;
use worker::{Stage, Worker};

/// How long an aborted worker gets to dump core before it is killed.
const ABORT_GRACE: Duration = Duration::from_secs(2);
/// How long a worker that has not been ready yet gets to leave: it holds nobody's request.
const UNREADY_GRACE: Duration = Duration::from_secs(2);
/// A step that comes later than this after its deadline means that the supervisor itself was stopped.
const LONG_STALL: Duration = Duration::from_secs(1);
/// A step that comes later than this after its deadline means that the machine has stood still: it counts for nobody's min-ready time.
const SHORT_STALL: Duration = Duration::from_millis(100);
/// The shortest wait the core asks for: a timeout of zero is still a deadline in the future.
const MIN_WAIT: Duration = Duration::from_millis(1);
/// The first start is given up after this many failures (or one for every slot, if that is more).
const MAX_BOOT_FAILURES: u32 = 3;

/// Where the server is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
enum Phase {
    /// Not every slot has been filled yet.
    Booting,
    /// It serves.
    Serving,
    /// All workers were asked to drain, the sockets stay; a reload ends it.
    Drained,
    /// It leaves as soon as nobody is alive, with this exit status.
    Stopping { now: bool, status: u8 },
    /// It has left.
    Gone,
    /// It serves, and stops then: load balancers are to notice before anybody drains.
    PreStop { until: Time },
}

#[derive(Debug, Clone, Copy)]
struct Committed {
    id: GenerationId,
    plan: Plan,
}

/// The state of the whole server.
///
/// ```
/// use std::time::Duration;
/// use prefork_core::{Action, Core, Event, GenerationId, Limits, Plan, ReadinessSignal, Share, Time};
/// let plan = Plan {
///     workers: 2,
///     max_workers: 8,
///     surge: 2,
///     start_timeout: Duration::from_secs(60),
///     heartbeat: Duration::from_secs(1),
///     hang_timeout: None,
///     request_timeout: None,
///     graceful_timeout: Duration::from_secs(30),
///     min-ready time: Duration::from_secs(2),
///     steals: true,
///     readiness: ReadinessSignal::Message,
///     max_unavailable: Share::Percent(10),
///     autoscale: None,
///     recycle: Limits::default(),
///     pre_stop_delay: Duration::ZERO,
/// };
/// let mut core = Core::new(GenerationId(1), plan, 42);
/// let actions = core.step(Time::default(), Event::Tick);
/// assert_eq!(actions.iter().filter(|action| matches!(action, Action::Spawn { .. })).count(), 2);
/// ```
#[derive(Debug, Clone)]
pub struct Core {
    phase: Phase,
    stable: Committed,
    /// Slots that the stable generation fills.
    open: u16,
    candidate: Option<Candidate>,
    /// A reload was asked for and has not begun; whoever waits for its verdict.
    pending_reload: Option<Vec<RequestId>>,
    reload_wait_reported: bool,
    workers: BTreeMap<WorkerId, Worker>,
    backoffs: Vec<Backoff>,
    /// Generations that the shell still holds.
    held_generations: BTreeSet<GenerationId>,
    last_generation: GenerationId,
    last_worker: WorkerId,
    rotation: Vec<Slot>,
    /// When the queues were last looked at.
    observed: Time,
    /// Workers had something to do then.
    active: bool,
    /// When the operator was last told of a stall in a slot.
    stall_reported: BTreeMap<Slot, Time>,
    /// Slots in whose queues somebody may still turn up.
    retired: BTreeMap<Slot, Retired>,
    /// One past the last slot that was wanted at the last step.
    wanted_end: u16,
    /// Slots that are to be empty.
    held_slots: BTreeSet<Slot>,
    /// What was asked of slots and is not done yet.
    operations: Vec<SlotOperation>,
    /// When a worker may be replaced in a slot where whoever was to replace it has failed.
    replacement_backoffs: BTreeMap<Slot, Backoff>,
    /// What is seen of the load.
    autoscaler: Autoscaler,
    ever_ready: bool,
    boot_failures: u32,
    last_failure: String,
    degraded: u16,
    rng: Rng,
    last_step: Time,
    deadline: Option<Time>,
    out: Vec<Action>,
}

impl Core {
    /// A server that is about to start its first generation, which the shell has prepared already. `seed` feeds the
    /// jitter of retries.
    pub fn new(generation: GenerationId, plan: Plan, seed: u64) -> Self {
        Self {
            phase: Phase::Booting,
            stable: Committed {
                id: generation,
                plan,
            },
            open: plan.workers,
            candidate: None,
            pending_reload: None,
            reload_wait_reported: false,
            workers: BTreeMap::new(),
            backoffs: vec![Backoff::default(); usize::from(Slot::MAX)],
            held_generations: BTreeSet::from([generation]),
            last_generation: generation,
            last_worker: WorkerId(0),
            rotation: Vec::new(),
            observed: Time::default(),
            active: false,
            stall_reported: BTreeMap::new(),
            retired: BTreeMap::new(),
            wanted_end: plan.workers,
            held_slots: BTreeSet::new(),
            operations: Vec::new(),
            replacement_backoffs: BTreeMap::new(),
            autoscaler: Autoscaler::default(),
            ever_ready: false,
            boot_failures: 0,
            last_failure: String::new(),
            degraded: 0,
            rng: Rng(seed),
            last_step: Time::default(),
            deadline: None,
            out: Vec::new(),
        }
    }

    /// Takes one event in and gives back what is to be done about it. An event about a worker that is not alive
    /// (any more) means nothing.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        if self.phase == Phase::Gone {
            return Vec::new();
        }
        let missed = self.catch_up(now);
        match event {
            Event::Command(command) => self.command(now, command),
            Event::Prepared(generation, plan) => self.prepared(generation, plan),
            Event::Refused(generation, reason) => self.refused(generation, reason),
            Event::Ready(worker) => self.worker_ready(now, worker),
            Event::Observation(observation) => {
                self.observe(now, &observation, missed);
                self.measure(now, &observation);
            }
            Event::Failed(worker, reason) => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.failure_reason = Some(reason);
                }
            }
            Event::Leaving(worker) => self.worker_leaves(now, worker),
            Event::ProtocolViolation(worker, reason) => {
                self.protocol_violation(now, worker, &reason)
            }
            Event::Died(worker, end) => self.worker_died(now, worker, end),
            Event::Tick => {}
        }
        self.converge(now);
        self.last_step = now;
        self.deadline = self.earliest_deadline(now);
        std::mem::take(&mut self.out)
    }

    /// When [`step`](Self::step) is to be called at the latest, with [`Event::Tick`] if nothing else happens. Always
    /// later than the last step.
    pub fn next_deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// The supervisor was stopped (by SIGSTOP, or with its whole machine): what it did not see, it must not judge. Tells
    /// how much it has missed.
    fn catch_up(&mut self, now: Time) -> Duration {
        let late = self.deadline.map_or(Duration::ZERO, |due| now - due);
        let gap = now - self.last_step;
        if late > SHORT_STALL {
            // Time in which nobody may have run proves nothing about a worker that is on min-ready time.
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
                self.refuse_while_stopping(command)
            }
            (Command::Reload(request), _) => {
                self.pending_reload.get_or_insert_default().extend(request)
            }
            (Command::DrainAll, Phase::Drained) => {
                self.ignore(command, "all workers drain already")
            }
            (Command::DrainAll, _) => {
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

    /// A stop is announced: nothing new is begun, and everybody is served as before, until the delay is over.
    fn begin_pre_stop(&mut self, now: Time) {
        let delay = self.stable.plan.pre_stop_delay;
        self.abandon_all_requests();
        self.phase = Phase::PreStop { until: now + delay };
        self.report(Fact::PreStop(delay));
    }

    fn end_pre_stop(&mut self, now: Time) {
        if self.pre_stop_until().is_some_and(|until| until <= now) {
            self.stop(false);
        }
    }

    /// When an announced stop begins.
    fn pre_stop_until(&self) -> Option<Time> {
        match self.phase {
            Phase::PreStop { until } => Some(until),
            _ => None,
        }
    }

    /// Every slot is to be filled, and whoever dies is to be replaced.
    fn is_to_serve(&self) -> bool {
        matches!(
            self.phase,
            Phase::Booting | Phase::Serving | Phase::PreStop { .. }
        )
    }

    fn abandon_all_requests(&mut self) {
        self.abandon_candidate(STOPPING);
        for request in self.pending_reload.take().unwrap_or_default() {
            self.reply(Some(request), Err(STOPPING.to_owned()));
        }
        self.abandon_all_slot_operations(STOPPING);
    }

    fn stop(&mut self, now: bool) {
        let status = match self.phase {
            Phase::Stopping { status, .. } => status,
            _ => 0,
        };
        let already = matches!(self.phase, Phase::Stopping { now: true, .. });
        self.abandon_all_requests();
        self.phase = Phase::Stopping { now, status };
        if !already {
            let grace = self.stable.plan.graceful_timeout;
            self.report(Fact::Stopping((!now).then_some(grace)));
        }
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

    fn worker_leaves(&mut self, now: Time, id: WorkerId) {
        let Some(worker) = self
            .workers
            .get_mut(&id)
            .filter(|worker| worker.is_occupant())
        else {
            return;
        };
        let before = worker.clone();
        worker.stage = Stage::Draining {
            deadline: now + worker.plan.graceful_timeout.max(MIN_WAIT),
        };
        worker.cause = Some(Cause::Left);
        let successor = self.worker_lost(now, &before, "left unasked".to_owned(), true);
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
            self.worker_lost(now, &before, reason.to_owned(), false);
        }
    }

    fn worker_died(&mut self, now: Time, id: WorkerId, end: ProcessEnd) {
        let Some(worker) = self.workers.remove(&id) else {
            return;
        };
        let (cause, grade) = cause::judge(&worker, &end);
        let how = match &worker.failure_reason {
            Some(failure_reason) => format!("{}: {failure_reason}", end.how),
            None => end.how,
        };
        let successor = if worker.is_occupant() {
            let when = match worker.ready_since() {
                Some(since) => format!("{:.1?} after it was ready", now - since),
                None => "before it was ready".to_owned(),
            };
            self.worker_lost(
                now,
                &worker,
                format!("{how}, {when}"),
                grade == Grade::Clean,
            )
        } else {
            let occupant = self.in_slot(worker.slot).find(|other| other.is_occupant());
            occupant.map_or(Successor::Nobody, |other| Successor::Known(other.id))
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

    /// A worker does not fill its slot any more, and nobody had asked for that. Tells who follows. `orderly`: it has left as
    /// a program may, such as after so many requests. That is no failure if it had served for a while.
    fn worker_lost(&mut self, now: Time, worker: &Worker, how: String, orderly: bool) -> Successor {
        let reason = format!("worker {} (slot {}) {how}", worker.id, worker.slot);
        if self
            .candidate
            .as_ref()
            .is_some_and(|candidate| candidate.generation() == worker.generation)
        {
            self.fail_candidate(reason);
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

    /// Tells how long a slot stays empty that has lost its worker.
    fn back_off(&mut self, now: Time, worker: &Worker, reason: String, orderly: bool) -> Duration {
        let served = worker
            .ready_since()
            .map_or(Duration::ZERO, |since| now - since);
        let backoff = &mut self.backoffs[worker.slot.index()];
        if orderly && served >= MIN_SERVED {
            backoff.excuse(now);
            return Duration::ZERO;
        }
        if !self.ever_ready {
            self.boot_failures += 1;
        }
        self.last_failure = reason;
        backoff.fail(now, served, &mut self.rng)
    }

    fn report(&mut self, fact: Fact) {
        self.out.push(Action::Report(fact));
    }

    fn ignore(&mut self, command: Command, why: &str) {
        self.report(Fact::Ignored(command, why.to_owned()));
    }

    fn reply(&mut self, request: Option<RequestId>, answer: Result<Done, String>) {
        self.out
            .extend(request.map(|request| Action::Reply(request, answer)));
    }
}

const STOPPING: &str = "the server stops";
