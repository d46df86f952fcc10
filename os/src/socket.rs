//! Options of sockets.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Keeps every holder of a socket from changing its packet filter and its SO_REUSEPORT group's
/// program, for good: setsockopt(2) then refuses with EPERM. Processes that inherit the socket are
/// what it is for.
///
/// # Errors
/// Those of setsockopt(2).
pub fn lock_filter(socket: impl AsFd) -> io::Result<()> {
    set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1)
}

/// Has a TCP socket ignore packets that have come over a router, or from a machine that lets
/// packets live for fewer than 255 hops, as nearly all do. Needs no privilege.
///
/// # Errors
/// Those of setsockopt(2).
pub fn ignore_travelled_packets(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    // A v4 socket has no hop counts.
    set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, 255)
        .or_else(|_| set_option(socket, libc::IPPROTO_IP, libc::IP_MINTTL, 255))
}

pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(4);
    // SAFETY: the option's value is an int, which is valid for reads of `length` bytes.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Returns the supplementary groups of the peer of a Unix socket, as of its connect.
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<libc::gid_t>> {
    // The kernel's NGROUPS_MAX.
    let mut groups: Vec<libc::gid_t> = vec![0; 65_536];
    let mut length =
        libc::socklen_t::try_from(size_of_val(groups.as_slice())).unwrap_or(libc::socklen_t::MAX);
    // SAFETY: the kernel writes at most `length` bytes, which `groups` has.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(length as usize / size_of::<libc::gid_t>());
    Ok(groups)
}

/// The queue of a listening TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenQueue {
    /// Connections that wait to be accepted.
    pub length: u32,
    /// The most that may wait.
    pub limit: u32,
}

/// Returns the accept queue of a TCP socket; `None` while it does not listen.
///
/// # Errors
/// Those of getsockopt(2), such as `EOPNOTSUPP` for a socket that is no TCP socket.
pub fn listen_queue(socket: BorrowedFd<'_>) -> io::Result<Option<ListenQueue>> {
    const LISTEN: u8 = 10;
    // SAFETY: tcp_info is made of integers only, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which `info` has.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // Of a listening socket, the kernel tells its queue in these two fields (net/ipv4/tcp.c,
    // tcp_get_info).
    let queue = ListenQueue {
        length: info.tcpi_unacked,
        limit: info.tcpi_sacked,
    };
    Ok((info.tcpi_state == LISTEN).then_some(queue))
}
