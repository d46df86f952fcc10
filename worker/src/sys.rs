//! The system calls that need `unsafe` in this crate, each wrapped so that its caller needs none.
#![allow(unsafe_code)]

use hyper::rt::ReadBufCursor;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Takes one connection out of a listener's queue; `WouldBlock` when there is none, or when another process
/// was faster. The new descriptor is non-blocking and closed on exec.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: null pointers tell accept4 that nobody wants the peer's address.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: accept4 has just made this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads into hyper's buffer without zeroing it first. `keep` sees what was read and tells whether hyper may
/// have it; what it refuses is as if it had not been put there.
pub(crate) fn read_into(
    cursor: &mut ReadBufCursor<'_>,
    read: impl FnOnce(&mut [MaybeUninit<u8>]) -> io::Result<usize>,
    keep: impl FnOnce(&[u8]) -> bool,
) -> io::Result<usize> {
    // SAFETY: `recv` (all that `read` does, see `Connection`) only ever writes into the buffer.
    let buffer = unsafe { cursor.as_mut() };
    let length = read(buffer)?.min(buffer.len());
    // SAFETY: `read` says that it has written the first `length` bytes.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
    if keep(bytes) {
        // SAFETY: as above.
        unsafe { cursor.advance(length) };
    }
    Ok(length)
}

/// Closed sockets are errors of write(2) to a server, not reasons to die of SIGPIPE.
pub(crate) fn ignore_sigpipe() {
    // SAFETY: SIG_IGN is a valid disposition; no handler of ours can race with it.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Has the thread's tokio runtime watch a descriptor. Its owner must not exchange it for another while it is watched.
pub(crate) fn watch<T: AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: in this crate an owner names the same open descriptor until it is dropped, which is when tokio lets go of it; a
    // `Connection`, which gives a mere number, keeps the descriptor open until after that.
    Ok(unsafe { AsyncFd::register_with_interest(owner, interest) }?)
}

/// Writes once, as far as it goes; to a socket without waiting for whoever reads it.
pub(crate) fn put(fd: BorrowedFd<'_>, bytes: &[u8], socket: bool) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `bytes` is valid for reads of its length.
    let written = unsafe {
        match socket {
            true => libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags),
            false => libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()),
        }
    };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Seconds since 1970, and milliseconds, at a few milliseconds' resolution.
pub(crate) fn time_of_day() -> (i64, u32) {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_REALTIME_COARSE).map_or((0, 0), |now| {
        (
            now.tv_sec(),
            u32::try_from(now.tv_nsec() / 1_000_000).unwrap_or(0),
        )
    })
}

/// A time as a calendar and a clock tell it; months from 1, the offset from UTC in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalTime {
    pub(crate) year: i32,
    pub(crate) month: i32,
    pub(crate) day: i32,
    pub(crate) hour: i32,
    pub(crate) minute: i32,
    pub(crate) second: i32,
    pub(crate) offset: i64,
}

/// What the clocks say here at a second since 1970; UTC where the time zone cannot be read.
pub(crate) fn local_time(second: i64) -> LocalTime {
    // SAFETY: tm is made of integers and a pointer, for which zero is a value.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid; localtime_r keeps neither, and leaves `tm` alone when it fails.
    unsafe { libc::localtime_r(&raw const second, &raw mut tm) };
    LocalTime {
        year: tm.tm_year + 1900,
        month: tm.tm_mon + 1,
        day: tm.tm_mday,
        hour: tm.tm_hour,
        minute: tm.tm_min,
        second: tm.tm_sec,
        offset: tm.tm_gmtoff,
    }
}

/// Copies whatever descriptor has this number now. Closed on exec.
pub(crate) fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl touches no memory, and says so when there is no such descriptor.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fcntl has just made this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Nobody without privileges may look into this process from now on, not even another process of its user; so it
/// leaves no core dump either, except `when_aborted`: SIGABRT opens it again for the kernel's dump.
pub(crate) fn hide(when_aborted: bool) {
    /// Runs in any state of the process, a hung one too: system calls only.
    extern "C" fn open(signal: libc::c_int) {
        // SAFETY: these are async-signal-safe and take integers. The signal is blocked while this runs, so the one
        // that is raised here acts, by default, when this returns: the dump shows where the process was.
        unsafe {
            libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
    let handler: extern "C" fn(libc::c_int) = open;
    // SAFETY: prctl takes integers, and the handler is async-signal-safe.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        if when_aborted {
            libc::signal(libc::SIGABRT, handler as libc::sighandler_t);
        }
    }
}
