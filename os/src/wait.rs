//! How children ended, by raw waitid(2): nix's wrappers lose the status of a child that a real-time
//! signal killed, and reap it all the same.

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;
use std::{fmt, io};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It left with this status.
    Exited(i32),
    /// A signal killed it.
    Signaled {
        /// The signal's number; real-time signals have no name.
        signal: i32,
        /// Whether it left a core dump.
        core: bool,
    },
    /// It is gone, and its status was read by someone else.
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

/// What a process, and the children that it had waited for, have used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
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

/// Which child to look at.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// Any.
    Any,
    /// The child with this number.
    Pid(Pid),
    /// The child of a pidfd.
    Pidfd(BorrowedFd<'a>),
}

/// A dead child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dead {
    /// Its number.
    pub pid: Pid,
    /// How it ended.
    pub death: Death,
    /// What it has used.
    pub usage: Usage,
}

/// Returns a child that is dead and leaves it as it is; `None` while there is none.
///
/// # Errors
/// Those of waitid(2); `ECHILD` when there is no such child.
pub fn peek(which: Which<'_>) -> io::Result<Option<Dead>> {
    wait(which, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
}

/// Reaps a child that is dead; `None` while there is none.
///
/// # Errors
/// Those of waitid(2); `ECHILD` when there is no such child.
pub fn reap(which: Which<'_>) -> io::Result<Option<Dead>> {
    wait(which, libc::WEXITED | libc::WNOHANG)
}

fn wait(which: Which<'_>, options: libc::c_int) -> io::Result<Option<Dead>> {
    let (kind, id) = match which {
        Which::Any => (libc::P_ALL, 0),
        Which::Pid(pid) => (libc::P_PID, pid.as_raw()),
        Which::Pidfd(pidfd) => (libc::P_PIDFD, pidfd.as_raw_fd()),
    };
    loop {
        // SAFETY: all-zero bytes are a valid siginfo_t, and its pid stays 0 when no child is dead.
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
        return Ok(Some(Dead {
            pid: Pid::from_raw(pid),
            death,
            usage: Usage::of(&usage),
        }));
    }
}
