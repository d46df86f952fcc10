//! Why workers cannot be confined as they are to be, or the supervisor not drop its privileges.

use crate::config::Capabilities;
use nix::errno::Errno;
use std::path::PathBuf;

/// What cannot be had here, and the remedy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfinementError {
    #[error("cannot read the capabilities of this process: {}", .0.desc())]
    OwnCapabilities(Errno),
    #[error("cannot read the groups of this process: {}", .0.desc())]
    OwnGroups(Errno),
    #[error(
        "the supervisor cannot become user {user} while it runs as user {uid} \
         (restart it as root to change supervisor-user)"
    )]
    SupervisorUserChanged { user: String, uid: u32 },
    #[error(
        "the supervisor cannot become user {user}: it runs as user {uid} without {missing} \
         (start it as root, or leave supervisor-user out)"
    )]
    SupervisorUser {
        user: String,
        uid: u32,
        missing: Capabilities,
    },
    #[error("the supervisor cannot become user {user}: {}", errno.desc())]
    SupervisorUserRefused { user: String, errno: Errno },
    #[error(
        "cannot run workers as {whom}: this supervisor runs as user {uid} without {missing} \
         ({remedy}, or leave the setting out)"
    )]
    WorkerUser {
        whom: String,
        uid: u32,
        missing: Capabilities,
        remedy: &'static str,
    },
    #[error(
        "cannot let workers keep {missing}: this supervisor, user {uid}, does not have it \
         (start it as root, or with AmbientCapabilities= under systemd, or leave it out of keep-cap)"
    )]
    Keep { missing: Capabilities, uid: u32 },
    #[error(
        "cannot act on files as another user: {} \
         (allow setgroups, setfsgid and setfsuid, as by SystemCallFilter=)",
        .0.desc()
    )]
    Fsuid(Errno),
    #[error(
        "cannot open directory {}: {} (make it, or name another)",
        path.display(),
        errno.desc()
    )]
    Directory { path: PathBuf, errno: Errno },
    #[error(
        "workers cannot {act} {} as {whom}: {} \
         (give it to them with chown or chmod, or name another)",
        path.display(),
        errno.desc()
    )]
    Access {
        act: &'static str,
        path: PathBuf,
        whom: String,
        errno: Errno,
    },
    #[error("{reason}")]
    Program { reason: String },
    #[error("{reason}, as {whom}")]
    ProgramAs { reason: String, whom: String },
    #[error(
        "cannot set the limit {limit}: {}; this process may have {most} at most \
         (raise that by Limit{}= in the unit or ulimit -H, or lower --limit {name})",
        errno.desc(),
        name.to_ascii_uppercase()
    )]
    Limit {
        limit: String,
        name: &'static str,
        most: String,
        errno: Errno,
    },
    #[error(
        "the sandbox cannot be strict, since this is missing here: {0} \
         (choose --sandbox best-effort to go on without)"
    )]
    Strict(String),
    #[error("cannot have a private /tmp: {}", .0.desc())]
    PrivateTmp(Errno),
    #[error(
        "private-tmp: workers would not see {} ({what}); put it elsewhere, or leave private-tmp off",
        path.display()
    )]
    Hidden { path: PathBuf, what: String },
    #[error("the kernel does not accept the workers' Landlock rules: {}", .0.desc())]
    Rules(Errno),
    #[error("{setting}: cannot open {}: {} (check the path)", path.display(), errno.desc())]
    Path {
        setting: &'static str,
        path: PathBuf,
        errno: Errno,
    },
    #[error(
        "cannot keep the descriptor of {}: {error} (raise the limit of open files)",
        path.display()
    )]
    Descriptor {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("cannot compile the filter of system calls: {0}")]
    Compile(String),
}

impl From<ConfinementError> for String {
    /// For callers that only pass the sentence on.
    fn from(error: ConfinementError) -> Self {
        error.to_string()
    }
}
