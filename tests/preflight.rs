//! A command must succeed before a generation starts workers.

use nix::sys::signal::Signal::SIGTERM;
use testkit::load::{Plan, start};
use testkit::{LONG, Server, Setup, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .workers(2)
        .args(["--min-ready", "50ms"])
}

/// A server whose program imports `view.py` for a request only.
fn lazy(setup: Setup) -> Setup {
    let program = std::fs::read_to_string(testkit::program("minimal.py")).expect("the program");
    let eager = "body = os.environ.get(\"BODY\", \"Hello from Python\").encode()";
    assert!(program.contains(eager), "the program has another body");
    setup.file(
        "app.py",
        &program.replace(eager, "import view; body = view.body.encode()"),
    );
    setup.file("view.py", "body = 'one'\n");
    let directory = setup.path("");
    setup
        .args(["--ready", "notify", "--directory"])
        .args([directory])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .program(["python3", "app.py"])
}

const PREFLIGHT: [&str; 2] = ["--preflight", "python3 -m py_compile view.py"];

#[test]
fn code_that_is_loaded_lazily_fails_a_reload_before_any_worker_starts() {
    let server = lazy(setup().args(PREFLIGHT)).start();
    let workers = server.ready();
    let load = start(Plan::fresh(&server.address(), 4).http("/", Some("one")));
    load.wait_for_more(20);
    server.file("view.py", "body = 'two\n");
    let output = server.command(&["reload", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("preflight exited with status 1"), "{said}");
    assert!(said.contains("SyntaxError"), "{said}");
    assert_eq!(
        (server.ready(), server.log().count("generation 2, pid")),
        (workers, 0)
    );
    load.wait_for_more(20);
    load.finish().assert_flawless();
    server.file("view.py", "body = 'two'\n");
    let output = server.command(&["reload", "--wait"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(server.get("/").body, "two");
}

#[test]
fn a_failing_preflight_ends_the_first_start_with_its_reason() {
    let command = "echo first >&2; echo 'the \"last\" word' >&2; exit 7";
    let (status, log) = setup().args(["--preflight", command]).run();
    assert_eq!(status.code(), Some(1));
    let log = log.join("\n");
    assert!(log.contains("preflight exited with status 7"), "{log}");
    assert!(log.contains("word"), "{log}");
    assert!(!log.contains("worker 1 "), "{log}");
}

#[test]
fn a_preflight_that_takes_too_long_is_killed_with_what_it_started() {
    let setup = setup()
        .args(["--start-timeout", "2s"])
        .config("preflight = \"true\"\n");
    let server = setup.start();
    server.file("config.toml", "preflight = \"sleep 1000 & sleep 1000\"\n");
    let output = server.command(&["reload", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("preflight did not end within 2s"), "{said}");
    wait_until("only the workers", LONG, || server.descendants().len() == 2);
}

#[test]
fn a_stop_ends_a_preflight() {
    for first in [true, false] {
        let endless = "preflight = \"echo > here; sleep 1000 & sleep 1000\"\n";
        let setup = setup();
        let mut server = if first {
            setup.config(endless).spawn()
        } else {
            let server = setup.config("workers = 2\n").start();
            server.file("config.toml", endless);
            server.signal(nix::sys::signal::Signal::SIGHUP);
            server
        };
        wait_until("a preflight", LONG, || server.path("here").exists());
        server.signal(SIGTERM);
        assert!(server.wait_exit(LONG).success());
        wait_until("nothing left", LONG, || server.descendants().is_empty());
    }
}

#[test]
fn a_flood_on_standard_error_delays_nothing() {
    let command = "head -c 10000000 /dev/zero | tr '\\0' x >&2";
    let mut server = setup().args(["--preflight", command]).spawn();
    server.wait_until_settled(LONG);
}

#[test]
fn it_runs_as_workers_do() {
    let command = "{ pwd -P; id -u; echo $FLAVOUR $PREFORK_GENERATION $PWD; \
                   echo ${LISTEN_FDS-none} ${NOTIFY_SOCKET-none}; } > said";
    let setup = setup().args(["--preflight", command, "--env", "FLAVOUR=vanilla"]);
    let place = setup.path("place");
    std::fs::create_dir(&place).expect("a directory of our own");
    let place = place.canonicalize().expect("its path");
    let user = if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&place, Some(65534), None).expect("it is ours");
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(setup.path(""), all).expect("it is ours");
        65534
    } else {
        nix::unistd::geteuid().as_raw()
    };
    let setup = setup
        .args(["--directory".into(), place.clone()])
        .args(["--user", &user.to_string()]);
    let _server = setup.start();
    let said = std::fs::read_to_string(place.join("said")).expect("it has run");
    let place = place.display();
    assert_eq!(
        said,
        format!("{place}\n{user}\nvanilla 1 {place}\nnone none\n")
    );
}
