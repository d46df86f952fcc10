//! The state of a simulated world.

pub(crate) use super::dice::Dice;
pub(crate) use super::plans::{Fate, Kind, MEMORY, MINUTE, random_fate, random_plan};
pub(crate) use crate::fixtures::*;
pub(crate) use std::cmp::Reverse;
pub(crate) use std::collections::{BinaryHeap, HashMap, VecDeque};

/// The connections in a slot's queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queue {
    pub(crate) length: u32,
    /// When it was last empty, or something was accepted from it.
    pub(crate) still_since: Time,
    /// Its length at the last observation, and since when, as far as observations show, nothing was
    /// accepted from it.
    pub(crate) seen: u32,
    pub(crate) seen_since: Time,
}

impl Queue {
    pub(crate) fn new(now: Time) -> Self {
        Self {
            length: 0,
            still_since: now,
            seen: 0,
            seen_since: now,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Happening {
    Ready(WorkerId),
    Dies(WorkerId),
    StopsAccepting(WorkerId),
    GetsWell(WorkerId),
    Answer(GenerationId),
}

#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "what is wrong with a process is independent of each other"
)]
pub(crate) struct Process {
    pub(crate) slot: Slot,
    pub(crate) generation: GenerationId,
    /// It is a rescue worker in a retired slot.
    pub(crate) visits: bool,
    pub(crate) ready: bool,
    pub(crate) ready_at: Time,
    pub(crate) violated_protocol: bool,
    pub(crate) hangs: bool,
    pub(crate) ignores_drain: bool,
    pub(crate) drained_at: Option<(Time, Duration)>,
    pub(crate) aborted_at: Option<Time>,
    pub(crate) killed: bool,
    /// It has reported that it accepts no more connections.
    pub(crate) stopped_accepting: bool,
    /// It gives no sign of life and accepts no connections.
    pub(crate) silent_since: Option<Time>,
    /// It sends heartbeats but accepts no connections.
    pub(crate) deaf: bool,
    /// When its longest-running handler began.
    pub(crate) busy_since: Option<Time>,
    /// It was in trouble, which ended then.
    pub(crate) troubled: bool,
    pub(crate) well_since: Time,
    pub(crate) heard: Time,
    pub(crate) done: u64,
    /// Requests in flight at the last observation, and time spent on them.
    pub(crate) in_flight: u32,
    pub(crate) spent: Duration,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "what has happened to a world is independent of each other"
)]
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) verbose: bool,
    pub(crate) dice: Dice,
    pub(crate) core: Core,
    pub(crate) now: Time,
    pub(crate) queue: BinaryHeap<Reverse<(Time, u64, usize)>>,
    pub(crate) happenings: HashMap<usize, Happening>,
    pub(crate) sequence: usize,
    pub(crate) processes: BTreeMap<WorkerId, Process>,
    pub(crate) fates: BTreeMap<GenerationId, (Fate, Plan)>,
    /// Nothing fails and nothing is requested any more.
    pub(crate) calm: bool,
    /// A world in which no program is bad and no worker dies unasked.
    pub(crate) healthy: bool,
    pub(crate) exited: bool,
    pub(crate) stopping: bool,
    pub(crate) stops_now: bool,
    /// Clean exits of workers that had served for a while: when, and where.
    pub(crate) excused: VecDeque<(Time, Slot)>,
    /// The last exit that was reported.
    pub(crate) worker_exit: Option<WorkerExit>,
    /// The supervisor itself was stopped, and has just come back.
    pub(crate) stalled_supervisor: bool,
    pub(crate) rotation: Vec<Slot>,
    pub(crate) spawns: Vec<VecDeque<Time>>,
    /// Times of events that may spawn workers without being retries.
    pub(crate) operations: VecDeque<Time>,
    pub(crate) next_request: u64,
    pub(crate) unanswered: Vec<RequestId>,
    pub(crate) open_at_reload: Option<u16>,
    /// When a generation was last committed.
    pub(crate) committed_at: Time,
    pub(crate) asked: u64,
    pub(crate) asked_at_last_prepare: u64,
    pub(crate) served_before: usize,
    /// When the supervisor was stopped.
    pub(crate) sleeps: Vec<(Time, Time)>,
    pub(crate) heard_at: Time,
    /// Decides when the supervisor is upgraded. Separate, so that a seed means the same with and
    /// without.
    pub(crate) upgrades: Dice,
    pub(crate) kind: Kind,
    pub(crate) queues: BTreeMap<Slot, Queue>,
    /// When a slot was last in rotation.
    pub(crate) left: BTreeMap<Slot, Time>,
    /// Since when the server has served, according to the core.
    pub(crate) serving_since: Time,
    pub(crate) calm_since: Option<Time>,
    /// The number set by hand since the last reload.
    pub(crate) by_hand: Option<u16>,
    /// How busy workers are, in percent; and what decides it.
    pub(crate) busy: u64,
    pub(crate) load: Dice,
    /// When loads were last observed.
    pub(crate) loaded: Time,
}

impl World {
    pub(crate) fn new(seed: u64, verbose: bool) -> Self {
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
            committed_at: Time::default(),
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
}
