//! Landlock: a domain that restricts which files, processes and ports a process can reach.
//!
//! Rights are bits, as the kernel numbers them.

use nix::errno::Errno;
use std::borrow::Cow;
use std::ffi::{CStr, c_int, c_long};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Returns the version of the kernel's Landlock; 0 where there is none.
pub fn abi() -> u32 {
    const VERSION: c_int = 1;
    // SAFETY: asked for its version, the call reads no memory.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// Rights that a domain takes away except where a rule gives them back: `struct
/// landlock_ruleset_attr`. An older kernel, which knows fewer fields, takes the rest for zeros, as
/// it is then.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handled {
    /// Rights to files.
    pub files: u64,
    /// Rights to ports.
    pub net: u64,
    /// What is restricted to processes of the same domain.
    pub scopes: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    access: u64,
    parent: c_int,
}

/// A path and the rights beneath it.
#[derive(Debug)]
pub struct Rule {
    /// The path, opened with `O_PATH`.
    pub path: OwnedFd,
    /// Its rights.
    pub access: u64,
}

/// A ruleset that a process can enter.
#[derive(Debug)]
pub struct Ruleset {
    handled: Handled,
    rules: Vec<Rule>,
    late: Vec<(Cow<'static, CStr>, u64)>,
}

impl Ruleset {
    /// Prepares a ruleset and tries it. The paths `late`, with their rights, are opened only when
    /// it is entered, since they name something else, or nothing, before.
    ///
    /// # Errors
    /// The kernel's, when it does not accept the rules.
    pub fn prepare(
        handled: Handled,
        rules: Vec<Rule>,
        late: Vec<(Cow<'static, CStr>, u64)>,
    ) -> Result<Self, Errno> {
        let prepared = Self {
            handled,
            rules,
            late,
        };
        let number = prepared.create()?;
        // SAFETY: the ruleset was just made for us, and nothing else knows it.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
        Ok(prepared)
    }

    /// Enters a domain of this ruleset for good, with everything that this thread executes from now
    /// on. Needs `no_new_privs`. Async-signal-safe; it leaves descriptors open that are closed on
    /// exec.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter(&self) -> Result<(), Errno> {
        let ruleset = self.create()?;
        for (path, access) in &self.late {
            // SAFETY: the path ends with a NUL.
            let opened = unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
            // What is not there cannot be seen either.
            if opened >= 0 {
                self.allow(ruleset, opened, *access)?;
            }
        }
        // SAFETY: landlock_restrict_self takes integers and touches no memory.
        result(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) })?;
        Ok(())
    }

    /// Creates a ruleset, which its caller owns. Async-signal-safe.
    fn create(&self) -> Result<RawFd, Errno> {
        let size = size_of::<Handled>();
        // SAFETY: `handled` is valid for reads of its size.
        let ruleset = result(unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const self.handled,
                size,
                0,
            )
        })?;
        for rule in &self.rules {
            self.allow(ruleset, rule.path.as_raw_fd(), rule.access)?;
        }
        Ok(ruleset)
    }

    fn allow(&self, ruleset: RawFd, path: RawFd, access: u64) -> Result<(), Errno> {
        const PATH_BENEATH: c_int = 1;
        let access = access & self.handled.files;
        if access == 0 {
            return Ok(());
        }
        let rule = PathBeneath {
            access,
            parent: path,
        };
        // SAFETY: `rule` is what PATH_BENEATH stands for, and valid for reads.
        result(unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                ruleset,
                PATH_BENEATH,
                &raw const rule,
                0,
            )
        })?;
        Ok(())
    }
}

fn result(returned: c_long) -> Result<c_int, Errno> {
    Errno::result(returned)?;
    c_int::try_from(returned).map_err(|_| Errno::EOVERFLOW)
}
