//! Landlock: which files a worker can open, which processes it can touch, whether it binds ports.
//!
//! The parent opens every path and tries the rules; the child makes a ruleset of its own of them
//! and enters it. Of its own, since two of the paths only exist there: its `/proc/self`, and its
//! `/tmp`. And since each ruleset is a domain of its own, no worker can trace, or read the memory
//! of, its sibling or the supervisor.

use nix::errno::Errno;
use prefork_os::landlock::{Handled, Rule, Ruleset};
use std::borrow::Cow;
use std::ffi::CStr;
use std::os::fd::OwnedFd;

pub(crate) use prefork_os::landlock::abi;

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
use right::{
    EXECUTE, IOCTL_DEV, MAKE_BLOCK, MAKE_CHAR, MAKE_DIR, MAKE_FIFO, MAKE_REG, MAKE_SOCK, MAKE_SYM,
    READ_DIR, READ_FILE, REFER, REMOVE_DIR, REMOVE_FILE, TRUNCATE, WRITE_FILE,
};

/// To read files and list directories.
pub(crate) const READ: u64 = READ_FILE | READ_DIR;
/// To read and to execute.
pub(crate) const RUN: u64 = READ | EXECUTE;
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

/// Rights to files that a kernel knows. Later ones are left out, on purpose: what they would refuse
/// was not tried.
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

/// Returns a rule for what an `O_PATH` descriptor names.
///
/// # Errors
/// Those of fstat(2).
pub(crate) fn rule(path: OwnedFd, access: u64) -> Result<Rule, Errno> {
    use nix::sys::stat::SFlag;
    let mode = SFlag::from_bits_truncate(nix::sys::stat::fstat(&path)?.st_mode);
    let directory = mode & SFlag::S_IFMT == SFlag::S_IFDIR;
    let access = if directory {
        access
    } else {
        access & OF_A_FILE
    };
    Ok(Rule { path, access })
}

/// Paths that the child opens, with their rights: they name something else, or nothing, in the
/// parent, or may do so by the time that they are needed.
pub(crate) type Late = Vec<(Cow<'static, CStr>, u64)>;

/// Prepares and tries a ruleset. `None` on a kernel that has none.
///
/// # Errors
/// The kernel's, when it does not accept the rules.
pub(crate) fn prepare(
    wanted: Wanted,
    abi: u32,
    mut rules: Vec<Rule>,
    late: Late,
) -> Result<Option<Ruleset>, Errno> {
    if abi == 0 {
        return Ok(None);
    }
    let handled = wanted.handled(abi);
    if !wanted.files && handled.files & REFER != 0 {
        // Files may be moved about as ever.
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
        let root = nix::fcntl::open("/", flags, nix::sys::stat::Mode::empty())?;
        rules.push(Rule {
            path: root,
            access: REFER,
        });
    }
    Ruleset::prepare(handled, rules, late).map(Some)
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
            let made = prepare(wanted, abi, Vec::new(), Vec::new()).expect("a ruleset");
            assert_eq!(made.is_some(), abi > 0);
        }
        // As on kernels that know less.
        for abi in 1..=abi {
            prepare(LITTLE, abi, Vec::new(), Vec::new()).expect("a ruleset");
        }
    }
}
