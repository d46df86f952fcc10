//! Workers that are recycled, and the pre-stop delay.

use crate::fixtures::*;

const PLAN: Plan = Plan {
    workers: 4,
    max_workers: 8,
    max_unavailable: Share::Count(1),
    recycle: Limits {
        requests: Some(100),
        age: None,
        memory: None,
    },
    ..crate::fixtures::PLAN
};

impl Stage {
    /// Observes workers with heartbeats that have answered this many requests and use this much
    /// memory.
    fn see(&mut self, workers: &[(u64, u64, u64)]) {
        let sample = |requests, memory| WorkerSample {
            heard: self.now,
            beats: true,
            greeted: true,
            done: Some(requests),
            oldest: None,
            requests: Some(requests),
            memory: Some(memory),
        };
        let workers = workers
            .iter()
            .map(|(id, requests, memory)| (WorkerId(*id), sample(*requests, *memory)))
            .collect();
        self.tell(Event::Observation(Observation {
            workers,
            ..Observation::default()
        }));
    }

    fn recycled(&self) -> Vec<u64> {
        let recycling = |fact: &Fact| match fact {
            Fact::Recycling(who, _) => Some(who.worker.0),
            _ => None,
        };
        self.facts().filter_map(recycling).collect()
    }
}

#[test]
fn a_worker_that_has_served_enough_drains_when_the_next_one_is_ready() {
    let mut stage = Stage::serving(PLAN);
    stage.see(&[(1, 79, 0), (2, 100, 0), (3, 0, 0)]);
    assert_eq!(
        (stage.recycled(), stage.spawned()),
        (vec![2], vec![(5, 1, 1)])
    );
    assert_eq!(stage.drained(), [0_u64; 0], "it serves until then");
    stage.get_ready([5]);
    assert_eq!(stage.drained(), [2]);
    assert!(
        stage
            .facts()
            .any(|fact| matches!(fact, Fact::Draining(_, DrainReason::Recycled)))
    );
}

#[test]
fn one_by_one_and_the_longest_pending_first() {
    let mut stage = Stage::serving(PLAN);
    stage.see(&[(3, 100, 0)]);
    stage.pass(0.5);
    stage.see(&[(1, 100, 0), (2, 100, 0), (3, 100, 0), (4, 100, 0)]);
    assert_eq!(
        (stage.recycled(), stage.spawned()),
        (vec![], vec![]),
        "slot 2 has the only permit"
    );
    stage.get_ready([5]);
    stage.die(3);
    assert_eq!(
        stage.recycled(),
        [1],
        "it has been due for as long as others, and has the lowest number"
    );
    stage.get_ready([6]);
    assert_eq!(stage.recycled(), [0_u64; 0], "until the old one is gone");
    stage.die(1);
    assert_eq!(stage.recycled(), [2]);
}

#[test]
fn age_and_memory_do_the_same_and_age_needs_no_observation() {
    let recycle = Limits {
        requests: None,
        age: Some(Duration::from_secs(100)),
        memory: Some(64 << 20),
    };
    let mut stage = Stage::serving(Plan {
        recycle,
        hang_timeout: None,
        ..PLAN
    });
    stage.see(&[(4, 0, 64 << 20)]);
    assert_eq!(stage.recycled(), [4]);
    stage.get_ready([5]);
    stage.die(4);
    let due = stage
        .core
        .next_deadline()
        .expect("a worker reaches its age limit");
    assert!(
        due > Time::from_millis(80_000) && due <= Time::from_millis(100_000),
        "{due:?}"
    );
    stage.pass(100.0);
    assert_eq!(
        stage.recycled().len(),
        1,
        "the others wait for the permit: {:?}",
        stage.recycled()
    );
}

#[test]
fn a_replacement_that_fails_leaves_the_old_one_and_is_tried_again_later() {
    let mut stage = Stage::serving(PLAN);
    stage.see(&[(2, 100, 0)]);
    stage.die(5);
    assert!(
        stage
            .facts()
            .any(|fact| matches!(fact, Fact::NotReplaced(who, _) if who.worker.0 == 2))
    );
    assert_eq!(
        (stage.recycled(), stage.spawned()),
        (vec![2], vec![(6, 1, 1)]),
        "the first time at once"
    );
    stage.die(6);
    assert_eq!(stage.recycled(), [0_u64; 0]);
    stage.pass(0.1);
    assert_eq!(stage.spawned(), [(7, 1, 1)]);
    stage.get_ready([7]);
    assert_eq!(stage.drained(), [2]);
    stage.die(2);
    // That ended the series of failures.
    stage.see(&[(7, 100, 0)]);
    stage.die(8);
    assert_eq!(stage.spawned(), [(9, 1, 1)]);
}

#[test]
fn no_worker_is_recycled_during_a_reload_or_after_a_stop_and_dead_workers_use_permits() {
    let mut stage = Stage::serving(PLAN);
    stage.die(1);
    stage.see(&[(2, 100, 0)]);
    assert_eq!(stage.recycled(), [0_u64; 0], "slot 0 is out already");
    stage.get_ready([5]);
    assert_eq!(stage.recycled(), [2]);
    stage.reload(PLAN);
    assert!(
        stage
            .facts()
            .all(|fact| !matches!(fact, Fact::Recycling(..)))
    );
    assert_eq!(
        stage.drained(),
        [6],
        "a reload replaces its slot's worker anyway"
    );
    stage.die(6);
    stage.see(&[(2, 200, 0), (3, 200, 0)]);
    assert_eq!(stage.recycled(), [0_u64; 0]);
    stage.command(Command::Stop);
    stage.see(&[(3, 300, 0)]);
    assert_eq!(stage.recycled(), [0_u64; 0]);
}

#[test]
fn a_server_serves_through_the_pre_stop_delay() {
    let mut stage = Stage::serving(Plan {
        pre_stop_delay: Duration::from_secs(10),
        ..PLAN
    });
    assert!(stage.core.view().ready);
    stage.command(Command::Stop);
    let view = stage.core.view();
    assert_eq!((view.state, view.ready), (State::PreStop, false));
    assert_eq!(stage.drained(), [0_u64; 0]);
    assert!(stage.core.is_stopping(), "an upgrade is not begun");
    stage.die(1);
    assert_eq!(stage.spawned(), [(5, 0, 1)], "a dead worker is replaced");
    stage.get_ready([5]);
    stage.see(&[(2, 100, 0)]);
    assert_eq!(stage.recycled(), [0_u64; 0]);
    stage.command(Command::Scale(6, Some(RequestId(7))));
    assert_eq!(stage.failure(), Some("the server stops".to_owned()));
    stage.command(Command::Reload(Some(RequestId(7))));
    assert_eq!(stage.failure(), Some("the server stops".to_owned()));
    stage.pass(9.9);
    assert_eq!(
        (stage.drained(), stage.core.view().workers.len()),
        (vec![], 4)
    );
    stage.pass(0.2);
    let mut drained = stage.drained();
    drained.sort_unstable();
    assert_eq!(
        (drained, stage.core.view().state),
        (vec![2, 3, 4, 5], State::Stopping)
    );
}

#[test]
fn a_second_stop_skips_the_pre_stop_delay_and_a_third_the_drain() {
    let plan = Plan {
        pre_stop_delay: Duration::from_secs(10),
        ..PLAN
    };
    let mut stage = Stage::serving(plan);
    stage.command(Command::Stop);
    stage.command(Command::Stop);
    assert_eq!(stage.drained().len(), 4);
    stage.command(Command::Stop);
    assert!(stage.has(&Action::Kill(WorkerId(1))));
    let mut stage = Stage::serving(plan);
    stage.command(Command::Stop);
    stage.command(Command::StopNow);
    assert!(stage.has(&Action::Kill(WorkerId(4))));
    // A server without clients need not wait for a load balancer.
    let mut stage = Stage::boot(plan);
    stage.command(Command::Stop);
    assert_eq!(stage.drained().len(), 4);
}
