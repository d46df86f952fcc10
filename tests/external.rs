//! Programs that know nothing of this project, only systemd's contract or less. Servers of many
//! stacks are in tests/stacks.rs.

use nix::sys::signal::Signal::SIGTERM;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::thread::JoinHandle;
use testkit::load::{Plan, start};
use testkit::{LONG, Server, Setup, skipped, tool, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "100ms"])
}

/// The tool's path, or a visible note that the test was skipped.
fn needs(test: &str, name: &str) -> Option<PathBuf> {
    let found = tool(name);
    if found.is_none() {
        skipped(
            test,
            &format!("{name} is not installed (scripts/peers installs it)"),
        );
    }
    found
}

#[test]
fn a_program_that_says_nothing_counts_as_ready_after_a_while() {
    let Some(python) = needs("silent python", "python3") else {
        return;
    };
    let setup = setup()
        .workers(2)
        .args(["--ready", "after=300ms"])
        .env("READY", "no");
    let mut server = setup
        .program([python, testkit::program("minimal.py")])
        .start();
    let load = start(Plan::fresh(&server.address(), 4).http("/", Some("Hello from Python")));
    load.wait_for_more(20);
    server.reload();
    load.wait_for_more(20);
    load.finish().assert_flawless();
    let times = testkit::ready_after(server.log(), 4);
    assert!(
        times.len() == 4 && times.iter().all(|time| time.as_millis() >= 300),
        "{times:?}"
    );
}

#[test]
fn a_program_finds_systemds_contract_and_nothing_of_the_supervisors_own() {
    let Some(_) = needs("environment", "python3") else {
        return;
    };
    let setup = setup()
        .workers(1)
        .args(["--ready", "notify"])
        .env("LEFT", "alone");
    let program = testkit::program("minimal.py").into_os_string();
    let server = setup.program(["python3".into(), program]).start();
    let worker = server.ready()[0];
    let variable = |name: &str| worker.variable(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(variable("LISTEN_FDS"), "1");
    assert_eq!(variable("LISTEN_PID"), worker.0.to_string());
    assert_eq!(
        (variable("PREFORK_SLOT"), variable("PREFORK_WORKERS")),
        ("0".to_owned(), "1".to_owned())
    );
    assert_eq!(
        variable("PREFORK_GENERATION"),
        server.generation().to_string()
    );
    assert_eq!(variable("LEFT"), "alone");
    assert!(!variable("LISTEN_FDNAMES").is_empty() && !variable("NOTIFY_SOCKET").is_empty());
    assert_eq!(
        worker.variable("PREFORK_CHANNEL"),
        None,
        "external programs get no channel"
    );
}

#[test]
fn a_program_that_ignores_the_request_to_leave_is_killed_at_the_deadline() {
    let script = "trap '' TERM; echo deaf; while :; do sleep 0.1; done";
    let setup = setup()
        .workers(1)
        .args(["--ready", "after=100ms", "--graceful-timeout", "500ms"]);
    let mut server = setup.program(["sh", "-c", script]).start();
    server.wait_for_log("deaf");
    let old = server.ready();
    server.reload();
    assert!(old.iter().all(|process| !process.runs()));
}

#[test]
fn a_program_is_asked_to_leave_by_the_signal_that_it_understands() {
    let script = "trap '' TERM INT QUIT; trap 'echo asked; exit 0' USR2; echo listens; while :; do \
     sleep 0.1; done";
    let setup = setup()
        .workers(1)
        .args(["--ready", "after=100ms", "--stop-signal", "USR2"]);
    let mut server = setup.program(["sh", "-c", script]).start();
    // It counts as ready after its time, whether or not it has set its traps by then.
    server.wait_for_log("listens");
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    server.wait_for_log("asked");
    server.wait_for_log("is gone (stop): exited with status 0");
}

/// As WEBrick does when it is told to stop. The successor of each worker has the same socket.
#[test]
fn slots_have_their_own_queues_again_after_workers_shut_their_sockets_down() {
    let Some(python) = needs("shutdown", "python3") else {
        return;
    };
    let mut server = setup()
        .workers(4)
        .args(["--ready", "notify"])
        .env("SHUTDOWN", "yes")
        .program([python, testkit::program("minimal.py")])
        .start();
    for round in 1..=3 {
        server.reload();
        // They accept nothing any more: they exit by themselves, or are terminated.
        wait_until("the successors to be replaced", LONG, || {
            server.log().count("; replacing it ") >= 4 * round && server.is_settled()
        });
    }
    let slots: BTreeSet<_> = (0..64)
        .filter_map(|_| server.get("/").header("x-prefork-slot").map(str::to_owned))
        .collect();
    assert_eq!(slots.len(), 4, "{slots:?}");
    assert_eq!(server.log().count("cannot steer"), 0);
}

/// A server behind a shell that does not exec it, and the request that it is answering.
fn behind_a_shell(shell: &str, options: &[&str]) -> Option<(Server, JoinHandle<Option<String>>)> {
    needs("behind a shell", "python3")?;
    // The sockets are for the shell's process.
    let python = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); \
                  exec(open(sys.argv[1]).read())";
    let script = format!("{shell} python3 -c \"$1\" \"$2\"; exit $?");
    let setup = setup()
        .workers(1)
        .args(["--ready", "notify"])
        .args(options.to_vec());
    let in_flight = setup.path("in-flight");
    let setup = setup.env("IN_FLIGHT", &in_flight);
    let program = testkit::program("minimal.py").display().to_string();
    let server = setup
        .program(["sh", "-c", &script, "sh", python, &program])
        .start();
    let address = server.address();
    let request = std::thread::spawn(move || {
        let response = testkit::http::get(&address, "/slow").ok()?;
        Some(response.body)
    });
    wait_until("the request in flight", LONG, || in_flight.exists());
    Some((server, request))
}

#[test]
fn what_outlives_a_shell_finishes_its_request() {
    let Some((mut server, request)) = behind_a_shell("", &[]) else {
        return;
    };
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    let answer = request.join().expect("no panic");
    assert_eq!(answer.as_deref(), Some("Hello from Python"));
    assert_eq!(server.log().count("drain-timeout"), 0);
}

#[test]
fn all_of_a_group_can_get_the_stop_signal_at_once() {
    let options = ["--kill-mode", "control-group", "--graceful-timeout", "5m"];
    let Some((mut server, request)) = behind_a_shell("trap '' HUP; trap : TERM;", &options) else {
        return;
    };
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    let answer = request.join().expect("no panic");
    assert_eq!(answer.as_deref(), Some("Hello from Python"));
}

#[test]
fn what_does_not_end_is_killed_when_the_time_is_over() {
    let script = "(trap '' TERM; exec sleep 3600) & exec sleep 3600";
    let mut server = setup()
        .workers(1)
        .args(["--ready", "after=0s", "--graceful-timeout", "1s"])
        .program(["sh", "-c", script])
        .start();
    let worker = server.ready()[0];
    wait_until("both processes", LONG, || {
        testkit::process::in_group(worker.0).len() == 2
    });
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    server.wait_for_log("died (drain-timeout)");
}
