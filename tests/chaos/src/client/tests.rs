//! The clients against servers that misbehave in one way each. A check that cannot fail is worth
//! nothing, so every kind of failure is made to appear, and nothing else with it.

use super::connection::Name;
use super::{Failure, Ledger, Load, Pace, Shape, start};
use crate::pattern::Pattern;
use crate::subject::Offers;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};
use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;
use std::time::Duration;
use testkit::{Address, LONG, wait_until};

/// What a request asks for: its number and the body that its answer must have.
struct Request {
    id: u64,
    body: Vec<u8>,
    close: bool,
}

/// Reads one request as an honest server would; `None` at the connection's end.
fn request(stream: &mut impl Read) -> Option<Request> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("the client writes text");
    let header = |name: &str| {
        let line = head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.map(str::to_owned)
    };
    let number = |name| header(name).and_then(|value| value.parse::<u64>().ok());
    let body = if let Some(length) = number("content-length") {
        let mut body = vec![0; usize::try_from(length).expect("a length")];
        stream.read_exact(&mut body).ok()?;
        body
    } else {
        let path = head.split(' ').nth(1).expect("a path");
        let path = path.split('?').next().expect("a path");
        let mut words = path
            .rsplit('/')
            .map(|word| word.parse::<u64>().expect("a number"));
        let (length, key) = (
            words.next().expect("a length"),
            words.next().expect("a key"),
        );
        Pattern::new(key, length).bytes()
    };
    let id = number("x-chaos-request").expect("each request has its number");
    Some(Request {
        id,
        body,
        close: header("connection").as_deref() == Some("close"),
    })
}

fn head(request: &Request, extra: &str) -> String {
    let (id, length) = (request.id, request.body.len());
    format!("HTTP/1.1 200 OK\r\nx-chaos-request: {id}\r\ncontent-length: {length}\r\n{extra}\r\n")
}

fn answer(stream: &mut impl Write, request: &Request, extra: &str) {
    let mut bytes = head(request, extra).into_bytes();
    bytes.extend_from_slice(&request.body);
    let _ = stream.write_all(&bytes);
}

/// Serves as an honest server does.
fn serve(stream: &mut (impl Read + Write)) {
    while let Some(request) = request(stream) {
        answer(stream, &request, "");
        if request.close {
            return;
        }
    }
}

/// A server that does this with each connection, in a thread of its own.
fn server(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = Address::Tcp(listener.local_addr().expect("a bound socket"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (serve, stream) = (serve.clone(), stream.expect("a connection"));
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

fn load(address: &Address, shape: Shape) -> Load {
    let mut load = Load::mix(vec![address.clone()], Offers::ALL, "async", 1.0);
    let pace = match shape {
        Shape::Slow => Pace::Rate(5.0),
        Shape::Idling => Pace::Pool(20),
        _ if shape.keeps() => Pace::Pool(3),
        _ => Pace::Rate(100.0),
    };
    load.streams = vec![(shape, pace)];
    load.timeout = if shape == Shape::Slow {
        LONG
    } else {
        Duration::from_millis(700)
    };
    load
}

fn enough(shape: Shape) -> u64 {
    if shape == Shape::Slow { 3 } else { 20 }
}

/// Runs one shape of load until something has happened, and reports.
fn run(address: &Address, shape: Shape) -> Ledger {
    let clients = start(load(address, shape)).expect("clients");
    let enough = enough(shape);
    wait_until("some ends", LONG, || {
        clients.verified() >= enough || clients.unexplained() >= 3
    });
    clients.finish()
}

/// Every failure is of this kind, and there are some.
#[track_caller]
fn only(ledger: &Ledger, failure: Failure) {
    assert_eq!(
        ledger.failures.keys().collect::<Vec<_>>(),
        [&failure],
        "{:#?}",
        ledger.incidents
    );
    adds_up(ledger);
}

/// Every request has ended in exactly one way.
#[track_caller]
fn adds_up(ledger: &Ledger) {
    let ends = ledger.sum(|tally| tally.verified + tally.withdrawn + tally.crossed + tally.failed);
    assert_eq!(
        ledger.sum(|tally| tally.begun),
        ends,
        "{}",
        ledger.to_json()
    );
}

/// Serves by this answer instead of the honest one.
fn answering(shape: Shape, wrong: fn(&mut TcpStream, Request)) -> Ledger {
    let address = server(move |mut stream| {
        while let Some(request) = request(&mut stream) {
            wrong(&mut stream, request);
        }
    });
    run(&address, shape)
}

#[test]
fn an_honest_server_has_no_failures_in_any_shape() {
    let address = server(|mut stream| serve(&mut stream));
    for shape in Shape::ALL
        .into_iter()
        .filter(|shape| *shape != Shape::Burst)
    {
        let ledger = run(&address, shape);
        assert_eq!(
            ledger.failures,
            BTreeMap::new(),
            "{shape:?}: {:#?}",
            ledger.incidents
        );
        assert!(
            ledger.shapes[&shape].verified >= enough(shape),
            "{shape:?}: {}",
            ledger.to_json()
        );
        adds_up(&ledger);
    }
}

#[test]
fn a_burst_is_answered_too() {
    let address = server(|mut stream| serve(&mut stream));
    let mut load = load(&address, Shape::New);
    load.streams.clear();
    let clients = start(load).expect("clients");
    clients.burst(50, 7);
    wait_until("fifty answers", LONG, || clients.verified() == 50);
    adds_up(&clients.finish());
}

#[test]
fn a_connection_without_a_listener_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = Address::Tcp(listener.local_addr().expect("a bound socket"));
    drop(listener);
    only(&run(&address, Shape::New), Failure::Refused);
    only(
        &run(&Address::Unix("/nonexistent/socket".into()), Shape::Kept),
        Failure::Refused,
    );
}

#[test]
fn a_wrong_byte_anywhere_is_seen() {
    only(
        &answering(Shape::Slow, |stream, mut request| {
            let last = request.body.len() - 1;
            request.body[last] ^= 1;
            answer(stream, &request, "");
        }),
        Failure::WrongBytes,
    );
    only(
        &answering(Shape::Post, |stream, mut request| {
            request.body[1000] ^= 1;
            answer(stream, &request, "");
        }),
        Failure::WrongBytes,
    );
}

#[test]
fn the_answer_to_another_request_is_seen_by_its_number_and_by_its_bytes() {
    only(
        &answering(Shape::Kept, |stream, mut request| {
            request.id += 1;
            answer(stream, &request, "");
        }),
        Failure::WrongBytes,
    );
    // Without a number, as a server of files answers.
    only(
        &answering(Shape::Kept, |stream, request| {
            let body = Pattern::new(request.id + 1, request.body.len() as u64).bytes();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(&body);
        }),
        Failure::WrongBytes,
    );
}

#[test]
fn another_length_is_seen() {
    only(
        &answering(Shape::New, |stream, mut request| {
            request.body.push(0);
            answer(stream, &request, "");
        }),
        Failure::WrongBytes,
    );
}

#[test]
fn a_wrong_status_and_what_is_no_http_are_seen() {
    only(
        &answering(Shape::New, |stream, _| {
            let _ = stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n");
        }),
        Failure::WrongStatus,
    );
    only(
        &answering(Shape::New, |stream, _| {
            let _ = stream.write_all(b"SSH-2.0-hello\r\n");
        }),
        Failure::Malformed,
    );
    only(
        &answering(Shape::New, |stream, _| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        }),
        Failure::Malformed,
    );
}

#[test]
fn an_answer_that_comes_twice_is_surplus() {
    // The client says that it closes, so that it still listens when the second one comes.
    only(
        &answering(Shape::Post, |stream, request| {
            answer(stream, &request, "");
            answer(stream, &request, "");
        }),
        Failure::Surplus,
    );
    let twice = answering(Shape::Thinking, |stream, request| {
        answer(stream, &request, "");
        answer(stream, &request, "");
    });
    only(&twice, Failure::Surplus);
}

#[test]
fn an_answer_that_ends_early_is_truncated_within_head_and_body() {
    let within = |bytes: fn(&Request) -> Vec<u8>| {
        let address = server(move |mut stream| {
            if let Some(request) = request(&mut stream) {
                let _ = stream.write_all(&bytes(&request));
            }
        });
        run(&address, Shape::Post)
    };
    only(
        &within(|request| head(request, "").into_bytes()[..20].to_vec()),
        Failure::Truncated,
    );
    only(
        &within(|request| [head(request, "").as_bytes(), &request.body[..16_383]].concat()),
        Failure::Truncated,
    );
}

#[test]
fn a_request_met_by_a_close_is_unanswered_and_by_a_reset_is_reset() {
    let closing = server(|mut stream| drop(request(&mut stream)));
    only(&run(&closing, Shape::New), Failure::Unanswered);
    only(&run(&closing, Shape::Kept), Failure::Unanswered);
    // Closing with unread bytes resets.
    let resetting = server(|mut stream| drop(stream.read(&mut [0])));
    only(&run(&resetting, Shape::New), Failure::ResetAfter);
}

#[test]
fn a_reset_after_the_answer_is_seen() {
    let address = server(|mut stream| {
        if let Some(request) = request(&mut stream) {
            answer(&mut stream, &request, "");
            let linger = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            let _ = setsockopt(&stream, sockopt::Linger, &linger);
        }
    });
    let ledger = run(&address, Shape::Post);
    only(&ledger, Failure::CloseReset);
}

#[test]
fn silence_is_a_timeout_and_a_connection_left_open_is_not_closed() {
    only(&answering(Shape::New, |_, _| {}), Failure::TimedOut);
    only(
        &answering(Shape::Post, |stream, request| answer(stream, &request, "")),
        Failure::NotClosed,
    );
}

#[test]
fn a_full_queue_is_a_timeout() {
    // A listener that accepts no connection, with a queue of one.
    let listener = socket_with_a_short_queue();
    let address = Address::Tcp(listener.local_addr().expect("a bound socket"));
    only(&run(&address, Shape::New), Failure::TimedOut);
}

fn socket_with_a_short_queue() -> TcpListener {
    let raw = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket");
    bind(raw.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("a port");
    listen(&raw, Backlog::new(1).expect("a length")).expect("a listener");
    raw.into()
}

#[test]
fn a_kept_connection_closed_while_idle_is_no_failure() {
    let address = server(|mut stream| {
        if let Some(request) = request(&mut stream) {
            answer(&mut stream, &request, "");
        }
    });
    // An end that comes right behind the answer may meet the next request of a client without think
    // time.
    let ledger = run(&address, Shape::Idling);
    assert_eq!(ledger.failures, BTreeMap::new(), "{:#?}", ledger.incidents);
    assert!(
        ledger.shapes[&Shape::Idling].closed_idle >= 15,
        "{}",
        ledger.to_json()
    );
    adds_up(&ledger);
}

#[test]
fn an_end_that_comes_before_an_answer_could_have_has_crossed_the_request() {
    // It answers once, and closes after the second request. Only the way's length tells whether it
    // had seen that.
    let address = server(|mut stream| {
        if let Some(first) = request(&mut stream) {
            answer(&mut stream, &first, "");
        }
        drop(request(&mut stream));
    });
    only(&run(&address, Shape::Thinking), Failure::Unanswered);
    let mut load = load(&address, Shape::Thinking);
    load.round_trip = LONG;
    let clients = start(load).expect("clients");
    wait_until("some ends", LONG, || clients.verified() >= 20);
    let ledger = clients.finish();
    assert_eq!(ledger.failures, BTreeMap::new(), "{:#?}", ledger.incidents);
    assert!(
        ledger.shapes[&Shape::Thinking].crossed >= 15,
        "{}",
        ledger.to_json()
    );
    adds_up(&ledger);
}

#[test]
fn an_announced_close_withdraws_what_was_pipelined_behind_it() {
    let address = server(|mut stream| {
        let first = request(&mut stream);
        let second = request(&mut stream);
        for (request, extra) in [(first, ""), (second, "connection: close\r\n")] {
            if let Some(request) = request {
                answer(&mut stream, &request, extra);
            }
        }
    });
    let ledger = run(&address, Shape::Pipelined);
    assert_eq!(ledger.failures, BTreeMap::new(), "{:#?}", ledger.incidents);
    let tally = &ledger.shapes[&Shape::Pipelined];
    assert_eq!(tally.verified, tally.withdrawn, "two of four each");
    adds_up(&ledger);
}

#[test]
fn pipelined_requests_without_an_answer_all_fail() {
    let address = server(|mut stream| {
        let requests: Vec<_> = (0..4).map_while(|_| request(&mut stream)).collect();
        if let Some(first) = requests.first() {
            answer(&mut stream, first, "");
        }
    });
    let ledger = run(&address, Shape::Pipelined);
    only(&ledger, Failure::Unanswered);
    assert!(
        ledger
            .incidents
            .iter()
            .all(|incident| incident.requests == 3),
        "{:#?}",
        ledger.incidents
    );
}

/// The kill takes exactly the connections that it names, over TCP and over Unix sockets.
#[test]
fn only_the_connections_in_a_killed_workers_hands_may_fail() {
    let (told, names) = channel();
    let listener = TcpListener::bind("[::1]:0").expect("a port");
    let tcp = Address::Tcp(listener.local_addr().expect("a bound socket"));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let unix = UnixListener::bind(&path).expect("a socket");
    let tell = told.clone();
    std::thread::spawn(move || {
        let held: Vec<_> = (0..4)
            .map(|_| listener.accept().expect("a connection"))
            .collect();
        for (_, peer) in &held {
            tell.send(Name::Tcp(*peer)).expect("the test listens");
        }
        std::thread::sleep(Duration::from_mins(1));
    });
    std::thread::spawn(move || {
        let held: Vec<_> = (0..4)
            .map(|_| unix.accept().expect("a connection"))
            .collect();
        for (_, peer) in &held {
            told.send(Name::Unix(abstract_name(peer)))
                .expect("the test listens");
        }
        std::thread::sleep(Duration::from_mins(1));
    });
    for address in [tcp, Address::Unix(path)] {
        let mut load = load(&address, Shape::Kept);
        load.streams = vec![(Shape::Waiting, Pace::Rate(0.000_001))];
        load.timeout = Duration::from_secs(2);
        let clients = start(load).expect("clients");
        clients.last(3, Duration::ZERO);
        wait_until("four requests", LONG, || {
            clients.sent() == 3 && clients.open() == 4
        });
        let mut held: HashSet<Name> = (0..4).map(|_| names.recv().expect("four names")).collect();
        let spared = held.iter().next().cloned().expect("four names");
        held.remove(&spared);
        held.insert(Name::Tcp(SocketAddr::from(([127, 0, 0, 1], 1))));
        assert_eq!(clients.doom(held, 0), 3, "one name is of another client");
        let ledger = clients.finish();
        assert_eq!(
            ledger.allowed,
            BTreeMap::from([(Failure::TimedOut, 3)]),
            "{:#?}",
            ledger.incidents
        );
        assert_eq!(
            ledger.failures,
            BTreeMap::from([(Failure::TimedOut, 1)]),
            "{:#?}",
            ledger.incidents
        );
    }
}

fn abstract_name(peer: &std::os::unix::net::SocketAddr) -> Vec<u8> {
    peer.as_abstract_name()
        .expect("each client has a name")
        .to_vec()
}
