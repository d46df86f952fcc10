//! Each death: its one line, its cause and its counter; and what the dead leave behind.

use nix::sys::signal::Signal::{SIGKILL, SIGSTOP, SIGTTOU, SIGUSR2};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use testkit::process::Process;
use testkit::{Address, LONG, Server, Setup, wait_for, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "50ms"])
}

/// A server of programs that do what they are asked to.
fn crashing(workers: usize) -> Setup {
    let program = testkit::program("crashing.py").into_os_string();
    setup()
        .workers(workers)
        .args(["--accept", "own"])
        .program(["python3".into(), program])
}

/// Has a worker run a program; what it answers, if it lives.
fn ask(address: &Address, program: &str) -> Option<String> {
    let mut client = address.connect().ok()?;
    let digits = testkit::hex(program);
    client
        .write_all(format!("GET /{digits} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
        .ok()?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).ok()?;
    answer.split("\r\n\r\n").nth(1).map(str::to_owned)
}

fn deaths(server: &Server, cause: &str) -> u64 {
    server.status()["deaths"][cause]
        .as_u64()
        .expect("every cause is counted")
}

/// The line of the first death of this cause, and that it was counted.
#[track_caller]
fn line_of(server: &Server, cause: &str) -> String {
    let line = server.wait_for_log(&format!(") died ({cause}): "));
    assert!(deaths(server, cause) > 0, "{line}");
    line
}

#[test]
fn an_exit_is_logged_with_its_status_its_numbers_and_the_stderr_tail() {
    let server = crashing(1).start();
    ask(
        &server.address(),
        "print('first\\nlast \\x1b[1mword', file=sys.stderr, flush=True); os._exit(3)",
    );
    let line = line_of(&server, "exit");
    assert!(
        line.contains("ERROR") && line.contains("exited with status 3, after "),
        "{line}"
    );
    assert!(
        line.contains("s user, ") && line.contains(" MiB at most; replacing it at once"),
        "{line}"
    );
    assert!(line.ends_with("stderr: \"first\\nlast word\""), "{line}");
    server.wait_for_log("first");
    let text = String::from_utf8_lossy(&server.command(&["status"]).stdout).into_owned();
    assert!(text.contains("deaths      1 (exit 1)"), "{text}");
}

#[test]
fn a_panics_message_is_in_the_stderr_tail() {
    let setup = setup()
        .workers(1)
        .args(["--ready", "after=0s", "--env", "RUST_BACKTRACE=0"]);
    setup.file(
        "panics.rs",
        "fn main() {
            let go = std::env::args().nth(1).expect(\"a file to wait for\");
            while !std::path::Path::new(&go).exists() {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            panic!(\"the cup is empty\");
        }",
    );
    let compiler = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let mut compiler = std::process::Command::new(compiler);
    compiler
        .args(["--edition", "2021"])
        .arg(setup.path("panics.rs"))
        .arg("-o")
        .arg(setup.path("panics"));
    assert!(compiler.status().expect("rustc").success());
    let program = setup.path("panics");
    let go = setup.path("go");
    let server = setup.program([&program, &go]).start();
    std::fs::write(&go, "").expect("written");
    let line = line_of(&server, "exit");
    let (end, words) = line
        .split_once("; stderr: ")
        .expect("the end of its standard error");
    assert!(end.contains("exited with status 101"), "{line}");
    assert!(
        words.contains("panicked at ") && words.contains("the cup is empty"),
        "{line}"
    );
}

#[test]
fn a_json_log_has_everything_in_fields() {
    let server = crashing(1).args(["--log-format", "json"]).start();
    ask(
        &server.address(),
        "os.write(2, b'<4>' + b'x' * 5000 + b'\\nend'); os._exit(3)",
    );
    let line = server.wait_for_log("\"cause\":\"exit\"");
    let fields: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(
        (fields["status"].as_u64(), fields["level"].as_str()),
        (Some(3), Some("error")),
        "{line}"
    );
    assert!(
        fields["pid"].as_u64().is_some() && fields["age_ms"].as_u64().is_some(),
        "{line}"
    );
    assert!(
        fields["max_rss_kib"].as_u64().expect("a number") > 1000,
        "{line}"
    );
    let words = fields["stderr"]
        .as_str()
        .expect("the end of its standard error");
    assert!(
        words.len() == 4096 && words.ends_with("x\nend"),
        "{} bytes",
        words.len()
    );
}

#[test]
fn a_crash_is_logged_with_its_signal() {
    // Where limits allow a core dump, the cause is `core`.
    let wrapper = [
        "sh",
        "-c",
        "ulimit -c unlimited 2>/dev/null; exec \"$@\"",
        "sh",
    ];
    let server = crashing(1).wrapped(wrapper).start();
    ask(&server.address(), "import ctypes; ctypes.string_at(0)");
    let line = server.wait_for_log("killed by SIGSEGV");
    let cause = if line.contains("(core dumped)") {
        "core"
    } else {
        "signal"
    };
    assert_eq!(line_of(&server, cause), line);
}

#[test]
fn a_kill_by_somebody_else_is_told_and_what_was_in_hand() {
    let server = setup().workers(1).args(["--app", "sleep"]).start();
    let mut client = server.connect();
    client
        .write_all(b"GET /?ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("sent");
    wait_until("a request in flight", LONG, || server.busy() == 1);
    server.ready()[0].signal(SIGKILL);
    let line = line_of(&server, "signal");
    assert!(
        line.contains("killed by SIGKILL, not by this server (perhaps by the kernel"),
        "{line}"
    );
    assert!(
        line.contains("in flight: 1 request, the oldest for "),
        "{line}"
    );
    assert!(
        line.contains(", 1 connection; 0 requests served; replacing it at once"),
        "{line}"
    );
}

#[test]
fn a_hang_is_logged() {
    let server = setup().workers(2).args(["--hang-timeout", "1s"]).start();
    server.ready()[0].signal(SIGSTOP);
    let line = line_of(&server, "hang");
    assert!(
        line.contains("ERROR") && line.contains("replaces it"),
        "{line}"
    );
    assert!(!line.contains("not by this server"), "{line}");
}

#[test]
fn an_overdue_request_is_logged() {
    let setup = setup()
        .workers(1)
        .args(["--app", "block", "--request-timeout", "300ms"]);
    let server = setup.args(["--class", "threads"]).start();
    let mut client = server.connect();
    client
        .write_all(b"GET /?ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("sent");
    let line = line_of(&server, "request-timeout");
    assert!(
        line.contains("in flight: 1 request, the oldest for "),
        "{line}"
    );
}

#[test]
fn a_start_that_takes_too_long_and_a_broken_program_are_logged() {
    let server = setup()
        .workers(1)
        .args(["--start-timeout", "1s", "--ready", "notify"]);
    let server = server.program(["sleep", "1000"]).spawn();
    server.wait_for_log(") died (start-timeout): killed by SIGABRT");
    let setup = setup().workers(1);
    // No program for this machine, which only exec finds out.
    setup.file("broken", "\u{7f}ELF");
    let path = setup.path("broken");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let (status, log) = setup.program([path]).run();
    assert_eq!(status.code(), Some(1));
    assert!(
        log.iter()
            .any(|line| line.contains(") died (exec): cannot execute ")),
        "{log:#?}"
    );
}

#[test]
fn workers_that_cannot_start_break_no_protocol() {
    // The first one to exit has the others asked to drain, who have exited by then.
    let good = "workers = 4\nmin-ready = \"50ms\"\n";
    let server = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .config(good)
        .start();
    server.file("config.toml", &format!("{good}limit = [\"nofile=12\"]\n"));
    for _ in 0..8 {
        let refused = server.command(&["reload", "--wait"]);
        assert!(!refused.status.success());
        let reason = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(reason.contains("Too many open files"), "{reason}");
    }
    wait_until("the end of every candidate", LONG, || server.is_settled());
    assert_eq!(
        deaths(&server, "protocol"),
        0,
        "{:#?}",
        server.log().lines()
    );
    assert_eq!(server.log().count("cannot be asked to drain"), 0);
}

#[test]
fn a_worker_asked_to_leave_leaves_without_alarm_and_is_counted() {
    let mut server = setup().workers(3).start();
    server.signal(SIGTTOU);
    wait_until("a scale-down", LONG, || deaths(&server, "scale-down") == 1);
    server.reload();
    wait_until("a reload's deaths", LONG, || deaths(&server, "reload") == 2);
    server.command(&["stop"]);
    server.wait_exit(LONG);
    let lines = server.log().lines();
    let of = |cause: &str| {
        lines
            .iter()
            .filter(|line| line.contains(&format!(") is gone ({cause}): ")))
            .count()
    };
    // A reload returns to the configured number of workers.
    assert_eq!(
        (of("scale-down"), of("reload"), of("stop")),
        (1, 2, 3),
        "{lines:#?}"
    );
    assert!(
        lines
            .iter()
            .all(|line| !line.contains("ERROR") && !line.contains(") died (")),
        "{lines:#?}"
    );
}

#[test]
fn a_drain_that_takes_too_long_is_a_warning() {
    let server = setup()
        .workers(2)
        .args(["--app", "sleep", "--graceful-timeout", "300ms"])
        .start();
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let mut client = server.connect();
            client
                .write_all(b"GET /?ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n")
                .expect("sent");
            client
        })
        .collect();
    wait_until("requests in flight in every worker", LONG, || {
        let workers = server.workers();
        server.busy() == 8 && workers.iter().all(|worker| worker.busy > 0)
    });
    server.signal(SIGTTOU);
    let line = line_of(&server, "drain-timeout");
    assert!(line.contains("WARN"), "{line}");
    drop(clients);
}

#[test]
fn a_clean_exit_is_no_failure_and_a_crash_when_asked_to_leave_is_a_warning() {
    let mut server = crashing(1).args(["--clean-exit", "0 30 TERM"]).start();
    for round in 1..=4 {
        let worker = server.workers().remove(0);
        // As long as it takes to have served for a while.
        std::thread::sleep(Duration::from_millis(1200));
        ask(&server.address(), "os._exit(30)");
        server.wait_for_replacement(0, worker.process);
        assert_eq!(deaths(&server, "left"), round);
    }
    let line = server.wait_for_log(") is gone (left): exited with status 30");
    assert!(
        line.contains("INFO") && line.contains("replacing it at once"),
        "{line}"
    );
    assert_eq!(
        server.log().count("trying again"),
        0,
        "{:#?}",
        server.log().lines()
    );
    ask(
        &server.address(),
        "import signal; signal.signal(signal.SIGTERM, lambda *_: os._exit(31))",
    );
    server.reload();
    let line = server.wait_for_log(") died (exit): exited with status 31");
    assert!(
        line.contains("WARN") && line.contains("replaces it"),
        "{line}"
    );
    server.reload();
    server.wait_for_log(") is gone (reload): killed by SIGTERM");
    // As the JVM reports a signal.
    ask(
        &server.address(),
        "import signal; signal.signal(signal.SIGTERM, lambda *_: os._exit(143))",
    );
    server.reload();
    server.wait_for_log(") is gone (reload): exited with status 143");
}

#[test]
fn a_clean_exit_in_a_reload_fails_it() {
    let setup = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .workers(1)
        .args(["--min-ready", "20s"]);
    let program = testkit::program("crashing.py").into_os_string();
    let server = setup.program(["python3".into(), program]).start();
    let before = server.ready();
    server.signal(nix::sys::signal::Signal::SIGHUP);
    let new = wait_for("the candidate's worker", LONG, || {
        server
            .workers()
            .into_iter()
            .find(|worker| worker.state == "ready" && !before.contains(&worker.process))
    });
    std::thread::sleep(Duration::from_millis(1200));
    // Both workers have the slot's sockets.
    while new.process.runs() {
        ask(
            &server.address(),
            &format!("if os.getpid() == {}: os._exit(0)", new.process.0),
        );
    }
    server.wait_for_log("reload failed");
    let line = server.wait_for_log(") is gone (left): exited with status 0");
    assert!(line.contains("not replacing it"), "{line}");
    assert_eq!(server.ready(), before);
}

#[test]
fn counts_survive_an_upgrade_in_place() {
    let mut server = crashing(1).copied().start();
    for _ in 0..2 {
        let worker = server.workers().remove(0);
        ask(&server.address(), "os._exit(3)");
        server.wait_for_replacement(0, worker.process);
    }
    server.reload();
    wait_until("the reload's death", LONG, || {
        deaths(&server, "reload") == 1
    });
    server.signal(SIGUSR2);
    server.wait_for_log("upgraded in place");
    assert_eq!(
        (
            deaths(&server, "exit"),
            deaths(&server, "reload"),
            deaths(&server, "oom")
        ),
        (2, 1, 0)
    );
    ask(&server.address(), "os._exit(3)");
    wait_until("one more", LONG, || deaths(&server, "exit") == 3);
}

/// Starts a process that outlives the worker and goes on accepting: in a group of its own, or a
/// session of its own and another process's child; with the worker's environment or without. It
/// answers `leftover`.
fn leftover(how: &str) -> String {
    format!(
        r#"
import subprocess
code = '''
import os, socket
listener = socket.socket(fileno=3)
listener.setblocking(True)
open("leftover", "a").write(str(os.getpid()) + chr(10))
while True:
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        import select
        select.select([listener], [], [])
        continue
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 8\\r\\n\\r\\nleftover")
    connection.close()
'''
environment, steps = {how}
pid = os.fork()
if pid == 0:
    connection.close()
    for step in steps.split():
        if step == "group": os.setpgid(0, 0)
        if step == "session": os.setsid()
        if step == "fork" and os.fork(): os._exit(0)
        if step == "parent" and os.fork():
            while True: __import__("time").sleep(100)
    os.execvpe("python3", ["python3", "-c", code], environment)
if "fork" in steps: os.waitpid(pid, 0)
while not os.path.exists("leftover") or open("leftover").read().count("\n") < 1:
    __import__("time").sleep(0.01)
"#
    )
}

fn outlived(how: &str, named: bool) {
    let server = crashing(1).start();
    let address = server.address();
    let worker = server.workers().remove(0);
    ask(&address, &leftover(how));
    let text = std::fs::read_to_string(server.path("leftover")).expect("its number");
    let left = Process(text.trim().parse().expect("a pid"));
    assert!(left.runs());
    worker.process.signal(SIGKILL);
    server.wait_for_log(") died (signal): killed by SIGKILL");
    // The signal has been sent; a process that waits in accept(2) may still take a connection on
    // its way out.
    wait_until("the leftover's end", LONG, || !left.runs());
    for _ in 0..100 {
        let answer = ask(&address, "pass").expect("an answer");
        assert_ne!(answer, "leftover", "{how}");
    }
    let text = if named {
        format!("which worker {} had left behind", worker.id)
    } else {
        "which a worker had left behind without its environment".to_owned()
    };
    let line = server.wait_for_log(&text);
    assert!(line.contains("WARN") && line.contains("(python3"), "{line}");
    wait_until("only the new worker", LONG, || {
        server.descendants().len() == 1
    });
}

#[test]
fn a_process_that_outlives_its_worker_in_a_group_of_its_own_is_killed() {
    outlived("os.environ, 'group'", true);
}

#[test]
fn a_process_that_outlives_its_worker_in_a_session_of_its_own_is_killed() {
    outlived("os.environ, 'session fork'", true);
}

#[test]
fn a_process_that_outlives_its_worker_behind_a_parent_is_killed() {
    outlived("os.environ, 'session fork parent'", true);
}

#[test]
fn a_process_that_hides_its_origin_is_killed_too() {
    // The variable by which this kit finds what a server has left is kept.
    outlived(
        "{k: v for k, v in os.environ.items() if k != 'PREFORK_WORKER'}, 'session fork'",
        false,
    );
}

#[test]
fn a_stop_leaves_nothing_of_the_workers() {
    let mut server = crashing(2).start();
    ask(
        &server.address(),
        &leftover("os.environ, 'session fork parent'"),
    );
    server.command(&["stop"]);
    server.wait_exit(LONG);
    // One that has its SIGKILL may take a moment to die.
    wait_until("nothing to be left", LONG, || {
        server.descendants().is_empty()
    });
}

#[test]
fn a_hundred_leftovers_leave_no_trace() {
    let mut server = crashing(1).start();
    let program = "
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        os.execvp('sleep', ['sleep', '1000'])
    os.waitpid(pid, 0)
";
    let mut rounds = |count: usize| {
        for _ in 0..count {
            let before = server.log().count("had left behind");
            ask(&server.address(), program).expect("it lives");
            // No worker fails, so no slot backs off, and what is measured is at rest.
            server.reload();
            wait_until("ten leftovers", LONG, || {
                server.log().count("had left behind") == before + 10
            });
            wait_until("the leftovers' end", LONG, || {
                server.descendants().len() == 1
            });
        }
        (
            server.process().descriptors(),
            server.process().resident_kib(),
        )
    };
    let before = rounds(2);
    let after = rounds(10);
    // One may be the last question about the state, which is being closed.
    wait_until("no more descriptors than before", LONG, || {
        server.process().descriptors() <= before.0
    });
    println!(
        "resident KiB before and after a hundred leftovers: {}, {}",
        before.1, after.1
    );
    assert!(
        after.1 <= before.1 + 512,
        "memory grew from {} to {} KiB",
        before.1,
        after.1
    );
}

#[test]
fn a_living_workers_children_live() {
    let server = crashing(2).start();
    ask(&server.address(), &leftover("os.environ, 'session fork'"));
    let text = std::fs::read_to_string(server.path("leftover")).expect("its number");
    let child = Process(text.trim().parse().expect("a pid"));
    let owner: u64 = child
        .variable("PREFORK_WORKER")
        .expect("it carries it")
        .parse()
        .expect("an id");
    let other = server
        .workers()
        .into_iter()
        .find(|worker| worker.id != owner)
        .expect("two workers");
    other.process.signal(SIGKILL);
    server.wait_for_replacement(other.slot, other.process);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(300) {
        assert!(child.runs());
    }
}
