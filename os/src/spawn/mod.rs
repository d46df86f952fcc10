//! Fork and exec: turns a [`Command`] into a running program.
//!
//! The program is always executed from a descriptor. The child between fork and exec makes
//! async-signal-safe calls only, never allocates, and never returns into its parent's code: it
//! becomes the program or exits. What went wrong there comes back through a pipe that a successful
//! exec closes.
//!
//! This module does not know what a program is for, or what its environment means (except the pids
//! that only the child can know). Start reading at [`spawn`].

mod child;

use crate::confinement::Confinement;
use crate::pidfd;
use child::Plan;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::unistd::{ForkResult, Pid};
use std::ffi::{CString, c_int};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// The first descriptor that a program inherits besides the standard ones, by systemd's convention.
pub const FIRST_FD: RawFd = 3;

/// What to start, and how. Standard output is inherited as it is.
#[derive(Debug)]
pub struct Command<'a> {
    /// The program.
    pub program: BorrowedFd<'a>,
    /// Its arguments, the name it is called by first.
    pub argv: &'a [CString],
    /// Its whole environment.
    pub env: &'a [CString],
    /// Variables of `env` that get the child's pid as value, whatever stands there.
    pub pid_variables: &'a [&'a str],
    /// Descriptors for the child's 3, 4, and so on. Nothing else stays open, except:
    pub descriptors: &'a [BorrowedFd<'a>],
    /// Descriptors that keep their numbers. With any of them, `descriptors` must be empty.
    pub kept: &'a [RawFd],
    /// Its standard input; `None`: the parent's.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Its standard error; `None`: the parent's.
    pub stderr: Option<BorrowedFd<'a>>,
    /// Its working directory; `None`: the parent's.
    pub directory: Option<BorrowedFd<'a>>,
    /// The signal that it gets when its parent dies.
    pub death_signal: Signal,
    /// The `cgroup.procs` of a control group to enter.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// What it gives up.
    pub confinement: &'a Confinement,
}

/// A child that was forked. Whether its exec worked is read from its [`report`](read_report).
#[derive(Debug)]
pub struct Child {
    /// Its process, and its process group.
    pub pid: Pid,
    /// Readable when it is dead; it must then be reaped. Closed on exec.
    pub pidfd: OwnedFd,
    /// The reading end of the pipe through which a failed exec is reported: non-blocking, and
    /// readable as soon as the exec worked (end of file) or failed (a report).
    pub report: OwnedFd,
}

/// What the child was about to do when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Make its own session and process group.
    Group,
    /// Enter its control group.
    Cgroup,
    /// Ask for a signal at its parent's death.
    DeathSignal,
    /// Move its descriptors to their numbers and close all others.
    Descriptors,
    /// Enter its directory.
    Directory,
    /// Renounce new privileges.
    NoNewPrivileges,
    /// Set its groups.
    Groups,
    /// Become its user and group.
    Identity,
    /// Give up capabilities.
    Capabilities,
    /// Set resource limits.
    Limits,
    /// Mount its own `/tmp`.
    PrivateTmp,
    /// Restrict its access to files and processes.
    Landlock,
    /// Filter its system calls.
    Seccomp,
    /// Execute the program. Last, as everything before it is told apart by number.
    Exec,
}

impl Stage {
    const ALL: [Self; 14] = [
        Self::Group,
        Self::Cgroup,
        Self::DeathSignal,
        Self::Descriptors,
        Self::Directory,
        Self::NoNewPrivileges,
        Self::Groups,
        Self::Identity,
        Self::Capabilities,
        Self::Limits,
        Self::PrivateTmp,
        Self::Landlock,
        Self::Seccomp,
        Self::Exec,
    ];

    fn from_byte(byte: u8) -> Self {
        let stage = Self::ALL.get(usize::from(byte)).copied();
        stage.unwrap_or(Self::Exec)
    }
}

/// A report is a stage and an errno. Far below `PIPE_BUF`, so it is written whole or not at all.
const REPORT: usize = 1 + size_of::<c_int>();

/// Reads a [`Child`]'s report: why it could not become the program. `None` when it could, or while
/// that is not known. A dead child's report is always there, once.
pub fn read_report(report: &OwnedFd) -> Option<(Stage, Errno)> {
    let mut bytes = [0_u8; REPORT];
    match nix::unistd::read(report, &mut bytes) {
        Ok(REPORT) => {
            let [stage, errno @ ..] = bytes;
            let errno = Errno::from_raw(c_int::from_ne_bytes(errno));
            Some((Stage::from_byte(stage), errno))
        }
        _ => None,
    }
}

/// What could not be done, so that there is no child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Make a pipe.
    Pipe,
    /// Block signals.
    Signals,
    /// Fork.
    Fork,
    /// Open a pidfd.
    Pidfd,
}

/// Forks, and has the child become the program. Returns at once; a failed exec shows up in
/// [`Child::report`] and as exit status 127.
///
/// To be called on the main thread only: the kernel takes the end of the forking thread for the
/// parent's death.
///
/// # Errors
/// When there can be no pipe, no process or no pidfd for it. Then there is no child either.
pub fn spawn(command: &Command<'_>) -> Result<Child, (Act, Errno)> {
    let failed = |act| move |errno| (act, errno);
    let (report, theirs) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(failed(Act::Pipe))?;
    let mut plan = Plan::new(command, theirs.as_raw_fd());

    // All signals wait until the child has reset its handlers: a signal in between would run the
    // parent's handler in the child, and be lost.
    let mut mask = SigSet::empty();
    pthread_sigmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut mask),
    )
    .map_err(failed(Act::Signals))?;
    // SAFETY: the child calls only `Plan::perform`, which is async-signal-safe and never returns.
    let forked = unsafe { nix::unistd::fork() };
    if let Ok(ForkResult::Child) = forked {
        plan.perform();
    }
    let restored = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None);
    debug_assert!(restored.is_ok(), "a mask that was in force is valid");

    let pid = match forked.map_err(failed(Act::Fork))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => unreachable!("the child never returns"),
    };
    match pidfd::open(pid) {
        Ok(pidfd) => Ok(Child { pid, pidfd, report }),
        Err(error) => {
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(pid, None);
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
            Err((Act::Pidfd, errno))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_survives_its_way_through_the_pipe() {
        for stage in Stage::ALL {
            assert_eq!(Stage::from_byte(stage as u8), stage);
        }
    }
}
