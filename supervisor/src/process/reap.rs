//! How children ended: reads a worker's death from its pidfd, and buries adopted orphans.
//!
//! Raw waitid(2), because nix's wrappers lose the status of a child that a real-time signal killed, and reap it
//! all the same. This module does not know who the dead were.
#![allow(unsafe_code)]

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;
use std::{fmt, io};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// It left with this status.
    Exited(i32),
    /// A signal killed it.
    Signaled {
        /// The signal's number; real-time signals have no name.
        signal: i32,
        /// Whether it left a core dump.
        core: bool,
    },
    /// It is gone, and nobody can tell how: somebody else took its status.
    Unknown,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Signaled { signal, core } => {
                match Signal::try_from(*signal) {
                    Ok(signal) => write!(f, "killed by {signal}")?,
                    Err(_) => write!(f, "killed by signal {signal}")?,
                }
                f.write_str(if *core { " (core dumped)" } else { "" })
            }
            Self::Unknown => f.write_str("gone, cause unknown"),
        }
    }
}

/// What a process and the children that it had waited for have used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// CPU time in its own code.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// The most memory that it had in RAM at a time, in KiB.
    pub max_resident_kib: u64,
}

impl Usage {
    fn of(usage: &libc::rusage) -> Self {
        let span = |time: libc::timeval| {
            let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
            seconds + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
        };
        Self {
            user: span(usage.ru_utime),
            system: span(usage.ru_stime),
            max_resident_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
        }
    }
}

/// The most orphans that one call of [`reap_orphans`] buries, so that a flood of them cannot starve the loop.
pub(crate) const ORPHANS_AT_ONCE: usize = 64;

/// What [`reap_orphans`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Orphans {
    /// Who was buried, and how they had ended.
    pub reaped: Vec<(Pid, Death)>,
    /// The bound was reached: call again soon.
    pub full: bool,
    /// There may be more behind a known child's body: call again when that is buried.
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
    let id = pidfd.as_fd().as_raw_fd().unsigned_abs();
    match wait(libc::P_PIDFD, id, libc::WEXITED | libc::WNOHANG) {
        Ok(found) => Ok(found.map(|(_, death, usage)| (death, usage))),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
            Ok(Some((Death::Unknown, Usage::default())))
        }
        Err(error) => Err(error),
    }
}

/// Reaps dead children that are not `known`, such as grandchildren that came to us as their subreaper.
/// To be called after a round in which the known children's pidfds were served.
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
        // First only a look: the status of a known child belongs to the reader of its pidfd.
        let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let Some((pid, ..)) = wait(libc::P_ALL, 0, look).or_else(gone)? else {
            return Ok(orphans);
        };
        orphans.hidden = known(pid);
        orphans.full = orphans.reaped.len() == ORPHANS_AT_ONCE;
        if orphans.hidden || orphans.full {
            return Ok(orphans);
        }
        let id = pid.as_raw().unsigned_abs();
        if let Some((pid, death, _)) =
            wait(libc::P_PID, id, libc::WEXITED | libc::WNOHANG).or_else(gone)?
        {
            orphans.reaped.push((pid, death));
        }
    }
}

type Found = (Pid, Death, Usage);

fn wait(kind: libc::idtype_t, id: libc::id_t, options: libc::c_int) -> io::Result<Option<Found>> {
    loop {
        // SAFETY: all-zero bytes are a valid siginfo_t, and its pid stays 0 when nobody is dead.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: as above, for an rusage.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // The C library's wrapper does not pass on the fifth argument.
        // SAFETY: `info` and `usage` are valid for writes.
        let waited = unsafe {
            libc::syscall(
                libc::SYS_waitid,
                kind,
                id,
                &raw mut info,
                options,
                &raw mut usage,
            )
        };
        if waited < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        // SAFETY: waitid filled in the fields of SIGCHLD, or left the zeros.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        if pid == 0 {
            return Ok(None);
        }
        let death = match info.si_code {
            libc::CLD_EXITED => Death::Exited(status),
            code @ (libc::CLD_KILLED | libc::CLD_DUMPED) => Death::Signaled {
                signal: status,
                core: code == libc::CLD_DUMPED,
            },
            _ => Death::Unknown,
        };
        return Ok(Some((Pid::from_raw(pid), death, Usage::of(&usage))));
    }
}
