//! The three worker classes: how many connections a worker serves at once, and that idle ones block
//! no other.

use std::time::Duration;
use testkit::load::{Plan, Report, run};
use testkit::{LONG, Server, Setup};

fn setup(class: &str) -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--class", class])
}

/// So long that eight one after the other take longer than a busy machine delays two.
const LASTING: Duration = Duration::from_secs(2);

/// Eight requests at once that keep their handler for a while each.
fn eight(server: &Server, each: Duration) -> Report {
    let report = run(&Plan::fresh(&server.address(), 8)
        .http(&format!("/?ms={}", each.as_millis()), None)
        .timeout(2 * LONG)
        .count(8));
    report.assert_flawless();
    report
}

#[test]
fn sync_serves_one_connection_after_the_other() {
    let each = Duration::from_millis(300);
    let server = setup("sync").workers(1).args(["--app", "sleep"]).start();
    let report = eight(&server, each);
    assert!(report.elapsed >= 8 * each, "{report}");
}

#[test]
fn threads_serve_one_connection_each() {
    let server = setup("threads")
        .workers(1)
        .args(["--app", "sleep", "--threads", "4"])
        .start();
    let report = eight(&server, LASTING);
    assert!(
        report.elapsed >= 2 * LASTING,
        "four at once at most: {report}"
    );
    assert!(
        report.elapsed < 8 * LASTING,
        "not one after the other: {report}"
    );
}

#[test]
fn async_serves_many_connections_at_once() {
    let server = setup("async").workers(1).args(["--app", "sleep"]).start();
    let report = eight(&server, LASTING);
    assert!(
        report.elapsed < 8 * LASTING,
        "not one after the other: {report}"
    );
}

#[test]
fn every_class_serves_more_keeping_clients_than_it_has_places() {
    // An idle kept-alive connection must not occupy the only place of a worker.
    for class in ["sync", "threads", "async"] {
        let server = setup(class).workers(2).args(["--threads", "2"]).start();
        let load = Plan::kept_alive(&server.address(), 32).http("/", Some("Hello, client!"));
        run(&load.lasting(Duration::from_secs(1))).assert_flawless();
    }
}

#[test]
fn a_worker_has_as_many_threads_as_its_class_says() {
    let server = setup("threads").workers(1).args(["--threads", "6"]).start();
    let threads = server.ready()[0].threads();
    assert!(
        (6..=8).contains(&threads),
        "{threads} threads for six that serve"
    );
    let server = setup("async").workers(1).start();
    assert!(server.ready()[0].threads() <= 2);
}
