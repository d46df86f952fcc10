//! The role of a control client, by the credentials that the kernel reports.
//!
//! Root, the supervisor's own user and its group may operate; the group of readers may read.
//! Workers may do neither, although they may run as that user: no process that the supervisor has
//! started, and none that descends from such a process. As the supervisor adopts orphans, a process
//! does not leave the family by losing its parent.

use crate::api::request::Role;
use crate::process::ancestry::parent_and_group;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::{Gid, Pid, getegid, geteuid};
use std::io;
use std::os::unix::net::UnixStream;

/// The most ancestors of a client that are examined.
const MAX_ANCESTORS: usize = 64;

/// A client without a role, in words for the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    /// The kernel does not report the credentials.
    #[error("cannot tell who you are: {0}")]
    Unidentified(io::Error),
    /// It runs as another user.
    #[error("user {peer} may not control this server (it runs as user {own})")]
    OtherUser { peer: u32, own: u32 },
    /// It is a worker, or was started by one.
    #[error(
        "process {0} descends from this supervisor, and a worker may not control its server (ask \
         from outside)"
    )]
    Descendant(i32),
    /// Its ancestors cannot be examined.
    #[error("cannot tell whether process {0} is a worker (it is gone)")]
    Gone(i32),
}

/// Returns the role of a client. The socket's mode restricts clients, too, but a mode can be
/// changed. `readers` is the group that may read.
pub(crate) fn role(stream: &UnixStream, readers: Option<Gid>) -> Result<Role, PeerError> {
    let peer = getsockopt(stream, PeerCredentials)
        .map_err(|errno| PeerError::Unidentified(errno.into()))?;
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let role = if peer.uid() == 0 || peer.uid() == user || peer.gid() == group {
        Role::Operate
    } else {
        let groups = prefork_os::peer_groups(stream).map_err(PeerError::Unidentified)?;
        let reads =
            |readers: Gid| peer.gid() == readers.as_raw() || groups.contains(&readers.as_raw());
        if !readers.is_some_and(reads) {
            return Err(PeerError::OtherUser {
                peer: peer.uid(),
                own: user,
            });
        }
        Role::Read
    };
    let ours = Pid::this();
    match descends(Pid::from_raw(peer.pid()), ours, parent) {
        Some(false) => Ok(role),
        Some(true) => Err(PeerError::Descendant(peer.pid())),
        // Root can hide its processes from us; a worker of ours is not root then.
        None if peer.uid() == 0 && user != 0 => Ok(role),
        None => Err(PeerError::Gone(peer.pid())),
    }
}

fn parent(process: Pid) -> Option<Pid> {
    parent_and_group(process).map(|(parent, _)| parent)
}

/// Returns whether a process has this ancestor; `None` when that is not known.
fn descends(process: Pid, ancestor: Pid, parent: impl Fn(Pid) -> Option<Pid>) -> Option<bool> {
    let mut process = process;
    for _ in 0..MAX_ANCESTORS {
        // 0 is a process outside our pid namespace; none that was started inside comes from there.
        // 1 is the end, too: systemd is root's, and hidden from a service with ProtectProc=.
        if process.as_raw() <= 1 {
            return Some(false);
        }
        process = parent(process)?;
        if process == ancestor {
            return Some(true);
        }
    }
    // Only a process that hides its ancestors has this many.
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the parents in a family where each process's parent is the number before, from
    /// `first` on.
    fn family(first: i32) -> impl Fn(Pid) -> Option<Pid> {
        move |process| {
            let number = process.as_raw();
            (number > 0).then(|| Pid::from_raw(if number <= first { 0 } else { number - 1 }))
        }
    }

    #[test]
    fn descendants_of_the_supervisor_differ_from_unrelated_processes_and_from_itself() {
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
