//! The control socket: status, reload with a verdict, stop; and clients that misbehave on it.

use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use testkit::load::{Plan, run};
use testkit::{LONG, Server, Setup};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).patient()
}

#[test]
fn status_lists_the_workers_that_serve() {
    let server = setup().workers(3).start();
    run(&Plan::fresh(&server.address(), 4).count(100)).assert_flawless();
    let status = server.status();
    assert_eq!(
        (&status["version"], &status["state"]),
        (&1.into(), &"serving".into())
    );
    assert_eq!(status["pid"].as_u64(), Some(server.process().0.into()));
    assert_eq!(server.workers().len(), 3);
    let words = server.command(&["status"]);
    let words = String::from_utf8_lossy(&words.stdout).into_owned();
    for worker in server.ready() {
        assert!(words.contains(&worker.0.to_string()), "{words}");
    }
}

#[test]
fn status_counts_every_request_also_those_of_dead_workers() {
    let mut server = setup().workers(2).args(["--min-ready", "50ms"]).start();
    let total = |server: &Server| -> u64 {
        let status = server.status();
        let slots = status["slots"].as_array().expect("slots");
        slots
            .iter()
            .map(|slot| slot["totals"]["requests"].as_u64().expect("a number"))
            .sum()
    };
    let before = total(&server);
    run(&Plan::fresh(&server.address(), 4).count(100)).assert_flawless();
    testkit::wait_until("a hundred counted", LONG, || total(&server) == before + 100);
    server.reload();
    assert_eq!(total(&server), before + 100, "a reload loses no count");
    run(&Plan::kept_alive(&server.address(), 4).count(100)).assert_flawless();
    testkit::wait_until("two hundred counted", LONG, || {
        total(&server) == before + 200
    });
}

#[test]
fn reload_wait_gives_the_verdict_and_the_reason() {
    let good = "workers = 2\nmin-ready = \"50ms\"\n";
    let server = setup().config(good).start();
    let (before, pids) = (server.generation(), server.ready());
    let output = server.command(&["reload", "--wait"]);
    assert!(output.status.success(), "{output:?}");
    assert!(server.generation() > before);
    assert!(
        server.ready().iter().all(|process| !pids.contains(process)),
        "it returned after the reload"
    );

    let pids = server.ready();
    server.file("config.toml", "workers = 2\nbacklogg = 3\n");
    let output = server.command(&["reload", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("backlogg"), "{said}");
    assert_eq!(server.ready(), pids);
}

#[test]
fn stop_ends_the_server_gracefully() {
    let mut server = setup().workers(2).start();
    let output = server.command(&["stop"]);
    assert!(output.status.success(), "{output:?}");
    assert!(server.wait_exit(LONG).success());
}

#[test]
fn a_socket_without_a_server_is_a_failure_that_names_it() {
    let mut server = setup().workers(1).start();
    server.command(&["stop"]);
    server.wait_exit(LONG);
    let output = server.command(&["status"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("prefork.sock"),
        "{output:?}"
    );
}

#[test]
fn the_socket_is_for_its_owner_and_group_only() {
    let server = setup().workers(1).start();
    let mode = std::fs::metadata(server.control())
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o007, 0, "{mode:o}");
}

#[test]
fn stalled_and_noisy_clients_delay_no_other() {
    let server = setup().workers(2).start();
    let mut stalled = Vec::new();
    for noise in [
        &b""[..],
        b"\0",
        b"{\"half",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        // As a stream; a socket of another type refuses, which is well.
        if let Ok(mut stream) = UnixStream::connect(server.control()) {
            let _ = stream.write_all(noise);
            stalled.push(stream);
        }
    }
    for _ in 0..32 {
        stalled.extend(UnixStream::connect(server.control()));
    }
    assert_eq!(server.state(), "serving");
    drop(stalled);
    assert_eq!(server.state(), "serving");
    run(&Plan::fresh(&server.address(), 4).count(50)).assert_flawless();
}

/// How long `supervisor status` takes, the best of a few.
fn status_takes(server: &Server) -> Duration {
    let ask = |_| {
        let began = Instant::now();
        let output = server.command(&["status", "--json"]);
        assert!(output.status.success(), "{output:?}");
        began.elapsed()
    };
    (0..10).map(ask).min().expect("ten")
}

#[test]
fn a_hundred_clients_that_misbehave_delay_no_other() {
    let server = setup().workers(4).start();
    let before = status_takes(&server);
    let stop = AtomicBool::new(false);
    let mut held = Vec::new();
    for number in 0..60_u8 {
        let mut stream = UnixStream::connect(server.control()).expect("connect");
        let noise: &[u8] = match number % 4 {
            0 => b"",
            1 => b"{\"command\":\"sta",
            2 => b"{\"command\":\"events\",\"follow\":true}\n",
            _ => b"{\"command\":\"reload\",\"wait\":true}",
        };
        let _ = stream.write_all(noise);
        held.push(stream);
    }
    std::thread::scope(|scope| {
        for number in 0..40_usize {
            let (server, stop) = (&server, &stop);
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    let Ok(mut stream) = UnixStream::connect(server.control()) else {
                        continue;
                    };
                    let noise: &[u8] = match number % 4 {
                        0 => b"{\"command\":\"status\"}\n",
                        1 => b"{\"command\":\"dance\"}\n",
                        2 => &[b'x'; 5000],
                        _ => b"\0\n",
                    };
                    let _ = stream.write_all(noise);
                    // Some read a little, none of them all.
                    let mut some = [0; 100];
                    let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
                    let _ = stream.read(&mut some[..number]);
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        let took = status_takes(&server);
        eprintln!(
            "status takes {took:?} beside a hundred clients that misbehave, {before:?} alone"
        );
        run(&Plan::fresh(&server.address(), 4).count(200)).assert_flawless();
        stop.store(true, Relaxed);
    });
    assert_eq!(server.state(), "serving");
    drop(held);
    testkit::wait_until("they are let go", LONG, || {
        server.process().descriptors() < 60
    });
}

#[test]
fn events_are_listed_with_numbers_and_fields_and_can_be_followed() {
    let server = setup().workers(2).args(["--min-ready", "50ms"]).start();
    let follow = Command::new(env!("CARGO_BIN_EXE_supervisor"))
        .args(["events", "--follow", "--json", "--since", "0", "--control"])
        .arg(server.control())
        .stdout(Stdio::piped())
        .spawn();
    let mut follow = follow.expect("it runs");
    let lines = BufReader::new(follow.stdout.take().expect("a pipe")).lines();
    let mut lines =
        lines.map(|line| -> Value { serde_json::from_str(&line.expect("a line")).expect("JSON") });
    let mut wait_for = |kind: &str| {
        lines
            .find(|event| event["kind"] == kind)
            .expect("it is listed")
    };
    let first = wait_for("starting");
    assert_eq!(
        (&first["worker"], &first["slot"], &first["level"]),
        (&1.into(), &0.into(), &"info".into())
    );
    let ready = wait_for("server-ready");
    let victim = server.workers()[1].clone();
    victim.process.signal(Signal::SIGKILL);
    let died = wait_for("died");
    assert_eq!(
        (&died["cause"], &died["slot"]),
        (&"signal".into(), &1.into())
    );
    assert_eq!(
        (&died["worker"], &died["pid"]),
        (&victim.id.into(), &victim.process.0.into())
    );
    assert!(died["seq"].as_u64() > ready["seq"].as_u64());
    server.command(&["reload", "--wait"]);
    let reloaded = wait_for("reloaded");
    assert_eq!(reloaded["generation"], 2);
    let _ = follow.kill();
    let _ = follow.wait();

    let last = server.command(&["events", "-n", "1"]);
    let last = String::from_utf8_lossy(&last.stdout).into_owned();
    assert_eq!(last.lines().count(), 1, "{last}");
    let since = server.command(&["events", "--json", "--since", &reloaded["seq"].to_string()]);
    let since = String::from_utf8_lossy(&since.stdout).into_owned();
    assert!(!since.contains("\"cause\":\"signal\""), "{since}");
}

#[test]
fn config_lists_each_setting_and_its_source() {
    let server = setup()
        .config("workers = 2\nkeep-alive = \"9s\"\n")
        .env("SUPERVISOR_KEEP_ALIVE", "7s")
        .args(["--class", "sync"])
        .start();
    // What lies there now is not what holds.
    server.file("config.toml", "workers = 99\n");
    let output = server.command(&["config", "--json"]);
    let settings: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let of = |name: &str| {
        settings
            .iter()
            .find(|setting| setting["name"] == name)
            .expect("it is listed")
    };
    let told = |name: &str| (of(name)["value"].clone(), of(name)["from"].clone());
    assert_eq!(told("workers"), (2.into(), "file".into()));
    assert!(
        of("workers")["where"]
            .as_str()
            .is_some_and(|place| place.contains("config.toml:1:"))
    );
    assert_eq!(told("keep-alive"), ("7s".into(), "environment".into()));
    assert_eq!(told("class"), ("sync".into(), "flag".into()));
    assert_eq!(told("min-ready"), ("2s".into(), "default".into()));
    let words = server.command(&["config"]);
    let words = String::from_utf8_lossy(&words.stdout).into_owned();
    assert!(
        words
            .lines()
            .any(|line| line.starts_with("class ") && line.ends_with("flag (--class)")),
        "{words}"
    );
}

#[test]
fn scale_restart_and_drain_lose_nothing_and_report_the_outcome() {
    let mut server = setup().workers(3).start();
    let said = |output: &std::process::Output| {
        let text = [output.stdout.as_slice(), &output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).trim().to_owned(),
        )
    };
    let load = testkit::load::start(Plan::fresh(&server.address(), 4));
    load.wait_for_more(10);
    let scaled = said(&server.command(&["scale", "5"]));
    assert_eq!(scaled, (Some(0), "5 workers (before: 3)".to_owned()));
    server.wait_until_settled(LONG);
    assert_eq!(server.workers().len(), 5);
    let (code, reason) = said(&server.command(&["scale", "500"]));
    assert!(
        code == Some(1) && reason.contains("max-workers"),
        "{reason}"
    );

    let old = server.workers()[1].clone();
    let (code, restarted) = said(&server.command(&["restart-worker", "1"]));
    assert!(
        code == Some(0) && restarted.ends_with("serves slot 1"),
        "{restarted}"
    );
    server.wait_until_settled(LONG);
    let new = server
        .workers()
        .into_iter()
        .find(|worker| worker.slot == 1)
        .expect("slot 1 is filled");
    assert!(
        new.id > old.id && restarted.contains(&new.id.to_string()),
        "{restarted}: {new:?}"
    );

    let drained = said(&server.command(&["drain", "2"]));
    assert_eq!(drained, (Some(0), "slot 2 is empty".to_owned()));
    let slot = server.status()["slots"][2].clone();
    assert_eq!(
        (&slot["held"], &slot["in_rotation"]),
        (&true.into(), &false.into()),
        "{slot}"
    );
    assert_eq!(slot["workers"].as_array().map(Vec::len), Some(0));
    let (code, reason) = said(&server.command(&["drain", "77"]));
    assert!(code == Some(1) && reason.contains("77"), "{reason}");
    let (code, refilled) = said(&server.command(&["restart-worker", "2"]));
    assert!(
        code == Some(0) && refilled.ends_with("serves slot 2"),
        "{refilled}"
    );
    load.wait_for_more(10);
    load.finish().assert_flawless();
    server.wait_until_settled(LONG);
    assert_eq!(server.workers().len(), 5);
}

#[test]
fn servers_are_found_by_their_names() {
    let start = |name: &str, directory: &Path| {
        setup()
            .workers(1)
            .no_control()
            .args(["--name", name])
            .env("XDG_RUNTIME_DIR", directory.as_os_str())
            .spawn()
    };
    let directory = tempfile::tempdir().expect("a folder");
    let servers = [
        start("shop", directory.path()),
        start("blog", directory.path()),
    ];
    let ask = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_supervisor"));
        command
            .args(words)
            .env("XDG_RUNTIME_DIR", directory.path())
            .env_remove("RUNTIME_DIRECTORY");
        command.output().expect("it runs")
    };
    for (name, server) in ["shop", "blog"].into_iter().zip(&servers) {
        let status = testkit::wait_for("an answer", LONG, || {
            let output = ask(&["status", "--json", "--name", name]);
            output
                .status
                .success()
                .then(|| serde_json::from_slice::<Value>(&output.stdout).expect("JSON"))
        });
        assert_eq!(
            (&status["instance"], &status["pid"]),
            (&name.into(), &server.process().0.into())
        );
    }
    let missing = ask(&["status", "--name", "nobody"]);
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("prefork-nobody.sock"),
        "{missing:?}"
    );
    let wrong = ask(&["status", "--name", "../x"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}

#[test]
fn a_group_that_may_read_can_do_nothing_else() {
    if !nix::unistd::geteuid().is_root() {
        return testkit::skipped(
            "a_group_that_may_read_can_do_nothing_else",
            "only root can become another user",
        );
    }
    let server = setup()
        .workers(1)
        .args(["--control-readers", "65534"])
        .start();
    // The way to the socket must be open, too.
    std::fs::set_permissions(server.directory(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let ask = |request: &str, group: &str| {
        let script = format!(
            "import os,socket,sys; os.setgroups([{group}]); os.setgid(1); os.setuid(2); \
             s=socket.socket(socket.AF_UNIX); \
             s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode()+b'\\n'); print(s.makefile().readline())"
        );
        let mut python = Command::new("python3");
        python
            .args(["-c", &script])
            .arg(server.control())
            .arg(request);
        let output = python.output().expect("python3 runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    };
    let status = ask("{\"command\":\"status\"}", "65534");
    assert!(status.contains("\"serving\""), "{status}");
    let stop = ask("{\"command\":\"stop\"}", "65534");
    assert!(stop.contains("you may only read"), "{stop}");
    let outsider = ask("{\"command\":\"status\"}", "100");
    assert!(outsider.contains("Permission"), "{outsider}");
    assert_eq!(server.state(), "serving");
}

#[test]
fn no_control_socket_costs_a_line_and_nothing_else() {
    let server = setup()
        .workers(1)
        .no_control()
        .args(["--control", "off"])
        .spawn();
    let line = server.wait_for_log("listening on ");
    let address = line
        .split("listening on ")
        .nth(1)
        .expect("an address")
        .split_whitespace()
        .next()
        .expect("a word");
    let address = address
        .trim_end_matches([',', ';'])
        .parse()
        .expect("an address");
    server.wait_for_log("ready: ");
    run(&Plan::fresh(&address, 4).count(50)).assert_flawless();
    assert!(!server.control().exists());
}

#[test]
fn the_control_socket_has_a_place_of_its_own_by_default() {
    let setup = setup().workers(1).no_control();
    let directory = setup.path("");
    let server = setup.spawn();
    testkit::wait_until("an answer by way of $XDG_RUNTIME_DIR", LONG, || {
        let mut status = std::process::Command::new(env!("CARGO_BIN_EXE_supervisor"));
        status
            .arg("status")
            .env("XDG_RUNTIME_DIR", &directory)
            .env_remove("RUNTIME_DIRECTORY");
        status.output().expect("it runs").status.success()
    });
    drop(server);
}

/// Asks for something without `--control`, in an environment with this runtime directory.
fn ask_by_default(words: &[&str], directory: &Path) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_supervisor"));
    command.args(words).env_remove("RUNTIME_DIRECTORY");
    command
        .env("XDG_RUNTIME_DIR", directory)
        .stdin(Stdio::null());
    command.output().expect("the binary can be run")
}

#[test]
fn a_second_server_in_the_place_of_another_is_refused() {
    let mut first = setup().workers(1).no_control().start();
    let directory = first.directory().to_owned();
    let second = || {
        let directory = directory.clone().into_os_string();
        setup()
            .workers(1)
            .no_control()
            .env("XDG_RUNTIME_DIR", directory)
    };
    let (status, log) = second().run();
    assert!(!status.success(), "{log:?}");
    let refused = |line: &String| {
        line.contains("cannot start: cannot make the control socket")
            && line.contains("another server answers there (give this one a --name")
    };
    assert!(log.iter().any(refused), "{log:?}");
    // With a name, each command reaches the server that is meant.
    let mut named = second().args(["--name", "second"]).spawn();
    named.wait_for_log("ready: 1 workers");
    let stopped = ask_by_default(&["stop", "--name", "second"], &directory);
    assert!(stopped.status.success(), "{stopped:?}");
    assert!(named.wait_exit(LONG).success());
    assert_eq!(first.ready().len(), 1);
    let missing = ask_by_default(&["status", "--name", "second"], &directory);
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(
        text.contains("is the server running? Its control socket is elsewhere if"),
        "{text}"
    );
    assert!(ask_by_default(&["stop"], &directory).status.success());
    assert!(first.wait_exit(LONG).success());
}

#[test]
fn a_control_socket_that_was_asked_for_and_cannot_be_made_is_an_error() {
    for asked in [["--control", "/nowhere/c.sock"], ["--name", "shop"]] {
        let setup = setup().workers(1).no_control().args(asked);
        let (status, log) = setup.env("XDG_RUNTIME_DIR", "/nowhere").run();
        assert!(!status.success(), "{log:?}");
        let told = |line: &String| line.contains("cannot start: cannot make the control socket");
        assert!(log.iter().any(told), "{log:?}");
    }
    // By default one is made where that is possible.
    let setup = setup()
        .workers(1)
        .no_control()
        .env("XDG_RUNTIME_DIR", "/nowhere");
    let server = setup.spawn();
    server.wait_for_log("going on without one");
    server.wait_for_log("ready: 1 workers");
}

#[test]
fn without_a_runtime_directory_the_socket_is_in_a_private_one() {
    let test = "without_a_runtime_directory";
    if !nix::unistd::geteuid().is_root() {
        return testkit::skipped(
            test,
            "only root can become a user without a runtime directory",
        );
    }
    let user = (1_500_000_000 + std::process::id()).to_string();
    let become_user = [
        "setpriv".to_owned(),
        format!("--reuid={user}"),
        format!("--regid={user}"),
        "--clear-groups".to_owned(),
        "env".to_owned(),
        "--unset=XDG_RUNTIME_DIR".to_owned(),
    ];
    let binary = Path::new(env!("CARGO_BIN_EXE_supervisor"));
    let directory = std::path::PathBuf::from(format!("/tmp/prefork-{user}"));
    let mut server = setup()
        .workers(1)
        .no_control()
        .wrapped(become_user.clone())
        .spawn();
    server.wait_for_log("ready: 1 workers");
    let mode = std::fs::metadata(&directory)
        .expect("made")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o700);
    let stop = Command::new(&become_user[0])
        .args(&become_user[1..])
        .arg(binary)
        .arg("stop")
        .stdin(Stdio::null())
        .output();
    let stop = stop.expect("it runs");
    let status = server.wait_exit(LONG);
    std::fs::remove_dir(&directory).expect("the socket is gone");
    assert!(stop.status.success() && status.success(), "{stop:?}");
}
