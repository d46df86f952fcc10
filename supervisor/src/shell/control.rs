//! The control socket: a Unix stream socket on which an operator asks and is answered in lines of JSON.
//!
//! ```text
//! -> {"command":"reload","wait":true}
//! <- {"version":1,"progress":"worker 9 (slot 0, generation 2) is ready"}
//! <- {"version":1,"ok":true,"generation":2}
//! ```
//!
//! A client gets one answer to one request. It is bounded in everything (number, size of the request, time to make it,
//! size of what waits to be read by it), so a slow, dead or lying client costs the others nothing. This module
//! does not know what a request does.

mod handover;
mod peer;

use super::poll::{Interest, Poll, Token};
use crate::core::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The version of requests and answers, named in every answer.
pub const VERSION: u32 = 1;
/// The name of the socket in a runtime directory.
pub const SOCKET: &str = "supervisor.sock";

const MAX_CLIENTS: usize = 64;
const MAX_REQUEST: usize = 4096;
const MAX_UNREAD: usize = 4 << 20;
const TIME_TO_ASK: Duration = Duration::from_secs(10);
const TIME_TO_READ: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(1);

/// What an operator can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// How is the server?
    Status,
    /// Reload, and perhaps wait for the verdict.
    Reload {
        /// Answer when it is known.
        #[serde(default)]
        wait: bool,
    },
    /// Upgrade the supervisor's own program in place, and perhaps wait for the verdict.
    Upgrade {
        /// Answer when it is known.
        #[serde(default)]
        wait: bool,
    },
    /// Stop, gracefully or at once.
    Stop {
        /// At once.
        #[serde(default)]
        now: bool,
    },
}

impl Request {
    /// Reads a request out of what a client has sent so far; `None` while it is incomplete.
    ///
    /// # Errors
    /// What is wrong with it, in words for the client.
    ///
    /// ```
    /// use supervisor::shell::control::Request;
    /// assert_eq!(Request::read(br#"{"command":"sta"#), None);
    /// assert_eq!(Request::read(b"{\"command\":\"status\"}\n"), Some(Ok(Request::Status)));
    /// ```
    pub fn read(input: &[u8]) -> Option<Result<Self, String>> {
        // However it is cut on its way: a line that is too long is so with its end, too.
        let Some(end) = input.iter().take(MAX_REQUEST).position(|byte| *byte == b'\n') else {
            let long = input.len() >= MAX_REQUEST;
            return long.then(|| Err(format!("a request is one line of at most {MAX_REQUEST} bytes")));
        };
        Some(serde_json::from_slice(&input[..end]).map_err(|error| format!("no such request: {error}")))
    }
}

/// One line of an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// How it ended; absent from a line that only tells of progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ok: Option<bool>,
    /// What goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The generation that serves after a reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// The version that serves after an upgrade.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgraded: Option<String>,
    /// The answer to `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

impl Answer {
    /// It is done.
    pub fn done() -> Self {
        Self { version: VERSION, ok: Some(true), ..Self::default() }
    }

    /// It is not, and why.
    pub fn failed(error: impl Into<String>) -> Self {
        Self { version: VERSION, ok: Some(false), error: Some(error.into()), ..Self::default() }
    }

    /// It goes on.
    pub fn progress(text: impl Into<String>) -> Self {
        Self { version: VERSION, progress: Some(text.into()), ..Self::default() }
    }
}

/// Where the server's small files go: `$RUNTIME_DIRECTORY`, else `$XDG_RUNTIME_DIR`, else for root `/run`.
pub fn runtime_directory() -> Option<PathBuf> {
    let directory = |name| std::env::var_os(name).filter(|path: &std::ffi::OsString| !path.is_empty());
    // systemd separates several runtime directories by colons.
    directory("RUNTIME_DIRECTORY")
        .and_then(|paths| std::env::split_paths(&paths).next())
        .or_else(|| directory("XDG_RUNTIME_DIR").map(PathBuf::from))
        .or_else(|| nix::unistd::geteuid().is_root().then(|| PathBuf::from("/run")))
}

/// Where the control socket is by default: in the [runtime directory](runtime_directory).
pub fn default_path() -> Option<PathBuf> {
    runtime_directory().map(|directory| directory.join(SOCKET))
}

/// The listening socket and its clients.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
    clients: BTreeMap<u64, Client>,
    last: u64,
    /// Until when nobody is taken in, since the last attempt failed: descriptors may have run out, and what waits
    /// would wake us for ever.
    pause: Option<Time>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// By when it must have asked, or read; `None` while the answer is ours to give.
    deadline: Option<Time>,
    answered: bool,
}

impl ControlServer {
    /// Makes the socket, readable and writable for its owner and group.
    ///
    /// # Errors
    /// When it cannot be made; the text tells why and what to do.
    pub fn bind(path: &Path) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!("cannot make the control socket {}: {error}", path.display())
        };
        if let Ok(about) = std::fs::symlink_metadata(path) {
            use std::os::unix::fs::FileTypeExt;
            if !about.file_type().is_socket() {
                return Err(failed(
                    &"something that is not a socket has this name (choose another with --control)",
                ));
            }
            match UnixStream::connect(path) {
                Ok(_) => {
                    return Err(failed(&"another instance answers there (choose another with --control)"));
                }
                Err(_) => std::fs::remove_file(path).map_err(|error| failed(&error))?,
            }
        }
        let listener = UnixListener::bind(path).map_err(|error| failed(&error))?;
        listener.set_nonblocking(true).map_err(|error| failed(&error))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
            .map_err(|error| failed(&error))?;
        let about = std::fs::metadata(path).map_err(|error| failed(&error))?;
        let identity = (about.dev(), about.ino());
        Ok(Self { listener, path: path.to_owned(), identity, clients: BTreeMap::new(), last: 0, pause: None })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Watches the socket.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn watch(&self, poll: &Poll) -> io::Result<()> {
        poll.add(&self.listener, Token::Control, Interest::Read)
    }

    /// Takes in whoever connects, and may.
    pub fn accept(&mut self, now: Time, poll: &Poll) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    poll.remove(&self.listener);
                    self.pause = Some(now + PAUSE);
                    return;
                }
            };
            self.last += 1;
            let id = self.last;
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let refusal = if self.clients.len() >= MAX_CLIENTS {
                Some(format!("{MAX_CLIENTS} control clients are connected already"))
            } else {
                peer::refuse(&stream)
            };
            let deadline = Some(now + TIME_TO_ASK);
            let mut client =
                Client { stream, input: Vec::new(), output: Vec::new(), deadline, answered: false };
            if let Some(reason) = refusal {
                client.push(&Answer::failed(reason));
                let _ = client.flush();
                continue;
            }
            if poll.add(&client.stream, Token::Client(id), Interest::Read).is_ok() {
                self.clients.insert(id, client);
            }
        }
    }

    /// A client can be read or written; gives its request when it is complete.
    pub fn serve(&mut self, now: Time, poll: &Poll, id: u64) -> Option<Request> {
        let client = self.clients.get_mut(&id)?;
        if !client.output.is_empty() {
            self.push_on(now, poll, id);
            return None;
        }
        let mut buffer = [0_u8; MAX_REQUEST];
        match client.stream.read(&mut buffer) {
            Ok(0) => self.drop_client(poll, id),
            Ok(_) if client.deadline.is_none() || client.answered => {
                // It has asked already: more of it is not read, or it would wake us for ever.
                self.drop_client(poll, id);
            }
            Ok(length) => {
                client.input.extend_from_slice(&buffer[..length]);
                match Request::read(&client.input)? {
                    Ok(request) => {
                        client.deadline = None;
                        return Some(request);
                    }
                    Err(reason) => self.answer(now, poll, id, &Answer::failed(reason)),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.drop_client(poll, id),
        }
        None
    }

    /// Sends a line; a line with a verdict is the last one.
    pub fn answer(&mut self, now: Time, poll: &Poll, id: u64, answer: &Answer) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.push(answer);
        client.answered |= answer.ok.is_some();
        self.push_on(now, poll, id);
    }

    fn push_on(&mut self, now: Time, poll: &Poll, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        match client.flush() {
            Ok(()) if client.output.is_empty() => {
                if client.answered {
                    return self.drop_client(poll, id);
                }
                client.deadline = None;
                let _ = poll.change(&client.stream, Token::Client(id), Interest::Read);
            }
            Ok(()) if client.output.len() <= MAX_UNREAD => {
                client.deadline.get_or_insert(now + TIME_TO_READ);
                let _ = poll.change(&client.stream, Token::Client(id), Interest::Write);
            }
            Ok(()) | Err(_) => self.drop_client(poll, id),
        }
    }

    /// Lets go of whoever is late, and takes clients in again after a pause.
    pub fn expire(&mut self, now: Time, poll: &Poll) {
        if self.pause.take_if(|until| *until <= now).is_some() && self.watch(poll).is_err() {
            self.pause = Some(now + PAUSE);
        }
        let late: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.deadline.is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.drop_client(poll, id);
        }
    }

    /// When somebody will be late, or the pause is over.
    pub fn next_deadline(&self) -> Option<Time> {
        self.clients.values().filter_map(|client| client.deadline).chain(self.pause).min()
    }

    /// Gives everybody a last chance to read what was written, before the server exits.
    pub fn finish(&mut self) {
        for client in self.clients.values_mut() {
            let _ = client.flush();
        }
    }

    fn drop_client(&mut self, poll: &Poll, id: u64) {
        if let Some(client) = self.clients.remove(&id) {
            poll.remove(&client.stream);
        }
    }
}

impl Client {
    fn push(&mut self, answer: &Answer) {
        if let Ok(line) = serde_json::to_vec(answer) {
            self.output.extend_from_slice(&line);
            self.output.push(b'\n');
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Somebody may have put another one in its place.
        if std::fs::metadata(&self.path).is_ok_and(|about| (about.dev(), about.ino()) == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
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
            let server = ControlServer::bind(&folder.path().join(SOCKET)).expect("bind");
            let poll = Poll::new().expect("epoll");
            server.watch(&poll).expect("watch");
            Self { server, poll, folder, now: Time::default() }
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
        BufReader::new(stream).read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).expect("JSON")
    }

    #[test]
    fn a_request_is_taken_and_answered_once() {
        let mut desk = Desk::open();
        let (stream, id, request) = desk.ask("{\"command\":\"reload\",\"wait\":true}\n");
        assert_eq!(request, Some(Request::Reload { wait: true }));
        desk.server.answer(desk.now, &desk.poll, id, &Answer::done());
        assert_eq!(line(stream).ok, Some(true));
        assert!(desk.server.clients.is_empty());
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_however_it_is_cut() {
        let line = format!("{{\"command\":\"status\"}}{}\n", " ".repeat(MAX_REQUEST));
        let refused = Request::read(line.as_bytes()).and_then(Result::err);
        assert!(refused.as_ref().is_some_and(|reason| reason.contains("at most 4096 bytes")), "{refused:?}");
        let cut = Request::read(&line.as_bytes()[..line.len() - 1]).and_then(Result::err);
        assert_eq!(cut, refused);
    }

    #[test]
    fn nonsense_is_answered_with_the_reason() {
        let mut desk = Desk::open();
        for nonsense in
            ["{}\n", "stop\n", "{\"command\":\"dance\"}\n", "\u{0}\n", &format!("{}\n", "x".repeat(4095))]
        {
            let (stream, _, request) = desk.ask(nonsense);
            assert_eq!(request, None);
            assert!(line(stream).error.expect("a reason").starts_with("no such request"), "{nonsense}");
        }
        let (stream, _, _) = desk.ask(&"x".repeat(MAX_REQUEST));
        assert!(line(stream).error.expect("a reason").contains("one line"));
    }

    #[test]
    fn a_silent_client_is_let_go() {
        let mut desk = Desk::open();
        let _stream = desk.connect();
        assert_eq!(desk.server.next_deadline(), Some(Time::default() + TIME_TO_ASK));
        desk.server.expire(Time::default() + TIME_TO_ASK, &desk.poll);
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
        assert!(desk.server.clients.is_empty(), "more waits to be read than is kept");
    }

    #[test]
    fn only_so_many_clients_are_served() {
        let mut desk = Desk::open();
        let held: Vec<_> = (0..MAX_CLIENTS).map(|_| desk.connect()).collect();
        let (stream, _) = desk.connect();
        assert!(line(stream).error.expect("a reason").contains("already"));
        drop(held);
    }

    #[test]
    fn a_live_socket_is_not_taken_over_and_a_stale_one_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(SOCKET);
        drop(UnixListener::bind(&path).expect("a socket that nobody serves"));
        let server = ControlServer::bind(&path).expect("it is stale");
        assert!(ControlServer::bind(&path).expect_err("it is live").contains("another instance"));
        drop(server);
        assert!(!path.exists());
        std::fs::write(&path, "").expect("a file");
        assert!(ControlServer::bind(&path).expect_err("a file").contains("not a socket"));
    }
}
