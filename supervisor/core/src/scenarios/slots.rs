//! Slot operations: how many slots, another worker in one, none in one.

use crate::fixtures::*;

const PLAN: Plan = Plan {
    workers: 4,
    max_workers: 8,
    max_unavailable: Share::Count(1),
    ..crate::fixtures::PLAN
};
const ASKED: RequestId = RequestId(7);

impl Stage {
    fn answer(&self) -> Option<Result<Done, String>> {
        self.answer_to(ASKED)
    }

    fn answer_to(&self, asked: RequestId) -> Option<Result<Done, String>> {
        self.last.iter().find_map(|action| match action {
            Action::Reply(request, answer) if *request == asked => Some(answer.clone()),
            _ => None,
        })
    }

    fn restart(&mut self, slot: u16) {
        self.command(Command::Restart(Slot(slot), Some(ASKED)));
    }

    fn empty(&mut self, slot: u16) {
        self.command(Command::Drain(Slot(slot), Some(ASKED)));
    }
}

fn refusal(answer: Option<Result<Done, String>>) -> String {
    answer.expect("an answer").expect_err("a refusal")
}

#[test]
fn scaling_answers_with_both_numbers_or_the_reason() {
    let mut stage = Stage::serving(PLAN);
    stage.command(Command::Scale(6, Some(ASKED)));
    assert_eq!(stage.answer(), Some(Ok(Done::Scaled { from: 4, to: 6 })));
    assert_eq!(stage.spawned(), [(5, 4, 1), (6, 5, 1)]);
    stage.command(Command::Scale(6, Some(ASKED)));
    assert_eq!(stage.answer(), Some(Ok(Done::Scaled { from: 6, to: 6 })));
    stage.command(Command::Scale(0, Some(ASKED)));
    assert_eq!(
        refusal(stage.answer()),
        "there can be 1 to 8 workers, not 0 (drain SLOT empties one)"
    );
    stage.command(Command::Scale(9, Some(ASKED)));
    assert_eq!(
        refusal(stage.answer()),
        "there can be 1 to 8 workers, not 9 (raise max-workers to go beyond)"
    );
    stage.command(Command::Scale(1, Some(ASKED)));
    assert_eq!(stage.drained(), [2, 3, 4, 5, 6]);
}

#[test]
fn a_restarted_worker_serves_until_its_successor_is_ready() {
    let mut stage = Stage::serving(PLAN);
    stage.restart(2);
    assert_eq!(stage.spawned(), [(5, 2, 1)]);
    assert_eq!((stage.drained(), stage.answer()), (vec![], None));
    stage.get_ready([5]);
    assert_eq!(
        stage.answer(),
        Some(Ok(Done::Restarted {
            slot: Slot(2),
            worker: WorkerId(5)
        }))
    );
    assert_eq!(stage.drained(), [3]);
    assert!(
        stage
            .facts()
            .any(|fact| matches!(fact, Fact::Draining(_, DrainReason::Restarted)))
    );
    assert!(
        !stage
            .last
            .iter()
            .any(|action| matches!(action, Action::Steer(_))),
        "nothing changes for clients"
    );
    stage.die(3);
    assert_eq!((stage.spawned(), stage.core.permits()), (vec![], (0, 1)));
}

#[test]
fn a_restart_whose_worker_cannot_start_changes_nothing() {
    let mut stage = Stage::serving(PLAN);
    stage.restart(2);
    stage.die(5);
    let why = "worker 5 (slot 2) exited with status 3, before it was ready";
    assert_eq!(refusal(stage.answer()), why);
    assert!(
        stage
            .facts()
            .any(|fact| matches!(fact, Fact::NotReplaced(who, _) if who.worker == WorkerId(3)))
    );
    assert_eq!((stage.spawned(), stage.drained()), (vec![], vec![]));
    assert_eq!(stage.core.permits(), (0, 1));
    assert_eq!(stage.core.view().state, State::Serving);
    // The crash of the remaining worker is its first.
    stage.die(3);
    assert_eq!(stage.spawned(), [(6, 2, 1)]);
}

#[test]
fn a_restart_whose_worker_never_becomes_ready_changes_nothing() {
    let mut stage = Stage::serving(PLAN);
    stage.restart(2);
    stage.pass(60.0);
    assert_eq!(
        refusal(stage.answer()),
        "worker 5 (slot 2) did not get ready within 60s"
    );
    assert_eq!(
        (stage.drained(), stage.has(&Action::Abort(WorkerId(5)))),
        (vec![], true)
    );
}

#[test]
fn restarts_wait_for_a_permit() {
    let mut stage = Stage::serving(PLAN);
    stage.restart(2);
    stage.command(Command::Restart(Slot(0), Some(RequestId(8))));
    assert_eq!(
        (stage.spawned(), stage.answer_to(RequestId(8))),
        (vec![], None)
    );
    stage.get_ready([5]);
    assert_eq!(stage.spawned(), [], "two are in slot 2 as yet");
    stage.die(3);
    assert_eq!(stage.spawned(), [(6, 0, 1)]);
    stage.get_ready([6]);
    let done = Done::Restarted {
        slot: Slot(0),
        worker: WorkerId(6),
    };
    assert_eq!(stage.answer_to(RequestId(8)), Some(Ok(done)));
}

#[test]
fn a_slot_that_waits_to_be_rolled_back_uses_a_permit_up() {
    let plan = Plan { surge: 1, ..PLAN };
    let mut stage = Stage::serving(plan);
    stage.reload(plan);
    stage.get_ready([5]);
    stage.pass(2.0);
    stage.die(1);
    assert_eq!(stage.spawned(), [(6, 1, 2)]);
    stage.die(6);
    assert_eq!(stage.spawned(), [(7, 0, 1)], "the rollback of slot 0");
    stage.die(7);
    assert_eq!(stage.spawned(), [(8, 0, 1)]);
    stage.die(8);
    assert_eq!(
        stage.spawned(),
        [],
        "slot 0 keeps the refused worker and waits"
    );
    stage.restart(2);
    assert_eq!((stage.spawned(), stage.answer()), (vec![], None));
}

#[test]
fn a_restart_of_a_slot_that_is_down_does_not_wait_for_its_back_off() {
    let mut stage = Stage::serving(PLAN);
    for worker in [3, 5, 6, 7] {
        stage.die(worker);
        stage.pass(if worker == 7 { 0.0 } else { 1.0 });
    }
    assert_eq!(stage.core.view().workers.len(), 3);
    stage.restart(2);
    assert_eq!(stage.spawned(), [(8, 2, 1)]);
    stage.get_ready([8]);
    assert_eq!(
        stage.answer(),
        Some(Ok(Done::Restarted {
            slot: Slot(2),
            worker: WorkerId(8)
        }))
    );
}

#[test]
fn a_worker_that_dies_while_its_successor_starts_is_succeeded_by_it() {
    let mut stage = Stage::serving(PLAN);
    stage.restart(2);
    stage.die(3);
    assert_eq!(stage.spawned(), []);
    let follows = |fact: &Fact| match fact {
        Fact::Died(_, worker_exit) => Some(worker_exit.successor),
        _ => None,
    };
    assert_eq!(
        stage.facts().find_map(follows),
        Some(Successor::Known(WorkerId(5)))
    );
    stage.get_ready([5]);
    assert_eq!(
        stage.answer(),
        Some(Ok(Done::Restarted {
            slot: Slot(2),
            worker: WorkerId(5)
        }))
    );
}

#[test]
fn a_drained_slot_stays_empty_until_it_is_restarted() {
    let mut stage = Stage::serving(PLAN);
    stage.empty(1);
    assert!(stage.has(&Action::Steer(vec![Slot(0), Slot(2), Slot(3)])));
    assert_eq!((stage.drained(), stage.answer()), (vec![2], None));
    let empties = |action: &Action| {
        matches!(
            action,
            Action::Drain {
                empty_queue: true,
                ..
            }
        )
    };
    assert!(
        stage.last.iter().any(empties),
        "what waits in its queue is accepted first"
    );
    stage.die(2);
    assert_eq!(stage.answer(), Some(Ok(Done::Drained { slot: Slot(1) })));
    assert_eq!(
        stage
            .pass(300.0)
            .iter()
            .filter(|action| matches!(action, Action::Spawn { .. }))
            .count(),
        0
    );
    assert_eq!(stage.core.view().held, [Slot(1)]);
    assert_eq!(stage.core.view().state, State::Serving, "it is not missed");
    stage.restart(1);
    assert_eq!(stage.spawned(), [(5, 1, 1)]);
    stage.get_ready([5]);
    assert_eq!(
        stage.answer(),
        Some(Ok(Done::Restarted {
            slot: Slot(1),
            worker: WorkerId(5)
        }))
    );
    assert!(stage.has(&Action::Steer((0..4).map(Slot).collect())));
}

#[test]
fn a_reload_fills_a_drained_slot_if_it_is_committed() {
    let mut stage = Stage::serving(PLAN);
    stage.empty(1);
    stage.die(2);
    stage.reload(PLAN);
    stage.get_ready([5, 6, 7]);
    stage.die(8);
    assert_eq!(
        stage.core.view().held,
        [Slot(1)],
        "a bad reload changes nothing"
    );
    for worker in [5, 6, 7] {
        stage.die(worker);
    }
    stage.reload(PLAN);
    stage.get_ready([9, 10, 11, 12]);
    stage.pass(2.0);
    assert_eq!(
        (stage.core.view().held, stage.core.view().rotation.len()),
        (vec![], 4)
    );
    assert_eq!(stage.drained(), [1, 3, 4]);
}

#[test]
fn scaling_past_a_drained_slot_fills_it_when_it_comes_back() {
    let mut stage = Stage::serving(PLAN);
    stage.empty(3);
    stage.die(4);
    stage.command(Command::Resize(-1));
    stage.command(Command::Resize(1));
    assert_eq!(stage.spawned(), [(5, 3, 1)]);
}

#[test]
fn a_scale_down_that_would_leave_drained_slots_only_fills_them() {
    let mut stage = Stage::serving(PLAN);
    stage.empty(0);
    stage.die(1);
    stage.command(Command::Scale(1, Some(ASKED)));
    assert_eq!(stage.spawned(), [(5, 0, 1)]);
    assert!(stage.facts().any(|fact| *fact == Fact::Released(Slot(0))));
}

#[test]
fn the_last_slot_that_serves_is_not_drained() {
    let mut stage = Stage::serving(Plan { workers: 1, ..PLAN });
    stage.empty(0);
    let why =
        "slot 0 is the only one with a worker that serves (scale up first, or stop the server)";
    assert_eq!(refusal(stage.answer()), why);
    assert_eq!(stage.drained(), [] as [u64; 0]);
}

#[test]
fn a_drained_slot_uses_its_permit_up() {
    let mut stage = Stage::serving(PLAN);
    stage.empty(0);
    stage.die(1);
    stage.empty(1);
    let why = "1 slot held empty already, and max-unavailable is 1 (restart-worker SLOT fills one that is held; or raise max-unavailable)";
    assert_eq!(refusal(stage.answer()), why);
    stage.restart(2);
    assert_eq!(refusal(stage.answer()), why);
    assert_eq!((stage.spawned(), stage.drained()), (vec![], vec![]));
}

#[test]
fn a_drained_slot_with_stranded_connections_gets_a_rescue_worker_and_its_answer() {
    let mut stage = Stage::serving(Plan {
        steals: false,
        ..PLAN
    });
    stage.empty(1);
    stage.die(2);
    let mut observation = beats(&[(1, stage.now, 0), (3, stage.now, 0), (4, stage.now, 0)]);
    observation.queues = Some(vec![(Slot(1), 1)]);
    stage.tell(Event::Observation(observation.clone()));
    assert_eq!(stage.spawned(), [(5, 1, 1)]);
    stage.get_ready([5]);
    assert!(!stage.core.view().rotation.contains(&Slot(1)));
    stage.empty(1);
    assert_eq!(stage.answer(), Some(Ok(Done::Drained { slot: Slot(1) })));
    observation.queues = Some(vec![(Slot(1), 0)]);
    stage.tell(Event::Observation(observation));
    assert_eq!(stage.drained(), [5]);
}

#[test]
fn a_reload_wins_over_a_restart_under_way() {
    let mut stage = Stage::serving(PLAN);
    stage.restart(2);
    stage.command(Command::Reload(None));
    assert_eq!(stage.answer(), None, "it may still be refused");
    stage.tell(Event::Prepared(GenerationId(2), PLAN));
    assert!(refusal(stage.answer()).starts_with("a reload is under way"));
    assert_eq!(stage.drained(), [5], "only one generation more is needed");
    assert_eq!(stage.spawned(), [(6, 0, 2), (7, 1, 2), (8, 3, 2)]);
    stage.die(5);
    assert_eq!(stage.spawned(), [(9, 2, 2)]);
    stage.restart(2);
    assert!(refusal(stage.answer()).starts_with("a reload is under way"));
}

#[test]
fn operations_on_missing_slots_and_stopping_servers_are_refused_with_a_reason() {
    let mut stage = Stage::serving(PLAN);
    stage.restart(4);
    assert_eq!(
        refusal(stage.answer()),
        "there is no slot 4 (they are 0 to 3)"
    );
    stage.restart(0);
    stage.command(Command::DrainAll);
    assert_eq!(refusal(stage.answer()), "all workers were asked to drain");
    stage.empty(0);
    assert!(refusal(stage.answer()).contains("reload to start them again"));
    stage.command(Command::Stop);
    stage.restart(0);
    assert_eq!(refusal(stage.answer()), "the server stops");
}
