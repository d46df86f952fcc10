//! Listening sockets that this process was started with.

use super::address::AddressKey;
use super::error::{ListenProblem, Operation, errno_of};
use crate::config::Bind;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use prefork_protocol::environment::Inherited;
use socket2::SockRef;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// Returns the inherited sockets that an address names: one by number, perhaps several by name.
pub(crate) fn find<'a>(
    inherited: &'a [Inherited],
    bind: &Bind,
) -> Result<Vec<&'a Inherited>, ListenProblem> {
    let fits = |candidate: &&Inherited| match bind.address() {
        Bind::Fd(number) => candidate.socket.as_raw_fd() == *number,
        Bind::Inherited(name) => candidate.name == *name,
        Bind::Tcp { .. } | Bind::Unix { .. } | Bind::Named(..) => false,
    };
    let found: Vec<_> = inherited.iter().filter(fits).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let list = |one: &Inherited| format!("{} named {}", one.socket.as_raw_fd(), one.name);
    Err(ListenProblem::NotInherited(match inherited {
        [] => "none was".to_owned(),
        some => format!(
            "inherited: {}",
            some.iter().map(list).collect::<Vec<_>>().join(", ")
        ),
    }))
}

pub(crate) fn key(socket: &Inherited) -> AddressKey {
    AddressKey::Fd(socket.socket.as_raw_fd())
}

/// Returns a non-blocking copy of an inherited socket, and the address that it is bound to. The
/// original stays for later generations.
pub(crate) fn take(inherited: &Inherited) -> Result<(OwnedFd, String), ListenProblem> {
    let failed = ListenProblem::system(Operation::Inherit);
    match getsockopt(&inherited.socket, sockopt::SockType) {
        Ok(SockType::Stream) => {}
        Ok(_) => return Err(ListenProblem::NotListening("no stream socket")),
        Err(nix::errno::Errno::ENOTSOCK) => return Err(ListenProblem::NotListening("no socket")),
        Err(errno) => return Err(failed(errno)),
    }
    if !getsockopt(&inherited.socket, sockopt::AcceptConn).map_err(failed)? {
        return Err(ListenProblem::NotListening("not listening"));
    }
    let system = |error: std::io::Error| failed(errno_of(&error));
    let socket = inherited.socket.try_clone().map_err(system)?;
    prefork_os::set_nonblocking(&socket).map_err(system)?;
    let reference = SockRef::from(&socket);
    // As for our own TCP sockets; others refuse it.
    let _ = reference.set_tcp_nodelay(true);
    let address = reference.local_addr().map_err(system)?;
    let text = address
        .as_socket()
        .map(|address| address.to_string())
        .or_else(|| {
            address
                .as_pathname()
                .map(Path::display)
                .map(|path| format!("unix:{path}"))
        })
        .or_else(|| {
            address
                .as_abstract_namespace()
                .map(|name| format!("unix:@{}", String::from_utf8_lossy(name)))
        })
        .unwrap_or_else(|| format!("fd://{}", inherited.socket.as_raw_fd()));
    Ok((socket, text))
}
