//! Unix sockets: the socket and its file.

use super::error::{ListenProblem, Operation, errno_of};
use super::socket_label::SocketLabel;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, lstat};
use nix::unistd::{Gid, Group, Uid, User, fchownat};
use std::cell::Cell;
use std::fs::Permissions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The longest path of a Unix socket, in bytes: sun_path less its end.
pub(crate) const PATH_MAX: usize = 107;

/// A Unix socket as configured, with user and group resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Absolute.
    pub(crate) path: PathBuf,
    pub(crate) mode: Option<u32>,
    pub(crate) owner: Option<Uid>,
    pub(crate) group: Option<Gid>,
}

impl Wanted {
    pub(crate) fn new(
        path: &Path,
        mode: Option<u32>,
        owner: Option<&str>,
        group: Option<&str>,
    ) -> Result<Self, ListenProblem> {
        let path = std::path::absolute(path).map_err(|_| ListenProblem::System {
            operation: Operation::BindUnix,
            errno: Errno::ENOENT,
        })?;
        let length = path.as_os_str().len();
        if length > PATH_MAX {
            return Err(ListenProblem::PathTooLong {
                length,
                limit: PATH_MAX,
            });
        }
        let owner = owner.map(|name| {
            let number = name.parse().map(Uid::from_raw).ok();
            let found = || User::from_name(name).ok().flatten().map(|user| user.uid);
            number
                .or_else(found)
                .ok_or_else(|| ListenProblem::NoUser(name.to_owned()))
        });
        let group = group.map(|name| {
            let number = name.parse().map(Gid::from_raw).ok();
            let found = || Group::from_name(name).ok().flatten().map(|group| group.gid);
            number
                .or_else(found)
                .ok_or_else(|| ListenProblem::NoGroup(name.to_owned()))
        });
        Ok(Self {
            path,
            mode,
            owner: owner.transpose()?,
            group: group.transpose()?,
        })
    }
}

/// The file of a socket that we bound. Removed on drop, if it is still ours.
#[derive(Debug)]
pub(crate) struct SocketFile {
    pub(crate) made_for: Wanted,
    /// Device and inode.
    pub(crate) identity: (u64, u64),
    /// Whether to leave it behind, because the socket is stored.
    pub(crate) stored: Cell<bool>,
}

impl SocketFile {
    /// Binds a socket that does not listen yet. A stale socket file, which no program listens on,
    /// is replaced.
    ///
    /// The file gets its owner and mode before a client can connect: until the socket listens, a
    /// client is refused whatever the mode. So it is bound under its own name, which is also what
    /// getsockname(2) tells a worker.
    pub(crate) fn bind(wanted: &Wanted) -> Result<(OwnedFd, Self), ListenProblem> {
        let failed = ListenProblem::system(Operation::BindUnix);
        let address = UnixAddr::new(&wanted.path).map_err(failed)?;
        remove_stale(&wanted.path, &address)?;
        let socket = new_socket().map_err(failed)?;
        bind(socket.as_raw_fd(), &address).map_err(|errno| match errno {
            // Another program bound it in the meantime.
            Errno::EADDRINUSE => ListenProblem::SocketInUse,
            errno => failed(errno),
        })?;
        let file = open(
            &wanted.path,
            OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        );
        let file = file.map_err(failed)?;
        let status = fstat(&file).map_err(failed)?;
        if file_kind(&status).is_some() {
            return Err(ListenProblem::SocketInUse);
        }
        // From here on a failure removes the file again.
        let this = Self {
            made_for: wanted.clone(),
            identity: (status.st_dev, status.st_ino),
            stored: Cell::new(false),
        };
        set_permissions(&file, wanted).map_err(ListenProblem::system(Operation::SetPermissions))?;
        Ok((socket, this))
    }

    /// Takes over the file of a socket that an earlier process bound, if it is the one with this
    /// device and inode, and sets the owner and mode that are configured now. Returns `None` when
    /// it is gone: no client can reach the socket then.
    pub(crate) fn adopt(
        wanted: &Wanted,
        identity: (u64, u64),
    ) -> Result<Option<Self>, ListenProblem> {
        let file = open(
            &wanted.path,
            OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        );
        let Ok(file) = file else { return Ok(None) };
        let status = fstat(&file).map_err(ListenProblem::system(Operation::BindUnix))?;
        if (status.st_dev, status.st_ino) != identity || file_kind(&status).is_some() {
            return Ok(None);
        }
        set_permissions(&file, wanted).map_err(ListenProblem::system(Operation::SetPermissions))?;
        Ok(Some(Self {
            made_for: wanted.clone(),
            identity,
            stored: Cell::new(false),
        }))
    }

    /// Returns the label under which the socket is stored.
    pub(crate) fn label(&self) -> SocketLabel {
        SocketLabel::File {
            identity: self.identity,
            path: self.made_for.path.clone(),
        }
    }

    /// Leaves the file behind when this is dropped.
    pub(crate) fn leave(&self) {
        self.stored.set(true);
    }

    /// Whether it was made with these permissions.
    pub(crate) fn was_made_for(&self, wanted: &Wanted) -> bool {
        let permissions = |file: &Wanted| (file.mode, file.owner, file.group);
        permissions(&self.made_for) == permissions(wanted)
    }

    /// Whether a path leads to it.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        identity(path) == Some(self.identity)
    }
}

/// Returns the device and inode of the file at a path.
pub(crate) fn identity(path: &Path) -> Option<(u64, u64)> {
    lstat(path)
        .ok()
        .map(|status| (status.st_dev, status.st_ino))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.stored.get() && self.is_at(&self.made_for.path) {
            let _ = nix::unistd::unlink(&self.made_for.path);
        }
    }
}

fn new_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// Removes a socket file that no program listens on.
///
/// # Errors
/// A program listens on it, or the file is no socket.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), ListenProblem> {
    if !is_stale(path, address)? {
        return Ok(());
    }
    match nix::unistd::unlink(path) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(ListenProblem::system(Operation::BindUnix)(errno)),
    }
}

/// Checks that a socket could be bound at a path, as far as what is there tells.
///
/// # Errors
/// A program listens there, or a file is there that is no socket.
pub(crate) fn probe(path: &Path) -> Result<(), ListenProblem> {
    let address = UnixAddr::new(path).map_err(ListenProblem::system(Operation::BindUnix))?;
    is_stale(path, &address).map(drop)
}

/// Returns whether a socket's file is there on which no program listens; false when nothing is.
///
/// # Errors
/// A program listens on it, or the file is no socket.
fn is_stale(path: &Path, address: &UnixAddr) -> Result<bool, ListenProblem> {
    let failed = ListenProblem::system(Operation::BindUnix);
    match lstat(path) {
        // A directory that is missing is for bind(2) to report.
        Err(Errno::ENOENT) => return Ok(false),
        Err(errno) => return Err(failed(errno)),
        Ok(status) => {
            if let Some(kind) = file_kind(&status) {
                return Err(ListenProblem::NotASocket(kind));
            }
        }
    }
    let client = new_socket().map_err(failed)?;
    match connect(client.as_raw_fd(), address) {
        Err(Errno::ENOENT) => Ok(false),
        Err(Errno::ECONNREFUSED) => Ok(true),
        // A full queue, or a socket of another type, belongs to a running program.
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Err(ListenProblem::SocketInUse),
        Err(errno) => Err(failed(errno)),
    }
}

/// Returns what a file is; `None` for a socket.
fn file_kind(status: &FileStat) -> Option<&'static str> {
    Some(
        match SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFSOCK => return None,
            SFlag::S_IFREG => "a regular file",
            SFlag::S_IFDIR => "a directory",
            SFlag::S_IFLNK => "a symbolic link",
            SFlag::S_IFIFO => "a named pipe",
            _ => "a device",
        },
    )
}

fn set_permissions(file: &OwnedFd, wanted: &Wanted) -> Result<(), Errno> {
    if wanted.owner.is_some() || wanted.group.is_some() {
        fchownat(file, "", wanted.owner, wanted.group, AtFlags::AT_EMPTY_PATH)?;
    }
    if let Some(mode) = wanted.mode {
        // By the descriptor: by path, a user with write access to the directory could make us
        // change another file.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        std::fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))
            .map_err(|error| errno_of(&error))?;
    }
    Ok(())
}
