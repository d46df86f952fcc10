//! What a worker cannot do: each attempt is made by a confined worker, and by a free one, for whom
//! it works.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use testkit::{Server, Setup, http, skipped, tool};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "0s"])
}

/// Python of the system: where a distribution has put it, every worker may read it.
fn python() -> Option<PathBuf> {
    let python = PathBuf::from("/usr/bin/python3");
    python.is_file().then_some(python)
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A worker that tries what it is asked to, behind a Unix socket; its own network, so that any port
/// is free.
fn sandbox_escape(test: &str) -> Option<Setup> {
    let Some(python) = python() else {
        skipped(test, "there is no /usr/bin/python3");
        return None;
    };
    if !is_root() || tool("unshare").is_none() {
        skipped(test, "it needs root and unshare");
        return None;
    }
    let setup = setup()
        .wrapped(["unshare", "--net"])
        .bind_unix()
        .bind("0.0.0.0:0")
        .workers(2);
    let setup = setup.args(["--ready", "notify", "--hang-timeout", "off"]);
    // Other users than root must reach the script and the notification socket.
    std::fs::set_permissions(setup.path("."), Permissions::from_mode(0o711))
        .expect("our own directory");
    setup.file(
        "sandbox_escape.py",
        include_str!("programs/sandbox_escape.py"),
    );
    for directory in ["inside", "outside"] {
        std::fs::create_dir(setup.path(directory)).expect("our own directory");
        let all = Permissions::from_mode(0o777);
        std::fs::set_permissions(setup.path(directory), all).expect("our own directory");
    }
    setup.file("outside/there", "something");
    let script = setup.path("sandbox_escape.py");
    // Bytecode would be written beside the script.
    Some(setup.program([
        python.into_os_string(),
        "-B".into(),
        script.into_os_string(),
    ]))
}

fn ask(server: &Server, attempt: &str) -> String {
    http::get(&server.address(), &format!("/{attempt}"))
        .expect("an answer")
        .body
}

/// The paths that a confined worker may use.
fn paths(setup: &Setup) -> [String; 4] {
    let path = |name: &str| setup.path(name).display().to_string();
    [
        "--read-only".to_owned(),
        path("sandbox_escape.py"),
        "--writable".to_owned(),
        path("inside"),
    ]
}

#[test]
fn a_confined_worker_is_refused_whatever_is_not_its_part_and_a_free_one_is_not() {
    let test = "a confined worker";
    let Some(free) = sandbox_escape(test) else {
        return;
    };
    let (Some(other), Some(confined)) = (sandbox_escape(test), sandbox_escape(test)) else {
        return;
    };
    // As free as the supervisor: root.
    let free = free
        .args(["--keep-cap", "all", "--no-new-privileges", "off"])
        .start();
    // Another user alone brings the sandbox, except for the paths, which were not given.
    let other = other.args(["--user", "nobody"]).start();
    let named = paths(&confined);
    let confined = confined
        .args([
            "--sandbox",
            "strict",
            "--seccomp",
            "enforce",
            "--tcp-bind",
            "deny",
        ])
        .args(["--user", "nobody"])
        .args(named)
        .start();
    let path = |server: &Server, name: &str| server.path(name).display().to_string();
    // What is tried; what happens to a confined worker, and to a free one.
    let attempts: [(&str, &str, Option<&str>, &str, &str); 20] = [
        ("bind TCP port 22", "bind/22", None, "EACCES", "done"),
        (
            "write outside its paths",
            "write",
            Some("outside/file"),
            "EACCES",
            "done",
        ),
        (
            "write inside them",
            "write",
            Some("inside/file"),
            "done",
            "done",
        ),
        (
            "read outside its paths",
            "read",
            Some("outside/there"),
            "EACCES",
            "done",
        ),
        (
            "read what it may",
            "read//etc/hostname",
            None,
            "done",
            "done",
        ),
        (
            "signal the supervisor",
            "kill/supervisor",
            None,
            "EPERM",
            "done",
        ),
        ("signal a sibling", "kill/sibling", None, "EPERM", "done"),
        (
            "attach a steering program",
            "attach",
            None,
            "EPERM",
            "EPERM",
        ),
        (
            "attach one to sockets of its own",
            "own_attach",
            None,
            "EPERM",
            "done",
        ),
        (
            "detach the steering program",
            "detach",
            None,
            "EPERM",
            "done",
        ),
        (
            "detach one from sockets of its own",
            "own_detach",
            None,
            "EPERM",
            "done",
        ),
        ("ptrace a sibling", "ptrace/sibling", None, "EPERM", "done"),
        (
            "read a sibling's memory",
            "memory/sibling",
            None,
            "EPERM",
            "done",
        ),
        (
            "open a sibling's /proc/PID/mem",
            "proc_memory/sibling",
            None,
            "EACCES",
            "done",
        ),
        (
            "open the control socket",
            "connect",
            Some("prefork.sock"),
            "EACCES",
            "done",
        ),
        ("mount", "mount", None, "EPERM", "done"),
        ("a user namespace", "clone", None, "EPERM", "done"),
        ("io_uring", "io_uring", None, "EPERM", ""),
        (
            "run a program of the system",
            "execute//bin/true",
            None,
            "done",
            "done",
        ),
        ("open a UDP socket", "udp", None, "done", "done"),
    ];
    println!("{:<36} {:<9} {:<9} free", "attempt", "confined", "nobody");
    let mut wrong = Vec::new();
    for (what, attempt, file, refused, allowed) in attempts {
        let on = |server: &Server| match file {
            Some(name) => ask(server, &format!("{attempt}/{}", path(server, name))),
            None => ask(server, attempt),
        };
        let (there, half, here) = (on(&confined), on(&other), on(&free));
        println!("{what:<36} {there:<9} {half:<9} {here}");
        let whole = match attempt {
            "write" | "read" => "done",
            _ => refused,
        };
        if there != refused || half != whole || (!allowed.is_empty() && here != allowed) {
            wrong.push(what);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_limit_is_the_workers_and_one_that_cannot_be_given_changes_nothing() {
    let Some(setup) = sandbox_escape("limits") else {
        return;
    };
    let server = setup
        .args(["--limit", "nofile=123:456", "--limit", "core=0"])
        .start();
    assert_eq!(ask(&server, "limit/nofile"), "123:456");
    assert_eq!(ask(&server, "limit/core"), "0:0");
    let (status, lines) = self::setup()
        .args(["--limit", "nofile=1:18446744073709551614"])
        .run();
    assert!(!status.success());
    assert!(
        lines
            .iter()
            .any(|line| line.contains("cannot set the limit nofile=1:")),
        "{lines:?}"
    );
}

#[test]
fn a_private_tmp_is_empty_and_seen_by_its_worker_only() {
    let Some(setup) = sandbox_escape("a private /tmp") else {
        return;
    };
    // The test's own directory is in /tmp, which would be hidden.
    let place = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in("/var/lib");
    let place = place.expect("root may make a directory there");
    let script = place.path().join("sandbox_escape.py");
    std::fs::copy(setup.path("sandbox_escape.py"), &script).expect("a copy");
    let python = python().expect("it was found").into_os_string();
    let setup = setup.env("XDG_RUNTIME_DIR", place.path());
    let setup = setup.program([python, "-B".into(), script.clone().into_os_string()]);
    let server = setup
        .args(["--private-tmp", "on", "--sandbox", "strict"])
        .args(["--read-only".into(), script.into_os_string()])
        .start();
    for tmp in ["/tmp", "/var/tmp"] {
        assert_eq!(
            ask(&server, &format!("names/{tmp}")),
            "done",
            "nothing is in it"
        );
        assert_eq!(ask(&server, &format!("write/{tmp}/file")), "done");
    }
    assert!(server.directory().exists(), "ours is still there");
}

#[test]
fn a_notification_socket_that_a_private_tmp_hides_is_refused_before_anything_starts() {
    let Some(setup) = sandbox_escape("a hidden socket") else {
        return;
    };
    let (status, lines) = setup.args(["--private-tmp", "on"]).run();
    assert!(!status.success());
    let line = lines
        .iter()
        .find(|line| line.contains("private-tmp: workers would not see"))
        .expect("why");
    assert!(line.contains("put it elsewhere"), "{line}");
}

#[test]
fn stock_apps_are_sandboxed_unless_that_is_switched_off_and_other_programs_are_not() {
    let facts = |setup: Setup| {
        let server = setup.workers(1).start();
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.ready()[0].0))
            .expect("it runs");
        let fact = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .expect("a line");
            line.trim_start_matches(':').trim().to_owned()
        };
        assert_eq!(
            server.log().count("is missing here"),
            0,
            "this kernel has every part"
        );
        (fact("Seccomp"), fact("NoNewPrivs"))
    };
    let own = |on: &str| setup().args(["--no-new-privileges", "off", "--sandbox", on]);
    let pair = |seccomp: &str, renounced: &str| (seccomp.to_owned(), renounced.to_owned());
    assert_eq!(facts(setup()), pair("2", "1"));
    assert_eq!(facts(own("strict").args(["--app", "echo"])), pair("2", "1"));
    assert_eq!(facts(own("off")), pair("0", "0"));
    let sleep = ["sh", "-c", "while :; do sleep 1; done"];
    let external = || {
        setup()
            .args(["--no-new-privileges", "off", "--ready", "after=100ms"])
            .program(sleep)
    };
    assert_eq!(
        facts(external()),
        pair("0", "0"),
        "whatever runs under systemd"
    );
    if nix::unistd::geteuid().is_root() {
        assert_eq!(facts(external().args(["--user", "nobody"])), pair("2", "1"));
        assert_eq!(
            facts(external().args(["--user", "nobody", "--sandbox", "off"])),
            pair("0", "0")
        );
    }
    assert_eq!(facts(external().args(["--seccomp", "log"])), pair("2", "1"));
    assert_eq!(
        facts(external().args(["--sandbox", "strict"])),
        pair("0", "1")
    );
}

#[test]
fn the_files_that_are_served_are_the_only_ones_that_can_be() {
    let setup = setup().workers(1);
    std::fs::create_dir(setup.path("public")).expect("our own directory");
    setup.file("public/page", "here");
    let app = format!("files:{}", setup.path("public").display());
    let server = setup.args(["--app", &app, "--sandbox", "strict"]).start();
    assert_eq!(server.get("/page").body, "here");
    // What is put there later, too.
    std::fs::write(server.path("public/more"), "more").expect("our own directory");
    assert_eq!(server.get("/more").body, "more");
}

#[test]
fn a_sandboxed_worker_creates_its_log_file_again_after_a_rotation() {
    let setup = setup()
        .workers(1)
        .args(["--app", "greeter", "--sandbox", "strict"]);
    std::fs::create_dir(setup.path("log")).expect("our own directory");
    let log = setup.path("log/file");
    let server = setup
        .args(["--log-file".into(), log.clone().into_os_string()])
        .start();
    let greet = |word: &str| {
        use std::io::{Read, Write};
        let mut client = server.connect();
        client.write_all(word.as_bytes()).expect("sent");
        client
            .read_to_string(&mut String::new())
            .expect("an answer");
    };
    let logged = |path: &std::path::Path, word: &str| {
        testkit::wait_until(&format!("{word} to be logged"), testkit::LONG, || {
            std::fs::read_to_string(path)
                .unwrap_or_default()
                .contains(word)
        });
    };
    greet("before");
    logged(&log, "before");
    let old = server.path("log/file.1");
    std::fs::rename(&log, &old).expect("rotated");
    // The worker looks for itself, about once a second.
    testkit::wait_until("the worker to write a new file", testkit::LONG, || {
        greet("after");
        std::fs::read_to_string(&log)
            .unwrap_or_default()
            .contains("after")
    });
}

#[test]
fn a_script_and_its_interpreter_can_be_executed_under_rules() {
    let Some(python) = python() else {
        return skipped("a script", "there is no /usr/bin/python3");
    };
    let setup = setup().workers(1).args(["--ready", "notify"]);
    let minimal =
        std::fs::read_to_string(testkit::program("minimal.py")).expect("a program of ours");
    setup.file("serve", &format!("#!{}\n{minimal}", python.display()));
    let script = setup.path("serve");
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("our own file");
    let empty = setup.path("empty");
    std::fs::create_dir(&empty).expect("our own directory");
    let server = setup
        .args(["--sandbox", "strict", "--read-only"])
        .args([empty.into_os_string()])
        .program([script.clone().into_os_string()])
        .start();
    assert_eq!(server.get("/").body, "Hello from Python");
    // Exchanged by a new file, it is what the next worker runs.
    let old = server.ready()[0];
    std::fs::copy(&script, server.path("new")).expect("a copy, with its mode");
    std::fs::rename(server.path("new"), &script).expect("exchanged");
    old.signal(nix::sys::signal::Signal::SIGKILL);
    server.wait_for_replacement(0, old);
    assert_eq!(server.get("/").body, "Hello from Python");
}

#[test]
fn a_sandbox_that_cannot_be_had_is_found_by_check_and_by_a_reload_which_changes_nothing() {
    let setup = setup().config("workers = 1\nread-only = [\"/usr\"]\n");
    let mut server = setup.no_bind().bind("127.0.0.1:0").start();
    let before = server.ready();
    server.file(
        "config.toml",
        "workers = 1\nread-only = [\"/nowhere/at/all\"]\n",
    );
    let config = server.path("config.toml").display().to_string();
    for command in [&["check", "--config", &config][..], &["reload", "--wait"]] {
        let output = server.command(command);
        assert!(!output.status.success(), "{output:?}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("cannot open /nowhere/at/all"), "{told}");
    }
    server.wait_until_settled(testkit::LONG);
    assert_eq!(server.ready(), before);
}

#[test]
fn real_programs_serve_and_reload_with_everything_but_paths_enforced() {
    let applications = testkit::root().join("tests/programs").display().to_string();
    let here = |name: &str| format!("{applications}/{name}");
    let programs: [(&str, Vec<String>, &str); 4] = [
        ("python3", vec![here("minimal.py")], "Hello from Python"),
        ("node", vec![here("http.js")], "Hello from Node"),
        (
            "uvicorn",
            [
                "--fd",
                "3",
                "--log-level",
                "warning",
                "--app-dir",
                &applications,
                "asgi:app",
            ]
            .map(String::from)
            .into(),
            "Hello from ASGI",
        ),
        (
            "gunicorn",
            [
                "--log-level",
                "warning",
                "--chdir",
                &applications,
                "wsgi:app",
            ]
            .map(String::from)
            .into(),
            "Hello from WSGI",
        ),
    ];
    for (name, arguments, body) in programs {
        let Some(tool) = tool(name) else {
            skipped(
                "a confined program",
                &format!("{name} is not installed (scripts/peers installs it)"),
            );
            continue;
        };
        let words =
            std::iter::once(tool.into_os_string()).chain(arguments.into_iter().map(Into::into));
        let setup = setup()
            .workers(2)
            .args(["--ready", "after=3s", "--tcp-bind", "deny"]);
        let setup = setup.args(["--sandbox", "strict", "--seccomp", "enforce"]);
        let mut server = setup.program(words).start();
        assert_eq!(server.get("/").body, body, "{name}");
        server.reload();
        assert_eq!(server.get("/").body, body, "{name}");
    }
}
