//! Clients whose handshake ends in the queue of a slot that is retired.

use nix::sys::signal::Signal::{SIGSTOP, SIGTTIN, SIGTTOU};
use std::io::{Read, Write};
use testkit::{LONG, Server, Setup, Worker, skipped, tool, wait_for, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args([
        "--graceful-timeout",
        "500ms",
        "--hang-timeout",
        "1m",
    ])
}

fn worker_in(server: &Server, slot: u64) -> Option<Worker> {
    server
        .workers()
        .into_iter()
        .find(|worker| worker.slot == slot && worker.state == "ready")
}

/// Stops the worker of slot 1, the last one, has clients come until one of them waits there, and
/// retires the slot. A connection that is not accepted before the worker dies is like a handshake
/// in flight.
fn retires_with_a_client_waiting(mut server: Server, body: &str) {
    let last = wait_for("the worker of slot 1", LONG, || worker_in(&server, 1)).process;
    last.signal(SIGSTOP);
    wait_until("it has stopped", LONG, || last.is_stopped());
    let mut clients = Vec::new();
    wait_until("a client to wait for it", LONG, || {
        let mut client = server.connect();
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .expect("sent");
        clients.push(client);
        server.status()["slots"][1]["queue"]
            .as_u64()
            .is_some_and(|length| length > 0)
    });
    server.signal(SIGTTOU);
    let mut slots = Vec::new();
    for mut client in clients {
        let mut answer = String::new();
        client.set_limit(LONG).expect("a socket of our own");
        client.read_to_string(&mut answer).expect("an answer");
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(body),
            "{answer}"
        );
        let slot = answer
            .lines()
            .find_map(|line| line.strip_prefix("x-prefork-slot: "));
        slots.extend(slot.map(str::to_owned));
    }
    assert!(
        slots.contains(&"1".to_owned()),
        "a rescue worker served them: {slots:?}"
    );
    assert!(!last.runs());
    server.wait_for_log(
        "slot 1 has no worker, but connections wait in its queue; starting a rescue worker",
    );
    // The rescue worker leaves again.
    wait_until("one worker to be left", LONG, || {
        server.workers().len() == 1
    });
    server.wait_until_settled(LONG);
    assert_eq!(server.log().count("has no worker, but"), 1);
}

#[test]
fn a_foreign_programs_client_that_waits_in_a_retired_slot_is_answered() {
    if tool("python3").is_none() {
        return skipped(
            "stranded clients of an external program",
            "python3 is not installed",
        );
    }
    let setup = setup().workers(2).args(["--ready", "notify"]);
    let server = setup
        .program([
            "python3".into(),
            testkit::program("minimal.py").into_os_string(),
        ])
        .start();
    retires_with_a_client_waiting(server, "Hello from Python");
}

#[test]
fn a_client_that_waits_in_a_retired_slot_is_answered_without_stealing() {
    let server = setup().workers(2).args(["--accept", "own"]).start();
    retires_with_a_client_waiting(server, "Hello, client!");
}

#[test]
fn a_client_that_waits_in_a_slot_younger_than_all_siblings_is_answered() {
    let server = setup().workers(1).start();
    server.signal(SIGTTIN);
    retires_with_a_client_waiting(server, "Hello, client!");
}
