//! The control socket with clients of all kinds.

use super::*;
use std::io::{BufRead, BufReader};

struct Desk {
    server: ControlServer,
    poll: Poll,
    folder: tempfile::TempDir,
    now: Time,
}

impl Desk {
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
    let mut desk = Desk::open();
    let (stream, id, request) = desk.ask("{\"command\":\"reload\",\"wait\":true}\n");
    assert_eq!(request, Some(Request::Reload { wait: true }));
    desk.server
        .answer(desk.now, &desk.poll, id, &Answer::done());
    assert_eq!(line(stream).ok, Some(true));
    assert!(desk.server.clients.is_empty());
}

#[test]
fn a_line_that_is_too_long_is_refused_however_it_is_cut() {
    let line = format!("{{\"command\":\"status\"}}{}\n", " ".repeat(MAX_REQUEST));
    let refused = Request::read(line.as_bytes()).and_then(Result::err);
    assert!(
        refused
            .as_ref()
            .is_some_and(|reason| reason.contains("at most 4096 bytes")),
        "{refused:?}"
    );
    let cut = Request::read(&line.as_bytes()[..line.len() - 1]).and_then(Result::err);
    assert_eq!(cut, refused);
}

#[test]
fn nonsense_is_answered_with_the_reason() {
    let mut desk = Desk::open();
    for nonsense in [
        "{}\n",
        "stop\n",
        "{\"command\":\"dance\"}\n",
        "\u{0}\n",
        &format!("{}\n", "x".repeat(4095)),
    ] {
        let (stream, _, request) = desk.ask(nonsense);
        assert_eq!(request, None);
        assert!(
            line(stream)
                .error
                .expect("a reason")
                .starts_with("no such request"),
            "{nonsense}"
        );
    }
    let (stream, _, _) = desk.ask(&"x".repeat(MAX_REQUEST));
    assert!(line(stream).error.expect("a reason").contains("one line"));
}

#[test]
fn a_silent_client_is_let_go() {
    let mut desk = Desk::open();
    let _stream = desk.connect();
    assert_eq!(
        desk.server.next_deadline(),
        Some(Time::default() + TIME_TO_ASK)
    );
    desk.server
        .expire(Time::default() + TIME_TO_ASK, &desk.poll);
    assert!(desk.server.clients.is_empty());
}

#[test]
fn a_client_that_does_not_read_is_let_go_and_delays_nobody() {
    let mut desk = Desk::open();
    let (_stream, id, _) = desk.ask("{\"command\":\"status\"}\n");
    let much = Answer::progress("x".repeat(1 << 20));
    for _ in 0..6 {
        desk.server.answer(desk.now, &desk.poll, id, &much);
    }
    assert!(
        desk.server.clients.is_empty(),
        "more waits to be read than is kept"
    );
}

#[test]
fn who_has_asked_nothing_for_longest_makes_room() {
    let mut desk = Desk::open();
    let mut held: Vec<_> = (0..MAX_CLIENTS).map(|_| desk.connect()).collect();
    assert_eq!(desk.server.clients.len(), MAX_CLIENTS);
    let (mut stream, id, request) = desk.ask("{\"command\":\"status\"}\n");
    assert_eq!(
        request,
        Some(Request::Status),
        "there is room for whoever asks"
    );
    assert!(
        !desk.server.clients.contains_key(&held[0].1),
        "the first one had to go"
    );
    desk.server
        .answer(desk.now, &desk.poll, id, &Answer::done());
    let mut byte = [0];
    assert!(stream.read(&mut byte).is_ok_and(|length| length == 1));
    assert_eq!(held[0].0.read(&mut byte).expect("the end"), 0);
}

#[test]
fn only_so_many_clients_wait_and_follow() {
    let mut desk = Desk::open();
    let held: Vec<_> = (0..MAX_WAITING)
        .map(|_| desk.ask("{\"command\":\"reload\",\"wait\":true}\n"))
        .collect();
    assert!(held.iter().all(|(_, _, request)| request.is_some()));
    let (stream, _, request) = desk.ask("{\"command\":\"status\"}\n");
    assert_eq!(request, None);
    assert!(line(stream).error.expect("a reason").contains("already"));
    drop(held);

    let mut desk = Desk::open();
    let follow = "{\"command\":\"events\",\"follow\":true}\n";
    let held: Vec<_> = (0..MAX_FOLLOWERS)
        .map(|_| {
            let (stream, id, request) = desk.ask(follow);
            assert!(request.is_some());
            desk.server.follow(id);
            stream
        })
        .collect();
    let (stream, _, request) = desk.ask(follow);
    assert_eq!(request, None);
    assert!(line(stream).error.expect("a reason").contains("already"));
    desk.server
        .tell(desk.now, &desk.poll, &event_line(&"something"));
    assert_eq!(
        held.into_iter()
            .filter_map(|stream| line(stream).event)
            .count(),
        MAX_FOLLOWERS
    );
}

#[test]
fn a_lasting_client_may_ask_again_and_only_what_its_role_allows() {
    let mut desk = Desk::open();
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    desk.server
        .take_in(&desk.poll, ours, Role::Read)
        .expect("take in");
    let id = desk.server.last;
    for _ in 0..3 {
        theirs
            .write_all(b"{\"command\":\"status\"}\n")
            .expect("ask");
        assert_eq!(
            desk.server.serve(desk.now, &desk.poll, id),
            Some(Request::Status)
        );
        desk.server
            .answer(desk.now, &desk.poll, id, &Answer::done());
    }
    theirs.write_all(b"{\"command\":\"stop\"}\n").expect("ask");
    assert_eq!(desk.server.serve(desk.now, &desk.poll, id), None);
    let answers: Vec<_> = BufReader::new(&theirs)
        .lines()
        .take(4)
        .map(Result::unwrap_or_default)
        .collect();
    assert!(answers[3].contains("only read"), "{answers:?}");
    desk.server
        .expire(Time::default() + TIME_TO_ASK * 100, &desk.poll);
    assert!(desk.server.clients.contains_key(&id), "it may be silent");
}

#[test]
fn a_live_socket_is_not_taken_over_and_a_stale_one_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(SOCKET);
    drop(UnixListener::bind(&path).expect("a socket that nobody serves"));
    let bind = || {
        let mut server = ControlServer::default();
        server.bind(&path, None).map(|()| server)
    };
    let server = bind().expect("it is stale");
    assert!(bind().expect_err("it is live").contains("another instance"));
    drop(server);
    assert!(!path.exists());
    std::fs::write(&path, "").expect("a file");
    assert!(bind().expect_err("a file").contains("not a socket"));
}
