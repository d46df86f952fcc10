//! Reaping: reads a worker's death from its pidfd, and reaps adopted orphans.
//!
//! This module does not know who the dead were.

use nix::unistd::Pid;
use prefork_os::wait::{self, Which};
use std::io;
use std::os::fd::AsFd;

pub(crate) use prefork_os::wait::{Death, Usage};

/// The most orphans that one call of [`reap_orphans`] reaps, so that a flood of them cannot starve
/// the loop.
pub(crate) const ORPHANS_AT_ONCE: usize = 64;

/// What [`reap_orphans`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Orphans {
    /// Who was reaped, and how they had ended.
    pub reaped: Vec<(Pid, Death)>,
    /// The bound was reached: call again soon.
    pub full: bool,
    /// There may be more behind a dead child that is known: call again when that one is reaped.
    pub hidden: bool,
}

/// Reaps the child of a pidfd; `None` while it lives.
///
/// # Errors
/// Those of waitid(2), except `ECHILD`, which is [`Death::Unknown`].
pub(crate) fn reap(pidfd: impl AsFd) -> io::Result<Option<Death>> {
    Ok(reap_with_usage(pidfd)?.map(|(death, _)| death))
}

/// As [`reap`], and what the child has used.
///
/// # Errors
/// As for [`reap`].
pub(crate) fn reap_with_usage(pidfd: impl AsFd) -> io::Result<Option<(Death, Usage)>> {
    match wait::reap(Which::Pidfd(pidfd.as_fd())) {
        Ok(found) => Ok(found.map(|dead| (dead.death, dead.usage))),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
            Ok(Some((Death::Unknown, Usage::default())))
        }
        Err(error) => Err(error),
    }
}

/// Reaps dead children that are not `known`, such as grandchildren that came to us as their
/// subreaper. To be called after a round in which the pidfds of the known children were served.
///
/// # Errors
/// Those of waitid(2). To have no children is none.
pub(crate) fn reap_orphans(known: impl Fn(Pid) -> bool) -> io::Result<Orphans> {
    let mut orphans = Orphans::default();
    let gone = |error: io::Error| match error.raw_os_error() {
        Some(libc::ECHILD) => Ok(None),
        _ => Err(error),
    };
    loop {
        // First it is only looked at: the status of a known child belongs to the reader of its
        // pidfd.
        let Some(dead) = wait::peek(Which::Any).or_else(gone)? else {
            return Ok(orphans);
        };
        orphans.hidden = known(dead.pid);
        orphans.full = orphans.reaped.len() == ORPHANS_AT_ONCE;
        if orphans.hidden || orphans.full {
            return Ok(orphans);
        }
        if let Some(dead) = wait::reap(Which::Pid(dead.pid)).or_else(gone)? {
            orphans.reaped.push((dead.pid, dead.death));
        }
    }
}
