//! What identifies an address: across reloads, and in messages.

use crate::config::Bind;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;

/// What makes an address the same address at the next reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AddressKey {
    /// As asked for: its port may be 0.
    Tcp(SocketAddr),
    /// The absolute path of a Unix socket.
    Unix(PathBuf),
    /// The number under which a socket was inherited.
    Fd(RawFd),
}

/// Returns the address for messages: a Unix socket's without mode, owner and group.
pub(crate) fn text(bind: &Bind) -> String {
    match bind.address() {
        Bind::Unix { path, .. } => format!("unix:{}", path.display()),
        address => address.to_string(),
    }
}
