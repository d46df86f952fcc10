//! A server around the core, and its clients.

use super::shapes::Curve;
use crate::fixtures::*;
use crate::float;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// How long a worker takes to become ready, and to leave when it is idle.
const START: Duration = Duration::from_millis(300);
const LEAVE: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Arrival,
    Finished(WorkerId),
    Ready(WorkerId),
    Gone(WorkerId),
}

#[derive(Debug)]
struct Process {
    slot: Slot,
    born: Time,
    ready: bool,
    draining: bool,
    /// When its request in flight arrived, and when its handling began.
    in_flight: Option<(Time, Time)>,
    /// Time spent on earlier requests.
    spent: Duration,
    done: u64,
}

/// The outcome of a run.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) answered: u64,
    pub(crate) worker_seconds: f64,
    pub(crate) spawned: u64,
    /// When each request arrived and how long it took, in seconds.
    pub(crate) took: Vec<(f64, f64)>,
    /// The number of ready workers, from each of these seconds on.
    pub(crate) workers: Vec<(f64, usize)>,
}

impl Outcome {
    /// Returns a percentile of the latency of requests that arrived at the given times.
    pub(crate) fn percentile(&self, share: f64, counts: impl Fn(f64) -> bool) -> f64 {
        let mut took: Vec<f64> = self
            .took
            .iter()
            .filter(|(at, _)| counts(*at))
            .map(|(_, took)| *took)
            .collect();
        took.sort_by(f64::total_cmp);
        let last = float::from_len(took.len().saturating_sub(1));
        took.get(float::to_index((last * share).round()))
            .copied()
            .unwrap_or(0.0)
    }

    /// Returns how long after this time this many workers served.
    pub(crate) fn met_after(&self, at: f64, workers: usize) -> f64 {
        let met = self
            .workers
            .iter()
            .find(|(since, count)| *since >= at && *count >= workers);
        met.map_or(f64::INFINITY, |(since, _)| since - at)
    }
}

/// A small generator (xorshift64*), so that a seed means the same everywhere.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number from 0 to 1.
    fn roll(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        float::from_u64(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) / float::from_u64(1 << 53)
    }

    fn exponential(&mut self, mean: f64) -> Duration {
        Duration::from_secs_f64(-mean * (1.0 - self.roll()).ln())
    }

    /// Returns how long a request takes: half of it constant, half random.
    fn service(&mut self, mean: f64) -> Duration {
        Duration::from_secs_f64(mean / 2.0) + self.exponential(mean / 2.0)
    }
}

/// A request that waits: since when, and how long it will take.
type Request = (Time, Duration);

pub(crate) struct World<'a> {
    curve: &'a Curve,
    core: Core,
    now: Time,
    /// Arrivals and their durations are the same for every number of workers; their slots are not.
    clients: Dice,
    rng: Dice,
    due: BinaryHeap<Reverse<(Time, u64, Happening)>>,
    sequence: u64,
    processes: BTreeMap<WorkerId, Process>,
    rotation: Vec<Slot>,
    queues: BTreeMap<Slot, VecDeque<Request>>,
    began: Time,
    most: f64,
    outcome: Outcome,
}

impl<'a> World<'a> {
    pub(crate) fn new(curve: &'a Curve, plan: Plan, seed: u64) -> Self {
        Self {
            curve,
            core: Core::new(GenerationId(1), plan, seed),
            now: Time::from_millis(1000),
            clients: Dice::new(seed),
            rng: Dice::new(!seed),
            due: BinaryHeap::new(),
            sequence: 0,
            processes: BTreeMap::new(),
            rotation: Vec::new(),
            queues: BTreeMap::new(),
            began: Time::default(),
            most: curve.most(),
            outcome: Outcome::default(),
        }
    }

    fn schedule(&mut self, at: Time, happening: Happening) {
        self.sequence += 1;
        self.due.push(Reverse((at, self.sequence, happening)));
    }

    fn at(&self) -> f64 {
        (self.now - self.began).as_secs_f64()
    }

    /// Runs the curve until every request is answered.
    pub(crate) fn run(mut self) -> Outcome {
        self.tell(Event::Tick);
        // The server is up before the first request.
        self.pass(self.now + Duration::from_secs(2));
        self.began = self.now;
        self.outcome.workers.push((0.0, self.serving()));
        let end = self.began + self.curve.length;
        self.next_arrival();
        self.pass(end);
        let living: f64 = self
            .processes
            .values()
            .map(|process| (end - process.born.max(self.began)).as_secs_f64())
            .sum();
        self.outcome.worker_seconds += living;
        let seconds = self.outcome.worker_seconds;
        while self
            .processes
            .values()
            .any(|process| process.in_flight.is_some())
        {
            self.pass(self.now + Duration::from_mins(1));
        }
        self.outcome.worker_seconds = seconds;
        self.outcome
    }

    fn pass(&mut self, end: Time) {
        loop {
            let next = self.due.peek().map(|Reverse((at, ..))| *at);
            let observation = self.core.next_deadline();
            let Some(at) = next
                .into_iter()
                .chain(observation)
                .min()
                .filter(|at| *at <= end)
            else {
                break;
            };
            self.now = self.now.max(at);
            if next == Some(at) {
                if let Some(Reverse((_, _, happening))) = self.due.pop() {
                    self.happen(happening);
                }
            } else {
                let observation = self.observe();
                self.tell(Event::Observation(observation));
            }
        }
        self.now = end;
    }

    /// Thins arrivals at the highest rate, so that they are random at any rate (Lewis and Shedler,
    /// 1979).
    fn next_arrival(&mut self) {
        let mut at = self.now;
        loop {
            at += self.clients.exponential(1.0 / self.most);
            let second = (at - self.began).as_secs_f64();
            if second >= self.curve.length.as_secs_f64() {
                return;
            }
            if self.clients.roll() * self.most < self.curve.rate(second) {
                return self.schedule(at, Happening::Arrival);
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrival => {
                self.arrive();
                self.next_arrival();
            }
            Happening::Finished(id) => self.finish(id),
            Happening::Ready(id) => {
                if let Some(process) = self
                    .processes
                    .get_mut(&id)
                    .filter(|process| !process.draining)
                {
                    process.ready = true;
                    self.tell(Event::Ready(id));
                    self.note_workers();
                    self.take(id);
                }
            }
            Happening::Gone(id) => {
                if let Some(process) = self.processes.remove(&id) {
                    let since = process.born.max(self.began);
                    self.outcome.worker_seconds += (self.now - since).as_secs_f64();
                    let end = ProcessEnd {
                        manner: Manner::AsAsked,
                        ..ProcessEnd::unclean("left", Cause::Exit)
                    };
                    self.tell(Event::Died(id, end));
                }
            }
        }
    }

    fn arrive(&mut self) {
        let chosen = float::to_index(self.rng.roll() * float::from_len(self.rotation.len()));
        let Some(slot) = self.rotation.get(chosen).copied() else {
            return;
        };
        let service = self.clients.service(self.curve.service.as_secs_f64());
        self.queues
            .entry(slot)
            .or_default()
            .push_back((self.now, service));
        let idle =
            |process: &Process| process.ready && !process.draining && process.in_flight.is_none();
        let owner = self
            .processes
            .iter()
            .find(|(_, process)| process.slot == slot && idle(process));
        let anybody = || self.processes.iter().find(|(_, process)| idle(process));
        if let Some(id) = owner.or_else(anybody).map(|(id, _)| *id) {
            self.take(id);
        }
    }

    /// Lets an idle worker accept the next connection: from its own queue, else from the first that
    /// has any.
    fn take(&mut self, id: WorkerId) {
        let Some(slot) = self.processes.get(&id).map(|process| process.slot) else {
            return;
        };
        let own = self.queues.get_mut(&slot).and_then(VecDeque::pop_front);
        let came = own.or_else(|| self.queues.values_mut().find_map(VecDeque::pop_front));
        let Some((came, service)) = came else { return };
        let now = self.now;
        if let Some(process) = self.processes.get_mut(&id) {
            process.in_flight = Some((came, now));
        }
        self.schedule(now + service, Happening::Finished(id));
    }

    fn finish(&mut self, id: WorkerId) {
        let (now, began) = (self.now, self.began);
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let Some((came, since)) = process.in_flight.take() else {
            return;
        };
        process.spent += now - since;
        process.done += 1;
        self.outcome.answered += 1;
        self.outcome
            .took
            .push(((came - began).as_secs_f64(), (now - came).as_secs_f64()));
        if process.draining {
            self.schedule(now + LEAVE, Happening::Gone(id));
        } else {
            self.take(id);
        }
    }

    fn observe(&self) -> Observation {
        let ready = || {
            self.processes
                .iter()
                .filter(|(_, process)| process.ready && !process.draining)
        };
        let sample = |process: &Process| WorkerSample {
            heard: self.now,
            beats: true,
            greeted: true,
            done: Some(process.done),
            oldest: None,
            requests: None,
            memory: None,
        };
        let load = |process: &Process| WorkerLoad {
            spent: process.spent
                + process
                    .in_flight
                    .map_or(Duration::ZERO, |(_, since)| self.now - since),
            in_flight: Some(u32::from(process.in_flight.is_some())),
            ..WorkerLoad::default()
        };
        let length = |slot: Slot| {
            self.queues
                .get(&slot)
                .map_or(0, |queue| u32::try_from(queue.len()).unwrap_or(u32::MAX))
        };
        let queues = self.core.wants_queues(self.now).then(|| {
            self.processes
                .values()
                .map(|process| (process.slot, length(process.slot)))
                .collect()
        });
        let loads = if queues.is_some() {
            ready().map(|(id, process)| (*id, load(process))).collect()
        } else {
            Vec::new()
        };
        Observation {
            workers: ready()
                .map(|(id, process)| (*id, sample(process)))
                .collect(),
            queues,
            loads,
        }
    }

    fn tell(&mut self, event: Event) {
        for action in self.core.step(self.now, event) {
            match action {
                Action::Spawn { worker, slot, .. } => {
                    let process = Process {
                        slot,
                        born: self.now,
                        ready: false,
                        draining: false,
                        in_flight: None,
                        spent: Duration::ZERO,
                        done: 0,
                    };
                    self.processes.insert(worker, process);
                    self.outcome.spawned += 1;
                    self.schedule(self.now + START, Happening::Ready(worker));
                }
                Action::Steer(slots) => self.rotation = slots,
                Action::Drain { worker, .. } => {
                    let leaves = self.now + LEAVE;
                    if let Some(process) = self.processes.get_mut(&worker) {
                        process.draining = true;
                        if process.in_flight.is_none() {
                            self.schedule(leaves, Happening::Gone(worker));
                        }
                    }
                    self.note_workers();
                }
                Action::Abort(worker) | Action::Kill(worker) => {
                    panic!("no worker is killed: {worker}")
                }
                _ => {}
            }
        }
    }

    fn serving(&self) -> usize {
        self.processes
            .values()
            .filter(|process| process.ready && !process.draining)
            .count()
    }

    fn note_workers(&mut self) {
        if self.began > Time::default() {
            self.outcome.workers.push((self.at(), self.serving()));
        }
    }
}
