//! Programs that know nothing of this project, only systemd's contract or less.

use std::ffi::OsString;
use std::path::PathBuf;
use testkit::load::{Failure, Plan, Report, run, start};
use testkit::{Server, Setup, skipped, tool};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--probation", "100ms"])
}

/// Serves with four workers and reloads three times under new connections, of which none may be lost.
fn serves_and_reloads(setup: Setup, words: &[OsString], body: &str) {
    reloads_under_load(setup, words, body).assert_flawless();
}

fn reloads_under_load(setup: Setup, words: &[OsString], body: &str) -> Report {
    let mut server = setup.workers(4).program(words.iter().cloned()).start();
    let plan = || Plan::fresh(&server.address(), 8).http("/", Some(body));
    run(&plan().count(200)).assert_flawless();
    let load = start(plan());
    for _ in 0..3 {
        load.wait_for_more(20);
        server.reload();
    }
    load.wait_for_more(20);
    let report = load.finish();
    let pids = server.ready();
    assert!(
        pids.iter().all(|process| process.variable("PREFORK_SLOT").is_some()),
        "the contract's variables"
    );
    report
}

/// The tool's path, or a visible note that the test was skipped.
fn needs(test: &str, name: &str) -> Option<PathBuf> {
    let found = tool(name);
    if found.is_none() {
        skipped(test, &format!("{name} is not installed (scripts/peers installs it)"));
    }
    found
}

fn words<const N: usize>(program: PathBuf, arguments: [&str; N]) -> Vec<OsString> {
    std::iter::once(program.into()).chain(arguments.map(OsString::from)).collect()
}

/// Where the Python applications lie.
fn applications() -> String {
    testkit::root().join("tests/programs").display().to_string()
}

#[test]
fn a_bare_python_server_serves_and_reloads() {
    let Some(python) = needs("bare python", "python3") else { return };
    let words = words(python, [&format!("{}/bare.py", applications())]);
    serves_and_reloads(setup().args(["--ready", "notify"]), &words, "Hello from Python");
}

#[test]
fn a_python_server_that_says_nothing_counts_as_ready_after_a_while() {
    let Some(python) = needs("silent python", "python3") else { return };
    let setup = setup().args(["--ready", "after=300ms"]).env("READY", "no");
    let words = words(python, [&format!("{}/bare.py", applications())]);
    serves_and_reloads(setup, &words, "Hello from Python");
}

#[test]
fn node_serves_and_reloads() {
    let Some(node) = needs("node", "node") else { return };
    let words = words(node, [&format!("{}/http.js", applications())]);
    serves_and_reloads(setup(), &words, "Hello from Node");
}

#[test]
fn uvicorn_serves_and_reloads() {
    let Some(uvicorn) = needs("uvicorn", "uvicorn") else { return };
    let words =
        words(uvicorn, ["--fd", "3", "--log-level", "warning", "--app-dir", &applications(), "asgi:app"]);
    let report = reloads_under_load(setup().args(["--ready", "after=3s"]), &words, "Hello from ASGI");
    // At SIGTERM it closes connections that it has accepted and not read yet: at most one a client and reload.
    // Nothing else may be lost: what it had not accepted is its successor's.
    let its_own = report.count(Failure::EofEarly)
        + report.count(Failure::ReadReset)
        + report.count(Failure::WriteReset);
    assert!(report.failed() == its_own && its_own <= 3 * 8, "{report}");
    println!("uvicorn dropped {its_own} of {} accepted connections in three reloads", report.requests);
}

#[test]
fn gunicorn_serves_and_reloads() {
    let Some(gunicorn) = needs("gunicorn", "gunicorn") else { return };
    // It takes systemd's sockets by itself; `--bind fd://3` besides would make it close them.
    let words = words(gunicorn, ["--log-level", "warning", "--chdir", &applications(), "wsgi:app"]);
    serves_and_reloads(setup().args(["--ready", "after=3s"]), &words, "Hello from WSGI");
}

#[test]
fn a_program_finds_systemds_contract_and_nothing_of_the_supervisors_own() {
    let Some(_) = needs("environment", "python3") else { return };
    let setup = setup().workers(1).args(["--ready", "notify"]).env("LEFT", "alone");
    let program = testkit::program("bare.py").into_os_string();
    let server = setup.program(["python3".into(), program]).start();
    let worker = server.ready()[0];
    let variable = |name: &str| worker.variable(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(variable("LISTEN_FDS"), "1");
    assert_eq!(variable("LISTEN_PID"), worker.0.to_string());
    assert_eq!((variable("PREFORK_SLOT"), variable("PREFORK_WORKERS")), ("0".to_owned(), "1".to_owned()));
    assert_eq!(variable("PREFORK_GENERATION"), server.generation().to_string());
    assert_eq!(variable("LEFT"), "alone");
    assert!(!variable("LISTEN_FDNAMES").is_empty() && !variable("NOTIFY_SOCKET").is_empty());
    assert_eq!(worker.variable("PREFORK_CHANNEL"), None, "foreign programs get no channel");
}

#[test]
fn a_program_that_ignores_the_request_to_leave_is_killed_at_the_deadline() {
    let script = "trap '' TERM; while :; do sleep 0.1; done";
    let setup = setup().workers(1).args(["--ready", "after=100ms", "--graceful-timeout", "500ms"]);
    let mut server = setup.program(["sh", "-c", script]).start();
    let old = server.ready();
    server.reload();
    assert!(old.iter().all(|process| !process.runs()));
}
