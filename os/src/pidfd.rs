//! Processes by descriptor, which cannot come to mean another process.

use crate::descriptor::owned;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Opens a pidfd, closed on exec, for a process that has this number now.
///
/// # Errors
/// Those of pidfd_open(2); `ESRCH` when there is none.
pub fn open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
}

/// Sends a signal to the process of a pidfd.
///
/// # Errors
/// Those of pidfd_send_signal(2); `ESRCH` when it is dead.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal takes three integers, and a pointer that may be null.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as c_int,
            no_info,
            0,
        )
    };
    Errno::result(sent).map(drop)
}

/// Copies a descriptor of the process of a pidfd. The copy is closed on exec.
///
/// # Errors
/// Those of pidfd_getfd(2): it has no such descriptor, or this process must not look into it.
pub fn copy_descriptor(pidfd: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_getfd takes three integers and touches no memory.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })
}
