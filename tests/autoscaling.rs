//! `--workers MIN..MAX`: the number of workers follows the load without losing a request.

use nix::sys::signal::Signal::{SIGTTOU, SIGUSR2};
use std::time::{Duration, Instant};
use testkit::load::{Plan, start};
use testkit::{LONG, Server, Setup, skipped, tool, wait_until};

/// Two to six workers of one request at a time, which leave a second after they were needed last.
fn setup() -> Setup {
    let words = [
        "--workers=2..6",
        "--class=sync",
        "--app=sleep",
        "--scale-down-after=1s",
        "--min-ready=50ms",
    ];
    Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .patient()
        .args(words)
}

/// How many slots there are.
fn size(server: &Server) -> u64 {
    server.status()["workers"].as_u64().expect("a number")
}

fn wait_for_size(server: &Server, wanted: u64) {
    wait_until(&format!("{wanted} workers"), LONG, || {
        size(server) == wanted && server.workers().len() as u64 == wanted
    });
}

/// All requests that were ever answered, of retired slots, too.
fn requests(server: &Server) -> u64 {
    let status = server.status();
    let slots = status["slots"].as_array().expect("slots");
    slots
        .iter()
        .map(|slot| slot["totals"]["requests"].as_u64().expect("a number"))
        .sum()
}

#[test]
fn a_rush_is_met_at_once_and_the_added_workers_leave_when_it_is_over() {
    let server = setup().start();
    let (address, before) = (server.address(), requests(&server));
    let status = server.status();
    assert_eq!(
        (&status["min_workers"], &status["max_workers"]),
        (&2.into(), &6.into())
    );
    assert_eq!(server.ready().len(), 2);
    assert_eq!(
        server.ready()[0].variable("PREFORK_WORKERS").as_deref(),
        Some("6")
    );
    let steady = start(Plan::rate(&address, 20.0).http("/?ms=5", None));
    let began = Instant::now();
    let rush = start(Plan::fresh(&address, 8).http("/?ms=100", None));
    wait_for_size(&server, 6);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    rush.wait_for_more(100);
    let rush = rush.finish();
    wait_for_size(&server, 2);
    steady.wait_for_more(20);
    let steady = steady.finish();
    rush.assert_flawless();
    steady.assert_flawless();
    let answered = rush.answered + steady.answered;
    wait_until("every request is counted", LONG, || {
        requests(&server) == before + answered
    });
    assert!(server.log().count("connections waiting, no idle worker") > 0);
    assert!(server.log().count("was not needed for") >= 4, "one by one");
    assert_eq!(server.log().count("ERROR"), 0);
}

#[test]
fn many_rushes_in_a_row_lose_nothing() {
    let server = setup().start();
    let address = server.address();
    let steady = start(Plan::kept_alive(&address, 2).http("/?ms=1", None));
    for _ in 0..3 {
        let rush = start(Plan::fresh(&address, 8).http("/?ms=30", None));
        wait_until("more workers", LONG, || size(&server) > 4);
        rush.wait_for_more(50);
        rush.finish().assert_flawless();
        wait_until("fewer workers", LONG, || size(&server) < 5);
    }
    steady.finish().assert_flawless();
}

#[test]
fn a_request_that_lasts_keeps_its_worker_and_no_other() {
    let server = setup().start();
    let address = server.address();
    let rush = start(Plan::fresh(&address, 8).http("/?ms=50", None));
    wait_for_size(&server, 6);
    rush.finish().assert_flawless();
    // Some of them will be in the hands of workers that are not needed otherwise.
    let last = start(
        Plan::fresh(&address, 6)
            .http("/?ms=12000", None)
            .timeout(2 * LONG)
            .count(6),
    );
    wait_until("all of them to be in flight", LONG, || server.busy() == 6);
    last.wait().assert_flawless();
    wait_for_size(&server, 2);
}

#[test]
fn a_number_set_by_hand_is_the_least_until_the_next_reload_which_keeps_the_size() {
    let mut server = setup().start();
    assert!(server.command(&["scale", "5"]).status.success());
    wait_for_size(&server, 5);
    assert_eq!(server.status()["min_workers"], 5);
    server.signal(SIGTTOU);
    wait_for_size(&server, 4);
    // What was set survives an upgrade in place, and two seconds without any work.
    server.signal(SIGUSR2);
    server.wait_for_log("upgraded in place");
    let idle = server.status()["uptime"].as_f64().expect("a number") + 2.5;
    wait_until("two idle seconds", LONG, || {
        server.status()["uptime"].as_f64() > Some(idle)
    });
    assert_eq!(
        (size(&server), &server.status()["min_workers"]),
        (4, &4.into())
    );
    let before = server.log().count("starts");
    server.reload();
    assert_eq!(
        server.log().count("starts"),
        before + 4,
        "a reload keeps the size"
    );
    wait_for_size(&server, 2);
    let refused = server.command(&["scale", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("there can be 2 to 6 workers, not 1"),
        "{said}"
    );
}

#[test]
fn a_program_that_counts_nothing_grows_by_its_queues() {
    let Some(python) = tool("python3") else {
        return skipped("autoscaling python", "python3 is not installed");
    };
    let words = ["--workers=1..4", "--scale-down-after=1s", "--ready=notify"];
    let setup = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .patient()
        .args(words);
    let server = setup
        .program([python, testkit::program("minimal.py")])
        .start();
    let rush =
        start(Plan::fresh(&server.address(), 8).http("/sleep/0.1", Some("Hello from Python")));
    wait_for_size(&server, 4);
    rush.finish().assert_flawless();
    wait_for_size(&server, 1);
}

#[test]
fn no_worker_is_started_without_memory_for_it() {
    let server = setup().args(["--scale-up-memory=1MiB"]).start();
    let rush = start(Plan::fresh(&server.address(), 8).http("/?ms=30", None));
    server.wait_for_log("not scaling up: 2 workers");
    rush.wait_for_more(50);
    rush.finish().assert_flawless();
    assert_eq!(size(&server), 2);
    assert_eq!(server.log().count("not scaling up"), 1, "said once");
}

#[test]
fn workers_that_compute_get_help_by_the_processor_time_that_they_use() {
    let words = [
        "--workers=1..3",
        "--class=async",
        "--app=burn",
        "--scale-down-after=1s",
    ];
    let server = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .patient()
        .args(words)
        .start();
    // Its load is the processor time that it gets, so it must get some on a busy machine too.
    for worker in server.ready() {
        worker.favour();
    }
    let rush = start(Plan::kept_alive(&server.address(), 2).http("/?ms=20", None));
    wait_until("more workers", LONG, || size(&server) > 1);
    rush.finish().assert_flawless();
    wait_for_size(&server, 1);
}

#[test]
fn a_range_that_is_none_is_refused_with_the_remedy() {
    for (range, remedy) in [
        ("4..2", "4..2 ends before it begins (write 2..4)"),
        ("0..3", "0 in 0..3 is out of range (1 to 1024)"),
        ("2..", "`2..` is no range (write its two ends, like 2..16)"),
    ] {
        let words = ["--check", "--workers", range];
        let (status, lines) = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
            .patient()
            .args(words)
            .run();
        assert!(!status.success(), "{range}");
        assert!(
            lines.iter().any(|line| line.contains(remedy)),
            "{range}: {lines:?}"
        );
    }
}

/// Makes the recorded load curve of `supervisor/core/src/autoscale/curves/`: clients of ours come
/// and go by a random walk, and what they were answered in each second is written down.
/// `CURVE_RECORD=FILE cargo test --test autoscaling -- --ignored`
#[test]
#[ignore = "takes seven minutes and is run by hand"]
fn record_a_curve() {
    let Some(path) = std::env::var_os("CURVE_RECORD") else {
        return;
    };
    let server = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .patient()
        .args(["--workers=16", "--class=sync", "--app=sleep"])
        .start();
    let plan = Plan::fresh(&server.address(), 1).http("/?ms=50", None);
    let (mut dice, mut clients, mut counts) = (0x2545_f491_4f6c_dd1d_u64, Vec::new(), Vec::new());
    let (mut wanted, mut before) = (2, requests(&server));
    for second in 0..420 {
        if second % 7 == 0 {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            wanted = match dice % 10 {
                0..4 => wanted + 1,
                4..8 => wanted - 1,
                8 => 11,
                _ => 1,
            };
            wanted = wanted.clamp(1, 12);
        }
        while clients.len() < wanted {
            clients.push(start(plan.clone()));
        }
        for client in clients.split_off(wanted.min(clients.len())) {
            client.finish();
        }
        std::thread::sleep(Duration::from_secs(1));
        let now = requests(&server);
        counts.push((now - before).to_string());
        before = now;
    }
    let head = "# Requests answered in each second by 16 workers of `--class sync --app sleep`, at \
     50 ms each, for one to twelve\n\
                # clients without think time that came and went by a random walk. Made by \
                 record_a_curve in tests/autoscaling.rs.\n";
    std::fs::write(path, format!("{head}{}\n", counts.join("\n"))).expect("a file to write to");
    for client in clients {
        client.finish().assert_flawless();
    }
}
