//! `reload --wait` returns when the old code answers no new request, and never waits for long.

use nix::sys::signal::Signal::SIGUSR2;
use std::time::{Duration, Instant};
use testkit::load::{Plan, start};
use testkit::{LONG, Server, Setup, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .workers(2)
        .args(["--min-ready", "20ms"])
}

/// Ten reloads under load: after each, only new workers answer.
fn the_next_requests_are_for_the_new_code(setup: Setup) {
    let server = setup.start();
    let load = start(Plan::rate(&server.address(), 200.0));
    for generation in 2..12 {
        let output = server.command(&["reload", "--wait"]);
        assert!(output.status.success(), "{output:?}");
        (0..10)
            .for_each(|_| assert_eq!(server.get("/").number("x-prefork-generation"), generation));
    }
    load.finish().assert_flawless();
}

#[test]
fn after_a_reload_the_next_requests_are_for_the_new_code() {
    for class in ["sync", "threads", "async"] {
        the_next_requests_are_for_the_new_code(setup().args(["--class", class]));
    }
    // All workers take from one queue.
    the_next_requests_are_for_the_new_code(setup().bind_unix());
}

#[test]
fn after_a_reload_of_a_foreign_program_too() {
    let program = testkit::program("minimal.py").into_os_string();
    the_next_requests_are_for_the_new_code(setup().program(["python3".into(), program]));
}

/// A program that neither leaves when it is asked to nor says that it stops.
fn stubborn() -> Setup {
    let script = "trap '' TERM; while :; do sleep 1000; done";
    setup()
        .args(["--ready", "after=20ms", "--graceful-timeout", "1m"])
        .program(["sh", "-c", script])
}

#[test]
fn a_program_that_does_not_say_that_it_stops_delays_no_verdict() {
    let server = stubborn().start();
    let begun = Instant::now();
    let output = server.command(&["reload", "--wait"]);
    assert!(output.status.success(), "{output:?}");
    // Far less than it has to leave.
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn an_upgrade_meanwhile_leaves_no_client_without_a_verdict() {
    let server = stubborn().start();
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| server.command(&["reload", "--wait"]));
        server.wait_for_log("reloaded:");
        server.signal(SIGUSR2);
        let output = reload.join().expect("it ends");
        assert!(output.status.success(), "{output:?}");
    });
    wait_until("the upgrade", LONG, || {
        server.log().count("upgraded in place") == 1
    });
}
