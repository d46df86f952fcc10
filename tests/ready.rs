//! When a program counts as ready, and what is logged of one that never is.

use nix::sys::signal::Signal::{SIGHUP, SIGKILL, SIGUSR2};
use std::ffi::OsString;
use std::time::Duration;
use testkit::process::Process;
use testkit::{LONG, Server, Setup, skipped, tool};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "100ms"])
}

/// A program in Python that needs a second to get ready, and says nothing about it.
fn silent(test: &str) -> Option<[OsString; 2]> {
    if tool("python3").is_none() {
        skipped(test, "python3 is not installed");
        return None;
    }
    Some([
        "python3".into(),
        testkit::program("minimal.py").into_os_string(),
    ])
}

fn slow(setup: Setup) -> Setup {
    setup.env("READY", "no").env("START_DELAY", "1")
}

/// How long after its start each of `count` workers was ready, by the log.
#[track_caller]
fn readiness(server: &Server, count: usize) -> Vec<Duration> {
    testkit::ready_after(server.log(), count)
}

#[test]
fn a_program_is_ready_when_it_is_seen_to_wait_for_connections() {
    let Some(program) = silent("seen") else {
        return;
    };
    let setup = slow(setup())
        .workers(2)
        .args(["--ready", "listen", "--bind", "127.0.0.1:0"])
        .bind_unix();
    let mut server = setup.program(program).start();
    assert_eq!(server.get("/").status, 200);
    server.reload();
    let times = readiness(&server, 4);
    assert!(
        times.len() == 4 && times.iter().all(|time| *time >= Duration::from_secs(1)),
        "{times:?}"
    );
    testkit::wait_until("no readiness probe to be left", LONG, || {
        server.process().children().len() == 2
    });
}

#[test]
fn a_program_of_another_user_in_its_sandbox_is_seen_too() {
    let Some([python, script]) = silent("seen as another user") else {
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        return skipped(
            "seen as another user",
            "needs root, to start programs of another user",
        );
    }
    let setup = slow(setup())
        .workers(1)
        .args(["--ready", "listen", "--user", "nobody"]);
    // The user nobody may have no access to the checkout; the test's own directory can grant it.
    let here = setup.path("minimal.py");
    std::fs::copy(script, &here).expect("a copy");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(setup.path(""), open).expect("our own directory");
    let server = setup.program([python, here.into_os_string()]).start();
    assert_eq!(server.get("/").status, 200);
    let times = readiness(&server, 1);
    assert!(times[0] >= Duration::from_secs(1), "{times:?}");
}

#[test]
fn a_program_that_was_not_ready_before_an_upgrade_is_seen_after_it() {
    let Some(program) = silent("seen over an upgrade") else {
        return;
    };
    let setup = setup().workers(1).args(["--ready", "listen"]);
    let go = setup.path("go");
    let setup = setup.env("READY", "no").env("START_WHEN", go);
    let mut server = setup.program(program).spawn();
    server.wait_for_log("starts");
    server.signal(SIGUSR2);
    server.wait_for_log("upgraded in place");
    assert_eq!(server.log().count("is ready"), 0);
    server.file("go", "");
    server.wait_until_settled(LONG);
    assert_eq!(server.get("/").status, 200);
    testkit::wait_until("the old readiness probe's exit", LONG, || {
        server.process().children().len() == 1
    });
}

#[test]
fn a_killed_readiness_probe_is_followed_by_another_one() {
    let Some(program) = silent("a killed probe") else {
        return;
    };
    let setup = setup().workers(1).args(["--ready", "listen"]);
    let go = setup.path("go");
    setup.file("go", "");
    let setup = setup.env("READY", "no").env("START_WHEN", &go);
    let mut server = setup.program(program).start();
    let before = server.generation();
    std::fs::remove_file(&go).expect("it was there");
    server.signal(SIGHUP);
    let probe = |not: Option<Process>| {
        testkit::wait_for("a readiness probe", LONG, || {
            let children = server.process().children().into_iter();
            let mut probes = children.filter(|one| one.command_line().contains("readiness probe"));
            probes.find(|one| Some(*one) != not)
        })
    };
    let first = probe(None);
    first.signal(SIGKILL);
    let second = probe(Some(first));
    second.signal(SIGKILL);
    probe(Some(second));
    server.file("go", "");
    server.wait_for_generation_after(before);
    assert_eq!(server.status()["deaths"]["protocol"], 0);
}

#[test]
fn a_program_that_never_waits_for_connections_is_refused_with_the_remedy() {
    let setup = setup()
        .workers(1)
        .args(["--ready", "listen", "--start-timeout", "1s"]);
    let (status, log) = setup.program(["sleep", "3600"]).run();
    assert!(!status.success());
    let line = log
        .iter()
        .find(|line| line.contains("giving up"))
        .expect("it is logged");
    assert!(
        line.contains("not seen to wait for connections") && line.contains("--ready after=TIME"),
        "{line}"
    );
}

#[test]
fn a_program_that_watches_only_one_of_two_sockets_is_not_ready() {
    let Some([python, _]) = silent("one of two") else {
        return;
    };
    let script = "import select\nwhile True: select.select([3], [], [])";
    let setup = setup()
        .workers(1)
        .args(["--ready", "listen", "--start-timeout", "2s"]);
    let setup = setup.bind("127.0.0.1:0").bind_unix();
    let (status, _) = setup.program([python, "-c".into(), script.into()]).run();
    assert!(!status.success());
}

/// A script that listens on an address of its own and waits there.
const ELSEWHERE: &str = "import select, socket\n\
    own = socket.create_server((\"127.0.0.1\", 0))\n\
    while True: select.select([own], [], [])";

#[test]
fn a_program_that_listens_elsewhere_is_reported_in_log_and_status() {
    let Some([python, _]) = silent("elsewhere") else {
        return;
    };
    let setup = setup()
        .workers(1)
        .program([python, "-c".into(), ELSEWHERE.into()]);
    let server = setup.start();
    let line = server.wait_for_log("does not accept on");
    let problem = format!(
        "does not accept on {} (descriptor 3); it listens on 127.0.0.1:",
        server.address()
    );
    assert!(line.contains(&problem), "{line}");
    let status = server.status();
    let seen = &status["slots"][0]["workers"][0]["problem"];
    assert!(
        seen.as_str().is_some_and(|seen| seen.starts_with(&problem)
            && seen.ends_with("It must use the inherited socket (LISTEN_FDS)")),
        "{status}"
    );
    let text = server.command(&["status"]).stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.contains(&format!("worker 1 {problem}")), "{text}");
}

#[test]
fn a_refused_reload_says_where_the_program_listens() {
    let Some([python, minimal]) = silent("a refused reload") else {
        return;
    };
    let good = format!(
        "workers = 1\nready = \"listen\"\nstart-timeout = \"4s\"\n\
         command = [\"{}\", \"{}\"]\n",
        python.display(),
        minimal.display()
    );
    let server = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .config(&good)
        .start();
    let bad = good.replace(
        &format!("\"{}\"", minimal.display()),
        &format!("\"-c\", {ELSEWHERE:?}"),
    );
    server.file("config.toml", &bad);
    let answer = server.command(&["reload", "--wait"]);
    let text = String::from_utf8_lossy(&answer.stderr).into_owned();
    let problem = format!(
        "does not accept on {} (descriptor 3); it listens on 127.0.0.1:",
        server.address()
    );
    assert!(
        !answer.status.success() && text.contains(&problem),
        "{text}"
    );
}

#[test]
fn of_several_sockets_the_one_that_is_not_waited_on_is_named() {
    let Some([python, _]) = silent("one of two, named") else {
        return;
    };
    let script = "import select\nwhile True: select.select([3], [], [])";
    let setup = setup().workers(1).bind("127.0.0.1:0").bind_unix();
    let socket = setup.path("http.sock");
    let setup = setup.program([python, "-c".into(), script.into()]);
    let server = setup.start();
    let line = server.wait_for_log("does not accept on");
    let problem = format!(
        "does not accept on unix:{} (descriptor 4). It must",
        socket.display()
    );
    assert!(line.contains(&problem), "{line}");
}

#[test]
fn a_program_that_waits_is_checked_once_and_not_reported() {
    let Some(program) = silent("checked once") else {
        return;
    };
    let setup = setup().workers(2).env("READY", "no");
    let server = setup.program(program).start();
    testkit::wait_until("no readiness probe to be left", LONG, || {
        server.process().children().len() == 2
    });
    assert_eq!(server.log().count("does not accept"), 0);
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_program_that_must_speak_and_does_not_is_refused_with_the_remedy() {
    let setup = setup()
        .workers(1)
        .args(["--ready", "notify", "--start-timeout", "1s"]);
    let (status, log) = setup.program(["sleep", "3600"]).run();
    assert!(!status.success());
    let line = log
        .iter()
        .find(|line| line.contains("giving up"))
        .expect("it is logged");
    assert!(
        line.contains("did not say READY=1") && line.contains("--ready after=TIME"),
        "{line}"
    );
}
