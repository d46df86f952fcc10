//! The control socket: a Unix stream socket on which an operator asks and is answered in lines of JSON.
//!
//! ```text
//! -> {"command":"reload","wait":true}
//! <- {"version":1,"progress":"worker 9 (slot 0, generation 2) is ready"}
//! <- {"version":1,"ok":true,"generation":2}
//! ```
//!
//! A client gets one answer to one request. It is bounded in everything (number, size of the request, time to make it,
//! size of what waits to be read by it), so a slow, dead or lying client costs the others nothing: when there is no room
//! for one more, whoever has asked nothing for longest has to go. What a client may ask is its [`Role`]. This module
//! does not know what a request does.
//!
//! A child of ours that is to know how things are does not connect: it inherits one end of a pair of sockets, the other
//! end of which is [taken in](ControlServer::take_in) as a *lasting* client, which may ask again and again.

pub(crate) mod client;
pub(crate) mod discovery;
pub(crate) mod peer;
pub(crate) mod protocol;
pub(crate) mod resume;
#[cfg(test)]
pub(crate) mod tests;

pub use protocol::Request;
pub(crate) use protocol::{Answer, Progress, Role, VERSION};

use crate::process::poll::{Interest, Poll, Token};
use nix::unistd::Gid;
use prefork_core::Time;
use protocol::MAX_REQUEST;
pub(crate) use protocol::event_line;
use std::collections::BTreeMap;
use std::io;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of the socket in a runtime directory.
pub(crate) const SOCKET: &str = "prefork.sock";

/// Clients at the same time, and among them those who wait for a verdict, and those who are told of events.
const MAX_CLIENTS: usize = 128;
const MAX_WAITING: usize = 64;
const MAX_FOLLOWERS: usize = 32;
/// The most clients taken in before others have their turn.
const AT_ONCE: usize = 32;
/// What may wait to be read by a client, and by one that is told of events, which are never the last.
const MAX_UNREAD: usize = 4 << 20;
const MAX_UNREAD_EVENTS: usize = 256 << 10;
const TIME_TO_ASK: Duration = Duration::from_secs(10);
const TIME_TO_READ: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(1);

/// Where the server's small files go: `$RUNTIME_DIRECTORY`, else `$XDG_RUNTIME_DIR`, else for root `/run`.
pub(crate) fn runtime_directory() -> Option<PathBuf> {
    let directory =
        |name| std::env::var_os(name).filter(|path: &std::ffi::OsString| !path.is_empty());
    // systemd separates several runtime directories by colons.
    directory("RUNTIME_DIRECTORY")
        .and_then(|paths| std::env::split_paths(&paths).next())
        .or_else(|| directory("XDG_RUNTIME_DIR").map(PathBuf::from))
        .or_else(|| {
            nix::unistd::geteuid()
                .is_root()
                .then(|| PathBuf::from("/run"))
        })
}

/// The file of the control socket of a server with this name, or with none.
pub(crate) fn socket_name(name: Option<&str>) -> String {
    name.map_or_else(|| SOCKET.to_owned(), |name| format!("prefork-{name}.sock"))
}

/// Where the control socket is by default: in the [runtime directory](runtime_directory).
pub(crate) fn default_path(name: Option<&str>) -> Option<PathBuf> {
    runtime_directory().map(|directory| directory.join(socket_name(name)))
}

/// The clients, and the socket on which they come, if there is one.
#[derive(Debug, Default)]
pub(crate) struct ControlServer {
    door: Option<Door>,
    clients: BTreeMap<u64, Client>,
    last: u64,
    /// The group that may read.
    readers: Option<Gid>,
}

/// The listening socket.
#[derive(Debug)]
struct Door {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
    /// Until when nobody is taken in, since the last attempt failed: descriptors may have run out, and what waits
    /// would wake us for ever.
    pause: Option<Time>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    role: Role,
    /// It may ask again.
    lasting: bool,
    stage: Stage,
    input: Vec<u8>,
    output: Vec<u8>,
    /// By when it must have read something.
    read_by: Option<Time>,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The client's, until then.
    Asks { by: Option<Time> },
    /// Ours: an answer.
    Waits,
    /// Ours, again and again: events.
    Follows,
    /// It was answered.
    Answered,
}

impl ControlServer {
    /// Makes the socket, usable for its owner and group: ours, or that of the `readers`.
    ///
    /// # Errors
    /// When it cannot be made; the text tells why and what to do.
    pub(crate) fn bind(&mut self, path: &Path, readers: Option<Gid>) -> Result<(), String> {
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
                    return Err(failed(
                        &"another instance answers there (choose another with --control, or a --name)",
                    ));
                }
                Err(_) => std::fs::remove_file(path).map_err(|error| failed(&error))?,
            }
        }
        let listener = UnixListener::bind(path).map_err(|error| failed(&error))?;
        listener
            .set_nonblocking(true)
            .map_err(|error| failed(&error))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
            .map_err(|error| failed(&error))?;
        if let Some(readers) = readers {
            std::os::unix::fs::chown(path, None, Some(readers.as_raw())).map_err(|error| {
                failed(&format_args!(
                    "it cannot be given to group {readers}: {error} (run as root, or as a member of the group)"
                ))
            })?;
        }
        let about = std::fs::metadata(path).map_err(|error| failed(&error))?;
        let identity = (about.dev(), about.ino());
        self.readers = readers;
        self.door = Some(Door {
            listener,
            path: path.to_owned(),
            identity,
            pause: None,
        });
        Ok(())
    }

    /// Watches the socket.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn watch(&self, poll: &Poll) -> io::Result<()> {
        self.door.as_ref().map_or(Ok(()), |door| {
            poll.add(&door.listener, Token::Control, Interest::Read)
        })
    }

    /// Takes in whoever connects, and may.
    pub(crate) fn accept(&mut self, now: Time, poll: &Poll) {
        for _ in 0..AT_ONCE {
            let Some(door) = &mut self.door else { return };
            let stream = match door.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    poll.remove(&door.listener);
                    door.pause = Some(now + PAUSE);
                    return;
                }
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let role =
                peer::role(&stream, self.readers).and_then(|role| match self.make_room(poll) {
                    true => Ok(role),
                    false => Err(format!(
                        "{MAX_CLIENTS} control clients are being served already"
                    )),
                });
            let stage = Stage::Asks {
                by: Some(now + TIME_TO_ASK),
            };
            match role {
                Ok(role) => drop(self.admit(poll, Client::new(stream, role, stage))),
                Err(reason) => {
                    let mut client = Client::new(stream, Role::Read, stage);
                    client.push(&Answer::failed(reason).line());
                    let _ = client.flush();
                }
            }
        }
    }

    /// Takes in a lasting client, one of our own children: it has the other end.
    ///
    /// # Errors
    /// Those of fcntl(2) and epoll_ctl(2).
    pub(crate) fn take_in(
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

    /// Lets go of all lasting clients: they read the end.
    pub(crate) fn dismiss(&mut self, poll: &Poll) {
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

    /// Whether there is room for one more. If there is none, whoever has asked nothing for longest has to go.
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

    /// A client can be read or written; gives its request when it is complete, and it may ask for that.
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
                match request.and_then(|request| self.may(id, request)) {
                    Ok(request) => return Some(request),
                    Err(reason) => self.answer(now, poll, id, &Answer::failed(reason)),
                }
            }
            // It has asked already: more of it is not read, or it would wake us for ever.
            Ok(_) => self.drop_client(poll, id),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.drop_client(poll, id),
        }
        None
    }

    /// Whether a client may ask for that, and whether there is room for it.
    fn may(&self, id: u64, request: Request) -> Result<Request, String> {
        let role = self.clients.get(&id).map(|client| client.role);
        if role.is_none_or(|role| role < request.needs()) {
            return Err(
                "you may only read: status, events, config (ask as root or as the server's user)"
                    .to_owned(),
            );
        }
        match request {
            Request::Events { follow: true, .. } if self.count(Stage::Follows) >= MAX_FOLLOWERS => {
                Err(format!("{MAX_FOLLOWERS} clients follow the events already"))
            }
            _ if self.count(Stage::Waits) > MAX_WAITING => {
                Err(format!("{MAX_WAITING} clients wait for an answer already"))
            }
            _ => Ok(request),
        }
    }

    /// Sends a line; a line with a verdict is the last one.
    pub(crate) fn answer(&mut self, now: Time, poll: &Poll, id: u64, answer: &Answer) {
        self.send(now, poll, id, &answer.line(), answer.ok.is_some());
    }

    /// Sends lines that are written already; `last`: with the verdict.
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

    /// Tells a client of events from now on.
    pub(crate) fn follow(&mut self, id: u64) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.stage = Stage::Follows;
        }
    }

    /// Tells whoever follows of an event.
    pub(crate) fn tell(&mut self, now: Time, poll: &Poll, line: &[u8]) {
        let follows =
            |(id, client): (&u64, &Client)| (client.stage == Stage::Follows).then_some(*id);
        for id in self.clients.iter().filter_map(follows).collect::<Vec<_>>() {
            self.send(now, poll, id, line, false);
        }
    }

    /// Whether anybody follows.
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
                // Whoever reads a little of it has as long again for the rest.
                if client.read_by.is_none() || client.output.len() < before {
                    client.read_by = Some(now + TIME_TO_READ);
                }
                let _ = poll.change(&client.stream, Token::Client(id), Interest::Write);
            }
            Ok(()) | Err(_) => self.drop_client(poll, id),
        }
    }

    /// Lets go of whoever is late, and takes clients in again after a pause.
    pub(crate) fn expire(&mut self, now: Time, poll: &Poll) {
        if let Some(door) = &mut self.door
            && door.pause.take_if(|until| *until <= now).is_some()
            && poll
                .add(&door.listener, Token::Control, Interest::Read)
                .is_err()
        {
            door.pause = Some(now + PAUSE);
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

    /// When somebody will be late, or the pause is over.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let pause = self.door.as_ref().and_then(|door| door.pause);
        self.clients
            .values()
            .filter_map(Client::deadline)
            .chain(pause)
            .min()
    }

    /// Gives everybody a last chance to read what was written, before the server exits.
    pub(crate) fn finish(&mut self) {
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

    /// By when it must have done something.
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

impl Drop for Door {
    fn drop(&mut self) {
        // Somebody may have put another one in its place.
        if std::fs::metadata(&self.path)
            .is_ok_and(|about| (about.dev(), about.ino()) == self.identity)
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
