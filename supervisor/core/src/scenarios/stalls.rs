//! Workers stall, hang and recover.

use crate::fixtures::*;

const PLAN: Plan = Plan {
    workers: 3,
    request_timeout: Some(Duration::from_secs(10)),
    ..crate::fixtures::PLAN
};

/// A core, and the samples of its workers at every observation.
struct Stage {
    core: Core,
    now: Time,
    samples: BTreeMap<WorkerId, WorkerSample>,
    queues: BTreeMap<Slot, u32>,
    /// These send no more heartbeats.
    silent: BTreeSet<WorkerId>,
    /// Actions since the last [`Stage::pass`].
    last: Vec<Action>,
}

impl Stage {
    /// Returns three ready workers; `Some(0)`: they count, `None`: they are programs that report
    /// nothing.
    fn serving(done: Option<u64>) -> Self {
        let mut core = Core::new(GenerationId(1), PLAN, 1);
        let sample = WorkerSample {
            heard: Time::default(),
            beats: done.is_some(),
            greeted: true,
            done,
            oldest: None,
            requests: None,
            memory: None,
        };
        core.step(Time::default(), Event::Tick);
        for worker in 1..=3 {
            core.step(Time::default(), Event::Ready(WorkerId(worker)));
        }
        let samples = (1..=3).map(|worker| (WorkerId(worker), sample)).collect();
        let queues = (0..3).map(|slot| (Slot(slot), 0)).collect();
        Self {
            core,
            now: Time::default(),
            samples,
            queues,
            silent: BTreeSet::new(),
            last: Vec::new(),
        }
    }

    fn wake(&mut self) {
        for (id, sample) in &mut self.samples {
            if !self.silent.contains(id) {
                sample.heard = self.now;
            }
        }
        let workers = self
            .samples
            .iter()
            .map(|(id, sample)| (*id, *sample))
            .collect();
        let queues = self
            .queues
            .iter()
            .map(|(slot, length)| (*slot, *length))
            .collect();
        let queues = self.core.wants_queues(self.now).then_some(queues);
        self.last.extend(self.core.step(
            self.now,
            Event::Observation(Observation {
                workers,
                queues,
                ..Observation::default()
            }),
        ));
    }

    /// Lets time pass, with an observation whenever the core asks for one.
    fn pass(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        self.last.clear();
        while let Some(due) = self.core.next_deadline().filter(|due| *due <= end) {
            self.now = due;
            self.wake();
        }
        self.now = end;
    }

    fn rotation(&self) -> Vec<u16> {
        self.core.rotation.iter().map(|slot| slot.0).collect()
    }

    fn said(&self, what: impl Fn(&Fact) -> bool) -> usize {
        self.last
            .iter()
            .filter(|action| matches!(action, Action::Report(fact) if what(fact)))
            .count()
    }

    fn stalls(&self) -> usize {
        self.said(|fact| matches!(fact, Fact::Stalled(..)))
    }

    fn aborted(&self) -> Vec<u64> {
        let abort = |action: &Action| match action {
            Action::Abort(worker) => Some(worker.0),
            _ => None,
        };
        self.last.iter().filter_map(abort).collect()
    }

    fn state(&self, worker: u64) -> Option<WorkerState> {
        self.core
            .view()
            .workers
            .iter()
            .find(|one| one.worker.0 == worker)
            .map(|one| one.state)
    }
}

#[test]
fn a_silent_worker_leaves_the_rotation_until_its_next_heartbeat() {
    let mut stage = Stage::serving(Some(0));
    stage.pass(5.0);
    assert_eq!(stage.last, []);
    stage.silent.insert(WorkerId(2));
    stage.pass(4.0);
    assert_eq!(
        (stage.stalls(), stage.rotation()),
        (1, vec![0, 2]),
        "{:?}",
        stage.last
    );
    assert_eq!(stage.state(2), Some(WorkerState::Stalled));
    stage.pass(20.0);
    assert_eq!(
        stage.last,
        [],
        "reported once, and no worker is aborted before the timeout"
    );
    stage.silent.clear();
    stage.pass(1.1);
    assert_eq!(stage.said(|fact| matches!(fact, Fact::Resumed(..))), 1);
    assert_eq!(
        (stage.rotation(), stage.state(2)),
        (vec![0, 1, 2], Some(WorkerState::Ready))
    );
}

#[test]
fn a_silent_worker_is_aborted_at_the_timeout_and_its_slot_comes_back_with_the_replacement() {
    let mut stage = Stage::serving(Some(0));
    stage.silent.insert(WorkerId(2));
    stage.pass(29.9);
    assert_eq!(stage.aborted(), [] as [u64; 0]);
    stage.pass(0.2);
    assert_eq!((stage.aborted(), stage.rotation()), (vec![2], vec![0, 2]));
    stage.pass(2.0);
    assert!(stage.last.contains(&Action::Kill(WorkerId(2))));
    stage.core.step(
        stage.now,
        Event::Died(WorkerId(2), ProcessEnd::unclean("killed", Cause::Signal)),
    );
    assert_eq!(stage.rotation(), [0, 2], "no worker serves slot 1 yet");
    stage.core.step(stage.now, Event::Ready(WorkerId(4)));
    assert_eq!(stage.rotation(), [0, 1, 2]);
}

#[test]
fn a_queue_that_does_not_move_is_noticed_within_a_second_and_a_half() {
    for done in [Some(0), None] {
        let mut stage = Stage::serving(done);
        stage.pass(5.0);
        stage.queues.insert(Slot(1), 3);
        stage.pass(1.4);
        assert_eq!(
            (stage.stalls(), stage.rotation()),
            (1, vec![0, 2]),
            "{done:?} {:?}",
            stage.last
        );
        stage.queues.insert(Slot(1), 0);
        stage.pass(1.0);
        assert_eq!(
            (stage.stalls(), stage.rotation()),
            (0, vec![0, 1, 2]),
            "{done:?}"
        );
    }
}

#[test]
fn a_queue_that_moves_is_no_stall_however_long_it_is() {
    let mut stage = Stage::serving(Some(0));
    for round in 0..200 {
        stage.queues.insert(Slot(1), 4000);
        stage
            .samples
            .entry(WorkerId(2))
            .and_modify(|sample| sample.done = Some(round));
        stage.pass(0.05);
        assert_eq!(stage.stalls(), 0, "round {round}");
    }
    let mut stage = Stage::serving(None);
    for round in 0..200_u32 {
        stage.queues.insert(Slot(1), 1000 - round);
        stage.pass(0.05);
        assert_eq!(stage.stalls(), 0, "round {round}");
    }
}

#[test]
fn a_worker_with_heartbeats_is_never_aborted_for_its_queue_and_a_silent_program_is() {
    let mut stage = Stage::serving(Some(0));
    stage.queues.insert(Slot(1), 3);
    stage.pass(120.0);
    assert_eq!(
        (stage.stalls(), stage.aborted()),
        (1, vec![]),
        "all its connections may be taken"
    );
    let mut stage = Stage::serving(None);
    stage.pass(5.0);
    stage.queues.insert(Slot(1), 3);
    stage.pass(29.9);
    assert_eq!(stage.aborted(), [] as [u64; 0]);
    stage.pass(1.5);
    assert_eq!(stage.aborted(), [2]);
}

#[test]
fn a_queue_that_moves_once_saves_a_program() {
    let mut stage = Stage::serving(None);
    stage.queues.insert(Slot(1), 3);
    stage.pass(20.0);
    stage.queues.insert(Slot(1), 2);
    stage.pass(20.0);
    assert_eq!(stage.aborted(), [] as [u64; 0]);
    stage.pass(15.0);
    assert_eq!(stage.aborted(), [2]);
}

#[test]
fn a_program_that_may_still_be_starting_has_the_time_to_start() {
    let mut stage = Stage::serving(None);
    stage
        .samples
        .values_mut()
        .for_each(|sample| sample.greeted = false);
    stage
        .core
        .workers
        .values_mut()
        .for_each(|worker| worker.plan.start_timeout = Duration::from_secs(50));
    stage.queues.insert(Slot(1), 3);
    stage.pass(49.0);
    assert_eq!((stage.stalls(), stage.aborted()), (1, vec![]));
    stage.pass(3.0);
    assert_eq!(stage.aborted(), [2]);
    // A worker that has accepted a connection was certainly ready.
    stage.queues.insert(Slot(2), 3);
    stage.pass(1.0);
    stage.queues.insert(Slot(2), 2);
    stage.pass(33.0);
    assert_eq!(stage.aborted(), [3]);
}

#[test]
fn when_all_workers_stall_all_stay_in_rotation() {
    let mut stage = Stage::serving(Some(0));
    stage.silent.extend([WorkerId(1), WorkerId(2), WorkerId(3)]);
    stage.pass(4.0);
    assert_eq!((stage.stalls(), stage.rotation()), (3, vec![0, 1, 2]));
    stage.silent.remove(&WorkerId(3));
    stage.pass(1.1);
    assert_eq!(stage.rotation(), [2]);
}

#[test]
fn a_request_that_is_overdue_costs_its_worker_and_one_that_ends_in_time_does_not() {
    let mut stage = Stage::serving(Some(0));
    stage
        .samples
        .entry(WorkerId(2))
        .and_modify(|sample| sample.oldest = Some(Time::default()));
    stage.pass(10.9);
    assert_eq!(
        stage.aborted(),
        [] as [u64; 0],
        "it may still end it itself"
    );
    stage
        .samples
        .entry(WorkerId(2))
        .and_modify(|sample| sample.oldest = Some(Time::from_millis(10_500)));
    stage.pass(10.0);
    assert_eq!(stage.last, []);
    stage.pass(2.0);
    assert_eq!((stage.aborted(), stage.rotation()), (vec![2], vec![0, 2]));
    assert_eq!(
        stage.said(|fact| matches!(fact, Fact::Hung(_, Stall::Overdue, _))),
        1
    );
}

#[test]
fn stalls_that_follow_each_other_are_reported_once_in_a_while() {
    let mut stage = Stage::serving(Some(0));
    let mut reported = 0;
    for _ in 0..10 {
        stage.queues.insert(Slot(1), 1);
        stage.pass(1.4);
        assert_eq!(stage.rotation(), [0, 2]);
        reported += stage.stalls();
        stage.queues.insert(Slot(1), 0);
        stage.pass(0.6);
        assert_eq!(stage.rotation(), [0, 1, 2]);
    }
    assert_eq!(reported, 2, "in 20 s");
}

#[test]
fn a_machine_that_stood_still_makes_no_worker_stalled() {
    let mut stage = Stage::serving(Some(0));
    stage.queues.insert(Slot(1), 1);
    stage.pass(0.1);
    stage.silent.extend([WorkerId(1), WorkerId(2)]);
    for millis in [900, 5_000, 600_000] {
        stage.last.clear();
        stage.now += Duration::from_millis(millis);
        stage.wake();
        assert_eq!(
            (stage.stalls(), stage.aborted()),
            (0, vec![]),
            "after {millis} ms"
        );
    }
}

#[test]
fn a_stop_of_the_supervisor_is_excused_once() {
    let mut stage = Stage::serving(Some(0));
    stage.pass(5.0);
    stage.silent.insert(WorkerId(2));
    stage.now += Duration::from_mins(1);
    stage.wake();
    assert_eq!(stage.state(2), Some(WorkerState::Ready), "unobserved time");
    stage.pass(4.0);
    assert_eq!(stage.state(2), Some(WorkerState::Stalled));
}

#[test]
fn a_supervisor_that_was_stopped_calls_no_request_overdue() {
    // Stopped when the next deadline was the request's: a minute later, that is due no sooner.
    let mut stage = Stage::serving(Some(0));
    stage
        .samples
        .entry(WorkerId(2))
        .and_modify(|sample| sample.oldest = Some(Time::default()));
    stage.pass(10.0);
    while stage
        .core
        .next_deadline()
        .is_some_and(|due| due < Time::from_millis(11_000))
    {
        stage.now = stage.core.next_deadline().expect("it watches");
        stage.wake();
    }
    assert_eq!(stage.core.next_deadline(), Some(Time::from_millis(11_000)));
    stage.now += Duration::from_mins(1);
    stage.wake();
    assert_eq!(stage.aborted(), [] as [u64; 0]);
    stage.pass(1.5);
    assert_eq!(stage.aborted(), [2], "it has had its time now");
    // Stopped before it had observed the request.
    let mut stage = Stage::serving(Some(0));
    stage.pass(5.0);
    stage
        .samples
        .entry(WorkerId(2))
        .and_modify(|sample| sample.oldest = Some(stage.now));
    stage.now += Duration::from_mins(1);
    stage.wake();
    stage.pass(9.0);
    assert_eq!(stage.aborted(), [] as [u64; 0]);
    stage.pass(2.1);
    assert_eq!(stage.aborted(), [2]);
}

#[test]
fn a_worker_that_is_stuck_does_not_resume_because_the_supervisor_was_stopped() {
    let mut stage = Stage::serving(Some(0));
    stage.queues.insert(Slot(1), 1);
    stage.pass(10.0);
    stage.last.clear();
    stage.now += Duration::from_secs(16);
    stage.wake();
    // A wake-up for another reason, between two observations of the queues.
    stage.now += Duration::from_millis(900);
    stage
        .samples
        .entry(WorkerId(2))
        .and_modify(|sample| sample.heard = stage.now);
    let workers = stage
        .samples
        .iter()
        .map(|(id, sample)| (*id, *sample))
        .collect();
    stage.core.step(
        stage.now,
        Event::Observation(Observation {
            workers,
            ..Observation::default()
        }),
    );
    assert_eq!(stage.rotation(), [0, 2]);
}

#[test]
fn without_a_hang_timeout_no_worker_is_watched() {
    let plan = Plan {
        hang_timeout: None,
        request_timeout: None,
        ..PLAN
    };
    let mut core = Core::new(GenerationId(1), plan, 1);
    core.step(Time::default(), Event::Tick);
    for worker in 1..=3 {
        core.step(Time::default(), Event::Ready(WorkerId(worker)));
    }
    assert_eq!(
        (
            core.next_deadline(),
            core.wants_queues(Time::from_millis(1 << 40))
        ),
        (None, false)
    );
}

#[test]
fn a_stall_costs_fewer_wake_ups_the_longer_it_lasts() {
    let mut stage = Stage::serving(Some(0));
    stage.queues.insert(Slot(1), 3);
    for (seconds, most) in [(2, 25), (8, 25), (20, 25)] {
        let end = stage.now + Duration::from_secs(seconds);
        let mut wakes = 0;
        while let Some(due) = stage.core.next_deadline().filter(|due| *due < end) {
            assert!(
                stage.core.wants_queues(due) || stage.core.next_observation(due).is_some(),
                "woken for something"
            );
            stage.now = due;
            stage.wake();
            wakes += 1;
        }
        assert!(wakes <= most, "{wakes} in {seconds} s");
        stage.now = end;
    }
}

#[test]
fn an_idle_server_is_observed_once_a_second() {
    let mut stage = Stage::serving(Some(0));
    stage.pass(10.0);
    let mut wakes = 0;
    let end = stage.now + Duration::from_secs(20);
    while let Some(due) = stage.core.next_deadline().filter(|due| *due < end) {
        stage.now = due;
        stage.wake();
        wakes += 1;
    }
    assert!(wakes <= 20, "{wakes} in 20 s");
}
