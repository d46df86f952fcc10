//! The descent of processes, from `/proc`.

use nix::unistd::Pid;

/// What a process belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Relations {
    pub(crate) parent: Pid,
    pub(crate) group: Pid,
    pub(crate) session: Pid,
}

/// Returns the parent of a process, and its process group.
pub(crate) fn parent_and_group(process: Pid) -> Option<(Pid, Pid)> {
    relations(process).map(|relations| (relations.parent, relations.group))
}

/// Returns what a process belongs to. Every user may read that of every process.
pub(crate) fn relations(process: Pid) -> Option<Relations> {
    let stat = std::fs::read(format!("/proc/{process}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name in parentheses may itself hold anything: what counts stands after the last one.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().map(Pid::from_raw));
    Some(Relations {
        parent: fields.next()?.ok()?,
        group: fields.next()?.ok()?,
        session: fields.next()?.ok()?,
    })
}
