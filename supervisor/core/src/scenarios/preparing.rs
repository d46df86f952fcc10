//! A first start whose generation is not prepared yet.

use crate::fixtures::*;

fn preparing() -> Stage {
    let mut stage = Stage {
        core: Core::preparing(GenerationId(1), PLAN, 1),
        now: Time::from_millis(1000),
        last: Vec::new(),
    };
    stage.tell(Event::Tick);
    stage
}

fn spawns(stage: &Stage) -> usize {
    let spawn = |action: &&Action| matches!(action, Action::Spawn { .. });
    stage.last.iter().filter(spawn).count()
}

#[test]
fn no_worker_starts_before_the_first_generation_is_prepared() {
    let mut stage = preparing();
    stage.tell(Event::Observation(Observation::default()));
    assert_eq!(spawns(&stage), 0);
    assert_eq!(stage.core.being_prepared(), Some(GenerationId(1)));
    stage.tell(Event::Prepared(GenerationId(1), PLAN));
    assert_eq!(spawns(&stage), 2);
    assert_eq!(stage.core.being_prepared(), None);
}

#[test]
fn a_refused_first_generation_ends_the_server_with_the_reason() {
    let mut stage = preparing();
    stage.tell(Event::Refused(GenerationId(1), "why".to_owned()));
    assert!(
        stage
            .last
            .contains(&Action::Report(Fact::StartupFailed("why".to_owned())))
    );
    assert_eq!(stage.last.last(), Some(&Action::Exit(1)));
}

#[test]
fn a_stop_ends_a_server_whose_first_generation_is_not_prepared() {
    let mut stage = preparing();
    stage.tell(Event::Command(Command::Stop));
    assert_eq!(stage.last.last(), Some(&Action::Exit(0)));
}

#[test]
fn a_reload_waits_for_the_first_generation() {
    let mut stage = preparing();
    stage.tell(Event::Command(Command::Reload(None)));
    assert_eq!(stage.core.being_prepared(), Some(GenerationId(1)));
    stage.tell(Event::Prepared(GenerationId(1), PLAN));
    assert!(stage.last.contains(&Action::Prepare(GenerationId(2))));
}
