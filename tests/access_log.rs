//! The access log has a line for each request, whole, whatever an operator does, and delays no
//! request.

use nix::sys::signal::Signal::{SIGTERM, SIGUSR1, SIGUSR2};
use nix::sys::stat::Mode;
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use testkit::load::{Plan, start};
use testkit::{LONG, Server, Setup, http, skipped, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .copied()
        .args(["--min-ready", "20ms"])
}

fn logged(setup: Setup, format: &str) -> Setup {
    let log = setup.path("access.log");
    setup
        .args(["--access-log".into(), log.into_os_string()])
        .args(["--access-log-format", format])
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        text.is_empty() || text.ends_with('\n'),
        "the last line is torn: {text}"
    );
    text.lines().map(str::to_owned).collect()
}

fn wait_for_lines(path: &Path, count: usize) -> Vec<String> {
    wait_until(
        &format!("{count} lines in {}", path.display()),
        LONG,
        || lines(path).len() >= count,
    );
    lines(path)
}

#[test]
fn each_class_writes_each_format() {
    for class in ["sync", "threads", "async"] {
        let ask = |format: &str| {
            let server = logged(setup().workers(1).args(["--class", class]), format).start();
            let before = lines(&server.path("access.log")).len();
            let request =
                b"GET /a?b HTTP/1.1\r\nHost: here\r\nUser-Agent: me\r\nConnection: close\r\n\r\n";
            assert_eq!(
                http::raw(&server.address(), request)
                    .expect("an answer")
                    .status,
                200
            );
            wait_for_lines(&server.path("access.log"), before + 1)
                .pop()
                .expect("a line")
        };
        let line = ask("combined");
        assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
        assert!(
            line.ends_with("] \"GET /a?b HTTP/1.1\" 200 14 \"-\" \"me\""),
            "{line}"
        );
        let line = ask("json");
        let told: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(
            (&told["uri"], &told["status"]),
            (&"/a?b".into(), &200.into()),
            "{line}"
        );
        assert_eq!(
            (&told["host"], &told["worker"]),
            (&"here".into(), &1.into()),
            "{line}"
        );
        assert!(
            told["request_time"].as_f64().is_some_and(|time| time < 5.0),
            "{line}"
        );
        assert_eq!(
            ask("$request_method/$status/$http_user_agent"),
            "GET/200/me"
        );
    }
}

#[test]
fn each_request_of_an_http2_connection_has_a_line() {
    let format = "$request_method $request_uri $server_protocol $status $host $connection_requests";
    let server = logged(setup().workers(1), format).start();
    let path = server.path("access.log");
    let before = lines(&path).len();
    // By hand (RFC 9113, RFC 7541): the preface, no settings, and two requests for `/` of the
    // authority `here`.
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).expect("a short frame");
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let head = b"\x82\x86\x84\x41\x04here";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let said = [
        preface,
        frame(4, 0, 0, &[]),
        frame(1, 5, 1, head),
        frame(1, 5, 3, head),
    ]
    .concat();
    let mut client = server.connect();
    client.write_all(&said).expect("sent");
    let told = wait_for_lines(&path, before + 2).split_off(before);
    assert_eq!(told.len(), 2);
    for line in told {
        assert!(line.starts_with("GET / HTTP/2.0 200 here "), "{line}");
    }
}

#[test]
fn standard_output_gets_whole_lines_be_it_a_pipe_or_a_file() {
    for pipe in [true, false] {
        let setup = setup().workers(3).args([
            "--access-log",
            "-",
            "--access-log-format",
            "$status $request_uri end",
        ]);
        let path = setup.path("stdout");
        if pipe {
            nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("a pipe");
        }
        let reader = pipe.then(|| {
            let path = path.clone();
            std::thread::spawn(move || std::fs::read_to_string(path).expect("text"))
        });
        let script = "exec \"$@\" >\"$0\"";
        let mut server = setup
            .wrapped([
                "sh".into(),
                "-c".into(),
                script.into(),
                path.clone().into_os_string(),
            ])
            .start();
        let load = start(Plan::fresh(&server.address(), 8).http("/load", Some("Hello, client!")));
        load.wait_for_more(50);
        server.reload();
        load.wait_for_more(50);
        let report = load.finish();
        report.assert_flawless();
        server.signal(SIGTERM);
        assert!(server.wait_exit(LONG).success());
        let text = reader.map_or_else(
            || std::fs::read_to_string(&path).expect("text"),
            |reader| reader.join().expect("the reader"),
        );
        assert_eq!(
            text.lines().filter(|line| *line == "200 /load end").count() as u64,
            report.answered
        );
        assert!(
            text.lines()
                .all(|line| line.starts_with("200 /") && line.ends_with(" end")),
            "{text}"
        );
    }
}

#[test]
fn no_line_is_lost_or_torn_over_reloads_rotations_an_upgrade_and_a_graceful_stop() {
    let format = "$status $request_uri $http_host end";
    let mut server = logged(setup().workers(2).patient(), format).start();
    let log = server.path("access.log");
    let fresh = start(Plan::fresh(&server.address(), 4).http("/load", Some("Hello, client!")));
    let kept = start(Plan::kept_alive(&server.address(), 4).http("/load", Some("Hello, client!")));
    let more = || {
        fresh.wait_for_more(50);
        kept.wait_for_more(50);
    };
    let mut files = vec![log.clone()];
    let rotate = |files: &mut Vec<PathBuf>, server: &Server, told: bool| {
        let aside = server.path(&format!("access.log.{}", files.len()));
        std::fs::rename(&log, &aside).expect("renamed");
        files.push(aside);
        if told {
            server.signal(SIGUSR1);
        }
        wait_until("a new file", LONG, || log.exists());
        wait_until("lines in the new file", LONG, || {
            !lines_of_whole(&log).is_empty()
        });
    };
    for round in 0..5 {
        more();
        server.reload();
        if round < 3 {
            more();
            rotate(&mut files, &server, true);
        }
    }
    server.signal(SIGUSR2);
    wait_until("an upgrade", LONG, || {
        server.log().count("upgraded in place") > 0
    });
    more();
    // The workers notice a rotation without being signalled.
    rotate(&mut files, &server, false);
    more();
    server.reload();
    more();
    let (fresh, kept) = (fresh.finish(), kept.finish());
    fresh.assert_flawless();
    kept.assert_flawless();
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
    let all: Vec<String> = files.iter().flat_map(|file| lines(file)).collect();
    for line in &all {
        assert!(
            line.starts_with("200 /") && line.ends_with(" end"),
            "{line:?}"
        );
    }
    let found = all
        .iter()
        .filter(|line| line.starts_with("200 /load "))
        .count() as u64;
    assert_eq!(found, fresh.answered + kept.answered);
}

/// Lines of a file that is being written.
fn lines_of_whole(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_reload_with_another_path_leaves_the_old_file_to_the_old_workers() {
    let setup = setup();
    let (one, other) = (setup.path("one.log"), setup.path("other.log"));
    let config = |path: &Path| {
        format!(
            "workers = 1\naccess-log = \"{}\"\naccess-log-format = \"$request_uri\"\n",
            path.display()
        )
    };
    let mut server = setup.config(&config(&one)).start();
    server.get("/one");
    server.file("config.toml", &config(&other));
    server.reload();
    server.get("/other");
    assert_eq!(wait_for_lines(&other, 1).pop().expect("a line"), "/other");
    assert!(
        lines(&one).contains(&"/one".to_owned()) && !lines(&one).contains(&"/other".to_owned())
    );
    // One that cannot be opened changes nothing.
    server.file("config.toml", &config(Path::new("/nowhere/access.log")));
    let refused = server.command(&["reload", "--wait"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned()
        + &String::from_utf8_lossy(&refused.stdout);
    assert!(
        !refused.status.success() && said.contains("cannot open access log /nowhere"),
        "{said}"
    );
    server.get("/again");
    wait_until("the line", LONG, || {
        lines(&other).contains(&"/again".to_owned())
    });
}

#[test]
fn workers_of_another_user_in_a_strict_sandbox_write_where_only_root_may() {
    if !nix::unistd::geteuid().is_root() {
        return skipped(
            "access log of another user",
            "only root can become another user",
        );
    }
    let setup = Server::setup(env!("CARGO_BIN_EXE_supervisor")).workers(1);
    let setup = setup.args(["--user", "65534", "--access-log-format", "$request_uri"]);
    let folder = setup.path("logs");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).expect("chmod");
    let log = folder.join("access.log");
    let setup = setup.args(["--sandbox", "strict"]);
    let server = setup
        .args(["--access-log".into(), log.clone().into_os_string()])
        .start();
    server.get("/one");
    wait_until("a line", LONG, || lines(&log).contains(&"/one".to_owned()));
    std::fs::rename(&log, folder.join("access.log.1")).expect("renamed");
    server.signal(SIGUSR1);
    wait_until("a new file", LONG, || log.exists());
    server.get("/two");
    wait_until("a line in it", LONG, || {
        lines(&log).contains(&"/two".to_owned())
    });
}

#[test]
fn a_pipe_whose_reader_is_stuck_delays_no_request() {
    let setup = setup();
    let pipe = setup.path("pipe");
    nix::unistd::mkfifo(&pipe, Mode::from_bits_truncate(0o600)).expect("a pipe");
    let format = format!("$request_uri {}", "x".repeat(1000));
    let setup = setup
        .workers(1)
        .args(["--access-log".into(), pipe.clone().into_os_string()]);
    let mut server = setup.args(["--access-log-format", &format]).start();
    let load = start(Plan::kept_alive(&server.address(), 4).http("/load", Some("Hello, client!")));
    // Far more than a pipe and the worker's queue hold.
    load.wait_for_more(3000);
    let began = Instant::now();
    assert_eq!(server.get("/now").status, 200);
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    server.wait_for_log("lines of the access log: ");
    let report = load.finish();
    report.assert_flawless();
    let mut reader = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&pipe)
        .expect("a reader");
    server.signal(SIGTERM);
    let mut bytes = vec![0; 16 * 1024];
    let got = reader.read(&mut bytes).expect("what is in it");
    let text = String::from_utf8_lossy(&bytes[..got]).into_owned();
    let whole: Vec<&str> = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .collect();
    assert!(
        whole.len() > 5
            && whole
                .iter()
                .all(|line| line.starts_with('/') && line.len() > 1000),
        "{text}"
    );
    assert!(server.wait_exit(LONG).success());
}

#[test]
fn an_unknown_variable_is_refused_with_the_known_ones() {
    let (status, said) = setup()
        .args(["--access-log", "-", "--access-log-format", "$stauts"])
        .run();
    let said = said.join("\n");
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(
        said.contains("`$stauts` is no variable") && said.contains("$status"),
        "{said}"
    );
}

#[test]
fn nothing_that_a_client_sends_makes_a_second_line() {
    let server = logged(setup().workers(1), "combined").start();
    let before = lines(&server.path("access.log")).len();
    let request = b"GET /%0a\"x HTTP/1.1\r\nHost: a\r\nReferer: \"\\ \t\xff\r\nUser-Agent: \" 200 \
     0 \"x\r\nConnection: close\r\n\r\n";
    let status = http::raw(&server.address(), request)
        .expect("an answer")
        .status;
    let found = wait_for_lines(&server.path("access.log"), before + 1);
    assert_eq!(found.len(), before + 1);
    let end = format!(
        "\"GET /%0a\\x22x HTTP/1.1\" {status} 14 \"\\x22\\x5C \\x09\\xFF\" \"\\x22 200 0 \\x22x\""
    );
    assert!(found[before].ends_with(&end), "{}", found[before]);
}

#[test]
fn a_slow_request_is_logged_and_a_flood_of_them_is_suppressed() {
    for class in ["sync", "threads", "async"] {
        let setup =
            setup()
                .workers(1)
                .args(["--class", class, "--app", "sleep", "--slow-log", "20ms"]);
        let server = setup.start();
        server.get("/?ms=50");
        let line = server.wait_for_log("slow request: GET /?ms=50 took 0.");
        assert!(
            line.contains("status 200") && line.contains("from 127.0.0.1"),
            "{line}"
        );
        if class == "async" {
            let load = start(Plan::kept_alive(&server.address(), 40).http("/?ms=30", None));
            server.wait_for_log("more slow requests suppressed");
            load.finish().assert_flawless();
            let told = server.log().count("slow request:");
            assert!(told < 200, "{told}");
        }
    }
}
