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

mod access_check;
#[cfg(test)]
mod attempts;
mod capabilities;
mod drop_privileges;
mod identity;
mod landlock;
mod limits;
mod private_tmp;
mod rules;
mod seccomp;
#[cfg(test)]
mod tests;

pub(crate) use crate::sandbox::drop_privileges::{Dropped, become_user, warn_of_root};

use super::control::runtime_directory;
use crate::config::{Config, CoreDumps, Program};
use crate::process::spawn::{Executable, Stage, check};
use crate::sandbox::rules::Sandbox;
use identity::{Identity, Own};
use limits::Limits;
use nix::errno::Errno;
use std::ffi::{OsString, c_int};
use std::path::{Path, PathBuf};

/// What a child gives up on its way to its program.
#[derive(Debug)]
pub(crate) struct Confinement {
    /// Who it becomes.
    identity: Identity,
    /// Who that is, if it is somebody else.
    whom: Option<String>,
    /// What its environment says about that.
    variables: Vec<(&'static str, OsString)>,
    /// Nothing that it executes may gain privileges, such as by set-user-id bits.
    no_new_privs: bool,
    limits: Limits,
    sandbox: Sandbox,
}

/// A child that is as free as the supervisor.
pub(crate) static FREE: Confinement = Confinement {
    identity: Identity::SAME,
    whom: None,
    variables: Vec::new(),
    no_new_privs: false,
    limits: Limits::NONE,
    sandbox: Sandbox::NONE,
};

impl Confinement {
    /// Prepares what a configuration asks for, but its sandbox.
    ///
    /// # Errors
    /// What cannot be had here, and the remedy.
    pub(crate) fn prepare(config: &Config) -> Result<Self, String> {
        let privileges = &config.privileges;
        let own = Own::now()?;
        Ok(Self {
            identity: identity::of_workers(&own, privileges)?,
            whom: identity::name_of_workers(privileges),
            variables: identity::variables(
                privileges
                    .user
                    .as_ref()
                    .or(privileges.supervisor_user.as_ref()),
            ),
            no_new_privs: identity::renounces(&own, privileges),
            limits: match privileges.core_dumps {
                CoreDumps::Off => Limits::prepare(&config.limits)?.without_core(),
                CoreDumps::On | CoreDumps::Abort => Limits::prepare(&config.limits)?,
            },
            sandbox: Sandbox::NONE,
        })
    }

    /// Adds the sandbox that a configuration asks for, now that the program is known; what it goes without is added to
    /// the configuration's warnings.
    ///
    /// # Errors
    /// What cannot be had here, and the remedy.
    pub(crate) fn add_sandbox(
        &mut self,
        config: &mut Config,
        program: &Executable,
    ) -> Result<(), String> {
        let meeting_place = self.meeting_place();
        self.sandbox = Sandbox::prepare(config, program, meeting_place.as_deref())?;
        self.no_new_privs |= self.sandbox.needs_no_new_privs();
        Ok(())
    }

    /// A directory in which workers can reach a socket of ours: the runtime directory, if they can go there.
    pub(crate) fn meeting_place(&self) -> Option<PathBuf> {
        if !self.is_other() {
            return runtime_directory();
        }
        let run = nix::unistd::geteuid()
            .is_root()
            .then(|| PathBuf::from("/run"));
        [runtime_directory(), run]
            .into_iter()
            .flatten()
            .find(|place| self.reaches(place))
    }

    /// Opens the program of the workers, as they can, and looks whether they can reach what else is named for them.
    ///
    /// # Errors
    /// What they cannot reach, and the remedy.
    pub(crate) fn program(
        &self,
        config: &Config,
        open: impl FnOnce() -> Result<Executable, String>,
    ) -> Result<Executable, String> {
        // Our own program is started by descriptor: wherever it lies, nobody looks for it.
        let Program::Command(_) = config.program else {
            let own = open()?;
            self.reach(
                config.log.file.as_deref(),
                "write log file",
                access_check::can_write,
            )?;
            self.reach(
                config.directory.as_deref(),
                "enter directory",
                access_check::can_enter,
            )?;
            return Ok(own);
        };
        self.reach(
            config.directory.as_deref(),
            "enter directory",
            access_check::can_enter,
        )?;
        let whom = || {
            self.whom
                .as_ref()
                .map_or(String::new(), |whom| format!(", as {whom}"))
        };
        self.with_eyes(open)?.map_err(|error| error + &whom())
    }

    fn reach(
        &self,
        path: Option<&Path>,
        act: &str,
        can: impl FnOnce(&Path) -> Result<(), Errno>,
    ) -> Result<(), String> {
        let (Some(path), Some(whom)) = (path, &self.whom) else {
            return Ok(());
        };
        let seen = self.with_eyes(|| can(path))?;
        seen.map_err(|errno| {
            let path = path.display();
            format!("workers cannot {act} {path} as {whom}: {} (give it to them with chown or chmod, or name another)", errno.desc())
        })
    }

    /// Whether the workers are somebody else than the supervisor.
    pub(crate) fn is_other(&self) -> bool {
        self.identity.uid.is_some() || self.identity.gid.is_some() || self.identity.groups.is_some()
    }

    /// Does something with the rights to files that the workers have, and gives what came of it.
    ///
    /// # Errors
    /// When this process must not be somebody else for a moment.
    pub(crate) fn with_eyes<T>(&self, act: impl FnOnce() -> T) -> Result<T, String> {
        access_check::with_eyes_of(&Own::now()?, &self.identity, act)
    }

    /// Whether the workers can reach a directory.
    pub(crate) fn reaches(&self, directory: &Path) -> bool {
        let seen = self.with_eyes(|| access_check::can_enter(directory));
        seen.is_ok_and(|seen| seen.is_ok())
    }

    /// Variables of its environment, unless the configuration sets them.
    pub(crate) fn variables(&self) -> &[(&'static str, OsString)] {
        &self.variables
    }

    /// What needs privileges, and their surrender. In the child, before its descriptors and directory.
    pub(crate) fn surrender(&self) -> Result<(), (Stage, c_int)> {
        if let Some(private_tmp) = &self.sandbox.private_tmp {
            private_tmp.enter()?;
        }
        self.limits.set()?;
        self.identity
            .assume()
            .map_err(|(stage, errno)| (stage, errno as c_int))
    }

    /// What only takes away. In the child, while the descriptors of the parent are still there.
    pub(crate) fn confine(&self) -> Result<(), (Stage, c_int)> {
        if self.no_new_privs {
            // SAFETY: a plain system call on integers.
            check(Stage::NoNewPrivileges, unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            })?;
        }
        if let Some(landlock) = &self.sandbox.landlock {
            landlock.enter()?;
        }
        Ok(())
    }

    /// The last step before exec; from here on, system calls may fail.
    pub(crate) fn seal(&self) -> Result<(), (Stage, c_int)> {
        if let Some(filter) = &self.sandbox.filter {
            filter.enter()?;
        }
        Ok(())
    }
}
