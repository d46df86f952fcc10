//! Directories of a process's own: empty memory in a mount namespace of its own, gone with it.

use crate::descriptor::owned;
use nix::errno::Errno;
use std::ffi::{CStr, c_int};

/// What is mounted there: every user may write, and none can fill the machine's memory.
const OPTIONS: &CStr = c"mode=1777,size=10%";

/// Directories that are to be covered by empty ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateTmp(pub Vec<&'static CStr>);

impl PrivateTmp {
    /// Covers the directories, for this process and those that it starts. Async-signal-safe.
    ///
    /// # Errors
    /// Those of unshare(2) and mount(2).
    pub fn enter(&self) -> Result<(), Errno> {
        let none = std::ptr::null();
        // SAFETY: unshare takes an integer and touches no memory.
        Errno::result(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        // What is mounted here stays here; what the machine mounts later is seen here, too.
        let flags = libc::MS_REC | libc::MS_SLAVE;
        // SAFETY: the path ends with a NUL; the other pointers may be null for this change.
        Errno::result(unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) })?;
        for directory in &self.0 {
            let (kind, flags) = (c"tmpfs".as_ptr(), libc::MS_NOSUID | libc::MS_NODEV);
            let options = OPTIONS.as_ptr().cast();
            // SAFETY: all four strings end with a NUL.
            Errno::result(unsafe { libc::mount(kind, directory.as_ptr(), kind, flags, options) })?;
        }
        Ok(())
    }
}

/// Checks that this process may mount such directories, by asking for an instance of the file
/// system and throwing it away: that needs the same privilege.
///
/// # Errors
/// Those of fsopen(2).
pub fn check() -> Result<(), Errno> {
    const CLOEXEC: c_int = 1;
    // SAFETY: the string ends with a NUL.
    let made = unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), CLOEXEC) };
    match owned(made) {
        Ok(instance) => {
            drop(instance);
            Ok(())
        }
        Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
    }
}
