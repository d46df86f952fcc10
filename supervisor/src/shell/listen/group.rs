//! The sockets of one address.

use super::error::{Act, ListenError, Problem};
use super::inherited;
use super::lock::AddressLock;
use super::steer::{self, SteerError, Steered};
use super::tcp;
use super::unix::{SocketFile, Wanted};
use nix::errno::Errno;
use prefork::environment::Inherited;
use socket2::SockRef;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What makes an address the same address at the next reload.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// As asked for: its port may be 0.
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// The number under which it was inherited.
    Fd(RawFd),
}

#[derive(Debug)]
pub(super) struct Group {
    key: Key,
    /// The address, for people.
    text: String,
    /// The name for `LISTEN_FDNAMES`.
    name: String,
    kind: Kind,
    _lock: Option<AddressLock>,
}

#[derive(Debug)]
enum Kind {
    /// One socket per slot; the first `open` of them listen.
    Slots { address: SocketAddr, sockets: RefCell<Vec<Rc<OwnedFd>>>, open: Cell<usize>, backlog: Cell<u32> },
    /// A Unix socket for all. Its file goes when the group goes.
    File { file: SocketFile, socket: Rc<OwnedFd> },
    /// An inherited socket for all. It listens, with the backlog of whoever made it.
    Inherited { socket: Rc<OwnedFd> },
}

impl Group {
    /// Binds the first socket of a TCP address, unless somebody else has the address. When another group of
    /// `ours` overlaps it (as 0.0.0.0 does every address), that one keeps others out, and is in our own way.
    pub(super) fn tcp(asked: SocketAddr, ours: bool, runtime_dir: Option<&Path>) -> Result<Self, Problem> {
        let lock = |address: SocketAddr| {
            AddressLock::take(runtime_dir, &format!("{}-{}", address.ip(), address.port()))
                .map_err(|holder| Problem::PortInUse { port: address.port(), holder })
        };
        // For a free port there is nobody to ask, and no name for the lock yet.
        let early = if asked.port() == 0 { None } else { lock(asked)? };
        if asked.port() != 0 && !ours {
            tcp::probe(asked)?;
        }
        let first = tcp::bind(asked)?;
        let address = tcp::local_address(&first)?;
        let lock = if asked.port() == 0 { lock(address)? } else { early };
        let ip = match address {
            SocketAddr::V4(v4) => v4.ip().to_string(),
            SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
        };
        Ok(Self {
            key: Key::Tcp(asked),
            text: address.to_string(),
            name: socket_name(&format!("tcp-{ip}-{}", address.port())),
            kind: Kind::Slots {
                address,
                sockets: RefCell::new(vec![Rc::new(first)]),
                open: Cell::new(0),
                backlog: Cell::new(0),
            },
            _lock: lock,
        })
    }

    pub(super) fn unix(wanted: &Wanted, runtime_dir: Option<&Path>) -> Result<Self, Problem> {
        let path = wanted.path.display().to_string();
        let lock = AddressLock::take(runtime_dir, &path).map_err(|_| Problem::SocketInUse)?;
        let (socket, file) = SocketFile::bind(wanted)?;
        Ok(Self {
            key: Key::Unix(wanted.path.clone()),
            text: format!("unix:{path}"),
            name: socket_name(&format!("unix-{path}")),
            kind: Kind::File { file, socket: Rc::new(socket) },
            _lock: lock,
        })
    }

    pub(super) fn inherited(socket: &Inherited) -> Result<Self, Problem> {
        let (socket_copy, text) = inherited::take(socket)?;
        Ok(Self {
            key: inherited::key(socket),
            text,
            name: socket_name(&socket.name),
            kind: Kind::Inherited { socket: Rc::new(socket_copy) },
            _lock: None,
        })
    }

    /// Whether an address with this key is served by this group. A group that chose its port also answers to it.
    pub(super) fn answers_to(&self, key: &Key) -> bool {
        self.key == *key
            || matches!((&self.kind, key), (Kind::Slots { address, .. }, Key::Tcp(asked)) if address == asked)
    }

    /// Whether both cannot be bound without SO_REUSEPORT: the same port, and one of them is every address.
    pub(super) fn overlaps(&self, other: SocketAddr) -> bool {
        let Kind::Slots { address, .. } = &self.kind else { return false };
        address.port() == other.port()
            && address.is_ipv4() == other.is_ipv4()
            && (address.ip().is_unspecified() || other.ip().is_unspecified())
    }

    /// Whether this is no Unix socket, or one with these permissions.
    pub(super) fn has_permissions(&self, wanted: &Wanted) -> bool {
        match &self.kind {
            Kind::File { file, .. } => file.was_made_for(wanted),
            Kind::Slots { .. } | Kind::Inherited { .. } => true,
        }
    }

    pub(super) fn is_shared(&self) -> bool {
        !matches!(self.kind, Kind::Slots { .. })
    }

    /// Slots whose sockets listen: these and those before them. None where all share one.
    pub(super) fn open_slots(&self) -> u16 {
        match &self.kind {
            Kind::Slots { open, .. } => u16::try_from(open.get()).unwrap_or(u16::MAX),
            Kind::File { .. } | Kind::Inherited { .. } => 0,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn describe(&self) -> String {
        self.text.clone()
    }

    /// Binds the sockets that are missing for `slots` slots. Only [`add`](Self::add) makes them the group's.
    pub(super) fn more_sockets(&self, slots: u16) -> Result<Vec<OwnedFd>, ListenError> {
        let Kind::Slots { address, sockets, .. } = &self.kind else { return Ok(Vec::new()) };
        (sockets.borrow().len()..usize::from(slots))
            .map(|_| tcp::bind(*address).map_err(|problem| ListenError::new(address, problem)))
            .collect()
    }

    /// Adds sockets, and returns all: one per slot, or the one for all.
    pub(super) fn add(&self, more: Vec<OwnedFd>) -> Vec<Rc<OwnedFd>> {
        match &self.kind {
            Kind::Slots { sockets, .. } => {
                sockets.borrow_mut().extend(more.into_iter().map(Rc::new));
                sockets.borrow().clone()
            }
            Kind::File { socket, .. } | Kind::Inherited { socket } => vec![Rc::clone(socket)],
        }
    }

    /// Has the sockets of the first `slots` slots listen.
    pub(super) fn open(&self, slots: u16, wanted: u32) -> Result<(), ListenError> {
        let backlog_limit = i32::try_from(wanted).unwrap_or(i32::MAX);
        let listen = |socket: &OwnedFd| {
            SockRef::from(socket).listen(backlog_limit).map_err(|error| {
                let problem = match (Errno::from_raw(error.raw_os_error().unwrap_or(0)), &self.kind) {
                    (Errno::EADDRINUSE, Kind::Slots { address, .. }) => {
                        Problem::PortInUse { port: address.port(), holder: None }
                    }
                    (errno, _) => Problem::System { act: Act::Listen, errno },
                };
                ListenError::new(&self.text, problem)
            })
        };
        match &self.kind {
            Kind::Slots { sockets, open, backlog, .. } => {
                let sockets = sockets.borrow();
                // To listen again on a listening socket changes its backlog, and nothing else.
                let first = if backlog.replace(wanted) == wanted { open.get() } else { 0 };
                let last = usize::from(slots).max(open.get()).min(sockets.len());
                for (index, socket) in sockets.iter().enumerate().take(last).skip(first) {
                    listen(socket)?;
                    open.set(open.get().max(index + 1));
                }
                Ok(())
            }
            Kind::File { socket, .. } => listen(socket),
            Kind::Inherited { .. } => Ok(()),
        }
    }

    pub(super) fn steer(&self, rotation: &[u16]) -> Result<Steered, SteerError> {
        let Kind::Slots { sockets, open, .. } = &self.kind else { return Ok(Steered::Unchanged) };
        match sockets.borrow().first() {
            // Before the first listen(2) there is no group to steer.
            Some(first) if open.get() > 0 => steer::attach(first, &self.text, rotation, open.get()),
            _ => Ok(Steered::Unchanged),
        }
    }
}

/// A name that `LISTEN_FDNAMES` can carry: printable ASCII without colons, 255 bytes at most.
fn socket_name(text: &str) -> String {
    let safe = |letter: char| if letter.is_ascii_graphic() && letter != ':' { letter } else { '_' };
    text.chars().map(safe).take(255).collect()
}
