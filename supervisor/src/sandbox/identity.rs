//! Users, groups and capabilities: what a process becomes, and whether this one may make it so.
//!
//! The steps on the way are [`prefork_os::identity`]'s.

use super::ConfinementError;
use crate::config::{Account, Capabilities, Privileges};
use prefork_os::capabilities::{self, Held};
use prefork_os::identity::Identity;
use std::ffi::{OsStr, OsString};

/// The identity of this process, and what it may do.
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
    /// Returns a user without any privilege.
    #[cfg(test)]
    pub(crate) fn unprivileged(uid: u32) -> Self {
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

    /// Reads what it is now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn now() -> Result<Self, ConfinementError> {
        let held = Held::now().map_err(ConfinementError::OwnCapabilities)?;
        let ambient = capabilities::ambient();
        let mut groups: Vec<u32> = nix::unistd::getgroups()
            .map_err(ConfinementError::OwnGroups)?
            .into_iter()
            .map(nix::unistd::Gid::as_raw)
            .collect();
        groups.sort_unstable();
        Ok(Self {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups,
            permitted: Capabilities(held.permitted),
            any: held.permitted | held.inheritable | ambient != 0,
            bounding: Capabilities(capabilities::bounding()),
        })
    }

    /// Returns how this process, or its child, becomes another user with these groups, keeping some
    /// capabilities and, of what executing a file can give, some.
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
            keep: (self.any || changes).then_some(keep.0),
            unbound: unbound.0,
        }
    }

    /// Returns the capabilities that this needs and that are missing.
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

/// Returns what workers become.
///
/// # Errors
/// What this process cannot give them.
pub(crate) fn of_workers(own: &Own, privileges: &Privileges) -> Result<Identity, ConfinementError> {
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
        return Err(ConfinementError::SupervisorUserChanged {
            user: supervisor.to_string(),
            uid: own.uid,
        });
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
        return Err(ConfinementError::WorkerUser {
            whom: name_of_workers(privileges).unwrap_or_default(),
            uid: own.uid,
            missing,
            remedy: if supervisor_user.is_some() {
                "it gave that up at its start: restart it as root with this setting"
            } else {
                "start it as root"
            },
        });
    }
    Ok(identity)
}

/// Returns who workers are, in words, when that is not who the supervisor is.
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

/// Returns the capabilities that workers keep.
fn kept(own: &Own, privileges: &Privileges) -> Result<Capabilities, ConfinementError> {
    let keep = privileges.keep;
    if keep == Capabilities::ALL {
        return Ok(own.permitted);
    }
    let missing = keep.without(own.permitted);
    if missing.is_empty() {
        return Ok(keep);
    }
    Err(ConfinementError::Keep {
        missing,
        uid: own.uid,
    })
}

/// Returns whether nothing that workers execute may gain privileges.
pub(crate) fn no_new_privs(own: &Own, privileges: &Privileges) -> bool {
    let uid = privileges.user.as_ref().map_or(own.uid, |user| user.uid);
    // Root gets back by exec what the bounding set has; only this prevents it where that cannot be
    // changed.
    privileges
        .no_new_privileges
        .unwrap_or(privileges.change_identity() || uid == 0)
}

/// Returns the variables by which a program knows its user.
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
