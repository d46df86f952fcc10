//! Receives `READY=1` and the like from workers: one datagram socket for all of them.
//!
//! The kernel says which process sent a message, so no process can speak for another worker,
//! although any process may know the address.

use super::notifier::printable;
use crate::config::runtime_directory::remake_directory;
use crate::process::ancestry::parent_and_group;
use crate::process::poll::{Interest, Poll, Token};
use crate::upgrade::{Bytes, Kind, NotifyState, Packing, SpareState, Unpacking};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, getsockname, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;
use prefork_os::receive_with_sender;
use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io;
#[cfg(test)]
use std::os::fd::BorrowedFd;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest message that is read; longer ones are ignored.
const MAX_MESSAGE: usize = 4096;
/// The longest status, in characters; longer ones are cut.
const MAX_STATUS: usize = 256;
/// How many ancestors of a sender are searched for its worker.
const MAX_ANCESTORS: usize = 16;

/// The sockets to which the workers' `NOTIFY_SOCKET` points.
#[derive(Debug)]
pub(crate) struct NotifyServer {
    main: NotifySocket,
    /// An abstract one, for workers that were started while the file of the main one was gone.
    spare: Option<NotifySocket>,
    /// The file of the main one is gone, and could not be made again.
    lost: bool,
}

#[derive(Debug)]
struct NotifySocket {
    socket: OwnedFd,
    address: OsString,
    file: Option<NotifyFile>,
}

/// The file of a socket.
#[derive(Debug)]
struct NotifyFile {
    path: PathBuf,
    /// Device and inode.
    identity: Option<(u64, u64)>,
}

/// What has become of the file of a notification socket.
#[derive(Debug)]
pub(crate) enum NotifyFate {
    /// It is there, or there is none.
    Present,
    /// It was gone, and has been made again. Meanwhile no worker could notify.
    Remade(PathBuf),
    /// It is gone, and cannot be made again. Workers that know this path cannot notify; new ones
    /// get another address. The error is reported once.
    Gone(Option<(PathBuf, io::Error)>),
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
    /// It has answered this many requests since it started.
    Requests(u64),
    /// This many requests are active.
    Active(u64),
    /// It is alive.
    Watchdog,
    /// It is about to leave.
    Stopping,
    /// What it is doing needs this much more time, counted from now.
    ExtendTimeout(Duration),
}

impl NotifyServer {
    /// Binds a socket: a file in `directory` if that is given and can be used, else an abstract
    /// name, which some programs do not understand. Files of servers that are gone are removed.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub(crate) fn bind(directory: Option<&Path>) -> io::Result<Self> {
        let in_file = |directory: &Path| {
            let directory = std::path::absolute(directory).ok()?;
            remove_stale(&directory);
            let path = directory.join(format!("notify-{}.sock", std::process::id()));
            NotifySocket::bind_file(&path).ok()
        };
        let main = match directory.and_then(in_file) {
            Some(socket) => socket,
            None => NotifySocket::bind_abstract()?,
        };
        Ok(Self {
            main,
            spare: None,
            lost: false,
        })
    }

    /// Makes the file of the socket again if it is gone, and its directory, too. Afterwards the
    /// sockets must be [watched](Self::watch) again, unless it was present.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2), for the abstract socket.
    pub(crate) fn restore(&mut self, poll: &Poll) -> io::Result<NotifyFate> {
        let Some(file) = self.main.file.as_ref().filter(|file| !file.is_present()) else {
            return Ok(NotifyFate::Present);
        };
        let path = file.path.clone();
        match remake_directory(&path).and_then(|()| NotifySocket::bind_file(&path)) {
            Ok(socket) => {
                poll.remove(&self.main.socket);
                poll.add(&socket.socket, Token::Notify, Interest::Read)?;
                // Its file is another one's by now, and stays.
                self.main.file = None;
                self.main = socket;
                self.lost = false;
                Ok(NotifyFate::Remade(path))
            }
            Err(error) => {
                if self.spare.is_none() {
                    let spare = NotifySocket::bind_abstract()?;
                    poll.add(&spare.socket, Token::Notify, Interest::Read)?;
                    self.spare = Some(spare);
                }
                let first = !std::mem::replace(&mut self.lost, true);
                Ok(NotifyFate::Gone(first.then_some((path, error))))
            }
        }
    }

    /// Watches the sockets.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn watch(&self, poll: &Poll) -> io::Result<()> {
        let mut sockets = [&self.main].into_iter().chain(&self.spare);
        sockets.try_for_each(|one| poll.add(&one.socket, Token::Notify, Interest::Read))
    }

    /// Returns what another version of the program needs to take over these sockets.
    pub(crate) fn state(&self, packing: &mut Packing) -> NotifyState {
        NotifyState {
            socket: packing.add(Kind::Datagram, &self.main.socket),
            address: (&self.main.address).into(),
            file: self.main.file.as_ref().map(|file| Bytes::from(&file.path)),
            spare: self.spare.as_ref().map(|spare| SpareState {
                socket: packing.add(Kind::Datagram, &spare.socket),
                address: (&spare.address).into(),
            }),
        }
    }

    /// Takes over the sockets of another version of the program.
    pub(crate) fn adopted(state: NotifyState, unpacking: &mut Unpacking) -> Self {
        Self {
            main: NotifySocket {
                socket: unpacking.take(state.socket, Kind::Datagram),
                address: state.address.text(),
                file: state.file.map(|path| NotifyFile::at(path.path())),
            },
            spare: state.spare.map(|spare| NotifySocket {
                socket: unpacking.take(spare.socket, Kind::Datagram),
                address: spare.address.text(),
                file: None,
            }),
            lost: false,
        }
    }

    /// Returns the value for the workers' `NOTIFY_SOCKET`.
    pub(crate) fn address(&self) -> &OsStr {
        let spare = self.spare.as_ref().filter(|_| self.lost);
        &spare.unwrap_or(&self.main).address
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
        let mut packet = None;
        for one in [&self.main].into_iter().chain(&self.spare) {
            match receive_with_sender(one.socket.as_fd(), &mut bytes) {
                Ok(received) => {
                    packet = Some(received);
                    break;
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
        let Some(packet) = packet else {
            return Ok(None);
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

#[cfg(test)]
impl AsFd for NotifyServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.main.socket.as_fd()
    }
}

impl NotifySocket {
    /// Binds to a free abstract name.
    fn bind_abstract() -> io::Result<Self> {
        let socket = datagram_socket()?;
        bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?;
        let bound: UnixAddr = getsockname(socket.as_raw_fd())?;
        let name = bound.as_abstract().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self {
            address: OsStr::from_bytes(&[b"@", name].concat()).to_owned(),
            socket,
            file: None,
        })
    }

    /// Binds to a file named after our pid, which no other process uses.
    fn bind_file(path: &Path) -> io::Result<Self> {
        let socket = datagram_socket()?;
        let address = UnixAddr::new(path)?;
        // An earlier process with our pid may have left its own.
        if is_socket(path) {
            let _ = std::fs::remove_file(path);
        }
        bind(socket.as_raw_fd(), &address)?;
        // A worker may run as another user. The kernel identifies the sender, not this mode.
        let _ = std::fs::set_permissions(path, Permissions::from_mode(0o666));
        Ok(Self {
            socket,
            address: path.as_os_str().to_owned(),
            file: Some(NotifyFile::at(path.to_owned())),
        })
    }
}

fn datagram_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::PassCred, &true)?;
    Ok(socket)
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        if let Some(file) = self.file.as_ref().filter(|file| file.is_present()) {
            let _ = std::fs::remove_file(&file.path);
        }
    }
}

impl NotifyFile {
    /// Returns the file that is there now.
    fn at(path: PathBuf) -> Self {
        Self {
            identity: identity(&path),
            path,
        }
    }

    fn is_present(&self) -> bool {
        self.identity.is_some() && identity(&self.path) == self.identity
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let about = path.symlink_metadata().ok()?;
    Some((about.dev(), about.ino()))
}

fn is_socket(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|status| status.file_type().is_socket())
}

/// Removes the sockets of servers that were killed, to which no process is bound any more.
fn remove_stale(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| {
            name.strip_prefix("notify-")?
                .strip_suffix(".sock")?
                .parse::<u32>()
                .ok()
        });
        let path = entry.path();
        if number.is_some() && is_socket(&path) && refuses(&path) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn refuses(path: &Path) -> bool {
    let refused = |socket: UnixDatagram| {
        let error = socket.connect(path).err();
        error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    UnixDatagram::unbound().is_ok_and(refused)
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
            ("PREFORK_REQUESTS", count) => WorkerNotice::Requests(count.trim().parse().ok()?),
            ("PREFORK_ACTIVE", count) => WorkerNotice::Active(count.trim().parse().ok()?),
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
