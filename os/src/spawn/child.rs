//! What the child does between fork and exec: async-signal-safe calls only, no allocation, no way
//! back.
//!
//! *Invariant*: each step takes away what an earlier one needs, so their order is fixed: session,
//! control group, private directories, limits, identity, parent-death signal, directory,
//! `no_new_privs`, Landlock, signals, descriptors, and at last the filter of system calls.

use super::{Command, FIRST_FD, REPORT, Stage};
use crate::confinement::Confinement;
use nix::errno::Errno;
use nix::unistd::Pid;
use std::convert::Infallible;
use std::ffi::{c_char, c_int, c_long};
use std::os::fd::{AsRawFd, RawFd};

/// Everything the child needs, made before the fork so that the child need not allocate. It holds
/// pointers into the command and into its own buffers, which all live until after the fork.
pub(super) struct Plan<'a> {
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// Owns the variables that hold the child's pid, which `env` points to.
    _pid_variables: Vec<Vec<u8>>,
    /// Where the child writes its pid: [`PID_ROOM`] bytes each.
    pid_fields: Vec<*mut u8>,
    stdin: Option<RawFd>,
    stderr: Option<RawFd>,
    sources: Vec<RawFd>,
    kept: &'a [RawFd],
    /// As many as `sources`: where they are while the low numbers are cleared.
    parked: Vec<RawFd>,
    executable: RawFd,
    directory: Option<RawFd>,
    death_signal: c_int,
    cgroup: Option<RawFd>,
    confinement: &'a Confinement,
    parent: Pid,
    report: RawFd,
}

/// Ten digits and the end of the string.
const PID_ROOM: usize = 11;

impl<'a> Plan<'a> {
    pub(super) fn new(command: &Command<'a>, report: RawFd) -> Self {
        let mut pid_variables = Vec::new();
        let mut pid_fields = Vec::new();
        let mut env: Vec<*const c_char> = Vec::with_capacity(command.env.len() + 1);
        for variable in command.env {
            let name = variable
                .to_bytes()
                .split(|byte| *byte == b'=')
                .next()
                .unwrap_or_default();
            let mut named = command.pid_variables.iter();
            if !named.any(|with_pid| with_pid.as_bytes() == name) {
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
        let argv = command
            .argv
            .iter()
            .map(|argument| argument.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        let sources: Vec<RawFd> = command.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        Self {
            argv,
            env,
            _pid_variables: pid_variables,
            pid_fields,
            parked: vec![-1; sources.len()],
            sources,
            stdin: command.stdin.map(|descriptor| descriptor.as_raw_fd()),
            stderr: command.stderr.map(|descriptor| descriptor.as_raw_fd()),
            kept: command.kept,
            executable: command.program.as_raw_fd(),
            directory: command.directory.map(|directory| directory.as_raw_fd()),
            death_signal: command.death_signal as c_int,
            cgroup: command.cgroup.map(|group| group.as_raw_fd()),
            confinement: command.confinement,
            parent: nix::unistd::getpid(),
            report,
        }
    }

    /// The child's whole life until exec. Async-signal-safe throughout.
    pub(super) fn perform(&mut self) -> ! {
        let Err((stage, errno)) = self.become_program();
        let mut report = [stage as u8; REPORT];
        report[1..].copy_from_slice(&(errno as c_int).to_ne_bytes());
        // SAFETY: `report` is valid for reads of its length; `_exit` runs no destructor and no
        // atexit handler.
        unsafe {
            libc::write(self.report, report.as_ptr().cast(), report.len());
            libc::_exit(127)
        }
    }

    fn become_program(&mut self) -> Result<Infallible, (Stage, Errno)> {
        // A session of its own, not only a group: a process of another session cannot join its
        // group, by which we know who speaks. SAFETY: setsid takes nothing and touches no memory.
        check(Stage::Group, unsafe { libc::setsid() })?;
        if let Some(cgroup) = self.cgroup {
            // SAFETY: one byte of a literal is read.
            let written = unsafe { libc::write(cgroup, c"0".as_ptr().cast(), 1) };
            checked(Stage::Cgroup, written as c_long)?;
        }
        // With mounts of its own, it gets a view of its directory, too; the descriptor would lead
        // back to the view of the supervisor.
        let early = self.confinement.private_tmp.is_some();
        if early {
            self.enter_directory()?;
        }
        self.confinement.drop_privileges()?;
        // SAFETY: prctl takes integers here, and touches no memory.
        check(Stage::DeathSignal, unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, self.death_signal, 0, 0, 0)
        })?;
        // The parent may have died before the line above. Then no signal comes, and nothing reads a
        // report.
        // SAFETY: getppid takes nothing and touches no memory.
        if unsafe { libc::getppid() } != self.parent.as_raw() {
            // SAFETY: _exit runs no destructor and no atexit handler.
            unsafe { libc::_exit(127) };
        }
        if !early {
            self.enter_directory()?;
        } else if self.directory.is_some() {
            // As who it is now, it may not be allowed to. SAFETY: the path ends with a NUL.
            check(Stage::Directory, unsafe { libc::chdir(c".".as_ptr()) })?;
        }
        self.confinement.restrict()?;
        reset_signals();
        let executable = self.place_descriptors()?;
        // SAFETY: getpid takes nothing and touches no memory.
        let pid = unsafe { libc::getpid() };
        for field in &self.pid_fields {
            // SAFETY: each field has PID_ROOM bytes in one of the plan's own buffers.
            unsafe { write_pid(pid, *field) };
        }
        self.confinement.limit_open_files()?;
        self.confinement.filter()?;
        // SAFETY: every pointer was made from a NUL-terminated string that the fork copied; the two
        // arrays end with a null pointer.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                executable,
                c"".as_ptr(),
                self.argv.as_ptr(),
                self.env.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        Err((Stage::Exec, Errno::last()))
    }

    fn enter_directory(&self) -> Result<(), (Stage, Errno)> {
        if let Some(directory) = self.directory {
            // SAFETY: fchdir takes an integer and touches no memory.
            check(Stage::Directory, unsafe { libc::fchdir(directory) })?;
        }
        Ok(())
    }

    /// Puts the sources at 3 and up, the pipe and the executable (both closed on exec) right above,
    /// and closes the rest. Returns the executable's new number.
    fn place_descriptors(&mut self) -> Result<RawFd, (Stage, Errno)> {
        let stage = Stage::Descriptors;
        if !self.kept.is_empty() {
            // Everything that the parent opens is closed on exec, unless that is taken back here.
            for descriptor in self.kept {
                // SAFETY: F_SETFD changes the flags of a descriptor and touches no memory.
                check(stage, unsafe { libc::fcntl(*descriptor, libc::F_SETFD, 0) })?;
            }
            return Ok(self.executable);
        }
        let count = self.sources.len() as RawFd;
        let (report, executable) = (FIRST_FD + count, FIRST_FD + count + 1);
        let above = executable + 1;
        // SAFETY: these calls take integers and touch no memory. Nothing in the child owns a
        // descriptor by a Rust value that would still be used: it never returns.
        unsafe {
            for (source, target) in [
                (self.stdin, libc::STDIN_FILENO),
                (self.stderr, libc::STDERR_FILENO),
            ] {
                if let Some(source) = source {
                    check(stage, libc::dup2(source, target))?;
                }
            }
            // First all out of the way: a source may sit where another one belongs.
            self.report = check(
                stage,
                libc::fcntl(self.report, libc::F_DUPFD_CLOEXEC, above),
            )?;
            self.executable = check(
                stage,
                libc::fcntl(self.executable, libc::F_DUPFD_CLOEXEC, above),
            )?;
            for (source, parked) in self.sources.iter().zip(&mut self.parked) {
                *parked = check(stage, libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, above))?;
            }
            for (target, parked) in (FIRST_FD..).zip(&self.parked) {
                // A dup2'ed descriptor is not closed on exec.
                check(stage, libc::dup2(*parked, target))?;
            }
            self.executable = check(
                stage,
                libc::dup3(self.executable, executable, libc::O_CLOEXEC),
            )?;
            self.report = check(stage, libc::dup3(self.report, report, libc::O_CLOEXEC))?;
            checked(
                stage,
                libc::syscall(libc::SYS_close_range, above, libc::c_uint::MAX, 0),
            )?;
        }
        Ok(executable)
    }
}

/// Resets every signal to its default action, then empties the mask. A signal that came since the
/// fork acts here.
fn reset_signals() {
    /// What the kernel takes as a set of signals.
    const SET: usize = size_of::<u64>();
    // SAFETY: zeros are SIG_DFL without flags in the kernel's own layout (at most four words), and
    // an empty set; both calls only read them. The C library's wrapper would refuse two signals,
    // which exec then passes on ignored. KILL and STOP are refused, as they should be.
    unsafe {
        let zeros = [0_u64; 4];
        for signal in 1..=64 {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const zeros,
                std::ptr::null_mut::<u8>(),
                SET,
            );
        }
        let set = libc::SIG_SETMASK;
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            set,
            &raw const zeros,
            std::ptr::null_mut::<u8>(),
            SET,
        );
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
        // SAFETY: a pid has at most 10 digits, so `place` is below PID_ROOM, as is the end of the
        // string.
        unsafe { field.add(place).write(*digit) };
    }
    // SAFETY: as above.
    unsafe { field.add(length).write(0) };
}

/// Returns what a step's system call has returned, or the step and its errno.
fn check(stage: Stage, returned: c_int) -> Result<c_int, (Stage, Errno)> {
    Errno::result(returned).map_err(|errno| (stage, errno))
}

/// As [`check`], for calls that return a word.
fn checked(stage: Stage, returned: c_long) -> Result<(), (Stage, Errno)> {
    Errno::result(returned)
        .map(drop)
        .map_err(|errno| (stage, errno))
}
