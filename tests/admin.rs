//! The admin child: metrics, health and agent checks by a process with nearly no privileges, for
//! which the supervisor never waits.

use nix::sys::signal::Signal::{SIGHUP, SIGKILL, SIGSTOP, SIGTERM, SIGUSR2};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use testkit::http::{self, Response};
use testkit::load::{Plan, run};
use testkit::process::Process;
use testkit::{Address, LONG, Server, Setup, wait_for, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "50ms"])
}

fn administered() -> Setup {
    setup().workers(2).args(["--admin", "127.0.0.1:0"])
}

/// Where the child serves.
fn admin(server: &Server) -> Address {
    address(server, "admin")
}

fn address(server: &Server, list: &str) -> Address {
    let status = server.status();
    let text = status[list][0].as_str().expect("an address");
    text.strip_prefix("unix:").map_or_else(
        || Address::Tcp(text.parse().expect("an address")),
        |path| Address::Unix(path.into()),
    )
}

fn get(server: &Server, path: &str) -> Response {
    http::get(&admin(server), path).expect("an answer")
}

/// The child that serves.
fn child(server: &Server) -> Process {
    let is_it = |process: &Process| process.command_line().ends_with(": admin");
    wait_for("the admin child", LONG, || {
        server.process().children().into_iter().find(is_it)
    })
}

/// What HAProxy would be told.
fn agent(server: &Server) -> String {
    let mut line = String::new();
    address(server, "agent")
        .connect()
        .expect("connected")
        .read_to_string(&mut line)
        .expect("a line");
    line
}

#[test]
fn every_path_is_served_and_nothing_else_is() {
    let server = administered().start();
    let page = get(&server, "/");
    assert_eq!(
        (page.status, page.header("content-type")),
        (200, Some("text/html; charset=utf-8"))
    );
    assert!(
        page.header("content-security-policy")
            .is_some_and(|policy| policy.starts_with("default-src 'none'"))
    );
    assert_eq!(
        (
            get(&server, "/healthz").status,
            get(&server, "/healthz").body.as_str()
        ),
        (200, "ok\n")
    );
    assert_eq!(
        (
            get(&server, "/readyz").status,
            get(&server, "/readyz").body.as_str()
        ),
        (200, "ready\n")
    );
    let status: serde_json::Value =
        serde_json::from_str(&get(&server, "/status").body).expect("JSON");
    assert_eq!(
        (&status["state"], &status["generation"]),
        (&"serving".into(), &1.into())
    );
    assert_eq!(get(&server, "/nowhere").status, 404);
    assert_eq!(
        get(&server, "/metrics").header("x-content-type-options"),
        Some("nosniff")
    );
    let posted = http::raw(
        &admin(&server),
        b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    let posted = posted.expect("an answer");
    assert_eq!(
        (posted.status, posted.header("allow")),
        (405, Some("GET, HEAD"))
    );
}

#[test]
fn metrics_are_what_prometheus_understands_and_count_every_request() {
    let server = administered().start();
    run(&Plan::fresh(&server.address(), 2).count(50)).assert_flawless();
    let victim = server.workers().into_iter().next().expect("a worker");
    victim.process.signal(SIGKILL);
    server.wait_for_replacement(victim.slot, victim.process);
    // A picture is good for a quarter of a second.
    let text = wait_for("the death in the metrics", LONG, || {
        let text = get(&server, "/metrics").body;
        text.contains("prefork_worker_deaths_total{cause=\"signal\"} 1")
            .then_some(text)
    });
    let sum = |name: &str| -> f64 {
        let values = text
            .lines()
            .filter(|line| line.starts_with(&format!("{name}{{")));
        values
            .map(|line| {
                line.rsplit(' ')
                    .next()
                    .expect("a value")
                    .parse::<f64>()
                    .expect("a number")
            })
            .sum()
    };
    assert_eq!(
        (
            sum("prefork_slot_requests_total"),
            sum("prefork_slot_request_duration_seconds_count")
        ),
        (50.0, 50.0)
    );
    assert!(
        text.contains("\nprefork_ready 1\n") && text.contains("prefork_state{state=\"serving\"} 1"),
        "{text}"
    );
    for accept in ["text/plain", "application/openmetrics-text; version=1.0.0"] {
        let request = format!(
            "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        );
        let answer = http::raw(&admin(&server), request.as_bytes()).expect("an answer");
        let open = accept.contains("openmetrics");
        let media = answer.header("content-type").expect("a type").to_owned();
        assert_eq!(
            media.starts_with("application/openmetrics-text; version=1.0.0"),
            open,
            "{media}"
        );
        assert_eq!(answer.body.ends_with("# EOF\n"), open);
        // promtool knows the old format only.
        if !open {
            promtool(&["check", "metrics"], &answer.body);
        }
    }
    let rules = testkit::root().join("scripts/alerts.yml");
    promtool(&["check", "rules", &rules.to_string_lossy()], "");
}

fn promtool(words: &[&str], input: &str) {
    let Some(tool) = testkit::tool("promtool") else {
        return testkit::skipped(
            "metrics_are_what_prometheus_understands",
            "no promtool (scripts/peers all installs it)",
        );
    };
    let mut child = Command::new(tool)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    child
        .stdin
        .take()
        .expect("its input")
        .write_all(input.as_bytes())
        .expect("written");
    let output = child.wait_with_output().expect("its verdict");
    let words = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{words}");
}

#[test]
fn the_openmetrics_text_is_what_another_parser_understands() {
    let python = testkit::root().join("target/venv/bin/python3");
    let has_parser = python.is_file()
        && Command::new(&python)
            .args(["-c", "import prometheus_client"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
    if !has_parser {
        return testkit::skipped(
            "the_openmetrics_text",
            "no prometheus_client (scripts/peers all installs it)",
        );
    }
    let server = administered().start();
    run(&Plan::fresh(&server.address(), 2).count(20)).assert_flawless();
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\n\
     Connection: close\r\n\r\n";
    let text = http::raw(&admin(&server), request.as_bytes())
        .expect("an answer")
        .body;
    let script = "import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
families = {family.name: family for family in parse(sys.stdin.read())}
print(len(families), families['prefork_slot_requests'].type, \
 families['prefork_slot_request_duration_seconds'].type)";
    let mut child = Command::new(python)
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python");
    child
        .stdin
        .take()
        .expect("its input")
        .write_all(text.as_bytes())
        .expect("written");
    let output = child.wait_with_output().expect("its verdict");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && told.trim().ends_with("counter histogram"),
        "{told}\n{text}"
    );
}

#[test]
fn it_is_not_ready_as_soon_as_a_stop_begins_and_healthy_all_the_same() {
    let mut server = setup()
        .workers(1)
        .args([
            "--app",
            "sleep",
            "--admin",
            "127.0.0.1:0",
            "--agent",
            "127.0.0.1:0",
            "--pre-stop-delay",
            "700ms",
        ])
        .start();
    let (http, check) = (admin(&server), address(&server, "agent"));
    assert!(
        agent(&server).starts_with("up ready 100%"),
        "{}",
        agent(&server)
    );
    let mut client = server.connect();
    client
        .write_all(b"GET /?ms=6000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("sent");
    wait_until("the request to be in flight", LONG, || server.busy() == 1);
    server.signal(SIGTERM);
    let get = |path: &str| http::get(&http, path);
    wait_until("not ready", LONG, || {
        get("/readyz").is_ok_and(|answer| answer.status == 503)
    });
    let state = get("/readyz").expect("an answer").body;
    assert!(
        state == "not ready: pre-stop\n" || state == "not ready: stopping\n",
        "{state}"
    );
    assert_eq!(get("/healthz").expect("an answer").status, 200);
    let mut line = String::new();
    check
        .connect()
        .expect("connected")
        .read_to_string(&mut line)
        .expect("a line");
    assert_eq!(line, "drain\n");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(server.wait_exit(LONG).success());
}

#[test]
fn the_child_runs_as_nobody_with_nearly_no_privileges() {
    let server = administered().start();
    get(&server, "/healthz");
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", child(&server).0)).expect("its status");
    let field = |name: &str| -> Vec<String> {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.expect("a field")
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(
        (field("NoNewPrivs"), field("Seccomp")),
        (vec!["1".to_owned()], vec!["2".to_owned()])
    );
    assert_eq!(
        (field("CapEff"), field("CapPrm")),
        (vec!["0".repeat(16)], vec!["0".repeat(16)])
    );
    if nix::unistd::geteuid().is_root() {
        assert_eq!(field("Uid"), vec!["65534"; 4]);
        assert_eq!(field("CapBnd"), vec!["0".repeat(16)]);
    }
    let stat =
        std::fs::read_to_string(format!("/proc/{}/stat", child(&server).0)).expect("its numbers");
    let nice = stat
        .rsplit(')')
        .next()
        .expect("fields")
        .split_whitespace()
        .nth(16)
        .map(str::to_owned);
    assert_eq!(nice.as_deref(), Some("10"));
    // Its priority is its own, not that of the session that starts it.
    for process in ["self".to_owned(), server.process().0.to_string()] {
        let group = std::fs::read_to_string(format!("/proc/{process}/autogroup"));
        let group = group.unwrap_or_default();
        assert!(
            group.is_empty() || group.trim().ends_with(" nice 0"),
            "{group}"
        );
    }
    // None of its descriptors is a worker's socket.
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", child(&server).0))
        .expect("its descriptors")
        .count();
    assert!(descriptors < 14, "{descriptors}");
}

#[test]
fn a_dead_child_is_replaced_and_refuses_no_connection() {
    let server = administered().start();
    get(&server, "/healthz");
    for _ in 0..3 {
        let old = child(&server);
        old.signal(SIGKILL);
        assert_eq!(get(&server, "/readyz").status, 200);
        assert_ne!(child(&server), old);
    }
    let told = server.wait_for_log("the admin child is dead (killed by SIGKILL)");
    assert!(told.contains("WARN"), "{told}");
    // One that is stopped keeps only its own clients waiting.
    child(&server).signal(SIGSTOP);
    run(&Plan::fresh(&server.address(), 2).count(50)).assert_flawless();
    assert_eq!(server.status()["state"], "serving");
}

#[test]
fn a_reload_may_change_addresses_and_a_bad_one_changes_nothing() {
    let file = |admin: &str| format!("workers = 1\nmin-ready = \"0s\"\n{admin}\n");
    let mut server = setup().config(&file("admin = \"127.0.0.1:0\"")).start();
    let first = admin(&server);
    let before = child(&server);
    server.reload();
    assert_eq!(
        (admin(&server).to_string(), child(&server)),
        (first.to_string(), before),
        "it stays what it is"
    );
    // Taken by another process.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    server.file("config.toml", &file(&format!("admin = \"{address}\"")));
    let output = server.command(&["reload", "--wait"]);
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(
        (get(&server, "/readyz").status, child(&server)),
        (200, before)
    );
    server.wait_until_settled(LONG);
    let path = server.path("admin.sock");
    server.file(
        "config.toml",
        &file(&format!("admin = \"unix:{}\"", path.display())),
    );
    server.reload();
    wait_until("the new one serves", LONG, || {
        http::get(&Address::Unix(path.clone()), "/readyz").is_ok_and(|answer| answer.status == 200)
    });
    wait_until("the old address is free", LONG, || first.connect().is_err());
    wait_until("the old child is gone", LONG, || !before.runs());
    server.file("config.toml", &file(""));
    server.reload();
    wait_until("there is none", LONG, || {
        server
            .process()
            .children()
            .iter()
            .all(|one| !one.command_line().ends_with(": admin"))
    });
    assert!(!path.exists());
}

#[test]
fn an_upgrade_in_place_keeps_the_address_and_refuses_no_connection() {
    let server = administered().copied().start();
    let address = admin(&server);
    let old = child(&server);
    let asks = std::thread::spawn(move || {
        let end = Instant::now() + Duration::from_secs(3);
        let mut answers = 0;
        while Instant::now() < end {
            let answer = http::get(&address, "/healthz").expect("no connection is refused");
            assert_eq!(answer.status, 200, "{}", answer.body);
            answers += 1;
        }
        answers
    });
    server.signal(SIGUSR2);
    server.wait_for_log("upgraded");
    assert!(asks.join().expect("answers") > 20);
    wait_until("another child serves", LONG, || {
        child(&server) != old && !old.runs()
    });
    assert_eq!(server.status()["deaths"]["signal"], 0);
}

#[test]
fn a_child_that_leaves_at_an_upgrade_finishes_and_is_no_leftover() {
    let server = setup()
        .workers(2)
        .copied()
        .args(["--admin", "127.0.0.1:0"])
        .start();
    let old = child(&server);
    let mut client = admin(&server).connect().expect("connected");
    client.write_all(b"GET / HTTP/1.1\r\n").expect("sent");
    let mut silent = admin(&server).connect().expect("connected");
    // It has both clients once it has answered another one.
    assert_eq!(get(&server, "/healthz").status, 200);
    server.signal(SIGUSR2);
    server.wait_for_log("upgraded in place");
    // A death has the supervisor look for what a worker may have left.
    server.ready()[0].signal(SIGKILL);
    server.wait_for_log("killed by SIGKILL");
    wait_until("another worker", LONG, || server.is_settled());
    silent
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("sent");
    client.write_all(b"Host: x\r\n\r\n").expect("sent");
    let mut answer = String::new();
    silent.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer.clear();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("</html>\n"),
        "{answer}"
    );
    wait_until("the old child to be gone", LONG, || !old.runs());
    assert_eq!(server.log().count("left behind"), 0);
}

#[test]
fn a_stop_answers_the_scrapers_that_were_accepted() {
    let mut server = administered().start();
    let child = child(&server);
    let mut client = admin(&server).connect().expect("connected");
    // It has the client once it has answered another one.
    get(&server, "/healthz");
    server.signal(SIGTERM);
    wait_until("all workers to be gone", LONG, || {
        server.process().children().iter().all(|one| *one == child)
    });
    // A server that did not wait for the child would be gone after a moment.
    std::thread::sleep(Duration::from_millis(300));
    client
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("sent");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(server.wait_exit(LONG).success());
}

#[test]
fn scrapers_that_misbehave_delay_neither_a_good_one_nor_the_server() {
    let server = administered().start();
    let address = admin(&server);
    let target: SocketAddr = address.to_string().parse().expect("a TCP address");
    let mut bad: Vec<TcpStream> = Vec::new();
    let connect = || TcpStream::connect(target).expect("connected");
    for number in 0..120 {
        let mut client = connect();
        let said: &[u8] = match number % 5 {
            // A head that never ends, nothing at all, garbage, an answer that is never read, and
            // many at once.
            0 => b"GET /metrics HTTP/1.1\r\nX: ",
            1 => b"",
            2 => b"\x16\x03\x01\x00garbage\r\n\r\n\r\n",
            3 => b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
            _ => b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n",
        };
        for _ in 0..if number % 5 == 3 { 50 } else { 1 } {
            let _ = client.write_all(said);
        }
        bad.push(client);
    }
    let before = server.status()["status_requests"]
        .as_u64()
        .expect("a number");
    let asked = Instant::now();
    for _ in 0..10 {
        let answer = http::get(&address, "/metrics").expect("an answer");
        assert_eq!(answer.status, 200);
    }
    let took = asked.elapsed();
    println!("ten scrapes beside 120 bad clients: {took:?}");
    let pictures = server.status()["status_requests"]
        .as_u64()
        .expect("a number")
        - before;
    let most = 4 + 2 + took.as_secs() * 4;
    assert!(pictures <= most, "{pictures} pictures in {took:?}");
    run(&Plan::fresh(&server.address(), 2).count(50)).assert_flawless();
    // A head has five seconds.
    let mut slow = &bad[0];
    slow.set_read_timeout(Some(LONG)).expect("a time-out");
    let mut answer = Vec::new();
    let _ = slow.read_to_end(&mut answer);
    assert!(
        asked.elapsed() < Duration::from_secs(20),
        "it was let go of after {:?}",
        asked.elapsed()
    );
    // Idle connections make room.
    let crowd: Vec<TcpStream> = (0..300).map(|_| connect()).collect();
    assert_eq!(
        http::get(&address, "/healthz").expect("an answer").status,
        200
    );
    drop(crowd);
}

#[test]
fn the_child_takes_little_of_a_processor_however_many_ask() {
    let server = administered().start();
    let target: SocketAddr = admin(&server).to_string().parse().expect("a TCP address");
    let child = child(&server);
    let over = AtomicBool::new(false);
    let ask = || {
        let Ok(client) = TcpStream::connect(target) else {
            return;
        };
        client.set_read_timeout(Some(LONG)).expect("a time-out");
        let mut text = vec![0; 65536];
        while !over.load(Relaxed) {
            let asked = (&client).write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
            if asked.is_err() || (&client).read(&mut text).unwrap_or(0) == 0 {
                return;
            }
        }
    };
    let (began, before) = (Instant::now(), child.cpu_ticks());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    ask();
                }
            });
        }
        // Whatever the processors do besides, it has its part of the time that has passed, and what
        // it had saved.
        std::thread::sleep(Duration::from_secs(4));
        over.store(true, Relaxed);
    });
    let (took, ticks) = (began.elapsed(), child.cpu_ticks() - before);
    println!("{ticks} ticks of 10 ms in {took:?}");
    assert!(ticks > 0, "it was asked");
    assert!(
        Duration::from_millis(ticks * 10) < took / 12,
        "{ticks} ticks of 10 ms in {took:?}"
    );
}

#[test]
fn events_are_streamed_as_they_happen_and_resumed_where_a_client_stopped() {
    let server = administered().start();
    let listen = |head: &str| {
        let mut stream = TcpStream::connect(admin(&server).to_string()).expect("connected");
        stream.set_read_timeout(Some(LONG)).expect("a time-out");
        write!(stream, "GET /events HTTP/1.1\r\nHost: x\r\n{head}\r\n").expect("asked");
        BufReader::new(stream)
            .lines()
            .map(|line| line.expect("a line"))
    };
    let mut lines = listen("");
    assert!(
        lines.any(|line| line.contains("\"kind\":\"server-ready\"")),
        "those that were before"
    );
    server.signal(SIGHUP);
    let line = lines
        .find(|line| line.contains("\"kind\":\"reloaded\""))
        .expect("as it happens");
    let event: serde_json::Value =
        serde_json::from_str(line.strip_prefix("data: ").expect("data")).expect("JSON");
    let seq = event["seq"].as_u64().expect("a number");
    let mut later = listen(&format!("Last-Event-ID: {}\r\n", seq - 1));
    let first = later
        .find(|line| line.starts_with("data: "))
        .expect("an event");
    assert!(first.contains(&format!("\"seq\":{seq},")), "{first}");
}

#[test]
fn haproxy_learns_how_busy_the_server_is_and_when_it_leaves() {
    let server = setup()
        .workers(2)
        .args([
            "--app",
            "sleep",
            "--class",
            "sync",
            "--agent",
            "127.0.0.1:0",
            "--pre-stop-delay",
            "10s",
        ])
        .start();
    assert_eq!(agent(&server), "up ready 100%\n");
    let mut client = server.connect();
    client
        .write_all(b"GET /?ms=8000 HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("sent");
    wait_until("half of it is busy", LONG, || {
        agent(&server) == "up ready 50%\n"
    });
    let Some(haproxy) = testkit::tool("haproxy").or_else(|| {
        Some("/usr/sbin/haproxy".into()).filter(|path: &std::path::PathBuf| path.is_file())
    }) else {
        return testkit::skipped(
            "haproxy_learns",
            "no haproxy (scripts/peers all installs it)",
        );
    };
    let (host, port) = (
        server.address().to_string(),
        address(&server, "agent").to_string(),
    );
    let port = port.rsplit(':').next().expect("a port").to_owned();
    let stats = server.path("haproxy.sock");
    server.file(
        "haproxy.cfg",
        &format!(
            "global\n    stats socket {}\ndefaults\n    mode http\n    timeout connect 1s\n    \
             timeout client 10s\n    timeout server 10s\n\
             backend app\n    server one {host} weight 100 check agent-check agent-addr 127.0.0.1 agent-port {port} agent-inter 100ms\n",
            stats.display()
        ),
    );
    let proxy = Command::new(haproxy)
        .arg("-f")
        .arg(server.path("haproxy.cfg"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("haproxy");
    let _proxy = Ended(proxy);
    // Weight and state, out of `show servers state`.
    let told = || -> Option<(u32, u32)> {
        let mut stream = std::os::unix::net::UnixStream::connect(&stats).ok()?;
        stream.write_all(b"show servers state app\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let line = text.lines().find(|line| line.contains(" one "))?.to_owned();
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some((fields.get(7)?.parse().ok()?, fields.get(6)?.parse().ok()?))
    };
    wait_until("its weight is half", LONG, || {
        told().is_some_and(|(weight, _)| weight == 50)
    });
    let mut answer = [0; 12];
    client.read_exact(&mut answer).expect("an answer");
    wait_until("its weight is whole", LONG, || {
        told().is_some_and(|(weight, _)| weight == 100)
    });
    server.signal(SIGTERM);
    wait_until("it is drained", LONG, || {
        told().is_some_and(|(weight, admin)| weight == 0 || admin & 0x08 != 0)
    });
}

/// A process that ends with the test, however that ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn addresses_that_cannot_be_are_refused_with_the_remedy() {
    let check = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_supervisor"))
            .arg("check")
            .args(words)
            .output()
            .expect("check");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let words = check(&["--bind", "127.0.0.1:8000", "--admin", "127.0.0.1:8000"]);
    assert!(
        words.contains("--admin: 127.0.0.1:8000 is named twice (choose another address)"),
        "{words}"
    );
    let words = check(&["--agent", "fd://3"]);
    assert!(
        words.contains("--agent: fd://3 is an inherited socket"),
        "{words}"
    );
    let words = check(&["--admin", "127.0.0.1:9000", "--admin-user", "no-such-user"]);
    assert!(words.contains("there is no user `no-such-user`"), "{words}");
}
