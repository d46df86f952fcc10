//! What a [`Config`](super::Config) is made of, as far as it has no file of its own.

use std::ffi::OsString;
use std::num::NonZeroU16;
use std::path::PathBuf;

/// What a worker runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// A stock app, such as `hello` or `files:/srv/www`.
    App(String),
    /// The service that this very program brings.
    Linked,
    /// An external program and its arguments; never empty.
    Command(Vec<OsString>),
}

impl Program {
    /// Returns the stock app that is served, if any.
    pub(crate) fn app(&self) -> Option<&str> {
        match self {
            Self::App(app) => Some(app),
            Self::Linked | Self::Command(_) => None,
        }
    }
}

/// How many slots a reload replaces at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surge {
    /// Every one: all new workers are ready before any old one drains.
    All,
    /// This many.
    Count(NonZeroU16),
}

/// What is logged, how and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// The least important messages that are logged.
    pub level: log::LevelFilter,
    /// How a line looks.
    pub format: LogFormat,
    /// The file, or `None` for stderr.
    pub file: Option<PathBuf>,
}

/// Where the workers' control groups are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroups {
    /// Below the supervisor's own, if that was delegated to it.
    Auto,
    /// Below this one.
    Path(PathBuf),
    /// There are none.
    Off,
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessTarget {
    /// The supervisor's standard output.
    Stdout,
    /// A file, or a named pipe.
    File(PathBuf),
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text.
    Text,
    /// A JSON object.
    Json,
}

/// Where a worker's standard error goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerStderr {
    /// To the supervisor, which forwards whole lines and remembers the last ones.
    Capture,
    /// Straight to the supervisor's own.
    Inherit,
}

/// Where the control socket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// `prefork.sock` in the runtime directory.
    Default,
    /// Here; short enough for a Unix socket's address.
    Path(PathBuf),
    /// There is none.
    Off,
}

/// Which processes of an external program get the stop signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillMode {
    /// The program itself, and the others once it has exited.
    Mixed,
    /// All at once.
    ControlGroup,
}
