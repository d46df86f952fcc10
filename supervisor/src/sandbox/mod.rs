//! What a worker may not do: prepared before the fork, entered between fork and exec, so that it
//! holds for any program.
//!
//! Everything here that can fail for reasons of the configuration or of the kernel fails in the
//! parent, when a generation is made. How a child enters it, and in which order, is
//! [`prefork_os::confinement`]'s.

mod access_check;
#[cfg(test)]
mod attempts;
mod drop_privileges;
mod error;
mod held_paths;
mod identity;
mod landlock;
mod limits;
mod private_tmp;
mod rules;
mod seccomp;
#[cfg(test)]
mod tests;

pub(crate) use drop_privileges::{Dropped, become_user, warn_of_root};
pub(crate) use error::ConfinementError;
pub(crate) use held_paths::HeldPaths;
pub(crate) use limits::{raise_open_files, resume_open_files, started_with};

use crate::config::runtime_directory::runtime_directory;
use crate::config::{Config, CoreDumps, Program};
use crate::process::spawn::{Directory, Executable};
use identity::Own;
use nix::errno::Errno;
use nix::sys::resource::Resource;
use prefork_os::confinement::Confinement as Steps;
use prefork_os::fsuid::with_fsuid;
use rules::Sandbox;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// What a child gives up on its way to its program.
#[derive(Debug)]
pub(crate) struct Confinement {
    steps: Steps,
    /// Who it becomes, in words, if that is not who the supervisor is.
    whom: Option<String>,
    /// The variables of its environment that say so.
    variables: Vec<(&'static str, OsString)>,
    /// What its sandbox names.
    paths: HeldPaths,
}

/// A child that is as free as the supervisor.
pub(crate) static FREE: Confinement = Confinement {
    steps: Steps::NONE,
    whom: None,
    variables: Vec::new(),
    paths: HeldPaths::NONE,
};

impl Confinement {
    /// Prepares what a configuration asks for, but its sandbox.
    ///
    /// # Errors
    /// What cannot be had here.
    pub(crate) fn prepare(config: &Config) -> Result<Self, ConfinementError> {
        let privileges = &config.privileges;
        let own = Own::now()?;
        let user = privileges.user.as_ref();
        let mut limits = limits::prepare(&config.limits)?;
        match privileges.core_dumps {
            // The last one counts.
            CoreDumps::Off => limits.push(limits::NO_CORE),
            CoreDumps::On | CoreDumps::Abort => {}
        }
        let limited = config
            .limits
            .iter()
            .any(|limit| limit.resource == Resource::RLIMIT_NOFILE);
        let external = matches!(config.program, Program::Command(_));
        Ok(Self {
            steps: Steps {
                open_files: limits::of_programs().filter(|_| external && !limited),
                identity: identity::of_workers(&own, privileges)?,
                no_new_privs: identity::no_new_privs(&own, privileges),
                limits,
                ..Steps::NONE
            },
            whom: identity::name_of_workers(privileges),
            variables: identity::variables(user.or(privileges.supervisor_user.as_ref())),
            paths: HeldPaths::NONE,
        })
    }

    /// Adds the sandbox that a configuration asks for, now that the program is known; what it goes
    /// without is added to the configuration's warnings.
    ///
    /// # Errors
    /// What cannot be had here.
    pub(crate) fn add_sandbox(
        &mut self,
        config: &mut Config,
        program: &Executable,
    ) -> Result<(), ConfinementError> {
        let directory = self.socket_directory();
        let paths = &mut self.paths;
        let sandbox = Sandbox::prepare(config, program, directory.as_deref(), paths)?;
        self.steps.no_new_privs |= sandbox.needs_no_new_privs();
        self.steps.private_tmp = sandbox.private_tmp;
        self.steps.landlock = sandbox.landlock;
        self.steps.filter = sandbox.filter;
        Ok(())
    }

    /// Has its sandbox mean these paths by their names.
    pub(crate) fn hold(&mut self, paths: HeldPaths) {
        self.paths = paths;
    }

    /// Returns what its sandbox names.
    pub(crate) fn held_paths(&self) -> &HeldPaths {
        &self.paths
    }

    /// Returns the steps that a child takes.
    pub(crate) fn steps(&self) -> &Steps {
        &self.steps
    }

    /// Returns a directory in which workers can connect to a socket of ours: the runtime directory,
    /// if they can enter it.
    pub(crate) fn socket_directory(&self) -> Option<PathBuf> {
        if !self.is_other() {
            return runtime_directory();
        }
        let run = nix::unistd::geteuid()
            .is_root()
            .then(|| PathBuf::from("/run"));
        [runtime_directory(), run]
            .into_iter()
            .flatten()
            .find(|directory| self.can_enter(directory))
    }

    /// Opens the program of the workers with the rights that they have, and checks that they can
    /// use what else is named for them.
    ///
    /// # Errors
    /// What they cannot use.
    pub(crate) fn program<E: Display>(
        &self,
        config: &Config,
        open: impl FnOnce() -> Result<Executable, E>,
    ) -> Result<Executable, ConfinementError> {
        let failed = |error: E| error.to_string();
        // Our own program is started by descriptor: it is not looked up.
        let Program::Command(_) = config.program else {
            let own = open().map_err(failed);
            let own = own.map_err(|reason| ConfinementError::Program { reason })?;
            let log = config.log.file.as_deref();
            self.check(log, "write log file", access_check::can_write)?;
            return Ok(own);
        };
        self.with_fsuid(open)?.map_err(|error| {
            let reason = failed(error);
            match self.whom.clone() {
                Some(whom) => ConfinementError::ProgramAs { reason, whom },
                None => ConfinementError::Program { reason },
            }
        })
    }

    /// Opens the directory of the workers with the rights that they have, and checks that they can
    /// enter it.
    ///
    /// # Errors
    /// They cannot, or there is none.
    pub(crate) fn directory(&self, config: &Config) -> Result<Option<Directory>, ConfinementError> {
        let Some(path) = config.directory.as_deref() else {
            return Ok(None);
        };
        self.check(Some(path), "enter directory", access_check::can_enter)?;
        let opened = self.with_fsuid(|| Directory::open(None, path))?;
        opened
            .map(Some)
            .map_err(|errno| ConfinementError::Directory {
                path: path.to_owned(),
                errno,
            })
    }

    fn check(
        &self,
        path: Option<&Path>,
        act: &'static str,
        can: impl FnOnce(&Path) -> Result<(), Errno>,
    ) -> Result<(), ConfinementError> {
        let (Some(path), Some(whom)) = (path, &self.whom) else {
            return Ok(());
        };
        let checked = self.with_fsuid(|| can(path))?;
        checked.map_err(|errno| ConfinementError::Access {
            act,
            path: path.to_owned(),
            whom: whom.clone(),
            errno,
        })
    }

    /// Returns whether the workers are another user than the supervisor, or have other groups.
    pub(crate) fn is_other(&self) -> bool {
        let identity = &self.steps.identity;
        identity.uid.is_some() || identity.gid.is_some() || identity.groups.is_some()
    }

    /// Calls a function with the rights to files that the workers have, and returns its result.
    ///
    /// # Errors
    /// When this process must not act as another user for a moment.
    pub(crate) fn with_fsuid<T>(&self, act: impl FnOnce() -> T) -> Result<T, ConfinementError> {
        with_fsuid(&self.steps.identity, act).map_err(ConfinementError::Fsuid)
    }

    /// Returns whether the workers can enter a directory.
    pub(crate) fn can_enter(&self, directory: &Path) -> bool {
        let checked = self.with_fsuid(|| access_check::can_enter(directory));
        checked.is_ok_and(|checked| checked.is_ok())
    }

    /// Returns variables of its environment, unless the configuration sets them.
    pub(crate) fn variables(&self) -> &[(&'static str, OsString)] {
        &self.variables
    }
}
