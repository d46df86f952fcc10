//! The program of `--on-event`: it hears of what matters, and whatever it does, the server goes on.

use nix::sys::signal::Signal::{SIGHUP, SIGKILL, SIGTERM, SIGUSR2};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::load::{Plan, run};
use testkit::process::{self, Process};
use testkit::{LONG, Server, Setup, wait_for, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "50ms"])
}

/// A hook that is a shell script, in the server's directory `$HERE`.
fn hooked(setup: Setup, script: &str) -> Setup {
    let here = setup.path("");
    setup.file(
        "hook",
        &format!("#!/bin/sh\nHERE='{}'\n{script}\n", here.display()),
    );
    let hook = setup.path("hook");
    std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).expect("executable");
    setup.args(["--on-event".into(), hook.into_os_string()])
}

/// A hook that keeps every event: written aside and renamed, so that a reader never sees half of
/// one.
const STORES: &str = "cat > $HERE/event.$$ && mv $HERE/event.$$ $HERE/$PREFORK_EVENT.$$.json";

/// The events of a kind that it has stored.
fn stored_events(server: &Server, kind: &str) -> Vec<Value> {
    let files = std::fs::read_dir(server.directory()).expect("the directory");
    let wanted = |name: &str| {
        let is_json = Path::new(name).extension().is_some_and(|end| end == "json");
        is_json && name.starts_with(&format!("{kind}."))
    };
    let files = files
        .map(|file| file.expect("a file"))
        .filter(|file| wanted(&file.file_name().to_string_lossy()));
    let read = |path| {
        serde_json::from_slice(&std::fs::read(path).expect("an event")).expect("one event, in JSON")
    };
    files.map(|file| read(file.path())).collect()
}

/// Waits for the first event of a kind.
fn event(server: &Server, kind: &str) -> Value {
    wait_for(&format!("the event {kind}"), LONG, || {
        stored_events(server, kind).into_iter().next()
    })
}

#[test]
fn each_notable_event_reaches_the_program_as_json() {
    let mut server = hooked(setup().workers(2), STORES).start();
    let ready = event(&server, "server-ready");
    assert_eq!(
        (&ready["kind"], &ready["workers"]),
        (&"server-ready".into(), &2.into())
    );
    let victim = server.workers().into_iter().next().expect("a worker");
    victim.process.signal(SIGKILL);
    let died = event(&server, "died");
    assert_eq!(
        (&died["cause"], &died["worker"], &died["level"]),
        (&"signal".into(), &victim.id.into(), &"error".into())
    );
    server.wait_until_settled(LONG);
    server.reload();
    event(&server, "reloaded");
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    event(&server, "stopping");
    // Normal exits cause no event.
    assert_eq!(
        stored_events(&server, "died").len(),
        1,
        "workers that a reload or a stop sends away"
    );
    assert_eq!(
        (
            stored_events(&server, "starting").len(),
            stored_events(&server, "ready").len()
        ),
        (0, 0)
    );
}

#[test]
fn an_upgrade_ends_no_hook_and_misses_no_event() {
    // Six reloads are more events than hooks at a time; each hook waits until it is released.
    let script =
        format!("touch $HERE/began.$$; until [ -e $HERE/go ]; do sleep 0.02; done; {STORES}");
    let mut server = hooked(
        setup()
            .copied()
            .workers(1)
            .args(["--on-event-kinds", "reloaded"])
            // The hooks are held up for as long as six reloads take, on a busy machine too.
            .args(["--on-event-timeout", "10m"]),
        &script,
    )
    .start();
    (0..6).for_each(|_| server.reload());
    let began = || {
        std::fs::read_dir(server.directory()).map_or(0, |files| {
            files
                .flatten()
                .filter(|file| file.file_name().to_string_lossy().starts_with("began."))
                .count()
        })
    };
    wait_until("four hooks", LONG, || began() == 4);
    server.signal(SIGUSR2);
    server.wait_for_log("upgraded in place");
    // A death has the supervisor look for what a worker may have left.
    server
        .workers()
        .into_iter()
        .next()
        .expect("a worker")
        .process
        .signal(SIGKILL);
    server.wait_for_log("killed by SIGKILL");
    wait_until("another worker", LONG, || server.is_settled());
    assert_eq!(
        (stored_events(&server, "reloaded").len(), began()),
        (0, 4),
        "no hook was released, none has given up"
    );
    server.file("go", "");
    wait_until("all six", LONG, || {
        stored_events(&server, "reloaded").len() == 6
    });
}

#[test]
fn kinds_can_be_chosen_and_a_wrong_one_is_refused() {
    let chosen = setup().workers(1).args([
        "--on-event-kinds",
        "starting",
        "--on-event-kinds",
        "reload-failed",
    ]);
    let server = hooked(chosen.config(""), STORES).start();
    event(&server, "starting");
    server.file("config.toml", "nonsense = 1\n");
    server.signal(SIGHUP);
    let failed = event(&server, "reload-failed");
    assert!(
        failed["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("nonsense")),
        "{failed}"
    );
    assert!(stored_events(&server, "server-ready").is_empty());
    let (status, lines) = hooked(setup().workers(1), STORES)
        .args(["--on-event-kinds", "birthday"])
        .run();
    assert_eq!(status.code(), Some(2));
    let words = lines.join("\n");
    assert!(
        words.contains("`birthday` is no kind of event") && words.contains("reload-failed"),
        "{words}"
    );
}

#[test]
fn a_program_that_is_not_there_refuses_the_start_and_the_reload() {
    let (status, lines) = setup()
        .workers(1)
        .args(["--on-event", "/nowhere/hook"])
        .run();
    assert_eq!(status.code(), Some(1), "{lines:?}");
    assert!(lines.join("\n").contains("on-event: "), "{lines:?}");
    let mut server = setup().config("workers = 1\n").start();
    let before = server.ready();
    server.file("config.toml", "workers = 1\non-event = \"/nowhere/hook\"\n");
    let output = server.command(&["reload", "--wait"]);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && words.contains("/nowhere/hook"),
        "{words}"
    );
    assert_eq!(server.ready(), before);
    server.wait_until_settled(LONG);
}

#[test]
fn one_that_takes_too_long_is_killed_with_what_it_has_started() {
    let script = "echo $$ > $HERE/pid.new; mv $HERE/pid.new $HERE/pid; trap '' TERM; sleep 600 & \
     wait; sleep 600";
    let hasty = setup().workers(1).args([
        "--on-event-timeout",
        "2s",
        "--on-event-kinds",
        "server-ready",
    ]);
    let server = hooked(hasty, script).start();
    let pid = wait_for("the hook", LONG, || {
        std::fs::read_to_string(server.path("pid")).ok()
    });
    let hook = Process(pid.trim().parse().expect("a pid"));
    server.wait_for_log("takes too long");
    wait_until("its end", LONG, || {
        process::in_group(hook.0)
            .iter()
            .all(|member| !member.runs())
    });
    assert!(server.get("/").body.contains("Hello"));
}

/// How long a slot that has failed many times may stay empty: half a minute, and what a busy
/// machine takes to start its worker.
const BACKED_OFF: Duration = LONG.saturating_mul(4);

#[test]
fn a_flood_of_events_starts_four_at_a_time_and_the_server_serves() {
    // Every worker dies at once, over and over; every hook takes its time.
    let script = "n=$(ls -d $HERE/running.* 2>/dev/null | wc -l); mkdir $HERE/running.$$; echo $n \
     >> $HERE/seen; sleep 0.3; rmdir $HERE/running.$$";
    let kinds = ["starting", "ready", "died"].map(|kind| format!("--on-event-kinds={kind}"));
    let server = hooked(setup().workers(8).args(kinds), script).start();
    for _ in 0..12 {
        server
            .ready()
            .iter()
            .for_each(|worker| worker.signal(SIGKILL));
        wait_until("a worker serves", BACKED_OFF, || !server.ready().is_empty());
    }
    let missed = server.wait_for_log("events wait for the program of on-event");
    assert!(missed.contains("64 events wait"), "{missed}");
    wait_until("all slots are filled", BACKED_OFF, || {
        server.ready().len() == 8
    });
    run(&Plan::fresh(&server.address(), 4).count(200)).assert_flawless();
    server.wait_for_log("events: too slow");
    let seen = std::fs::read_to_string(server.path("seen")).expect("hooks ran");
    let most = seen
        .lines()
        .map(|count| count.parse::<u32>().expect("a count"))
        .max();
    assert!(
        most.is_some_and(|most| most <= 3),
        "besides itself, a hook saw {most:?} others"
    );
}

#[test]
fn one_that_fails_is_a_line_in_the_log_and_starts_nothing() {
    let server = hooked(setup().workers(1), "exit 7").start();
    let line = server.wait_for_log("started for the event server-ready: exited with status 7");
    assert!(line.contains("WARN"), "{line}");
    let events = server.command(&["events", "--json"]);
    assert!(!String::from_utf8_lossy(&events.stdout).contains("status 7"));
}

#[test]
fn a_stop_waits_two_seconds_for_hooks_and_no_longer() {
    let mut server = hooked(
        setup().workers(1).args(["--on-event-kinds", "stopping"]),
        "sleep 600",
    )
    .start();
    server.signal(SIGTERM);
    let asked = Instant::now();
    assert!(server.wait_exit(LONG).success());
    let took = asked.elapsed();
    println!("the stop took {took:?}");
    assert!(
        took >= Duration::from_millis(1500),
        "it waited for {took:?} only"
    );
}

#[test]
fn it_is_the_workers_user_and_has_none_of_our_descriptors() {
    if !nix::unistd::geteuid().is_root() {
        return testkit::skipped("it_is_the_workers_user", "only root can change users");
    }
    let setup = setup()
        .workers(1)
        .args(["--user", "nobody", "--on-event-kinds", "server-ready"]);
    std::fs::set_permissions(setup.path(""), PermissionsExt::from_mode(0o777))
        .expect("a place to write");
    let script = "{ id -u; ls /proc/$$/fd | tr '\\n' ' '; env; grep -E 'CapEff|CapBnd' \
     /proc/$$/status; } > $HERE/told.new; mv $HERE/told.new $HERE/told";
    let server = hooked(setup, script).start();
    let told = wait_for("its output", LONG, || {
        std::fs::read_to_string(server.path("told")).ok()
    });
    let mut lines = told.lines();
    assert_eq!(lines.next(), Some("65534"), "{told}");
    let descriptors: Vec<u32> = lines
        .next()
        .expect("descriptors")
        .split_whitespace()
        .map_while(|number| number.parse().ok())
        .collect();
    // The shell has one of its own: that of its script.
    assert!(
        descriptors
            .iter()
            .filter(|number| **number > 2 && **number < 10)
            .count()
            <= 1,
        "{told}"
    );
    assert!(
        told.contains("PREFORK_EVENT=server-ready") && !told.contains("LISTEN_FDS"),
        "{told}"
    );
    assert!(told.contains("CapEff:\t0000000000000000"), "{told}");
}
