//! What the slots have done, dead workers included, never goes back: not by kills, reloads,
//! upgrades or a changed class.

use nix::sys::signal::Signal::{SIGKILL, SIGUSR2};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use testkit::load::{Plan, run, start};
use testkit::{LONG, Server, Setup, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .copied()
        .patient()
}

/// Every number of every slot, by its name.
fn totals(status: &Value) -> BTreeMap<(u64, String), u64> {
    let mut all = BTreeMap::new();
    for slot in status["slots"].as_array().expect("slots") {
        let number = slot["slot"].as_u64().expect("a number");
        for (name, value) in slot["totals"].as_object().expect("totals") {
            let values = value
                .as_array()
                .cloned()
                .unwrap_or_else(|| vec![value.clone()]);
            for (place, value) in values.iter().enumerate() {
                all.insert(
                    (number, format!("{name} {place}")),
                    value.as_u64().expect("a number"),
                );
            }
        }
    }
    all
}

/// The sum over all slots, of all numbers of this name.
fn sum(server: &Server, name: &str) -> u64 {
    let all = totals(&server.status());
    all.iter()
        .filter(|((_, key), _)| key.starts_with(&format!("{name} ")))
        .map(|(_, value)| value)
        .sum()
}

/// The status by the control socket itself, as a process for each look would be slow; `None` while
/// there is no answer.
fn look(server: &Server) -> Option<Value> {
    let mut stream = UnixStream::connect(server.control()).ok()?;
    stream.write_all(b"{\"command\":\"status\"}\n").ok()?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).ok()?;
    let answer: Value = serde_json::from_str(&answer).ok()?;
    Some(answer["status"].clone())
}

/// Looks again and again while something happens; nothing that was seen may be less later.
fn watched(server: &Server, happens: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (mut looks, mut last) = (0_u64, BTreeMap::new());
            loop {
                let end = over.load(Relaxed);
                let Some(status) = look(server) else { continue };
                let now = totals(&status);
                for (key, was) in &last {
                    let is = now.get(key);
                    assert!(
                        is >= Some(was),
                        "slot {} {}: {was}, then {is:?}",
                        key.0,
                        key.1
                    );
                }
                last = now;
                looks += 1;
                if end {
                    return looks;
                }
            }
        });
        happens();
        over.store(true, Relaxed);
        let looks = watcher.join().expect("nothing goes back");
        assert!(looks > 10, "only {looks} looks");
    });
}

#[test]
fn totals_never_go_back_and_miss_nothing_over_reloads_and_upgrades() {
    let mut server = setup()
        .config("workers = 3\nmin-ready = \"20ms\"\n")
        .start();
    // What the readiness check of the kit has asked, if it has.
    let before: Vec<_> = ["requests", "connections", "bytes_in", "latency"]
        .iter()
        .map(|name| sum(&server, name))
        .collect();
    let fresh = start(Plan::fresh(&server.address(), 4).http("/", Some("Hello, client!")));
    let kept = start(Plan::kept_alive(&server.address(), 8).http("/", Some("Hello, client!")));
    let (address, process) = (server.address(), server.process());
    let reload = |server: &mut Server, class: &str| {
        server.file(
            "config.toml",
            &format!("workers = 3\nmin-ready = \"20ms\"\nclass = \"{class}\"\n"),
        );
        server.reload();
        kept.wait_for_more(50);
    };
    for class in ["threads", "async"] {
        reload(&mut server, class);
        watched(&server, || {
            let reloads = server.log().count("upgraded in place");
            server.signal(SIGUSR2);
            wait_until("an upgrade", LONG, || {
                server.log().count("upgraded in place") > reloads
            });
            fresh.wait_for_more(50);
            assert_eq!(
                (server.address(), server.process()),
                (address.clone(), process)
            );
            assert!(server.command(&["reload", "--wait"]).status.success());
            fresh.wait_for_more(50);
            assert!(server.command(&["reload", "--wait"]).status.success());
            kept.wait_for_more(50);
        });
    }
    let (fresh, kept) = (fresh.finish(), kept.finish());
    fresh.assert_flawless();
    kept.assert_flawless();
    let answered = fresh.answered + kept.answered;
    wait_until("every request is counted", LONG, || {
        sum(&server, "requests") == before[0] + answered
    });
    assert_eq!(
        sum(&server, "latency"),
        before[3] + answered,
        "each is in one bucket"
    );
    assert!(sum(&server, "connections") >= before[1] + fresh.answered);
    assert!(sum(&server, "bytes_in") > before[2] && sum(&server, "busy_us") > 0);
    assert_eq!(sum(&server, "errors"), 0);
    // When nothing is lost, the bytes of one more request are the same, whichever worker serves it.
    let all = (sum(&server, "bytes_in"), sum(&server, "bytes_out"));
    run(&Plan::fresh(&address, 1).count(1)).assert_flawless();
    wait_until("one more", LONG, || {
        sum(&server, "bytes_in") > all.0 && sum(&server, "bytes_out") > all.1
    });
    let one = (
        sum(&server, "bytes_in") - all.0,
        sum(&server, "bytes_out") - all.1,
    );
    run(&Plan::fresh(&address, 4).count(100)).assert_flawless();
    wait_until("a hundred more", LONG, || {
        (sum(&server, "bytes_in"), sum(&server, "bytes_out"))
            == (all.0 + 101 * one.0, all.1 + 101 * one.1)
    });
}

#[test]
fn totals_never_go_back_when_workers_are_killed() {
    let server = setup()
        .config("workers = 3\nmin-ready = \"20ms\"\n")
        .start();
    let before = sum(&server, "requests");
    let load = start(Plan::fresh(&server.address(), 8));
    watched(&server, || {
        for round in 0..6 {
            load.wait_for_more(50);
            let worker = server
                .workers()
                .into_iter()
                .find(|worker| worker.slot == round % 3);
            if let Some(worker) = worker {
                worker.process.signal(SIGKILL);
                server.wait_for_replacement(round % 3, worker.process);
            }
        }
    });
    let report = load.finish();
    let counted = || sum(&server, "requests") - before;
    wait_until("what was answered is counted", LONG, || {
        counted() >= report.answered
    });
    assert!(
        counted() <= report.answered + report.failed(),
        "{} of {report}",
        counted()
    );
}
