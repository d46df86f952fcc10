//! A filter of system calls.

use libc::sock_filter;
use nix::errno::Errno;
use std::ffi::c_ushort;
use std::fmt;

/// A filter that a process can enter: a program of classic BPF.
#[derive(Clone, PartialEq, Eq)]
pub struct Filter {
    program: Vec<sock_filter>,
    /// The program's length, as the kernel takes it.
    length: c_ushort,
}

impl Filter {
    /// Takes a program; `None` when it has more instructions than the kernel can be told of.
    pub fn new(program: Vec<sock_filter>) -> Option<Self> {
        let length = c_ushort::try_from(program.len()).ok()?;
        Some(Self { program, length })
    }

    /// Returns the program.
    pub fn program(&self) -> &[sock_filter] {
        &self.program
    }

    /// Filters the system calls of this thread, and of everything that it executes, for good. Needs
    /// `no_new_privs`. Async-signal-safe.
    ///
    /// # Errors
    /// Those of seccomp(2).
    pub fn enter(&self) -> Result<(), Errno> {
        /// `struct sock_fprog`.
        #[repr(C)]
        struct Program {
            length: c_ushort,
            filter: *const sock_filter,
        }
        let program = Program {
            length: self.length,
            filter: self.program.as_ptr(),
        };
        // SAFETY: the program is valid for reads of its length; the kernel copies it.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        })?;
        Ok(())
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({} instructions)", self.length)
    }
}

/// Returns whether the kernel knows an action (`SECCOMP_RET_…`) of filters.
pub fn is_available(action: u32) -> bool {
    // SAFETY: the action is valid for reads.
    unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        ) == 0
    }
}
