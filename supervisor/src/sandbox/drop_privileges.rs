//! How the supervisor itself drops privileges at its start: `--supervisor-user`.
//!
//! Before it binds, since only one user's sockets can share an address; after it has read its
//! configuration and opened its log. The capabilities that it keeps are ambient, so that an upgrade
//! in place keeps them.

use super::identity::Own;
use super::{ConfinementError, access_check};
use crate::config::{Account, Bind, Capabilities, Config, Privileges};
use prefork_os::process::ResetByUserChange;

/// What the supervisor is after it has dropped its privileges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dropped {
    /// Its user, what it keeps, and what it can no longer do, in one line for the log.
    pub remark: String,
    /// It can no longer do something that was asked for.
    pub warns: bool,
}

/// Becomes the user that the configuration names, with no more capabilities than the server needs.
///
/// # Errors
/// Why it cannot, and the remedy.
pub(crate) fn become_user(config: &Config) -> Result<Option<Dropped>, ConfinementError> {
    let own = Own::now()?;
    let Some(user) = config
        .privileges
        .supervisor_user
        .as_ref()
        .filter(|user| user.uid != own.uid)
    else {
        return Ok(None);
    };
    let keep = needed(config, user).within(own.permitted);
    let bounds = config.privileges.keep.within(keep);
    let groups = || user.groups.iter().copied().chain(user.gid).collect();
    let identity = own.becoming(
        user.uid,
        user.gid.unwrap_or(own.gid),
        groups(),
        keep,
        bounds,
    );
    if let Some(missing) = own.lacks(&identity) {
        return Err(ConfinementError::SupervisorUser {
            user: user.to_string(),
            uid: own.uid,
            missing,
        });
    }
    let reset = ResetByUserChange::save();
    let refused = |(_, errno)| ConfinementError::SupervisorUserRefused {
        user: user.to_string(),
        errno,
    };
    identity.assume().map_err(refused)?;
    reset.restore();
    Ok(Some(dropped(config, user, keep)))
}

/// Returns a warning for workers that are root without being configured so.
pub(crate) fn warn_of_root(config: &Config) -> Option<&'static str> {
    let chosen = config.privileges.user.is_some();
    (nix::unistd::geteuid().is_root() && !chosen).then_some(
        "workers run as root, though without capabilities (name another user with --user)",
    )
}

/// Returns the capabilities without which the server could not do what it is configured for.
fn needed(config: &Config, user: &Account) -> Capabilities {
    let Privileges { keep, .. } = &config.privileges;
    // Sooner or later a reload asks for a low port.
    let mut needed = Capabilities::NET_BIND_SERVICE;
    if *keep != Capabilities::ALL {
        needed = needed.and(*keep);
    }
    let others = config
        .privileges
        .user
        .as_ref()
        .is_some_and(|workers| workers.uid != user.uid);
    if others {
        needed = needed.and(Capabilities::SETUID).and(Capabilities::KILL);
    }
    if others || config.privileges.group.is_some() || !config.privileges.groups.is_empty() {
        needed = needed.and(Capabilities::SETGID);
    }
    let given_away = |bind: &Bind| matches!(bind.address(), Bind::Unix { owner, group, .. } if owner.is_some() || group.is_some());
    if config.binds.iter().any(given_away) {
        needed = needed.and(Capabilities::CHOWN).and(Capabilities::FOWNER);
    }
    needed
}

fn dropped(config: &Config, user: &Account, keep: Capabilities) -> Dropped {
    let mut lost = Vec::new();
    if !keep.has(Capabilities::SETUID) {
        lost.push("run workers as another user".to_owned());
    }
    if !keep.has(Capabilities::CHOWN) {
        lost.push("give a Unix socket to another owner".to_owned());
    }
    let log = config
        .log
        .file
        .as_deref()
        .filter(|path| access_check::can_write(path).is_err());
    if let Some(path) = log {
        lost.push(format!("reopen log file {}", path.display()));
    }
    let remark = format!(
        "the supervisor is user {user} from here on and keeps {keep}; \
         until a restart as root it cannot {}, nor reach what only root can",
        lost.join(", ")
    );
    Dropped {
        remark,
        warns: log.is_some(),
    }
}
