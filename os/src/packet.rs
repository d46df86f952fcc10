//! Packets of Unix sockets, with what the kernel delivers beside them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Receives one packet into `buffer`; the second value tells whether the packet was longer than the
/// buffer.
///
/// # Errors
/// Those of recv(2); `WouldBlock` when there is none. A length of 0 means that the other side is
/// gone.
pub fn receive_packet(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    // SAFETY: `buffer` is valid for writes of its length.
    let length = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT | libc::MSG_TRUNC,
        )
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    Ok((length.min(buffer.len()), length > buffer.len()))
}

/// A packet whose sender the kernel has named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Bytes received.
    pub length: usize,
    /// The packet was longer than the buffer.
    pub cut: bool,
    /// The sender's pid; 0 when it is not told, as of a socket without `SO_PASSCRED`, or of another
    /// pid namespace.
    pub sender: libc::pid_t,
}

/// Receives one packet into `buffer`, with its sender. Descriptors that come along are not taken:
/// there is no room for them, so that the kernel closes them before they have a number here. (A
/// caller that takes them must close them, and cannot tell how many there are once this process has
/// no numbers left.)
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` when there is none.
pub fn receive_with_sender(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Sent> {
    // SAFETY: CMSG_SPACE is arithmetic.
    const ROOM: usize = unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as u32) } as usize;
    let mut control = Control([0; ROOM]);
    let received = receive(socket, buffer, &mut control, ROOM)?;
    let mut sender = 0;
    if let Some(first) = received.first
        && (first.cmsg_level, first.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS)
    {
        // SAFETY: the kernel writes a message of this type as a whole ucred after its header, or
        // not at all.
        sender = unsafe {
            libc::CMSG_DATA(first)
                .cast::<libc::ucred>()
                .read_unaligned()
        }
        .pid;
    }
    Ok(Sent {
        length: received.length,
        cut: received.cut,
        sender,
    })
}

/// Room for messages beside a packet, aligned as they must be.
#[repr(C, align(8))]
struct Control<const ROOM: usize>([u8; ROOM]);

/// A packet, and the header of the first message beside it, which stands in its control buffer with
/// all that belongs to it.
struct Received<'a> {
    length: usize,
    cut: bool,
    first: Option<&'a libc::cmsghdr>,
}

/// Receives one packet, without waiting, with room for `room` bytes beside it.
fn receive<'a, const ROOM: usize>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    control: &'a mut Control<ROOM>,
    room: usize,
) -> io::Result<Received<'a>> {
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: msghdr is made of integers and pointers only, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut *control).cast();
    header.msg_controllen = room.min(ROOM) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `header` names one buffer and one control buffer, both valid for writes of the
    // lengths beside them.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: recvmsg has left `header` valid; CMSG_FIRSTHDR gives a header within the control
    // buffer, or null.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header).as_ref() };
    Ok(Received {
        length,
        cut: header.msg_flags & libc::MSG_TRUNC != 0,
        first,
    })
}

/// Receives one packet into `buffer`: its length, whether it was longer than the buffer, and the
/// descriptor that has come along, closed on exec. There is room for one.
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` when there is none. A length of 0 means that the other side is
/// gone.
pub fn receive_with_descriptor(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, bool, Option<OwnedFd>)> {
    // SAFETY: CMSG_SPACE is arithmetic.
    const ROOM: usize = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as usize;
    // SAFETY: CMSG_LEN is arithmetic.
    const ONE: usize = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) } as usize;
    let mut control = Control([0; ROOM]);
    // Not a byte more: padding would be room for a second descriptor.
    let received = receive(socket, buffer, &mut control, ONE)?;
    let mut descriptor = None;
    if let Some(first) = received.first
        && (first.cmsg_level, first.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS)
        && first.cmsg_len.checked_sub(ONE as _) == Some(0)
    {
        // SAFETY: the kernel has written one descriptor after this header, new in this process, so
        // nothing else owns it.
        descriptor = Some(unsafe {
            OwnedFd::from_raw_fd(libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned())
        });
    }
    Ok((received.length, received.cut, descriptor))
}
