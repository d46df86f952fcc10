//! Programs that know nothing of this project, only systemd's contract or less. Servers of many
//! stacks are in tests/stacks.rs.

use nix::sys::signal::Signal::SIGTERM;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::thread::JoinHandle;
use testkit::load::{Plan, start};
use testkit::{LONG, Server, Setup, skipped, tool, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "100ms"])
}

/// The tool's path, or a visible note that the test was skipped.
fn needs(test: &str, name: &str) -> Option<PathBuf> {
    let found = tool(name);
    if found.is_none() {
        skipped(
            test,
            &format!("{name} is not installed (scripts/peers installs it)"),
        );
    }
    found
}

#[test]
fn a_program_that_says_nothing_counts_as_ready_after_a_while() {
    let Some(python) = needs("silent python", "python3") else {
        return;
    };
    let setup = setup()
        .workers(2)
        .args(["--ready", "after=300ms"])
        .env("READY", "no");
    let mut server = setup
        .program([python, testkit::program("minimal.py")])
        .start();
    let load = start(Plan::fresh(&server.address(), 4).http("/", Some("Hello from Python")));
    load.wait_for_more(20);
    server.reload();
    load.wait_for_more(20);
    load.finish().assert_flawless();
    let times = testkit::ready_after(server.log(), 4);
    assert!(
        times.len() == 4 && times.iter().all(|time| time.as_millis() >= 300),
        "{times:?}"
    );
}

#[test]
fn a_program_finds_systemds_contract_and_nothing_of_the_supervisors_own() {
    let Some(_) = needs("environment", "python3") else {
        return;
    };
    let setup = setup()
        .workers(1)
        .args(["--ready", "notify"])
        .env("LEFT", "alone");
    let program = testkit::program("minimal.py").into_os_string();
    let server = setup.program(["python3".into(), program]).start();
    let worker = server.ready()[0];
    let variable = |name: &str| worker.variable(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(variable("LISTEN_FDS"), "1");
    assert_eq!(variable("LISTEN_PID"), worker.0.to_string());
    assert_eq!(
        (variable("PREFORK_SLOT"), variable("PREFORK_WORKERS")),
        ("0".to_owned(), "1".to_owned())
    );
    assert_eq!(
        variable("PREFORK_GENERATION"),
        server.generation().to_string()
    );
    assert_eq!(variable("LEFT"), "alone");
    assert!(!variable("LISTEN_FDNAMES").is_empty() && !variable("NOTIFY_SOCKET").is_empty());
    assert_eq!(
        worker.variable("PREFORK_CHANNEL"),
        None,
        "external programs get no channel"
    );
}

#[test]
fn a_program_that_ignores_the_request_to_leave_is_killed_at_the_deadline() {
    let script = "trap '' TERM; echo deaf; while :; do sleep 0.1; done";
    let setup = setup()
        .workers(1)
        .args(["--ready", "after=100ms", "--graceful-timeout", "500ms"]);
    let mut server = setup.program(["sh", "-c", script]).start();
    server.wait_for_log("deaf");
    let old = server.ready();
    server.reload();
    assert!(old.iter().all(|process| !process.runs()));
}

#[test]
fn with_graceful_timeout_off_a_worker_drains_for_as_long_as_it_needs() {
    let script = "trap '' TERM; echo deaf; while [ ! -e leave ]; do sleep 0.05; done";
    let mut server = setup()
        .workers(1)
        .args(["--ready", "after=100ms", "--graceful-timeout", "off"])
        .program(["sh", "-c", script])
        .start();
    server.wait_for_log("deaf");
    let worker = server.ready()[0];
    server.signal(SIGTERM);
    server.wait_for_log("workers have as long as they need to finish");
    testkit::wait_until("it drains", LONG, || {
        server
            .workers()
            .iter()
            .all(|worker| worker.state == "draining")
    });
    assert!(server.try_exit().is_none() && worker.runs());
    server.file("leave", "");
    assert!(server.wait_exit(LONG).success());
    server.wait_for_log("is gone (stop): exited with status 0");
}

#[test]
fn a_program_is_asked_to_leave_by_the_signal_that_it_understands() {
    let script = "trap '' TERM INT QUIT; trap 'echo asked; exit 0' USR2; echo listens; while :; do \
     sleep 0.1; done";
    let setup = setup()
        .workers(1)
        .args(["--ready", "after=100ms", "--stop-signal", "USR2"]);
    let mut server = setup.program(["sh", "-c", script]).start();
    // It counts as ready after its time, whether or not it has set its traps by then.
    server.wait_for_log("listens");
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    server.wait_for_log("asked");
    server.wait_for_log("is gone (stop): exited with status 0");
}

/// As WEBrick does when it is told to stop. The successor of each worker has the same socket.
#[test]
fn slots_have_their_own_queues_again_after_workers_shut_their_sockets_down() {
    let Some(python) = needs("shutdown", "python3") else {
        return;
    };
    let mut server = setup()
        .workers(4)
        .args(["--ready", "notify"])
        .env("SHUTDOWN", "yes")
        .program([python, testkit::program("minimal.py")])
        .start();
    for round in 1..=3 {
        server.reload();
        // They accept nothing any more: they exit by themselves, or are terminated.
        wait_until("the successors to be replaced", LONG, || {
            server.log().count("; replacing it ") >= 4 * round && server.is_settled()
        });
    }
    let slots: BTreeSet<_> = (0..64)
        .filter_map(|_| server.get("/").header("x-prefork-slot").map(str::to_owned))
        .collect();
    assert_eq!(slots.len(), 4, "{slots:?}");
    assert_eq!(server.log().count("cannot steer"), 0);
}

/// A server behind a shell that does not exec it, and the request that it is answering.
fn behind_a_shell(shell: &str, options: &[&str]) -> Option<(Server, JoinHandle<Option<String>>)> {
    needs("behind a shell", "python3")?;
    // The sockets are for the shell's process.
    let python = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); \
                  exec(open(sys.argv[1]).read())";
    let script = format!("{shell} python3 -c \"$1\" \"$2\"; exit $?");
    let setup = setup()
        .workers(1)
        .args(["--ready", "notify"])
        .args(options.to_vec());
    let in_flight = setup.path("in-flight");
    let setup = setup.env("IN_FLIGHT", &in_flight);
    let program = testkit::program("minimal.py").display().to_string();
    let server = setup
        .program(["sh", "-c", &script, "sh", python, &program])
        .start();
    let address = server.address();
    let request = std::thread::spawn(move || {
        let response = testkit::http::get(&address, "/slow").ok()?;
        Some(response.body)
    });
    wait_until("the request in flight", LONG, || in_flight.exists());
    Some((server, request))
}

#[test]
fn what_outlives_a_shell_finishes_its_request() {
    let Some((mut server, request)) = behind_a_shell("", &[]) else {
        return;
    };
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    let answer = request.join().expect("no panic");
    assert_eq!(answer.as_deref(), Some("Hello from Python"));
    assert_eq!(server.log().count("drain-timeout"), 0);
}

#[test]
fn all_of_a_group_can_get_the_stop_signal_at_once() {
    let options = ["--kill-mode", "control-group", "--graceful-timeout", "5m"];
    let Some((mut server, request)) = behind_a_shell("trap '' HUP; trap : TERM;", &options) else {
        return;
    };
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    let answer = request.join().expect("no panic");
    assert_eq!(answer.as_deref(), Some("Hello from Python"));
}

#[test]
fn what_does_not_end_is_killed_when_the_time_is_over() {
    let script = "(trap '' TERM; exec sleep 3600) & exec sleep 3600";
    let mut server = setup()
        .workers(1)
        .args(["--ready", "after=0s", "--graceful-timeout", "1s"])
        .program(["sh", "-c", script])
        .start();
    let worker = server.ready()[0];
    wait_until("both processes", LONG, || {
        testkit::process::in_group(worker.0).len() == 2
    });
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    server.wait_for_log("died (drain-timeout)");
}

/// Sends notices and serves nothing: what a program says of itself.
const REPORTS: &str = "
import os, socket, time
line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to = os.environ['NOTIFY_SOCKET'].replace('@', '\\0')
line.sendto(b'READY=1', to)
said = None
while True:
    try:
        text = open('report').read()
    except OSError:
        text = None
    if text and text != said:
        line.sendto(text.encode(), to)
        said = text
    time.sleep(0.02)
";

#[test]
fn what_a_program_does_not_count_is_not_shown_as_zero() {
    let server = setup()
        .workers(2)
        .args(["--ready", "notify", "--admin", "127.0.0.1:0"])
        .program(["python3", "-c", REPORTS])
        .start();
    let status = server.status();
    let slot = &status["slots"][0];
    for (object, name) in [
        (&slot["totals"], "requests"),
        (&slot["totals"], "connections"),
        (&slot["totals"], "errors"),
        (&slot["workers"][0]["scoreboard"], "requests"),
        (&slot["workers"][0]["scoreboard"], "busy"),
        (&slot["workers"][0]["scoreboard"], "open"),
    ] {
        assert!(object[name].is_null(), "{name}: {}", object[name]);
    }
    let text = |words: &[&str]| {
        let output = server.command(words);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let row = |text: &str| -> Vec<String> {
        let row = text
            .lines()
            .find(|line| line.trim_start().starts_with("0 "));
        let cells = row.expect("a row").split_whitespace();
        cells.map(str::to_owned).collect()
    };
    let shown = text(&["status"]);
    assert_eq!(row(&shown)[5..8], ["-", "-", "-"], "{shown}");
    let top = text(&["top", "--batch", "-n", "1", "--interval", "100ms"]);
    assert!(top.contains("requests -  "), "{top}");
    let admin: testkit::Address = status["admin"][0]
        .as_str()
        .expect("an address")
        .parse()
        .expect("an address");
    let metrics = || {
        let answer = testkit::http::get(&admin, "/metrics");
        answer.expect("an answer").body
    };
    let page = metrics();
    for family in [
        "prefork_slot_requests_total{",
        "prefork_slot_connections_total{",
        "prefork_slot_requests_in_hand{",
        "prefork_slot_open_connections{",
        "prefork_slot_oldest_request_seconds{",
        "prefork_slot_request_duration_seconds_count{",
    ] {
        assert!(!page.contains(family), "{family}\n{page}");
    }
    assert!(page.contains("prefork_slot_queue{"), "{page}");

    // What it reports is shown, and its total survives it.
    server.file(
        "report",
        "PREFORK_REQUESTS=41\nPREFORK_ACTIVE=3\nSTATUS=busy",
    );
    let requests = |slot: usize| server.status()["slots"][slot]["totals"]["requests"].as_u64();
    testkit::wait_until("it is reported", LONG, || {
        requests(0) == Some(41) && requests(1) == Some(41)
    });
    let shown = text(&["status"]);
    assert_eq!(row(&shown)[5..8], ["41", "-", "3"], "{shown}");
    testkit::wait_until("it is a metric", LONG, || {
        let page = metrics();
        page.contains("prefork_slot_requests_total{slot=\"0\"} 41\n")
            && page.contains("prefork_slot_requests_in_hand{slot=\"0\"} 3\n")
    });
    let old = server.workers()[0].process;
    old.signal(nix::sys::signal::Signal::SIGKILL);
    server.wait_for_replacement(0, old);
    testkit::wait_until("both have counted", LONG, || requests(0) == Some(82));
    server.file("report", "PREFORK_REQUESTS=40\nPREFORK_ACTIVE=1");
    let busy = || server.workers().iter().all(|worker| worker.busy == 1);
    testkit::wait_until("it is reported", LONG, busy);
    assert_eq!(requests(1), Some(41), "a counter does not go back");
}

#[test]
fn a_socket_has_the_name_that_the_configuration_gives_it() {
    let setup = setup().no_bind().args(["--ready", "after=100ms"]);
    let socket = setup.path("other.sock").display().to_string();
    let config = |name: &str| {
        format!("workers = 1\nbind = [\"127.0.0.1:0,name={name}\", \"unix:{socket}\"]\n")
    };
    let mut server = setup
        .config(&config("web"))
        .program(["sleep", "600"])
        .start();
    let names = |server: &Server| {
        let worker = server.ready()[0];
        worker.variable("LISTEN_FDNAMES").expect("names")
    };
    assert_eq!(names(&server), format!("web:unix-{socket}"));
    let listeners = server.status()["listeners"].clone();
    server.file("config.toml", &config("api"));
    server.reload();
    assert_eq!(
        names(&server),
        format!("api:unix-{socket}"),
        "a name is the generation's"
    );
    assert_eq!(
        server.status()["listeners"],
        listeners,
        "the sockets are the same"
    );
}

#[test]
fn arguments_and_variables_differ_from_worker_to_worker() {
    let script = "echo \"$0 $1\"; echo $PORT > port.$PREFORK_WORKER; exec sleep 600";
    let words = [
        "sh",
        "-c",
        script,
        "s{slot}w{worker}g{generation}",
        "{{slot}} {print}",
    ];
    let mut server = setup()
        .workers(2)
        .args(["--ready", "after=100ms", "--env", "PORT={port}"])
        .program(words)
        .start();
    server.wait_for_log("s0w1g1 {slot} {print}");
    server.wait_for_log("s1w2g1 {slot} {print}");
    server.reload();
    server.wait_for_log("s0w3g2 {slot} {print}");
    let port = |worker: u64| {
        let path = server.path(&format!("port.{worker}"));
        testkit::wait_for("its port", LONG, || {
            let text = std::fs::read_to_string(&path).ok()?;
            text.trim().parse::<u16>().ok()
        })
    };
    let mut ports: Vec<u16> = (1..=4).map(port).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 4, "an old and a new worker share none");
}
