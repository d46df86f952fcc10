//! TCP sockets.

use super::error::{ListenProblem, Operation, errno_of};
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;

/// Returns all addresses of a host, each once. Names are resolved by the C library, which may
/// block.
pub(crate) fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, ListenProblem> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let found = (host, port)
        .to_socket_addrs()
        .map_err(|error| ListenProblem::Unresolved(error.to_string()))?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(ListenProblem::Unresolved(
            "the name has no address".to_owned(),
        ));
    }
    Ok(addresses)
}

/// Checks that no program listens on the address. SO_REUSEPORT would let a second server of the
/// same user bind it, and take half of the connections of the first.
pub(crate) fn probe(address: SocketAddr) -> Result<(), ListenProblem> {
    new_socket(address, false)
        .map(drop)
        .map_err(|error| problem(&error, address))
}

/// Binds a socket that shares its address with others of this server. It does not listen yet.
pub(crate) fn bind(address: SocketAddr) -> Result<OwnedFd, ListenProblem> {
    new_socket(address, true)
        .map(OwnedFd::from)
        .map_err(|error| problem(&error, address))
}

/// Binds a socket that shares its address with no other. It does not listen yet.
pub(crate) fn bind_exclusive(address: SocketAddr) -> Result<OwnedFd, ListenProblem> {
    new_socket(address, false)
        .map(OwnedFd::from)
        .map_err(|error| problem(&error, address))
}

/// Returns where a socket is bound.
pub(crate) fn local_address(socket: &OwnedFd) -> Result<SocketAddr, ListenProblem> {
    let address = socket2::SockRef::from(socket).local_addr();
    address
        .ok()
        .and_then(|address| address.as_socket())
        .ok_or(ListenProblem::System {
            operation: Operation::BindTcp,
            errno: Errno::EAFNOSUPPORT,
        })
}

fn new_socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Else [::]:80 could include 0.0.0.0:80, depending on a sysctl.
        socket.set_only_v6(true)?;
    }
    // Else connections of an earlier server, in TIME_WAIT, would block the port for a minute.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    // Accepted connections inherit it, and save the call.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn problem(error: &io::Error, address: SocketAddr) -> ListenProblem {
    match errno_of(error) {
        Errno::EADDRINUSE => ListenProblem::PortInUse {
            port: address.port(),
            holder: None,
        },
        errno => ListenProblem::System {
            operation: Operation::BindTcp,
            errno,
        },
    }
}
