//! The descent of processes, from `/proc`.

use nix::unistd::Pid;

/// Returns the parent of a process, and its process group. Every user may read that of every
/// process.
pub(crate) fn parent_and_group(process: Pid) -> Option<(Pid, Pid)> {
    let stat = std::fs::read(format!("/proc/{process}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name in parentheses may itself hold anything: what counts stands after the last one.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().map(Pid::from_raw));
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}
