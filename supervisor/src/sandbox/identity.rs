//! Users, groups and capabilities: what a process is turned into, and in which order.
//!
//! The order matters, since each step takes away what an earlier one needs: groups need CAP_SETGID and the bounding
//! set CAP_SETPCAP, which go with the user; a capability becomes ambient only when it is permitted and inheritable.
//! [`STEPS`] is that order. Every step is async-signal-safe and allocates nothing.
#![allow(unsafe_code)]

use super::capabilities;
use super::capabilities::Held;
use crate::config::{Account, Capabilities, Privileges};
use crate::process::spawn::Stage;
use nix::errno::Errno;
use std::ffi::{OsStr, OsString};

/// What a process is turned into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `None`: the groups are right already.
    pub(crate) groups: Option<Vec<u32>>,
    pub(crate) gid: Option<u32>,
    pub(crate) uid: Option<u32>,
    /// What it keeps; `None`: nothing is changed about capabilities.
    pub(crate) keep: Option<Capabilities>,
    /// What is taken out of the bounding set.
    pub(crate) unbound: Capabilities,
}

/// What a step of [`STEPS`] does.
pub(crate) type Step = fn(&Identity) -> Result<(), Errno>;

/// The way from one identity to another.
pub(crate) const STEPS: [(Stage, Step); 6] = [
    (Stage::Capabilities, Identity::inherit),
    (Stage::Capabilities, Identity::leave_bounds),
    (Stage::Groups, Identity::take_groups),
    (Stage::Identity, Identity::take_group),
    (Stage::Identity, Identity::take_user),
    (Stage::Capabilities, Identity::keep_only),
];

impl Identity {
    /// Changes nothing.
    pub(crate) const SAME: Self = Self {
        groups: None,
        gid: None,
        uid: None,
        keep: None,
        unbound: Capabilities::NONE,
    };

    /// All steps. Async-signal-safe.
    pub(crate) fn assume(&self) -> Result<(), (Stage, Errno)> {
        for (stage, step) in STEPS {
            step(self).map_err(|errno| (stage, errno))?;
        }
        Ok(())
    }

    /// What is to survive can be inherited; what is permitted is in force. Before the bounding set shrinks: what is
    /// not in it cannot become inheritable.
    fn inherit(&self) -> Result<(), Errno> {
        let Some(keep) = self.keep else { return Ok(()) };
        let permitted = Held::now()?.permitted;
        Held {
            permitted,
            effective: permitted,
            inheritable: keep,
        }
        .assume()
    }

    fn leave_bounds(&self) -> Result<(), Errno> {
        capabilities::unbound(self.unbound)
    }

    /// The calls go to the kernel directly: the C library's own would want to tell other threads, and take locks.
    fn take_groups(&self) -> Result<(), Errno> {
        let Some(groups) = &self.groups else {
            return Ok(());
        };
        // SAFETY: the kernel reads as many numbers as the vector has.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr())
        })?;
        Ok(())
    }

    fn take_group(&self) -> Result<(), Errno> {
        let Some(gid) = self.gid else { return Ok(()) };
        // SAFETY: a plain system call on integers.
        Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
        Ok(())
    }

    fn take_user(&self) -> Result<(), Errno> {
        let Some(uid) = self.uid else { return Ok(()) };
        capabilities::keep_over_user_change(true)?;
        // SAFETY: a plain system call on integers.
        Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
        capabilities::keep_over_user_change(false)
    }

    /// The end: these capabilities and no others, and they survive executing a program.
    fn keep_only(&self) -> Result<(), Errno> {
        let Some(keep) = self.keep else { return Ok(()) };
        Held {
            permitted: keep,
            effective: keep,
            inheritable: keep,
        }
        .assume()?;
        capabilities::set_ambient(keep)?;
        let Some(uid) = self
            .uid
            .filter(|uid| *uid != 0 && !keep.has(Capabilities::SETUID))
        else {
            return Ok(());
        };
        // There is no way back, or something is wrong with this kernel.
        // SAFETY: a plain system call on integers.
        match Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, uid, 0, uid) }) {
            Ok(_) => Err(Errno::ENOTRECOVERABLE),
            Err(_) => Ok(()),
        }
    }
}

/// What this process is and may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) permitted: Capabilities,
    /// Whether there is anything to lose.
    any: bool,
    bounding: Capabilities,
}

impl Own {
    /// A user without any privilege.
    #[cfg(test)]
    pub(crate) fn nobody_special(uid: u32) -> Self {
        let none = Capabilities::NONE;
        Self {
            uid,
            gid: uid,
            groups: vec![uid],
            permitted: none,
            any: false,
            bounding: none,
        }
    }

    /// As it is now.
    pub(crate) fn now() -> Result<Self, String> {
        let failed = |errno: Errno| {
            format!(
                "cannot read the capabilities of this process: {}",
                errno.desc()
            )
        };
        let held = Held::now().map_err(failed)?;
        let ambient = capabilities::ambient();
        let mut groups: Vec<u32> = nix::unistd::getgroups()
            .map_err(|errno| format!("cannot read the groups of this process: {}", errno.desc()))?
            .into_iter()
            .map(nix::unistd::Gid::as_raw)
            .collect();
        groups.sort_unstable();
        Ok(Self {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups,
            permitted: held.permitted,
            any: !held.permitted.and(held.inheritable).and(ambient).is_empty(),
            bounding: capabilities::bounding(),
        })
    }

    /// How this process, or its child, becomes another user with these groups, keeping some capabilities and, of what
    /// executing a file can give, some.
    pub(crate) fn becoming(
        &self,
        uid: u32,
        gid: u32,
        mut groups: Vec<u32>,
        keep: Capabilities,
        bounds: Capabilities,
    ) -> Identity {
        groups.sort_unstable();
        groups.dedup();
        let changes = uid != self.uid;
        let unbound = if self.permitted.has(Capabilities::SETPCAP) {
            self.bounding.without(bounds)
        } else {
            Capabilities::NONE
        };
        Identity {
            groups: (groups != self.groups).then_some(groups),
            gid: (gid != self.gid).then_some(gid),
            uid: changes.then_some(uid),
            // Without anything to lose, nothing is asked of a kernel that may forbid even that.
            keep: (self.any || changes).then_some(keep),
            unbound,
        }
    }

    /// Which capability this needs that is not there.
    pub(crate) fn lacks(&self, identity: &Identity) -> Option<Capabilities> {
        let mut needs = Capabilities::NONE;
        if identity.uid.is_some() {
            needs = needs.and(Capabilities::SETUID);
        }
        if identity.gid.is_some() || identity.groups.is_some() {
            needs = needs.and(Capabilities::SETGID);
        }
        Some(needs.without(self.permitted)).filter(|missing| !missing.is_empty())
    }
}

/// What workers become.
///
/// # Errors
/// What this process cannot give them, and the remedy.
pub(crate) fn of_workers(own: &Own, privileges: &Privileges) -> Result<Identity, String> {
    let Privileges {
        user,
        group,
        groups: more,
        supervisor_user,
        ..
    } = privileges;
    if let Some(supervisor) = supervisor_user
        .as_ref()
        .filter(|supervisor| supervisor.uid != own.uid)
    {
        return Err(format!(
            "the supervisor cannot become user {supervisor} while it runs as user {} (restart it as root to change supervisor-user)",
            own.uid
        ));
    }
    let uid = user.as_ref().map_or(own.uid, |user| user.uid);
    let gid = match (group, user) {
        (Some(group), _) => group.gid,
        (None, user) => user.as_ref().and_then(|user| user.gid).unwrap_or(own.gid),
    };
    let mut groups = match (user, group) {
        (Some(user), _) => user.groups.clone(),
        // Another group than ours must not come on top of ours.
        (None, Some(_)) => Vec::new(),
        (None, None) => own.groups.clone(),
    };
    if user.is_some() || group.is_some() {
        groups.push(gid);
    }
    groups.extend(more.iter().map(|group| group.gid));
    let keep = kept(own, privileges)?;
    let identity = own.becoming(uid, gid, groups, keep, keep);
    if let Some(missing) = own.lacks(&identity) {
        let whom = name_of_workers(privileges).unwrap_or_default();
        return Err(format!(
            "cannot run workers as {whom}: this supervisor runs as user {} without {missing} ({}, or leave the setting out)",
            own.uid,
            if supervisor_user.is_some() {
                "it gave that up at its start: restart it as root with this setting"
            } else {
                "start it as root"
            }
        ));
    }
    Ok(identity)
}

/// What workers are called, when they are somebody of their own.
pub(crate) fn name_of_workers(privileges: &Privileges) -> Option<String> {
    match (&privileges.user, &privileges.group) {
        (Some(user), _) => Some(format!("user {user}")),
        (None, Some(group)) => Some(format!("group {}", group.written)),
        (None, None) if privileges.groups.is_empty() => privileges
            .supervisor_user
            .as_ref()
            .map(|user| format!("user {user}")),
        (None, None) => {
            let names: Vec<_> = privileges
                .groups
                .iter()
                .map(|group| group.written.as_str())
                .collect();
            Some(format!("member of {}", names.join(", ")))
        }
    }
}

/// The capabilities that workers keep.
fn kept(own: &Own, privileges: &Privileges) -> Result<Capabilities, String> {
    let keep = privileges.keep;
    if keep == Capabilities::ALL {
        return Ok(own.permitted);
    }
    let missing = keep.without(own.permitted);
    if missing.is_empty() {
        return Ok(keep);
    }
    Err(format!(
        "cannot let workers keep {missing}: this supervisor, user {}, does not have it (start it as root, or with AmbientCapabilities= under systemd, or leave it out of keep-cap)",
        own.uid
    ))
}

/// Whether nothing that workers execute may gain privileges.
pub(crate) fn renounces(own: &Own, privileges: &Privileges) -> bool {
    let uid = privileges.user.as_ref().map_or(own.uid, |user| user.uid);
    // Root gets back by exec what the bounding set has; only this prevents it where that cannot be changed.
    privileges
        .no_new_privileges
        .unwrap_or(privileges.change_identity() || uid == 0)
}

/// Variables that tell a program who it is.
pub(crate) fn variables(user: Option<&Account>) -> Vec<(&'static str, OsString)> {
    let Some(Account {
        name: Some(name),
        home: Some((home, shell)),
        ..
    }) = user
    else {
        return Vec::new();
    };
    let text = |text: &OsStr| text.to_owned();
    vec![
        ("HOME", text(home.as_os_str())),
        ("USER", name.into()),
        ("LOGNAME", name.into()),
        ("SHELL", text(shell.as_os_str())),
    ]
}
