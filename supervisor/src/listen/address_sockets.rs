//! The sockets of one address: one per slot for TCP, else one for all slots.

use super::address::AddressKey;
use super::bpf::{SteerError, Steered};
use super::error::{ListenError, ListenProblem, Operation};
use super::lock::AddressLock;
use super::reuseport_group::{ReuseportGroup, StoredMembers};
use super::socket_label::SocketLabel;
use super::unix::{SocketFile, Wanted};
use super::{inherited, reuseport_group, tcp};
use nix::errno::Errno;
use prefork_protocol::environment::Inherited;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

/// The sockets of one address.
#[derive(Debug)]
pub(crate) struct AddressSockets {
    pub(crate) key: AddressKey,
    /// The address, for messages.
    pub(crate) text: String,
    /// The name for `LISTEN_FDNAMES`.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Held as long as the sockets are.
    pub(crate) lock: Option<AddressLock>,
}

/// What kinds of sockets an address has.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A TCP address.
    ReuseportGroup(ReuseportGroup),
    /// A Unix socket for all slots. Its file is removed with this.
    File {
        file: SocketFile,
        socket: Rc<OwnedFd>,
    },
    /// An inherited socket for all slots. It listens, with the backlog that its creator chose; or
    /// the exclusive socket of a TCP address.
    Inherited { socket: Rc<OwnedFd> },
}

impl AddressSockets {
    /// Binds the first socket of a TCP address, unless another program has it. When another
    /// address of `ours` overlaps it (as 0.0.0.0 does every address), that one keeps other
    /// programs out, and a probe would find it.
    pub(crate) fn tcp(
        asked: SocketAddr,
        ours: bool,
        runtime_dir: Option<&Path>,
    ) -> Result<Self, ListenProblem> {
        // A free port needs no probe, and its lock has no name yet.
        let early = if asked.port() == 0 {
            None
        } else {
            lock_tcp(runtime_dir, asked)?
        };
        if asked.port() != 0 && !ours {
            tcp::probe(asked)?;
        }
        let slots = ReuseportGroup::bind(asked)?;
        let lock = if asked.port() == 0 {
            lock_tcp(runtime_dir, slots.address())?
        } else {
            early
        };
        Ok(Self::of_slots(asked, slots, lock))
    }

    /// Takes over the stored sockets of a TCP address.
    pub(crate) fn tcp_stored(
        asked: SocketAddr,
        address: SocketAddr,
        parts: StoredMembers,
        runtime_dir: Option<&Path>,
    ) -> Result<Self, ListenProblem> {
        let lock = lock_tcp(runtime_dir, address)?;
        Ok(Self::of_slots(
            asked,
            ReuseportGroup::adopt(address, parts)?,
            lock,
        ))
    }

    fn of_slots(asked: SocketAddr, slots: ReuseportGroup, lock: Option<AddressLock>) -> Self {
        let address = slots.address();
        let ip = match address {
            SocketAddr::V4(v4) => v4.ip().to_string(),
            SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
        };
        Self {
            key: AddressKey::Tcp(asked),
            text: address.to_string(),
            name: socket_name(&format!("tcp-{ip}-{}", address.port())),
            kind: Kind::ReuseportGroup(slots),
            lock,
        }
    }

    /// Binds the exclusive socket of a TCP address, unless it is stored, and makes it listen.
    pub(crate) fn exclusive(
        purpose: &str,
        asked: SocketAddr,
        stored: Option<OwnedFd>,
        backlog: u32,
        runtime_dir: Option<&Path>,
    ) -> Result<Self, ListenProblem> {
        let early = if asked.port() == 0 {
            None
        } else {
            lock_tcp(runtime_dir, asked)?
        };
        let socket = stored.map_or_else(|| tcp::bind_exclusive(asked), Ok)?;
        reuseport_group::listen(&socket, backlog)
            .map_err(ListenProblem::system(Operation::Listen))?;
        let address = tcp::local_address(&socket)?;
        let lock = if asked.port() == 0 {
            lock_tcp(runtime_dir, address)?
        } else {
            early
        };
        Ok(Self {
            key: AddressKey::Tcp(asked),
            text: address.to_string(),
            name: socket_name(purpose),
            kind: Kind::Inherited {
                socket: Rc::new(socket),
            },
            lock,
        })
    }

    pub(crate) fn unix(wanted: &Wanted, runtime_dir: Option<&Path>) -> Result<Self, ListenProblem> {
        let lock = lock_unix(runtime_dir, wanted)?;
        let (socket, file) = SocketFile::bind(wanted)?;
        Ok(Self::of_file(file, socket, lock, wanted))
    }

    /// Takes over a stored Unix socket. Returns `None` when the file is not the socket's any more.
    pub(crate) fn unix_stored(
        wanted: &Wanted,
        identity: (u64, u64),
        socket: OwnedFd,
        runtime_dir: Option<&Path>,
    ) -> Result<Option<Self>, ListenProblem> {
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
            key: AddressKey::Unix(wanted.path.clone()),
            text: format!("unix:{path}"),
            name: socket_name(&format!("unix-{path}")),
            kind: Kind::File {
                file,
                socket: Rc::new(socket),
            },
            lock,
        }
    }

    pub(crate) fn inherited(socket: &Inherited) -> Result<Self, ListenProblem> {
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

    /// Whether this serves the address with this key. One that chose its port also answers to it.
    pub(crate) fn answers_to(&self, key: &AddressKey) -> bool {
        self.key == *key
            || match (&self.kind, key) {
                (Kind::ReuseportGroup(slots), AddressKey::Tcp(asked)) => slots.address() == *asked,
                _ => false,
            }
    }

    /// Whether this is a Unix socket whose file is gone: no client can connect.
    pub(crate) fn lost_file(&self) -> bool {
        matches!(&self.kind, Kind::File { file, .. } if !file.is_at(&file.made_for.path))
    }

    /// Whether both cannot be bound without SO_REUSEPORT: the same port, and one of them is the
    /// wildcard address.
    pub(crate) fn overlaps(&self, other: SocketAddr) -> bool {
        let Kind::ReuseportGroup(slots) = &self.kind else {
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
            Kind::ReuseportGroup(_) | Kind::Inherited { .. } => true,
        }
    }

    /// Whether this is the exclusive socket of a TCP address, which no worker has.
    pub(crate) fn is_exclusive(&self) -> bool {
        matches!(
            (&self.key, &self.kind),
            (AddressKey::Tcp(_), Kind::Inherited { .. })
        )
    }

    pub(crate) fn is_shared(&self) -> bool {
        !matches!(self.kind, Kind::ReuseportGroup(_))
    }

    pub(crate) fn slots(&self) -> Option<&ReuseportGroup> {
        match &self.kind {
            Kind::ReuseportGroup(slots) => Some(slots),
            Kind::File { .. } | Kind::Inherited { .. } => None,
        }
    }

    /// ReuseportGroup whose sockets listen: these and those before them. None where all share one.
    pub(crate) fn open_slots(&self) -> u16 {
        match &self.kind {
            Kind::ReuseportGroup(slots) => slots.open_slots(),
            Kind::File { .. } | Kind::Inherited { .. } => 0,
        }
    }

    /// Returns how many slots have sockets of their own, if those are fewer than `slots` and no
    /// more can be bound.
    pub(crate) fn limit(&self, slots: u16) -> Option<u16> {
        match &self.kind {
            Kind::ReuseportGroup(own) => own.limit(slots),
            Kind::File { .. } | Kind::Inherited { .. } => None,
        }
    }

    /// Returns the listening sockets that can outlive this process, each with its name. Inherited
    /// ones belong to the service manager already.
    pub(crate) fn storable_sockets(&self) -> Vec<(String, Rc<OwnedFd>)> {
        let any = matches!(self.key, AddressKey::Tcp(asked) if asked.port() == 0);
        let all = match &self.kind {
            Kind::ReuseportGroup(slots) => slots.labels(any),
            Kind::File { file, socket } if reuseport_group::listens(socket) => {
                vec![(file.label(), Rc::clone(socket))]
            }
            Kind::Inherited { socket } if self.is_exclusive() => match tcp::local_address(socket) {
                Ok(address) => {
                    vec![(
                        SocketLabel::Exclusive {
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

    /// Whether this is the Unix socket that a path leads to.
    pub(crate) fn is_file_at(&self, path: &Path) -> bool {
        matches!(&self.kind, Kind::File { file, .. } if file.is_at(path))
    }

    /// Leaves a Unix socket's file behind when this is dropped.
    pub(crate) fn leave_file(&self) {
        if let Kind::File { file, .. } = &self.kind {
            file.leave();
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn describe(&self) -> String {
        self.text.clone()
    }

    /// Binds the sockets that are missing for `slots` slots. Only [`add`](Self::add) adds them.
    pub(crate) fn more_sockets(&self, slots: u16) -> Result<Vec<OwnedFd>, ListenError> {
        let Kind::ReuseportGroup(own) = &self.kind else {
            return Ok(Vec::new());
        };
        own.more(slots)
            .map_err(|problem| ListenError::new(&self.text, problem))
    }

    /// Adds what `more_sockets` bound; returns all sockets.
    pub(crate) fn add(&self, more: Vec<OwnedFd>) -> Vec<Rc<OwnedFd>> {
        match &self.kind {
            Kind::ReuseportGroup(slots) => {
                slots.add(more);
                slots.sockets()
            }
            Kind::File { socket, .. } | Kind::Inherited { socket } => vec![Rc::clone(socket)],
        }
    }

    /// Makes the sockets of the first `slots` slots listen.
    pub(crate) fn open(&self, slots: u16, backlog: u32) -> Result<(), ListenError> {
        let opened = match &self.kind {
            Kind::ReuseportGroup(own) => own.open(slots, backlog),
            Kind::File { socket, .. } => reuseport_group::listen(socket, backlog),
            Kind::Inherited { .. } => Ok(()),
        };
        opened.map_err(|errno| {
            let problem = match (errno, &self.kind) {
                (Errno::EADDRINUSE, Kind::ReuseportGroup(slots)) => ListenProblem::PortInUse {
                    port: slots.address().port(),
                    holder: None,
                },
                (errno, _) => ListenProblem::System {
                    operation: Operation::Listen,
                    errno,
                },
            };
            ListenError::new(&self.text, problem)
        })
    }

    /// Drops all new connection attempts. A shared socket cannot be blackholed.
    pub(crate) fn blackhole(&self) -> Result<Steered, SteerError> {
        let Kind::ReuseportGroup(slots) = &self.kind else {
            return Ok(Steered::Unchanged);
        };
        slots.blackhole().map_err(|problem| SteerError {
            address: self.text.clone(),
            problem,
        })
    }

    /// Steers to the slots in `rotation`, unless it is steered so already.
    pub(crate) fn steer_if_changed(&self, rotation: &[u16]) -> Result<Steered, SteerError> {
        match &self.kind {
            Kind::ReuseportGroup(slots) if slots.is_steered_to(rotation) => Ok(Steered::Unchanged),
            _ => self.steer(rotation),
        }
    }

    /// Steers to the slots in `rotation`. A shared socket needs no steering.
    pub(crate) fn steer(&self, rotation: &[u16]) -> Result<Steered, SteerError> {
        let Kind::ReuseportGroup(slots) = &self.kind else {
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
) -> Result<Option<AddressLock>, ListenProblem> {
    AddressLock::take(runtime_dir, &format!("{}-{}", address.ip(), address.port())).map_err(
        |holder| ListenProblem::PortInUse {
            port: address.port(),
            holder,
        },
    )
}

fn lock_unix(
    runtime_dir: Option<&Path>,
    wanted: &Wanted,
) -> Result<Option<AddressLock>, ListenProblem> {
    AddressLock::take(runtime_dir, &wanted.path.display().to_string())
        .map_err(|_| ListenProblem::SocketInUse)
}

/// Returns a name that `LISTEN_FDNAMES` can carry: printable ASCII without colons, 255 bytes at
/// most.
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
