//! The one system call that has no safe wrapper.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use testkit::process::Process;

/// A process, by a descriptor.
#[derive(Debug)]
pub(crate) struct ProcessFd(OwnedFd);

impl ProcessFd {
    /// Opens it.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn open(process: Process) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two numbers and touches no memory.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_open, process.0, 0) };
        adopt(result).map(Self)
    }

    /// A copy of one of its descriptors.
    ///
    /// # Errors
    /// When it has no such descriptor, or when we may not look into it.
    pub(crate) fn copy(&self, number: i32) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_getfd takes three numbers and touches no memory.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) };
        adopt(result)
    }
}

fn adopt(result: libc::c_long) -> io::Result<OwnedFd> {
    let number = i32::try_from(result).ok().filter(|number| *number >= 0);
    let number = number.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
