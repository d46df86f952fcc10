//! Becoming another program in this very process.

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use std::ffi::CString;
use std::os::fd::{AsFd, RawFd};

/// Becomes a program that was opened by descriptor, which inherits the descriptors `kept` under
/// their numbers. Returns only when that fails; they are closed on exec again then.
pub fn exec_with(program: impl AsFd, argv: &[CString], env: &[CString], kept: &[RawFd]) -> Errno {
    close_on_exec(kept, false);
    let failed = nix::unistd::execveat(program, c"", argv, env, AtFlags::AT_EMPTY_PATH);
    close_on_exec(kept, true);
    match failed {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

fn close_on_exec(descriptors: &[RawFd], close: bool) {
    let flag = if close { libc::FD_CLOEXEC } else { 0 };
    for number in descriptors {
        // SAFETY: the flag of a descriptor is changed and nothing else; one that is not open is an
        // error. That the flag is missing is seen by no other code of this process (see `adopt`):
        // `exec_with` sets it before it returns.
        unsafe { libc::fcntl(*number, libc::F_SETFD, flag) };
    }
}
