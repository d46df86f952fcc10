//! Receives `READY=1` and the like from workers: one datagram socket for all of them.
//!
//! The kernel says which process sent a message, so no process can speak for another worker,
//! although any process may know the address.

use super::notifier::printable;
use crate::process::ancestry::parent_and_group;
use crate::upgrade::{Bytes, Kind, NotifyState, Packing, Unpacking};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, getsockname, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;
use prefork_os::receive_with_sender;
use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest message that is read; longer ones are ignored.
const MAX_MESSAGE: usize = 4096;
/// The longest status, in characters; longer ones are cut.
const MAX_STATUS: usize = 256;
/// How many ancestors of a sender are searched for its worker.
const MAX_ANCESTORS: usize = 16;

/// The socket to which the workers' `NOTIFY_SOCKET` points.
#[derive(Debug)]
pub(crate) struct NotifyServer {
    socket: OwnedFd,
    address: OsString,
    file: Option<PathBuf>,
}

/// A message from some process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    /// The sender, according to the kernel. It may have exited by now.
    pub sender: Pid,
    /// The known worker that it is, or belongs to; `None` for an unrelated process, or when that
    /// cannot be known any more.
    pub worker: Option<Pid>,
    /// What it says. Empty when it is too long, or says nothing that we know.
    pub notices: Vec<WorkerNotice>,
}

/// What a worker can report. Everything else is ignored, as the protocol requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerNotice {
    /// It serves.
    Ready,
    /// Its status, in its own words: printable, at most 256 characters.
    Status(String),
    /// It is alive.
    Watchdog,
    /// It is about to leave.
    Stopping,
    /// What it is doing needs this much more time, counted from now.
    ExtendTimeout(Duration),
}

impl NotifyServer {
    /// Binds a socket: a file in `directory` if that is given and can be used, else an abstract
    /// name, which some programs do not understand.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub(crate) fn bind(directory: Option<&Path>) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        if let Some(path) = directory.and_then(|directory| bind_file(&socket, directory)) {
            return Ok(Self {
                socket,
                address: path.clone().into_os_string(),
                file: Some(path),
            });
        }
        // Bound to no name, it gets a free abstract one.
        bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?;
        let bound: UnixAddr = getsockname(socket.as_raw_fd())?;
        let name = bound.as_abstract().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let address = OsStr::from_bytes(&[b"@", name].concat()).to_owned();
        Ok(Self {
            socket,
            address,
            file: None,
        })
    }

    /// Returns what another version of the program needs to take over this socket.
    pub(crate) fn state(&self, packing: &mut Packing) -> NotifyState {
        NotifyState {
            socket: packing.add(Kind::Datagram, &self.socket),
            address: (&self.address).into(),
            file: self.file.as_ref().map(Bytes::from),
        }
    }

    /// Takes over the socket of another version of the program.
    pub(crate) fn adopted(state: NotifyState, unpacking: &mut Unpacking) -> Self {
        Self {
            socket: unpacking.take(state.socket, Kind::Datagram),
            address: state.address.text(),
            file: state.file.map(Bytes::path),
        }
    }

    /// Returns the value for the workers' `NOTIFY_SOCKET`.
    pub(crate) fn address(&self) -> &OsStr {
        &self.address
    }

    /// Takes one message; `None` when there is none. `known` says which pids are workers: the
    /// sender itself, the leader of its process group, or an ancestor may be one. Descriptors that
    /// come along are never taken, and closed by the kernel, which is also the answer to
    /// `BARRIER=1`.
    ///
    /// # Errors
    /// Those of recvmsg(2).
    pub(crate) fn receive(&self, known: impl Fn(Pid) -> bool) -> io::Result<Option<Received>> {
        let mut bytes = [0_u8; MAX_MESSAGE];
        let packet = match receive_with_sender(self.socket.as_fd(), &mut bytes) {
            Ok(packet) => packet,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                    _ => Err(error),
                };
            }
        };
        let sender = Pid::from_raw(packet.sender);
        let notices = parse(if packet.cut {
            &[]
        } else {
            &bytes[..packet.length]
        });
        Ok(Some(Received {
            sender,
            worker: worker_of(sender, known),
            notices,
        }))
    }
}

impl AsFd for NotifyServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for NotifyServer {
    fn drop(&mut self) {
        if let Some(path) = &self.file {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Binds to a file named after our pid, which no other process uses. Returns `None` on failure.
fn bind_file(socket: &OwnedFd, directory: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(directory)
        .ok()?
        .join(format!("notify-{}.sock", std::process::id()));
    let address = UnixAddr::new(&path).ok()?;
    // An earlier process with our pid may have left its own.
    if path
        .symlink_metadata()
        .is_ok_and(|status| status.file_type().is_socket())
    {
        let _ = std::fs::remove_file(&path);
    }
    bind(socket.as_raw_fd(), &address).ok()?;
    // A worker may run as another user. The kernel identifies the sender, not this mode.
    let _ = std::fs::set_permissions(&path, Permissions::from_mode(0o666));
    Some(path)
}

/// Reads a datagram. Unknown lines are ignored, as the protocol requires.
pub fn parse(bytes: &[u8]) -> Vec<WorkerNotice> {
    let text = String::from_utf8_lossy(bytes);
    let notice = |line: &str| {
        Some(match line.split_once('=')? {
            ("READY", "1") => WorkerNotice::Ready,
            ("WATCHDOG", "1") => WorkerNotice::Watchdog,
            ("STOPPING", "1") => WorkerNotice::Stopping,
            ("STATUS", text) => {
                WorkerNotice::Status(printable(text).chars().take(MAX_STATUS).collect())
            }
            ("EXTEND_TIMEOUT_USEC", time) => {
                WorkerNotice::ExtendTimeout(Duration::from_micros(time.trim().parse().ok()?))
            }
            _ => return None,
        })
    };
    text.split('\n').filter_map(notice).collect()
}

/// Returns the worker that a process is, or belongs to: by its process group, since each worker
/// leads one, or by descent.
fn worker_of(sender: Pid, known: impl Fn(Pid) -> bool) -> Option<Pid> {
    let mut process = sender;
    for _ in 0..MAX_ANCESTORS {
        // 0 is a process outside our pid namespace, 1 is no worker.
        if process.as_raw() <= 1 {
            return None;
        }
        if known(process) {
            return Some(process);
        }
        let (parent, group) = parent_and_group(process)?;
        if known(group) {
            return Some(group);
        }
        process = parent;
    }
    None
}
