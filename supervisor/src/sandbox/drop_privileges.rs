//! What the supervisor itself gives up at its start: `--supervisor-user`.
//!
//! Before it binds, since only one user's sockets can share an address; after it has read its configuration and
//! opened its log. The capabilities that it keeps are ambient, so that an upgrade in place keeps them.
#![allow(unsafe_code)]

use super::identity::Own;
use crate::config::{Account, Bind, Capabilities, Config, Privileges};
use crate::sandbox::access_check as reach;

/// What became of the supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dropped {
    /// Who it is now, what it keeps, and what it can no longer do, in one line for the log.
    pub remark: String,
    /// It can no longer do something that was asked for.
    pub warns: bool,
}

/// Becomes the user that the configuration names, with no more capabilities than the server needs.
///
/// # Errors
/// Why it cannot, and the remedy.
pub(crate) fn become_user(config: &Config) -> Result<Option<Dropped>, String> {
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
        return Err(format!(
            "the supervisor cannot become user {user}: it runs as user {} without {missing} (start it as root, or leave supervisor-user out)",
            own.uid
        ));
    }
    let traits = reach::Traits::now();
    identity.assume().map_err(|(_, errno)| {
        format!("the supervisor cannot become user {user}: {}", errno.desc())
    })?;
    traits.restore();
    Ok(Some(dropped(config, user, keep)))
}

/// What is to be said when workers are root without anybody having asked for that.
pub(crate) fn warn_of_root(config: &Config) -> Option<&'static str> {
    let chosen = config.privileges.user.is_some();
    (nix::unistd::geteuid().is_root() && !chosen).then_some(
        "workers run as root, though without capabilities (name another user with --user)",
    )
}

/// The capabilities without which the server could not do what it is configured for.
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
    let given_away = |bind: &Bind| matches!(bind, Bind::Unix { owner, group, .. } if owner.is_some() || group.is_some());
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
        .filter(|path| reach::can_write(path).is_err());
    if let Some(path) = log {
        lost.push(format!("reopen log file {}", path.display()));
    }
    let remark = format!(
        "the supervisor is user {user} from here on and keeps {keep}; until a restart as root it cannot {}, nor reach what only root can",
        lost.join(", ")
    );
    Dropped {
        remark,
        warns: log.is_some(),
    }
}
