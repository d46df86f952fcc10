//! Configuration: where a setting comes from, and what a wrong one is told.

use std::process::{Command, Output};
use testkit::{Server, Setup};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor"))
}

fn supervisor(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_supervisor"))
        .args(words)
        .output()
        .expect("the binary can be run")
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_flag_is_over_the_environment_which_is_over_the_file() {
    let count = |setup: Setup| setup.start().ready().len();
    assert_eq!(count(setup().config("workers = 1\n")), 1);
    assert_eq!(
        count(
            setup()
                .config("workers = 1\n")
                .env("SUPERVISOR_WORKERS", "2")
        ),
        2
    );
    assert_eq!(
        count(
            setup()
                .config("workers = 1\n")
                .env("SUPERVISOR_WORKERS", "2")
                .workers(3)
        ),
        3
    );
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_what_was_meant() {
    let setup = setup().config("bind = \"127.0.0.1:0\"\nworkerz = 3\n");
    let (status, log) = setup.run();
    assert_eq!(status.code(), Some(2), "{log:#?}");
    let log = log.join("\n");
    for part in ["config.toml", "2", "workerz", "workers"] {
        assert!(log.contains(part), "`{part}` is missing in {log}");
    }
}

#[test]
fn wrong_usage_is_status_2_and_names_the_option() {
    for (words, named) in [
        (&["--workers", "many"][..], "--workers"),
        (&["--workers", "0"], "--workers"),
        (&["--bind", "nowhere"], "nowhere"),
        (&["--class", "magic"], "magic"),
        (&["--start-timeout", "90"], "--start-timeout"),
        (&["--no-such-option"], "--no-such-option"),
        (&["--app", "nothing"], "nothing"),
        (
            &["--config", "/nonexistent/config.toml"],
            "/nonexistent/config.toml",
        ),
    ] {
        let output = supervisor(words);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{words:?}: {}",
            text(&output)
        );
        assert!(
            text(&output).contains(named),
            "{words:?}: {}",
            text(&output)
        );
    }
}

#[test]
fn help_and_version_are_complete() {
    let help = text(&supervisor(&["--help"]));
    for word in [
        "--workers",
        "--bind",
        "--class",
        "--threads",
        "--app",
        "--config",
        "--start-timeout",
        "--min-ready",
    ] {
        assert!(help.contains(word), "{word} is missing in\n{help}");
    }
    assert!(text(&supervisor(&["--version"])).contains("supervisor"));
}

#[test]
fn check_tells_right_from_wrong_and_serves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("config.toml");
    let check = |config: &str| {
        std::fs::write(&path, config).expect("a file of our own");
        supervisor(&["check", "--config", path.to_str().expect("a plain path")])
    };
    let good = check("workers = 2\nbind = \"127.0.0.1:0\"\n");
    assert!(good.status.success(), "{}", text(&good));
    for (bad, named) in [
        ("workers = -1\n", "workers"),
        ("graceful-timeot = \"1s\"\n", "graceful-timeout"),
        (
            "command = [\"/nonexistent/program\"]\n",
            "/nonexistent/program",
        ),
        (
            "app = \"files:/nonexistent/directory\"\n",
            "/nonexistent/directory",
        ),
    ] {
        let output = check(bad);
        assert!(!output.status.success(), "{bad}: {}", text(&output));
        assert!(text(&output).contains(named), "{bad}: {}", text(&output));
    }
}

#[test]
fn check_passes_for_the_very_configuration_that_serves() {
    let server = setup().config("workers = 2\n").start();
    let address = server.address().to_string();
    let config = server.path("config.toml");
    let control = server.control().display().to_string();
    let words = [
        "check",
        "--bind",
        &address,
        "--control",
        &control,
        "--config",
        config.to_str().expect("a plain path"),
    ];
    let output = supervisor(&words);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn check_finds_what_would_fail_at_the_start_and_says_what_it_did_not_check() {
    let directory = tempfile::tempdir().expect("a directory");
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = holder.local_addr().expect("an address").to_string();
    let socket = format!("unix:{}", directory.path().join("a.sock").display());
    let owner = format!("{socket},owner=no-such-user");
    let group = format!("{socket},group=no-such-group");
    let file = directory.path().join("file");
    std::fs::write(&file, "").expect("a file");
    let no_socket = format!("unix:{}", file.display());
    for (words, named) in [
        (&["--bind", &port][..], "address in use"),
        (
            &["--bind", "127.0.0.1:0", "--admin", &port],
            "address in use",
        ),
        (&["--bind", &owner], "no-such-user"),
        (&["--bind", &group], "no-such-group"),
        (&["--bind", &no_socket], "a regular file"),
        (
            &["--bind", &socket, "--on-event", "/nonexistent/hook"],
            "/nonexistent/hook",
        ),
    ] {
        let output = supervisor(&[&["check"], words].concat());
        assert_eq!(
            output.status.code(),
            Some(1),
            "{words:?}: {}",
            text(&output)
        );
        assert!(
            text(&output).contains(named),
            "{words:?}: {}",
            text(&output)
        );
    }
    let hidden = format!("unix:{}/later/a.sock", directory.path().display());
    let output = supervisor(&["check", "--bind", &hidden, "--on-event-kinds", "died"]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("on-event-kinds: has no effect without on-event"),
        "{said}"
    );
    assert!(
        said.contains("not checked: whether workers become ready"),
        "{said}"
    );
    assert!(said.contains("its directory does not exist yet"), "{said}");
}

#[test]
fn check_knows_the_running_servers_own_addresses() {
    let server = setup().workers(1).args(["--admin", "127.0.0.1:0"]).start();
    let status = server.status();
    let address = |list: &str| status[list][0].as_str().expect("an address").to_owned();
    let (own, admin) = (address("listeners"), address("admin"));
    let control = server.control().display().to_string();
    let check = ["check", "--bind", &own, "--admin", &admin, "--control"];
    let output = supervisor(&[&check[..], &[&control]].concat());
    assert!(output.status.success(), "{}", text(&output));
    let output = supervisor(&[&check[..], &["/nonexistent/socket"]].concat());
    assert_eq!(
        output.status.code(),
        Some(1),
        "another server's: {}",
        text(&output)
    );
}

#[test]
fn the_log_can_be_json_with_the_facts_as_fields() {
    let server = setup().workers(2).args(["--log-format", "json"]).start();
    let lines = server.log().lines();
    let parsed: Vec<serde_json::Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    let about_a_worker = parsed
        .iter()
        .find(|line| !line["worker"].is_null())
        .expect("a line about a worker");
    for field in ["slot", "pid", "generation"] {
        assert!(
            !about_a_worker[field].is_null(),
            "no {field} in {about_a_worker}"
        );
    }
}

#[test]
fn the_log_level_is_obeyed() {
    let server = setup().workers(1).args(["--log-level", "error"]).start();
    assert_eq!(server.log().lines(), Vec::<String>::new());
}
