//! The load against servers that misbehave in one way each: every misdeed must land in its own
//! class.

use super::{Failure, Plan, Report, run, start};
use crate::Address;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

/// A server on a port of its own that does `serve(stream, how manieth connection)` in a thread per
/// connection.
fn server(serve: impl Fn(TcpStream, usize) + Clone + Send + 'static) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = Address::Tcp(listener.local_addr().expect("a bound socket"));
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let (serve, stream) = (serve.clone(), stream.expect("a connection"));
            std::thread::spawn(move || serve(stream, number));
        }
    });
    address
}

/// Reads one request; false at the end of the connection.
fn request(stream: &mut impl Read) -> bool {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"\r\n\r\n") {
        if !stream.read(&mut byte).is_ok_and(|length| length == 1) {
            return false;
        }
        seen.push(byte[0]);
    }
    true
}

fn answer(stream: &mut impl Write, extra: &str) {
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\nx-prefork-generation: 7\r\ncontent-length: 2\r\n{extra}\r\nhi"
    );
}

fn short(plan: Plan) -> Report {
    run(&plan
        .http("/", Some("hi"))
        .count(20)
        .timeout(Duration::from_millis(300)))
}

#[track_caller]
fn all_in(report: &Report, class: Failure) {
    assert!(
        report.failed() > 0 && report.count(class) == report.failed(),
        "{report}"
    );
    assert_eq!(
        report.answered + report.failed(),
        report.requests,
        "{report}"
    );
}

#[test]
fn a_good_server_has_no_failures_in_any_shape() {
    let address = server(|mut stream, _| {
        while request(&mut stream) {
            answer(&mut stream, "");
        }
    });
    let kept = short(Plan::kept_alive(&address, 3));
    kept.assert_flawless();
    assert_eq!(
        (kept.requests, kept.connections, kept.generations["7"]),
        (20, 3, 20)
    );

    let address = server(|mut stream, _| {
        request(&mut stream);
        answer(&mut stream, "connection: close\r\n");
    });
    let fresh = short(Plan::fresh(&address, 3));
    fresh.assert_flawless();
    assert_eq!((fresh.requests, fresh.connections), (20, 20));
    short(Plan::rate(&address, 1000.0)).assert_flawless();
    let kept = short(Plan::kept_alive(&address, 3));
    kept.assert_flawless();
    assert_eq!(
        kept.announced, 20,
        "each of its connections was announced to close"
    );
}

#[test]
fn a_kept_connection_closed_without_a_word_loses_a_request() {
    let address = server(|mut stream, _| {
        for _ in 0..2 {
            request(&mut stream);
            answer(&mut stream, "");
        }
        request(&mut stream);
    });
    all_in(&short(Plan::kept_alive(&address, 2)), Failure::Unanswered);
}

#[test]
fn a_truncated_response_is_an_early_end() {
    let address = server(|mut stream, _| {
        request(&mut stream);
        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh");
    });
    all_in(&short(Plan::fresh(&address, 2)), Failure::EofEarly);
}

#[test]
fn a_reset_is_a_reset() {
    // Closing with unread bytes resets.
    let address = server(|mut stream, _| {
        let _ = stream.read(&mut [0]);
    });
    all_in(&short(Plan::fresh(&address, 2)), Failure::ReadReset);
}

#[test]
fn a_connection_without_a_listener_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = Address::Tcp(listener.local_addr().expect("a bound socket"));
    drop(listener);
    all_in(&short(Plan::fresh(&address, 2)), Failure::Refused);
    all_in(
        &short(Plan::fresh(&Address::Unix("/nonexistent/socket".into()), 2)),
        Failure::Refused,
    );
}

#[test]
fn silence_is_a_timeout() {
    let address = server(|mut stream, number| {
        if number > 0 {
            let _ = stream.read_to_end(&mut Vec::new());
        } else {
            request(&mut stream);
            answer(&mut stream, "connection: close\r\n");
        }
    });
    let report = short(Plan::fresh(&address, 20));
    all_in(&report, Failure::ResponseTimeout);
    assert_eq!(report.failed(), 19);
}

#[test]
fn a_wrong_answer_is_bad_and_one_that_does_not_close_is_late() {
    let address = server(|mut stream, _| {
        request(&mut stream);
        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nho");
    });
    all_in(&short(Plan::fresh(&address, 2)), Failure::BadResponse);
    let address = server(|mut stream, _| {
        request(&mut stream);
        let _ = write!(stream, "HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nhi");
    });
    all_in(&short(Plan::fresh(&address, 2)), Failure::BadResponse);
    let address = server(|mut stream, _| {
        request(&mut stream);
        answer(&mut stream, "connection: close\r\n");
        request(&mut stream);
    });
    all_in(&short(Plan::fresh(&address, 20)), Failure::CloseTimeout);
}

#[test]
fn bytes_are_echoed_and_questions_answered() {
    let address = server(|mut stream, _| {
        let mut reader = stream.try_clone().expect("a second handle");
        let _ = std::io::copy(&mut reader, &mut stream);
    });
    run(&Plan::fresh(&address, 4).echo(100_000).count(20)).assert_flawless();
    run(&Plan::kept_alive(&address, 4).echo(32).count(200)).assert_flawless();
    let address = server(|mut stream, _| {
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(b"Hello, client!");
    });
    run(&Plan::fresh(&address, 4)
        .ask("hi", "Hello, client!")
        .count(20))
    .assert_flawless();
    let report = run(&Plan::fresh(&address, 4).ask("hi", "Goodbye").count(20));
    all_in(&report, Failure::BadResponse);
}

#[test]
fn latency_counts_from_the_due_moment() {
    let (count, rate) = (50_u32, 500.0);
    let began = Instant::now();
    // The whole server is held up, not only one connection.
    let address = server(move |mut stream, _| {
        let stalled = Duration::from_millis(400).saturating_sub(began.elapsed());
        std::thread::sleep(stalled);
        request(&mut stream);
        answer(&mut stream, "connection: close\r\n");
    });
    let report = run(&Plan::rate(&address, rate).count(count.into()));
    report.assert_flawless();
    assert!(report.latency.max >= 200.0, "{report}");
}

#[test]
fn a_mix_tells_its_paths_apart() {
    let address = server(|mut stream, _| {
        let mut head = [0; 1024];
        let length = stream.read(&mut head).expect("a request");
        if head[..length].starts_with(b"GET /slow ") {
            std::thread::sleep(Duration::from_millis(30));
        }
        answer(&mut stream, "connection: close\r\n");
    });
    let report = run(&Plan::rate(&address, 1000.0)
        .http("/", Some("hi"))
        .mixed("/slow", 0.1)
        .count(300));
    report.assert_flawless();
    let ((fast, _), (slow, late)) = (report.paths["/"], report.paths["/slow"]);
    assert_eq!(fast + slow, 300, "{report}");
    assert!((10..60).contains(&slow), "about a tenth: {report}");
    assert!(late.p50 >= 30.0, "{report}");
}

#[test]
fn unix_sockets_serve_too_and_a_load_can_be_ended_from_outside() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                while request(&mut stream) {
                    answer(&mut stream, "");
                }
            });
        }
    });
    let load = start(Plan::kept_alive(&Address::Unix(path), 4));
    load.wait_for_more(100);
    let report = load.finish();
    report.assert_flawless();
    assert!(report.answered >= 100, "{report}");
}
