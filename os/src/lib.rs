//! The few system calls that need `unsafe` on both sides, each wrapped so that its caller needs none.
//!
//! The only other modules with `unsafe` are the supervisor's spawn and signal code.
#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::time::Duration;

/// Time since an arbitrary start, by the clock that never jumps. The same in every process of a machine.
pub fn monotonic() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid timespec to write to; CLOCK_MONOTONIC cannot fail on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// [`monotonic`] in whole microseconds.
pub fn monotonic_us() -> u64 {
    u64::try_from(monotonic().as_micros()).unwrap_or(u64::MAX)
}

/// [`monotonic`] in whole milliseconds.
pub fn monotonic_ms() -> u64 {
    u64::try_from(monotonic().as_millis()).unwrap_or(u64::MAX)
}

/// Memory shared with other processes through a descriptor; unmapped when dropped.
#[derive(Debug)]
pub struct SharedMemory {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is plain memory that lives until drop; whoever reads or writes it must do so by atomics,
// which `scoreboard` (the only user) does.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Maps the first `length` bytes of `memory`, readable and writable.
    ///
    /// # Errors
    /// Those of mmap(2), and `InvalidData` when the file is shorter than `length`.
    pub fn map(memory: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        let size = nix::sys::stat::fstat(memory)?.st_size;
        if usize::try_from(size).unwrap_or(0) < length {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{size} bytes of {length}"),
            ));
        }
        let size = NonZeroUsize::new(length)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing; the file was checked to be
        // long enough, and its seals (see `sealed_memory`) keep it from shrinking.
        let start = unsafe {
            nix::sys::mman::mmap(
                None,
                size,
                nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE,
                nix::sys::mman::MapFlags::MAP_SHARED,
                memory,
                0,
            )?
        };
        Ok(Self {
            start: start.cast(),
            length,
        })
    }

    /// A reference to the `T` at `offset`.
    ///
    /// # Panics
    /// When `T` does not fit there or would be misaligned.
    pub fn at<T: AnyBytes>(&self, offset: usize) -> &T {
        assert!(offset.is_multiple_of(align_of::<T>()), "misaligned row");
        assert!(
            offset
                .checked_add(size_of::<T>())
                .is_some_and(|end| end <= self.length),
            "row out of bounds"
        );
        // SAFETY: in bounds and aligned (just asserted; the mapping starts at a page), valid for any bytes
        // (`AnyBytes`), alive as long as `self`.
        unsafe { self.start.byte_add(offset).cast::<T>().as_ref() }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `map` made; no reference outlives `self`.
        let _ = unsafe { nix::sys::mman::munmap(self.start.cast(), self.length) };
    }
}

/// Types made of atomics only, for which any bytes are a valid value.
///
/// # Safety
/// Every field must be an atomic integer, or an array of them.
pub unsafe trait AnyBytes: Sync {}

// SAFETY: it is one.
unsafe impl AnyBytes for std::sync::atomic::AtomicU64 {}

/// Makes an anonymous memory file of `length` zero bytes that nobody can shrink or grow any more.
///
/// # Errors
/// Those of memfd_create(2), ftruncate(2) and fcntl(2).
pub fn sealed_memory(name: &str, length: usize) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let memory = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let length = i64::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    nix::unistd::ftruncate(&memory, length)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(memory)
}

/// Takes ownership of a descriptor that this process inherited, and sets its close-on-exec flag.
///
/// # Errors
/// `EBADF` when no such descriptor is open.
///
/// # Safety
/// Nobody else in this process may own `fd`.
pub unsafe fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD and F_SETFD touch only the descriptor's flags.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFD);
        if flags < 0 || libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: open (just seen), and not owned by anybody else (the caller's promise).
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Keeps every holder of a socket from changing its packet filter and its SO_REUSEPORT group's program, for good:
/// setsockopt(2) then refuses with EPERM. Processes that inherit the socket are what it is for.
///
/// # Errors
/// Those of setsockopt(2).
pub fn lock_filter(socket: impl AsFd) -> io::Result<()> {
    set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1)
}

/// Has a TCP socket ignore packets that have come over a router, or from a machine that lets packets live for fewer than
/// 255 hops, as nearly all do. Needs no privilege.
///
/// # Errors
/// Those of setsockopt(2).
pub fn ignore_travelled_packets(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    // A v4 socket has no hop counts.
    set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, 255)
        .or_else(|_| set_option(socket, libc::IPPROTO_IP, libc::IP_MINTTL, 255))
}

fn set_option(
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

/// Makes a descriptor non-blocking. The flag belongs to the open file, so every process that shares it sees it.
///
/// # Errors
/// Those of fcntl(2).
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let fd = fd.as_fd();
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Receives one packet into `buffer`; the second value tells whether the packet was longer than the buffer.
///
/// # Errors
/// Those of recv(2); `WouldBlock` when there is none. A length of 0 means that the other side is gone.
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
    /// The sender's pid; 0 when it is not told, as of a socket without `SO_PASSCRED`, or of another pid namespace.
    pub sender: libc::pid_t,
}

/// Receives one packet into `buffer`, with its sender. Descriptors that come along are not taken: there is no room for
/// them, so that the kernel closes them before they have a number here. (Whoever takes them must close them, and
/// cannot tell how many there are once this process has no numbers left.)
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
        // SAFETY: the kernel writes a message of this type as a whole ucred after its header, or not at all.
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

/// A packet, and the header of the first message beside it, which stands in its control buffer with all that belongs to it.
struct Received<'a> {
    length: usize,
    cut: bool,
    first: Option<&'a libc::cmsghdr>,
}

/// Receives one packet, without waiting, with room for so many bytes beside it.
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
    // SAFETY: `header` names one buffer and one control buffer, both valid for writes of the lengths beside them.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: recvmsg has left `header` valid; CMSG_FIRSTHDR gives a header within the control buffer, or null.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header).as_ref() };
    Ok(Received {
        length,
        cut: header.msg_flags & libc::MSG_TRUNC != 0,
        first,
    })
}

/// Receives one packet into `buffer`: its length, whether it was longer than the buffer, and the descriptor that has come
/// along, closed on exec. There is room for one.
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` when there is none. A length of 0 means that the other side is gone.
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
        && first.cmsg_len == ONE as _
    {
        // SAFETY: the kernel has written one descriptor after this header, new in this process, so nobody else owns it.
        descriptor = Some(unsafe {
            OwnedFd::from_raw_fd(libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned())
        });
    }
    Ok((received.length, received.cut, descriptor))
}

/// The groups, besides its main one, of whoever connected to a Unix socket, as they were then.
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

/// The queue of a TCP socket, whoever accepts from it; `None` while it does not listen.
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
    // Of a listening socket, the kernel tells its queue in these two fields (net/ipv4/tcp.c, tcp_get_info).
    let queue = ListenQueue {
        length: info.tcpi_unacked,
        limit: info.tcpi_sacked,
    };
    Ok((info.tcpi_state == LISTEN).then_some(queue))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_memory_cannot_shrink() {
        let memory = sealed_memory("test", 4096).expect("memfd");
        assert_eq!(
            nix::unistd::ftruncate(&memory, 1),
            Err(nix::errno::Errno::EPERM)
        );
        assert!(
            SharedMemory::map(memory.as_fd(), 8192).is_err(),
            "shorter than asked for"
        );
    }
}
