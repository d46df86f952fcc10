//! One client's connection: what it waits for, and what became of it.

use super::Shape;
use super::ledger::Failure;
use super::response::{Asked, Head, Reader, Wrong};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, connect,
    getpeername, getsockname, getsockopt, recv, send, setsockopt, socket, sockopt,
};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use testkit::Address;
use testkit::delay::DelayLine;

/// The client's end of a connection, by which the server's end can be found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// A TCP connection's address and port.
    Tcp(SocketAddr),
    /// A Unix socket's name, which each client has its own of.
    Unix(Vec<u8>),
}

impl Name {
    /// From what getsockname(2) or getpeername(2) gave; `None` for a socket without a name.
    pub fn of(address: &SockaddrStorage) -> Option<Self> {
        if let Some(v4) = address.as_sockaddr_in() {
            return Some(Self::Tcp(SocketAddr::V4((*v4).into())));
        }
        if let Some(v6) = address.as_sockaddr_in6() {
            return Some(Self::Tcp(SocketAddr::V6((*v6).into())));
        }
        let unix = address.as_unix_addr()?;
        Some(Self::Unix(unix.as_abstract()?.to_vec()))
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(name) => write!(f, "unix @{}", String::from_utf8_lossy(name)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    /// Something is asked, or nothing yet or any more.
    Open,
    /// Everything is answered, and the server is to close.
    Closing,
}

/// Where a connection stands after it was driven as far as it goes.
#[derive(Debug)]
pub(super) enum State {
    /// It waits for the server.
    Waiting,
    /// Everything asked is answered, and more can be asked.
    Rest,
    /// It has ended as it should.
    Over,
    /// The server ended it while nothing of a request was on its way.
    EndedIdle {
        /// Not in order.
        reset: bool,
    },
    /// The server ended it in order, and a request and that end have met on the way.
    Crossed,
    /// It has failed.
    Failed(Failure, String),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    /// Unique in the run.
    pub(super) number: u64,
    pub(super) shape: Shape,
    /// The stream of load that it belongs to.
    pub(super) stream: usize,
    pub(super) address: usize,
    /// By when the server must have done something.
    pub(super) deadline: Instant,
    /// Requests that wait for their answers.
    pub(super) asked: VecDeque<Asked>,
    /// Requests that the server told to repeat elsewhere.
    pub(super) withdrawn: u64,
    pub(super) answered: u64,
    /// Bytes that have come.
    pub(super) received: u64,
    /// The kill that took its worker.
    pub(super) kill: Option<usize>,
    /// Who answered last.
    pub(super) pid: u32,
    /// The client has said that this request is its last.
    pub(super) last: bool,
    /// How long it takes at least until an answer can be here.
    pub(super) round_trip: Duration,
    /// When the first of those that wait was written.
    written: Option<Instant>,
    stage: Stage,
    out: Vec<u8>,
    sent: usize,
    reader: Reader,
}

impl Connection {
    /// Begins to connect.
    pub(super) fn open(
        target: &Address,
        shape: Shape,
        window: Option<usize>,
    ) -> Result<Self, (Failure, String)> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let family = match target {
            Address::Tcp(SocketAddr::V4(_)) => AddressFamily::Inet,
            Address::Tcp(SocketAddr::V6(_)) => AddressFamily::Inet6,
            Address::Unix(_) => AddressFamily::Unix,
        };
        let local = |error: Errno| (Failure::Local, error.to_string());
        let socket = socket(family, SockType::Stream, flags, None).map_err(local)?;
        if let Some(bytes) = window {
            setsockopt(&socket, sockopt::RcvBuf, &bytes).map_err(local)?;
        }
        let raw = socket.as_raw_fd();
        let began = match target {
            Address::Tcp(address) => {
                setsockopt(&socket, sockopt::TcpNoDelay, &true).map_err(local)?;
                connect(raw, &SockaddrStorage::from(*address))
            }
            Address::Unix(path) => {
                // The kernel finds an unused name; it identifies this client at the server's end.
                bind(raw, &UnixAddr::new_unnamed()).map_err(local)?;
                connect(raw, &UnixAddr::new(path).map_err(local)?)
            }
        };
        let stage = match began {
            Ok(()) => Stage::Open,
            Err(Errno::EINPROGRESS) => Stage::Connecting,
            Err(error) => return Err(not_connected(error)),
        };
        Ok(Self {
            socket,
            number: 0,
            shape,
            stream: 0,
            address: 0,
            deadline: Instant::now(),
            asked: VecDeque::new(),
            withdrawn: 0,
            answered: 0,
            received: 0,
            kill: None,
            pid: 0,
            last: false,
            round_trip: Duration::ZERO,
            written: None,
            stage,
            out: Vec::new(),
            sent: 0,
            reader: Reader::default(),
        })
    }

    /// The client's end, as the server sees it.
    pub(super) fn name(&self) -> Option<Name> {
        let raw = self.socket.as_raw_fd();
        let name = Name::of(&getsockname::<SockaddrStorage>(raw).ok()?)?;
        let peer = getpeername::<SockaddrStorage>(raw)
            .ok()
            .as_ref()
            .and_then(Name::of);
        Some(match (name, peer) {
            // A delay line swaps the addresses, so that the server meets a client from where the
            // client went to.
            (Name::Tcp(mut name), Some(Name::Tcp(peer))) if DelayLine::is_far(peer.ip()) => {
                name.set_ip(peer.ip());
                Name::Tcp(name)
            }
            (name, _) => name,
        })
    }

    /// Where requests are written to before they are sent.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        &mut self.out
    }

    /// Whether everything asked has been written.
    pub(super) fn is_sent(&self) -> bool {
        self.stage != Stage::Connecting && self.sent == self.out.len()
    }

    /// Whether it is the server's turn.
    pub(super) fn waits(&self) -> bool {
        self.stage != Stage::Open || !self.asked.is_empty()
    }

    /// What it means that the deadline has passed.
    pub(super) fn timed_out(&self) -> (Failure, String) {
        match self.stage {
            Stage::Connecting => (Failure::TimedOut, "not connected".to_owned()),
            Stage::Closing => (Failure::NotClosed, "answered, but not closed".to_owned()),
            Stage::Open if !self.is_sent() => (
                Failure::TimedOut,
                format!("{} of {} bytes sent", self.sent, self.out.len()),
            ),
            Stage::Open => (Failure::TimedOut, self.reader.progress(self.asked.front())),
        }
    }

    /// Goes as far as it can without waiting. At most `limit` bytes are read.
    pub(super) fn drive(
        &mut self,
        buffer: &mut [u8],
        mut limit: usize,
        mut each: impl FnMut(Asked, &Head),
    ) -> State {
        match self.send() {
            Ok(true) => {}
            Ok(false) => return State::Waiting,
            Err(state) => return state,
        }
        while limit > 0 {
            let wanted = buffer.len().min(limit);
            let length = match recv(
                self.socket.as_raw_fd(),
                &mut buffer[..wanted],
                MsgFlags::empty(),
            ) {
                Ok(0) => return self.ended(None),
                Ok(length) => length,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(error) => return self.ended(Some(error)),
            };
            limit -= length;
            self.received += length as u64;
            if let Err((failure, detail)) = self.take(&buffer[..length], &mut each) {
                return State::Failed(failure, detail);
            }
        }
        match self.stage {
            Stage::Open if self.asked.is_empty() => State::Rest,
            _ => State::Waiting,
        }
    }

    /// Whether everything is written; a state when it is over.
    fn send(&mut self) -> Result<bool, State> {
        let raw = self.socket.as_raw_fd();
        if self.stage == Stage::Connecting {
            match getsockopt(&self.socket, sockopt::SocketError) {
                Ok(0) if getpeername::<SockaddrStorage>(raw).is_err() => return Ok(false),
                Ok(0) => self.stage = Stage::Open,
                Ok(code) => {
                    let (failure, detail) = not_connected(Errno::from_raw(code));
                    return Err(State::Failed(failure, detail));
                }
                Err(error) => return Err(State::Failed(Failure::Local, error.to_string())),
            }
        }
        while self.sent < self.out.len() {
            self.written.get_or_insert_with(Instant::now);
            match send(raw, &self.out[self.sent..], MsgFlags::MSG_NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                // An answer may come before the request is whole; it is read below.
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                // Nothing of it was written: the client may ask elsewhere.
                Err(_) if self.sent == 0 && self.answered > 0 => {
                    self.withdrawn = self.asked.len() as u64;
                    self.asked.clear();
                    return Err(State::EndedIdle { reset: true });
                }
                // An error page may stand before the end; what was read tells more than this error.
                Err(error) => return Err(self.ended(Some(error))),
            }
        }
        Ok(true)
    }

    fn take(&mut self, mut bytes: &[u8], each: &mut impl FnMut(Asked, &Head)) -> Result<(), Wrong> {
        while !bytes.is_empty() {
            let Some(asked) = self.asked.front().copied() else {
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
                return Err((
                    Failure::Surplus,
                    format!("{} bytes too many: {text:?}", bytes.len()),
                ));
            };
            let Some(head) = self.reader.feed(&mut bytes, &asked)? else {
                return Ok(());
            };
            self.asked.pop_front();
            self.answered += 1;
            // For whatever else waits that is too early, and no excuse.
            self.written = self.written.filter(|_| !self.asked.is_empty());
            self.pid = head.pid;
            each(asked, &head);
            if head.close {
                // It has said that it answers nothing more.
                self.withdrawn += self.asked.len() as u64;
                self.asked.clear();
                self.stage = Stage::Closing;
            } else if self.last && self.asked.is_empty() {
                self.stage = Stage::Closing;
            }
        }
        Ok(())
    }

    /// What the connection's end means now; `error` for one that was not in order.
    fn ended(&mut self, error: Option<Errno>) -> State {
        let how = error.map_or_else(|| "closed".to_owned(), |error| error.to_string());
        let reset = error.is_some();
        if self.stage == Stage::Closing {
            // Requests that the server refused to read make its end a reset.
            return if reset && self.withdrawn == 0 {
                State::Failed(Failure::CloseReset, how)
            } else {
                State::Over
            };
        }
        if self.asked.is_empty() {
            return State::EndedIdle { reset };
        }
        let asked = self.asked.front();
        let detail = format!(
            "{how} {}, request {}",
            self.reader.progress(asked),
            asked.map_or(0, |a| a.id)
        );
        if matches!(error, Some(Errno::ETIMEDOUT | Errno::EHOSTUNREACH)) {
            return State::Failed(Failure::TimedOut, detail);
        }
        if self.reader.midway() {
            return State::Failed(Failure::Truncated, detail);
        }
        if self.sent == 0 {
            return State::Failed(Failure::ResetBefore, detail);
        }
        let crossed = |written: Instant| written.elapsed() < self.round_trip;
        if !reset && self.answered > 0 && self.written.is_some_and(crossed) {
            return State::Crossed;
        }
        State::Failed(
            if reset {
                Failure::ResetAfter
            } else {
                Failure::Unanswered
            },
            detail,
        )
    }
}

fn not_connected(error: Errno) -> (Failure, String) {
    let failure = match error {
        // EAGAIN: a Unix socket's queue is full.
        Errno::ECONNREFUSED | Errno::ENOENT | Errno::EAGAIN => Failure::Refused,
        Errno::ETIMEDOUT | Errno::EHOSTUNREACH | Errno::ENETUNREACH => Failure::TimedOut,
        Errno::EADDRNOTAVAIL
        | Errno::EADDRINUSE
        | Errno::EMFILE
        | Errno::ENFILE
        | Errno::ENOMEM
        | Errno::ENOBUFS => Failure::Local,
        _ => Failure::ResetBefore,
    };
    (failure, format!("connecting: {error}"))
}
