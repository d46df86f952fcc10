//! Layers: what the command line, the environment, the file and the defaults each set, and where.

use super::error::{File, Place};
use super::options::{Options, PREFIX};
use prefork_worker::apps::AppError;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;
use std::sync::Arc;

/// One layer and where it was written.
pub(crate) struct Layer {
    pub(crate) origin: Origin,
    pub(crate) options: Options,
    /// The program that it names; empty when it names none.
    pub(crate) program: Vec<OsString>,
}

/// Where a layer was written.
pub(crate) enum Origin {
    Flags,
    Environment,
    File {
        file: Arc<File>,
        spans: BTreeMap<String, Range<usize>>,
    },
    Presets,
}

impl Layer {
    /// Returns where this layer sets `name`.
    pub(crate) fn place(&self, name: &str) -> Place {
        match &self.origin {
            Origin::Flags if name == "command" => Place::Flag("-- PROGRAM".to_owned()),
            Origin::Flags => Place::Flag(format!("--{name}")),
            Origin::Environment => Place::Variable(format!(
                "{PREFIX}{}",
                name.replace('-', "_").to_ascii_uppercase()
            )),
            Origin::File { file, spans } => Place::File {
                file: Arc::clone(file),
                key: Some(name.to_owned()),
                span: spans.get(name).cloned(),
            },
            Origin::Presets => Place::Preset(name.to_owned()),
        }
    }

    /// Returns what kind of layer it is, and where it sets `name`; a default is set nowhere.
    pub(crate) fn source(&self, name: &str) -> (&'static str, Option<String>) {
        let kind = match &self.origin {
            Origin::Flags => "flag",
            Origin::Environment => "environment",
            Origin::File { .. } => "file",
            Origin::Presets => return ("default", None),
        };
        (kind, Some(self.place(name).to_string()))
    }

    /// Returns whether a user wrote it: it is not the layer of defaults.
    pub(crate) fn is_typed(&self) -> bool {
        !matches!(self.origin, Origin::Presets)
    }
}

/// Checks the name of a stock app.
type CheckApp = dyn Fn(&str) -> Result<(), AppError>;

/// What a configuration is checked against.
pub struct Surroundings<'a> {
    /// CPUs that this process may use.
    pub cpus: usize,
    /// The names of the inherited listening sockets, `unknown` for one without.
    pub inherited: &'a [String],
    /// Checks the name of a stock app.
    pub check_app: &'a CheckApp,
}

impl std::fmt::Debug for Surroundings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings")
            .field("cpus", &self.cpus)
            .field("inherited", &self.inherited)
            .finish_non_exhaustive()
    }
}

impl<'a> Surroundings<'a> {
    /// Returns those of this process: the CPUs that its affinity mask and its cgroup's quota leave
    /// it.
    pub fn of_process(inherited: &'a [String], check_app: &'a CheckApp) -> Self {
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            inherited,
            check_app,
        }
    }
}
