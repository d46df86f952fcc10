//! What can be listened on.

use std::fmt;
use std::path::PathBuf;

/// An address, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    /// All addresses of a host, with one socket per slot each.
    Tcp {
        /// A v4 or v6 address, with or without brackets, or a name.
        host: String,
        /// The port; 0 for a free one.
        port: u16,
    },
    /// A Unix stream socket.
    Unix {
        /// Its file.
        path: PathBuf,
        /// The file's permissions; `None`: as the umask has it.
        mode: Option<u32>,
        /// The file's owner, a name or a number.
        owner: Option<String>,
        /// The file's group, a name or a number.
        group: Option<String>,
    },
    /// A listening socket that this process inherited.
    Fd(FdSource),
}

/// Which inherited descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum FdSource {
    /// The one with this number.
    Number(i32),
    /// All with this name: systemd gives every socket of a unit the same one.
    Name(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') && !host.starts_with('[') => {
                write!(f, "[{host}]:{port}")
            }
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
            Self::Fd(FdSource::Number(number)) => write!(f, "fd://{number}"),
            Self::Fd(FdSource::Name(name)) => write!(f, "fd://{name}"),
        }
    }
}
