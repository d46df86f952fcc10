//! Starting a program: what a child is given, and what an operator is told when that fails.
//!
//! A worker is always exec'd, from descriptors that were opened when its generation was made: of its
//! program, the program's interpreter and its directory. So a rollback, and a worker that replaces
//! a dead one, start the old program although the files on disk were replaced. Fork and exec
//! themselves, and what the child does in between, are [`prefork_os::spawn`]'s.
//!
//! This module does not know what a worker is, what its environment means (except two pids that
//! only the child can know), or what to do when a spawn fails. Start reading at [`spawn`].

mod directory;
mod executable;
#[cfg(test)]
mod tests;

use crate::sandbox::{Confinement, FREE};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use prefork_os::spawn::{Act, Command, FIRST_FD, read_report};
use prefork_protocol::environment::{LISTEN_PID, WATCHDOG_PID};
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

pub(crate) use directory::{Directory, without_links};
pub(crate) use executable::{Executable, ExecutableError, Interpreter};
pub(crate) use prefork_os::pidfd::send_signal;
pub(crate) use prefork_os::spawn::Stage;

/// What to start, and how. Standard output is inherited as it is.
#[derive(Debug)]
pub(crate) struct Order<'a> {
    /// The program.
    pub executable: &'a Executable,
    /// Its arguments, the name it is called by first.
    pub argv: &'a [CString],
    /// Its whole environment. `LISTEN_PID` and `WATCHDOG_PID`, where they occur, get the child's
    /// pid as value, whatever stands there.
    pub env: Vec<CString>,
    /// Descriptors for the child's 3, 4, and so on.
    pub listeners: &'a [BorrowedFd<'a>],
    /// Descriptors for the numbers after those, such as a channel. Nothing else stays open, except:
    pub extras: &'a [BorrowedFd<'a>],
    /// Descriptors that keep their numbers. With any of them, `listeners` and `extras` must be
    /// empty.
    pub kept: &'a [RawFd],
    /// Its standard input; `None`: the supervisor's.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Its standard error; `None`: the supervisor's.
    pub stderr: Option<BorrowedFd<'a>>,
    /// Where it runs; `None`: where the supervisor runs.
    pub directory: Option<&'a Directory>,
    /// The signal that it gets when the supervisor dies.
    pub death_signal: Signal,
    /// A control group's `cgroup.procs` to enter.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// What it gives up.
    pub confinement: &'a Confinement,
}

impl<'a> Order<'a> {
    /// Returns an order for a process of the supervisor's own: it inherits no descriptor but the
    /// standard ones, gives up nothing and dies with the supervisor.
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

/// A child that was forked. Whether its exec worked is read from
/// [`exec_errors`](Self::exec_errors).
#[derive(Debug)]
pub(crate) struct Spawned {
    /// Its process, and its process group.
    pub pid: Pid,
    /// Readable when it is dead; it must then be [reaped](super::reap::reap). Closed on exec.
    pub pidfd: OwnedFd,
    /// The pipe through which a failed exec is reported.
    pub exec_errors: ExecErrors,
}

/// The reading end of a pipe through which a child reports why it could not become the program.
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
    /// Goes on with the pipe of a child that another program has started.
    pub(crate) fn adopted(pipe: OwnedFd, program: String, directory: String) -> Self {
        Self {
            pipe,
            program,
            directory,
        }
    }

    /// Returns the program and the directory that reports are about.
    pub(crate) fn about(&self) -> (&str, &str) {
        (&self.program, &self.directory)
    }

    /// Returns why the exec failed; `None` when it worked, or while it is not known. The report of
    /// a dead child is always there, once.
    pub(crate) fn failure(&self) -> Option<ExecFailure> {
        read_report(&self.pipe).map(|(stage, errno)| ExecFailure {
            stage,
            errno,
            program: self.program.clone(),
            directory: self.directory.clone(),
        })
    }
}

/// Why a child could not become the program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
                write!(f, "cannot renounce new privileges of {program}: {reason}")?;
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
        if self.stage == Stage::Descriptors && self.errno == Errno::EPERM {
            return f.write_str(
                " (the seccomp filter of a container engine refuses close_range: update the \
                 engine, or allow that call in its profile)",
            );
        }
        match executable::remedy(self.errno) {
            Some(remedy) => write!(f, " ({remedy})"),
            None => Ok(()),
        }
    }
}

/// Why there is no child.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct SpawnError {
    act: Act,
    program: String,
    /// What the system returned.
    pub errno: Errno,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let act = match self.act {
            Act::Pipe => "make a pipe",
            Act::Signals => "block signals",
            Act::Fork => "fork a process",
            Act::Pidfd => "open a pidfd",
        };
        let (program, reason) = (&self.program, self.errno.desc());
        write!(f, "cannot {act} for {program}: {reason}")?;
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

/// Forks, and has the child become the program. Returns at once; a failed exec shows up in
/// [`Spawned::exec_errors`] and as exit status 127.
///
/// To be called on the main thread only: the kernel takes the end of the forking thread for the
/// parent's death.
///
/// # Errors
/// When there can be no pipe, no process or no pidfd for it. Then there is no child either.
pub(crate) fn spawn(order: &Order<'_>) -> Result<Spawned, SpawnError> {
    debug_assert!(
        cfg!(test) || prefork_os::environment::threads().unwrap_or(1) == 1,
        "a supervisor has one thread"
    );
    let program = order.executable.path().display().to_string();
    let mut descriptors = [order.listeners, order.extras].concat();
    let number = FIRST_FD + RawFd::try_from(descriptors.len()).unwrap_or(RawFd::MAX / 2);
    let line = order.executable.command_line(order.argv, number);
    descriptors.extend(line.files);
    let spawned = prefork_os::spawn::spawn(&Command {
        program: line.program,
        argv: &line.argv,
        env: &order.env,
        pid_variables: &[LISTEN_PID, WATCHDOG_PID],
        descriptors: &descriptors,
        kept: order.kept,
        stdin: order.stdin,
        stderr: order.stderr,
        directory: order.directory.map(AsFd::as_fd),
        death_signal: order.death_signal,
        cgroup: order.cgroup,
        confinement: order.confinement.steps(),
    });
    let spawned = match spawned {
        Ok(spawned) => spawned,
        Err((act, errno)) => {
            return Err(SpawnError {
                act,
                program,
                errno,
            });
        }
    };
    let directory = order
        .directory
        .map(|directory| directory.path().display().to_string())
        .unwrap_or_default();
    Ok(Spawned {
        pid: spawned.pid,
        pidfd: spawned.pidfd,
        exec_errors: ExecErrors {
            pipe: spawned.report,
            program,
            directory,
        },
    })
}
