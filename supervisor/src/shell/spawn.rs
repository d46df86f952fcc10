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

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::unistd::{ForkResult, Pid};
use prefork::environment::{FIRST_FD, LISTEN_PID, WATCHDOG_PID};
use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

mod executable;
pub use executable::{Executable, ExecutableError};

/// What to start, and how. Standard input, output and error are inherited as they are.
#[derive(Debug)]
pub struct Order<'a> {
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
    /// Where it runs; `None`: where the supervisor runs.
    pub directory: Option<&'a CStr>,
    /// The signal that it gets when the supervisor dies.
    pub death_signal: Signal,
}

/// A child that was forked. Whether its exec worked is told by [`exec_errors`](Self::exec_errors).
#[derive(Debug)]
pub struct Spawned {
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
pub struct ExecErrors {
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
    pub(super) fn adopted(pipe: OwnedFd, program: String, directory: String) -> Self {
        Self { pipe, program, directory }
    }

    /// The program and the directory that it tells of.
    pub(super) fn about(&self) -> (&str, &str) {
        (&self.program, &self.directory)
    }

    /// Why the exec failed; `None` when it worked, or while it is not known. A dead child's report is always there.
    pub fn failure(&self) -> Option<ExecFailure> {
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
pub enum Stage {
    /// To make its own process group.
    Group,
    /// To ask for a signal at its parent's death.
    DeathSignal,
    /// To move its descriptors to their places and close all others.
    Descriptors,
    /// To enter its directory.
    Directory,
    /// To execute the program. Last, as everything before it is told apart by number.
    Exec,
}

impl Stage {
    fn from_byte(byte: u8) -> Self {
        let all = [Self::Group, Self::DeathSignal, Self::Descriptors, Self::Directory];
        all.into_iter().find(|stage| *stage as u8 == byte).unwrap_or(Self::Exec)
    }
}

/// Why a child could not become the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecFailure {
    /// What failed.
    pub stage: Stage,
    /// How.
    pub errno: Errno,
    program: String,
    directory: String,
}

impl fmt::Display for ExecFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, directory, .. } = self;
        let reason = self.errno.desc();
        match self.stage {
            Stage::Directory => {
                return write!(f, "cannot enter directory {directory} for {program}: {reason} (create it)");
            }
            Stage::Exec => write!(f, "cannot execute {program}: {reason}")?,
            Stage::Group => write!(f, "cannot make a process group for {program}: {reason}")?,
            Stage::DeathSignal => write!(f, "cannot set the parent-death signal of {program}: {reason}")?,
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
pub struct SpawnError {
    act: &'static str,
    program: String,
    /// What the system said.
    pub errno: Errno,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} for {}: {}", self.act, self.program, self.errno.desc())?;
        match self.errno {
            Errno::EAGAIN => f.write_str(" (raise the limit of processes: ulimit -u, TasksMax=)"),
            Errno::EMFILE => f.write_str(" (raise the limit of open files: ulimit -n, LimitNOFILE=)"),
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
pub fn spawn(order: Order<'_>) -> Result<Spawned, SpawnError> {
    debug_assert!(
        cfg!(test) || std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count) == 1,
        "a supervisor has one thread"
    );
    let program = order.executable.path().display().to_string();
    let failed = |act| {
        let program = program.clone();
        move |errno| SpawnError { act, program, errno }
    };
    let (errors, report) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(failed("make a pipe"))?;
    let mut plan = Plan::new(&order, report.as_raw_fd());

    // All signals wait until the child has reset its handlers: a signal in between would run the supervisor's
    // handler in the child, and be lost.
    let mut mask = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))
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
    // The child does the same. Whoever comes first, the group exists when this function returns.
    let _ = nix::unistd::setpgid(pid, pid);
    let pidfd = pidfd_open(pid).map_err(|errno| {
        let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
        failed("open a pidfd")(errno)
    })?;
    let directory = order.directory.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Spawned { pid, pidfd, exec_errors: ExecErrors { pipe: errors, program, directory } })
}

/// Opens a pidfd, closed on exec, for a child that was not yet reaped.
fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the kernel just opened it for us, and nobody else knows it. Descriptors fit a RawFd.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal to the process of a pidfd, which cannot have become another process meanwhile.
///
/// # Errors
/// Those of pidfd_send_signal(2); `ESRCH` when it is dead.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal takes three integers, and a pointer that may be null.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as c_int, no_info, 0) };
    Errno::result(sent).map(drop)
}

/// Everything the child needs, made before the fork so that the child need not allocate. It holds pointers into
/// `order` and into its own buffers, which all live until after the fork.
struct Plan<'a> {
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// Owns the variables that hold the child's pid, which `env` points to.
    _pid_variables: Vec<Vec<u8>>,
    /// Where the child writes its pid: [`PID_ROOM`] bytes each.
    pid_fields: Vec<*mut u8>,
    sources: Vec<RawFd>,
    kept: &'a [RawFd],
    /// As many as `sources`: where they are while the low numbers are cleared.
    parked: Vec<RawFd>,
    executable: RawFd,
    script: Option<&'a CStr>,
    directory: Option<&'a CStr>,
    death_signal: c_int,
    parent: Pid,
    report: RawFd,
}

/// Ten digits and the end of the string.
const PID_ROOM: usize = 11;

impl<'a> Plan<'a> {
    fn new(order: &'a Order<'_>, report: RawFd) -> Self {
        let mut pid_variables = Vec::new();
        let mut pid_fields = Vec::new();
        let mut env: Vec<*const c_char> = Vec::with_capacity(order.env.len() + 1);
        for variable in &order.env {
            let name = variable.to_bytes().split(|byte| *byte == b'=').next().unwrap_or_default();
            if name != LISTEN_PID.as_bytes() && name != WATCHDOG_PID.as_bytes() {
                env.push(variable.as_ptr());
                continue;
            }
            let mut text = [name, b"=", &[0; PID_ROOM]].concat();
            let start = text.as_mut_ptr();
            env.push(start.cast_const().cast());
            pid_fields.push(start.wrapping_add(name.len() + 1));
            // Moving the vector does not move its bytes.
            pid_variables.push(text);
        }
        env.push(std::ptr::null());
        let argv = order.argv.iter().map(|argument| argument.as_ptr()).chain([std::ptr::null()]).collect();
        let sources: Vec<RawFd> =
            order.listeners.iter().chain(order.extras).map(|descriptor| descriptor.as_raw_fd()).collect();
        Self {
            argv,
            env,
            _pid_variables: pid_variables,
            pid_fields,
            parked: vec![-1; sources.len()],
            sources,
            kept: order.kept,
            executable: order.executable.as_fd().as_raw_fd(),
            script: order.executable.script(),
            directory: order.directory,
            death_signal: order.death_signal as c_int,
            parent: nix::unistd::getpid(),
            report,
        }
    }

    /// The child's whole life until exec. Async-signal-safe throughout.
    fn perform(&mut self) -> ! {
        let (stage, errno) = match self.become_program() {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        let mut report = [stage as u8; REPORT];
        report[1..].copy_from_slice(&errno.to_ne_bytes());
        // SAFETY: `report` is valid for reads of its length; `_exit` runs no destructor and no atexit handler.
        unsafe {
            libc::write(self.report, report.as_ptr().cast(), report.len());
            libc::_exit(127)
        }
    }

    fn become_program(&mut self) -> Result<std::convert::Infallible, (Stage, c_int)> {
        // SAFETY: plain system calls on integers; `setpgid`, `prctl`, `getppid` and `_exit` are async-signal-safe.
        unsafe {
            check(Stage::Group, libc::setpgid(0, 0))?;
            check(Stage::DeathSignal, libc::prctl(libc::PR_SET_PDEATHSIG, self.death_signal, 0, 0, 0))?;
            // The supervisor may have died before the line above. Then no signal comes, and nobody reads a report.
            if libc::getppid() != self.parent.as_raw() {
                libc::_exit(127);
            }
        }
        reset_signals();
        let executable = self.place_descriptors()?;
        // SAFETY: every pointer was made from a NUL-terminated string that the fork copied; the two arrays end
        // with a null pointer; each pid field has PID_ROOM bytes.
        unsafe {
            if let Some(directory) = self.directory {
                check(Stage::Directory, libc::chdir(directory.as_ptr()))?;
            }
            let pid = libc::getpid();
            for field in &self.pid_fields {
                write_pid(pid, *field);
            }
            match self.script {
                Some(path) => libc::execve(path.as_ptr(), self.argv.as_ptr(), self.env.as_ptr()),
                None => libc::syscall(
                    libc::SYS_execveat,
                    executable,
                    c"".as_ptr(),
                    self.argv.as_ptr(),
                    self.env.as_ptr(),
                    libc::AT_EMPTY_PATH,
                ) as c_int,
            };
        }
        Err((Stage::Exec, errno()))
    }

    /// Puts the sources at 3 and up, the pipe and the executable (both closed on exec) right above, and closes
    /// the rest. Returns the executable's new number.
    fn place_descriptors(&mut self) -> Result<RawFd, (Stage, c_int)> {
        let stage = Stage::Descriptors;
        if !self.kept.is_empty() {
            // Everything that the supervisor opens is closed on exec, unless that is taken back here.
            for descriptor in self.kept {
                // SAFETY: a plain system call on integers.
                check(stage, unsafe { libc::fcntl(*descriptor, libc::F_SETFD, 0) })?;
            }
            return Ok(self.executable);
        }
        let count = self.sources.len() as RawFd;
        let (report, executable) = (FIRST_FD + count, FIRST_FD + count + 1);
        let above = executable + 1;
        // SAFETY: plain system calls on integers. Nothing in the child owns a descriptor by a Rust value that
        // would still be used: it never returns.
        unsafe {
            // First all out of the way: a source may sit where another one belongs.
            self.report = check(stage, libc::fcntl(self.report, libc::F_DUPFD_CLOEXEC, above))?;
            self.executable = check(stage, libc::fcntl(self.executable, libc::F_DUPFD_CLOEXEC, above))?;
            for (source, parked) in self.sources.iter().zip(&mut self.parked) {
                *parked = check(stage, libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, above))?;
            }
            for (target, parked) in (FIRST_FD..).zip(&self.parked) {
                // A dup2'ed descriptor is not closed on exec.
                check(stage, libc::dup2(*parked, target))?;
            }
            self.executable = check(stage, libc::dup3(self.executable, executable, libc::O_CLOEXEC))?;
            self.report = check(stage, libc::dup3(self.report, report, libc::O_CLOEXEC))?;
            check(stage, libc::syscall(libc::SYS_close_range, above, libc::c_uint::MAX, 0) as c_int)?;
        }
        Ok(executable)
    }
}

/// Default action for every signal, then an empty mask. A signal that came since the fork acts here.
fn reset_signals() {
    /// What the kernel takes as a set of signals.
    const SET: usize = size_of::<u64>();
    // SAFETY: zeros are SIG_DFL without flags in the kernel's own layout (at most four words), and an empty set;
    // both calls only read them. The C library's wrapper would refuse two signals, which exec then passes on
    // ignored. KILL and STOP are refused, as they should be.
    unsafe {
        let zeros = [0_u64; 4];
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const zeros, std::ptr::null_mut::<u8>(), SET);
        }
        let set = libc::SIG_SETMASK;
        libc::syscall(libc::SYS_rt_sigprocmask, set, &raw const zeros, std::ptr::null_mut::<u8>(), SET);
    }
}

/// Writes `pid` in decimal. Without leading zeros: systemd's own library would read those as octal.
///
/// # Safety
/// `field` must be valid for writes of [`PID_ROOM`] bytes.
unsafe fn write_pid(pid: c_int, field: *mut u8) {
    let mut digits = [0_u8; PID_ROOM];
    let mut rest = pid.unsigned_abs();
    let mut length = 0;
    while length == 0 || rest > 0 {
        digits[length] = b'0' + (rest % 10) as u8;
        rest /= 10;
        length += 1;
    }
    for (place, digit) in digits[..length].iter().rev().enumerate() {
        // SAFETY: a pid has at most 10 digits, so `place` is below PID_ROOM, as is the end of the string.
        unsafe { field.add(place).write(*digit) };
    }
    // SAFETY: as above.
    unsafe { field.add(length).write(0) };
}

fn check(stage: Stage, result: c_int) -> Result<c_int, (Stage, c_int)> {
    if result < 0 { Err((stage, errno())) } else { Ok(result) }
}

fn errno() -> c_int {
    Errno::last_raw()
}

#[cfg(test)]
mod tests;
