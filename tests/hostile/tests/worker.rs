//! One Rust worker of four does its worst. The others serve on without a failure, and the
//! supervisor neither blocks, dies, grows nor believes it.

mod stage;

use nix::sys::signal::Signal;
use stage::Stage;
use std::time::Duration;
use testkit::load::{Failure, Plan, run};
use testkit::{LONG, process, wait_until};

/// What a hostile worker does, what is logged of it, and what its death counts as.
type Row = (&'static str, &'static str, &'static str);

/// The hostile worker is found out and killed, and so is the next one; when there are no more, the
/// server is healthy.
fn ends(start_timeout: &str, rows: &[Row]) {
    for (kind, line, cause) in rows {
        println!("{kind}");
        let mut stage = Stage::new(&["--start-timeout", start_timeout, "--hang-timeout", "3s"]);
        stage.enter(kind);
        stage.wait_for_lines(line, 2);
        stage.wait_for_deaths(cause, 2);
        stage.assert_answers();
        stage.leave();
        stage.assert_unharmed();
    }
}

#[test]
fn a_worker_that_floods_is_killed() {
    ends(
        "10s",
        &[
            (
                "floods-status",
                "sent more than 100 messages in a second; sending SIGKILL",
                "protocol",
            ),
            ("floods-garbage", "sending SIGKILL", "protocol"),
            (
                "floods-nothing",
                "closed its channel and went on living; sending SIGKILL",
                "protocol",
            ),
        ],
    );
}

#[test]
fn a_worker_that_stalls_at_its_start_is_killed() {
    ends(
        "1s",
        &[
            ("says-nothing", "did not get ready within", "start-timeout"),
            (
                "says-hello-only",
                "did not get ready within",
                "start-timeout",
            ),
            ("fails-and-stays", "will [31mnotI", "start-timeout"),
        ],
    );
}

#[test]
fn a_worker_that_speaks_out_of_phase_is_killed() {
    ends(
        "10s",
        &[
            (
                "ready-before-hello",
                "said Ready out of phase (Silent); sending SIGKILL",
                "protocol",
            ),
            (
                "ready-twice",
                "said Ready out of phase (Ready); sending SIGKILL",
                "protocol",
            ),
            (
                "hello-twice",
                "out of phase (Greeted); sending SIGKILL",
                "protocol",
            ),
            (
                "hello-when-ready",
                "out of phase (Ready); sending SIGKILL",
                "protocol",
            ),
            (
                "failed-after-ready",
                "out of phase (Ready); sending SIGKILL",
                "protocol",
            ),
            (
                "another-protocol",
                "speaks protocol 9999, this supervisor",
                "protocol",
            ),
        ],
    );
}

#[test]
fn a_worker_that_sends_no_message_is_killed() {
    ends(
        "10s",
        &[
            ("trailing-bytes", "sending SIGKILL", "protocol"),
            ("oversized", "sending SIGKILL", "protocol"),
            ("long-length", "sending SIGKILL", "protocol"),
            (
                "empty-packet",
                "closed its channel and went on living; sending SIGKILL",
                "protocol",
            ),
        ],
    );
}

#[test]
fn a_worker_that_closes_its_channel_and_lives_is_killed() {
    ends(
        "10s",
        &[
            (
                "closes-its-channel",
                "closed its channel and went on living; sending SIGKILL",
                "protocol",
            ),
            (
                "stops-writing",
                "closed its channel and went on living; sending SIGKILL",
                "protocol",
            ),
            (
                "closes-everything",
                "closed its channel and went on living; sending SIGKILL",
                "protocol",
            ),
        ],
    );
}

#[test]
fn a_worker_that_shuts_its_listening_socket_down_is_killed_and_its_slot_serves_again() {
    for accept in ["steal", "own"] {
        let mut stage = Stage::new(&["--accept", accept]);
        stage.enter("shuts-its-sockets");
        stage.wait_for_lines(
            "a listening socket of its slot was shut down; sending SIGKILL",
            2,
        );
        stage.wait_for_deaths("protocol", 2);
        stage.assert_answers();
        stage.leave();
        // The kernel resets the connections in that queue, and no others.
        let report = stage.end_load_whatever();
        let resets = [
            Failure::ConnectReset,
            Failure::WriteReset,
            Failure::ReadReset,
            Failure::CloseReset,
            Failure::EofEarly,
        ];
        let reset: u64 = resets.map(|failure| report.count(failure)).iter().sum();
        assert_eq!(report.failed(), reset, "{report}");
        run(&Plan::fresh(&stage.server.address(), 8).count(400)).assert_flawless();
        let status = stage.server.status();
        let slot = &status["slots"][0]["workers"][0]["scoreboard"];
        assert!(
            slot["connections"].as_u64() > Some(0),
            "slot 0 gets its share: {status}"
        );
    }
}

#[test]
fn lies_on_the_scoreboard_do_not_save_a_hung_worker() {
    ends(
        "10s",
        &[
            ("beats-in-the-future", "missed its heartbeat for", "hang"),
            ("fills-its-row", "missed its heartbeat for", "hang"),
            ("scribbles", "missed its heartbeat for", "hang"),
            ("stops-itself", "missed its heartbeat for", "hang"),
        ],
    );
}

#[test]
fn counters_that_go_back_and_forth_stay_numbers_and_affect_no_other_slot() {
    let mut stage = Stage::new(&[]);
    stage.enter("counts-back-and-forth");
    stage.wait_for_hostile_worker();
    let most = |stage: &Stage| stage.server.status()["slots"][0]["totals"]["requests"].as_u64();
    wait_until("the largest number", LONG, || {
        most(&stage) == Some(u64::MAX)
    });
    for _ in 0..10 {
        let status = stage.server.status();
        for slot in status["slots"].as_array().expect("slots") {
            let totals = [&slot["totals"]["requests"], &slot["totals"]["connections"]];
            assert!(totals.iter().all(|number| number.is_u64()), "{slot}");
            if slot["slot"] != 0 {
                assert!(
                    totals.iter().all(|number| number.as_u64() < Some(1 << 32)),
                    "a sibling's: {slot}"
                );
            }
        }
    }
    stage.leave();
    // Two of them together are no more than the largest number.
    assert!(most(&stage).is_some());
    stage.assert_unharmed();
}

#[test]
fn descriptors_that_come_with_messages_go_nowhere() {
    let mut stage = Stage::new(&[]);
    stage.enter("sends-descriptors");
    let hostile = stage.wait_for_hostile_worker();
    stage.load().wait_for_more(500);
    stage.assert_descriptors();
    assert!(hostile.runs(), "it is tolerated");
    stage.leave();
    stage.assert_unharmed();
}

#[test]
fn a_worker_that_does_not_hear_is_killed_when_it_is_to_drain() {
    let mut stage = Stage::new(&["--graceful-timeout", "5s"]);
    stage.enter("stops-reading");
    let hostile = stage.wait_for_hostile_worker();
    stage.send_no_more();
    stage.server.reload();
    stage
        .server
        .wait_for_log("closed its channel and went on living");
    wait_until("its end", LONG, || !hostile.runs());
    stage.leave();
    stage.assert_unharmed();
}

#[test]
fn a_worker_that_ignores_every_request_is_killed_at_the_deadline() {
    for (kind, reload) in [("ignores-requests", true), ("drains-for-ever", false)] {
        println!("{kind}");
        let mut stage = Stage::new(&["--graceful-timeout", "5s"]);
        stage.enter(kind);
        let hostile = stage.wait_for_hostile_worker();
        stage.send_no_more();
        if reload {
            hostile.signal(Signal::SIGTERM);
            stage.server.reload();
        }
        wait_until("its end", LONG, || !hostile.runs());
        stage.wait_for_deaths("drain-timeout", 1);
        stage.leave();
        stage.assert_unharmed();
    }
}

#[test]
fn whatever_a_worker_leaves_behind_is_killed() {
    let mut stage = Stage::new(&[]);
    stage.enter("leaves-children");
    stage.wait_for_deaths("exit", 2);
    stage.send_no_more();
    stage.server.wait_until_settled(LONG);
    let pids: Vec<_> = stage
        .server
        .workers()
        .iter()
        .map(|worker| worker.process)
        .collect();
    let is_child = |one: &process::Process| !pids.contains(one);
    wait_until("the children's end", LONG, || {
        !stage.server.process().children().iter().any(is_child)
    });
    assert!(stage.server.log().count("had left behind") >= 2);
    stage.leave();
    stage.assert_unharmed();
}

#[test]
fn a_supervisor_stops_in_time_whichever_worker_stays() {
    let mut stage = Stage::new(&["--graceful-timeout", "5s"]);
    stage.enter("ignores-requests");
    stage.wait_for_hostile_worker();
    stage.end_load();
    stage.server.signal(Signal::SIGTERM);
    assert_eq!(
        stage.server.wait_exit(Duration::from_secs(20)).code(),
        Some(0)
    );
}
