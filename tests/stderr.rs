//! Workers' standard error: whole lines, tails, floods, a reader that does not read, upgrades.

use nix::sys::signal::Signal::{SIGHUP, SIGUSR2};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::time::Duration;
use testkit::{Address, LONG, Server, Setup, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "50ms"])
}

fn crashing(workers: usize) -> Setup {
    let program = testkit::program("crashing.py").into_os_string();
    setup()
        .workers(workers)
        .args(["--accept", "own"])
        .program(["python3".into(), program])
}

/// Has a worker run a program, and waits for its answer.
fn ask(address: &Address, program: &str) -> String {
    let mut client = address.connect().expect("connected");
    let digits = testkit::hex(program);
    client
        .write_all(format!("GET /{digits} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
        .expect("sent");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    answer.split("\r\n\r\n").nth(1).expect("a body").to_owned()
}

/// Has each of `workers` workers run a program once.
fn ask_all(server: &Server, workers: usize, program: &str) {
    let once = format!("if not globals().get('asked'):\n asked = True\n {program}");
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < workers {
        seen.insert(ask(&server.address(), &once));
    }
}

#[test]
fn lines_of_workers_that_write_at_once_stay_whole() {
    const LINES: usize = 500;
    let server = crashing(4).start();
    let program = format!(
        "import threading; threading.Thread(target=lambda: [(os.write(2, b'<5>w%d line %d ' % \
         (os.getpid(), n)), \
         os.write(2, b'x' * (n * 7 % 900) + b' end\\n')) for n in range({LINES})]).start()"
    );
    ask_all(&server, 4, &program);
    wait_until("all lines", LONG, || {
        server.log().count(" end") >= 4 * LINES
    });
    let mut next: BTreeMap<String, usize> = BTreeMap::new();
    for line in server
        .log()
        .lines()
        .iter()
        .filter(|line| line.contains(" end") || line.contains("<5>w"))
    {
        let words: Vec<&str> = line.split(' ').collect();
        let [worker, "line", number, xs, "end"] = words[..] else {
            panic!("a torn line: {line}")
        };
        let expected = next.entry(worker.to_owned()).or_default();
        assert_eq!(number.parse(), Ok(*expected), "in order: {line}");
        assert_eq!(xs.len(), *expected * 7 % 900, "{line}");
        *expected += 1;
    }
    assert_eq!(next.into_values().collect::<Vec<_>>(), [LINES; 4]);
}

#[test]
fn a_line_in_the_middle_of_an_upgrade_comes_out_whole_and_so_does_the_tail() {
    let mut server = crashing(1).copied().start();
    let before = server.workers().remove(0);
    ask(
        &server.address(),
        "os.write(2, b'first line\\nthe beginning')",
    );
    server.wait_for_log("first line");
    for round in 1..=3 {
        server.signal(SIGUSR2);
        wait_until("an upgrade", LONG, || {
            server.log().count("upgraded in place") == round
        });
    }
    ask(&server.address(), "os.write(2, b' and the end\\n')");
    server.wait_for_log("the beginning and the end");
    // While lines come, none is lost.
    let program = "import threading; threading.Thread(target=lambda: [(os.write(2, b'line %d of \
     many\\n' % n), \
                   __import__('time').sleep(0.0005)) for n in range(2000)]).start()";
    ask(&server.address(), program);
    server.signal(SIGUSR2);
    wait_until("an upgrade", LONG, || {
        server.log().count("upgraded in place") == 4
    });
    server.wait_for_log("line 1999 of many");
    assert_eq!(server.log().count(" of many"), 2000);
    assert_eq!(server.workers().remove(0), before);
    let mut client = server.connect();
    let digits = testkit::hex("os._exit(3)");
    client
        .write_all(format!("GET /{digits} HTTP/1.1\r\n\r\n").as_bytes())
        .expect("sent");
    let line = server.wait_for_log(") died (exit): ");
    assert!(
        line.contains("line 1998 of many\\nline 1999 of many\""),
        "{line}"
    );
    server.wait_until_settled(LONG);
}

#[test]
fn a_worker_that_floods_starves_no_other_and_nothing_grows() {
    let wrapper = ["sh", "-c", "exec \"$@\" 2>/dev/null", "sh"];
    let server = crashing(2).wrapped(wrapper).start();
    let flood = "import threading; b = (b'x' * 99 + b'\\n') * 600; \
                 threading.Thread(target=lambda: [os.write(2, b) for _ in iter(int, 1)], \
                  daemon=True).start()";
    let flooding = ask(&server.address(), flood);
    let (pid, memory) = (server.process(), server.process().resident_kib());
    let began = std::time::Instant::now();
    let mut others = 0;
    while began.elapsed() < Duration::from_secs(3) || (others <= 5 && began.elapsed() < LONG) {
        assert_eq!(server.state(), "serving");
        others += usize::from(ask(&server.address(), "pass") != flooding);
    }
    assert!(others > 5, "{others} answers of the other worker");
    println!(
        "resident KiB before and after a flood: {memory}, {}",
        pid.resident_kib()
    );
    assert!(
        pid.resident_kib() <= memory + 512,
        "from {memory} to {} KiB",
        pid.resident_kib()
    );
    server.signal(SIGHUP);
    wait_until("a reload", LONG, || {
        server.generation() == 2 && server.is_settled()
    });
}

#[test]
fn a_standard_error_that_is_not_read_delays_only_its_writer() {
    let setup = crashing(2);
    let pipe = setup.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("a pipe");
    let wrapper = ["sh", "-c", "exec \"$@\" 2<>pipe", "sh"];
    let server = setup.wrapped(wrapper).start();
    // More than all the pipes hold: the thread that writes it waits, and its worker goes on.
    let program = "import threading; threading.Thread(daemon=True, target=lambda: \
                   [os.write(2, b'%d line %d end\\n' % (os.getpid(), n)) for n in \
                    range(50000)]).start()";
    ask_all(&server, 2, program);
    wait_until("the pipe to be full", LONG, || {
        let reader = OpenOptions::new().read(true).open(&pipe).expect("the pipe");
        // Short writes leave half of its pages empty.
        waiting(&reader) >= 30_000
    });
    let memory = server.process().resident_kib();
    for round in 2..=4 {
        server.signal(SIGHUP);
        wait_until("a reload", LONG, || {
            server.generation() == round && server.is_settled()
        });
        assert!(!ask(&server.address(), "pass").is_empty());
    }
    assert!(server.process().resident_kib() <= memory + 1024);
    // A reader that comes back finds whole lines, and what the supervisor has logged meanwhile.
    let (sender, lines) = std::sync::mpsc::channel();
    let reader = OpenOptions::new().read(true).open(&pipe).expect("the pipe");
    std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut said = Vec::new();
    while !said
        .iter()
        .any(|line: &String| line.contains("reloaded: 2 workers of generation 4 serve"))
    {
        said.push(lines.recv_timeout(LONG).expect("more lines"));
    }
    for line in said
        .iter()
        .filter(|line| line.contains(" line ") && !line.contains("worker"))
    {
        assert!(
            line.ends_with(" end") && line.matches(" line ").count() == 1,
            "a torn line: {line}"
        );
    }
}

/// How many bytes wait in a pipe.
fn waiting(pipe: &File) -> usize {
    prefork_os::testing::bytes_waiting(pipe).expect("a pipe")
}

#[test]
fn a_workers_log_has_the_supervisors_form() {
    let server = setup().workers(1).args(["--app", "greeter"]).start();
    let mut client = server.connect();
    client.write_all(b"a line for the log").expect("sent");
    let line = server.wait_for_log("a line for the log");
    assert!(line.contains("Z INFO "), "{line}");
    let server = setup()
        .workers(1)
        .args(["--app", "greeter", "--log-format", "json"])
        .start();
    let mut client = server.connect();
    client.write_all(b"a line for the log").expect("sent");
    assert!(server.wait_for_log("a line for the log").starts_with('{'));
}

#[test]
fn a_worker_knows_that_its_lines_end_in_the_journal() {
    // The pipe that this test reads plays the journal.
    let wrapper = [
        "sh",
        "-c",
        "export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); exec \"$@\"",
        "sh",
    ];
    let server = setup()
        .workers(1)
        .args(["--app", "greeter"])
        .wrapped(wrapper)
        .start();
    let mut client = server.connect();
    client.write_all(b"a line for the log").expect("sent");
    let line = server.wait_for_log("a line for the log");
    assert!(line.starts_with("<6>"), "{line}");
    let server = crashing(1).wrapped(wrapper).start();
    let program =
        "s = os.fstat(2); assert os.environ['JOURNAL_STREAM'] == '%d:%d' % (s.st_dev, s.st_ino)";
    ask(&server.address(), program);
    ask(&server.address(), "os.write(2, b'<4>a warning\\n')");
    server.wait_for_log("<4>a warning");
}

#[test]
fn a_standard_error_that_is_inherited_is_left_alone() {
    let server = crashing(1).args(["--worker-stderr", "inherit"]).start();
    let target = |process: testkit::process::Process| {
        std::fs::read_link(format!("/proc/{}/fd/2", process.0)).expect("it has one")
    };
    assert_eq!(target(server.ready()[0]), target(server.process()));
    let server = crashing(1).start();
    assert_ne!(target(server.ready()[0]), target(server.process()));
}
