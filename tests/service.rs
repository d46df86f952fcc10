//! The shipped units under a real systemd: reloads, several sockets, upgrades, the watchdog, the
//! journal, stopping, several instances, the hardening; and what only a newer systemd can do.
//!
//! Each scenario is an ignored test of this very program, which runs inside a throw-away systemd.

#[path = "service/loosened.rs"]
mod loosened;
#[path = "service/newer.rs"]
mod newer;
#[path = "service/sockets.rs"]
mod sockets;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use testkit::load::{Failure, Plan, Report, start};
use testkit::unit::{BINARY, Unit, command, install, said};
use testkit::{Address, LONG, http, root, wait_until};

const PLAIN: Unit = Unit("prefork.service");
const CONFIG: &str = "/etc/prefork/config.toml";

fn shown() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_supervisor"))
        .parent()
        .expect("a directory")
        .to_owned()
}

fn units() -> [PathBuf; 2] {
    ["scripts/prefork.service", "scripts/prefork@.service"].map(|unit| root().join(unit))
}

fn under_systemd(test: &str, scenario: &str) {
    let this = std::env::current_exe().expect("this program has a path");
    let arguments = ["--exact", scenario, "--ignored", "--nocapture"].map(std::ffi::OsStr::new);
    testkit::systemd::run(test, &units(), &[&shown()], &this, &arguments);
}

fn under_newer_systemd(test: &str, scenario: &str) {
    let this = std::env::current_exe().expect("this program has a path");
    let arguments = ["--exact", scenario, "--ignored", "--nocapture"].map(std::ffi::OsStr::new);
    testkit::systemd::run_newer(test, &units(), &[&shown()], &this, &arguments);
}

#[test]
fn a_reload_returns_when_the_new_code_serves_and_a_broken_one_fails_within_a_second() {
    under_systemd("reloads", "inside_reloads");
}

#[test]
fn sockets_of_several_units_are_told_apart_by_name() {
    under_systemd("several sockets", "sockets::inside_many_sockets");
}

#[test]
fn an_upgrade_keeps_the_main_pid_and_the_stored_sockets() {
    under_systemd("upgrades", "inside_upgrades");
}

#[test]
fn connections_wait_while_the_watchdog_replaces_a_stopped_supervisor() {
    under_systemd("the watchdog", "inside_watched");
}

#[test]
fn the_journal_knows_how_bad_each_line_is() {
    under_systemd("priorities", "inside_logs");
}

#[test]
fn a_stop_answers_active_requests() {
    under_systemd("a stop", "inside_stops");
}

#[test]
fn two_instances_do_not_touch_each_other() {
    under_systemd("two instances", "inside_two_instances");
}

#[test]
fn programs_of_several_kinds_serve_under_the_hardening() {
    under_systemd("the hardening", "inside_hardened");
}

#[test]
fn a_delegated_group_is_shared_out_to_the_workers() {
    under_systemd("delegation", "loosened::inside_delegated");
}

#[test]
fn the_unit_can_be_root_with_workers_of_another_user() {
    under_systemd("another user", "loosened::inside_other_user");
}

#[test]
fn a_newer_systemd_reloads_by_signal_and_waits_for_it() {
    under_newer_systemd("notify-reload", "newer::inside_notify_reload");
}

#[test]
fn a_newer_systemd_keeps_sockets_over_stop_and_start() {
    under_newer_systemd("a preserved FD store", "newer::inside_preserves");
}

#[test]
fn a_newer_systemd_is_as_good_as_this_one() {
    for scenario in [
        "inside_reloads",
        "sockets::inside_many_sockets",
        "inside_upgrades",
    ] {
        under_newer_systemd(scenario, scenario);
    }
}

#[test]
fn the_template_differs_from_the_unit_only_by_its_name() {
    let [plain, template] = units().map(|unit| std::fs::read_to_string(unit).expect("the unit"));
    let body = |text: &str| text[text.find("[Unit]").expect("a section")..].to_owned();
    let expected = body(&plain)
        .replace(
            "Description=Prefork server\n",
            "Description=Prefork server %i\n",
        )
        .replace("/etc/prefork/config.toml\n", "/etc/prefork/%i.toml\n")
        .replace(
            "RuntimeDirectory=prefork\n",
            "RuntimeDirectory=prefork-%i\n",
        );
    assert_eq!(body(&template), expected);
}

// ---- inside

fn address(text: &str) -> Address {
    text.parse().expect("an address")
}

fn v4() -> Address {
    address("127.0.0.1:8000")
}

fn body(address: &Address) -> String {
    http::get(address, "/").expect("an answer").body
}

fn configure(more: &str) {
    write(
        CONFIG,
        &format!("bind = \"127.0.0.1:8000\"\nworkers = 2\nmin-ready = \"50ms\"\n{more}\n"),
    );
}

fn write(path: &str, text: &str) {
    assert!(
        testkit::systemd::is_inside(),
        "this would change the machine"
    );
    let directory = Path::new(path).parent().expect("it is absolute");
    std::fs::create_dir_all(directory).expect("a directory");
    std::fs::write(path, text).expect("written");
}

/// The configuration and code of a program in Python, which the units can reach.
fn python(body: &str) {
    configure("command = [\"/usr/bin/python3\", \"/opt/app.py\"]");
    let code = std::fs::read_to_string(testkit::program("minimal.py")).expect("it is there");
    let body = format!("body = os.environ.get(\"BODY\", {body:?}).encode()");
    let code = code.replace(
        "body = os.environ.get(\"BODY\", \"Hello from Python\").encode()",
        &body,
    );
    // So that a worker which starts meanwhile sees one or the other.
    write("/opt/app.py.new", &code);
    std::fs::rename("/opt/app.py.new", "/opt/app.py").expect("replaced");
}

/// The binary is there, and the unit runs with the present configuration and these changes.
fn begin(changes: &str) {
    install(Path::new(env!("CARGO_BIN_EXE_supervisor")));
    PLAIN.drop_in(changes);
    PLAIN.must("start");
}

/// No connection was refused, and every waiting one was answered.
fn assert_none_refused(report: &Report) {
    let turned_away = [
        Failure::Refused,
        Failure::ConnectReset,
        Failure::ConnectTimeout,
        Failure::ConnectOther,
        Failure::BacklogFull,
        Failure::ResponseTimeout,
        Failure::BadResponse,
    ];
    for failure in turned_away {
        assert_eq!(report.count(failure), 0, "{report}\n{}", PLAIN.journal());
    }
    assert_eq!(report.answered + report.failed(), report.requests);
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_reloads() {
    python("version 0");
    begin("");
    let pid = PLAIN.pid();
    let load = start(Plan::rate(&v4(), 100.0).http("/", None));
    for version in 1..=10 {
        let text = format!("version {version}");
        python(&text);
        PLAIN.must("reload");
        // Each connection from now on is for the new code, whichever worker takes it.
        (0..20).for_each(|_| assert_eq!(body(&v4()), text));
        assert!(PLAIN.is_active());
    }
    let mut times = Vec::new();
    for broken in [
        "nonsense = 1",
        "workers = 0",
        "bind = \"127.0.0.1:8000",
        "app = \"nothing\"",
        "user = 1\n[",
    ] {
        configure(broken);
        let begun = Instant::now();
        assert!(!PLAIN.try_to("reload"), "{broken}: {}", PLAIN.journal());
        times.push(begun.elapsed());
        assert!(PLAIN.is_active());
        (0..4).for_each(|_| assert_eq!(body(&v4()), "version 10"));
    }
    // A machine that does much else at the same time may hold up one of them.
    times.sort();
    assert!(times[2] < Duration::from_secs(10), "{times:?}");
    // A program that does not start, or dies at once, takes as long as it takes.
    for broken in ["/nowhere/python3", "/bin/false"] {
        configure(&format!("command = [\"{broken}\"]"));
        assert!(!PLAIN.try_to("reload"), "{broken}: {}", PLAIN.journal());
        assert!(PLAIN.is_active());
        (0..4).for_each(|_| assert_eq!(body(&v4()), "version 10"));
    }
    python("version 11");
    PLAIN.must("reload");
    (0..20).for_each(|_| assert_eq!(body(&v4()), "version 11"));
    assert_eq!(
        (PLAIN.pid(), PLAIN.property("NRestarts")),
        (pid, "0".to_owned())
    );
    let report = load.finish();
    println!("{report}; a broken reload took {times:?}");
    report.assert_flawless();
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_upgrades() {
    configure("");
    begin("");
    let pid = PLAIN.pid();
    // A dynamic user, which exists only while the service runs.
    let user: u32 = said(&["stat", "--format=%u", &format!("/proc/{pid}")])
        .parse()
        .expect("a number");
    assert!((61184..=65519).contains(&user), "user {user}");
    let status = said(&[BINARY, "status"]);
    assert!(status.contains(&format!("pid         {pid}")), "{status}");
    wait_until("the sockets to be stored", LONG, || PLAIN.stored() == 3);
    let load = start(Plan::rate(&v4(), 150.0).http("/", Some("Hello, client!")));
    for round in 0..3 {
        install(Path::new(env!("CARGO_BIN_EXE_supervisor")));
        match round {
            0 => drop(said(&[BINARY, "upgrade", "--wait"])),
            1 => PLAIN.must("reload"),
            _ => {
                let done = PLAIN.journal().matches("upgraded in place").count();
                assert!(
                    command(&[
                        "systemctl",
                        "kill",
                        "--kill-whom=main",
                        "--signal=USR2",
                        PLAIN.0
                    ])
                    .status
                    .success()
                );
                wait_until("an upgrade", LONG, || {
                    assert!(PLAIN.is_active());
                    PLAIN.journal().matches("upgraded in place").count() > done
                });
            }
        }
        assert_eq!(
            (PLAIN.pid(), PLAIN.property("NRestarts")),
            (pid.clone(), "0".to_owned())
        );
        assert!(PLAIN.is_active());
        load.wait_for_more(50);
        assert_eq!(PLAIN.stored(), 3);
    }
    // A program that cannot take over: the service goes on.
    let bad = format!("{BINARY}.bad");
    std::fs::copy("/bin/false", &bad).expect("copied");
    std::fs::rename(bad, BINARY).expect("replaced");
    assert!(!PLAIN.try_to("reload"));
    assert_eq!((PLAIN.pid(), PLAIN.is_active()), (pid.clone(), true));
    install(Path::new(env!("CARGO_BIN_EXE_supervisor")));
    // Sockets stored before the upgrades still serve the next supervisor.
    PLAIN.must("restart");
    assert_eq!(PLAIN.stored(), 3, "{}", PLAIN.journal());
    load.wait_for_more(50);
    said(&[BINARY, "upgrade", "--wait"]);
    load.finish().assert_flawless();
    let load = start(Plan::rate(&v4(), 150.0).http("/", Some("Hello, client!")));
    load.wait_for_more(20);
    let pid = PLAIN.pid();
    said(&["kill", "-KILL", &pid]);
    PLAIN.wait_for_another(&pid);
    load.wait_for_more(50);
    let report = load.finish();
    println!("{report}");
    assert_none_refused(&report);
    assert_eq!(PLAIN.stored(), 3);
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_watched() {
    configure("");
    begin("WatchdogSec=2s");
    wait_until("the sockets to be stored", LONG, || PLAIN.stored() == 3);
    let load = start(Plan::rate(&v4(), 100.0).http("/", Some("Hello, client!")));
    load.wait_for_more(20);
    let pid = PLAIN.pid();
    said(&["kill", "-STOP", &pid]);
    PLAIN.wait_for_another(&pid);
    assert!(
        PLAIN.journal().contains("Watchdog timeout"),
        "{}",
        PLAIN.journal()
    );
    load.wait_for_more(50);
    let report = load.finish();
    println!("{report}");
    assert_none_refused(&report);
    assert_eq!(PLAIN.stored(), 3);
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_logs() {
    configure("app = \"greeter\"");
    begin("");
    let entry = |text: &str| {
        let mut found = None;
        wait_until(&format!("a line with {text}"), LONG, || {
            let entries = PLAIN.entries();
            let fits = |entry: &serde_json::Value| {
                // Only what the service itself says.
                entry["_TRANSPORT"] == "stdout"
                    && entry["MESSAGE"]
                        .as_str()
                        .is_some_and(|line| line.contains(text))
            };
            found = entries.into_iter().find(fits);
            found.is_some()
        });
        let entry = found.expect("it was found");
        let line = entry["MESSAGE"].as_str().unwrap_or_default();
        assert!(!line.starts_with('<'), "{line}");
        let number = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        (number("PRIORITY"), number("_PID"))
    };
    let pid = PLAIN.pid();
    assert_eq!(entry("(pid "), ("6".to_owned(), pid.clone()));
    // A worker's own line.
    let mut client = http::Client::connect(&v4()).expect("connected");
    client.send(b"a word to the worker").expect("sent");
    let (priority, _) = entry("a word to the worker");
    assert_eq!(priority, "6");
    configure("nonsense = 1");
    assert!(!PLAIN.try_to("reload"));
    let (priority, from) = entry("nonsense");
    assert!(["3", "4"].contains(&priority.as_str()), "{priority}");
    assert_eq!(from, pid);
    let workers =
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    let worker = workers.split_whitespace().next().expect("a worker");
    said(&["kill", "-KILL", worker]);
    assert_eq!(
        entry(&format!("pid {worker}) died")).0,
        "3",
        "{}",
        PLAIN.journal()
    );
    // An external program's lines go to the journal, too.
    write(
        "/opt/app.sh",
        "#!/bin/sh\necho '<4>take care' >&2\necho '<3>all is lost' >&2\necho well >&2\n\
         sleep 1000\n",
    );
    configure("ready = \"after=100ms\"\ncommand = [\"/bin/sh\", \"/opt/app.sh\"]");
    PLAIN.must("reload");
    assert_eq!(entry("take care").0, "4");
    assert_eq!(entry("all is lost").0, "3");
    assert_eq!(entry("well").0, "6");
    // And by the option that operators use.
    let bad = said(&[
        "journalctl",
        "--no-pager",
        "--output=cat",
        "--priority=err",
        "--unit",
        PLAIN.0,
    ]);
    assert!(
        bad.contains("all is lost") && !bad.contains("take care"),
        "{bad}"
    );
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_stops() {
    configure("app = \"sleep\"");
    begin("");
    for round in 0..3 {
        let load = start(Plan::fresh(&v4(), 8).http("/?ms=4000", None).count(8));
        // All eight are active when the stop begins.
        wait_until("eight requests", LONG, || {
            let status: serde_json::Value =
                serde_json::from_str(&said(&[BINARY, "status", "--json"])).expect("JSON");
            let slots = status["slots"].as_array().cloned().unwrap_or_default();
            let workers = slots
                .iter()
                .flat_map(|slot| slot["workers"].as_array().cloned().unwrap_or_default());
            workers
                .filter_map(|worker| worker["scoreboard"]["busy"].as_u64())
                .sum::<u64>()
                == 8
        });
        PLAIN.must(if round == 2 { "restart" } else { "stop" });
        let report = load.wait();
        report.assert_flawless();
        assert_eq!(report.answered, 8);
        assert_eq!(PLAIN.property("Result"), "success");
        PLAIN.must("start");
    }
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_two_instances() {
    let [shop, blog] = [Unit("prefork@shop.service"), Unit("prefork@blog.service")];
    install(Path::new(env!("CARGO_BIN_EXE_supervisor")));
    let instance = |name: &str, port: u16, more: &str| {
        let text = format!("bind = [\"127.0.0.1:{port}\", \"unix:/run/prefork-{name}/app.sock\"]");
        let path = format!("/etc/prefork/{name}.toml");
        write(
            &path,
            &format!("{text}\nworkers = 2\nmin-ready = \"50ms\"\n{more}\n"),
        );
        path
    };
    // The plain one, too.
    configure("");
    PLAIN.must("start");
    let files = [instance("shop", 8001, ""), instance("blog", 8002, "")];
    shop.must("start");
    blog.must("start");
    let pid = |file: &str| {
        let text = said(&[BINARY, "status", "--json", "--config", file]);
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["pid"].to_string()
    };
    assert_eq!(
        files.each_ref().map(|file| pid(file)),
        [shop.pid(), blog.pid()]
    );
    assert_eq!(pid(CONFIG), PLAIN.pid());
    let places = [8001, 8002, 8000].map(|port| address(&format!("127.0.0.1:{port}")));
    let generation = |place: &Address| {
        http::get(place, "/")
            .expect("an answer")
            .number("x-prefork-generation")
    };
    let load = start(Plan::rate(&places[1], 100.0).http("/", Some("Hello, client!")));
    for round in 2..5 {
        shop.must("reload");
        assert_eq!(places.each_ref().map(generation), [round, 1, 1]);
    }
    instance("shop", 8001, "nonsense = 1");
    assert!(!shop.try_to("reload"));
    assert_eq!(places.each_ref().map(generation), [4, 1, 1]);
    said(&[BINARY, "reload", "--wait", "--config", &files[1]]);
    assert_eq!(places.each_ref().map(generation), [4, 2, 1]);
    assert_eq!(
        body(&address("unix:/run/prefork-shop/app.sock")),
        "Hello, client!"
    );
    // One that goes takes nothing of the others' along.
    shop.must("stop");
    PLAIN.must("stop");
    assert!(!Path::new("/run/prefork-shop").exists());
    assert_eq!(
        body(&address("unix:/run/prefork-blog/app.sock")),
        "Hello, client!"
    );
    assert_eq!(pid(&files[1]), blog.pid());
    assert!(!blog.journal().contains("shop"), "{}", blog.journal());
    load.finish().assert_flawless();
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_hardened() {
    install(Path::new(env!("CARGO_BIN_EXE_supervisor")));
    PLAIN.drop_in("");
    write("/opt/index.html", "A file.");
    for program in ["minimal.py", "http.js"] {
        std::fs::copy(testkit::program(program), Path::new("/opt").join(program)).expect("copied");
    }
    let node = testkit::tool("node").map(|path| path.display().to_string());
    let mut lines = vec![
        ("app = \"hello\"".to_owned(), "/"),
        ("app = \"files:/opt\"".to_owned(), "/index.html"),
        ("app = \"sleep\"".to_owned(), "/?ms=1"),
        ("app = \"hello\"\nclass = \"threads\"".to_owned(), "/"),
        (
            "command = [\"/usr/bin/python3\", \"/opt/minimal.py\"]".to_owned(),
            "/",
        ),
    ];
    match node {
        Some(node) => lines.push((format!("command = [\"{node}\", \"/opt/http.js\"]"), "/")),
        None => testkit::skipped("Node under the hardening", "node is not installed"),
    }
    for (config, path) in lines {
        configure(&config);
        PLAIN.must("restart");
        for _ in 0..4 {
            let answer = http::get(&v4(), path).unwrap_or_else(|error| panic!("{config}: {error}"));
            assert_eq!(answer.status, 200, "{config}");
        }
        PLAIN.must("reload");
        assert_eq!(
            http::get(&v4(), path).expect("an answer").status,
            200,
            "{config}"
        );
    }
    // A port that needs a capability, an address of each kind, and a place to write to.
    write(
        CONFIG,
        "bind = [\"127.0.0.1:80\", \"[::1]:80\", \"unix:/run/prefork/app.sock\"]\n\
         workers = 2\nmin-ready = \"50ms\"\n",
    );
    PLAIN.must("restart");
    for place in ["127.0.0.1:80", "[::1]:80", "unix:/run/prefork/app.sock"] {
        assert_eq!(body(&address(place)), "Hello, client!");
    }
    let journal = PLAIN.journal();
    for word in ["cannot", "denied", "not permitted"] {
        assert!(!journal.contains(word), "{journal}");
    }
    // How systemd rates the unit; docs/systemd.md has the same number.
    let verdict = said(&["systemd-analyze", "--no-pager", "security", PLAIN.0]);
    let verdict = verdict.lines().last().unwrap_or_default();
    println!("{verdict}");
    let words: Vec<&str> = verdict.split_whitespace().collect();
    let score: f64 = words
        .iter()
        .find_map(|word| word.parse().ok())
        .expect("a number");
    assert!(score <= 1.5, "{verdict}");
}
