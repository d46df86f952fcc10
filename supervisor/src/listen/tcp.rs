//! TCP sockets.

use super::error::{ListenProblem, Operation};
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;

/// All addresses of a host, each once. Asks the system's resolver for names, which may take its time.
pub(crate) fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, ListenProblem> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let found = (bare, port)
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

/// Checks that nobody listens on the address. SO_REUSEPORT would let a second server of the same user in, to take
/// half of the connections of the first.
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

/// Where a socket is bound.
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
        // Or [::]:80 would take 0.0.0.0:80 as well, and whether it does would depend on a sysctl.
        socket.set_only_v6(true)?;
    }
    // Or connections of an earlier server, in TIME_WAIT, would keep the port for a minute.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    // Accepted connections inherit it, and save the call.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn problem(error: &io::Error, address: SocketAddr) -> ListenProblem {
    match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
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
