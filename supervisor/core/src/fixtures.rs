//! What scenarios, simulation and curves share: names, and one plan to vary.

pub(crate) use crate::step::LONG_STALL;
pub(crate) use crate::worker::ABORT_GRACE;
pub(crate) use crate::*;
pub(crate) use std::collections::{BTreeMap, BTreeSet};
pub(crate) use std::time::Duration;

/// A plan of two workers; a test names only what it is about.
pub(crate) const PLAN: Plan = Plan {
    workers: 2,
    max_workers: 4,
    surge: u16::MAX,
    start_timeout: Duration::from_mins(1),
    heartbeat: Duration::from_secs(1),
    hang_timeout: Some(Duration::from_secs(30)),
    request_timeout: None,
    graceful_timeout: Duration::from_secs(30),
    min_ready: Duration::from_secs(2),
    steals: true,
    readiness: ReadinessSignal::Message,
    max_unavailable: Share::Percent(10),
    autoscale: None,
    recycle: Limits {
        requests: None,
        age: None,
        memory: None,
    },
    pre_stop_delay: Duration::ZERO,
};

/// Returns an observation of workers with heartbeats at these times, which have done this much.
pub(crate) fn beats(workers: &[(u64, Time, u64)]) -> Observation {
    let sample = |heard, done| WorkerSample {
        heard,
        beats: true,
        greeted: true,
        done: Some(done),
        oldest: None,
        requests: None,
        memory: None,
    };
    let workers = workers
        .iter()
        .map(|(id, heard, done)| (WorkerId(*id), sample(*heard, *done)))
        .collect();
    Observation {
        workers,
        ..Observation::default()
    }
}

/// A core with a clock, and the actions of its last step.
pub(crate) struct Stage {
    pub(crate) core: Core,
    pub(crate) now: Time,
    pub(crate) last: Vec<Action>,
}

impl Stage {
    pub(crate) fn boot(plan: Plan) -> Self {
        let mut stage = Self {
            core: Core::new(GenerationId(1), plan, 1),
            now: Time::default(),
            last: Vec::new(),
        };
        stage.tell(Event::Tick);
        stage
    }

    /// Returns a server whose workers `1..=plan.workers` are ready.
    pub(crate) fn serving(plan: Plan) -> Self {
        let mut stage = Self::boot(plan);
        stage.get_ready(1..=u64::from(plan.workers));
        assert!(
            stage
                .facts()
                .any(|fact| matches!(fact, Fact::ServerReady(..)))
        );
        stage
    }

    pub(crate) fn tell(&mut self, event: Event) -> &[Action] {
        self.last = self.core.step(self.now, event);
        &self.last
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.tell(Event::Command(command));
    }

    pub(crate) fn get_ready(&mut self, workers: impl IntoIterator<Item = u64>) {
        for worker in workers {
            self.tell(Event::Ready(WorkerId(worker)));
        }
    }

    pub(crate) fn die(&mut self, worker: u64) {
        self.tell(Event::Died(
            WorkerId(worker),
            ProcessEnd::unclean("exited with status 3", Cause::Exit),
        ));
    }

    /// Lets time pass in steps that the core asks for, with heartbeats of every ready worker.
    pub(crate) fn pass(&mut self, seconds: f64) -> Vec<Action> {
        let end = self.now + Duration::from_secs_f64(seconds);
        let mut all = Vec::new();
        while let Some(due) = self.core.next_deadline().filter(|due| *due <= end) {
            self.now = due;
            let alive: Vec<_> = self
                .core
                .view()
                .workers
                .iter()
                .map(|one| (one.worker.0, due, 0))
                .collect();
            let queues = self.core.wants_queues(due).then(Vec::new);
            all.extend(self.core.step(
                due,
                Event::Observation(Observation {
                    queues,
                    ..beats(&alive)
                }),
            ));
        }
        self.now = end;
        self.last.clone_from(&all);
        all
    }

    pub(crate) fn facts(&self) -> impl Iterator<Item = &Fact> {
        self.last.iter().filter_map(|action| match action {
            Action::Report(fact) => Some(fact),
            _ => None,
        })
    }

    pub(crate) fn spawned(&self) -> Vec<(u64, u16, u32)> {
        let spawn = |action: &Action| match action {
            Action::Spawn {
                worker,
                slot,
                generation,
                ..
            } => Some((worker.0, slot.0, generation.0)),
            _ => None,
        };
        self.last.iter().filter_map(spawn).collect()
    }

    pub(crate) fn drained(&self) -> Vec<u64> {
        let drain = |action: &Action| match action {
            Action::Drain { worker, .. } => Some(worker.0),
            _ => None,
        };
        self.last.iter().filter_map(drain).collect()
    }

    pub(crate) fn has(&self, action: &Action) -> bool {
        self.last.contains(action)
    }

    pub(crate) fn reload(&mut self, plan: Plan) {
        self.command(Command::Reload(Some(RequestId(7))));
        let generation = self.core.last_generation;
        assert!(self.has(&Action::Prepare(generation)), "{:?}", self.last);
        self.tell(Event::Prepared(generation, plan));
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.last.iter().find_map(|action| match action {
            Action::Reply(RequestId(7), Err(reason)) => Some(reason.clone()),
            _ => None,
        })
    }
}
