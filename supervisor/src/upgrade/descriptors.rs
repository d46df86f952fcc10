//! The descriptors that cross an exec: by number, and told apart from whatever else may have that
//! number.

use super::give_up;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat};
use prefork_core::record;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A descriptor, as the state names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub(crate) struct Fd(pub(crate) RawFd);

/// What a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) enum Kind {
    /// A stream socket that clients connect to; bound, and perhaps not listening yet.
    Listener,
    /// The supervisor's end of a worker's channel.
    Channel,
    /// A worker's process.
    Process,
    /// The pipe that told of a failed exec.
    Pipe,
    /// The lock of an address.
    Lock,
    /// Memory that processes share.
    Memory,
    /// A program, opened by path only.
    Program,
    /// A datagram socket.
    Datagram,
    /// A connected stream socket.
    Stream,
}

/// A descriptor and what identifies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) fd: Fd,
    pub(crate) kind: Kind,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

record!(Descriptor {
    fd,
    kind,
    device,
    inode
});

/// Collects what has to stay open.
#[derive(Debug, Default)]
pub(crate) struct Packing {
    table: Vec<Descriptor>,
}

impl Packing {
    /// Has a descriptor stay open, and tells its name in the state.
    pub(crate) fn add(&mut self, kind: Kind, descriptor: &impl AsFd) -> Fd {
        let fd = Fd(descriptor.as_fd().as_raw_fd());
        // An open descriptor has a status; a wrong one would be refused by the reader of the state.
        let (device, inode) =
            fstat(descriptor).map_or((0, 0), |status| (status.st_dev, status.st_ino));
        self.table.push(Descriptor {
            fd,
            kind,
            device,
            inode,
        });
        fd
    }

    pub(crate) fn finish(self) -> Vec<Descriptor> {
        self.table
    }
}

/// Gives out what was left open, each descriptor once.
#[derive(Debug)]
pub(crate) struct Unpacking {
    open: BTreeMap<Fd, (Kind, OwnedFd)>,
}

impl Unpacking {
    /// Checks that every descriptor of a table is what it is said to be, and takes them over.
    pub(crate) fn open(table: &[Descriptor]) -> Self {
        let mut open = BTreeMap::new();
        for descriptor in table {
            let Descriptor {
                fd: Fd(number),
                kind,
                device,
                inode,
            } = *descriptor;
            if number < 3 || open.contains_key(&descriptor.fd) {
                give_up(&format!(
                    "descriptor {number} is named twice, or is a standard one"
                ));
            }
            let owned = prefork_os::adopt(number).unwrap_or_else(|error| {
                give_up(&format!(
                    "descriptor {number}, which should be a {kind:?}: {error}"
                ))
            });
            let found = fstat(&owned).map(|status| (status.st_dev, status.st_ino));
            if found != Ok((device, inode)) || !is_a(kind, owned.as_fd()) {
                give_up(&format!(
                    "descriptor {number} is not the {kind:?} that it should be"
                ));
            }
            open.insert(descriptor.fd, (kind, owned));
        }
        Self { open }
    }

    pub(crate) fn take(&mut self, fd: Fd, wanted: Kind) -> OwnedFd {
        match self.open.remove(&fd) {
            Some((kind, descriptor)) if kind == wanted => descriptor,
            _ => give_up(&format!(
                "descriptor {} is not in the table as a {wanted:?}",
                fd.0
            )),
        }
    }

    /// A process's descriptor, as of the one that it must be of. While a state is only checked, its
    /// owner goes on, and may have reaped the process by now.
    pub(crate) fn take_process(
        &mut self,
        fd: Fd,
        pid: i32,
        check: bool,
        who: &dyn Display,
    ) -> OwnedFd {
        let pidfd = self.take(fd, Kind::Process);
        let found = pid_of(pidfd.as_fd());
        if found != Some(pid) && !(check && found == Some(-1)) {
            give_up(&format!("{who}'s pidfd is not process {pid}'s"));
        }
        pidfd
    }

    /// Closes what was not taken: a newer version had a use for it.
    pub(crate) fn finish(self) -> usize {
        self.open.len()
    }
}

fn is_a(kind: Kind, descriptor: BorrowedFd<'_>) -> bool {
    let is_socket = |wanted: SockType| getsockopt(&descriptor, sockopt::SockType) == Ok(wanted);
    let format = || {
        fstat(descriptor).map_or(SFlag::empty(), |status| {
            SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits())
        })
    };
    match kind {
        Kind::Listener | Kind::Stream => is_socket(SockType::Stream),
        Kind::Channel => is_socket(SockType::SeqPacket),
        Kind::Datagram => is_socket(SockType::Datagram),
        Kind::Pipe => format() == SFlag::S_IFIFO,
        Kind::Lock | Kind::Memory => format() == SFlag::S_IFREG,
        Kind::Program => fcntl(descriptor, FcntlArg::F_GETFL)
            .is_ok_and(|flags| OFlag::from_bits_retain(flags).contains(OFlag::O_PATH)),
        Kind::Process => pid_of(descriptor).is_some(),
    }
}

/// The process that a pidfd is for; -1 when it has been reaped.
fn pid_of(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}
