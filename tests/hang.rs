//! Workers that stall and hang: seen from outside, steered away from, put back, replaced.

use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
use std::io::{Read, Write};
use std::time::Duration;
use testkit::load::{Failure, Plan, run, start};
use testkit::process::Process;
use testkit::{LONG, Server, Setup, Worker, skipped, tool, wait_for, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor"))
}

fn worker_in(server: &Server, slot: u64) -> Option<Worker> {
    server
        .workers()
        .into_iter()
        .find(|worker| worker.slot == slot)
}

/// All living workers, stalled ones included: on a busy machine, any of them may stall for a
/// moment.
fn processes(server: &Server) -> Vec<Process> {
    server
        .workers()
        .iter()
        .map(|worker| worker.process)
        .collect()
}

fn wait_for_state(server: &Server, slot: u64, state: &str) {
    wait_until(&format!("slot {slot} to be {state}"), LONG, || {
        worker_in(server, slot).is_some_and(|worker| worker.state == state)
    });
}

/// A program that answers one request at a time, four of it, or a visible note that the test was
/// skipped.
fn minimal(test: &str, hang_timeout: &str) -> Option<Server> {
    if tool("python3").is_none() {
        skipped(test, "python3 is not installed");
        return None;
    }
    let setup = setup()
        .workers(4)
        .args(["--ready", "notify", "--hang-timeout", hang_timeout]);
    Some(
        setup
            .program([
                "python3".into(),
                testkit::program("minimal.py").into_os_string(),
            ])
            .start(),
    )
}

/// A program that says nothing counts as ready after a second, and may still be starting. Once it
/// was seen to wait, it is not.
#[test]
fn a_program_that_accepts_once_and_hangs_does_not_have_the_time_to_start() {
    if tool("python3").is_none() {
        return skipped("accepts once", "python3 is not installed");
    }
    let script = "import socket, time\nkept = socket.socket(fileno=3).accept()\ntime.sleep(3600)";
    let options = ["--hang-timeout", "1s", "--start-timeout", "10m"];
    let server = setup()
        .workers(1)
        .args(options)
        .program(["python3", "-c", script])
        .start();
    wait_until("the probe has seen it wait", LONG, || {
        server.process().children().len() == 1
    });
    let _clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    server.wait_for_log("died (hang)");
}

#[test]
fn a_program_that_listens_elsewhere_does_not_have_the_time_to_start() {
    if tool("python3").is_none() {
        return skipped("listens elsewhere", "python3 is not installed");
    }
    let script = "import socket, time\n\
        own = socket.create_server((\"127.0.0.1\", 0))\ntime.sleep(3600)";
    let options = ["--hang-timeout", "1s", "--start-timeout", "10m"];
    let server = setup()
        .workers(1)
        .args(options)
        .program(["python3", "-c", script])
        .start();
    server.wait_for_log("does not accept on");
    let _client = server.connect();
    let line = server.wait_for_log("died (hang)");
    assert!(line.contains("it listens on 127.0.0.1:"), "{line}");
}

/// Waits until the slot in which connections wait for longer than they should is known.
fn stalled_slot(server: &Server) -> u64 {
    wait_for("a stalled worker", LONG, || {
        server
            .workers()
            .into_iter()
            .find(|worker| worker.state == "stalled")
            .map(|worker| worker.slot)
    })
}

#[test]
fn a_worker_stopped_for_a_moment_is_steered_away_from_and_comes_back() {
    let server = setup().workers(4).args(["--hang-timeout", "1m"]).start();
    let worker = server.workers().remove(1);
    let load = start(Plan::fresh(&server.address(), 8).timeout(2 * LONG));
    load.wait_for_more(50);
    worker.process.signal(SIGSTOP);
    wait_for_state(&server, 1, "stalled");
    server.wait_for_log("is stalled");
    // No connection is steered there any more: all new ones are answered, where one in four would
    // wait.
    run(&Plan::fresh(&server.address(), 8).count(400)).assert_flawless();
    worker.process.signal(SIGCONT);
    wait_for_state(&server, 1, "ready");
    server.wait_for_log("serves again");
    assert_eq!(
        worker_in(&server, 1).map(|now| now.process),
        Some(worker.process),
        "it was not replaced"
    );
    // And it gets connections again.
    wait_until("the resumed worker to answer", LONG, || {
        run(&Plan::fresh(&server.address(), 8).count(40))
            .pids
            .contains_key(&worker.process.0.to_string())
    });
    load.finish().assert_flawless();
}

#[test]
fn an_idle_worker_that_stops_is_noticed_by_its_heartbeat() {
    let server = setup().workers(2).args(["--hang-timeout", "1m"]).start();
    let worker = server.workers().remove(0);
    worker.process.signal(SIGSTOP);
    let line = server.wait_for_log("is stalled");
    assert!(
        line.contains("slot 0") && line.contains("missed its heartbeat"),
        "{line}"
    );
    worker.process.signal(SIGCONT);
    wait_for_state(&server, 0, "ready");
}

#[test]
fn a_worker_stopped_for_good_is_replaced_and_what_waited_for_it_is_answered() {
    const CLIENTS: usize = 8;
    let server = setup().workers(4).args(["--hang-timeout", "5s"]).start();
    let worker = server.workers().remove(2);
    let load = start(Plan::fresh(&server.address(), CLIENTS).timeout(2 * LONG));
    load.wait_for_more(50);
    worker.process.signal(SIGSTOP);
    let replacement = server
        .wait_for_replacement(2, worker.process)
        .process
        .0
        .to_string();
    server.wait_for_log("sending SIGABRT");
    wait_until("the hung worker's end", LONG, || !worker.process.runs());
    wait_until("the replacement to be in rotation", LONG, || {
        run(&Plan::fresh(&server.address(), 8).count(40))
            .pids
            .contains_key(&replacement)
    });
    let report = load.finish();
    // What it had accepted when it was stopped, it took with it.
    let held = report.count(Failure::ReadReset)
        + report.count(Failure::EofEarly)
        + report.count(Failure::WriteReset)
        + report.count(Failure::CloseReset);
    assert!(
        report.failed() == held && held <= CLIENTS as u64,
        "{report}"
    );
}

#[test]
fn a_program_that_accepts_no_more_is_steered_away_from_and_comes_back() {
    let Some(server) = minimal("a stalled program", "1m") else {
        return;
    };
    let mut busy = server.connect();
    busy.write_all(b"GET /sleep/6 HTTP/1.1\r\n\r\n")
        .expect("sent");
    let before = processes(&server);
    let load = start(Plan::fresh(&server.address(), 8).timeout(2 * LONG));
    let slot = stalled_slot(&server);
    let line = server.wait_for_log("is stalled");
    assert!(line.contains("took nothing out of its queue"), "{line}");
    let queued = server.status()["slots"][usize::try_from(slot).expect("a slot")]["queue"].as_u64();
    println!("connections that wait for slot {slot}: {queued:?}");
    run(&Plan::fresh(&server.address(), 4).count(200)).assert_flawless();
    wait_for_state(&server, slot, "ready");
    load.finish().assert_flawless();
    assert_eq!(processes(&server), before, "no worker was replaced");
}

#[test]
fn a_program_that_accepts_no_more_for_good_is_replaced_and_its_queue_is_served() {
    let Some(server) = minimal("a hung program", "5s") else {
        return;
    };
    let before = server.workers();
    let mut busy = server.connect();
    busy.write_all(b"GET /sleep/3600 HTTP/1.1\r\n\r\n")
        .expect("sent");
    let load = start(Plan::fresh(&server.address(), 8).timeout(2 * LONG));
    let slot = stalled_slot(&server);
    let old = before
        .iter()
        .find(|worker| worker.slot == slot)
        .expect("it was ready")
        .process;
    server.wait_for_replacement(slot, old);
    let line = server.wait_for_log("sending SIGABRT");
    assert!(line.contains("took nothing out of its queue"), "{line}");
    load.wait_for_more(100);
    load.finish().assert_flawless();
    let others: Vec<_> = before
        .iter()
        .filter(|worker| worker.slot != slot)
        .map(|one| one.process)
        .collect();
    assert!(
        others
            .iter()
            .all(|process| processes(&server).contains(process)),
        "no other worker was replaced"
    );
}

#[test]
fn a_program_that_is_idle_for_longer_than_the_timeout_is_well() {
    let Some(server) = minimal("an idle program", "500ms") else {
        return;
    };
    let before = processes(&server);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(processes(&server), before);
    assert_eq!(server.log().count("is stalled"), 0);
}

#[test]
fn a_request_that_blocks_beyond_its_timeout_costs_its_worker_and_no_other() {
    let setup = setup()
        .workers(3)
        .args(["--app", "block", "--class", "threads", "--threads", "4"]);
    let server = setup
        .args(["--request-timeout", "3s", "--hang-timeout", "1m"])
        .start();
    let before = server.workers();
    let mut client = server.connect();
    client
        .write_all(b"GET /?ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("sent");
    // The worker's other threads beat: only the request itself tells.
    let line = server.wait_for_log("sending SIGABRT");
    assert!(line.contains("has had an active request for"), "{line}");
    let hung = wait_for("the worker that is gone", LONG, || {
        before
            .iter()
            .find(|worker| !processes(&server).contains(&worker.process))
    });
    server.wait_for_replacement(hung.slot, hung.process);
    let others = || before.iter().filter(|worker| worker.slot != hung.slot);
    assert!(
        others().all(|worker| processes(&server).contains(&worker.process)),
        "no other worker was replaced"
    );
    run(&Plan::fresh(&server.address(), 8).count(100)).assert_flawless();
}

#[test]
fn a_request_that_only_waits_beyond_its_timeout_costs_no_worker() {
    let server = setup()
        .workers(2)
        .args(["--app", "sleep", "--request-timeout", "500ms"])
        .start();
    let before = processes(&server);
    assert_eq!(server.get("/?ms=60000").status, 503);
    // Longer than a worker that cannot help itself would live.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(processes(&server), before);
}

#[test]
fn a_client_that_reads_slowly_costs_no_worker() {
    const LENGTH: usize = 32 << 20;
    let setup = setup().workers(2);
    setup.file("big", &"x".repeat(LENGTH));
    let app = format!("files:{}", setup.path(".").display());
    let server = setup
        .args(["--app".to_owned(), app])
        .args(["--request-timeout", "500ms"])
        .start();
    let before = processes(&server);
    let mut client = server.connect();
    client
        .write_all(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("sent");
    wait_until("the response to be on its way", LONG, || server.busy() == 1);
    std::thread::sleep(Duration::from_secs(3));
    let mut response = Vec::new();
    client.read_to_end(&mut response).expect("the rest");
    assert!(response.len() > LENGTH, "{} bytes", response.len());
    assert_eq!(processes(&server), before);
}
