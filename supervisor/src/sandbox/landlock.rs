//! Landlock: which files a worker can open, which processes it can touch, whether it binds ports.
//!
//! The parent opens every path and tries the rules; the child makes a ruleset of its own of them and enters it. Of its
//! own, since two of the places only exist there: its `/proc/self`, and its `/tmp`. And since each ruleset is a domain
//! of its own, no worker can trace, or read the memory of, its sibling or the supervisor.
#![allow(unsafe_code)]

use crate::process::spawn::Stage;
use nix::errno::Errno;
use std::borrow::Cow;
use std::ffi::{CStr, c_int, c_long};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Rights to files, as the kernel numbers them. Each is known since the ABI that [`known`] tells.
mod right {
    pub(crate) const EXECUTE: u64 = 1 << 0;
    pub(crate) const WRITE_FILE: u64 = 1 << 1;
    pub(crate) const READ_FILE: u64 = 1 << 2;
    pub(crate) const READ_DIR: u64 = 1 << 3;
    pub(crate) const REMOVE_DIR: u64 = 1 << 4;
    pub(crate) const REMOVE_FILE: u64 = 1 << 5;
    pub(crate) const MAKE_CHAR: u64 = 1 << 6;
    pub(crate) const MAKE_DIR: u64 = 1 << 7;
    pub(crate) const MAKE_REG: u64 = 1 << 8;
    pub(crate) const MAKE_SOCK: u64 = 1 << 9;
    pub(crate) const MAKE_FIFO: u64 = 1 << 10;
    pub(crate) const MAKE_BLOCK: u64 = 1 << 11;
    pub(crate) const MAKE_SYM: u64 = 1 << 12;
    pub(crate) const REFER: u64 = 1 << 13;
    pub(crate) const TRUNCATE: u64 = 1 << 14;
    pub(crate) const IOCTL_DEV: u64 = 1 << 15;
}
use right::*;

/// To read files and list directories.
pub(crate) const READ: u64 = READ_FILE | READ_DIR;
/// To read and to execute.
pub(crate) const RUN: u64 = READ | EXECUTE;
/// The same for what is known to be a file.
pub(crate) const RUN_FILE: u64 = RUN & OF_A_FILE;
/// To read, write, make and remove. Not to execute: who can do both can bring its own program.
pub(crate) const WRITE: u64 = READ
    | WRITE_FILE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SOCK
    | MAKE_FIFO
    | MAKE_SYM
    | REFER
    | TRUNCATE;
/// To use a device that is there.
pub(crate) const DEVICE: u64 = READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV;
/// To append to a file and to make it, as a log needs it.
pub(crate) const APPEND: u64 = WRITE_FILE | MAKE_REG;
/// To make devices, which no worker needs.
const MAKE_DEVICE: u64 = MAKE_CHAR | MAKE_BLOCK;
/// Rights that a file itself can give; the others are a directory's.
const OF_A_FILE: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;

const BIND_TCP: u64 = 1 << 0;
const SCOPE_ABSTRACT: u64 = 1 << 0;
const SCOPE_SIGNAL: u64 = 1 << 1;

/// Rights to files that a kernel knows. Later ones are left out, on purpose: what they would refuse was not tried.
fn known(abi: u32) -> u64 {
    let first = MAKE_SYM * 2 - 1;
    let later = [(2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)];
    match abi {
        0 => 0,
        _ => later
            .iter()
            .filter(|(since, _)| abi >= *since)
            .fold(first, |all, (_, right)| all | right),
    }
}

/// What is to be kept from a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Files that no rule names.
    pub(crate) files: bool,
    /// To bind TCP ports.
    pub(crate) tcp_bind: bool,
    /// Abstract Unix sockets of other processes.
    pub(crate) abstract_sockets: bool,
}

impl Wanted {
    /// What of it a kernel cannot do.
    pub(crate) fn missing(self, abi: u32) -> Vec<&'static str> {
        if abi == 0 {
            return vec!["Landlock (Linux 5.13, with landlock among its security modules)"];
        }
        let parts = [
            (
                self.files && abi < 2,
                "moving files between directories (Linux 5.19)",
            ),
            (self.files && abi < 3, "refusing truncate(2) (Linux 6.2)"),
            (self.tcp_bind && abi < 4, "refusing TCP ports (Linux 6.7)"),
            (
                self.files && abi < 5,
                "refusing ioctl(2) on devices (Linux 6.10)",
            ),
            (
                abi < 6,
                "refusing signals and abstract sockets (Linux 6.12)",
            ),
        ];
        parts
            .into_iter()
            .filter_map(|(missing, what)| missing.then_some(what))
            .collect()
    }

    fn handled(self, abi: u32) -> Handled {
        let scopes = SCOPE_SIGNAL
            | if self.abstract_sockets {
                SCOPE_ABSTRACT
            } else {
                0
            };
        let mut handled = Handled {
            files: if self.files { known(abi) } else { 0 },
            net: if self.tcp_bind && abi >= 4 {
                BIND_TCP
            } else {
                0
            },
            scopes: if abi >= 6 { scopes } else { 0 },
        };
        if handled
            == (Handled {
                files: 0,
                net: 0,
                scopes: 0,
            })
        {
            // Where there are no scopes, a domain must forbid something else to be one.
            handled.files = known(abi) & (MAKE_DEVICE | REFER);
        }
        handled
    }
}

/// The version of the kernel's Landlock; 0 where there is none.
pub(crate) fn abi() -> u32 {
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

/// `struct landlock_ruleset_attr`. An older kernel, which knows fewer fields, takes the rest for zeros, as it is then.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Handled {
    files: u64,
    net: u64,
    scopes: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    access: u64,
    parent: c_int,
}

/// A path and what may be done beneath it.
#[derive(Debug)]
pub(crate) struct Rule {
    place: OwnedFd,
    access: u64,
}

impl Rule {
    /// A rule for what an `O_PATH` descriptor names.
    pub(crate) fn new(place: OwnedFd, access: u64) -> Result<Self, Errno> {
        use nix::sys::stat::SFlag;
        let mode = SFlag::from_bits_truncate(nix::sys::stat::fstat(&place)?.st_mode);
        let directory = mode & SFlag::S_IFMT == SFlag::S_IFDIR;
        Ok(Self {
            place,
            access: if directory {
                access
            } else {
                access & OF_A_FILE
            },
        })
    }
}

/// A domain that a child can enter.
#[derive(Debug)]
pub(crate) struct Landlock {
    handled: Handled,
    rules: Vec<Rule>,
    /// Paths that name something else, or nothing, in the parent, or may do so by the time that they are needed.
    own: Own,
}

/// Paths that the child opens, and what may be done there.
pub(crate) type Own = Vec<(Cow<'static, CStr>, u64)>;

impl Landlock {
    /// Makes and tries it. `None` on a kernel that has none.
    ///
    /// # Errors
    /// The kernel's, when it does not take the rules.
    pub(crate) fn prepare(
        wanted: Wanted,
        abi: u32,
        mut rules: Vec<Rule>,
        own: Own,
    ) -> Result<Option<Self>, Errno> {
        if abi == 0 {
            return Ok(None);
        }
        let handled = wanted.handled(abi);
        if !wanted.files && handled.files & REFER != 0 {
            // Files may be moved about as ever.
            let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
            let root = nix::fcntl::open("/", flags, nix::sys::stat::Mode::empty())?;
            rules.push(Rule {
                place: root,
                access: REFER,
            });
        }
        let prepared = Self {
            handled,
            rules,
            own,
        };
        // SAFETY: the ruleset was just made for us, and nobody else knows it.
        drop(unsafe { OwnedFd::from_raw_fd(prepared.ruleset().map_err(Errno::from_raw)?) });
        Ok(Some(prepared))
    }

    /// In the child: from here on, and for everything that it executes. Needs `no_new_privs`.
    pub(crate) fn enter(&self) -> Result<(), (Stage, c_int)> {
        let failed = |errno| (Stage::Landlock, errno);
        let ruleset = self.ruleset().map_err(failed)?;
        for (path, access) in &self.own {
            // SAFETY: the path ends with a NUL.
            let place = unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
            // What is not there cannot be seen either.
            if place >= 0 {
                self.allow(ruleset, place, *access).map_err(failed)?;
            }
        }
        // SAFETY: a system call on integers. Both kinds of descriptors are closed on exec, or before.
        done(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) })
            .map(drop)
            .map_err(failed)
    }

    /// Async-signal-safe, as a child is to use it.
    fn ruleset(&self) -> Result<RawFd, c_int> {
        let size = size_of::<Handled>();
        // SAFETY: `handled` is valid for reads of its size.
        let ruleset = done(unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const self.handled,
                size,
                0,
            )
        })?;
        for rule in &self.rules {
            self.allow(ruleset, rule.place.as_raw_fd(), rule.access)?;
        }
        Ok(ruleset)
    }

    fn allow(&self, ruleset: RawFd, place: RawFd, access: u64) -> Result<(), c_int> {
        const PATH_BENEATH: c_int = 1;
        let access = access & self.handled.files;
        if access == 0 {
            return Ok(());
        }
        let rule = PathBeneath {
            access,
            parent: place,
        };
        // SAFETY: `rule` is what PATH_BENEATH stands for, and valid for reads.
        done(unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                ruleset,
                PATH_BENEATH,
                &raw const rule,
                0,
            )
        })
        .map(drop)
    }
}

fn done(result: c_long) -> Result<c_int, c_int> {
    if result < 0 {
        Err(Errno::last_raw())
    } else {
        Ok(result as c_int)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Wanted = Wanted {
        files: true,
        tcp_bind: true,
        abstract_sockets: true,
    };
    const LITTLE: Wanted = Wanted {
        files: false,
        tcp_bind: false,
        abstract_sockets: false,
    };

    #[test]
    fn each_kernel_is_asked_for_what_it_knows() {
        assert_eq!(
            ALL.handled(1),
            Handled {
                files: 0x1fff,
                net: 0,
                scopes: 0
            }
        );
        assert_eq!(
            ALL.handled(2),
            Handled {
                files: 0x3fff,
                net: 0,
                scopes: 0
            }
        );
        assert_eq!(
            ALL.handled(4),
            Handled {
                files: 0x7fff,
                net: 1,
                scopes: 0
            }
        );
        assert_eq!(
            ALL.handled(6),
            Handled {
                files: 0xffff,
                net: 1,
                scopes: 3
            }
        );
        assert_eq!(
            ALL.handled(99),
            ALL.handled(6),
            "what is not known yet is not refused"
        );
        assert_eq!(
            LITTLE.handled(7),
            Handled {
                files: 0,
                net: 0,
                scopes: 2
            }
        );
        assert_eq!(
            LITTLE.handled(4).files,
            MAKE_DEVICE | REFER,
            "an empty domain is none"
        );
    }

    #[test]
    fn what_a_kernel_lacks_is_told_with_the_version_that_has_it() {
        assert!(ALL.missing(6).is_empty() && ALL.missing(7).is_empty());
        assert_eq!(
            ALL.missing(5),
            ["refusing signals and abstract sockets (Linux 6.12)"]
        );
        assert_eq!(ALL.missing(3).len(), 3);
        assert_eq!(
            LITTLE.missing(3),
            ["refusing signals and abstract sockets (Linux 6.12)"]
        );
        assert_eq!(
            ALL.missing(0),
            ["Landlock (Linux 5.13, with landlock among its security modules)"]
        );
    }

    #[test]
    fn this_kernels_rulesets_can_be_made() {
        let abi = abi();
        for wanted in [ALL, LITTLE] {
            let made = Landlock::prepare(wanted, abi, Vec::new(), Vec::new()).expect("a ruleset");
            assert_eq!(made.is_some(), abi > 0);
        }
        // As on kernels that know less.
        for abi in 1..=abi {
            Landlock::prepare(LITTLE, abi, Vec::new(), Vec::new()).expect("a ruleset");
        }
    }
}
