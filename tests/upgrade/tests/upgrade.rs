//! Upgrade in place: another program, the same process, sockets and workers; and a bad one changes
//! nothing.

use nix::sys::signal::Signal::{SIGHUP, SIGKILL, SIGTERM, SIGUSR2};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use testkit::load::{Plan, start};
use testkit::notify::NotifySocket;
use testkit::releases::Releases;
use testkit::{LONG, Server, Setup, wait_until};

const THIS: &str = env!("CARGO_BIN_EXE_supervisor-now");
const NEXT: &str = env!("CARGO_BIN_EXE_supervisor-next");

fn next() -> &'static Path {
    Path::new(NEXT)
}

fn setup() -> Setup {
    Server::setup(THIS)
        .copied()
        .patient()
        .workers(2)
        .args(["--min-ready", "50ms"])
}

fn program(server: &Server) -> String {
    server.status()["program"]
        .as_str()
        .expect("status has a version")
        .to_owned()
}

/// What the last upgrade ended with; empty when it worked.
fn last_reason(server: &Server) -> Option<String> {
    let last = server.status()["last_upgrade"].clone();
    last["ok"]
        .as_bool()
        .map(|_| last["reason"].as_str().unwrap_or_default().to_owned())
}

fn upgrade(server: &Server) {
    let done = server.log().count("upgraded in place");
    server.signal(SIGUSR2);
    wait_until("an upgrade", LONG, || {
        server.log().count("upgraded in place") > done
    });
}

#[test]
fn twenty_upgrades_keep_pid_workers_and_connections_and_leak_nothing() {
    let server = setup().start();
    let (pid, workers) = (server.process(), server.ready());
    let descriptors = pid.descriptors();
    let fresh = start(Plan::fresh(&server.address(), 8).http("/", Some("Hello, client!")));
    let kept = start(Plan::kept_alive(&server.address(), 16).http("/", Some("Hello, client!")));
    for _ in 0..20 {
        fresh.wait_for_more(20);
        upgrade(&server);
        kept.wait_for_more(20);
        assert_eq!((server.process(), server.ready()), (pid, workers.clone()));
        wait_until("only the workers", LONG, || pid.children().len() == 2);
        // The client that asked for the status may not be gone yet.
        wait_until("as many descriptors as before", LONG, || {
            pid.descriptors() <= descriptors
        });
    }
    assert!(workers.iter().all(|worker| worker.runs()));
    fresh.finish().assert_flawless();
    kept.finish().assert_flawless();
}

#[test]
fn two_versions_take_over_from_each_other_back_and_forth() {
    for unix in [false, true] {
        let setup = if unix { setup().bind_unix() } else { setup() };
        let server = setup.start();
        let (pid, workers, old) = (server.process(), server.ready(), program(&server));
        let load = start(Plan::fresh(&server.address(), 8).http("/", Some("Hello, client!")));
        for _ in 0..3 {
            for (binary, version) in [
                (next(), format!("{old}-next")),
                (Path::new(THIS), old.clone()),
            ] {
                load.wait_for_more(20);
                server.replace(binary);
                upgrade(&server);
                assert_eq!(
                    (program(&server), server.ready()),
                    (version, workers.clone())
                );
            }
        }
        load.wait_for_more(20);
        assert_eq!(server.process(), pid);
        load.finish().assert_flawless();
    }
}

#[test]
fn upgrade_wait_gives_the_verdict_and_the_reason() {
    let server = setup().start();
    server.replace(next());
    let output = server.command(&["upgrade", "--wait"]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        said.trim(),
        format!("upgraded to version {}", program(&server))
    );
    assert!(said.contains("-next"), "{said}");
    server.replace(Path::new("/bin/false"));
    let output = server.command(&["upgrade", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("exited with status 1"), "{said}");
    assert_eq!(
        last_reason(&server)
            .as_deref()
            .map(|reason| reason.contains("status 1")),
        Some(true)
    );
}

/// An upgrade, by USR2 and by a reload, that must fail for this reason, and change nothing; the
/// next one works.
fn changes_nothing(server: &Server, spoil: impl Fn(&Server), reason: &str) {
    let (pid, workers, version, generation) = (
        server.process(),
        server.ready(),
        program(server),
        server.generation(),
    );
    let load = start(Plan::fresh(&server.address(), 4).http("/", Some("Hello, client!")));
    spoil(server);
    server.signal(SIGUSR2);
    let line = server.wait_for_log("upgrade failed");
    assert!(line.contains(reason), "{line}");
    assert_eq!(
        last_reason(server).map(|told| told.contains(reason)),
        Some(true),
        "{}",
        server.status()
    );
    // One that cannot even be opened is no program that was replaced.
    if server.path("program").exists() {
        let output = server.command(&["reload", "--wait"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let told = server.status()["last_reload"]["reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(
            told.contains(reason) && told.contains("cannot take over"),
            "{told}"
        );
    }
    load.wait_for_more(20);
    assert_eq!(
        (server.process(), server.ready(), program(server)),
        (pid, workers.clone(), version)
    );
    assert_eq!(server.generation(), generation);
    assert_eq!(server.log().count("upgrade failed"), 1, "it is logged once");
    wait_until("only the workers", LONG, || pid.children().len() == 2);
    server.replace(Path::new(THIS));
    upgrade(server);
    load.wait_for_more(20);
    assert_eq!(server.ready(), workers);
    load.finish().assert_flawless();
}

fn put(text: &'static [u8], mode: u32) -> impl Fn(&Server) {
    move |server| {
        let file = server.path("bad");
        std::fs::write(&file, text).expect("a file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("its mode");
        server.replace(&file);
    }
}

#[test]
fn a_file_that_is_no_program_changes_nothing() {
    changes_nothing(
        &setup().start(),
        put(b"these are words", 0o755),
        "not a program for this machine",
    );
    changes_nothing(
        &setup().start(),
        put(b"\x7fELF\x02\x01\x01", 0o755),
        "cannot execute",
    );
    changes_nothing(
        &setup().start(),
        put(b"", 0o755),
        "not a program for this machine",
    );
    changes_nothing(
        &setup().start(),
        put(b"#!/bin/sh\nexec sleep 60\n", 0o755),
        "is a script",
    );
}

#[test]
fn a_program_for_another_machine_changes_nothing() {
    let spoil = |server: &Server| {
        let mut bytes = std::fs::read(THIS).expect("the program");
        // e_machine: a 68000 is what this one is not.
        bytes[18..20].copy_from_slice(&4_u16.to_le_bytes());
        let file = server.path("other");
        std::fs::write(&file, bytes).expect("a file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("its mode");
        server.replace(&file);
    };
    changes_nothing(&setup().start(), spoil, "not a program for this machine");
}

#[test]
fn a_program_that_may_not_be_executed_changes_nothing() {
    changes_nothing(&setup().start(), put(b"\x7fELF", 0o644), "chmod +x");
}

#[test]
fn a_program_that_is_gone_changes_nothing() {
    let spoil =
        |server: &Server| std::fs::remove_file(server.path("program")).expect("it was there");
    changes_nothing(&setup().start(), spoil, "check the path");
}

#[test]
fn another_program_changes_nothing() {
    changes_nothing(
        &setup().start(),
        |server| server.replace(Path::new("/bin/true")),
        "without a word",
    );
    changes_nothing(
        &setup().start(),
        |server| server.replace(Path::new("/bin/false")),
        "status 1",
    );
}

#[test]
fn a_new_version_that_fails_in_the_check_changes_nothing() {
    for (part, reason) in [
        ("crash", "killed by SIGABRT"),
        ("exit", "status 3"),
        ("panic", "this version is broken"),
        ("refuse", "does not want to"),
        ("hang", "did not end within 3s"),
    ] {
        let setup = setup()
            .env("PREFORK_NEXT", part)
            .args(["--start-timeout", "3s"]);
        changes_nothing(&setup.start(), |server| server.replace(next()), reason);
    }
}

#[test]
fn a_new_version_that_fails_after_its_check_gives_the_server_back() {
    for (part, reason) in [
        ("late", "changed its mind"),
        ("late-panic", "broke too late"),
    ] {
        let setup = setup().env("PREFORK_NEXT", part);
        changes_nothing(&setup.start(), |server| server.replace(next()), reason);
    }
}

#[test]
fn a_version_that_cannot_read_the_state_refuses_it() {
    let server = setup().env("PREFORK_NEXT", "format").start();
    let (old, workers) = (program(&server), server.ready());
    // The newer one knows the older one's format, and writes one that the older one does not know.
    server.replace(next());
    upgrade(&server);
    assert_eq!(program(&server), format!("{old}-next"));
    server.replace(Path::new(THIS));
    server.signal(SIGUSR2);
    let line = server.wait_for_log("upgrade failed");
    assert!(
        line.contains("it has format 2") && line.contains("reads 1"),
        "{line}"
    );
    assert_eq!(
        (program(&server), server.ready()),
        (format!("{old}-next"), workers)
    );
}

#[test]
fn a_reload_that_finds_the_program_replaced_upgrades_and_reloads() {
    for wait in [false, true] {
        let mut server = setup().start();
        let (pid, workers, before) = (server.process(), server.ready(), server.generation());
        let load = start(Plan::fresh(&server.address(), 8).http("/", Some("Hello, client!")));
        load.wait_for_more(20);
        server.replace(next());
        if wait {
            let output = server.command(&["reload", "--wait"]);
            assert!(output.status.success(), "{output:?}");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(said.contains("generation 2 serves"), "{said}");
        } else {
            server.signal(SIGHUP);
        }
        server.wait_for_generation_after(before);
        assert!(program(&server).ends_with("-next"));
        assert_eq!(server.process(), pid);
        let new = server.ready();
        assert!(
            new.iter().all(|worker| !workers.contains(worker)),
            "the workers are new, too"
        );
        // A second reload finds nothing replaced.
        server.reload();
        assert_eq!(server.log().count("upgraded in place"), 1);
        load.wait_for_more(20);
        load.finish().assert_flawless();
    }
}

#[test]
fn an_upgrade_in_the_middle_of_a_reload_disturbs_neither() {
    let mut server = Server::setup(THIS)
        .copied()
        .workers(3)
        .args(["--min-ready", "1s", "--surge", "1"])
        .start();
    let (pid, before) = (server.process(), server.generation());
    let load = start(Plan::fresh(&server.address(), 8).http("/", Some("Hello, client!")));
    server.signal(SIGHUP);
    wait_until("the reload's first batch", LONG, || {
        server.status()["reload"]["passed"].as_u64() == Some(1)
    });
    upgrade(&server);
    assert!(!server.status()["reload"].is_null(), "the reload goes on");
    upgrade(&server);
    server.wait_for_generation_after(before);
    assert_eq!((server.generation(), server.process()), (before + 1, pid));
    load.wait_for_more(20);
    load.finish().assert_flawless();
}

#[test]
fn a_client_that_waits_for_a_reload_gets_the_verdict_over_an_upgrade() {
    let server = Server::setup(THIS)
        .copied()
        .workers(2)
        .args(["--min-ready", "2s"])
        .start();
    let client = std::thread::scope(|scope| {
        let client = scope.spawn(|| server.command(&["reload", "--wait"]));
        wait_until("a candidate", LONG, || !server.status()["reload"].is_null());
        upgrade(&server);
        client.join().expect("the client")
    });
    assert!(client.status.success(), "{client:?}");
    assert!(
        String::from_utf8_lossy(&client.stdout).contains("generation 2 serves"),
        "{client:?}"
    );
}

#[test]
fn term_just_after_usr2_stops_gracefully() {
    for pause in [0, 1, 3, 6, 10, 15, 25] {
        let mut server = Server::setup(THIS)
            .copied()
            .workers(1)
            .args(["--app", "sleep"])
            .start();
        let load = start(
            Plan::fresh(&server.address(), 1)
                .http("/?ms=1500", None)
                .count(1),
        );
        wait_until("a request in flight", LONG, || server.busy() == 1);
        server.signal(SIGUSR2);
        // Whatever the machine does meanwhile: before the check, during it, during the exec or
        // after it.
        std::thread::sleep(std::time::Duration::from_millis(pause));
        server.signal(SIGTERM);
        assert!(server.wait_exit(LONG).success());
        load.wait().assert_flawless();
        assert!(
            !server.path("prefork.sock").exists(),
            "it leaves no file behind"
        );
    }
}

#[test]
fn a_worker_that_dies_right_around_the_exec_is_replaced() {
    let mut server = setup().start();
    for pause in [0, 2, 5, 8, 11, 14, 20] {
        let victim = server.ready()[0];
        let done = server.log().count("upgraded in place");
        server.signal(SIGUSR2);
        std::thread::sleep(std::time::Duration::from_millis(pause));
        victim.signal(SIGKILL);
        server.wait_for_replacement(0, victim);
        wait_until("an upgrade", LONG, || {
            server.log().count("upgraded in place") > done
        });
        server.wait_until_settled(LONG);
        wait_until("no zombie", LONG, || server.process().children().len() == 2);
    }
}

#[test]
fn counters_scale_and_configuration_survive_an_upgrade() {
    let good = "workers = 2\nmax-workers = 4\nmin-ready = \"50ms\"\n[env]\nFLAVOUR = \"first\"\n";
    let mut server = Server::setup(THIS).copied().config(good).start();
    let requests = |server: &Server| -> u64 {
        let status = server.status();
        let slots = status["slots"].as_array().expect("slots");
        slots
            .iter()
            .map(|slot| slot["totals"]["requests"].as_u64().expect("a number"))
            .sum()
    };
    testkit::load::run(&Plan::fresh(&server.address(), 4).count(100)).assert_flawless();
    server.reload();
    server.signal(nix::sys::signal::Signal::SIGTTIN);
    wait_until("three workers", LONG, || {
        server.ready().len() == 3 && server.is_settled()
    });
    let before = requests(&server);
    // The file is spoilt: what serves is what was read before.
    server.file("config.toml", "workers = \"none\"\n");
    server.replace(next());
    upgrade(&server);
    assert_eq!(
        requests(&server),
        before,
        "the dead workers' requests are not forgotten"
    );
    assert_eq!((server.ready().len(), server.generation()), (3, 2));
    let victim = server.ready()[0];
    victim.signal(SIGKILL);
    let new = server.wait_for_replacement(0, victim);
    assert_eq!(new.process.variable("FLAVOUR").as_deref(), Some("first"));
    assert_eq!(
        new.process.variable("PREFORK_HANDOVER"),
        None,
        "what was for the supervisor stays there"
    );
    let output = server.command(&["reload", "--wait"]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "the spoilt file is refused: {output:?}"
    );
    server.file("config.toml", good);
    server.reload();
    assert_eq!(server.ready().len(), 2);
}

#[test]
fn programs_that_notify_are_known_after_an_upgrade() {
    let setup =
        Server::setup(THIS)
            .copied()
            .workers(2)
            .args(["--ready", "notify", "--min-ready", "50ms"]);
    let minimal = testkit::program("minimal.py").into_os_string();
    let mut server = setup.program(["python3".into(), minimal]).start();
    let workers = server.ready();
    let load = start(Plan::fresh(&server.address(), 4));
    load.wait_for_more(20);
    upgrade(&server);
    assert_eq!(server.ready(), workers);
    // New ones still reach the notification socket, which only then has them ready.
    server.reload();
    load.wait_for_more(20);
    load.finish().assert_flawless();
}

#[test]
fn a_generation_stays_pinned_to_its_release_over_an_upgrade() {
    for (words, sandboxed) in [
        (["./app.py"].as_slice(), false),
        (&["python3", "app.py"], false),
        (&["LINK/app.py"], false),
        (&["/usr/bin/python3", "-B", "app.py"], true),
    ] {
        let setup = Server::setup(THIS).copied().workers(2);
        let releases = Releases::new(setup.path(""));
        releases.add("r1");
        releases.add_broken("broken");
        releases.deploy("r1");
        let link = releases.current().display().to_string();
        let words = words.iter().map(|word| word.replace("LINK", &link));
        let server = setup
            .args([
                "--ready",
                "notify",
                "--min-ready",
                "50ms",
                "--directory",
                &link,
            ])
            .program(words);
        let sandbox = ["--read-only", link.as_str()];
        let server = if sandboxed {
            server.args(sandbox)
        } else {
            server
        };
        let mut server = server.start();
        let descriptors = server.process().descriptors();
        releases.deploy("broken");
        for program in [next(), Path::new(THIS)] {
            server.replace(program);
            upgrade(&server);
            let victim = server.ready()[0];
            victim.signal(SIGKILL);
            let worker = server.wait_for_replacement(0, victim).process;
            assert_eq!(
                worker.variable("PWD"),
                releases.path("r1").to_str().map(str::to_owned)
            );
        }
        server.wait_until_settled(LONG);
        testkit::load::run(
            &Plan::fresh(&server.address(), 4)
                .http("/", Some("r1"))
                .count(20),
        )
        .assert_flawless();
        wait_until("as many descriptors as before", LONG, || {
            server.process().descriptors() <= descriptors
        });
    }
}

/// Puts a copy of a program, as `app`, into a release that is not there yet.
fn release(releases: &Releases, name: &str, program: &Path) {
    let directory = releases.path(name);
    std::fs::create_dir(&directory).expect("a directory of our own");
    let copied = std::process::Command::new("cp")
        .arg(program)
        .arg(directory.join("app"))
        .status();
    assert!(copied.expect("cp can be run").success());
}

/// Whether the supervisor and all its workers run a release's program.
fn all_run(server: &Server, releases: &Releases, name: &str) -> bool {
    let program = releases.path(name).join("app");
    let runs =
        |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|it| it == program);
    runs(server.process().0) && server.ready().iter().all(|worker| runs(worker.0))
}

/// A program behind a symbolic link, started by `command` in a shell in the releases' directory.
fn follows_the_link(command: &str) {
    let setup = Server::setup(THIS).workers(2).args(["--min-ready", "50ms"]);
    let releases = Releases::new(setup.path(""));
    release(&releases, "r1", Path::new(THIS));
    release(&releases, "r2", next());
    release(&releases, "r3", Path::new(THIS));
    releases.deploy("r1");
    let script = format!("shift; {command} \"$@\"")
        .replace("LINK", &releases.current().display().to_string());
    let mut server = setup.wrapped(["sh", "-c", &script, "sh"]).start();
    assert!(all_run(&server, &releases, "r1"));
    let load = start(Plan::fresh(&server.address(), 4).http("/", Some("Hello, client!")));
    let done = |words: &[&str]| {
        let output = server.command(words);
        assert!(output.status.success(), "{output:?}");
    };
    releases.deploy("r2");
    done(&["upgrade", "--wait"]);
    assert!(
        program(&server).ends_with("-next"),
        "the supervisor is the new one"
    );
    done(&["reload", "--wait"]);
    assert!(all_run(&server, &releases, "r2"));
    releases.remove("r1");
    // A reload alone does both.
    releases.deploy("r3");
    done(&["reload", "--wait"]);
    assert!(all_run(&server, &releases, "r3"));
    assert!(!program(&server).ends_with("-next"));
    releases.remove("r2");
    done(&["upgrade", "--wait"]);
    done(&["reload", "--wait"]);
    load.finish().assert_flawless();
    server.wait_until_settled(LONG);
}

#[test]
fn a_program_behind_a_link_is_followed_by_reload_and_upgrade() {
    follows_the_link("exec LINK/app");
}

#[test]
fn a_program_behind_a_link_is_followed_from_the_path() {
    follows_the_link("PATH=/bin:LINK; exec app");
}

#[test]
fn a_program_behind_a_link_is_followed_from_a_directory() {
    follows_the_link("exec current/app");
}

#[test]
fn a_program_behind_a_link_is_followed_from_the_linked_directory() {
    follows_the_link("cd current; exec ./app");
}

#[test]
fn a_preflight_begins_anew_after_an_upgrade() {
    let waits = "echo >> begun; until [ -e go ]; do sleep 0.05; done";
    let setup = Server::setup(THIS)
        .copied()
        .workers(2)
        .config("min-ready = \"50ms\"\n");
    let server = setup.start();
    server.file(
        "config.toml",
        &format!("min-ready = \"50ms\"\npreflight = \"{waits}\"\n"),
    );
    let begun = || std::fs::read_to_string(server.path("begun")).map_or(0, |text| text.len());
    let client = std::thread::scope(|scope| {
        let client = scope.spawn(|| server.command(&["reload", "--wait"]));
        wait_until("a preflight", LONG, || begun() == 1);
        upgrade(&server);
        wait_until("another one", LONG, || begun() == 2);
        assert_eq!(server.generation(), 1);
        server.file("go", "");
        client.join().expect("the client")
    });
    assert!(client.status.success(), "{client:?}");
    assert_eq!(server.generation(), 2);
}

#[test]
fn systemd_hears_of_a_reload_that_upgrades_from_one_process() {
    let setup = setup();
    let mut socket = NotifySocket::new(&setup.path("")).expect("a notification socket");
    let path = socket.path().to_owned();
    let mut server = setup.env("NOTIFY_SOCKET", path).start();
    let (ready, _) = socket.wait_for("READY=1", 0, LONG);
    server.replace(next());
    server.reload();
    let (place, _) = socket.wait_for("RELOADING=1", ready + 1, LONG);
    socket.wait_for("READY=1", place + 1, LONG);
    assert!(
        !socket
            .messages()
            .iter()
            .any(|message| message.contains("STOPPING=1"))
    );
    server.replace(Path::new("/bin/false"));
    server.signal(SIGUSR2);
    wait_until("the reason in a status", LONG, || {
        socket
            .messages()
            .iter()
            .any(|message| message.contains("STATUS=") && message.contains("status 1"))
    });
}
