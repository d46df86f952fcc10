//! What an idle server costs, and that a long life costs no more than a short one.

use nix::sys::signal::Signal::SIGHUP;
use std::time::Duration;
use testkit::load::{Plan, run};
use testkit::process::Process;
use testkit::{LONG, Server, Setup, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor"))
}

#[test]
fn an_idle_supervisor_wakes_at_most_twice_a_second() {
    let server = setup().workers(8).start();
    run(&Plan::fresh(&server.address(), 8).count(100)).assert_flawless();
    let workers = server.ready();
    let wakes = |processes: &[Process]| {
        processes
            .iter()
            .map(|one| one.voluntary_switches())
            .sum::<u64>()
    };
    let supervisor = [server.process()];
    // The last status was a wake-up, too; nothing but time passes in between.
    let before = (wakes(&supervisor), wakes(&workers));
    std::thread::sleep(Duration::from_secs(5));
    let after = (wakes(&supervisor), wakes(&workers));
    println!(
        "wake-ups in 5 s: supervisor {}, 8 workers {}",
        after.0 - before.0,
        after.1 - before.1
    );
    assert!(
        after.0 - before.0 <= 2 * 5 + 2,
        "{} wake-ups in 5 s",
        after.0 - before.0
    );
}

#[test]
fn memory_is_small() {
    let server = setup().workers(8).start();
    run(&Plan::fresh(&server.address(), 8).count(400)).assert_flawless();
    let supervisor = server.process().resident_kib();
    let workers: Vec<u64> = server
        .ready()
        .iter()
        .map(|worker| worker.resident_kib())
        .collect();
    let shares: Vec<u64> = server
        .ready()
        .iter()
        .map(|worker| worker.proportional_kib())
        .collect();
    println!("resident KiB: supervisor {supervisor}, workers {workers:?}; proportional {shares:?}");
    // A debug build is several times as large and says nothing.
    if !cfg!(debug_assertions) {
        assert!(supervisor < 6 * 1024, "supervisor: {supervisor} KiB");
        assert!(
            workers.iter().all(|kib| *kib < 8 * 1024),
            "workers: {workers:?} KiB"
        );
    }
}

/// How many descriptors the supervisor has, and how many processes. The connection that last asked
/// for the status may be open for a moment more, so the fewest of a few looks count.
fn facts(server: &Server) -> (usize, usize) {
    let look = || {
        std::thread::sleep(Duration::from_millis(5));
        (server.process().descriptors(), server.descendants().len())
    };
    (0..10).map(|_| look()).min().expect("ten looks")
}

#[test]
fn a_hundred_reloads_leave_no_trace() {
    let mut server = setup()
        .workers(2)
        .args(["--min-ready", "0s", "--drain-idle", "0s"])
        .start();
    // The first reloads warm allocators and caches, and fill the journal of events.
    let rounds = |server: &mut Server, count: usize| (0..count).for_each(|_| server.reload());
    rounds(&mut server, 60);
    let (before, memory) = (facts(&server), server.process().resident_kib());
    rounds(&mut server, 100);
    wait_until("descriptors and processes as before", LONG, || {
        facts(&server) == before
    });
    let after = server.process().resident_kib();
    println!("resident KiB before and after a hundred reloads: {memory}, {after}");
    assert!(
        after <= memory + 512,
        "memory grew from {memory} to {after} KiB"
    );
    let zombies = server
        .process()
        .children()
        .iter()
        .filter(|child| !child.runs())
        .count();
    assert_eq!(zombies, 0);
}

#[test]
fn failed_reloads_leave_no_trace_either() {
    let good = "workers = 2\nmin-ready = \"0s\"\n";
    let mut server = setup().config(good).start();
    server.reload();
    let before = facts(&server);
    for round in 1..=20 {
        server.file("config.toml", "workers = 2\ncommand = [\"false\"]\n");
        let output = server.command(&["reload", "--wait"]);
        assert_eq!(output.status.code(), Some(1), "round {round}: {output:?}");
    }
    server.file("config.toml", good);
    wait_until("the last candidate to be gone", LONG, || {
        server.is_settled()
    });
    wait_until("descriptors and processes as before", LONG, || {
        facts(&server) == before
    });
    server.signal(SIGHUP);
    wait_until("a good reload", LONG, || server.is_settled());
}

#[test]
fn workers_inherit_nothing_but_what_is_theirs() {
    let server = setup().workers(2).start();
    for worker in server.ready() {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", worker.0)).expect("its descriptors");
        let targets: Vec<String> = fds
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
            .map(|target| target.to_string_lossy().into_owned())
            .collect();
        let internal = |target: &&String| target.contains("pidfd") || target.contains("signalfd");
        assert_eq!(targets.iter().find(internal), None, "{targets:?}");
    }
}
