//! Resource limits of a worker, set between fork and exec, while it still may raise them.

use super::ConfinementError;
use crate::config::Limit;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prefork_os::confinement;
use std::sync::OnceLock;

/// No core file of any size.
pub(crate) const NO_CORE: confinement::Limit = confinement::Limit {
    resource: Resource::RLIMIT_CORE,
    soft: 0,
    hard: 0,
};

/// The limit of open files that this process was started with, once it has raised its own.
static STARTED_WITH: OnceLock<u64> = OnceLock::new();

/// Raises the limit of open files as far as it goes, since the supervisor holds the sockets of all
/// slots. Returns the limits before and after, if they differ.
pub(crate) fn raise_open_files() -> Option<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if soft >= hard || setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
        return None;
    }
    let _ = STARTED_WITH.set(soft);
    Some((soft, hard))
}

/// Returns the limit that this process was started with, if it has raised its own.
pub(crate) fn started_with() -> Option<u64> {
    STARTED_WITH.get().copied()
}

/// Goes on with what another version of the program has raised.
pub(crate) fn resume_open_files(started_with: Option<u64>) {
    if let Some(soft) = started_with {
        let _ = STARTED_WITH.set(soft);
    }
}

/// Returns the limit of open files for an external program: the one that it would have without us.
/// Some programs use select(2), which cannot handle high numbers, and some close all numbers up to
/// the limit.
pub(crate) fn of_programs() -> Option<confinement::Limit> {
    let soft = started_with()?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(confinement::Limit {
        resource: Resource::RLIMIT_NOFILE,
        soft,
        hard,
    })
}

/// Checks that this process may give a child these limits, and prepares them.
///
/// # Errors
/// The limit that is above this process's own.
pub(crate) fn prepare(limits: &[Limit]) -> Result<Vec<confinement::Limit>, ConfinementError> {
    for limit in limits {
        raisable(limit).map_err(|errno| ConfinementError::Limit {
            limit: limit.to_string(),
            name: limit.name(),
            most: getrlimit(limit.resource)
                .map_or_else(|_| "unknown".to_owned(), |now| number(now.1)),
            errno,
        })?;
    }
    let value = |limit: Option<u64>| limit.unwrap_or(confinement::Limit::UNLIMITED);
    let limits = limits.iter().map(|limit| confinement::Limit {
        resource: limit.resource,
        soft: value(limit.soft),
        hard: value(limit.hard),
    });
    Ok(limits.collect())
}

/// Checks whether a hard limit can be set. There is no other way to know than to set it for a
/// moment: a privilege may be missing, a security module may object, and the kernel has bounds of
/// its own.
fn raisable(limit: &Limit) -> Result<(), Errno> {
    let (soft, hard) = getrlimit(limit.resource)?;
    let wanted = limit.hard.unwrap_or(libc::RLIM_INFINITY);
    if wanted <= hard {
        return Ok(());
    }
    setrlimit(limit.resource, soft, wanted)?;
    setrlimit(limit.resource, soft, hard)
}

fn number(limit: u64) -> String {
    if limit == libc::RLIM_INFINITY {
        "unlimited".to_owned()
    } else {
        limit.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_above_what_this_process_may_have_is_refused_in_the_parent() {
        let before = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        // Above fs.nr_open, no process gets it.
        let more = Limit {
            resource: Resource::RLIMIT_NOFILE,
            soft: Some(1),
            hard: Some(u64::MAX - 1),
        };
        let message = prepare(&[more]).expect_err("too much").to_string();
        assert!(
            message.contains("cannot set the limit nofile=1:18446744073709551614"),
            "{message}"
        );
        assert!(message.contains("LimitNOFILE="), "{message}");
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok(before));
        let less = Limit {
            resource: Resource::RLIMIT_NOFILE,
            soft: Some(1),
            hard: Some(before.1),
        };
        assert!(prepare(&[less]).is_ok());
    }
}
