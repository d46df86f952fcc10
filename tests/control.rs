//! The control socket: status, reload with a verdict, stop; and clients that misbehave on it.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use testkit::load::{Plan, run};
use testkit::{LONG, Server, Setup};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor"))
}

#[test]
fn status_tells_who_serves() {
    let server = setup().workers(3).start();
    run(&Plan::fresh(&server.address(), 4).count(100)).assert_flawless();
    let status = server.status();
    assert_eq!((&status["version"], &status["state"]), (&1.into(), &"serving".into()));
    assert_eq!(status["pid"].as_u64(), Some(server.process().0.into()));
    assert_eq!(server.workers().len(), 3);
    let words = server.command(&["status"]);
    let words = String::from_utf8_lossy(&words.stdout).into_owned();
    for worker in server.ready() {
        assert!(words.contains(&worker.0.to_string()), "{words}");
    }
}

#[test]
fn status_counts_every_request_also_those_of_dead_workers() {
    let mut server = setup().workers(2).args(["--probation", "50ms"]).start();
    let total = |server: &Server| -> u64 {
        let status = server.status();
        let slots = status["slots"].as_array().expect("slots");
        slots.iter().map(|slot| slot["totals"]["requests"].as_u64().expect("a number")).sum()
    };
    let before = total(&server);
    run(&Plan::fresh(&server.address(), 4).count(100)).assert_flawless();
    testkit::wait_until("a hundred counted", LONG, || total(&server) == before + 100);
    server.reload();
    assert_eq!(total(&server), before + 100, "a reload loses no count");
    run(&Plan::kept_alive(&server.address(), 4).count(100)).assert_flawless();
    testkit::wait_until("two hundred counted", LONG, || total(&server) == before + 200);
}

#[test]
fn reload_wait_gives_the_verdict_and_the_reason() {
    let good = "workers = 2\nprobation = \"50ms\"\n";
    let server = setup().config(good).start();
    let (before, pids) = (server.generation(), server.ready());
    let output = server.command(&["reload", "--wait"]);
    assert!(output.status.success(), "{output:?}");
    assert!(server.generation() > before);
    assert!(server.ready().iter().all(|process| !pids.contains(process)), "it returned after the reload");

    let pids = server.ready();
    server.file("config.toml", "workers = 2\nbacklogg = 3\n");
    let output = server.command(&["reload", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("backlogg"), "{said}");
    assert_eq!(server.ready(), pids);
}

#[test]
fn stop_ends_the_server_gracefully() {
    let mut server = setup().workers(2).start();
    let output = server.command(&["stop"]);
    assert!(output.status.success(), "{output:?}");
    assert!(server.wait_exit(LONG).success());
}

#[test]
fn nobody_there_is_a_failure_that_names_the_socket() {
    let mut server = setup().workers(1).start();
    server.command(&["stop"]);
    server.wait_exit(LONG);
    let output = server.command(&["status"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("supervisor.sock"), "{output:?}");
}

#[test]
fn the_socket_is_for_its_owner_and_group_only() {
    let server = setup().workers(1).start();
    let mode = std::fs::metadata(server.control()).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o007, 0, "{mode:o}");
}

#[test]
fn stalled_and_noisy_clients_delay_nobody() {
    let server = setup().workers(2).start();
    let mut stalled = Vec::new();
    for noise in [&b""[..], b"\0", b"{\"half", b"\xff\xff\xff\xff\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n"]
    {
        // As a stream; a socket of another type refuses, which is well.
        if let Ok(mut stream) = UnixStream::connect(server.control()) {
            let _ = stream.write_all(noise);
            stalled.push(stream);
        }
    }
    for _ in 0..32 {
        stalled.extend(UnixStream::connect(server.control()));
    }
    assert_eq!(server.state(), "serving");
    drop(stalled);
    assert_eq!(server.state(), "serving");
    run(&Plan::fresh(&server.address(), 4).count(50)).assert_flawless();
}

#[test]
fn no_control_socket_costs_a_line_and_nothing_else() {
    let server = setup().workers(1).no_control().args(["--control", "off"]).spawn();
    let line = server.wait_for_log("listening on ");
    let address =
        line.split("listening on ").nth(1).expect("an address").split_whitespace().next().expect("a word");
    let address = address.trim_end_matches([',', ';']).parse().expect("an address");
    server.wait_for_log("ready: ");
    run(&Plan::fresh(&address, 4).count(50)).assert_flawless();
    assert!(!server.control().exists());
}

#[test]
fn the_control_socket_has_a_place_of_its_own_by_default() {
    let setup = setup().workers(1).no_control();
    let directory = setup.path("");
    let server = setup.spawn();
    testkit::wait_until("an answer by way of $XDG_RUNTIME_DIR", LONG, || {
        let mut status = std::process::Command::new(env!("CARGO_BIN_EXE_supervisor"));
        status.arg("status").env("XDG_RUNTIME_DIR", &directory).env_remove("RUNTIME_DIRECTORY");
        status.output().expect("it runs").status.success()
    });
    drop(server);
}
