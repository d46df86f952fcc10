//! The sockets of one address.

use super::error::{Act, ListenError, Problem};
use super::lock::AddressLock;
use super::slots::{Parts, Slots};
use super::unix::{SocketFile, Wanted};
use super::{inherited, slots, tcp};
use crate::listen::bpf::{SteerError, Steered};
use crate::listen::stored::Label;
use nix::errno::Errno;
use prefork_protocol::environment::Inherited;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What makes an address the same address at the next reload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// As asked for: its port may be 0.
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// The number under which it was inherited.
    Fd(RawFd),
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) key: Key,
    /// The address, for people.
    pub(crate) text: String,
    /// The name for `LISTEN_FDNAMES`.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Held as long as the group lives.
    pub(crate) lock: Option<AddressLock>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// A TCP address.
    Slots(Slots),
    /// A Unix socket for all. Its file goes when the group goes.
    File {
        file: SocketFile,
        socket: Rc<OwnedFd>,
    },
    /// An inherited socket for all. It listens, with the backlog of whoever made it.
    Inherited { socket: Rc<OwnedFd> },
}

impl Group {
    /// Binds the first socket of a TCP address, unless somebody else has the address. When another group of
    /// `ours` overlaps it (as 0.0.0.0 does every address), that one keeps others out, and is in our own way.
    pub(crate) fn tcp(
        asked: SocketAddr,
        ours: bool,
        runtime_dir: Option<&Path>,
    ) -> Result<Self, Problem> {
        // For a free port there is nobody to ask, and no name for the lock yet.
        let early = if asked.port() == 0 {
            None
        } else {
            lock_tcp(runtime_dir, asked)?
        };
        if asked.port() != 0 && !ours {
            tcp::probe(asked)?;
        }
        let slots = Slots::bind(asked)?;
        let lock = if asked.port() == 0 {
            lock_tcp(runtime_dir, slots.address())?
        } else {
            early
        };
        Ok(Self::of_slots(asked, slots, lock))
    }

    /// Takes over what an earlier process had of a TCP address.
    pub(crate) fn tcp_again(
        asked: SocketAddr,
        address: SocketAddr,
        parts: Parts,
        runtime_dir: Option<&Path>,
    ) -> Result<Self, Problem> {
        let lock = lock_tcp(runtime_dir, address)?;
        Ok(Self::of_slots(asked, Slots::adopt(address, parts)?, lock))
    }

    fn of_slots(asked: SocketAddr, slots: Slots, lock: Option<AddressLock>) -> Self {
        let address = slots.address();
        let ip = match address {
            SocketAddr::V4(v4) => v4.ip().to_string(),
            SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
        };
        Self {
            key: Key::Tcp(asked),
            text: address.to_string(),
            name: socket_name(&format!("tcp-{ip}-{}", address.port())),
            kind: Kind::Slots(slots),
            lock,
        }
    }

    /// Binds the only socket of a TCP address, unless an earlier process has left it, and has it listen.
    pub(crate) fn alone(
        purpose: &str,
        asked: SocketAddr,
        kept: Option<OwnedFd>,
        backlog: u32,
        runtime_dir: Option<&Path>,
    ) -> Result<Self, Problem> {
        let early = if asked.port() == 0 {
            None
        } else {
            lock_tcp(runtime_dir, asked)?
        };
        let socket = kept.map_or_else(|| tcp::bind_alone(asked), Ok)?;
        slots::listen(&socket, backlog).map_err(Problem::system(Act::Listen))?;
        let address = tcp::local_address(&socket)?;
        let lock = if asked.port() == 0 {
            lock_tcp(runtime_dir, address)?
        } else {
            early
        };
        Ok(Self {
            key: Key::Tcp(asked),
            text: address.to_string(),
            name: socket_name(purpose),
            kind: Kind::Inherited {
                socket: Rc::new(socket),
            },
            lock,
        })
    }

    pub(crate) fn unix(wanted: &Wanted, runtime_dir: Option<&Path>) -> Result<Self, Problem> {
        let lock = lock_unix(runtime_dir, wanted)?;
        let (socket, file) = SocketFile::bind(wanted)?;
        Ok(Self::of_file(file, socket, lock, wanted))
    }

    /// Takes over an earlier process's Unix socket. `None` when the file is not the socket's any more.
    pub(crate) fn unix_again(
        wanted: &Wanted,
        identity: (u64, u64),
        socket: OwnedFd,
        runtime_dir: Option<&Path>,
    ) -> Result<Option<Self>, Problem> {
        let lock = lock_unix(runtime_dir, wanted)?;
        let file = SocketFile::adopt(wanted, identity)?;
        Ok(file.map(|file| Self::of_file(file, socket, lock, wanted)))
    }

    fn of_file(
        file: SocketFile,
        socket: OwnedFd,
        lock: Option<AddressLock>,
        wanted: &Wanted,
    ) -> Self {
        let path = wanted.path.display();
        Self {
            key: Key::Unix(wanted.path.clone()),
            text: format!("unix:{path}"),
            name: socket_name(&format!("unix-{path}")),
            kind: Kind::File {
                file,
                socket: Rc::new(socket),
            },
            lock,
        }
    }

    pub(crate) fn inherited(socket: &Inherited) -> Result<Self, Problem> {
        let (socket_copy, text) = inherited::take(socket)?;
        Ok(Self {
            key: inherited::key(socket),
            text,
            name: socket_name(&socket.name),
            kind: Kind::Inherited {
                socket: Rc::new(socket_copy),
            },
            lock: None,
        })
    }

    /// Whether an address with this key is served by this group. A group that chose its port also answers to it.
    pub(crate) fn answers_to(&self, key: &Key) -> bool {
        self.key == *key
            || matches!((&self.kind, key), (Kind::Slots(slots), Key::Tcp(asked)) if slots.address() == *asked)
    }

    /// Whether both cannot be bound without SO_REUSEPORT: the same port, and one of them is every address.
    pub(crate) fn overlaps(&self, other: SocketAddr) -> bool {
        let Kind::Slots(slots) = &self.kind else {
            return false;
        };
        let address = slots.address();
        address.port() == other.port()
            && address.is_ipv4() == other.is_ipv4()
            && (address.ip().is_unspecified() || other.ip().is_unspecified())
    }

    /// Whether this is no Unix socket, or one with these permissions.
    pub(crate) fn has_permissions(&self, wanted: &Wanted) -> bool {
        match &self.kind {
            Kind::File { file, .. } => file.was_made_for(wanted),
            Kind::Slots(_) | Kind::Inherited { .. } => true,
        }
    }

    /// Whether this is the only socket of a TCP address, which no worker has.
    pub(crate) fn is_alone(&self) -> bool {
        matches!(
            (&self.key, &self.kind),
            (Key::Tcp(_), Kind::Inherited { .. })
        )
    }

    pub(crate) fn is_shared(&self) -> bool {
        !matches!(self.kind, Kind::Slots(_))
    }

    pub(crate) fn slots(&self) -> Option<&Slots> {
        match &self.kind {
            Kind::Slots(slots) => Some(slots),
            Kind::File { .. } | Kind::Inherited { .. } => None,
        }
    }

    /// Slots whose sockets listen: these and those before them. None where all share one.
    pub(crate) fn open_slots(&self) -> u16 {
        match &self.kind {
            Kind::Slots(slots) => slots.open_slots(),
            Kind::File { .. } | Kind::Inherited { .. } => 0,
        }
    }

    /// Fewer than `slots` slots have sockets of their own, and there cannot be more: how many.
    pub(crate) fn limit(&self, slots: u16) -> Option<u16> {
        match &self.kind {
            Kind::Slots(own) => own.limit(slots),
            Kind::File { .. } | Kind::Inherited { .. } => None,
        }
    }

    /// The listening sockets that can outlive this process, each with its name. Inherited ones are kept by whoever
    /// handed them over.
    pub(crate) fn kept_sockets(&self) -> Vec<(String, Rc<OwnedFd>)> {
        let any = matches!(self.key, Key::Tcp(asked) if asked.port() == 0);
        let all = match &self.kind {
            Kind::Slots(slots) => slots.labels(any),
            Kind::File { file, socket } if slots::listens(socket) => {
                vec![(file.label(), Rc::clone(socket))]
            }
            Kind::Inherited { socket } if self.is_alone() => match tcp::local_address(socket) {
                Ok(address) => {
                    vec![(
                        Label::Alone {
                            purpose: self.name.clone(),
                            address,
                            any,
                        },
                        Rc::clone(socket),
                    )]
                }
                Err(_) => Vec::new(),
            },
            Kind::File { .. } | Kind::Inherited { .. } => Vec::new(),
        };
        all.into_iter()
            .filter_map(|(label, socket)| Some((label.name()?, socket)))
            .collect()
    }

    /// Leaves a Unix socket's file behind when the group goes.
    pub(crate) fn leave_file(&self) {
        if let Kind::File { file, .. } = &self.kind {
            file.keep();
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn describe(&self) -> String {
        self.text.clone()
    }

    /// Binds the sockets that are missing for `slots` slots. Only [`add`](Self::add) makes them the group's.
    pub(crate) fn more_sockets(&self, slots: u16) -> Result<Vec<OwnedFd>, ListenError> {
        let Kind::Slots(own) = &self.kind else {
            return Ok(Vec::new());
        };
        own.more(slots)
            .map_err(|problem| ListenError::new(&self.text, problem))
    }

    /// Adds what `more_sockets` bound; gives all sockets.
    pub(crate) fn add(&self, more: Vec<OwnedFd>) -> Vec<Rc<OwnedFd>> {
        match &self.kind {
            Kind::Slots(slots) => {
                slots.add(more);
                slots.sockets()
            }
            Kind::File { socket, .. } | Kind::Inherited { socket } => vec![Rc::clone(socket)],
        }
    }

    /// Has the sockets of the first `slots` slots listen.
    pub(crate) fn open(&self, slots: u16, backlog: u32) -> Result<(), ListenError> {
        let opened = match &self.kind {
            Kind::Slots(own) => own.open(slots, backlog),
            Kind::File { socket, .. } => slots::listen(socket, backlog),
            Kind::Inherited { .. } => Ok(()),
        };
        opened.map_err(|errno| {
            let problem = match (errno, &self.kind) {
                (Errno::EADDRINUSE, Kind::Slots(slots)) => Problem::PortInUse {
                    port: slots.address().port(),
                    holder: None,
                },
                (errno, _) => Problem::System {
                    act: Act::Listen,
                    errno,
                },
            };
            ListenError::new(&self.text, problem)
        })
    }

    /// Has nobody connect any more. A shared socket cannot be silenced.
    pub(crate) fn silence(&self) -> Result<Steered, SteerError> {
        let Kind::Slots(slots) = &self.kind else {
            return Ok(Steered::Unchanged);
        };
        slots.silence().map_err(|problem| SteerError {
            address: self.text.clone(),
            problem,
        })
    }

    /// As [`steer`](Self::steer), unless it is steered so already.
    pub(crate) fn keep_steered(&self, rotation: &[u16]) -> Result<Steered, SteerError> {
        match &self.kind {
            Kind::Slots(slots) if slots.is_steered_to(rotation) => Ok(Steered::Unchanged),
            _ => self.steer(rotation),
        }
    }

    pub(crate) fn steer(&self, rotation: &[u16]) -> Result<Steered, SteerError> {
        let Kind::Slots(slots) = &self.kind else {
            return Ok(Steered::Unchanged);
        };
        slots.steer(rotation).map_err(|problem| SteerError {
            address: self.text.clone(),
            problem,
        })
    }
}

fn lock_tcp(
    runtime_dir: Option<&Path>,
    address: SocketAddr,
) -> Result<Option<AddressLock>, Problem> {
    AddressLock::take(runtime_dir, &format!("{}-{}", address.ip(), address.port())).map_err(
        |holder| Problem::PortInUse {
            port: address.port(),
            holder,
        },
    )
}

fn lock_unix(runtime_dir: Option<&Path>, wanted: &Wanted) -> Result<Option<AddressLock>, Problem> {
    AddressLock::take(runtime_dir, &wanted.path.display().to_string())
        .map_err(|_| Problem::SocketInUse)
}

/// A name that `LISTEN_FDNAMES` can carry: printable ASCII without colons, 255 bytes at most.
fn socket_name(text: &str) -> String {
    let safe = |letter: char| {
        if letter.is_ascii_graphic() && letter != ':' {
            letter
        } else {
            '_'
        }
    };
    text.chars().map(safe).take(255).collect()
}
