//! The layers: what this process was started with, and the file that it names.

use super::command_line::{CommandLine, Identity, Subcommand, parse};
use super::error::{ConfigError, File, Place, Problem, printable};
use super::file::{self, nearest};
use super::layer::{Layer, Origin, Surroundings};
use super::options::{Config, Options, PREFIX, SETTINGS, Setting, setting};
use super::reader::{Parsed, invalid};
use super::resolve::resolve;
use super::types::Control;
use crate::api::answer;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The variable that names the file.
const CONFIG: &str = "SUPERVISOR_CONFIG";

/// What a process was started to do, and with what.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// What is to be done.
    pub subcommand: Subcommand,
    /// The answer of a running server is wanted as it gives it.
    pub json: bool,
    /// The configuration's source.
    pub source: Source,
}

/// The command line and the environment, kept so that a reload can read the file again beneath
/// them.
#[derive(Debug, Clone)]
pub struct Source {
    flags: Options,
    program: Vec<OsString>,
    /// The variables that begin with [`PREFIX`].
    environment: Vec<(String, OsString)>,
    config: Option<PathBuf>,
    /// The file as it was read at some time, which then stands for what it is now.
    read: Option<Arc<File>>,
    linked: bool,
}

impl Source {
    /// Reads the command line and the environment of this process.
    ///
    /// # Errors
    /// When the command line is wrong, and also for `--help` and `--version`: [`clap::Error::exit`]
    /// does the right thing for each.
    pub fn from_process(identity: &Identity) -> Result<Invocation, clap::Error> {
        Self::from_parts(identity, std::env::args_os(), std::env::vars_os())
    }

    /// Reads a command line (the program's name first) and an environment.
    ///
    /// # Errors
    /// When the command line is wrong, and also for `--help` and `--version`.
    pub fn from_parts(
        identity: &Identity,
        args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
        env: impl IntoIterator<Item = (impl Into<OsString>, impl Into<OsString>)>,
    ) -> Result<Invocation, clap::Error> {
        let CommandLine {
            subcommand,
            json,
            config,
            options,
            program,
        } = parse(identity, args)?;
        let environment: Vec<_> = env
            .into_iter()
            .filter_map(|(key, value)| Some((key.into().into_string().ok()?, value.into())))
            .filter(|(key, value)| key.starts_with(PREFIX) && !value.is_empty())
            .collect();
        let named = || environment.iter().find(|(key, _)| key == CONFIG);
        let config = config.or_else(|| named().map(|(_, path)| PathBuf::from(path)));
        let source = Self {
            flags: options,
            program,
            config,
            read: None,
            environment,
            linked: identity.linked,
        };
        Ok(Invocation {
            subcommand,
            json,
            source,
        })
    }

    /// The configuration file, when one is named.
    pub fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// This source with the file as it is now: whatever is loaded from it is the same. A file that
    /// cannot be read is left to [`load`](Self::load), which says why.
    #[must_use]
    pub fn frozen(&self) -> Self {
        Self {
            read: self
                .config
                .as_deref()
                .and_then(|path| file::read(path).ok()),
            ..self.clone()
        }
    }

    /// This source with a file that was read earlier, perhaps by another version of this program.
    #[must_use]
    pub fn with_text(&self, text: Option<String>) -> Self {
        let file = self.config.as_ref().zip(text).map(|(path, text)| File {
            path: path.clone(),
            text,
        });
        Self {
            read: file.map(Arc::new),
            ..self.clone()
        }
    }

    /// The text of the file that [`frozen`](Self::frozen) read.
    pub fn text(&self) -> Option<&str> {
        self.read.as_ref().map(|file| file.text.as_str())
    }

    /// Reads the file and gives what is true now. To be called at start, at each reload and to
    /// check.
    ///
    /// # Errors
    /// Everything that is wrong, each with its place and its remedy.
    pub fn load(&self, around: &Surroundings<'_>) -> Result<Config, ConfigError> {
        let mut problems = Vec::new();
        let mut warnings = Vec::new();
        let layers = self.layers(&mut problems, &mut warnings);
        if !problems.is_empty() {
            return Err(ConfigError { problems });
        }
        resolve(&layers, self.linked, around, warnings)
    }

    /// Where the running server's control socket is, and the server's name, for the acts that ask
    /// it something. Nothing else in the file needs to be right.
    ///
    /// # Errors
    /// When one of the settings, or the file that would hold them, is wrong.
    pub fn reach(&self) -> Result<(Control, Option<String>), ConfigError> {
        let mut problems = Vec::new();
        let layers = self.layers(&mut problems, &mut Vec::new());
        let control = layers
            .iter()
            .find_map(|layer| layer.options.control.clone());
        let name = layers.iter().find_map(|layer| layer.options.name.clone());
        problems.retain(|problem| match &problem.place {
            Place::File { key, .. } => key
                .as_deref()
                .is_none_or(|key| key == "control" || key == "name"),
            Place::Variable(name) => name == "SUPERVISOR_CONTROL" || name == "SUPERVISOR_NAME",
            Place::Flag(_) | Place::Preset(_) => true,
        });
        match control {
            // A client that names the socket needs no more.
            Some(Parsed(control)) => Ok((control, name.map(|Parsed(name)| name))),
            None if problems.is_empty() => Ok((Control::Default, name.map(|Parsed(name)| name))),
            None => Err(ConfigError { problems }),
        }
    }

    /// Every setting of a configuration that was loaded from this source, with its value and with
    /// who set it.
    pub fn explain(&self, config: &Config) -> Vec<answer::Setting> {
        let layers = self.layers(&mut Vec::new(), &mut Vec::new());
        let table: toml::Table = config.render().parse().unwrap_or_default();
        let explained = SETTINGS.iter().map(|setting| {
            let name = setting.name();
            let value = table
                .get(&name)
                .and_then(|value| serde_json::to_value(value).ok());
            let layer = layers.iter().find(|layer| layer.options.sets(setting));
            let (from, place) = layer.map_or(("default", None), |layer| layer.source(&name));
            answer::Setting {
                name,
                value: value.unwrap_or_default(),
                from: from.into(),
                place,
            }
        });
        let command = table.get("command").map(|command| {
            let layer = layers.iter().find(|layer| !layer.program.is_empty());
            let (from, place) = layer.map_or(("default", None), |layer| layer.source("command"));
            let value = serde_json::to_value(command).unwrap_or_default();
            answer::Setting {
                name: "command".to_owned(),
                value,
                from: from.into(),
                place,
            }
        });
        command.into_iter().chain(explained).collect()
    }

    /// Flags, environment, file and defaults, highest first.
    fn layers(&self, problems: &mut Vec<Problem>, warnings: &mut Vec<String>) -> Vec<Layer> {
        let mut layers = vec![
            Layer {
                origin: Origin::Flags,
                options: self.flags.clone(),
                program: self.program.clone(),
            },
            self.environment(problems, warnings),
        ];
        if let Some(path) = &self.config {
            match self.read.clone().map_or_else(|| file::read(path), Ok) {
                Ok(file) => layers.push(file::parse(&file, problems, warnings)),
                Err(problem) => problems.push(problem),
            }
        }
        layers.push(Layer {
            origin: Origin::Presets,
            options: Options::presets(),
            program: Vec::new(),
        });
        layers
    }

    fn environment(&self, problems: &mut Vec<Problem>, warnings: &mut Vec<String>) -> Layer {
        let mut options = Options::default();
        let names: Vec<_> = SETTINGS.iter().map(Setting::name).collect();
        for (key, value) in &self.environment {
            let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == *key) else {
                // Others use the prefix too (supervisord does), so only what looks like a slip is
                // worth a word.
                let near = nearest(&key[PREFIX.len()..], names.iter().map(String::as_str));
                if let Some(near) = near.filter(|_| key != CONFIG).and_then(setting) {
                    let near = near.variable();
                    warnings.push(format!(
                        "{}: no setting has this variable (did you mean {near}?)",
                        printable(key)
                    ));
                }
                continue;
            };
            let result = match value.to_str() {
                Some(text) => options.set(setting, text),
                None => Err(invalid!("is not UTF-8")),
            };
            if let Err(error) = result {
                problems.push(Problem {
                    place: Place::Variable(key.clone()),
                    message: error.to_string(),
                });
            }
        }
        Layer {
            origin: Origin::Environment,
            options,
            program: Vec::new(),
        }
    }
}
