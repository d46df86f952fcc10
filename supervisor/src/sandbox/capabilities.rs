//! The five capability sets of this process. Every call here is async-signal-safe and allocates nothing.
#![allow(unsafe_code)]

use crate::config::Capabilities;
use nix::errno::Errno;
use std::ffi::{c_int, c_ulong};

/// The sets that capset(2) changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) effective: Capabilities,
    pub(crate) permitted: Capabilities,
    pub(crate) inheritable: Capabilities,
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
    /// What this process has.
    pub(crate) fn now() -> Result<Self, Errno> {
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
            Capabilities(u64::from(pick(&halves[0])) | u64::from(pick(&halves[1])) << 32)
        };
        Ok(Self {
            effective: join(|half| half.effective),
            permitted: join(|half| half.permitted),
            inheritable: join(|half| half.inheritable),
        })
    }

    /// Makes it so.
    pub(crate) fn assume(self) -> Result<(), Errno> {
        let header = Header {
            version: VERSION,
            pid: 0,
        };
        let low = |set: Capabilities| set.0 as u32;
        let high = |set: Capabilities| (set.0 >> 32) as u32;
        let half = |pick: fn(Capabilities) -> u32| Half {
            effective: pick(self.effective),
            permitted: pick(self.permitted),
            inheritable: pick(self.inheritable),
        };
        let halves = [half(low), half(high)];
        // SAFETY: the header and two halves are what version 3 reads.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr())
        })?;
        Ok(())
    }
}

/// The bounding set: what can be gained by executing files.
pub(crate) fn bounding() -> Capabilities {
    let is_in = |number: u32| {
        matches!(
            control(libc::PR_CAPBSET_READ, c_ulong::from(number), 0),
            Ok(1)
        )
    };
    Capabilities(
        (0..u64::BITS)
            .filter(|number| is_in(*number))
            .fold(0, |set, number| set | 1 << number),
    )
}

/// Takes these out of the bounding set. Needs CAP_SETPCAP.
pub(crate) fn unbound(these: Capabilities) -> Result<(), Errno> {
    these
        .numbers()
        .try_for_each(|number| control(libc::PR_CAPBSET_DROP, c_ulong::from(number), 0).map(drop))
}

/// The ambient set: what survives executing a file.
pub(crate) fn ambient() -> Capabilities {
    let is_in = |number: u32| {
        matches!(
            control(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_IS_SET as c_ulong,
                c_ulong::from(number)
            ),
            Ok(1)
        )
    };
    Capabilities(
        (0..u64::BITS)
            .filter(|number| is_in(*number))
            .fold(0, |set, number| set | 1 << number),
    )
}

/// Makes these the ambient set. They must be permitted and inheritable.
pub(crate) fn set_ambient(these: Capabilities) -> Result<(), Errno> {
    control(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong,
        0,
    )?;
    these.numbers().try_for_each(|number| {
        control(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_RAISE as c_ulong,
            c_ulong::from(number),
        )
        .map(drop)
    })
}

/// Whether the permitted set survives a change from root to another user.
pub(crate) fn keep_over_user_change(keep: bool) -> Result<(), Errno> {
    control(libc::PR_SET_KEEPCAPS, c_ulong::from(keep), 0).map(drop)
}

fn control(option: c_int, second: c_ulong, third: c_ulong) -> Result<c_int, Errno> {
    let none: c_ulong = 0;
    // SAFETY: prctl(2) of these options takes integers only.
    Errno::result(unsafe { libc::prctl(option, second, third, none, none) })
}
