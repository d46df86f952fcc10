//! Connections stranded in the queue of a retired slot.

use crate::fixtures::*;

/// An external program without stall detection: all observations are for stranded connections.
const PLAN: Plan = Plan {
    workers: 3,
    heartbeat: Duration::ZERO,
    hang_timeout: None,
    graceful_timeout: Duration::from_mins(10),
    steals: false,
    ..crate::fixtures::PLAN
};

struct Stage {
    core: Core,
    now: Time,
    queues: BTreeMap<Slot, u32>,
    observations: u32,
    /// Actions since the last [`Stage::pass`] or [`Stage::tell`] began.
    last: Vec<Action>,
}

impl Stage {
    /// Returns a server whose slot 2 of three is retired and empty.
    fn retired(plan: Plan) -> Self {
        let mut stage = Self::retiring(plan);
        stage.die(3);
        stage
    }

    /// Returns a server whose slot 2 of three is retired, with its worker draining.
    fn retiring(plan: Plan) -> Self {
        let core = Core::new(GenerationId(1), plan, 1);
        let mut stage = Self {
            core,
            now: Time::default(),
            queues: BTreeMap::new(),
            observations: 0,
            last: Vec::new(),
        };
        stage.tell(Event::Tick);
        (1..=3).for_each(|worker| stage.tell(Event::Ready(WorkerId(worker))));
        stage.tell(Event::Command(Command::Resize(-1)));
        stage
    }

    fn tell(&mut self, event: Event) {
        self.last = self.core.step(self.now, event);
    }

    fn die(&mut self, worker: u64) {
        self.tell(Event::Died(
            WorkerId(worker),
            ProcessEnd::unclean("exited with status 1", Cause::Exit),
        ));
    }

    /// Lets time pass, with an observation whenever the core asks for one.
    fn pass(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        self.last.clear();
        while let Some(due) = self.core.next_deadline().filter(|due| *due <= end) {
            self.now = due;
            let sample = WorkerSample {
                heard: due,
                beats: false,
                greeted: true,
                done: None,
                oldest: None,
                requests: None,
                memory: None,
            };
            let workers = self
                .core
                .view()
                .workers
                .iter()
                .map(|one| (one.worker, sample))
                .collect();
            let queues = self
                .queues
                .iter()
                .map(|(slot, length)| (*slot, *length))
                .collect();
            let queues = self.core.wants_queues(due).then_some(queues);
            self.observations += u32::from(queues.is_some());
            self.last.extend(self.core.step(
                due,
                Event::Observation(Observation {
                    workers,
                    queues,
                    ..Observation::default()
                }),
            ));
        }
        self.now = end;
    }

    fn spawned(&self) -> Vec<(u64, u16)> {
        let spawn = |action: &Action| match action {
            Action::Spawn { worker, slot, .. } => Some((worker.0, slot.0)),
            _ => None,
        };
        self.last.iter().filter_map(spawn).collect()
    }

    fn drained(&self) -> Vec<(u64, bool)> {
        let drain = |action: &Action| match action {
            Action::Drain {
                worker,
                empty_queue,
                ..
            } => Some((worker.0, *empty_queue)),
            _ => None,
        };
        self.last.iter().filter_map(drain).collect()
    }

    fn reported(&self) -> usize {
        self.last
            .iter()
            .filter(|action| matches!(action, Action::Report(Fact::Stranded(..))))
            .count()
    }

    fn rotation(&self) -> Vec<u16> {
        self.core.rotation.iter().map(|slot| slot.0).collect()
    }
}

#[test]
fn stranded_connections_get_a_rescue_worker_until_the_queue_is_empty() {
    let mut stage = Stage::retired(PLAN);
    stage.pass(30.0);
    assert_eq!(stage.last, [], "no connection waits");
    stage.queues.insert(Slot(2), 1);
    stage.pass(1.0);
    assert_eq!((stage.spawned(), stage.reported()), (vec![(4, 2)], 1));
    stage.tell(Event::Ready(WorkerId(4)));
    assert_eq!(
        stage.rotation(),
        [0, 1],
        "no rescue worker, only the one that is there already"
    );
    stage.pass(5.0);
    assert_eq!(stage.last, [], "it takes its time");
    stage.queues.insert(Slot(2), 0);
    stage.pass(1.0);
    assert_eq!(
        (stage.drained(), stage.rotation()),
        (vec![(4, true)], vec![0, 1])
    );
    stage.die(4);
    assert_eq!(stage.spawned(), []);
    stage.queues.insert(Slot(2), 1);
    stage.pass(1.0);
    assert_eq!(
        (stage.spawned(), stage.reported()),
        (vec![(5, 2)], 0),
        "again, but it is said once"
    );
}

#[test]
fn a_retired_slot_is_watched_once_a_second_for_two_minutes_and_then_never() {
    let mut stage = Stage::retired(PLAN);
    stage.pass(600.0);
    assert!(
        (119..=121).contains(&stage.observations),
        "{} looks",
        stage.observations
    );
    assert_eq!(stage.core.next_deadline(), None);
    // A queue that is not empty by then is not forgotten.
    let mut stage = Stage::retired(PLAN);
    stage.pass(110.0);
    stage.queues.insert(Slot(2), 1);
    stage.pass(60.0);
    assert_eq!(stage.spawned(), [(4, 2)]);
    stage.tell(Event::Ready(WorkerId(4)));
    stage.queues.clear();
    stage.pass(1.0);
    assert_eq!(
        (stage.drained(), stage.core.retired().count()),
        (vec![(4, true)], 0)
    );
}

#[test]
fn a_server_that_never_scaled_down_watches_no_retired_slots() {
    let mut core = Core::new(GenerationId(1), PLAN, 1);
    core.step(Time::default(), Event::Tick);
    (1..=3).for_each(|worker| _ = core.step(Time::default(), Event::Ready(WorkerId(worker))));
    assert_eq!((core.next_deadline(), core.retired().count()), (None, 0));
}

#[test]
fn siblings_that_steal_get_some_time_to_accept() {
    let mut stage = Stage::retired(Plan {
        steals: true,
        ..PLAN
    });
    for _ in 0..10 {
        stage.queues.insert(Slot(2), 2);
        stage.pass(2.0);
        stage.queues.insert(Slot(2), 1);
        stage.pass(2.0);
        stage.queues.insert(Slot(2), 0);
        stage.pass(1.0);
        assert_eq!(stage.last, []);
    }
    // None of them has that queue: they are older than the slot.
    stage.queues.insert(Slot(2), 1);
    stage.pass(5.0);
    assert_eq!(stage.spawned(), [(4, 2)]);
}

#[test]
fn a_worker_that_drains_in_the_slot_gets_some_time_to_accept() {
    let mut stage = Stage::retiring(PLAN);
    stage.queues.insert(Slot(2), 1);
    stage.pass(2.0);
    stage.queues.clear();
    stage.pass(10.0);
    assert_eq!(stage.last, []);
    // It has stopped accepting, with a long request in flight.
    stage.queues.insert(Slot(2), 1);
    stage.pass(5.0);
    assert_eq!(stage.spawned(), [(4, 2)]);
    // As many as a slot can have.
    stage.die(4);
    stage.pass(5.0);
    assert_eq!(
        stage.spawned(),
        [] as [(u64, u16); 0],
        "a failure has been replaced at once, here in `die`"
    );
    assert_eq!(stage.core.in_slot(Slot(2)).count(), 2);
}

#[test]
fn no_rescue_worker_is_started_once_the_server_stops_or_drains() {
    for command in [Command::Stop, Command::DrainAll] {
        let mut stage = Stage::retired(PLAN);
        stage.tell(Event::Command(command));
        stage.queues.insert(Slot(2), 1);
        stage.pass(20.0);
        assert_eq!(stage.spawned(), [], "{command:?}");
        // Nor does a rescue worker stay that exists already.
        let mut stage = Stage::retired(PLAN);
        stage.queues.insert(Slot(2), 1);
        stage.pass(1.0);
        stage.tell(Event::Ready(WorkerId(4)));
        stage.tell(Event::Command(command));
        assert!(stage.drained().contains(&(4, true)), "{command:?}");
    }
}

#[test]
fn a_scale_up_keeps_the_rescue_worker() {
    let mut stage = Stage::retired(PLAN);
    stage.queues.insert(Slot(2), 1);
    stage.pass(1.0);
    stage.tell(Event::Ready(WorkerId(4)));
    stage.tell(Event::Command(Command::Resize(1)));
    assert_eq!((stage.spawned(), stage.rotation()), (vec![], vec![0, 1, 2]));
    stage.queues.clear();
    stage.pass(10.0);
    assert_eq!(stage.last, []);
}

#[test]
fn a_rescue_worker_that_fails_is_retried_with_back_off() {
    let mut stage = Stage::retired(PLAN);
    stage.queues.insert(Slot(2), 1);
    stage.pass(1.0);
    stage.die(4);
    assert_eq!(stage.spawned(), [(5, 2)]);
    stage.die(5);
    assert_eq!(stage.spawned(), []);
    stage.pass(0.1);
    assert_eq!(stage.spawned(), [(6, 2)]);
    assert_eq!(
        stage.core.view().state,
        State::Serving,
        "no open slot is empty"
    );
}

#[test]
fn a_rescue_worker_that_cannot_empty_the_queue_makes_room_for_another() {
    let mut stage = Stage::retired(PLAN);
    stage.queues.insert(Slot(2), 1);
    stage.pass(1.0);
    stage.tell(Event::Ready(WorkerId(4)));
    stage.pass(119.0);
    assert_eq!(stage.last, []);
    stage.pass(2.0);
    assert_eq!(stage.drained(), [(4, true)]);
    stage.pass(4.0);
    assert_eq!((stage.spawned(), stage.reported()), (vec![(5, 2)], 0));
}

#[test]
fn a_reload_and_its_rollback_strand_no_connection() {
    let mut stage = Stage::retired(PLAN);
    stage.queues.insert(Slot(2), 1);
    stage.pass(1.0);
    stage.tell(Event::Ready(WorkerId(4)));
    stage.tell(Event::Command(Command::Reload(None)));
    // It will fill slot 2 itself: the rescue worker stays until its successor is ready.
    stage.tell(Event::Prepared(GenerationId(2), PLAN));
    assert_eq!(
        (stage.spawned(), stage.drained()),
        (vec![(5, 0), (6, 1), (7, 2)], vec![])
    );
    stage.die(7);
    assert!(
        stage.drained().contains(&(4, true)),
        "the slot is retired again"
    );
    stage.die(4);
    stage.pass(1.0);
    assert_eq!(stage.spawned(), [(8, 2)]);
}

#[test]
fn a_slot_is_watched_from_when_it_leaves_the_rotation() {
    let mut stage = Stage::retired(PLAN);
    stage.tell(Event::Command(Command::Reload(None)));
    stage.tell(Event::Prepared(
        GenerationId(2),
        Plan { workers: 4, ..PLAN },
    ));
    (4..=7).for_each(|worker| stage.tell(Event::Ready(WorkerId(worker))));
    stage.tell(Event::Command(Command::DrainAll));
    for worker in [1, 2, 4, 5, 6, 7] {
        stage.die(worker);
    }
    stage.pass(600.0);
    assert_eq!(stage.rotation(), [0, 1, 2, 3], "there is nowhere else");
    stage.tell(Event::Command(Command::Reload(None)));
    stage.tell(Event::Prepared(
        GenerationId(3),
        Plan { workers: 1, ..PLAN },
    ));
    stage.tell(Event::Ready(WorkerId(8)));
    stage.pass(60.0);
    assert_eq!(
        (stage.rotation(), stage.core.view().state),
        (vec![0], State::Serving)
    );
    stage.queues.insert(Slot(3), 1);
    stage.pass(1.0);
    assert_eq!(stage.spawned(), [(9, 3)]);
}

#[test]
fn slots_of_a_reload_that_failed_are_retired() {
    let mut stage = Stage::retired(PLAN);
    stage.tell(Event::Command(Command::Reload(None)));
    stage.tell(Event::Prepared(
        GenerationId(2),
        Plan { workers: 4, ..PLAN },
    ));
    let new: Vec<WorkerId> = stage
        .core
        .workers
        .values()
        .filter(|one| one.generation.0 == 2)
        .map(|one| one.id)
        .collect();
    new[1..]
        .iter()
        .for_each(|worker| stage.tell(Event::Ready(*worker)));
    assert!(stage.rotation().contains(&3), "clients come to it");
    stage.die(new[0].0);
    new[1..].iter().for_each(|worker| stage.die(worker.0));
    stage.queues.insert(Slot(3), 1);
    stage.pass(1.0);
    assert_eq!(
        stage
            .spawned()
            .iter()
            .map(|spawn| spawn.1)
            .collect::<Vec<_>>(),
        [3]
    );
}
