//! The control socket: a Unix stream socket on which an operator asks and is answered in lines of
//! JSON.
//!
//! ```text
//! -> {"command":"reload","wait":true}
//! <- {"version":1,"progress":"worker 9 (slot 0, generation 2) is ready"}
//! <- {"version":1,"ok":true,"generation":2}
//! ```
//!
//! A client gets one answer to one request. It is bounded in everything (number, size of the
//! request, time to send it, size of the output that it has not read), so a slow, dead or lying
//! client costs the others nothing: when all places are taken, the client that has been silent for
//! longest is dropped. What a client may request depends on its [`Role`]. This module does not know
//! what a request does.
//!
//! A child of the supervisor that needs the status does not connect: it inherits one end of a
//! socket pair, the other end of which is [admitted](ControlServer::admit_lasting) as a *lasting*
//! client, which may ask again and again.
//!
//! * this file – the server; `peer` – the role of a client; `resume` – the server over an upgrade
//!   in place;
//! * `client` – the operator's end; `discovery` – where the socket of a running server is.

pub(crate) mod client;
pub(crate) mod discovery;
pub(crate) mod peer;
pub(crate) mod resume;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use crate::api::answer::{Answer, event_line};
use crate::api::request::{MAX_REQUEST, RequestError};
pub(crate) use crate::api::request::{Request, Role, VERSION};
pub(crate) use crate::api::status::Progress;
pub(crate) use crate::config::runtime_directory::runtime_directory;
use crate::config::runtime_directory::{RuntimeDirectoryError, remake_directory};
use crate::process::poll::{Interest, Poll, Token};
use client::connection::connect_within;
use nix::unistd::Gid;
use peer::PeerError;
use prefork_core::Time;
use std::collections::BTreeMap;
use std::io;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Concurrent clients, and among them those that wait for a verdict, and those that follow events.
const MAX_CLIENTS: usize = 128;
const MAX_WAITING: usize = 64;
const MAX_FOLLOWERS: usize = 32;
/// The most clients accepted before others have their turn.
const MAX_ACCEPTS: usize = 32;
/// The most unread output of a client, in bytes, and of one that follows events, which never end.
const MAX_UNREAD: usize = 4 << 20;
const MAX_UNREAD_EVENTS: usize = 256 << 10;
const TIME_TO_ASK: Duration = Duration::from_secs(10);
const TIME_TO_READ: Duration = Duration::from_secs(10);
/// How long another instance at the same path may take to accept.
const TIME_TO_CONNECT: Duration = Duration::from_secs(1);
/// How long no client is accepted after accept(2) has failed.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A control socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the control socket {}: {problem}", path.display())]
pub(crate) struct BindError {
    path: PathBuf,
    problem: BindProblem,
}

/// There is no control socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Directory(#[from] RuntimeDirectoryError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("cannot watch the control socket: {0}")]
    Watch(io::Error),
}

impl OpenError {
    /// Whether another server would answer in this one's place.
    pub(crate) fn is_in_use(&self) -> bool {
        matches!(self, Self::Bind(error) if matches!(error.problem, BindProblem::InUse))
    }
}

#[derive(Debug, thiserror::Error)]
enum BindProblem {
    #[error("something that is not a socket has this name (choose another with --control)")]
    NotASocket,
    #[error(
        "another server answers there (give this one a --name, or a path of its own with --control)"
    )]
    InUse,
    #[error(
        "it cannot be given to group {group}: {error} (run as root, or as a member of the group)"
    )]
    Group { group: Gid, error: io::Error },
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A client or a request that is rejected, in words for the client.
#[derive(Debug, thiserror::Error)]
enum Rejection {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("you may only read: status, events, config (ask as root or as the server's user)")]
    ReadOnly,
    #[error("{MAX_CLIENTS} control clients are being served already")]
    Clients,
    #[error("{MAX_FOLLOWERS} clients follow the events already")]
    Followers,
    #[error("{MAX_WAITING} clients wait for an answer already")]
    Waiting,
}

/// The control socket, if there is one, and its clients.
#[derive(Debug, Default)]
pub(crate) struct ControlServer {
    listener: Option<Listener>,
    clients: BTreeMap<u64, Client>,
    last: u64,
    /// The group that may read.
    readers: Option<Gid>,
}

/// The listening socket.
#[derive(Debug)]
struct Listener {
    socket: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
    /// Until when no client is accepted, as the last attempt failed: descriptors may have run out,
    /// and the clients in the queue would wake the loop for ever.
    pause: Option<Time>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    role: Role,
    /// It may send further requests.
    lasting: bool,
    stage: Stage,
    input: Vec<u8>,
    output: Vec<u8>,
    /// By when it must have read something.
    read_by: Option<Time>,
}

/// The turn that a conversation is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The client's, to send a request until then.
    Asks { by: Option<Time> },
    /// The server's, to answer.
    Waits,
    /// The server's, to send events.
    Follows,
    /// The verdict was written.
    Answered,
}

impl ControlServer {
    /// Makes the socket, usable by its owner and group: the server's own, or that of the `readers`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn bind(&mut self, path: &Path, readers: Option<Gid>) -> Result<(), BindError> {
        self.listener = Some(Listener::bind(path, readers).map_err(|problem| BindError {
            path: path.to_owned(),
            problem,
        })?);
        self.readers = readers;
        Ok(())
    }

    /// Makes the socket again if its file is gone, and its directory, too. Returns its path, or
    /// `None` when it is where it was.
    ///
    /// # Errors
    /// When it cannot be made; the old one, which no client can reach, stays in use.
    pub(crate) fn restore(&mut self, poll: &Poll) -> Result<Option<PathBuf>, OpenError> {
        let lost = self.listener.as_ref().filter(|it| !it.is_present());
        let Some(path) = lost.map(|listener| listener.path.clone()) else {
            return Ok(None);
        };
        // If it fails, binding says why.
        let _ = remake_directory(&path);
        let old = self.listener.take();
        match self.bind(&path, self.readers) {
            Ok(()) => {
                if let Some(old) = old {
                    poll.remove(&old.socket);
                }
                self.watch(poll).map_err(OpenError::Watch)?;
                Ok(Some(path))
            }
            Err(error) => {
                self.listener = old;
                Err(error.into())
            }
        }
    }

    /// Watches the socket.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn watch(&self, poll: &Poll) -> io::Result<()> {
        self.listener.as_ref().map_or(Ok(()), |listener| {
            poll.add(&listener.socket, Token::Control, Interest::Read)
        })
    }

    /// Accepts the clients that wait, and rejects those without a role.
    pub(crate) fn accept(&mut self, now: Time, poll: &Poll) {
        for _ in 0..MAX_ACCEPTS {
            let Some(listener) = &mut self.listener else {
                return;
            };
            let stream = match listener.socket.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    poll.remove(&listener.socket);
                    listener.pause = Some(now + ACCEPT_PAUSE);
                    return;
                }
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let stage = Stage::Asks {
                by: Some(now + TIME_TO_ASK),
            };
            match self.role(poll, &stream) {
                Ok(role) => drop(self.admit(poll, Client::new(stream, role, stage))),
                Err(rejection) => {
                    let mut client = Client::new(stream, Role::Read, stage);
                    client.push(&Answer::failed(rejection.to_string()).line());
                    let _ = client.flush();
                }
            }
        }
    }

    /// Returns the role of a new client, if a place is free or can be freed.
    fn role(&mut self, poll: &Poll, stream: &UnixStream) -> Result<Role, Rejection> {
        let role = peer::role(stream, self.readers)?;
        if self.make_room(poll) {
            Ok(role)
        } else {
            Err(Rejection::Clients)
        }
    }

    /// Admits a lasting client: one of the server's own children, which has the other end.
    ///
    /// # Errors
    /// Those of fcntl(2) and epoll_ctl(2).
    pub(crate) fn admit_lasting(
        &mut self,
        poll: &Poll,
        stream: UnixStream,
        role: Role,
    ) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let client = Client {
            lasting: true,
            ..Client::new(stream, role, Stage::Asks { by: None })
        };
        self.admit(poll, client)
    }

    /// Drops all lasting clients, which read the end of the stream.
    pub(crate) fn drop_lasting(&mut self, poll: &Poll) {
        let lasting: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.lasting)
            .map(|(id, _)| *id)
            .collect();
        for id in lasting {
            self.drop_client(poll, id);
        }
    }

    fn admit(&mut self, poll: &Poll, client: Client) -> io::Result<()> {
        self.last += 1;
        poll.add(&client.stream, Token::Client(self.last), Interest::Read)?;
        self.clients.insert(self.last, client);
        Ok(())
    }

    /// Returns whether a place is free, after dropping the client that has been silent for longest
    /// if need be.
    fn make_room(&mut self, poll: &Poll) -> bool {
        if self.clients.len() < MAX_CLIENTS {
            return true;
        }
        let idle = self
            .clients
            .iter()
            .filter_map(|(id, client)| match client.stage {
                Stage::Asks { by } => by.map(|by| (by, *id)),
                Stage::Waits | Stage::Follows | Stage::Answered => None,
            });
        match idle.min() {
            Some((_, id)) => self.drop_client(poll, id),
            None => return false,
        }
        true
    }

    fn count(&self, stage: Stage) -> usize {
        self.clients
            .values()
            .filter(|client| client.stage == stage && !client.lasting)
            .count()
    }

    /// Reads from or writes to a client that is ready for it; returns its request when that is
    /// complete and allowed.
    pub(crate) fn serve(&mut self, now: Time, poll: &Poll, id: u64) -> Option<Request> {
        let client = self.clients.get_mut(&id)?;
        if !client.output.is_empty() {
            self.push_on(now, poll, id);
            return None;
        }
        let mut buffer = [0_u8; MAX_REQUEST];
        match client.stream.read(&mut buffer) {
            Ok(0) => self.drop_client(poll, id),
            Ok(length) if matches!(client.stage, Stage::Asks { .. }) => {
                client.input.extend_from_slice(&buffer[..length]);
                let request = Request::read(&client.input)?;
                client.input = Vec::new();
                client.stage = Stage::Waits;
                match self.check(id, request) {
                    Ok(request) => return Some(request),
                    Err(rejection) => {
                        self.answer(now, poll, id, &Answer::failed(rejection.to_string()));
                    }
                }
            }
            // It has sent its request already: further input is not read, or it would wake the loop
            // for ever.
            Ok(_) => self.drop_client(poll, id),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.drop_client(poll, id),
        }
        None
    }

    /// Returns the request, if the client's role and the limits allow it.
    fn check(&self, id: u64, request: Result<Request, RequestError>) -> Result<Request, Rejection> {
        let request = request?;
        let role = self.clients.get(&id).map(|client| client.role);
        if role.is_none_or(|role| role < request.needs()) {
            return Err(Rejection::ReadOnly);
        }
        match request {
            Request::Events { follow: true, .. } if self.count(Stage::Follows) >= MAX_FOLLOWERS => {
                Err(Rejection::Followers)
            }
            _ if self.count(Stage::Waits) > MAX_WAITING => Err(Rejection::Waiting),
            _ => Ok(request),
        }
    }

    /// Sends a line; a line with a verdict is the last one.
    pub(crate) fn answer(&mut self, now: Time, poll: &Poll, id: u64, answer: &Answer) {
        self.send(now, poll, id, &answer.line(), answer.ok.is_some());
    }

    /// Sends rendered lines; `last` when the verdict is among them.
    pub(crate) fn send(&mut self, now: Time, poll: &Poll, id: u64, lines: &[u8], last: bool) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.push(lines);
        if last {
            client.stage = Stage::Answered;
        }
        self.push_on(now, poll, id);
    }

    /// Sends a client events from now on.
    pub(crate) fn follow(&mut self, id: u64) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.stage = Stage::Follows;
        }
    }

    /// Sends the line of an event to all clients that follow.
    pub(crate) fn broadcast(&mut self, now: Time, poll: &Poll, line: &[u8]) {
        let follows =
            |(id, client): (&u64, &Client)| (client.stage == Stage::Follows).then_some(*id);
        for id in self.clients.iter().filter_map(follows).collect::<Vec<_>>() {
            self.send(now, poll, id, line, false);
        }
    }

    /// Returns whether any client follows events.
    pub(crate) fn is_followed(&self) -> bool {
        self.clients
            .values()
            .any(|client| client.stage == Stage::Follows)
    }

    fn push_on(&mut self, now: Time, poll: &Poll, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let before = client.output.len();
        match client.flush() {
            Ok(()) if client.output.is_empty() => {
                client.read_by = None;
                if client.stage == Stage::Answered {
                    if !client.lasting {
                        return self.drop_client(poll, id);
                    }
                    client.stage = Stage::Asks { by: None };
                }
                let _ = poll.change(&client.stream, Token::Client(id), Interest::Read);
            }
            Ok(()) if client.output.len() <= client.most_unread() => {
                // A client that reads a part has as long again for the rest.
                if client.read_by.is_none() || client.output.len() < before {
                    client.read_by = Some(now + TIME_TO_READ);
                }
                let _ = poll.change(&client.stream, Token::Client(id), Interest::Write);
            }
            Ok(()) | Err(_) => self.drop_client(poll, id),
        }
    }

    /// Drops the clients whose time is over, and accepts clients again after a pause.
    pub(crate) fn expire(&mut self, now: Time, poll: &Poll) {
        if let Some(listener) = &mut self.listener
            && listener.pause.take_if(|until| *until <= now).is_some()
            && poll
                .add(&listener.socket, Token::Control, Interest::Read)
                .is_err()
        {
            listener.pause = Some(now + ACCEPT_PAUSE);
        }
        let late: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.deadline().is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.drop_client(poll, id);
        }
    }

    /// Returns when a client's time or the pause is over.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let pause = self.listener.as_ref().and_then(|listener| listener.pause);
        self.clients
            .values()
            .filter_map(Client::deadline)
            .chain(pause)
            .min()
    }

    /// Returns whether a client waits for the answer to its request.
    pub(crate) fn is_waiting(&self, id: u64) -> bool {
        self.clients
            .get(&id)
            .is_some_and(|client| client.stage == Stage::Waits)
    }

    /// Ends the streams of events with a verdict, and writes as much of the output as the clients'
    /// sockets take, before the server exits.
    pub(crate) fn finish(&mut self) {
        for client in self.clients.values_mut() {
            if client.stage == Stage::Follows {
                client.push(&Answer::done().line());
            }
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
    fn new(stream: UnixStream, role: Role, stage: Stage) -> Self {
        Self {
            stream,
            role,
            lasting: false,
            stage,
            input: Vec::new(),
            output: Vec::new(),
            read_by: None,
        }
    }

    /// Returns by when it must have sent or read something.
    fn deadline(&self) -> Option<Time> {
        match self.stage {
            Stage::Asks { by } if self.output.is_empty() => by,
            Stage::Asks { .. } | Stage::Waits | Stage::Follows | Stage::Answered => self.read_by,
        }
    }

    fn most_unread(&self) -> usize {
        if self.stage == Stage::Follows {
            MAX_UNREAD_EVENTS
        } else {
            MAX_UNREAD
        }
    }

    fn push(&mut self, lines: &[u8]) {
        self.output.extend_from_slice(lines);
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        let flushed = loop {
            if written == self.output.len() {
                break Ok(());
            }
            match self.stream.write(&self.output[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.output.drain(..written);
        flushed
    }
}

impl Listener {
    fn bind(path: &Path, readers: Option<Gid>) -> Result<Self, BindProblem> {
        if let Ok(about) = std::fs::symlink_metadata(path) {
            if !about.file_type().is_socket() {
                return Err(BindProblem::NotASocket);
            }
            // Neither does a server that is stopped hold up this one: its queue may be full.
            match connect_within(path, TIME_TO_CONNECT) {
                Ok(_) => return Err(BindProblem::InUse),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(BindProblem::InUse);
                }
                Err(_) => {}
            }
            std::fs::remove_file(path)?;
        }
        let socket = UnixListener::bind(path)?;
        socket.set_nonblocking(true)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        if let Some(group) = readers {
            std::os::unix::fs::chown(path, None, Some(group.as_raw()))
                .map_err(|error| BindProblem::Group { group, error })?;
        }
        let about = std::fs::metadata(path)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            identity: (about.dev(), about.ino()),
            pause: None,
        })
    }
}

impl Listener {
    /// Whether its file is where it was made.
    fn is_present(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|about| (about.dev(), about.ino()) == self.identity)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Another process may have put its own socket there.
        if self.is_present() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
