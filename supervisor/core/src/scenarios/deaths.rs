//! Causes of worker exits, and what they mean for the slot.

use crate::fixtures::*;

const CLEAN: fn() -> ProcessEnd = || ProcessEnd {
    manner: Manner::Clean,
    ..ProcessEnd::unclean("exited with status 0", Cause::Exit)
};
const BY_SIGNAL: fn() -> ProcessEnd = || ProcessEnd {
    manner: Manner::AsAsked,
    ..ProcessEnd::unclean("killed by SIGQUIT", Cause::Signal)
};

impl Stage {
    fn end(&mut self, worker: u64, end: ProcessEnd) -> WorkerExit {
        self.tell(Event::Died(WorkerId(worker), end));
        let worker_exit = self.facts().find_map(|fact| match fact {
            Fact::Died(who, worker_exit) if who.worker == WorkerId(worker) => {
                Some(worker_exit.clone())
            }
            _ => None,
        });
        worker_exit.expect("every exit is reported")
    }
}

fn verdict(worker_exit: &WorkerExit) -> (Cause, Grade) {
    (worker_exit.cause, worker_exit.grade)
}

#[test]
fn a_worker_that_leaves_cleanly_after_a_while_has_not_failed() {
    let mut stage = Stage::serving(PLAN);
    for round in 0..10 {
        stage.pass(1.5);
        let occupant = stage
            .core
            .occupant(Slot(0), GenerationId(1))
            .expect("a worker")
            .id;
        let worker_exit = stage.end(occupant.0, CLEAN());
        assert_eq!(verdict(&worker_exit), (Cause::Left, Grade::Clean));
        assert_eq!(worker_exit.successor, Successor::New(Duration::ZERO));
        let new: Vec<u64> = stage.spawned().iter().map(|spawn| spawn.0).collect();
        assert_eq!(new.len(), 1, "round {round}: {:?}", stage.last);
        stage.get_ready(new);
    }
    assert_eq!(stage.core.view().state, State::Serving);
}

#[test]
fn a_worker_that_leaves_cleanly_at_once_backs_off() {
    let mut stage = Stage::serving(PLAN);
    let mut waits = Vec::new();
    for worker in [1, 3, 4] {
        stage.pass(0.9);
        let Successor::New(wait) = stage.end(worker, CLEAN()).successor else {
            panic!("it is replaced")
        };
        waits.push(wait);
        stage.pass(5.0);
        stage.get_ready([worker + 2, worker + 1]);
    }
    assert!(
        waits[0].is_zero() && !waits[1].is_zero() && !waits[2].is_zero(),
        "{waits:?}"
    );
}

#[test]
fn a_clean_end_before_ready_is_a_failure() {
    let mut stage = Stage::boot(PLAN);
    assert_eq!(
        verdict(&stage.end(1, CLEAN())),
        (Cause::Exit, Grade::Failure)
    );
}

#[test]
fn a_candidate_fails_by_a_clean_exit_too() {
    let mut stage = Stage::serving(PLAN);
    stage.pass(5.0);
    stage.reload(PLAN);
    stage.get_ready([3, 4]);
    stage.pass(1.5);
    let worker_exit = stage.end(3, CLEAN());
    assert_eq!(
        (worker_exit.cause, worker_exit.successor),
        (Cause::Left, Successor::Refused)
    );
    assert!(
        stage
            .failure()
            .is_some_and(|reason| reason.contains("status 0"))
    );
}

#[test]
fn the_signal_that_requests_a_drain_is_clean_after_a_request() {
    let mut stage = Stage::serving(PLAN);
    stage.pass(5.0);
    assert_eq!(
        verdict(&stage.end(1, BY_SIGNAL())),
        (Cause::Signal, Grade::Failure)
    );
    stage.command(Command::Resize(-1));
    assert_eq!(
        verdict(&stage.end(2, BY_SIGNAL())),
        (Cause::ScaleDown, Grade::Clean)
    );
}

#[test]
fn a_draining_worker_that_crashes_is_counted_as_a_crash() {
    let mut stage = Stage::serving(PLAN);
    stage.command(Command::Stop);
    let end = ProcessEnd::unclean("killed by SIGSEGV (core dumped)", Cause::Core);
    assert_eq!(verdict(&stage.end(1, end)), (Cause::Core, Grade::Unclean));
    assert_eq!(verdict(&stage.end(2, CLEAN())), (Cause::Stop, Grade::Clean));
}

#[test]
fn a_killed_worker_exits_for_the_reason_it_was_killed() {
    let killed = || ProcessEnd::unclean("killed by SIGKILL", Cause::Signal);
    let mut stage = Stage::serving(PLAN);
    stage.tell(Event::ProtocolViolation(WorkerId(1), "garbage".to_owned()));
    assert_eq!(
        verdict(&stage.end(1, killed())),
        (Cause::Protocol, Grade::Failure)
    );
    // Its replacement does not become ready in time.
    stage.pass(63.0);
    assert_eq!(
        verdict(&stage.end(3, killed())),
        (Cause::StartTimeout, Grade::Failure)
    );
    stage.command(Command::Resize(-1));
    stage.pass(31.0);
    assert_eq!(
        verdict(&stage.end(2, killed())),
        (Cause::DrainTimeout, Grade::Unclean)
    );
    stage.command(Command::StopNow);
    assert_eq!(
        verdict(&stage.end(4, killed())),
        (Cause::Stop, Grade::Clean)
    );
}

#[test]
fn a_hung_worker_exits_for_that_although_it_exits_by_itself() {
    let mut stage = Stage::serving(PLAN);
    stage.core.step(
        stage.now,
        Event::Observation(beats(&[(1, stage.now, 0), (2, stage.now, 0)])),
    );
    for _ in 0..400 {
        stage.now += Duration::from_millis(100);
        let now = stage.now;
        stage.tell(Event::Observation(beats(&[
            (1, Time::default(), 0),
            (2, now, 0),
        ])));
        if stage.has(&Action::Abort(WorkerId(1))) {
            break;
        }
    }
    let worker_exit = stage.end(1, CLEAN());
    assert_eq!(verdict(&worker_exit), (Cause::Hang, Grade::Failure));
    assert_eq!(worker_exit.successor, Successor::Known(WorkerId(3)));
}
