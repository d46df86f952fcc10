//! From a command line, an environment and a file to a generation that can be started.

use super::{AdminSockets, Generation, LoadError, Origin, command};
use crate::api::answer::Setting;
use crate::config::{Config, ConfigError, Program, Source, Surroundings};
use crate::listen::Listeners;
use crate::logging::access_log::AccessLog;
use crate::process::spawn::{Directory, Executable, ExecutableError};
use crate::sandbox::Confinement;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// What loading needs to know besides the configuration itself.
#[derive(Debug)]
pub(crate) struct Loader {
    /// The command line and the environment; they name the file.
    pub source: Source,
    /// The path by which this program was started. A reload opens whatever is there by then, also
    /// when a symbolic link in it was switched.
    pub own_path: PathBuf,
    /// Names of the inherited sockets.
    pub inherited: Vec<String>,
}

impl Loader {
    /// Reads the configuration as it is now.
    ///
    /// # Errors
    /// Every problem of it.
    pub(crate) fn config(&self) -> Result<Config, ConfigError> {
        let around = Surroundings::of_process(&self.inherited, &prefork_worker::apps::check);
        self.source.load(&around)
    }

    /// Opens the program that a configuration runs. With `first`, our own program is the one that
    /// runs now, not what has replaced it on disk since it started.
    ///
    /// # Errors
    /// There is no such program.
    pub(crate) fn executable(
        &self,
        config: &Config,
        directory: Option<&Directory>,
        first: bool,
    ) -> Result<Executable, ExecutableError> {
        match &config.program {
            Program::App(_) | Program::Linked if first => Executable::current(),
            Program::App(_) | Program::Linked => Executable::open(&self.own_path),
            Program::Command(words) => {
                let path = std::env::var_os("PATH");
                let program = words.first().map_or(OsStr::new(""), OsString::as_os_str);
                Executable::find(program, path.as_deref(), directory)
            }
        }
    }

    /// Loads the configuration, opens its program and binds what is new in it. All or nothing.
    ///
    /// # Errors
    /// Why nothing has changed.
    pub(crate) fn load(
        &self,
        listeners: &mut Listeners,
        first: bool,
    ) -> Result<Generation, LoadError> {
        let source = self.source.frozen();
        let around = Surroundings::of_process(&self.inherited, &prefork_worker::apps::check);
        let mut config = source.load(&around)?;
        let origin = Origin {
            file: source.text().map(str::to_owned),
            cpus: around.cpus,
        };
        let mut confinement = Confinement::prepare(&config).map_err(LoadError::confinement)?;
        let directory = confinement
            .directory(&config)
            .map_err(LoadError::confinement)?;
        let open = || {
            let opened = self.executable(&config, directory.as_ref(), first);
            opened.map_err(|error| error.to_string())
        };
        let executable = confinement
            .program(&config, open)
            .map_err(LoadError::confinement)?;
        config.warnings.extend(command::unfollowed_link(&config));
        open_hook_program(&config, &confinement)?;
        let command = command::words(&config, &executable, directory.as_ref());
        if let (Program::App(app), Some(pinned)) = (&mut config.program, command.first()) {
            *app = pinned.to_string_lossy().into_owned();
        }
        confinement
            .add_sandbox(&mut config, &executable)
            .map_err(LoadError::confinement)?;
        let slots = config.max_workers.max(config.workers);
        let sockets = listeners.prepare(&config.binds, config.backlog, slots)?;
        let admin = AdminSockets::prepare(listeners, &config.admin)?;
        let mut generation = Generation {
            config,
            sockets,
            admin,
            directory,
            executable,
            command,
            confinement,
            opened: 0,
            access: None,
            origin,
        };
        generation.access = generation
            .access_target()
            .map(AccessLog::open)
            .transpose()
            .map_err(LoadError::access_log)?;
        Ok(generation)
    }

    /// Returns the settings of a generation, and where each came from.
    pub(crate) fn explain(&self, generation: &Generation) -> Vec<Setting> {
        self.source
            .with_text(generation.origin.file.clone())
            .explain(&generation.config)
    }

    /// Makes the configuration of an origin again.
    ///
    /// # Errors
    /// This version of the program rejects it.
    pub(crate) fn config_of(&self, origin: &Origin) -> Result<Config, ConfigError> {
        let around = Surroundings {
            cpus: origin.cpus,
            inherited: &self.inherited,
            check_app: &prefork_worker::apps::check,
        };
        self.source.with_text(origin.file.clone()).load(&around)
    }
}

/// Opens the program of `on-event`, with the rights of the workers' user.
///
/// # Errors
/// Why it cannot be started, and the remedy.
pub(crate) fn open_hook_program(
    config: &Config,
    confinement: &Confinement,
) -> Result<Option<Executable>, LoadError> {
    let Some(program) = &config.hooks.program else {
        return Ok(None);
    };
    let path = std::env::var_os("PATH");
    let find = || Executable::find(program.as_os_str(), path.as_deref(), None);
    let found = confinement.with_fsuid(find).map_err(LoadError::hook)?;
    found.map(Some).map_err(LoadError::hook)
}
