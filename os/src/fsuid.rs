//! Acting on files as another user for a moment.

use crate::identity::{Identity, set_groups};
use crate::process::ResetByUserChange;
use nix::errno::Errno;
use std::ffi::c_long;

/// Calls a function with the rights to files that `identity` has, and returns its result.
///
/// Only this thread changes, and it changes back, whatever happens: it must not go on as another
/// user else.
///
/// # Errors
/// Those of setgroups(2), and `EPERM` when the user or group cannot be changed.
///
/// # Panics
/// When there is no way back, which the kernel always gives to a process that could become another.
pub fn with_fsuid<T>(identity: &Identity, act: impl FnOnce() -> T) -> Result<T, Errno> {
    if identity.uid.is_none() && identity.gid.is_none() && identity.groups.is_none() {
        return Ok(act());
    }
    let mut restore = Restore {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: nix::unistd::getgroups()?
            .into_iter()
            .map(nix::unistd::Gid::as_raw)
            .collect(),
        reset: ResetByUserChange::save(),
        groups_changed: false,
        gid_changed: false,
        uid_changed: false,
    };
    if let Some(groups) = &identity.groups {
        set_groups(groups)?;
        restore.groups_changed = true;
    }
    if let Some(gid) = identity.gid {
        switch(libc::SYS_setfsgid, gid)?;
        restore.gid_changed = true;
    }
    if let Some(uid) = identity.uid {
        switch(libc::SYS_setfsuid, uid)?;
        restore.uid_changed = true;
    }
    Ok(act())
}

/// Sets the user or group for files. As the call returns only what was before, and not whether it
/// worked, it is made twice.
fn switch(call: c_long, id: u32) -> Result<(), Errno> {
    // SAFETY: setfsuid and setfsgid take an integer and touch no memory.
    let set = || unsafe { libc::syscall(call, id) };
    set();
    if set() == c_long::from(id) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// The way back from what was changed.
struct Restore {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    reset: ResetByUserChange,
    groups_changed: bool,
    gid_changed: bool,
    uid_changed: bool,
}

impl Drop for Restore {
    fn drop(&mut self) {
        let restored = (!self.uid_changed || switch(libc::SYS_setfsuid, self.uid).is_ok())
            && (!self.gid_changed || switch(libc::SYS_setfsgid, self.gid).is_ok())
            && (!self.groups_changed || set_groups(&self.groups).is_ok());
        assert!(
            restored,
            "a process that could become another user can become itself again"
        );
        self.reset.restore();
    }
}
