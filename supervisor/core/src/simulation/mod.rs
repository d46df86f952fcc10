//! The core against a random world: thousands of seeds, minutes of operations and failures in each, and the
//! invariants checked after every step.
//!
//! * `world` – processes and time: does what the core asks for, and lets happen what is due;
//! * `life` – how workers beat, take connections, stall and get well;
//! * `operations` – what operators ask for, and what befalls workers;
//! * `upgrades` – the core written down and read back;
//! * `invariants` – what must hold.
//!
//! `SIM_SEED=n` replays one seed and prints what happened; `SIM_SEEDS=n` and `SIM_STEPS=n` set how much is swept.
//! A seed that finds a bug becomes a scenario. Without them, 1,000 seeds are swept, in about 20 s of one CPU.

mod invariants;
mod life;
mod operations;
mod upgrades;
mod world;

macro_rules! invariant {
    ($world:expr, $holds:expr, $($text:tt)+) => {
        assert!($holds, "INVARIANT {} (SIM_SEED={}, at {:?})", format!($($text)+), $world.seed, $world.now.0);
    };
}
pub(crate) use invariant;

use super::*;
use life::{Kind, Queue};
use operations::random_plan;
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
    fn percent(&mut self, rng: u64) -> bool {
        self.below(100) < rng
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
    GetsWell(WorkerId),
    Answer(GenerationId),
}

#[derive(Debug)]
struct Process {
    slot: Slot,
    generation: GenerationId,
    /// It came to a retired slot, for who waits there.
    visits: bool,
    ready: bool,
    ready_at: Time,
    violated_protocol: bool,
    hangs: bool,
    ignores_drain: bool,
    drained_at: Option<(Time, Duration)>,
    aborted_at: Option<Time>,
    killed: bool,
    /// It gives no sign of life and takes no connections.
    silent_since: Option<Time>,
    /// It beats, and takes no connections.
    deaf: bool,
    /// When its longest-running handler began.
    busy_since: Option<Time>,
    /// Something has been wrong with it, which ended then.
    troubled: bool,
    well_since: Time,
    heard: Time,
    done: u64,
    /// Requests in hand at the last look, and time spent with them.
    in_flight: u32,
    spent: Duration,
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
    /// Who has left cleanly after having served for a while: when, and where.
    excused: VecDeque<(Time, Slot)>,
    /// What was told last of a death.
    worker_exit: Option<WorkerExit>,
    /// The supervisor itself was stopped, and has just come back.
    stalled_supervisor: bool,
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
    /// When the supervisor was stopped.
    sleeps: Vec<(Time, Time)>,
    heard_at: Time,
    /// Decides when the supervisor is upgraded. Of its own, so that a seed means the same with and without.
    upgrades: Dice,
    kind: Kind,
    queues: BTreeMap<Slot, Queue>,
    /// When a slot was last in rotation.
    left: BTreeMap<Slot, Time>,
    /// Since when it has served, as far as the core says.
    serving_since: Time,
    calm_since: Option<Time>,
    /// The number that was set by hand since the last reload.
    by_hand: Option<u16>,
    /// How busy workers are, in percent; and what decides it.
    busy: u64,
    load: Dice,
    /// When loads were last looked at.
    loaded: Time,
}

impl World {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let healthy = seed.is_multiple_of(4);
        let kind = Kind::of(seed / 4);
        let plan = random_plan(&mut dice, kind);
        let fate = if healthy || dice.percent(90) {
            Fate::Good
        } else {
            Fate::ExitsAtStart
        };
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
            excused: VecDeque::new(),
            worker_exit: None,
            stalled_supervisor: false,
            rotation: Vec::new(),
            spawns: vec![VecDeque::new(); usize::from(Slot::MAX)],
            operations: VecDeque::new(),
            next_request: 0,
            unanswered: Vec::new(),
            open_at_reload: None,
            asked: 0,
            asked_at_last_prepare: 0,
            served_before: 0,
            sleeps: Vec::new(),
            kind,
            queues: BTreeMap::new(),
            left: BTreeMap::new(),
            serving_since: Time::default(),
            calm_since: None,
            heard_at: Time::default(),
            upgrades: Dice(seed | 1 << 63),
            by_hand: None,
            busy: 0,
            load: Dice(seed | 1 << 62),
            loaded: Time::default(),
        }
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
            invariant!(
                self,
                self.unanswered.is_empty(),
                "everybody who asked gets a verdict"
            );
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
        self.calm_since = Some(self.now);
        for (fate, _) in self.fates.values_mut() {
            *fate = Fate::Good;
        }
        self.advance_by(Duration::from_secs(600));
        for slot in self.core.view().held {
            self.step(Event::Command(Command::Restart(slot, None)));
        }
        self.advance_by(Duration::from_secs(60));
        if self.core.view().state == State::Draining {
            self.reload();
            self.advance_by(Duration::from_secs(600));
        }
        if self.exited {
            // A first start that was given up before the calm.
            return;
        }
        let view = self.core.view();
        invariant!(
            self,
            view.state == State::Serving,
            "calm means serving: {view:?}"
        );
        invariant!(
            self,
            view.reload.is_none(),
            "calm means no reload under way: {view:?}"
        );
        invariant!(
            self,
            self.asked == self.asked_at_last_prepare,
            "the last reload asked for is honoured"
        );
        invariant!(
            self,
            self.unanswered.is_empty(),
            "everybody who asked gets a verdict: {:?}",
            self.unanswered
        );
        invariant!(
            self,
            self.slots(Process::serves).count() == usize::from(view.open),
            "calm means that every slot is served: {view:?}"
        );
        // Somebody is recycled now and then.
        let recycles = self
            .fates
            .values()
            .any(|(_, plan)| plan.recycle != Limits::default());
        let most = if recycles { self.core.permits().1 } else { 0 };
        invariant!(
            self,
            self.processes.len() <= usize::from(view.open + most),
            "calm means as many workers as slots: {view:?}"
        );
        let one = |process: &Process| {
            process.generation == view.generation && (process.ready || recycles)
        };
        invariant!(
            self,
            self.processes.values().all(one),
            "calm means one generation: {view:?}"
        );
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

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number"))
    })
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
