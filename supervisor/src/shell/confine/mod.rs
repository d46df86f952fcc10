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

mod capabilities;
mod identity;

use super::spawn::Stage;
use crate::config::{Config, CoreDumps};
use identity::{Identity, Own};
use nix::errno::Errno;
use std::ffi::{OsString, c_int};

/// What a child gives up on its way to its program.
#[derive(Debug)]
pub struct Confinement {
    /// Who it becomes.
    identity: Identity,
    /// What its environment says about that.
    variables: Vec<(&'static str, OsString)>,
    /// It leaves no core dump, whatever it runs.
    no_core: bool,
    /// Nothing that it executes may gain privileges, such as by set-user-id bits.
    no_new_privs: bool,
}

/// A child that is as free as the supervisor.
pub static FREE: Confinement =
    Confinement { identity: Identity::SAME, variables: Vec::new(), no_core: false, no_new_privs: false };

impl Confinement {
    /// Prepares what a configuration asks for.
    ///
    /// # Errors
    /// What cannot be had here, and the remedy.
    pub fn prepare(config: &Config) -> Result<Self, String> {
        let privileges = &config.privileges;
        let own = Own::now()?;
        Ok(Self {
            identity: identity::of_workers(&own, privileges)?,
            variables: identity::variables(privileges.user.as_ref()),
            no_core: privileges.core_dumps == CoreDumps::Off,
            no_new_privs: identity::renounces(&own, privileges),
        })
    }

    /// Variables of its environment, unless the configuration sets them.
    pub(super) fn variables(&self) -> &[(&'static str, OsString)] {
        &self.variables
    }

    /// What needs privileges, and their surrender. In the child, before its descriptors and directory.
    pub(super) fn surrender(&self) -> Result<(), (Stage, c_int)> {
        if self.no_core {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: the kernel reads one limit.
            check(Stage::Capabilities, unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) })?;
        }
        self.identity.assume().map_err(|(stage, errno)| (stage, errno as c_int))
    }

    /// What only takes away. In the child, while the descriptors of the parent are still there.
    pub(super) fn confine(&self) -> Result<(), (Stage, c_int)> {
        if self.no_new_privs {
            // SAFETY: a plain system call on integers.
            check(Stage::NoNewPrivileges, unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        }
        Ok(())
    }

    /// The last step before exec; from here on, system calls may fail.
    pub(super) fn seal(&self) -> Result<(), (Stage, c_int)> {
        Ok(())
    }
}

fn check(stage: Stage, result: c_int) -> Result<c_int, (Stage, c_int)> {
    if result < 0 { Err((stage, Errno::last_raw())) } else { Ok(result) }
}
