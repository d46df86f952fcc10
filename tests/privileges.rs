//! Who the processes are and what they may do, read from `/proc`. All of it needs root.

use nix::sys::signal::Signal::{SIGHUP, SIGKILL, SIGSTOP, SIGTERM};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;
use testkit::process::Process;
use testkit::{LONG, Server, Setup, skipped, wait_until};

/// The user that workers run as here: every system has it.
const NOBODY: &str = "65534";
/// CAP_NET_BIND_SERVICE, as `/proc` shows it.
const NET_BIND_SERVICE: &str = "0000000000000400";
const NONE: &str = "0000000000000000";
const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// Root, or a visible note that the test was skipped.
fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skipped(test, "only root can become another user");
    }
    root
}

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--probation", "100ms"])
}

/// As foreign program: one that serves, or `None` and a note.
fn python(setup: Setup, test: &str) -> Option<Setup> {
    if !Path::new("/usr/bin/python3").is_file() {
        skipped(test, "/usr/bin/python3 is not there");
        return None;
    }
    // Its file lies where not everybody may go, perhaps; the interpreter takes it as text.
    let text = std::fs::read_to_string(testkit::program("bare.py")).expect("the program");
    let setup = setup.env("PATH", "/usr/local/bin:/usr/bin:/bin");
    Some(setup.args(["--ready-after", "1h"]).program(["python3".to_owned(), "-c".to_owned(), text]))
}

/// `/proc/PID/status` by name.
fn status(process: Process) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.0)).expect("it runs");
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
    };
    text.lines().filter_map(line).collect()
}

/// Demands that a process is this user and nobody else, with these capabilities and no way to more.
#[track_caller]
fn assert_is(process: Process, user: &str, group: &str, groups: &str, capabilities: &str) {
    let status = status(process);
    let four = |number: &str| [number; 4].join(" ");
    assert_eq!(status["Uid"], four(user), "real, effective, saved, file system");
    assert_eq!(status["Gid"], four(group), "real, effective, saved, file system");
    assert_eq!(status["Groups"], groups);
    for set in SETS {
        assert_eq!(status[set], capabilities, "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
}

/// A stock server and a foreign one whose workers run as nobody.
fn of_nobody(test: &str, prepare: impl Fn(Setup) -> Setup) -> Vec<Server> {
    if !root(test) {
        return Vec::new();
    }
    let base = || prepare(setup().workers(2).args(["--user", NOBODY]));
    let foreign = python(base(), test).map(Setup::start);
    [base().start()].into_iter().chain(foreign).collect()
}

#[test]
fn workers_of_another_user_have_its_groups_and_no_capability() {
    for server in of_nobody("workers of another user", |setup| setup) {
        for worker in server.ready() {
            assert_is(worker, NOBODY, NOBODY, NOBODY, NONE);
            assert_eq!(worker.variable("USER").as_deref(), Some("nobody"));
            assert_ne!(worker.variable("HOME").as_deref(), Some("/root"));
        }
        assert_eq!(server.get("/").status, 200);
        assert_eq!(status(server.process())["Uid"], "0 0 0 0", "the supervisor stays who it is");
    }
}
