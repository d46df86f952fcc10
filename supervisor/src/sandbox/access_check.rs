//! Looking at files with another user's eyes, so that what workers cannot reach is found before any is started.
#![allow(unsafe_code)]

use super::identity::{Identity, Own};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};
use std::ffi::c_long;
use std::path::Path;

/// Does something with the rights to files that `identity` has, and gives what came of it.
///
/// Only this thread changes, and it changes back, whatever happens: it must not go on as somebody else.
pub(crate) fn with_eyes_of<T>(
    own: &Own,
    identity: &Identity,
    act: impl FnOnce() -> T,
) -> Result<T, String> {
    if identity.uid.is_none() && identity.gid.is_none() && identity.groups.is_none() {
        return Ok(act());
    }
    let mut back = Back {
        own,
        traits: Traits::now(),
        groups: false,
        gid: false,
        uid: false,
    };
    let failed = |errno: Errno| {
        format!(
            "cannot look at files as another user: {} (allow setgroups, setfsgid and setfsuid, as by SystemCallFilter=)",
            errno.desc()
        )
    };
    if let Some(groups) = &identity.groups {
        set_groups(groups).map_err(failed)?;
        back.groups = true;
    }
    if let Some(gid) = identity.gid {
        switch(libc::SYS_setfsgid, gid).map_err(failed)?;
        back.gid = true;
    }
    if let Some(uid) = identity.uid {
        switch(libc::SYS_setfsuid, uid).map_err(failed)?;
        back.uid = true;
    }
    Ok(act())
}

/// Whether a directory can be entered.
pub(crate) fn can_enter(path: &Path) -> Result<(), Errno> {
    access(path, AccessFlags::X_OK)
}

/// Whether a file can be written, or be made if there is none.
pub(crate) fn can_write(path: &Path) -> Result<(), Errno> {
    match access(path, AccessFlags::W_OK) {
        Err(Errno::ENOENT) => {
            let directory = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            access(
                directory.unwrap_or(Path::new(".")),
                AccessFlags::W_OK | AccessFlags::X_OK,
            )
        }
        known => known,
    }
}

fn access(path: &Path, how: AccessFlags) -> Result<(), Errno> {
    faccessat(AT_FDCWD, path, how, AtFlags::AT_EACCESS)
}

fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many numbers as the slice has.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
        .map(drop)
}

/// As the call tells only what was before, and not whether it worked, it is asked twice.
fn switch(call: c_long, id: u32) -> Result<(), Errno> {
    // SAFETY: a plain system call on an integer.
    let set = || unsafe { libc::syscall(call, id) };
    set();
    if set() == c_long::from(id) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// What the kernel resets in a process whose user changes, if only for files.
pub(crate) struct Traits {
    dumpable: bool,
    death_signal: libc::c_int,
}

impl Traits {
    pub(crate) fn now() -> Self {
        let mut death_signal = 0;
        // SAFETY: the kernel writes one integer there; the other call takes integers only.
        let dumpable = unsafe {
            libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut death_signal, 0, 0, 0);
            libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0)
        };
        Self {
            dumpable: dumpable == 1,
            death_signal,
        }
    }

    pub(crate) fn restore(&self) {
        // SAFETY: plain system calls on integers.
        unsafe {
            if self.dumpable {
                libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            }
            if self.death_signal != 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, self.death_signal, 0, 0, 0);
            }
        }
    }
}

/// The way back from what was changed.
struct Back<'a> {
    own: &'a Own,
    traits: Traits,
    groups: bool,
    gid: bool,
    uid: bool,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        let undo =
            |changed: bool, undone: &dyn Fn() -> Result<(), Errno>| !changed || undone().is_ok();
        let back = undo(self.uid, &|| switch(libc::SYS_setfsuid, self.own.uid))
            && undo(self.gid, &|| switch(libc::SYS_setfsgid, self.own.gid))
            && undo(self.groups, &|| set_groups(&self.own.groups));
        assert!(
            back,
            "whoever could become another user can become itself again"
        );
        self.traits.restore();
    }
}
