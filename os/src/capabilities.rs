//! The five capability sets of this process, each as 64 bits by the kernel's numbers.
//!
//! Every function here is async-signal-safe and allocates nothing.

use nix::errno::Errno;
use std::ffi::{c_int, c_ulong};

/// The sets that capset(2) changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// What is in force.
    pub effective: u64,
    /// What can be put in force.
    pub permitted: u64,
    /// What can survive executing a program.
    pub inheritable: u64,
}

/// The kernel's layout of its third version, which has 64 bits in two halves.
#[repr(C)]
struct Header {
    version: u32,
    pid: c_int,
}

const VERSION: u32 = 0x2008_0522;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

impl Held {
    /// Reads the sets.
    ///
    /// # Errors
    /// Those of capget(2).
    pub fn now() -> Result<Self, Errno> {
        let header = Header {
            version: VERSION,
            pid: 0,
        };
        let mut halves = [Half::default(); 2];
        // SAFETY: the header and two halves are what version 3 reads and writes.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_capget, &raw const header, halves.as_mut_ptr())
        })?;
        let join = |pick: fn(&Half) -> u32| {
            u64::from(pick(&halves[0])) | u64::from(pick(&halves[1])) << u32::BITS
        };
        Ok(Self {
            effective: join(|half| half.effective),
            permitted: join(|half| half.permitted),
            inheritable: join(|half| half.inheritable),
        })
    }

    /// Sets the sets.
    ///
    /// # Errors
    /// Those of capset(2).
    pub fn assume(self) -> Result<(), Errno> {
        let header = Header {
            version: VERSION,
            pid: 0,
        };
        let (effective, permitted, inheritable) = (
            halves(self.effective),
            halves(self.permitted),
            halves(self.inheritable),
        );
        let halves = [0, 1].map(|index| Half {
            effective: effective[index],
            permitted: permitted[index],
            inheritable: inheritable[index],
        });
        // SAFETY: the header and two halves are what version 3 reads.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr())
        })?;
        Ok(())
    }
}

/// Splits a set into its lower and its upper half.
fn halves(set: u64) -> [u32; 2] {
    let half = |shift: u32| u32::try_from((set >> shift) & u64::from(u32::MAX)).unwrap_or(0);
    [half(0), half(32)]
}

/// Returns the bounding set: what can be gained by executing files.
pub fn bounding() -> u64 {
    collect(|number| control(libc::PR_CAPBSET_READ, number, 0))
}

/// Takes capabilities out of the bounding set. Needs `CAP_SETPCAP`.
///
/// # Errors
/// Those of prctl(2).
pub fn drop_from_bounding(set: u64) -> Result<(), Errno> {
    numbers(set).try_for_each(|number| control(libc::PR_CAPBSET_DROP, number, 0).map(drop))
}

/// Returns the ambient set: what survives executing a file.
pub fn ambient() -> u64 {
    collect(|number| control(libc::PR_CAP_AMBIENT, IS_SET, number))
}

/// Sets the ambient set. All of it must be permitted and inheritable.
///
/// # Errors
/// Those of prctl(2).
pub fn set_ambient(set: u64) -> Result<(), Errno> {
    control(libc::PR_CAP_AMBIENT, CLEAR_ALL, 0)?;
    numbers(set).try_for_each(|number| control(libc::PR_CAP_AMBIENT, RAISE, number).map(drop))
}

/// Sets whether the permitted set survives a change from root to another user.
///
/// # Errors
/// Those of prctl(2).
pub fn keep_over_user_change(keep: bool) -> Result<(), Errno> {
    control(libc::PR_SET_KEEPCAPS, c_ulong::from(keep), 0).map(drop)
}

// prctl(2) takes words.
const IS_SET: c_ulong = libc::PR_CAP_AMBIENT_IS_SET as c_ulong;
const RAISE: c_ulong = libc::PR_CAP_AMBIENT_RAISE as c_ulong;
const CLEAR_ALL: c_ulong = libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong;

fn numbers(set: u64) -> impl Iterator<Item = c_ulong> {
    (0..u64::BITS)
        .filter(move |number| set & (1 << number) != 0)
        .map(c_ulong::from)
}

fn collect(is_in: impl Fn(c_ulong) -> Result<c_int, Errno>) -> u64 {
    numbers(u64::MAX)
        .filter(|number| matches!(is_in(*number), Ok(1)))
        .fold(0, |set, number| set | 1 << number)
}

fn control(option: c_int, second: c_ulong, third: c_ulong) -> Result<c_int, Errno> {
    let none: c_ulong = 0;
    // SAFETY: prctl(2) of these options takes integers only.
    Errno::result(unsafe { libc::prctl(option, second, third, none, none) })
}
