//! A network namespace of one's own.

use super::{NotPossible, failed};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};
use std::fs;

/// Moves this thread into a new network namespace; without the right to do so, into a new user
/// namespace as well.
pub(super) fn enter() -> Result<(), NotPossible> {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => return Ok(()),
        Err(Errno::EPERM) => {}
        Err(error) => return Err(failed("cannot make a network namespace")(error.into())),
    }
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(|error| {
        match error {
        // The kernel moves no thread of several into another user namespace.
        Errno::EINVAL => NotPossible(
            "cannot make a user namespace in a process with several threads (begin with it, or run \
             as root)"
                .to_owned(),
        ),
        error => failed("cannot make a user and a network namespace (run as root)")(error.into()),
    }
    })?;
    // Who is root inside is who we are outside. The kernel demands that groups are given up before.
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ];
    for (file, text) in maps {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(failed(&format!("cannot write {file}")))?;
    }
    Ok(())
}
