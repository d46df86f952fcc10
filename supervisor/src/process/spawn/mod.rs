//! Fork and exec: turns an [`Order`] into a running worker.
//!
//! A worker is always exec'd, from a descriptor that was opened when its generation was made, so that a rollback
//! starts the old program although the file on disk was replaced. The child between fork and exec makes
//! async-signal-safe calls only, never allocates, and never returns into the supervisor's code: it becomes the
//! program or leaves. What went wrong there comes back through a pipe that a successful exec closes.
//!
//! This module does not know what a worker is, what its environment means (except two pids that only the child
//! can know), or what to do when a spawn fails. Start reading at [`spawn`].
#![allow(unsafe_code)]

mod child;
mod executable;
#[cfg(test)]
mod tests;

use crate::sandbox::{Confinement, FREE};
use child::Plan;
pub(crate) use child::check;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::unistd::{ForkResult, Pid};
use std::ffi::{CStr, CString, c_int};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub(crate) use executable::{Executable, ExecutableError};

/// What to start, and how. Standard output is inherited as it is.
#[derive(Debug)]
pub(crate) struct Order<'a> {
    /// The program.
    pub executable: &'a Executable,
    /// Its arguments, the name it is called by first.
    pub argv: &'a [CString],
    /// Its whole environment. `LISTEN_PID` and `WATCHDOG_PID`, where they occur, get the child's pid as value,
    /// whatever stands there.
    pub env: Vec<CString>,
    /// Descriptors for the child's 3, 4, and so on.
    pub listeners: &'a [BorrowedFd<'a>],
    /// Descriptors for the numbers after those, such as a channel. Nothing else stays open, except:
    pub extras: &'a [BorrowedFd<'a>],
    /// Descriptors that keep their numbers. With any of them, `listeners` and `extras` must be empty.
    pub kept: &'a [RawFd],
    /// Its standard input; `None`: the supervisor's.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Its standard error; `None`: the supervisor's.
    pub stderr: Option<BorrowedFd<'a>>,
    /// Where it runs; `None`: where the supervisor runs.
    pub directory: Option<&'a CStr>,
    /// The signal that it gets when the supervisor dies.
    pub death_signal: Signal,
    /// A control group's `cgroup.procs` to enter.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// What it gives up.
    pub confinement: &'a Confinement,
}

impl<'a> Order<'a> {
    /// A process of the supervisor's own: it inherits no descriptor but the standard ones, gives up nothing and dies with the
    /// supervisor. All else is up to whoever orders it.
    pub(crate) fn own(executable: &'a Executable, argv: &'a [CString], env: Vec<CString>) -> Self {
        Self {
            executable,
            argv,
            env,
            listeners: &[],
            extras: &[],
            kept: &[],
            stdin: None,
            stderr: None,
            directory: None,
            death_signal: Signal::SIGKILL,
            cgroup: None,
            confinement: &FREE,
        }
    }
}

/// A child that was forked. Whether its exec worked is told by [`exec_errors`](Self::exec_errors).
#[derive(Debug)]
pub(crate) struct Spawned {
    /// Its process, and its process group.
    pub pid: Pid,
    /// Readable when it is dead; it must then be [reaped](super::reap::reap). Closed on exec.
    pub pidfd: OwnedFd,
    /// The pipe that tells of a failed exec.
    pub exec_errors: ExecErrors,
}

/// The reading end of a pipe on which a child tells why it could not become the program.
///
/// It is non-blocking and readable as soon as the exec worked (end of file) or failed (a report).
#[derive(Debug)]
pub(crate) struct ExecErrors {
    pipe: OwnedFd,
    program: String,
    directory: String,
}

impl AsFd for ExecErrors {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl ExecErrors {
    /// Goes on listening to a child that another program has started.
    pub(crate) fn adopted(pipe: OwnedFd, program: String, directory: String) -> Self {
        Self {
            pipe,
            program,
            directory,
        }
    }

    /// The program and the directory that it tells of.
    pub(crate) fn about(&self) -> (&str, &str) {
        (&self.program, &self.directory)
    }

    /// Why the exec failed; `None` when it worked, or while it is not known. A dead child's report is always there.
    pub(crate) fn failure(&self) -> Option<ExecFailure> {
        let mut report = [0_u8; REPORT];
        match nix::unistd::read(&self.pipe, &mut report) {
            Ok(REPORT) => {
                let [stage, errno @ ..] = report;
                Some(ExecFailure {
                    stage: Stage::from_byte(stage),
                    errno: Errno::from_raw(c_int::from_ne_bytes(errno)),
                    program: self.program.clone(),
                    directory: self.directory.clone(),
                })
            }
            _ => None,
        }
    }
}

/// A report is a stage and an errno. Far below PIPE_BUF, so it is written whole or not at all.
const REPORT: usize = 1 + size_of::<c_int>();

/// What the child was about to do when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// To make its own process group.
    Group,
    /// To enter its control group.
    Cgroup,
    /// To ask for a signal at its parent's death.
    DeathSignal,
    /// To move its descriptors to their places and close all others.
    Descriptors,
    /// To enter its directory.
    Directory,
    /// To renounce new privileges.
    NoNewPrivileges,
    /// To take its groups.
    Groups,
    /// To become its user and group.
    Identity,
    /// To give up capabilities.
    Capabilities,
    /// To set resource limits.
    Limits,
    /// To mount its own `/tmp`.
    PrivateTmp,
    /// To restrict its access to files and processes.
    Landlock,
    /// To filter its system calls.
    Seccomp,
    /// To execute the program. Last, as everything before it is told apart by number.
    Exec,
}

impl Stage {
    fn from_byte(byte: u8) -> Self {
        let all = [
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
        ];
        all.into_iter()
            .find(|stage| *stage as u8 == byte)
            .unwrap_or(Self::Exec)
    }
}

/// Why a child could not become the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecFailure {
    /// What failed.
    pub stage: Stage,
    /// How.
    pub errno: Errno,
    program: String,
    directory: String,
}

impl fmt::Display for ExecFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            program, directory, ..
        } = self;
        let reason = self.errno.desc();
        match self.stage {
            Stage::Directory => {
                return write!(
                    f,
                    "cannot enter directory {directory} for {program}: {reason} (create it)"
                );
            }
            Stage::Exec => write!(f, "cannot execute {program}: {reason}")?,
            Stage::Group => write!(f, "cannot make a session for {program}: {reason}")?,
            Stage::Cgroup => write!(f, "cannot enter the control group of {program}: {reason}")?,
            Stage::DeathSignal => write!(
                f,
                "cannot set the parent-death signal of {program}: {reason}"
            )?,
            Stage::NoNewPrivileges => {
                write!(f, "cannot renounce new privileges of {program}: {reason}")?
            }
            Stage::Groups => write!(f, "cannot set the groups of {program}: {reason}")?,
            Stage::Identity => write!(f, "cannot change the user or group of {program}: {reason}")?,
            Stage::Capabilities => write!(f, "cannot take capabilities from {program}: {reason}")?,
            Stage::Limits => write!(f, "cannot set resource limits of {program}: {reason}")?,
            Stage::PrivateTmp => write!(f, "cannot mount a private /tmp for {program}: {reason}")?,
            Stage::Landlock => write!(f, "cannot restrict {program} to its paths: {reason}")?,
            Stage::Seccomp => write!(f, "cannot filter the system calls of {program}: {reason}")?,
            Stage::Descriptors => write!(f, "cannot place the descriptors of {program}: {reason}")?,
        }
        match executable::remedy(self.errno) {
            Some(remedy) => write!(f, " ({remedy})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ExecFailure {}

/// Why there is no child.
#[derive(Debug)]
pub(crate) struct SpawnError {
    act: &'static str,
    program: String,
    /// What the system said.
    pub errno: Errno,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot {} for {}: {}",
            self.act,
            self.program,
            self.errno.desc()
        )?;
        match self.errno {
            Errno::EAGAIN => f.write_str(" (raise the limit of processes: ulimit -u, TasksMax=)"),
            Errno::EMFILE => {
                f.write_str(" (raise the limit of open files: ulimit -n, LimitNOFILE=)")
            }
            Errno::ENOMEM => f.write_str(" (free memory, or run fewer workers)"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for SpawnError {}

/// Forks, and has the child become the program. Returns at once; a failed exec shows up in
/// [`Spawned::exec_errors`] and as exit status 127.
///
/// To be called on the main thread only: the kernel takes the end of the forking thread for the parent's death.
///
/// # Errors
/// When there can be no pipe, no process or no pidfd for it. Then there is no child either.
pub(crate) fn spawn(order: Order<'_>) -> Result<Spawned, SpawnError> {
    debug_assert!(
        cfg!(test) || std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count) == 1,
        "a supervisor has one thread"
    );
    let program = order.executable.path().display().to_string();
    let failed = |act| {
        let program = program.clone();
        move |errno| SpawnError {
            act,
            program,
            errno,
        }
    };
    let (errors, report) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(failed("make a pipe"))?;
    let mut plan = Plan::new(&order, report.as_raw_fd());

    // All signals wait until the child has reset its handlers: a signal in between would run the supervisor's
    // handler in the child, and be lost.
    let mut mask = SigSet::empty();
    pthread_sigmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut mask),
    )
    .map_err(failed("block signals"))?;
    // SAFETY: the child calls only `Plan::perform`, which is async-signal-safe and never returns.
    let forked = unsafe { nix::unistd::fork() };
    if let Ok(ForkResult::Child) = forked {
        plan.perform();
    }
    let restored = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None);
    debug_assert!(restored.is_ok(), "a mask that was in force is valid");

    let pid = match forked.map_err(failed("fork a process"))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => unreachable!("the child never returns"),
    };
    let pidfd = pidfd_open(pid).map_err(|errno| {
        let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
        failed("open a pidfd")(errno)
    })?;
    let directory = order
        .directory
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default();
    Ok(Spawned {
        pid,
        pidfd,
        exec_errors: ExecErrors {
            pipe: errors,
            program,
            directory,
        },
    })
}

/// Opens a pidfd, closed on exec, for a process that has this number now.
pub(crate) fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the kernel just opened it for us, and nobody else knows it. Descriptors fit a RawFd.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal to the process of a pidfd, which cannot have become another process meanwhile.
///
/// # Errors
/// Those of pidfd_send_signal(2); `ESRCH` when it is dead.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal takes three integers, and a pointer that may be null.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as c_int,
            no_info,
            0,
        )
    };
    Errno::result(sent).map(drop)
}
