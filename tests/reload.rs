//! Reload: nothing is lost by a good one, nothing is changed by a bad one.

use nix::sys::signal::Signal::{SIGHUP, SIGTERM};
use std::time::Duration;
use testkit::load::{Plan, start};
use testkit::{LONG, Server, Setup, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).patient()
}

/// Sends SIGHUP twenty times in three seconds while clients ask without think time.
fn twenty_hups(class: &str, unix: bool, kept: bool) {
    let setup =
        setup()
            .workers(4)
            .args(["--class", class, "--threads", "8", "--min-ready", "50ms"]);
    let mut server = if unix { setup.bind_unix() } else { setup }.start();
    let (address, before) = (server.address(), server.generation());
    let plan = if kept {
        Plan::kept_alive(&address, 64)
    } else {
        Plan::fresh(&address, 16)
    };
    let load = start(plan.http("/", Some("Hello, client!")));
    load.wait_for_more(100);
    for _ in 0..20 {
        server.signal(SIGHUP);
        // Not to wait for anything: this is the load's rhythm.
        std::thread::sleep(Duration::from_millis(150));
    }
    server.wait_for_generation_after(before);
    load.wait_for_more(100);
    let report = load.finish();
    report.assert_flawless();
    assert!(
        report.generations.len() > 2,
        "several generations have answered: {report}"
    );
}

macro_rules! twenty_hups_lose_nothing {
    ($($name:ident: $class:literal, unix $unix:literal, kept $kept:literal;)+) => {$(
        #[test]
        fn $name() {
            twenty_hups($class, $unix, $kept);
        }
    )+};
}

twenty_hups_lose_nothing! {
    twenty_hups_lose_nothing_sync_tcp_new: "sync", unix false, kept false;
    twenty_hups_lose_nothing_sync_tcp_kept: "sync", unix false, kept true;
    twenty_hups_lose_nothing_sync_unix_new: "sync", unix true, kept false;
    twenty_hups_lose_nothing_sync_unix_kept: "sync", unix true, kept true;
    twenty_hups_lose_nothing_threads_tcp_new: "threads", unix false, kept false;
    twenty_hups_lose_nothing_threads_tcp_kept: "threads", unix false, kept true;
    twenty_hups_lose_nothing_threads_unix_new: "threads", unix true, kept false;
    twenty_hups_lose_nothing_threads_unix_kept: "threads", unix true, kept true;
    twenty_hups_lose_nothing_async_tcp_new: "async", unix false, kept false;
    twenty_hups_lose_nothing_async_tcp_kept: "async", unix false, kept true;
    twenty_hups_lose_nothing_async_unix_new: "async", unix true, kept false;
    twenty_hups_lose_nothing_async_unix_kept: "async", unix true, kept true;
}

#[test]
fn an_open_loop_of_new_connections_loses_nothing_either() {
    let mut server = setup().workers(4).args(["--min-ready", "50ms"]).start();
    let load = start(Plan::rate(&server.address(), 1000.0).http("/", Some("Hello, client!")));
    for _ in 0..5 {
        server.reload();
    }
    load.finish().assert_flawless();
}

#[test]
fn rolling_one_by_one_loses_nothing() {
    let mut server = setup()
        .workers(4)
        .args(["--min-ready", "50ms", "--surge", "1"])
        .start();
    let load = start(Plan::kept_alive(&server.address(), 32).http("/", Some("Hello, client!")));
    for _ in 0..3 {
        server.reload();
    }
    load.finish().assert_flawless();
}

#[test]
fn a_reload_reads_the_configuration_again() {
    let mut server = setup()
        .config("workers = 2\nmin-ready = \"50ms\"\n")
        .start();
    let load = start(Plan::fresh(&server.address(), 8).http("/", Some("Hello, client!")));
    for workers in [5, 1, 3] {
        server.file(
            "config.toml",
            &format!("workers = {workers}\nmin-ready = \"50ms\"\n"),
        );
        server.reload();
        assert_eq!(server.ready().len(), workers);
    }
    load.finish().assert_flawless();
}

#[test]
fn twenty_five_hups_in_a_row_end_in_one_settled_generation() {
    let mut server = setup().workers(4).args(["--min-ready", "50ms"]).start();
    let before = server.generation();
    let load = start(Plan::fresh(&server.address(), 8).http("/", Some("Hello, client!")));
    for pause in 0..25 {
        server.signal(SIGHUP);
        std::thread::sleep(Duration::from_millis(pause));
    }
    server.wait_for_generation_after(before);
    // Settled means settled: no further generation follows by itself.
    let (generation, pids) = (server.generation(), server.ready());
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(
        (server.generation(), server.ready(), server.is_settled()),
        (generation, pids, true)
    );
    load.finish().assert_flawless();
}

#[test]
fn term_during_a_reload_stops_the_server() {
    let mut server = slow_starter();
    server.file("app.py", &program("time.sleep(3600)"));
    server.signal(SIGHUP);
    wait_until("the candidate", LONG, || {
        server
            .workers()
            .iter()
            .any(|worker| worker.state == "starting")
    });
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
}

#[test]
fn hup_during_a_stop_does_not_keep_it() {
    let mut server = setup().workers(2).args(["--app", "sleep"]).start();
    let load = start(
        Plan::fresh(&server.address(), 2)
            .http("/?ms=5000", None)
            .timeout(2 * LONG)
            .count(2),
    );
    wait_until("requests in flight", LONG, || server.busy() == 2);
    server.signal(SIGTERM);
    server.signal(SIGHUP);
    assert!(server.wait_exit(LONG).success());
    load.wait().assert_flawless();
}

// ---- reloads that fail

/// A Python program that runs `before_ready`, then says that it is ready and serves.
fn program(before_ready: &str) -> String {
    let good = std::fs::read_to_string(testkit::program("minimal.py")).expect("the program");
    good.replacen("\nmain()\n", &format!("\n{before_ready}\nmain()\n"), 1)
}

/// A server whose program is `app.py` in its directory and must say that it is ready in time.
fn slow_starter() -> Server {
    // A `--min-ready` that is far longer than the second after which a program of these tests dies:
    // a machine that stands still for a while must not make the program outlive it.
    let setup = setup().workers(2).args([
        "--ready",
        "notify",
        "--start-timeout",
        "10s",
        "--min-ready",
        "4s",
    ]);
    setup.file("app.py", &program("pass"));
    let app = setup.path("app.py");
    setup
        .program(["python3".into(), app.into_os_string()])
        .start()
}

/// A reload that must fail for this reason: nothing changes, and a later good one works.
fn refused(mut server: Server, spoil: impl Fn(&Server), mend: impl Fn(&Server), reason: &str) {
    let (pids, generation) = (server.ready(), server.generation());
    let load = start(Plan::fresh(&server.address(), 4));
    spoil(&server);
    server.signal(SIGHUP);
    let line = server.wait_for_log(reason);
    wait_until("the old state", LONG, || server.is_settled());
    assert_eq!(
        (server.ready(), server.generation()),
        (pids.clone(), generation),
        "after `{line}`"
    );
    assert_eq!(
        server.log().count("reload failed"),
        1,
        "the verdict is logged once"
    );
    mend(&server);
    load.wait_for_more(20);
    server.reload();
    assert!(
        server.ready().iter().all(|process| !pids.contains(process)),
        "all are new"
    );
    load.wait_for_more(20);
    load.finish().assert_flawless();
}

#[test]
fn a_broken_configuration_changes_nothing() {
    let good = "workers = 2\nmin-ready = \"50ms\"\n";
    for (bad, reason) in [
        (
            "workers = 2\nmin-ready = \"50ms\"\nworkerz = 3\n",
            "workerz",
        ),
        ("workers = \"many\"\n", "workers: is text"),
        ("workers = [", "config.toml"),
    ] {
        let server = setup().config(good).start();
        refused(
            server,
            |s| s.file("config.toml", bad),
            |s| s.file("config.toml", good),
            reason,
        );
    }
}

#[test]
fn a_configuration_that_is_gone_changes_nothing() {
    let good = "workers = 2\nmin-ready = \"50ms\"\n";
    let gone =
        |server: &Server| std::fs::remove_file(server.path("config.toml")).expect("it was there");
    refused(
        setup().config(good).start(),
        gone,
        |s| s.file("config.toml", good),
        "config.toml",
    );
}

#[test]
fn a_program_that_exits_at_start_changes_nothing() {
    let bad = program("import sys; sys.exit(3)");
    refused(
        slow_starter(),
        |s| s.file("app.py", &bad),
        |s| s.file("app.py", &program("pass")),
        "status 3",
    );
}

#[test]
fn the_error_of_a_refused_program_is_in_the_answer_the_status_and_the_event() {
    let server = slow_starter();
    // The escape sequences are those of a runtime that colours its report.
    let bad = program(
        "import sys; print('\\x1b[31mno such table\\x1b[0m', file=sys.stderr); \
         raise RuntimeError('the database is away')",
    );
    server.file("app.py", &bad);
    let answer = server.command(&["reload", "--wait"]);
    assert!(!answer.status.success());
    let error = "before it was ready: RuntimeError: the database is away";
    let text = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert!(text.contains(error), "{text}");
    let status = server.status();
    let reason = status["last_reload"]["reason"].as_str().unwrap_or_default();
    assert!(reason.ends_with(error), "{status}");
    let events = server.command(&["events", "--json"]);
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    let refused = events.lines().find(|line| line.contains("reload-failed"));
    let refused = refused.expect("the event");
    assert!(
        refused.contains(error) && !refused.contains("u001b"),
        "{refused}"
    );
}

#[test]
fn an_ordinary_exit_repeats_nothing_of_standard_error() {
    let script = program("import sys; print('a remark', file=sys.stderr, flush=True)");
    let setup = setup().workers(1).args(["--ready", "notify"]);
    setup.file("app.py", &script);
    let app = setup.path("app.py").into_os_string();
    let mut server = setup.program(["python3".into(), app]).start();
    server.reload();
    let line = server.wait_for_log("is gone (reload)");
    assert!(!line.contains("a remark"), "{line}");
}

#[test]
fn a_program_that_never_gets_ready_changes_nothing() {
    let bad = program("time.sleep(3600)");
    let reason = "did not get ready";
    refused(
        slow_starter(),
        |s| s.file("app.py", &bad),
        |s| s.file("app.py", &program("pass")),
        reason,
    );
}

#[test]
fn a_program_that_dies_a_second_after_ready_changes_nothing() {
    let bad = program("notify('READY=1'); time.sleep(1); import sys; sys.exit(5)");
    refused(
        slow_starter(),
        |s| s.file("app.py", &bad),
        |s| s.file("app.py", &program("pass")),
        "status 5",
    );
}

#[test]
fn a_program_that_is_gone_changes_nothing() {
    let setup = setup().args(["--ready", "notify", "--min-ready", "100ms"]);
    setup.file("minimal.py", &program("pass"));
    let good = format!(
        "workers = 2\ncommand = [\"python3\", \"{}\"]\n",
        setup.path("minimal.py").display()
    );
    let server = setup.config(&good).start();
    let bad = "workers = 2\ncommand = [\"/nonexistent/program\"]\n";
    refused(
        server,
        |s| s.file("config.toml", bad),
        |s| s.file("config.toml", &good),
        "/nonexistent/program",
    );
}
