//! systemd: the notification protocol against a socket of our own, and the real unit under a real
//! systemd.

use nix::sys::signal::Signal::{SIGHUP, SIGTERM};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use testkit::load::{Plan, run};
use testkit::notify::NotifySocket;
use testkit::{LONG, Server, Setup, root, skipped};

/// A server that notifies a socket of ours.
fn notifying(prepare: impl FnOnce(Setup) -> Setup) -> (Server, NotifySocket) {
    let setup =
        prepare(Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "50ms"]));
    let socket = NotifySocket::new(&setup.path("")).expect("a notification socket");
    let path = socket.path().to_owned();
    (setup.env("NOTIFY_SOCKET", path).start(), socket)
}

fn monotonic_usec() -> u64 {
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the clock runs");
    u64::try_from(now.tv_sec()).expect("after boot") * 1_000_000
        + u64::try_from(now.tv_nsec()).expect("positive") / 1000
}

#[test]
fn ready_is_sent_only_when_the_workers_are_ready() {
    let setup = Server::setup(env!("CARGO_BIN_EXE_supervisor")).workers(2);
    let mut socket = NotifySocket::new(&setup.path("")).expect("a notification socket");
    let path = socket.path().to_owned();
    let setup = setup
        .env("NOTIFY_SOCKET", path)
        .env("START_DELAY", "1.5")
        .args(["--ready", "notify"]);
    let program = testkit::program("minimal.py").into_os_string();
    let began = Instant::now();
    let mut server = setup.program(["python3".into(), program]).spawn();
    socket.wait_for("READY=1", 0, LONG);
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(1500),
        "READY=1 after {took:?}"
    );
    socket.wait_for("STATUS=", 0, LONG);
    server.wait_until_settled(LONG);
    // The workers' own messages stay between them and the supervisor.
    assert!(
        !socket
            .messages()
            .iter()
            .any(|message| message.contains("waiting for connections"))
    );
}

#[test]
fn a_reload_is_framed_by_reloading_and_ready() {
    let (mut server, mut socket) = notifying(|setup| setup.workers(2));
    let (ready, _) = socket.wait_for("READY=1", 0, LONG);
    let before = monotonic_usec();
    server.reload();
    let (place, message) = socket.wait_for("RELOADING=1", ready + 1, LONG);
    let stamp = message
        .lines()
        .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    let stamp: u64 = stamp
        .unwrap_or_else(|| panic!("no MONOTONIC_USEC in {message}"))
        .parse()
        .expect("a number");
    assert!((before..=monotonic_usec()).contains(&stamp), "{stamp}");
    socket.wait_for("READY=1", place + 1, LONG);
    socket.wait_for("STATUS=", place + 1, LONG);
}

#[test]
fn a_failed_reload_ends_with_ready_too_and_the_status_tells_why() {
    let (server, mut socket) = notifying(|setup| setup.config("workers = 2\n"));
    let (ready, _) = socket.wait_for("READY=1", 0, LONG);
    server.file("config.toml", "workers = 2\nworkerz = 1\n");
    server.signal(SIGHUP);
    let (place, _) = socket.wait_for("RELOADING=1", ready + 1, LONG);
    socket.wait_for("READY=1", place + 1, LONG);
    testkit::wait_until("the reason in a status", LONG, || {
        let messages = socket.messages();
        messages
            .iter()
            .any(|message| message.contains("STATUS=") && message.contains("workerz"))
    });
}

#[test]
fn stopping_is_sent_before_the_end() {
    let (mut server, mut socket) = notifying(|setup| setup.workers(2));
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    socket.wait_for("STOPPING=1", 0, LONG);
}

#[test]
fn the_watchdog_is_fed_also_during_a_long_reload() {
    let (server, mut socket) = notifying(|setup| {
        let program = testkit::program("minimal.py").into_os_string();
        setup
            .workers(1)
            .args(["--ready", "notify"])
            .env("WATCHDOG_USEC", "1000000")
            .program(["python3".into(), program])
    });
    // Fed at least twice within the time that it is allowed to be silent.
    let fed = |socket: &mut NotifySocket| {
        socket
            .messages()
            .iter()
            .filter(|text| text.contains("WATCHDOG=1"))
            .count()
    };
    let before = fed(&mut socket);
    server.signal(SIGHUP);
    testkit::wait_until("six feedings", LONG, || fed(&mut socket) >= before + 6);
}

#[test]
fn a_missing_and_a_full_notification_socket_delay_nothing() {
    let setup = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .workers(2)
        .args(["--min-ready", "0s"]);
    let gone = setup.path("nobody.sock");
    let mut server = setup.env("NOTIFY_SOCKET", gone).start();
    server.reload();
    run(&Plan::fresh(&server.address(), 4).count(50)).assert_flawless();
    // This one is never read, so that it fills up.
    let (mut server, _socket) = notifying(|setup| setup.workers(1).args(["--drain-idle", "0s"]));
    for _ in 0..12 {
        server.reload();
    }
    run(&Plan::fresh(&server.address(), 4).count(50)).assert_flawless();
}

#[test]
fn lines_for_the_journal_begin_with_a_priority() {
    // stderr is the journal when JOURNAL_STREAM names its device and inode, which only the running
    // wrapper knows.
    let script = "export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); exec \"$@\"";
    let setup = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .workers(1)
        .config("workers = 1\n");
    let server = setup.wrapped(["sh", "-c", script, "sh"]).start();
    let lines = server.log().lines();
    let has_priority =
        |line: &String| line.len() > 3 && line.starts_with('<') && line[2..].starts_with('>');
    assert!(
        !lines.is_empty() && lines.iter().all(has_priority),
        "{lines:#?}"
    );
    server.file("config.toml", "workerz = 1\n");
    server.signal(SIGHUP);
    let line = server.wait_for_log("workerz");
    assert!(line.starts_with("<3>") || line.starts_with("<4>"), "{line}");
}

// ---- a real systemd

/// Runs a script of `tests/units` under a throw-away systemd with the project's unit.
fn under_systemd(test: &str, script: &str) {
    let binary = Path::new(env!("CARGO_BIN_EXE_supervisor"));
    let units = root().join("tests/units");
    testkit::systemd::run(
        test,
        &[
            root().join("scripts/prefork.service"),
            units.join("web.socket"),
            units.join("activated.service"),
        ],
        &[binary.parent().expect("a directory")],
        &units.join(script),
        &[binary.as_os_str()],
    );
}

#[test]
fn the_unit_starts_reloads_refuses_a_bad_reload_and_stops() {
    under_systemd("the unit", "unit.sh");
}

#[test]
fn the_unit_is_watched_and_restarted() {
    under_systemd("the watchdog", "watchdog.sh");
}

#[test]
fn a_socket_unit_activates_it() {
    under_systemd("socket activation", "activation.sh");
}

#[test]
fn the_unit_verifies_and_is_hardened() {
    if testkit::tool("systemd-analyze").is_none() {
        return skipped(
            "the unit's verification",
            "systemd-analyze is not installed",
        );
    }
    let directory = tempfile::tempdir().expect("a directory");
    for (file, name) in [
        ("prefork.service", "prefork.service"),
        ("prefork@.service", "prefork@shop.service"),
    ] {
        let unit = directory.path().join(name);
        let text = std::fs::read_to_string(root().join("scripts").join(file)).expect("the unit");
        // Neither program nor manual need be installed on a machine that tests.
        let text = text
            .replace("/usr/local/bin/supervisor", "/bin/true")
            .replace("man:supervisor(8)", "");
        std::fs::write(&unit, text).expect("a file of our own");
        let verify = Command::new("systemd-analyze")
            .arg("verify")
            .arg(&unit)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&verify.stderr).into_owned();
        let about_ours: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
        assert!(about_ours.is_empty(), "{about_ours:#?}");
        // It knows no templates from a file; their text is the same, as tests/service.rs sees to.
        if file == name {
            let security = Command::new("systemd-analyze")
                .args(["security", "--offline=true"])
                .arg(&unit)
                .output();
            let said = String::from_utf8_lossy(&security.expect("it runs").stdout).into_owned();
            let verdict = said.lines().last().unwrap_or_default();
            let score: Option<f64> = verdict
                .split_whitespace()
                .find_map(|word| word.parse().ok());
            // The number in docs/systemd.md.
            assert!(score.is_some_and(|score| score <= 1.5), "{verdict}");
        }
    }
}
