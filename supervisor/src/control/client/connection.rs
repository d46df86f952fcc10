//! A connection to the server that does not wait for ever.
//!
//! A supervisor that was stopped by a signal, or that hangs, still accepts connections: the kernel
//! does that. What tells it from a busy one is that it answers nothing. A request that takes its
//! time, like `reload --wait`, may be silent for long; meanwhile another connection asks for the
//! status now and then.

use super::ClientError;
use crate::api::answer::Answer;
use crate::api::request::Request;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use std::io;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the server may take for an answer that it has at once.
const TIME_TO_ANSWER: Duration = Duration::from_secs(10);
/// How long it may take for such an answer while it does something else for us: it may look up a
/// host name, during which it does nothing else.
const TIME_TO_SHOW_LIFE: Duration = Duration::from_secs(20);
/// How long a connection waits for a place in the queue.
const TIME_TO_CONNECT: Duration = Duration::from_secs(5);

/// A connection on which a request was, or will be, sent.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    line: Vec<u8>,
}

/// The process of the server, if this process can see it.
#[derive(Debug)]
pub(super) struct ServerProcess {
    pidfd: OwnedFd,
}

impl Connection {
    /// Connects to the server at `path`.
    ///
    /// # Errors
    /// When no server is there, or its queue stays full.
    pub(super) fn open(path: &Path) -> Result<Self, ClientError> {
        let stream = connect_within(path, TIME_TO_CONNECT).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => ClientError::silent(path, None, TIME_TO_CONNECT),
            _ => ClientError::Unreachable {
                path: path.to_owned(),
                error,
            },
        })?;
        Ok(Self {
            stream: BufReader::new(stream),
            path: path.to_owned(),
            line: Vec::new(),
        })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When the connection fails.
    pub(super) fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.stream.get_mut().write_all(&request.line()) {
            // A server that refuses this client closes at once; its reason can still be read.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(ClientError::Send {
                path: self.path.clone(),
                error,
            }),
            _ => Ok(()),
        }
    }

    /// Returns the next line of the answer to `request`; `None` at its end.
    ///
    /// # Errors
    /// When the connection fails, the server shows no life, or the line is no answer.
    pub(super) fn next(&mut self, request: &Request) -> Result<Option<Answer>, ClientError> {
        self.line.clear();
        let receive = |path: &Path, error| ClientError::Receive {
            path: path.to_owned(),
            error,
        };
        self.stream
            .get_ref()
            .set_read_timeout(Some(TIME_TO_ANSWER))
            .map_err(|error| receive(&self.path, error))?;
        loop {
            match self.stream.read_until(b'\n', &mut self.line) {
                Ok(_) if self.line.is_empty() => return Ok(None),
                Ok(_) => break,
                // What has been read of the line so far is kept.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if request.is_answered_at_once() {
                        let pid = peer(self.stream.get_ref());
                        return Err(ClientError::silent(&self.path, pid, TIME_TO_ANSWER));
                    }
                    check_life(&self.path)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(receive(&self.path, error)),
            }
        }
        let answer = Answer::read(&self.line).map_err(|problem| ClientError::Understand {
            path: self.path.clone(),
            problem,
        })?;
        Ok(Some(answer))
    }

    /// Returns the server's process; `None` when it is out of sight, in another pid namespace.
    pub(super) fn process(&self) -> Option<ServerProcess> {
        let pidfd = prefork_os::pidfd::open(peer(self.stream.get_ref())?).ok()?;
        Some(ServerProcess { pidfd })
    }

    /// Waits until the server's process has ended, once it has promised to stop.
    ///
    /// # Errors
    /// When it shows no life.
    pub(super) fn wait_for_exit(self, process: Option<&ServerProcess>) -> Result<(), ClientError> {
        loop {
            let ended = match process {
                Some(process) => process.has_ended(TIME_TO_ANSWER),
                None => is_gone(&self.path, TIME_TO_ANSWER),
            };
            if ended {
                return Ok(());
            }
            match check_life(&self.path) {
                // It has closed its socket, and is about to end.
                Ok(()) | Err(ClientError::Unreachable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl ServerProcess {
    /// Waits for this long at most, and returns whether it has ended.
    fn has_ended(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(
                &mut fds,
                PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX),
            ) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// Returns whether no server listens at `path` any more, within `limit`.
fn is_gone(path: &Path, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if connect_within(path, TIME_TO_CONNECT)
            .is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
        {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// Checks that the server answers anything at all.
fn check_life(path: &Path) -> Result<(), ClientError> {
    let mut probe = Connection::open(path)?;
    probe.send(&Request::Status {})?;
    let stream = probe.stream.get_mut();
    let pid = peer(stream);
    let read = stream
        .set_read_timeout(Some(TIME_TO_SHOW_LIFE))
        .and_then(|()| stream.read(&mut [0]));
    match read {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(ClientError::silent(path, pid, TIME_TO_SHOW_LIFE))
        }
        // Also a refusal, and also an end, is a sign of life.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Connects, within `limit`: connect(2) waits while the queue of the server is full.
pub(crate) fn connect_within(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(seconds, 0))?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Returns the process that listens at the other end.
fn peer(stream: &UnixStream) -> Option<Pid> {
    let peer = getsockopt(stream, sockopt::PeerCredentials).ok()?;
    // 0 is a process of another pid namespace.
    (peer.pid() > 0).then(|| Pid::from_raw(peer.pid()))
}
