//! What a worker may not do: prepared before the fork, entered between fork and exec, so that it holds for any program.
//!
//! The order is fixed, since each step takes away what an earlier one needs: control group, private directories
//! (mounts need privileges), limits, identity (users, groups, capabilities), and, when nothing can be regained,
//! Landlock and at last seccomp. The parent-death signal is set after the identity: the kernel forgets it whenever
//! credentials change.
//!
//! Everything here that can fail for reasons of the configuration or of the kernel fails in the parent, when a
//! generation is made; what the child does allocates nothing and is async-signal-safe.
#![allow(unsafe_code)]

use super::spawn::{Executable, Stage};
use crate::config::Config;
use limits::Limits;
use nix::errno::Errno;
use sandbox::Sandbox;
use std::ffi::c_int;

mod landlock;
mod limits;
mod private_tmp;
mod sandbox;
mod seccomp;
#[cfg(test)]
mod attempts;

/// What a child gives up on its way to its program.
#[derive(Debug)]
pub struct Confinement {
    /// Nothing that it executes may gain privileges, such as by set-user-id bits.
    no_new_privs: bool,
    limits: Limits,
    sandbox: Sandbox,
}

/// A child that is as free as the supervisor.
pub static FREE: Confinement =
    Confinement { no_new_privs: false, limits: Limits::NONE, sandbox: Sandbox::NONE };

impl Confinement {
    /// Prepares what a configuration asks for. What it goes without is added to the configuration's warnings.
    ///
    /// # Errors
    /// What cannot be had here, and the remedy.
    pub fn prepare(config: &mut Config, program: &Executable) -> Result<Self, String> {
        let limits = Limits::prepare(&config.limits)?;
        let sandbox = Sandbox::prepare(config, program)?;
        Ok(Self { no_new_privs: sandbox.needs_no_new_privs(), limits, sandbox })
    }

    /// What needs privileges, and their surrender. In the child, before its descriptors and directory.
    pub(super) fn surrender(&self) -> Result<(), (Stage, c_int)> {
        if let Some(private_tmp) = &self.sandbox.private_tmp {
            private_tmp.enter()?;
        }
        self.limits.set()?;
        Ok(())
    }

    /// What only takes away. In the child, while the descriptors of the parent are still there.
    pub(super) fn confine(&self) -> Result<(), (Stage, c_int)> {
        if self.no_new_privs {
            // SAFETY: a plain system call on integers.
            check(Stage::NoNewPrivileges, unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        }
        if let Some(landlock) = &self.sandbox.landlock {
            landlock.enter()?;
        }
        Ok(())
    }

    /// The last step before exec; from here on, system calls may fail.
    pub(super) fn seal(&self) -> Result<(), (Stage, c_int)> {
        if let Some(filter) = &self.sandbox.filter {
            filter.enter()?;
        }
        Ok(())
    }
}

fn check(stage: Stage, result: c_int) -> Result<c_int, (Stage, c_int)> {
    if result < 0 { Err((stage, Errno::last_raw())) } else { Ok(result) }
}
