//! The control socket with clients of all kinds.

use super::*;
use crate::config::runtime_directory::SOCKET;
use std::io::{BufRead, BufReader};

struct Fixture {
    server: ControlServer,
    poll: Poll,
    folder: tempfile::TempDir,
    now: Time,
}

impl Fixture {
    fn open() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = ControlServer::default();
        server
            .bind(&folder.path().join(SOCKET), None)
            .expect("bind");
        let poll = Poll::new().expect("epoll");
        server.watch(&poll).expect("watch");
        Self {
            server,
            poll,
            folder,
            now: Time::default(),
        }
    }

    fn connect(&mut self) -> (UnixStream, u64) {
        let stream = UnixStream::connect(self.folder.path().join(SOCKET)).expect("connect");
        self.server.accept(self.now, &self.poll);
        (stream, self.server.last)
    }

    fn ask(&mut self, request: &str) -> (UnixStream, u64, Option<Request>) {
        let (mut stream, id) = self.connect();
        stream.write_all(request.as_bytes()).expect("ask");
        let request = self.server.serve(self.now, &self.poll, id);
        (stream, id, request)
    }
}

fn line(stream: UnixStream) -> Answer {
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .expect("an answer");
    serde_json::from_str(&line).expect("JSON")
}

#[test]
fn a_request_is_taken_and_answered_once() {
    let mut fixture = Fixture::open();
    let (stream, id, request) = fixture.ask("{\"command\":\"reload\",\"wait\":true}\n");
    assert_eq!(request, Some(Request::Reload { wait: true }));
    fixture
        .server
        .answer(fixture.now, &fixture.poll, id, &Answer::done());
    assert_eq!(line(stream).ok, Some(true));
    assert!(fixture.server.clients.is_empty());
}

#[test]
fn nonsense_is_answered_with_the_reason() {
    let mut fixture = Fixture::open();
    for nonsense in [
        "{}\n",
        "stop\n",
        "{\"command\":\"dance\"}\n",
        "\u{0}\n",
        &format!("{}\n", "x".repeat(4095)),
    ] {
        let (stream, _, request) = fixture.ask(nonsense);
        assert_eq!(request, None);
        assert!(
            line(stream)
                .error
                .expect("a reason")
                .starts_with("no such request"),
            "{nonsense}"
        );
    }
    let (stream, _, _) = fixture.ask(&"x".repeat(MAX_REQUEST));
    assert!(line(stream).error.expect("a reason").contains("one line"));
}

#[test]
fn a_silent_client_is_dropped() {
    let mut fixture = Fixture::open();
    let _stream = fixture.connect();
    assert_eq!(
        fixture.server.next_deadline(),
        Some(Time::default() + TIME_TO_ASK)
    );
    fixture
        .server
        .expire(Time::default() + TIME_TO_ASK, &fixture.poll);
    assert!(fixture.server.clients.is_empty());
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_delays_no_other() {
    let mut fixture = Fixture::open();
    let (_stream, id, _) = fixture.ask("{\"command\":\"status\"}\n");
    let much = Answer::progress("x".repeat(1 << 20));
    for _ in 0..6 {
        fixture.server.answer(fixture.now, &fixture.poll, id, &much);
    }
    assert!(
        fixture.server.clients.is_empty(),
        "its unread output exceeds the limit"
    );
}

#[test]
fn the_client_that_is_silent_for_longest_makes_room() {
    let mut fixture = Fixture::open();
    let mut held: Vec<_> = (0..MAX_CLIENTS).map(|_| fixture.connect()).collect();
    assert_eq!(fixture.server.clients.len(), MAX_CLIENTS);
    let (mut stream, id, request) = fixture.ask("{\"command\":\"status\"}\n");
    assert_eq!(request, Some(Request::Status {}), "a request finds room");
    assert!(
        !fixture.server.clients.contains_key(&held[0].1),
        "the first one was dropped"
    );
    fixture
        .server
        .answer(fixture.now, &fixture.poll, id, &Answer::done());
    let mut byte = [0];
    assert!(stream.read(&mut byte).is_ok_and(|length| length == 1));
    assert_eq!(held[0].0.read(&mut byte).expect("the end"), 0);
}

#[test]
fn only_so_many_clients_wait_and_follow() {
    let mut fixture = Fixture::open();
    let held: Vec<_> = (0..MAX_WAITING)
        .map(|_| fixture.ask("{\"command\":\"reload\",\"wait\":true}\n"))
        .collect();
    assert!(held.iter().all(|(_, _, request)| request.is_some()));
    let (stream, _, request) = fixture.ask("{\"command\":\"status\"}\n");
    assert_eq!(request, None);
    assert!(line(stream).error.expect("a reason").contains("already"));
    drop(held);

    let mut fixture = Fixture::open();
    let follow = "{\"command\":\"events\",\"follow\":true}\n";
    let held: Vec<_> = (0..MAX_FOLLOWERS)
        .map(|_| {
            let (stream, id, request) = fixture.ask(follow);
            assert!(request.is_some());
            fixture.server.follow(id);
            stream
        })
        .collect();
    let (stream, _, request) = fixture.ask(follow);
    assert_eq!(request, None);
    assert!(line(stream).error.expect("a reason").contains("already"));
    fixture
        .server
        .broadcast(fixture.now, &fixture.poll, &event_line(&"something"));
    assert_eq!(
        held.into_iter()
            .filter_map(|stream| line(stream).event)
            .count(),
        MAX_FOLLOWERS
    );
}

#[test]
fn a_lasting_client_may_ask_again_but_only_what_its_role_allows() {
    let mut fixture = Fixture::open();
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    fixture
        .server
        .admit_lasting(&fixture.poll, ours, Role::Read)
        .expect("take in");
    let id = fixture.server.last;
    for _ in 0..3 {
        theirs
            .write_all(b"{\"command\":\"status\"}\n")
            .expect("ask");
        assert_eq!(
            fixture.server.serve(fixture.now, &fixture.poll, id),
            Some(Request::Status {})
        );
        fixture
            .server
            .answer(fixture.now, &fixture.poll, id, &Answer::done());
    }
    theirs.write_all(b"{\"command\":\"stop\"}\n").expect("ask");
    assert_eq!(fixture.server.serve(fixture.now, &fixture.poll, id), None);
    let answers: Vec<_> = BufReader::new(&theirs)
        .lines()
        .take(4)
        .map(Result::unwrap_or_default)
        .collect();
    assert!(answers[3].contains("only read"), "{answers:?}");
    fixture
        .server
        .expire(Time::default() + TIME_TO_ASK * 100, &fixture.poll);
    assert!(
        fixture.server.clients.contains_key(&id),
        "it may stay silent"
    );
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(SOCKET);
    drop(UnixListener::bind(&path).expect("a socket without a server"));
    let bind = || {
        let mut server = ControlServer::default();
        server.bind(&path, None).map(|()| server)
    };
    let server = bind().expect("it is stale");
    assert!(
        bind()
            .expect_err("it is live")
            .to_string()
            .contains("another server")
    );
    drop(server);
    assert!(!path.exists());
    std::fs::write(&path, "").expect("a file");
    assert!(
        bind()
            .expect_err("a file")
            .to_string()
            .contains("not a socket")
    );
}
