//! The core against a random world: thousands of seeds, minutes of operations and failures in each, and the
//! invariants checked after every step.
//!
//! `SIM_SEED=n` replays one seed and prints what happened; `SIM_SEEDS=n` and `SIM_STEPS=n` set how much is swept.
//! A seed that finds a bug becomes a scenario.

use super::*;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

const MINUTE: Duration = Duration::from_secs(60);

/// A small generator (xorshift64*, Marsaglia 2003 and Vigna 2016), so that a seed means the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }
    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
    fn millis(&mut self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound))
    }
}

/// What a generation's program does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Good,
    RefusedConfig,
    ExitsAtStart,
    NeverReady,
    DiesAfter(Duration),
}

#[derive(Debug)]
enum Happening {
    Ready(WorkerId),
    Dies(WorkerId),
    Answer(GenerationId),
}

#[derive(Debug)]
struct Process {
    slot: Slot,
    seat: u8,
    generation: GenerationId,
    ready: bool,
    ready_at: Time,
    condemned: bool,
    hangs: bool,
    ignores_drain: bool,
    drained_at: Option<(Time, Duration)>,
    aborted_at: Option<Time>,
    killed: bool,
    silent_since: Option<Time>,
}

struct World {
    seed: u64,
    verbose: bool,
    dice: Dice,
    core: Core,
    now: Time,
    queue: BinaryHeap<Reverse<(Time, u64, usize)>>,
    happenings: HashMap<usize, Happening>,
    sequence: usize,
    processes: BTreeMap<WorkerId, Process>,
    fates: BTreeMap<GenerationId, (Fate, Plan)>,
    /// Nothing fails and nothing is asked for any more.
    calm: bool,
    /// A world in which no program is bad and no worker dies unasked.
    healthy: bool,
    exited: bool,
    stopping: bool,
    stops_now: bool,
    /// The supervisor itself was stopped, and has just come back.
    overslept: bool,
    rotation: Vec<Slot>,
    spawns: Vec<VecDeque<Time>>,
    /// Times of whatever may spawn without being a retry.
    operations: VecDeque<Time>,
    next_request: u64,
    unanswered: Vec<RequestId>,
    open_at_reload: Option<u16>,
    asked: u64,
    asked_at_last_prepare: u64,
    served_before: usize,
    stalls: Vec<(Time, Time)>,
    /// Decides when the supervisor is upgraded. Of its own, so that a seed means the same with and without.
    upgrades: Dice,
    heard_at: Time,
}

macro_rules! invariant {
    ($world:expr, $holds:expr, $($text:tt)+) => {
        assert!($holds, "INVARIANT {} (SIM_SEED={}, at {:?})", format!($($text)+), $world.seed, $world.now.0);
    };
}

impl World {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let healthy = seed.is_multiple_of(4);
        let plan = random_plan(&mut dice);
        let fate = if healthy || dice.percent(90) { Fate::Good } else { Fate::ExitsAtStart };
        Self {
            seed,
            verbose,
            core: Core::new(GenerationId(1), plan, seed),
            dice,
            now: Time::from_millis(1000),
            queue: BinaryHeap::new(),
            happenings: HashMap::new(),
            sequence: 0,
            processes: BTreeMap::new(),
            fates: BTreeMap::from([(GenerationId(1), (fate, plan))]),
            calm: false,
            healthy,
            exited: false,
            stopping: false,
            stops_now: false,
            overslept: false,
            rotation: Vec::new(),
            spawns: vec![VecDeque::new(); usize::from(Slot::MAX)],
            operations: VecDeque::new(),
            next_request: 0,
            unanswered: Vec::new(),
            open_at_reload: None,
            asked: 0,
            asked_at_last_prepare: 0,
            served_before: 0,
            stalls: Vec::new(),
            upgrades: Dice(seed | 1 << 63),
            heard_at: Time::default(),
        }
    }

    fn schedule(&mut self, after: Duration, happening: Happening) {
        self.sequence += 1;
        self.happenings.insert(self.sequence, happening);
        self.queue.push(Reverse((self.now + after, self.sequence as u64, self.sequence)));
    }

    fn step(&mut self, event: Event) {
        if self.verbose && event != Event::Tick && !matches!(event, Event::Beats(..)) {
            eprintln!("{:>12.3?} {event:?}", self.now.0);
        }
        let actions = match self.upgrades.percent(2) {
            true => self.step_over_an_upgrade(event),
            false => self.core.step(self.now, event),
        };
        for action in actions {
            if self.verbose {
                eprintln!("{:>12.3?}     {action:?}", self.now.0);
            }
            self.perform(action);
        }
        self.check();
    }

    /// The core is written down and read back, as by an upgrade in place; what goes on must be the same core.
    fn step_over_an_upgrade(&mut self, event: Event) -> Vec<Action> {
        let mut bytes = Vec::new();
        crate::record::append(&mut bytes, &self.core.state()).expect("it can be written");
        let state = crate::record::take(&mut bytes.as_slice()).expect("it can be read");
        let mut read = Core::resume(state).expect("it is a core");
        let expected = self.core.step(self.now, event.clone());
        let actions = read.step(self.now, event);
        invariant!(
            self,
            actions == expected,
            "an upgrade changes no decision: {actions:?}, not {expected:?}"
        );
        invariant!(
            self,
            read.next_deadline() == self.core.next_deadline(),
            "an upgrade changes no deadline: {:?}, not {:?}",
            read.next_deadline(),
            self.core.next_deadline()
        );
        if self.upgrades.percent(1) {
            let (found, expected) = (format!("{read:?}"), format!("{:?}", self.core));
            invariant!(self, found == expected, "an upgrade forgets nothing");
        }
        self.core = read;
        actions
    }

    fn perform(&mut self, action: Action) {
        invariant!(self, !self.exited, "nothing is asked for after the exit: {action:?}");
        match action {
            Action::Prepare(generation) => {
                self.asked_at_last_prepare = self.asked;
                self.operations.push_back(self.now);
                self.open_at_reload = Some(self.core.view().open);
                let plan = random_plan(&mut self.dice);
                let fate = if self.calm || self.healthy { Fate::Good } else { random_fate(&mut self.dice) };
                self.fates.insert(generation, (fate, plan));
                let delay = self.dice.millis(20);
                self.schedule(delay, Happening::Answer(generation));
            }
            Action::Steer(slots) => self.rotation = slots,
            Action::Spawn { worker, slot, seat, generation } => self.spawn(worker, slot, seat, generation),
            Action::Drain { worker, grace, .. } => {
                let now = self.now;
                let leaves_after = self.dice.millis(1500);
                let Some(process) = self.processes.get_mut(&worker) else {
                    invariant!(self, false, "no action names a dead worker: drain {worker}");
                    return;
                };
                let (again, deaf) = (process.drained_at.is_some(), process.hangs || process.ignores_drain);
                process.drained_at = Some((now, grace));
                invariant!(self, !again, "a worker is drained at most once: {worker}");
                self.check_drain(worker);
                if !deaf {
                    self.schedule(leaves_after, Happening::Dies(worker));
                }
            }
            Action::Abort(worker) => {
                let now = self.now;
                let Some(process) = self.processes.get_mut(&worker) else {
                    invariant!(self, false, "no action names a dead worker: abort {worker}");
                    return;
                };
                process.aborted_at = Some(now);
                invariant!(
                    self,
                    !self.overslept,
                    "a supervisor that was stopped judges nobody: abort {worker}"
                );
                let innocent = process.ready && process.silent_since.is_none() && !process.hangs;
                invariant!(self, !innocent, "no worker that beats is aborted: {worker}");
                if self.dice.percent(50) {
                    self.schedule(Duration::from_millis(300), Happening::Dies(worker));
                }
            }
            Action::Kill(worker) => {
                let Some(process) = self.processes.get_mut(&worker) else {
                    invariant!(self, false, "no action names a dead worker: kill {worker}");
                    return;
                };
                process.killed = true;
                invariant!(
                    self,
                    !self.overslept,
                    "a supervisor that was stopped judges nobody: kill {worker}"
                );
                let over = |since: Option<Time>, grace| since.is_some_and(|at| self.now - at >= grace);
                let late = process.drained_at.is_some_and(|(at, grace)| over(Some(at), grace));
                let deserved = late || over(process.aborted_at, ABORT_GRACE) || process.condemned;
                invariant!(
                    self,
                    deserved || self.stops_now,
                    "nobody is killed who may still finish: {worker}"
                );
                self.schedule(Duration::from_millis(2), Happening::Dies(worker));
            }
            Action::Forget(generation) => {
                let alive = self.processes.values().any(|process| process.generation == generation);
                invariant!(
                    self,
                    !alive,
                    "a generation is forgotten only when nobody of it is alive: {generation}"
                );
                self.fates.remove(&generation);
            }
            Action::Reply(request, _) => {
                let before = self.unanswered.len();
                self.unanswered.retain(|waiting| *waiting != request);
                invariant!(
                    self,
                    self.unanswered.len() + 1 == before,
                    "a request is answered exactly once: {request:?}"
                );
            }
            Action::Report(Fact::ReloadFailed(..)) => {
                let open = self.core.view().open;
                if let Some(before) = self.open_at_reload.take() {
                    invariant!(
                        self,
                        open == before,
                        "a failed reload keeps the worker count: {before}, now {open}"
                    );
                }
            }
            Action::Report(Fact::Resized(..)) => {
                self.open_at_reload = None;
                // Scaling up and down again before the new workers are ready may take the ready one away.
                self.served_before = 0;
                self.operations.push_back(self.now);
            }
            Action::Report(Fact::Hopeless(_)) => self.stops_now = true,
            Action::Report(_) | Action::Accept(_) => {}
            Action::Exit(_) => {
                invariant!(self, self.processes.is_empty(), "the exit comes when nobody is alive");
                self.exited = true;
            }
        }
    }

    fn spawn(&mut self, worker: WorkerId, slot: Slot, seat: u8, generation: GenerationId) {
        invariant!(self, !self.stopping, "nobody is spawned after a stop: worker {worker}");
        let in_slot: Vec<_> = self.processes.values().filter(|process| process.slot == slot).collect();
        invariant!(self, in_slot.len() < 2, "at most two workers are alive in a slot: {slot}");
        let taken = in_slot.iter().any(|process| process.seat == seat);
        invariant!(self, !taken, "nobody alive has the seat: slot {slot} seat {seat}");
        let Some((fate, _)) = self.fates.get(&generation).copied() else {
            invariant!(self, false, "a worker's generation was prepared and not forgotten: {generation}");
            return;
        };
        self.count_spawn(slot);
        let fate = if self.calm || generation == GenerationId(1) && self.healthy { Fate::Good } else { fate };
        let start = self.dice.millis(800);
        match fate {
            Fate::Good => self.schedule(start, Happening::Ready(worker)),
            Fate::DiesAfter(life) => {
                self.schedule(start, Happening::Ready(worker));
                self.schedule(start + life, Happening::Dies(worker));
            }
            Fate::ExitsAtStart => self.schedule(start, Happening::Dies(worker)),
            Fate::NeverReady | Fate::RefusedConfig => {}
        }
        let ignores_drain = !self.healthy && !self.calm && self.dice.percent(5);
        let process = Process {
            slot,
            seat,
            generation,
            ready: false,
            ready_at: self.now,
            condemned: false,
            hangs: false,
            ignores_drain,
            drained_at: None,
            aborted_at: None,
            killed: false,
            silent_since: None,
        };
        self.processes.insert(worker, process);
    }

    /// A slot whose workers keep failing is not refilled more often than the back-off allows.
    fn count_spawn(&mut self, slot: Slot) {
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
    fn check_drain(&self, worker: WorkerId) {
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

    fn serves(&self, slot: Slot) -> bool {
        self.processes.values().any(|p| {
            p.slot == slot && p.ready && p.drained_at.is_none() && p.aborted_at.is_none() && !p.killed
        })
    }

    fn check(&mut self) {
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
    fn stalled_since(&self, then: Time) -> Duration {
        self.stalls
            .iter()
            .filter(|(_, to)| *to > then)
            .map(|(from, to)| *to - (*from).max(then))
            .sum::<Duration>()
            * 2
    }

    fn check_rotation(&self, view: &View) {
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
            if self.serves(slot) {
                invariant!(self, self.rotation.contains(&slot), "a served slot is in rotation: {slot}");
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        self.wake();
        match happening {
            Happening::Ready(worker) => {
                let Some(process) = self.processes.get_mut(&worker) else { return };
                if process.drained_at.is_none() && process.aborted_at.is_none() && !process.killed {
                    process.ready = true;
                    process.ready_at = self.now;
                    self.step(Event::Ready(worker));
                }
            }
            Happening::Dies(worker) => {
                if self.processes.remove(&worker).is_some() {
                    self.step(Event::Died(worker, "died".to_owned()));
                }
            }
            Happening::Answer(generation) => {
                let Some((fate, plan)) = self.fates.get(&generation).copied() else { return };
                if fate == Fate::RefusedConfig {
                    self.fates.remove(&generation);
                    self.step(Event::Refused(generation, "refused".to_owned()));
                } else {
                    self.step(Event::Prepared(generation, plan));
                }
            }
        }
    }

    /// What the shell does first in every wake-up.
    fn wake(&mut self) {
        if self.now > self.heard_at {
            self.heard_at = self.now;
            let beats = self.beats();
            self.step(Event::Beats(beats));
        }
    }

    fn beats(&self) -> Vec<(WorkerId, Time)> {
        let beating = |process: &&Process| process.ready && process.silent_since.is_none();
        let alive = self.processes.iter().filter(|(_, process)| beating(process));
        alive.map(|(id, _)| (*id, self.now)).collect()
    }

    /// Goes on to whatever comes first: a happening, or the core's own deadline (or `limit`).
    fn advance(&mut self, limit: Time) {
        let next = self.queue.peek().map(|Reverse((time, ..))| *time);
        let due = self.core.next_deadline();
        let earliest = next.into_iter().chain(due).min().unwrap_or(limit);
        if earliest > limit {
            self.now = limit;
            return;
        }
        self.now = self.now.max(earliest);
        if next == Some(earliest)
            && let Some(Reverse((_, _, key))) = self.queue.pop()
        {
            if let Some(happening) = self.happenings.remove(&key) {
                self.happen(happening);
            }
        } else {
            self.wake();
        }
    }

    fn random_worker(&mut self) -> Option<WorkerId> {
        let count = self.processes.len() as u64;
        (count > 0)
            .then(|| self.dice.below(count))
            .and_then(|n| self.processes.keys().nth(n as usize).copied())
    }

    fn reload(&mut self) {
        self.asked += 1;
        let request = self.dice.percent(50).then(|| {
            self.next_request += 1;
            RequestId(self.next_request)
        });
        self.unanswered.extend(request);
        self.step(Event::Command(Command::Reload(request)));
    }

    fn operate(&mut self) {
        self.wake();
        match self.dice.below(if self.healthy { 50 } else { 100 }) {
            0..20 => self.reload(),
            20..30 => {
                let by = self.dice.below(5) as i32 - 2;
                self.step(Event::Command(Command::Resize(by)));
            }
            30..50 => {}
            50..52 => {
                self.operations.push_back(self.now);
                self.step(Event::Command(Command::DrainAll));
            }
            52..72 => {
                if let Some(worker) = self.random_worker() {
                    self.happen(Happening::Dies(worker));
                }
            }
            72..82 => {
                let now = self.now;
                if let Some(process) = self.random_worker().and_then(|id| self.processes.get_mut(&id))
                    && process.ready
                {
                    process.hangs = true;
                    process.silent_since.get_or_insert(now);
                }
            }
            82..88 => {
                if let Some(worker) = self.random_worker() {
                    self.processes.entry(worker).and_modify(|process| process.condemned = true);
                    self.step(Event::Condemned(worker, "garbage".to_owned()));
                }
            }
            88..92 => {
                let from = self.now;
                self.now += self.dice.millis(90_000);
                self.overslept = self.core.next_deadline().is_some_and(|due| self.now > due + LATE);
                self.stalls.push((from, self.now));
                self.wake();
                self.overslept = false;
            }
            92..94 => {
                let now = self.now;
                let leaving = self
                    .random_worker()
                    .filter(|id| self.processes[id].ready && self.processes[id].drained_at.is_none());
                if let Some(worker) = leaving {
                    let grace = |generation| self.fates.get(&generation).map(|fate| fate.1.graceful_timeout);
                    let grace = self.processes.get(&worker).and_then(|process| grace(process.generation));
                    if let Some(process) = self.processes.get_mut(&worker) {
                        process.drained_at = Some((now, grace.unwrap_or(MINUTE)));
                    }
                    self.step(Event::Leaving(worker));
                    let after = self.dice.millis(3000);
                    self.schedule(after, Happening::Dies(worker));
                }
            }
            94..96 => {
                // A worker that is dead or never was.
                self.step(Event::Ready(WorkerId(1 << 40)));
                self.step(Event::Died(WorkerId(0), "twice".to_owned()));
            }
            _ => {}
        }
    }

    fn stop(&mut self) {
        self.wake();
        let command = if self.dice.percent(70) { Command::Stop } else { Command::StopNow };
        self.stops_now = command == Command::StopNow;
        // Whatever spawns in the same step was decided after the stop.
        self.stopping = true;
        self.step(Event::Command(command));
    }

    fn run(&mut self, steps: u32) {
        self.step(Event::Tick);
        let mut next_operation = self.now + self.dice.millis(2000);
        for _ in 0..steps {
            if self.exited {
                return;
            }
            self.advance(next_operation);
            if self.now >= next_operation {
                self.operate();
                let pause = if self.dice.percent(30) { 40 } else { 5000 };
                next_operation = self.now + self.dice.millis(pause);
            }
        }
        if self.seed.is_multiple_of(3) {
            self.stop();
            self.advance_by(Duration::from_secs(300));
            invariant!(self, self.exited, "a stop ends");
            invariant!(self, self.unanswered.is_empty(), "everybody who asked gets a verdict");
        } else {
            self.settle();
        }
    }

    fn advance_by(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end && !self.exited {
            self.advance(end);
        }
    }

    /// Once nothing fails any more, the last reload that was asked for is done and all is of one piece.
    fn settle(&mut self) {
        self.calm = true;
        for (fate, _) in self.fates.values_mut() {
            *fate = Fate::Good;
        }
        self.advance_by(Duration::from_secs(600));
        if self.core.view().state == State::Draining {
            self.reload();
        }
        self.advance_by(Duration::from_secs(600));
        if self.exited {
            // A first start that was given up before the calm.
            return;
        }
        let view = self.core.view();
        invariant!(self, view.state == State::Serving, "calm means serving: {view:?}");
        invariant!(self, view.reload.is_none(), "calm means no reload under way: {view:?}");
        invariant!(self, self.asked == self.asked_at_last_prepare, "the last reload asked for is honoured");
        invariant!(
            self,
            self.unanswered.is_empty(),
            "everybody who asked gets a verdict: {:?}",
            self.unanswered
        );
        invariant!(
            self,
            self.processes.len() == usize::from(view.open),
            "calm means as many workers as slots: {view:?}"
        );
        let one =
            self.processes.values().all(|process| process.generation == view.generation && process.ready);
        invariant!(self, one, "calm means one generation: {view:?}");
        let all: Vec<Slot> = (0..view.open).map(Slot).collect();
        invariant!(
            self,
            self.rotation == all,
            "calm means that every slot is in rotation: {:?}",
            self.rotation
        );
        invariant!(
            self,
            self.fates.len() == 1,
            "calm means that other generations are forgotten: {:?}",
            self.fates
        );
    }
}

fn random_plan(dice: &mut Dice) -> Plan {
    let workers = 1 + dice.below(8) as u16;
    Plan {
        workers,
        max_workers: workers + dice.below(6) as u16,
        surge: if dice.percent(50) { u16::MAX } else { 1 + dice.below(3) as u16 },
        start_timeout: Duration::from_secs(1 + dice.below(10)),
        hang_timeout: dice.percent(80).then(|| Duration::from_secs(1 + dice.below(30))),
        graceful_timeout: Duration::from_millis(dice.below(20_000)),
        probation: Duration::from_millis(dice.below(3000)),
    }
}

fn random_fate(dice: &mut Dice) -> Fate {
    match dice.below(100) {
        0..60 => Fate::Good,
        60..70 => Fate::RefusedConfig,
        70..80 => Fate::ExitsAtStart,
        80..88 => Fate::NeverReady,
        _ => Fate::DiesAfter(dice.millis(5000)),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn no_seed_breaks_an_invariant() {
    let steps = u32::try_from(number("SIM_STEPS").unwrap_or(2000)).expect("SIM_STEPS is small");
    if let Some(seed) = number("SIM_SEED") {
        return World::new(seed, true).run(steps);
    }
    for seed in 0..number("SIM_SEEDS").unwrap_or(1000) {
        World::new(seed, false).run(steps);
    }
}
