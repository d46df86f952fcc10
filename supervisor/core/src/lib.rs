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
//! * `reload` – the trial of a new generation, its acceptance, its rollback;
//! * `pulse` – whether a worker stalls or hangs;
//! * `adapt` – the number of workers follows the load;
//! * `stragglers` – who still waits in the queue of a slot that is retired;
//! * `cause` – what a worker died of;
//! * `worker`, `backoff`, `time` – what their names say;
//! * `handover` – the whole core, written down for the next version of the program;
//! * `view` – a picture of it all for `supervisor status`.
//!
//! *Invariant*: nothing in here waits. Whatever must be waited for is a state with a deadline.

mod adapt;
mod backoff;
mod cause;
mod converge;
mod event;
mod id;
mod pulse;
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
mod stragglers;
mod time;
mod view;
mod worker;

pub use crate::snapshot::CoreState;
pub use adapt::{Elastic, Load, Reason};
pub use cause::{Cause, Demise, End, Follow, Grade, Manner};
pub use converge::sampling_period;
pub use event::{
    Action, Command, Done, Event, Fact, Look, Plan, Proof, RequestId, Share, Sight, Stall, Who, Why,
};
pub use id::{GenerationId, Slot, WorkerId};
pub use recycle::{Excess, Limits};
pub use time::Time;
pub use view::{ReloadView, State, View, WorkerState, WorkerView};

use adapt::Adaptation;
use backoff::{Backoff, Chance, SERVED};
use pulse::Pulse;
use reload::Trial;
use slots::Errand;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use stragglers::Retired;
use worker::{Stage, Worker};

/// How long an aborted worker gets to dump core before it is killed.
const ABORT_GRACE: Duration = Duration::from_secs(2);
/// How long a worker that has not been ready yet gets to leave: it holds nobody's request.
const UNREADY_GRACE: Duration = Duration::from_secs(2);
/// A step that comes later than this after its deadline means that the supervisor itself was stopped.
const LATE: Duration = Duration::from_secs(1);
/// A step that comes later than this after its deadline means that the machine has stood still: it counts for nobody's probation.
const TARDY: Duration = Duration::from_millis(100);
/// The shortest wait the core asks for: a timeout of zero is still a deadline in the future.
const LEAST: Duration = Duration::from_millis(1);
/// The first start is given up after this many failures (or one for every slot, if that is more).
const HOPELESS_AFTER: u32 = 3;

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
    Announcing { until: Time },
}

#[derive(Debug, Clone, Copy)]
struct Accepted {
    id: GenerationId,
    plan: Plan,
}

/// The state of the whole server.
///
/// ```
/// use prefork_core::GenerationId;
/// use std::time::Duration;
/// use supervisor::core::{Action, Core, Event, Limits, Plan, Proof, Share, Time};
/// let plan = Plan {
///     workers: 2,
///     max_workers: 8,
///     surge: 2,
///     start_timeout: Duration::from_secs(60),
///     heartbeat: Duration::from_secs(1),
///     hang_timeout: None,
///     request_timeout: None,
///     graceful_timeout: Duration::from_secs(30),
///     probation: Duration::from_secs(2),
///     steals: true,
///     proof: Proof::Word,
///     max_unavailable: Share::Percent(10),
///     elastic: None,
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
    stable: Accepted,
    /// Slots that the stable generation fills.
    open: u16,
    trial: Option<Trial>,
    /// A reload was asked for and has not begun; whoever waits for its verdict.
    wanted: Option<Vec<RequestId>>,
    wait_reported: bool,
    workers: BTreeMap<WorkerId, Worker>,
    backoffs: Vec<Backoff>,
    /// Generations that the shell still holds.
    held: BTreeSet<GenerationId>,
    last_generation: GenerationId,
    last_worker: WorkerId,
    rotation: Vec<Slot>,
    /// When the queues were last looked at.
    looked: Time,
    /// Workers had something to do then.
    lively: bool,
    /// When the operator was last told of a stall in a slot.
    stall_told: BTreeMap<Slot, Time>,
    /// Slots in whose queues somebody may still turn up.
    retired: BTreeMap<Slot, Retired>,
    /// One past the last slot that was wanted at the last step.
    wide: u16,
    /// Slots that are to be empty.
    held_slots: BTreeSet<Slot>,
    /// What was asked of slots and is not done yet.
    errands: Vec<Errand>,
    /// When a worker may be replaced in a slot where whoever was to replace it has failed.
    attempts: BTreeMap<Slot, Backoff>,
    /// What is seen of the load.
    adaptation: Adaptation,
    ever_ready: bool,
    boot_failures: u32,
    last_failure: String,
    degraded: u16,
    chance: Chance,
    last_step: Time,
    due: Option<Time>,
    out: Vec<Action>,
}

impl Core {
    /// A server that is about to start its first generation, which the shell has prepared already. `seed` feeds the
    /// jitter of retries.
    pub fn new(generation: GenerationId, plan: Plan, seed: u64) -> Self {
        Self {
            phase: Phase::Booting,
            stable: Accepted {
                id: generation,
                plan,
            },
            open: plan.workers,
            trial: None,
            wanted: None,
            wait_reported: false,
            workers: BTreeMap::new(),
            backoffs: vec![Backoff::default(); usize::from(Slot::MAX)],
            held: BTreeSet::from([generation]),
            last_generation: generation,
            last_worker: WorkerId(0),
            rotation: Vec::new(),
            looked: Time::default(),
            lively: false,
            stall_told: BTreeMap::new(),
            retired: BTreeMap::new(),
            wide: plan.workers,
            held_slots: BTreeSet::new(),
            errands: Vec::new(),
            attempts: BTreeMap::new(),
            adaptation: Adaptation::default(),
            ever_ready: false,
            boot_failures: 0,
            last_failure: String::new(),
            degraded: 0,
            chance: Chance(seed),
            last_step: Time::default(),
            due: None,
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
            Event::Look(look) => {
                self.look(now, &look, missed);
                self.measure(now, &look);
            }
            Event::Failed(worker, reason) => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.complaint = Some(reason);
                }
            }
            Event::Leaving(worker) => self.worker_leaves(now, worker),
            Event::Condemned(worker, reason) => self.condemn(now, worker, &reason),
            Event::Died(worker, end) => self.worker_died(now, worker, end),
            Event::Tick => {}
        }
        self.converge(now);
        self.last_step = now;
        self.due = self.earliest(now);
        std::mem::take(&mut self.out)
    }

    /// When [`step`](Self::step) is to be called at the latest, with [`Event::Tick`] if nothing else happens. Always
    /// later than the last step.
    pub fn next_deadline(&self) -> Option<Time> {
        self.due
    }

    /// The supervisor was stopped (by SIGSTOP, or with its whole machine): what it did not see, it must not judge. Tells
    /// how much it has missed.
    fn catch_up(&mut self, now: Time) -> Duration {
        let late = self.due.map_or(Duration::ZERO, |due| now - due);
        let gap = now - self.last_step;
        if late > TARDY {
            // Time in which nobody may have run proves nothing about a worker that is on probation.
            self.workers
                .values_mut()
                .for_each(|worker| worker.prolong_probation(gap));
            self.workers
                .values_mut()
                .for_each(|worker| worker.forgive(now, late));
        }
        if late > LATE {
            self.workers
                .values_mut()
                .for_each(|worker| worker.put_off(late, gap));
            self.put_off_retired(gap);
            self.adaptation.put_off(gap);
            self.report(Fact::Overslept(gap));
            return gap;
        }
        if late > TARDY { late } else { Duration::ZERO }
    }

    fn command(&mut self, now: Time, command: Command) {
        match (command, self.phase) {
            (Command::Stop, Phase::Stopping { .. }) | (Command::StopNow, _) => self.stop(true),
            (Command::Stop, Phase::Serving) if !self.stable.plan.pre_stop_delay.is_zero() => {
                self.announce_stop(now);
            }
            (Command::Stop, _) => self.stop(false),
            (_, Phase::Stopping { .. } | Phase::Announcing { .. }) => {
                self.refuse_while_stopping(command)
            }
            (Command::Reload(request), _) => self.wanted.get_or_insert_default().extend(request),
            (Command::DrainAll, Phase::Drained) => {
                self.ignore(command, "all workers drain already")
            }
            (Command::DrainAll, _) => {
                self.abandon_trial("all workers were asked to drain");
                self.abandon_all_errands("all workers were asked to drain");
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
    fn announce_stop(&mut self, now: Time) {
        let delay = self.stable.plan.pre_stop_delay;
        self.give_up_everything_asked_for();
        self.phase = Phase::Announcing { until: now + delay };
        self.report(Fact::Announcing(delay));
    }

    fn end_announcement(&mut self, now: Time) {
        if self.announced_until().is_some_and(|until| until <= now) {
            self.stop(false);
        }
    }

    /// When an announced stop begins.
    fn announced_until(&self) -> Option<Time> {
        match self.phase {
            Phase::Announcing { until } => Some(until),
            _ => None,
        }
    }

    /// Every slot is to be filled, and whoever dies is to be replaced.
    fn is_to_serve(&self) -> bool {
        matches!(
            self.phase,
            Phase::Booting | Phase::Serving | Phase::Announcing { .. }
        )
    }

    fn give_up_everything_asked_for(&mut self) {
        self.abandon_trial(STOPPING);
        for request in self.wanted.take().unwrap_or_default() {
            self.reply(Some(request), Err(STOPPING.to_owned()));
        }
        self.abandon_all_errands(STOPPING);
    }

    fn stop(&mut self, now: bool) {
        let status = match self.phase {
            Phase::Stopping { status, .. } => status,
            _ => 0,
        };
        let already = matches!(self.phase, Phase::Stopping { now: true, .. });
        self.give_up_everything_asked_for();
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
        if let Some(trial) = &mut self.trial {
            trial.resize(to);
        }
        self.set_floor(to);
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
            pulse: Pulse::new(now),
        };
        let fact = Fact::WorkerReady(worker.who(), now - worker.born);
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
            deadline: now + worker.plan.graceful_timeout.max(LEAST),
        };
        worker.cause = Some(Cause::Left);
        let follow = self.lose(now, &before, "left unasked".to_owned(), true);
        self.report(Fact::LeavesUnasked(before.who(), follow));
    }

    fn condemn(&mut self, now: Time, id: WorkerId, reason: &str) {
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
        self.report(Fact::Condemned(before.who(), reason.to_owned()));
        self.out.push(Action::Kill(id));
        if was_occupant {
            self.lose(now, &before, reason.to_owned(), false);
        }
    }

    fn worker_died(&mut self, now: Time, id: WorkerId, end: End) {
        let Some(worker) = self.workers.remove(&id) else {
            return;
        };
        let (cause, grade) = cause::judge(&worker, &end);
        let how = match &worker.complaint {
            Some(complaint) => format!("{}: {complaint}", end.how),
            None => end.how,
        };
        let follow = if worker.is_occupant() {
            let when = match worker.ready_since() {
                Some(since) => format!("{:.1?} after it was ready", now - since),
                None => "before it was ready".to_owned(),
            };
            self.lose(
                now,
                &worker,
                format!("{how}, {when}"),
                grade == Grade::Clean,
            )
        } else {
            let occupant = self.in_slot(worker.slot).find(|other| other.is_occupant());
            occupant.map_or(Follow::Nobody, |other| Follow::Known(other.id))
        };
        self.report(Fact::Died(
            worker.who(),
            Demise {
                cause,
                how,
                grade,
                age: now - worker.born,
                follow,
            },
        ));
    }

    /// A worker does not fill its slot any more, and nobody had asked for that. Tells who follows. `orderly`: it has left as
    /// a program may, such as after so many requests. That is no failure if it had served for a while.
    fn lose(&mut self, now: Time, worker: &Worker, how: String, orderly: bool) -> Follow {
        let reason = format!("worker {} (slot {}) {how}", worker.id, worker.slot);
        if self
            .trial
            .as_ref()
            .is_some_and(|trial| trial.generation() == worker.generation)
        {
            self.fail_trial(reason);
            return Follow::Refused;
        }
        if worker.generation != self.stable.id {
            return Follow::Refused;
        }
        if let Some(serving) = self.replacement_failed(now, worker, &reason) {
            return Follow::Known(serving);
        }
        let wait = self.back_off(now, worker, reason, orderly);
        match self
            .occupant(worker.slot, worker.generation)
            .filter(|other| other.id != worker.id)
        {
            Some(other) => Follow::Known(other.id),
            None => Follow::New(wait),
        }
    }

    /// Tells how long a slot stays empty that has lost its worker.
    fn back_off(&mut self, now: Time, worker: &Worker, reason: String, orderly: bool) -> Duration {
        let served = worker
            .ready_since()
            .map_or(Duration::ZERO, |since| now - since);
        let backoff = &mut self.backoffs[worker.slot.index()];
        if orderly && served >= SERVED {
            backoff.excuse(now);
            return Duration::ZERO;
        }
        if !self.ever_ready {
            self.boot_failures += 1;
        }
        self.last_failure = reason;
        backoff.fail(now, served, &mut self.chance)
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
