//! Signals: what each of them does, with requests in flight.

use nix::sys::signal::Signal;
use nix::sys::signal::Signal::{
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH,
};
use std::time::{Duration, Instant};
use testkit::load::{Failure, Load, Plan, run, start};
use testkit::process::Process;
use testkit::{LONG, Server, Setup, wait_for, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor"))
}

/// A server whose only worker has a request in flight that takes `ms`.
fn busy(ms: u32) -> (Server, Load) {
    let server = setup().workers(1).args(["--app", "sleep"]).start();
    let load = start(
        Plan::fresh(&server.address(), 1)
            .http(&format!("/?ms={ms}"), None)
            .count(1),
    );
    wait_until("a request in flight", LONG, || server.busy() == 1);
    (server, load)
}

#[test]
fn term_and_quit_finish_what_is_in_hand() {
    for signal in [SIGTERM, SIGQUIT] {
        let (mut server, load) = busy(5000);
        server.signal(signal);
        assert!(server.wait_exit(LONG).success());
        load.wait().assert_flawless();
    }
}

#[test]
fn a_stop_loses_no_request_on_a_kept_connection() {
    // A client that is not scheduled for half a second may ask just as its idle connection ends.
    let mut server = setup().workers(2).patient().start();
    let load = start(Plan::kept_alive(&server.address(), 32).http("/", Some("Hello, client!")));
    load.wait_for_more(100);
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    let report = load.finish();
    // Clients that connect again are refused, or reset in a queue that is not read any more.
    let after = [Failure::Refused, Failure::ConnectReset, Failure::ReadReset]
        .map(|class| report.count(class));
    assert_eq!(report.failed(), after.iter().sum::<u64>(), "{report}");
    assert!(
        report.announced >= 32,
        "every connection was announced to close: {report}"
    );
}

fn ends_at_once(signals: &[Signal]) {
    let (mut server, load) = busy(20_000);
    let began = Instant::now();
    for (index, signal) in signals.iter().enumerate() {
        server.signal(*signal);
        // Two signals of one kind that arrive together are one.
        if index + 1 < signals.len() {
            wait_until("the stop to have begun", LONG, || {
                server
                    .try_status()
                    .is_some_and(|status| status["state"] == "stopping")
            });
        }
    }
    server.wait_exit(LONG);
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "it did not wait for the request"
    );
    assert_eq!(load.wait().answered, 0);
}

#[test]
fn int_stops_at_once() {
    ends_at_once(&[SIGINT]);
}

#[test]
fn a_term_to_a_worker_that_drains_already_cuts_off_no_request() {
    let server = setup().workers(2).args(["--app", "sleep"]).start();
    let load = start(
        Plan::fresh(&server.address(), 16)
            .http("/?ms=3000", None)
            .timeout(2 * LONG),
    );
    wait_until("requests in flight in both workers", LONG, || {
        let workers = server.workers();
        workers.len() == 2 && workers.iter().all(|worker| worker.busy > 0)
    });
    server.signal(SIGTTOU);
    let draining = wait_for("a worker that drains with requests in flight", LONG, || {
        server
            .workers()
            .into_iter()
            .find(|worker| worker.state == "draining" && worker.busy > 0)
    });
    draining.process.signal(SIGTERM);
    wait_until("its end", LONG, || !draining.process.runs());
    load.finish().assert_flawless();
}

#[test]
fn a_second_term_stops_at_once() {
    ends_at_once(&[SIGTERM, SIGTERM]);
}

#[test]
fn int_during_a_graceful_stop_stops_at_once() {
    ends_at_once(&[SIGTERM, SIGINT]);
}

#[test]
fn a_graceful_stop_ends_at_its_deadline() {
    let mut server = setup()
        .workers(1)
        .args(["--app", "sleep", "--graceful-timeout", "500ms"])
        .start();
    let load = start(
        Plan::fresh(&server.address(), 1)
            .http("/?ms=20000", None)
            .count(1),
    );
    wait_until("a request in flight", LONG, || server.busy() == 1);
    let began = Instant::now();
    server.signal(SIGTERM);
    server.wait_exit(LONG);
    assert!(
        began.elapsed() >= Duration::from_millis(500) && began.elapsed() < Duration::from_secs(10)
    );
    assert_eq!(load.wait().answered, 0);
}

#[test]
fn ttin_and_ttou_scale_by_one_and_lose_nothing() {
    let mut server = setup().workers(2).args(["--max-workers", "6"]).start();
    let load = start(Plan::kept_alive(&server.address(), 32).http("/", Some("Hello, client!")));
    let fresh = start(Plan::fresh(&server.address(), 8).http("/", Some("Hello, client!")));
    for (signal, workers) in [
        (SIGTTIN, 3),
        (SIGTTIN, 4),
        (SIGTTOU, 3),
        (SIGTTOU, 2),
        (SIGTTOU, 1),
        (SIGTTIN, 2),
    ] {
        server.signal(signal);
        wait_until(&format!("{workers} workers"), LONG, || {
            server.ready().len() == workers && server.is_settled()
        });
        fresh.wait_for_more(50);
    }
    // The last worker stays, however often one asks.
    for _ in 0..4 {
        server.signal(SIGTTOU);
        std::thread::sleep(Duration::from_millis(20));
    }
    wait_until("one worker", LONG, || {
        server.ready().len() == 1 && server.is_settled()
    });
    load.finish().assert_flawless();
    fresh.finish().assert_flawless();
    server.wait_until_settled(LONG);
}

#[test]
fn winch_drains_the_workers_and_keeps_the_sockets() {
    let mut server = setup().workers(2).args(["--min-ready", "50ms"]).start();
    let address = server.address();
    server.signal(SIGWINCH);
    wait_until("no workers", LONG, || server.workers().is_empty());
    assert_eq!(server.state(), "draining");
    // A client is still accepted by the kernel; it waits, and is served when workers come again.
    let load = start(
        Plan::fresh(&address, 4)
            .http("/", Some("Hello, client!"))
            .count(20)
            .timeout(LONG),
    );
    server.signal(SIGHUP);
    load.wait().assert_flawless();
    server.wait_until_settled(LONG);
}

#[test]
fn usr1_reopens_the_log() {
    let setup = setup().workers(1);
    let file = setup.path("server.log");
    let mut server = setup
        .args(["--log-file".into(), file.clone().into_os_string()])
        .start();
    let moved = server.path("server.log.1");
    std::fs::rename(&file, &moved).expect("there is a log");
    server.signal(SIGUSR1);
    wait_until("a new log", LONG, || file.exists());
    server.reload();
    wait_until("later lines in the new file", LONG, || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains("generation"))
    });
}

#[test]
fn usr2_and_unknown_signals_disturb_nothing() {
    let server = setup().workers(2).start();
    let before = server.ready();
    server.signal(SIGUSR2);
    server.signal(Signal::SIGPIPE);
    run(&Plan::fresh(&server.address(), 4).count(50)).assert_flawless();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.ready(), before);
}

#[test]
fn a_terminal_signal_to_the_group_reaches_no_worker() {
    // Workers are in process groups of their own, so that Ctrl-C asks the supervisor only.
    let server = setup().workers(2).start();
    let group = |pid: u32| {
        nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(
            i32::try_from(pid).expect("a pid"),
        )))
    };
    let supervisor = group(server.process().0).expect("it runs");
    for worker in server.ready() {
        assert_ne!(group(worker.0).expect("it runs"), supervisor);
    }
}

/// A server as a job of a terminal.
fn job(place: &str) -> Setup {
    let program = testkit::program("terminal.py").into_os_string();
    setup()
        .workers(2)
        .wrapped(["python3".into(), program, place.into()])
}

/// The process in a file that `terminal.py` has written.
fn noted(server: &Server, name: &str) -> Process {
    wait_for(name, LONG, || {
        let text = std::fs::read_to_string(server.path(name)).ok()?;
        Some(Process(text.parse().ok()?))
    })
}

#[test]
fn a_resized_terminal_drains_nothing() {
    let server = job("foreground").start();
    let before = server.workers();
    noted(&server, "terminal").signal(SIGUSR1);
    server.wait_for_log("resized");
    // The server has seen it by now, if it was sent one.
    server.signal(SIGTTIN);
    wait_until("a third worker", LONG, || server.ready().len() == 3);
    assert_eq!(server.workers()[..2], before);
    // A process may still ask for it.
    server.signal(SIGWINCH);
    wait_until("all drained", LONG, || server.workers().is_empty());
}

#[test]
fn a_background_job_of_a_terminal_logs_there_and_keeps_its_size() {
    let mut server = job("background").start();
    server.wait_for_log("is ready");
    noted(&server, "sibling").signal(SIGUSR1);
    server.wait_for_log("sent SIGTTOU");
    server.signal(SIGTTIN);
    wait_until("a third worker", LONG, || server.ready().len() == 3);
    server.signal(SIGTTOU);
    wait_until("two workers", LONG, || server.ready().len() == 2);
    let ticks = server.process().cpu_ticks();
    server.reload();
    server.wait_for_log("2 workers of generation 2 serve");
    assert!(
        server.process().cpu_ticks() < ticks + 100,
        "it does not spin"
    );
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
}

#[test]
fn a_file_that_reaches_the_limit_of_its_size_ends_no_process() {
    const LIMIT: usize = 64 << 10;
    let setup = setup()
        .workers(1)
        .args(["--log-file", "server.log", "--access-log", "access.log"])
        .wrapped(["prlimit".to_owned(), format!("--fsize={LIMIT}")]);
    for name in ["server.log", "access.log"] {
        setup.file(name, &"\n".repeat(LIMIT));
    }
    let mut server = setup.start();
    server.wait_for_log("error: cannot write log file server.log: File too large");
    let before = server.ready();
    for _ in 0..2 {
        assert_eq!(server.get("/").status, 200);
        server.reload();
    }
    assert_ne!(server.ready(), before);
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
}

#[test]
fn signals_that_come_while_the_server_starts_are_acted_on_later() {
    // A configuration that takes a while to parse.
    let text = "# nothing\n".repeat(100_000);
    let mut server = setup().workers(1).config(&text).spawn();
    let io = format!("/proc/{}/io", server.process().0);
    let end = Instant::now() + LONG;
    let has_read = |line: &str| {
        let count: usize = line.strip_prefix("rchar: ")?.parse().ok()?;
        (count > text.len()).then_some(())
    };
    while !std::fs::read_to_string(&io).is_ok_and(|io| io.lines().find_map(has_read).is_some()) {
        assert!(Instant::now() < end, "it does not read its configuration");
    }
    for signal in [SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN] {
        server.signal(signal);
    }
    server.wait_for_log("upgraded in place");
    wait_until("a reload, and a worker more", LONG, || {
        server.generation() >= 2 && server.ready().len() == 2
    });
    server.wait_until_settled(LONG);
}
