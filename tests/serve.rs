//! Serving: what the stock apps answer, and what clients that misbehave get.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::Duration;
use testkit::http::{self, Client};
use testkit::load::{Plan, run};
use testkit::{Server, Setup};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor"))
}

#[test]
fn every_worker_answers_with_its_identity() {
    let server = setup().workers(4).start();
    let report = run(&Plan::fresh(&server.address(), 8)
        .http("/", Some("Hello, client!"))
        .count(800));
    report.assert_flawless();
    let answered: BTreeSet<u32> = report
        .pids
        .keys()
        .map(|pid| pid.parse().expect("a pid"))
        .collect();
    let ready: BTreeSet<u32> = server.ready().iter().map(|process| process.0).collect();
    assert_eq!(answered, ready, "each of four workers has answered");
    let response = server.get("/");
    assert_eq!(
        (response.status, response.number("x-prefork-generation")),
        (200, server.generation())
    );
    assert!(response.number("x-prefork-slot") < 4 && response.number("x-prefork-worker") > 0);
}

#[test]
fn a_connection_is_kept_for_many_requests_and_closed_on_request() {
    let server = setup().workers(1).start();
    let mut client = Client::connect(&server.address()).expect("it accepts");
    for _ in 0..10 {
        let response = client.get("/").expect("an answer");
        assert!(response.status == 200 && !response.close, "{response:?}");
    }
    client
        .send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("sent");
    assert!(client.receive().expect("an answer").close);
    assert!(client.at_end().expect("an orderly end"));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = setup().workers(1).start();
    let mut client = Client::connect(&server.address()).expect("it accepts");
    client
        .send("GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20).as_bytes())
        .expect("sent");
    for _ in 0..20 {
        assert_eq!(client.receive().expect("an answer").body, "Hello, client!");
    }
}

#[test]
fn garbage_gets_400_and_ends_no_worker() {
    let server = setup().workers(2).start();
    let before = server.ready();
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
    ] {
        let mut client = Client::connect(&server.address()).expect("it accepts");
        client.send(garbage).expect("sent");
        let response = client.receive().expect("an answer");
        assert_eq!(
            response.status,
            400,
            "to {:?}",
            String::from_utf8_lossy(garbage)
        );
    }
    server.get("/");
    assert_eq!(server.ready(), before);
}

#[test]
fn an_oversized_head_gets_431() {
    let server = setup().workers(1).args(["--max-head", "16KiB"]).start();
    let long = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n",
        "x".repeat(64 * 1024)
    );
    let response = http::raw(&server.address(), long.as_bytes());
    // The server may close before it has read everything, so that the rest of the request is met by
    // a reset.
    match response {
        Ok(response) => assert_eq!(response.status, 431),
        Err(error) => panic!("no answer to an oversized head: {error}"),
    }
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_silent_client_delays_no_other() {
    let server = setup().workers(1).args(["--class", "async"]).start();
    let mut silent = server.connect();
    silent.write_all(b"GET / HT").expect("sent");
    run(&Plan::fresh(&server.address(), 4).count(100)).assert_flawless();
    silent
        .write_all(b"TP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("sent");
    let mut answer = String::new();
    silent.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn echo_gives_back_every_byte() {
    let server = setup().workers(2).args(["--app", "echo"]).start();
    run(&Plan::fresh(&server.address(), 4).echo(200_000).count(50)).assert_flawless();
    run(&Plan::kept_alive(&server.address(), 4).echo(32).count(1000)).assert_flawless();
}

#[test]
fn greeter_logs_what_it_got_and_greets() {
    let server = setup()
        .workers(2)
        .args(["--app", "greeter", "--class", "threads", "--threads", "4"])
        .start();
    run(&Plan::fresh(&server.address(), 4)
        .ask("hello there", "Hello, client!")
        .count(50))
    .assert_flawless();
    server.wait_for_log("Received data: hello there");
}

#[test]
fn sleep_answers_after_its_time_and_many_sleep_at_once() {
    let server = setup()
        .workers(1)
        .args(["--app", "sleep", "--class", "async"])
        .start();
    let report = run(&Plan::fresh(&server.address(), 20)
        .http("/?ms=1000", None)
        .count(20));
    report.assert_flawless();
    assert!(report.latency.p50 >= 1000.0, "{report}");
    assert!(
        report.elapsed < Duration::from_secs(12),
        "twenty at once, not one after the other: {report}"
    );
}

#[test]
fn files_are_served_whole_in_part_and_never_from_elsewhere() {
    let setup = setup();
    std::fs::create_dir(setup.path("www")).expect("a directory");
    setup.file("www/a.txt", "0123456789");
    setup.file("secret.txt", "secret");
    let app = format!("files:{}", setup.path("www").display());
    let server = setup.workers(2).args(["--app", &app]).start();
    let whole = server.get("/a.txt");
    assert_eq!((whole.status, whole.body.as_str()), (200, "0123456789"));
    let address = server.address();
    let ask = |path: &str, header: &str| {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\nConnection: close\r\n\r\n");
        http::raw(&address, request.as_bytes()).expect("an answer")
    };
    let part = ask("/a.txt", "Range: bytes=2-4");
    assert_eq!((part.status, part.body.as_str()), (206, "234"));
    let tag = whole.header("etag").expect("an ETag").to_owned();
    assert_eq!(ask("/a.txt", &format!("If-None-Match: {tag}")).status, 304);
    assert_eq!(ask("/none.txt", "X-A: b").status, 404);
    for path in [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "//../secret.txt",
    ] {
        let response = ask(path, "X-A: b");
        assert!(
            response.status >= 400 && !response.body.contains("secret"),
            "{path}: {response:?}"
        );
    }
}
