//! Each flow of the core as a short story.

mod autoscale;
mod deaths;
mod preparing;
mod ready;
mod recycle;
mod slots;
mod stalls;
mod stranded;

use crate::fixtures::*;

#[test]
fn a_start_fills_every_slot_and_is_ready_when_all_workers_are() {
    let mut stage = Stage::boot(PLAN);
    assert_eq!(stage.spawned(), [(1, 0, 1), (2, 1, 1)]);
    stage.get_ready([1]);
    assert!(
        !stage
            .facts()
            .any(|fact| matches!(fact, Fact::ServerReady(..)))
    );
    assert!(stage.has(&Action::Steer(vec![Slot(0)])));
    stage.get_ready([2]);
    assert!(
        stage
            .facts()
            .any(|fact| *fact == Fact::ServerReady(GenerationId(1), 2))
    );
    assert!(stage.has(&Action::Steer(vec![Slot(0), Slot(1)])));
}

#[test]
fn a_server_whose_workers_can_never_start_exits_with_the_reason() {
    let mut stage = Stage::boot(PLAN);
    stage.die(1);
    stage.die(2);
    assert!(
        !stage
            .last
            .iter()
            .any(|action| matches!(action, Action::Exit(_)))
    );
    stage.die(3);
    assert_eq!(startup_failure(&stage), None, "worker 4 may become ready");
    stage.die(4);
    assert_eq!(
        startup_failure(&stage).as_deref(),
        Some("worker 4 (slot 1) exited with status 3, before it was ready")
    );
    assert!(stage.has(&Action::Exit(1)));
}

fn startup_failure(stage: &Stage) -> Option<String> {
    stage.facts().find_map(|fact| match fact {
        Fact::StartupFailed(reason) => Some(reason.clone()),
        _ => None,
    })
}

#[test]
fn the_first_start_waits_for_a_slow_worker_whatever_the_others_do() {
    let mut stage = Stage::boot(PLAN);
    stage.die(1);
    stage.die(3);
    stage.pass(1.0);
    stage.die(4);
    stage.pass(30.0);
    assert_eq!(stage.spawned(), [], "no attempt after the last one");
    assert_eq!(startup_failure(&stage), None, "worker 2 is still starting");
    stage.get_ready([2]);
    assert_eq!(
        stage.spawned().len(),
        1,
        "worker 2 is ready, so it can work: slot 0 is tried again"
    );
    let mut stage = Stage::boot(PLAN);
    stage.die(1);
    stage.die(3);
    stage.pass(1.0);
    stage.die(4);
    stage.pass(61.0);
    let late = "worker 2 (slot 1) did not get ready within 60s";
    assert!(
        startup_failure(&stage).is_some_and(|reason| reason.starts_with(late)),
        "{:?}",
        stage.last
    );
}

#[test]
fn a_start_that_cannot_be_observed_is_a_failed_start() {
    let mut stage = Stage::serving(PLAN);
    stage.reload(PLAN);
    stage.tell(Event::Unobservable(WorkerId(3), "is unseen".to_owned()));
    assert_eq!(
        stage.failure().as_deref(),
        Some("worker 3 (slot 0) is unseen")
    );
    assert!(stage.has(&Action::Kill(WorkerId(3))));
    stage.tell(Event::Died(
        WorkerId(3),
        ProcessEnd::unclean("killed by SIGKILL", Cause::Signal),
    ));
    let exit = stage.facts().find_map(|fact| match fact {
        Fact::Died(_, exit) => Some((exit.cause, exit.how.clone())),
        _ => None,
    });
    assert_eq!(
        exit,
        Some((
            Cause::StartTimeout,
            "killed by SIGKILL: is unseen".to_owned()
        ))
    );
}

#[test]
fn the_first_death_is_replaced_at_once_and_the_next_one_waits() {
    let mut stage = Stage::serving(PLAN);
    stage.die(1);
    assert_eq!(stage.spawned(), [(3, 0, 1)]);
    assert!(
        !stage
            .last
            .iter()
            .any(|action| matches!(action, Action::Steer(_))),
        "its queue waits for it"
    );
    stage.die(3);
    assert_eq!(stage.spawned(), []);
    assert!(
        stage.has(&Action::Steer(vec![Slot(1)])),
        "the slot stays empty for a while: steered away"
    );
    assert!(
        stage
            .facts()
            .any(|fact| matches!(fact, Fact::Degraded(1, _)))
    );
    stage.pass(0.1);
    assert_eq!(stage.spawned(), [(4, 0, 1)]);
    stage.get_ready([4]);
    assert!(stage.facts().any(|fact| *fact == Fact::Recovered));
    assert!(stage.has(&Action::Steer(vec![Slot(0), Slot(1)])));
}

#[test]
fn a_crash_loop_never_ends_the_server() {
    let mut stage = Stage::serving(PLAN);
    for _ in 0..200 {
        for worker in stage.core.view().workers {
            stage.die(worker.worker.0);
        }
        stage.pass(31.0);
        assert!(
            !stage
                .last
                .iter()
                .any(|action| matches!(action, Action::Exit(_)))
        );
    }
    assert_eq!(stage.core.view().state, State::Degraded);
}

#[test]
fn a_good_reload_drains_the_old_workers_only_after_min_ready() {
    let mut stage = Stage::serving(PLAN);
    stage.reload(PLAN);
    assert_eq!(stage.spawned(), [(3, 0, 2), (4, 1, 2)]);
    stage.get_ready([3, 4]);
    assert_eq!(stage.drained(), [] as [u64; 0]);
    stage.pass(1.9);
    assert_eq!(stage.drained(), [] as [u64; 0]);
    stage.pass(0.2);
    assert_eq!(stage.drained(), [1, 2]);
    assert!(stage.has(&Action::Commit(GenerationId(2))));
    assert!(!stage.has(&RELOADED));
    stage.die(1);
    assert!(!stage.has(&RELOADED));
    stage.die(2);
    assert!(stage.has(&RELOADED));
    assert!(stage.has(&Action::Forget(GenerationId(1))));
}

const RELOADED: Action = Action::Reply(RequestId(7), Ok(Done::Reloaded(GenerationId(2))));

/// Returns a server whose reload was committed just now, with old workers 1 and 2.
fn quiescing() -> Stage {
    let mut stage = Stage::serving(PLAN);
    stage.reload(PLAN);
    stage.get_ready([3, 4]);
    stage.pass(2.0);
    assert_eq!(stage.drained(), [1, 2]);
    assert!(!stage.has(&RELOADED));
    stage
}

#[test]
fn a_reload_is_over_when_the_old_workers_accept_nothing_more() {
    let mut stage = quiescing();
    stage.tell(Event::StoppedAccepting(WorkerId(1)));
    assert!(!stage.has(&RELOADED));
    stage.tell(Event::StoppedAccepting(WorkerId(2)));
    assert!(stage.has(&RELOADED), "although both still drain");
    assert!(
        stage
            .facts()
            .any(|fact| *fact == Fact::Reloaded(GenerationId(2), 2))
    );
}

#[test]
fn a_program_that_never_reports_that_it_stopped_accepting_has_a_second() {
    let mut stage = quiescing();
    stage.pass(0.9);
    assert!(!stage.has(&RELOADED));
    stage.pass(0.2);
    assert!(stage.has(&RELOADED));
}

#[test]
fn a_stop_reports_a_committed_reload_first() {
    for command in [Command::Stop, Command::StopNow, Command::DrainAll] {
        let mut stage = quiescing();
        stage.command(command);
        let reloaded = |fact: &Fact| matches!(fact, Fact::Reloaded(..));
        let stops = |fact: &Fact| matches!(fact, Fact::Stopping(_) | Fact::DrainingAll);
        let first = stage.facts().find(|fact| reloaded(fact) || stops(fact));
        assert!(first.is_some_and(reloaded), "{command:?}: {:?}", stage.last);
        assert!(stage.has(&RELOADED));
    }
}

#[test]
fn a_refused_configuration_changes_nothing() {
    let mut stage = Stage::serving(PLAN);
    stage.command(Command::Reload(Some(RequestId(7))));
    stage.tell(Event::Refused(GenerationId(2), "line 3: no".to_owned()));
    assert_eq!(stage.failure().as_deref(), Some("line 3: no"));
    assert_eq!((stage.spawned(), stage.drained()), (vec![], vec![]));
    stage.reload(PLAN);
    stage.get_ready([3, 4]);
    stage.pass(2.0);
    assert_eq!(stage.drained(), [1, 2], "a later good reload works");
}

#[test]
fn a_program_that_exits_at_start_is_rolled_back() {
    let mut stage = Stage::serving(PLAN);
    stage.reload(PLAN);
    stage.get_ready([3]);
    stage.tell(Event::Failed(WorkerId(4), "no database".to_owned()));
    stage.die(4);
    let reason = "worker 4 (slot 1) exited with status 3: no database, before it was ready";
    assert_eq!(stage.failure().as_deref(), Some(reason));
    assert_eq!(
        stage.drained(),
        [3],
        "the old worker of slot 0 serves, so the new one can go"
    );
    stage.die(3);
    assert!(stage.has(&Action::Forget(GenerationId(2))));
}

#[test]
fn a_program_that_never_becomes_ready_is_rolled_back() {
    let mut stage = Stage::serving(PLAN);
    stage.reload(PLAN);
    stage.get_ready([3]);
    stage.pass(60.0);
    let reason = "worker 4 (slot 1) did not get ready within 60s";
    assert_eq!(stage.failure().as_deref(), Some(reason));
    assert!(stage.has(&Action::Abort(WorkerId(4))));
    assert_eq!(stage.drained(), [3]);
}

#[test]
fn a_program_that_dies_before_min_ready_is_rolled_back() {
    let mut stage = Stage::serving(PLAN);
    stage.reload(PLAN);
    stage.get_ready([3, 4]);
    stage.pass(1.0);
    stage.die(3);
    assert_eq!(
        stage.failure().as_deref(),
        Some("worker 3 (slot 0) exited with status 3, 1.0s after it was ready")
    );
    assert_eq!(stage.drained(), [4]);
    assert_eq!(stage.core.view().generation, GenerationId(1));
}

#[test]
fn a_rolling_reload_that_fails_late_brings_the_old_generation_back() {
    let plan = Plan { surge: 1, ..PLAN };
    let mut stage = Stage::serving(plan);
    stage.reload(plan);
    assert_eq!(stage.spawned(), [(3, 0, 2)]);
    stage.get_ready([3]);
    stage.pass(2.0);
    assert_eq!(stage.drained(), [1]);
    assert_eq!(
        stage.spawned(),
        [],
        "the next batch waits until the old worker is gone"
    );
    stage.die(1);
    assert_eq!(stage.spawned(), [(4, 1, 2)]);
    stage.die(4);
    assert!(stage.failure().is_some());
    assert_eq!(
        stage.spawned(),
        [(5, 0, 1)],
        "slot 0 gets a worker of the old generation"
    );
    assert_eq!(
        stage.drained(),
        [] as [u64; 0],
        "and keeps the new one until that one is ready"
    );
    stage.get_ready([5]);
    assert_eq!(stage.drained(), [3]);
}

#[test]
fn reloads_coalesce_and_the_last_one_is_honoured() {
    let mut stage = Stage::serving(PLAN);
    stage.reload(PLAN);
    for _ in 0..25 {
        stage.command(Command::Reload(None));
        assert_eq!(stage.last, []);
    }
    stage.get_ready([3, 4]);
    stage.pass(2.0);
    assert!(
        stage.facts().any(|fact| *fact == Fact::ReloadWaits),
        "two generations are enough"
    );
    stage.die(1);
    stage.die(2);
    assert!(stage.has(&Action::Prepare(GenerationId(3))));
    stage.tell(Event::Prepared(GenerationId(3), PLAN));
    stage.get_ready([5, 6]);
    stage.pass(2.0);
    stage.die(3);
    stage.die(4);
    assert!(
        !stage
            .last
            .iter()
            .any(|action| matches!(action, Action::Prepare(_))),
        "25 are one"
    );
    assert_eq!(stage.core.view().generation, GenerationId(3));
}

#[test]
fn a_reload_to_fewer_workers_retires_slots_and_to_more_opens_them() {
    let mut stage = Stage::serving(PLAN);
    stage.reload(Plan { workers: 1, ..PLAN });
    assert_eq!(stage.spawned(), [(3, 0, 2)]);
    stage.get_ready([3]);
    stage.pass(2.0);
    assert_eq!(stage.drained(), [1, 2]);
    assert!(stage.last.iter().any(|action| matches!(
        action,
        Action::Drain {
            worker: WorkerId(2),
            empty_queue: true,
            ..
        }
    )));
    assert!(stage.last.iter().any(|action| matches!(
        action,
        Action::Drain {
            worker: WorkerId(1),
            empty_queue: false,
            ..
        }
    )));
    let steer = stage
        .last
        .iter()
        .position(|action| *action == Action::Steer(vec![Slot(0)]))
        .expect("steered");
    let drain = stage
        .last
        .iter()
        .position(|action| matches!(action, Action::Drain { .. }))
        .expect("drained");
    assert!(
        steer < drain,
        "new connections go elsewhere before a worker stops accepting"
    );
    stage.die(1);
    stage.die(2);
    stage.reload(Plan { workers: 3, ..PLAN });
    assert_eq!(stage.spawned(), [(4, 0, 3), (5, 1, 3), (6, 2, 3)]);
}

#[test]
fn a_failed_reload_keeps_the_old_worker_count() {
    let mut stage = Stage::serving(PLAN);
    stage.reload(Plan { workers: 4, ..PLAN });
    stage.get_ready([3, 4, 5]);
    stage.die(6);
    assert_eq!(stage.drained(), [3, 4, 5]);
    assert_eq!(stage.core.view().open, 2);
}

#[test]
fn scaling_goes_up_to_the_most_and_down_to_one() {
    let mut stage = Stage::serving(PLAN);
    stage.command(Command::Resize(1));
    assert_eq!(stage.spawned(), [(3, 2, 1)]);
    stage.command(Command::Resize(5));
    assert_eq!(stage.spawned(), [(4, 3, 1)]);
    stage.command(Command::Resize(1));
    assert!(stage.facts().any(|fact| matches!(fact, Fact::Ignored(..))));
    stage.get_ready([3, 4]);
    stage.command(Command::Resize(-9));
    assert_eq!(stage.drained(), [2, 3, 4]);
    assert!(stage.has(&Action::Steer(vec![Slot(0)])));
    stage.command(Command::Resize(1));
    assert_eq!(
        stage.spawned(),
        [(5, 1, 1)],
        "a slot is filled again beside the worker that drains in it"
    );
}

#[test]
fn a_hung_worker_is_aborted_replaced_and_killed() {
    let mut stage = Stage::serving(PLAN);
    stage.now = Time::from_millis(30_000);
    // Worker 2 sends heartbeats, worker 1 does not; the supervisor was awake all the time.
    stage.core.deadline = Some(stage.now);
    stage.tell(Event::Observation(beats(&[(
        2,
        Time::from_millis(29_500),
        0,
    )])));
    assert!(stage.has(&Action::Abort(WorkerId(1))));
    assert!(stage.facts().any(|fact| matches!(fact, Fact::Hung(..))));
    assert_eq!(stage.spawned(), [(3, 0, 1)]);
    stage.get_ready([3]);
    stage.pass(2.0);
    assert!(stage.has(&Action::Kill(WorkerId(1))));
}

#[test]
fn a_heartbeat_from_the_future_does_not_save_a_hung_worker() {
    let mut stage = Stage::serving(PLAN);
    // It stays where it is, and every observation finds it.
    for ms in [1_000, 10_000, 20_000, 30_000] {
        assert!(!stage.has(&Action::Abort(WorkerId(1))));
        stage.now = Time::from_millis(ms);
        stage.core.deadline = Some(stage.now);
        stage.tell(Event::Observation(beats(&[
            (1, Time::from_millis(1 << 40), 0),
            (2, stage.now, 0),
        ])));
    }
    assert!(stage.has(&Action::Abort(WorkerId(1))));
}

#[test]
fn a_supervisor_that_was_stopped_kills_no_worker() {
    let mut stage = Stage::serving(PLAN);
    stage.reload(PLAN);
    stage.now = Time::from_millis(600_000);
    stage.tell(Event::Tick);
    assert!(
        stage
            .facts()
            .any(|fact| matches!(fact, Fact::SupervisorStalled(_)))
    );
    assert!(
        !stage
            .last
            .iter()
            .any(|action| matches!(action, Action::Abort(_) | Action::Kill(_))),
        "{:?}",
        stage.last
    );
}

#[test]
fn a_graceful_stop_drains_then_kills_late_workers() {
    let mut stage = Stage::serving(PLAN);
    stage.command(Command::Stop);
    assert_eq!(stage.drained(), [1, 2]);
    stage.die(1);
    assert!(!stage.has(&Action::Exit(0)));
    stage.pass(30.0);
    assert!(stage.has(&Action::Kill(WorkerId(2))));
    stage.die(2);
    assert!(stage.has(&Action::Exit(0)));
    assert_eq!(stage.tell(Event::Tick), []);
}

#[test]
fn a_second_stop_is_at_once() {
    let mut stage = Stage::serving(PLAN);
    stage.command(Command::Stop);
    stage.command(Command::Stop);
    assert!(stage.has(&Action::Kill(WorkerId(1))) && stage.has(&Action::Kill(WorkerId(2))));
}

#[test]
fn stop_wins_over_a_reload_whichever_comes_first() {
    let mut stage = Stage::serving(PLAN);
    stage.reload(PLAN);
    stage.get_ready([3]);
    stage.command(Command::Stop);
    assert_eq!(stage.failure().as_deref(), Some("the server stops"));
    assert_eq!(stage.drained(), [1, 2, 3, 4]);
    stage.command(Command::Reload(Some(RequestId(7))));
    assert_eq!(stage.failure().as_deref(), Some("the server stops"));
    assert_eq!(stage.spawned(), []);
}

#[test]
fn draining_all_keeps_the_server_and_a_reload_fills_it_again() {
    let mut stage = Stage::serving(PLAN);
    stage.command(Command::DrainAll);
    assert_eq!(stage.drained(), [1, 2]);
    stage.die(1);
    stage.die(2);
    assert_eq!(stage.spawned(), []);
    stage.reload(PLAN);
    stage.get_ready([3, 4]);
    stage.pass(2.0);
    assert_eq!(stage.core.view().state, State::Serving);
}

#[test]
fn a_worker_that_breaks_the_protocol_is_killed_and_replaced() {
    let mut stage = Stage::serving(PLAN);
    stage.tell(Event::ProtocolViolation(
        WorkerId(1),
        "sent garbage".to_owned(),
    ));
    assert!(stage.has(&Action::Kill(WorkerId(1))));
    assert_eq!(stage.spawned(), [(3, 0, 1)]);
}

#[test]
fn a_reload_can_mend_a_first_start_that_is_stuck() {
    let mut stage = Stage::boot(PLAN);
    stage.get_ready([1]);
    for _ in 0..5 {
        let stuck = stage
            .core
            .view()
            .workers
            .iter()
            .find(|worker| worker.slot == Slot(1))
            .map(|worker| worker.worker.0);
        stage.die(stuck.expect("spawned"));
        stage.pass(31.0);
    }
    assert_eq!(stage.core.view().state, State::Degraded);
    stage.reload(PLAN);
    let new: Vec<u64> = stage.spawned().iter().map(|spawn| spawn.0).collect();
    stage.get_ready(new);
    stage.pass(2.0);
    assert!(
        stage
            .facts()
            .any(|fact| matches!(fact, Fact::ServerReady(..)))
    );
}

#[test]
fn a_worker_that_leaves_unasked_is_replaced_while_it_drains() {
    let mut stage = Stage::serving(PLAN);
    stage.tell(Event::StoppedAccepting(WorkerId(1)));
    assert_eq!(stage.spawned(), [(3, 0, 1)]);
    assert_eq!(stage.drained(), [] as [u64; 0], "it drains already");
    stage.get_ready([3]);
    stage.die(1);
    assert!(stage.facts().any(|fact| matches!(fact, Fact::Died(..))));
}

#[test]
fn time_in_which_the_machine_stood_still_proves_nothing() {
    let mut stage = Stage::serving(PLAN);
    stage.reload(PLAN);
    stage.get_ready([3, 4]);
    stage.pass(1.0);
    stage.now += Duration::from_millis(1900);
    stage.tell(Event::Tick);
    assert_eq!(
        stage.drained(),
        [] as [u64; 0],
        "2.9 s after ready, of which 1.9 prove nothing"
    );
    stage.pass(2.0);
    assert_eq!(stage.drained(), [1, 2]);
}
