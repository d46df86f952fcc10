//! Whatever a client sends, it gets the right refusal, and the worker goes on.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
mod harness;
use harness::*;
use std::io::Write;
use std::time::Duration;

/// Sends bytes, expects a refusal and a clean end, and that others are served.
fn refused(app: &str, bytes: &[u8], status: u16) {
    let (worker, address) = Worker::serving(app, ASYNC);
    let mut connection = client(address);
    // The server may refuse before it has read everything.
    let _ = connection.stream.write_all(bytes);
    let answer = connection.answer().expect("a refusal");
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.closes(), "{answer:?}");
    assert!(connection.at_end());
    drop(connection);
    let path = if app == "sleep" { "/?ms=0" } else { "/" };
    assert_eq!(get(address, path).status, 200);
    worker.finish();
}

#[test]
fn garbage_gets_400() {
    refused("hello", b"\x16\x03\x01 this is no http\r\n\r\n", 400);
    refused("hello", b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n", 400);
    refused("hello", b"PRINT\r\n\r\n", 400);
}

#[test]
fn garbage_behind_a_request_gets_its_answer_and_400() {
    let (worker, address) = Worker::serving("hello", ASYNC);
    let mut connection = client(address);
    connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n\x01garbage garbage\r\n\r\n");
    assert_eq!(connection.answer().unwrap().status, 200);
    assert_eq!(connection.answer().unwrap().status, 400);
    assert!(connection.at_end());
    drop(connection);
    worker.finish();
}

#[test]
fn contradicting_lengths_get_400() {
    refused(
        "hello",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        400,
    );
}

#[test]
fn an_oversized_head_gets_431() {
    let long = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "y".repeat(20_000)
    );
    refused("hello", long.as_bytes(), 431);
    let endless = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "y".repeat(200_000));
    refused("hello", endless.as_bytes(), 431);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(500));
    refused("hello", many.as_bytes(), 431);
}

#[test]
fn a_head_just_under_the_limit_is_served() {
    let (worker, address) = Worker::serving("hello", ASYNC);
    let mut connection = client(address);
    connection.send(&format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "y".repeat(16_000)
    ));
    assert_eq!(connection.answer().unwrap().status, 200);
    worker.finish();
}

#[test]
fn an_oversized_body_gets_413() {
    let announced = b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n";
    refused("test:axum", announced, 413);
    let mut with_body = announced.to_vec();
    with_body.extend(vec![b'x'; 3_000_000]);
    refused("test:axum", &with_body, 413);
    let mut chunked =
        b"POST /size HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..100 {
        chunked.extend(b"1000\r\n");
        chunked.extend([b'x'; 4096]);
        chunked.extend(b"\r\n");
    }
    refused("test:axum", &chunked, 413);
}

#[test]
fn a_body_up_to_the_limit_is_taken() {
    let (worker, address) = Worker::serving("test:axum", ASYNC);
    let mut connection = client(address);
    let body = "x".repeat(64 * 1024);
    connection.send(&format!(
        "POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert_eq!(connection.answer().unwrap().text(), "65536");
    connection.send(
        "POST /size HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    );
    assert_eq!(connection.answer().unwrap().text(), "3");
    worker.finish();
}

#[test]
fn an_unread_body_does_not_destroy_the_answer() {
    for _ in 0..20 {
        let (worker, address) = Worker::serving("test:axum", ASYNC);
        let mut connection = client(address);
        let body = "x".repeat(60_000);
        let head = "POST /ignore HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                Content-Length: 60000\r\n\r\n";
        connection.send(&format!("{head}{body}"));
        assert_eq!(connection.answer().unwrap().text(), "ignored");
        assert!(connection.at_end());
        drop(connection);
        worker.finish();
    }
}

#[test]
fn a_panic_gets_500_and_affects_no_other_request() {
    refused("test:axum", b"GET /panic HTTP/1.1\r\nHost: x\r\n\r\n", 500);
}

#[test]
fn a_slow_handler_gets_503() {
    let (listener, address) = tcp();
    let mut settings = settings("test:axum", ASYNC);
    settings.request_timeout_ms = 100;
    let worker = Worker::start(settings, &[&listener]);
    let mut connection = client(address);
    let answer = connection.get("/sleep");
    assert_eq!(answer.status, 503);
    assert!(answer.closes() && connection.at_end());
    assert_eq!(get(address, "/").status, 200);
    worker.finish();
}

#[test]
fn a_slow_head_gets_408_and_silence_is_closed() {
    let (listener, address) = tcp();
    let mut settings = settings("hello", ASYNC);
    settings.header_timeout_ms = 200;
    settings.keep_alive_ms = 60_000;
    let worker = Worker::start(settings, &[&listener]);
    let mut slow = client(address);
    slow.send("GET / HT");
    assert_eq!(slow.answer().unwrap().status, 408);
    assert!(slow.at_end());
    let mut silent = client(address);
    assert!(silent.at_end());
    // One that was served may be idle for longer than a head may take.
    let mut idle = client(address);
    idle.get("/");
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(idle.get("/").status, 200);
    worker.finish();
}

#[test]
fn an_idle_connection_is_closed_after_keep_alive() {
    let (listener, address) = tcp();
    let mut settings = settings("hello", ASYNC);
    settings.keep_alive_ms = 200;
    let worker = Worker::start(settings, &[&listener]);
    let mut connection = client(address);
    assert_eq!(connection.get("/").status, 200);
    assert!(connection.at_end());
    drop(connection);
    worker.finish();
}

#[test]
fn random_bytes_end_no_worker() {
    let (worker, address) = Worker::serving("test:axum", ASYNC);
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..300 {
        let mut bytes = if round % 3 == 0 {
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()
        } else {
            Vec::new()
        };
        if round % 3 == 1 {
            bytes.extend(b"POST /size HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
        }
        for _ in 0..(round % 97) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes.push(seed.to_le_bytes()[3]);
        }
        let _ = connect(address).write_all(&bytes);
    }
    assert_eq!(get(address, "/").status, 200);
    worker.finish();
}
