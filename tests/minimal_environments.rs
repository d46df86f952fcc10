//! Environments that lack something: IPv6, users, `/proc`, descriptors, system calls. Most of them
//! can be made by root only.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::Command;
use testkit::process::Process;
use testkit::{Server, Setup, skipped};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "50ms"])
}

/// A server that `unshare` starts after some commands, or `None` and a note.
fn unshared(test: &str, namespaces: &str, commands: &str) -> Option<Setup> {
    let can = Command::new("unshare").args([namespaces, "true"]).status();
    if !can.is_ok_and(|status| status.success()) {
        skipped(test, "unshare needs root");
        return None;
    }
    let script = format!("set -e; {commands}; exec \"$@\"");
    let wrapper = ["unshare", namespaces, "sh", "-c", script.as_str(), "sh"];
    Some(setup().workers(1).wrapped(wrapper))
}

#[test]
fn the_admin_process_serves_a_name_whose_ipv6_address_is_missing() {
    let without_ipv6 = "ip link set lo up; mount --bind hosts /etc/hosts; \
                        echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6";
    let Some(setup) = unshared("without_ipv6", "-nm", without_ipv6) else {
        return;
    };
    setup.file("hosts", "127.0.0.1 localhost\n::1 localhost\n");
    let server = setup
        .args(["--bind", "localhost:0", "--admin", "localhost:0"])
        .args(["--agent", "localhost:0"])
        .start();
    assert!(
        !server
            .log()
            .lines()
            .iter()
            .any(|line| line.contains("ERROR"))
    );
}

#[test]
fn users_can_be_numbers_without_a_user_database() {
    let without_etc = "mount -t tmpfs none /etc";
    let Some(setup) = unshared("without_users", "-m", without_etc) else {
        return;
    };
    let server = setup
        .args([
            "--user",
            "4321",
            "--group",
            "4322",
            "--admin",
            "127.0.0.1:0",
        ])
        .env("PATH", "/usr/bin:/bin")
        .program(["sleep", "1000"])
        .start();
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.ready()[0].0));
    let status = status.expect("it runs");
    assert!(status.contains("Uid:\t4321\t4321") && status.contains("Gid:\t4322\t4322"));
    let Some(setup) = unshared("without_users", "-m", without_etc) else {
        return;
    };
    let (status, log) = setup.args(["--user", "shop"]).run();
    assert!(!status.success());
    assert!(
        log.iter()
            .any(|line| line.contains("there is no user `shop`")),
        "{log:?}"
    );
}

/// The soft limit of open files of a process.
fn open_files(process: Process) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/limits", process.0)).expect("it runs");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|rest| rest.split_whitespace().next());
    soft.and_then(|soft| soft.parse().ok()).expect("a number")
}

#[test]
fn a_low_limit_of_open_files_is_raised_for_all_but_programs() {
    let limited = |setup: Setup| setup.wrapped(["prlimit", "--nofile=200:4000"]);
    let mut server = limited(setup()).workers(40).start();
    server.wait_for_log("raised the limit of open files from 200 to 4000");
    server.reload();
    assert_eq!(open_files(server.process()), 4000);
    assert_eq!(open_files(server.ready()[0]), 4000);
    let program = |more: &[&str]| {
        let server = limited(setup()).workers(1).args(more).copied();
        server.program(["sleep", "1000"]).start()
    };
    let mut server = program(&[]);
    assert_eq!(open_files(server.ready()[0]), 200);
    server.signal(nix::sys::signal::Signal::SIGUSR2);
    server.wait_for_log("upgraded in place");
    server.reload();
    assert_eq!(open_files(server.ready()[0]), 200);
    assert_eq!(
        open_files(program(&["--limit", "nofile=300"]).ready()[0]),
        300
    );
}

#[test]
fn a_missing_proc_is_named() {
    let Some(setup) = unshared("without_proc", "-m", "mount -t tmpfs none /proc") else {
        return;
    };
    let (status, log) = setup.run();
    assert!(!status.success());
    assert!(
        log.iter().any(|line| line.contains("mount /proc")),
        "{log:?}"
    );
}

/// Refuses close_range by EPERM, as filters do that do not know it.
const OLD_FILTER: &str = "
import ctypes, os, struct, sys
op = lambda code, t, f, k: struct.pack('HBBI', code, t, f, k)
code = op(0x20, 0, 0, 0) + op(0x15, 0, 1, 436) + op(6, 0, 0, 0x50001) + op(6, 0, 0, 0x7fff0000)
code = ctypes.create_string_buffer(code)
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]
program = Program(4, ctypes.addressof(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
";

#[test]
fn a_filter_that_refuses_close_range_is_named() {
    let (status, log) = setup()
        .workers(1)
        .wrapped(["python3", "-c", OLD_FILTER])
        .run();
    assert!(!status.success());
    assert!(
        log.iter()
            .any(|line| line.contains("refuses close_range: update")),
        "{log:?}"
    );
}

#[test]
fn a_value_that_is_not_text_is_named() {
    let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    for (words, expected) in [
        (
            vec![text(b"--log-level"), text(b"\xff")],
            "--log-level: `\u{fffd}` is not UTF-8",
        ),
        (
            vec![text(b"--workers=\xff")],
            "--workers: `--workers=\u{fffd}` is not UTF-8",
        ),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_supervisor"));
        let output = command.args(&words).output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2));
        assert!(told.contains(expected), "{told}");
    }
}
