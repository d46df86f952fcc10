//! One external program of four does its worst with what it has: the notify socket and its
//! listening socket.

mod stage;

use stage::Stage;
use testkit::{LONG, Server, Setup, skipped, tool, wait_until};

/// Four Python servers, or a visible note that the test was skipped.
fn stage(test: &str, wrapper: Option<&str>) -> Option<Stage> {
    let Some(python) = tool("python3") else {
        skipped(test, "python3 is not installed");
        return None;
    };
    let mut setup: Setup = Server::setup(env!("CARGO_BIN_EXE_hostile"));
    if let Some(script) = wrapper {
        setup = setup.wrapped(["sh", "-c", script, "sh"]);
    }
    let program = testkit::root().join("tests/hostile/programs/hostile.py");
    let setup = setup
        .args(["--ready", "notify", "--start-timeout", "8s"])
        .env("PROGRAMS", "1")
        .env("GOOD", testkit::program("minimal.py"));
    Some(Stage::of(setup.program([python, program])))
}

fn notes(stage: &Stage) -> String {
    std::fs::read_to_string(stage.server.path("hostile.notes")).unwrap_or_default()
}

fn wait_for_end(stage: &Stage) {
    wait_until("the end of its acts", LONG, || {
        notes(stage).contains("end\n")
    });
}

#[test]
fn a_program_that_floods_the_notify_socket_is_killed() {
    let Some(mut stage) = stage("a flood of notices", None) else {
        return;
    };
    stage.enter("floods");
    stage.wait_for_lines("notices in a second; sending SIGKILL", 2);
    stage.wait_for_deaths("protocol", 2);
    stage.leave();
    stage.assert_unharmed();
}

#[test]
fn junk_on_the_notify_socket_says_nothing() {
    let Some(mut stage) = stage("junk for the notify socket", None) else {
        return;
    };
    stage.enter("sends-junk");
    let hostile = stage.wait_for_hostile_worker();
    wait_for_end(&stage);
    assert!(hostile.runs());
    stage.assert_answers();
    stage.leave();
    stage.assert_unharmed();
}

#[test]
fn descriptors_that_come_with_notices_go_nowhere() {
    // Few enough that those of one notice are more than are left.
    for wrapper in [None, Some("ulimit -n 120 && exec \"$@\"")] {
        let Some(mut stage) = stage("descriptors with notices", wrapper) else {
            return;
        };
        stage.enter("sends-descriptors");
        let hostile = stage.wait_for_hostile_worker();
        wait_for_end(&stage);
        wait_until("its last notice to be in the status", LONG, || {
            stage.server.status()["slots"][0].to_string().contains("99")
        });
        stage.assert_descriptors();
        assert!(hostile.runs(), "it is tolerated");
        stage.leave();
        stage.assert_unharmed();
    }
}

#[test]
fn a_program_that_speaks_for_its_siblings_is_not_believed() {
    let Some(mut stage) = stage("forged notices", None) else {
        return;
    };
    stage.enter("speaks-for-siblings");
    stage.wait_for_hostile_worker();
    wait_for_end(&stage);
    let (notes, status) = (notes(&stage), stage.server.status());
    println!("{notes}");
    for slot in &status["slots"].as_array().expect("slots")[1..] {
        assert!(!slot.to_string().contains("forged"), "{notes}\n{slot}");
    }
    assert!(
        notes.contains("join: Operation not permitted") && !notes.contains("done"),
        "{notes}"
    );
    stage.leave();
    stage.assert_unharmed();
}

#[test]
fn a_program_that_is_never_ready_but_says_so_is_killed() {
    let Some(mut stage) = stage("a slow start", None) else {
        return;
    };
    stage.enter("starts-never");
    stage.wait_for_deaths("start-timeout", 1);
    stage.leave();
    stage.assert_unharmed();
}
