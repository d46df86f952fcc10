//! Properties of processes.

use nix::errno::Errno;
use nix::unistd::Pid;

/// Sets the nice value of a process.
///
/// # Errors
/// Those of setpriority(2).
pub fn set_nice(pid: Pid, nice: i32) -> Result<(), Errno> {
    let id = libc::id_t::try_from(pid.as_raw()).map_err(|_| Errno::ESRCH)?;
    // SAFETY: setpriority takes integers and touches no memory.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, id, nice) }).map(drop)
}

/// Keeps processes without privileges from looking into this one from now on, even those of the
/// same user. So it leaves no core dump either, except `when_aborted`: SIGABRT then permits the
/// kernel's dump again.
pub fn forbid_inspection(when_aborted: bool) {
    /// Runs in any state of the process, a hung one too: system calls only.
    extern "C" fn permit_dump(signal: libc::c_int) {
        // SAFETY: these are async-signal-safe and take integers. The signal is blocked while this
        // runs, so the one that is raised here acts, by default, when this returns: the dump shows
        // where the process was.
        unsafe {
            libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
    let handler: extern "C" fn(libc::c_int) = permit_dump;
    // SAFETY: prctl takes integers, and the handler is async-signal-safe.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        if when_aborted {
            libc::signal(libc::SIGABRT, handler as libc::sighandler_t);
        }
    }
}

/// Attributes that the kernel resets in a process whose user changes, if only for files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResetByUserChange {
    dumpable: libc::c_int,
    death_signal: libc::c_int,
}

impl ResetByUserChange {
    /// Reads them.
    pub fn save() -> Self {
        let mut death_signal = 0;
        // SAFETY: the kernel writes one integer there; the other call takes integers only.
        let dumpable = unsafe {
            libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut death_signal, 0, 0, 0);
            libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0)
        };
        Self {
            dumpable,
            death_signal,
        }
    }

    /// Sets them to what they were.
    pub fn restore(self) {
        // SAFETY: prctl takes integers here, and touches no memory.
        unsafe {
            if self.dumpable == 1 {
                libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            }
            if self.death_signal != 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, self.death_signal, 0, 0, 0);
            }
        }
    }
}
