//! Listening sockets are blocking for external programs, as under systemd, and non-blocking for
//! Rust workers, whatever shares them.

use nix::sys::signal::Signal::{SIGHUP, SIGTERM, SIGUSR2};
use std::ffi::OsString;
use testkit::load::{Plan, start};
use testkit::process::Process;
use testkit::{LONG, Server, Setup, skipped, tool, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "100ms"])
}

/// A program that accepts in a loop and knows no poll, or a visible note that the test was skipped.
fn plain(test: &str) -> Option<[OsString; 2]> {
    if tool("python3").is_none() {
        skipped(test, "python3 is not installed");
        return None;
    }
    let program = testkit::program("blocking.py").into_os_string();
    Some(["python3".into(), program])
}

/// Whether accept waits on a process's first listening socket.
fn is_blocking(process: Process) -> bool {
    let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/3", process.0)).expect("it lives");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = u32::from_str_radix(flags.expect("flags").trim(), 8).expect("octal digits");
    flags & 0o4000 == 0
}

fn deaths(server: &Server) -> u64 {
    let status = server.status();
    let deaths = status["deaths"].as_object().expect("causes").iter();
    let unasked = deaths.filter(|(cause, _)| !matches!(cause.as_str(), "reload" | "stop"));
    unasked.filter_map(|(_, count)| count.as_u64()).sum()
}

fn serves_over_reload_upgrade_and_stop(setup: Setup) {
    let mut server = setup.start();
    assert_eq!(server.get("/").body, "blocking");
    let load = start(Plan::fresh(&server.address(), 4).http("/", Some("blocking")));
    load.wait_for_more(20);
    server.reload();
    load.wait_for_more(20);
    let upgraded = server.log().count("upgraded in place");
    server.signal(SIGUSR2);
    wait_until("the upgrade", LONG, || {
        server.log().count("upgraded in place") > upgraded
    });
    server.reload();
    load.wait_for_more(20);
    assert_eq!(deaths(&server), 0, "{:#?}", server.log().lines());
    load.finish().assert_flawless();
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
}

#[test]
fn a_program_that_only_accepts_serves_over_reload_upgrade_and_stop() {
    let Some(program) = plain("a plain accept loop") else {
        return;
    };
    serves_over_reload_upgrade_and_stop(
        setup()
            .workers(2)
            .args(["--ready", "notify"])
            .program(program),
    );
}

#[test]
fn four_such_programs_share_a_unix_socket() {
    let Some(program) = plain("a shared queue") else {
        return;
    };
    let setup = setup().workers(4).args(["--ready", "notify"]).bind_unix();
    serves_over_reload_upgrade_and_stop(setup.program(program));
}

#[test]
fn a_program_can_have_non_blocking_sockets() {
    let Some(program) = plain("the option") else {
        return;
    };
    let options = ["--ready", "listen", "--nonblocking-sockets", "on"];
    let setup = setup().workers(1).args(options).env("READY", "no");
    let script = "import os, select; print('blocking:', os.get_blocking(3), flush=True)\n\
                  while True: select.select([3], [], [])";
    let server = setup
        .program([program[0].clone(), "-c".into(), script.into()])
        .start();
    server.wait_for_log("blocking: False");
}

/// A server that is reloaded from the stock app to a program and back, and back again.
fn changes_between_rust_and_python(setup: Setup, command: &str) {
    let options = "workers = 4\nmin-ready = \"100ms\"\nready = \"notify\"\nsandbox = \"off\"\n";
    let rust = format!("{options}app = \"hello\"\n");
    let python = format!("{options}command = {command}\n");
    let mut server = setup.config(&rust).start();
    let load = start(Plan::fresh(&server.address(), 4));
    for _ in 0..2 {
        assert!(!is_blocking(server.ready()[0]));
        server.file("config.toml", &python);
        load.wait_for_more(20);
        server.reload();
        load.wait_for_more(20);
        assert!(is_blocking(server.ready()[0]));
        server.file("config.toml", &rust);
        server.reload();
        wait_until("the end of the programs", LONG, || {
            server
                .workers()
                .iter()
                .all(|worker| worker.state == "ready")
        });
    }
    let status = server.status();
    assert_eq!(status["deaths"]["hang"], 0, "{:#?}", server.log().lines());
    assert_eq!(deaths(&server), 0, "{:#?}", server.log().lines());
    load.finish().assert_flawless();
    assert!(!is_blocking(server.ready()[0]));
}

fn command([python, program]: [OsString; 2]) -> String {
    format!("[\"{}\", \"{}\"]", python.display(), program.display())
}

#[test]
fn rust_workers_and_plain_programs_follow_each_other_on_tcp() {
    if let Some(program) = plain("from Rust to Python") {
        changes_between_rust_and_python(setup_of_file().bind("127.0.0.1:0"), &command(program));
    }
}

#[test]
fn rust_workers_and_plain_programs_share_a_queue_meanwhile() {
    if let Some(program) = plain("from Rust to Python on a shared queue") {
        changes_between_rust_and_python(setup_of_file().bind_unix(), &command(program));
    }
}

fn setup_of_file() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor"))
}

#[test]
fn what_a_refused_reload_has_changed_is_as_before() {
    let Some([python, _]) = plain("a refused reload") else {
        return;
    };
    let options = "workers = 2\nmin-ready = \"100ms\"\nready = \"notify\"\n";
    let minimal = testkit::program("minimal.py").into_os_string();
    let good = format!(
        "{options}command = {}\n",
        command([python.clone(), minimal])
    );
    let server = setup_of_file().config(&good).start();
    let worker = server.ready()[0];
    assert!(!is_blocking(worker), "it has changed that itself");
    let python = python.display();
    let bad =
        format!("{options}command = [\"{python}\", \"-c\", \"import time; time.sleep(0.2)\"]\n");
    server.file("config.toml", &bad);
    server.signal(SIGHUP);
    server.wait_for_log("reload failed");
    wait_until("the old state", LONG, || server.is_settled());
    assert!(!is_blocking(worker), "its successors may rely on that");
}
