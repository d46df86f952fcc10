//! Why an address cannot be served.

use super::address;
use crate::config::Bind;
use nix::errno::Errno;
use std::fmt;

/// An address that cannot be served, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenError {
    /// The address, as people write it. Of a name with several addresses, the one that failed.
    pub address: String,
    /// The reason.
    pub problem: ListenProblem,
}

/// Why an address cannot be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListenProblem {
    /// The host name has no address.
    Unresolved(String),
    /// Another program listens on this TCP port: a server with this pid, if it holds the address's
    /// lock.
    PortInUse {
        /// The port.
        port: u16,
        /// The holder of the lock.
        holder: Option<u32>,
    },
    /// Another program listens on this Unix socket.
    SocketInUse,
    /// The path is taken by something that is no socket.
    NotASocket(&'static str),
    /// The path of a Unix socket has too many bytes.
    PathTooLong {
        /// Its length.
        length: usize,
        /// What fits.
        limit: usize,
    },
    /// The address is bound already, with other permissions.
    OtherPermissions,
    /// There is no such user.
    NoUser(String),
    /// There is no such group.
    NoGroup(String),
    /// No such descriptor was inherited; this says which ones were.
    NotInherited(String),
    /// The inherited descriptor is no listening stream socket.
    NotListening(&'static str),
    /// The system refused.
    System {
        /// What was tried.
        operation: Operation,
        /// How it was refused.
        errno: Errno,
    },
}

/// What the system refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// To make or bind a TCP socket.
    BindTcp,
    /// To make or bind a Unix socket.
    BindUnix,
    /// To set the owner or mode of a Unix socket's file.
    SetPermissions,
    /// To have a bound socket listen.
    Listen,
    /// To use an inherited descriptor.
    Inherit,
}

impl ListenError {
    /// Creates the error of a configured address.
    pub(crate) fn of(bind: &Bind, problem: ListenProblem) -> Self {
        Self::new(&address::text(bind), problem)
    }

    /// Creates the error of an address that is known by its text only.
    pub(crate) fn new(address: &impl fmt::Display, problem: ListenProblem) -> Self {
        Self {
            address: address.to_string(),
            problem,
        }
    }
}

impl ListenProblem {
    pub(crate) fn system(operation: Operation) -> impl Fn(Errno) -> Self + Copy {
        move |errno| Self::System { operation, errno }
    }

    /// Whether this machine has no such address, or no such kind of address.
    pub(crate) fn is_no_such_address(&self) -> bool {
        matches!(
            self,
            Self::System {
                operation: Operation::BindTcp,
                errno: Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT
            }
        )
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, problem } = self;
        match problem {
            ListenProblem::System {
                operation: Operation::Listen,
                ..
            } => write!(f, "cannot listen on {address}: {problem}"),
            ListenProblem::NotInherited(_)
            | ListenProblem::NotListening(_)
            | ListenProblem::System {
                operation: Operation::Inherit,
                ..
            } => {
                write!(f, "cannot use {address}: {problem}")
            }
            _ => write!(f, "cannot bind {address}: {problem}"),
        }
    }
}

impl fmt::Display for ListenProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unresolved(reason) => write!(f, "{reason} (check the host name)"),
            Self::PortInUse { port, holder: None } => write!(
                f,
                "address in use (another supervisor or program listens there; \
                 `ss -ltnp 'sport = :{port}'` names it)"
            ),
            Self::PortInUse {
                holder: Some(pid), ..
            } => {
                write!(
                    f,
                    "address in use (another supervisor, pid {pid}, serves it; stop that one first)"
                )
            }
            Self::SocketInUse => {
                f.write_str("address in use (another program listens on it; `ss -lxp` names it)")
            }
            Self::NotASocket(kind) => {
                write!(
                    f,
                    "the path is {kind}, not a socket (remove it, or choose another path)"
                )
            }
            Self::PathTooLong { length, limit } => write!(
                f,
                "the path has {length} bytes, a Unix socket's at most {limit} \
                 (choose a shorter one)"
            ),
            Self::OtherPermissions => f.write_str(
                "it is served already, with another mode, owner or group \
                 (restart, or choose another path)",
            ),
            Self::NoUser(name) => write!(f, "there is no user {name} (check owner=)"),
            Self::NoGroup(name) => write!(f, "there is no group {name} (check group=)"),
            Self::NotInherited(what) => write!(
                f,
                "no such descriptor was inherited ({what}; \
                 LISTEN_FDS and LISTEN_PID announce them, as systemd sets them)"
            ),
            Self::NotListening(what) => write!(f, "it is {what} (pass a listening stream socket)"),
            Self::System { operation, errno } => {
                f.write_str(errno_text(*errno))?;
                remedy(*operation, *errno).map_or(Ok(()), |remedy| write!(f, " ({remedy})"))
            }
        }
    }
}

impl std::error::Error for ListenError {}

/// Returns the error number of a system call's error.
pub(super) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn errno_text(errno: Errno) -> &'static str {
    match errno {
        Errno::EACCES => "permission denied",
        Errno::EADDRNOTAVAIL => "no such address on this machine",
        other => other.desc(),
    }
}

fn remedy(operation: Operation, errno: Errno) -> Option<&'static str> {
    Some(match (operation, errno) {
        (Operation::BindTcp, Errno::EACCES) => {
            "run as root, or grant CAP_NET_BIND_SERVICE, or choose a port above 1023"
        }
        (Operation::BindTcp, Errno::EADDRNOTAVAIL) => {
            "`ip address` lists the machine's addresses; 0.0.0.0 or [::] is all"
        }
        (Operation::BindTcp, Errno::EAFNOSUPPORT) => "this machine has IPv6 switched off",
        (Operation::BindUnix, Errno::EACCES | Errno::EROFS) => {
            "this user must be able to write in the directory"
        }
        (Operation::BindUnix, Errno::ENOENT | Errno::ENOTDIR) => "create its directory first",
        (Operation::SetPermissions, Errno::EPERM) => {
            "only root can give a file away; a user can choose among its groups"
        }
        (_, Errno::EMFILE | Errno::ENFILE) => {
            "raise the limit of open files: ulimit -n, LimitNOFILE="
        }
        _ => return None,
    })
}
