//! Who may use the control socket, and for what.
//!
//! Root, the supervisor's own user and its group may ask for everything; a group that was named for that may read. But
//! no worker may, although it may be of that user: nobody whom the supervisor has started, or who descends from such a
//! process. The kernel tells who connected. As orphans are adopted by the supervisor, nobody leaves the family by losing
//! its parent.

use super::Role;
use crate::process::ancestry::parent_and_group;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::{Gid, Pid, getegid, geteuid};
use std::os::unix::net::UnixStream;

/// How far up its ancestors a client is followed.
const MOST_ANCESTORS: usize = 64;

/// What this client may ask for, or why nothing. The socket's mode says so too, but a mode can be changed. `readers`: the
/// group that may read.
pub(crate) fn role(stream: &UnixStream, readers: Option<Gid>) -> Result<Role, String> {
    let unknown = |error: &dyn std::fmt::Display| format!("cannot tell who you are: {error}");
    let peer = getsockopt(stream, PeerCredentials).map_err(|error| unknown(&error))?;
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let role = if peer.uid() == 0 || peer.uid() == user || peer.gid() == group {
        Role::Operate
    } else {
        let groups = prefork_os::peer_groups(stream).map_err(|error| unknown(&error))?;
        let reads =
            |readers: Gid| peer.gid() == readers.as_raw() || groups.contains(&readers.as_raw());
        if !readers.is_some_and(reads) {
            return Err(format!(
                "user {} may not control this server (it runs as user {user})",
                peer.uid()
            ));
        }
        Role::Read
    };
    let ours = Pid::this();
    match descends(Pid::from_raw(peer.pid()), ours, parent) {
        Some(false) => Ok(role),
        Some(true) => Err(format!(
            "process {} descends from this supervisor, and a worker may not control its server (ask from outside)",
            peer.pid()
        )),
        // Root can hide its processes from us; a worker of ours is not root then.
        None if peer.uid() == 0 && user != 0 => Ok(role),
        None => Err(format!(
            "cannot tell whether process {} is a worker (it is gone)",
            peer.pid()
        )),
    }
}

fn parent(process: Pid) -> Option<Pid> {
    parent_and_group(process).map(|(parent, _)| parent)
}

/// Whether a process has this ancestor; `None` when that cannot be told.
fn descends(process: Pid, ancestor: Pid, parent: impl Fn(Pid) -> Option<Pid>) -> Option<bool> {
    let mut process = process;
    for _ in 0..MOST_ANCESTORS {
        // 0 is a process outside our pid namespace, where nobody comes from who was started inside. 1 is the end, too:
        // systemd is root's, and hidden from a service with ProtectProc=.
        if process.as_raw() <= 1 {
            return Some(false);
        }
        process = parent(process)?;
        if process == ancestor {
            return Some(true);
        }
    }
    // Nobody has so many ancestors, except to hide them.
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a family in which everybody's parent is the number before, from `first` on.
    fn family(first: i32) -> impl Fn(Pid) -> Option<Pid> {
        move |process| {
            let number = process.as_raw();
            (number > 0).then(|| Pid::from_raw(if number <= first { 0 } else { number - 1 }))
        }
    }

    #[test]
    fn who_was_started_by_the_supervisor_is_told_from_strangers_and_from_the_supervisor() {
        let pid = Pid::from_raw;
        let asks = |process| descends(pid(process), pid(100), family(90));
        assert_eq!(asks(101), Some(true), "a worker");
        assert_eq!(asks(110), Some(true), "what a worker has started");
        assert_eq!(asks(100), Some(false), "the supervisor itself");
        assert_eq!(asks(95), Some(false), "who has started the supervisor");
        assert_eq!(asks(0), Some(false), "from outside the namespace");
        assert_eq!(asks(1000), Some(true), "from too far away");
        assert_eq!(descends(pid(5), pid(100), |_| None), None, "who is gone");
        assert_eq!(
            descends(pid(7), pid(1), family(1)),
            Some(true),
            "of a supervisor that is process 1"
        );
        let hidden = |process: Pid| family(1)(process).filter(|_| process != pid(1));
        assert_eq!(
            descends(pid(7), pid(100), hidden),
            Some(false),
            "whose forefather is hidden"
        );
    }
}
