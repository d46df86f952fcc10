//! Why a generation cannot be loaded.

use crate::config::ConfigError;
use crate::listen::ListenError;
use crate::process::spawn::ExecutableError;

/// The error of another subsystem, which names act, object and remedy.
type Reason = Box<dyn std::error::Error + Send + Sync>;

/// Why a generation is rejected at load time. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The configuration is invalid.
    #[error("{}", .0.brief())]
    Config(#[from] ConfigError),
    /// The identity or sandbox that the configuration asks for cannot be had, or the workers cannot
    /// reach what it names for them.
    #[error("{0}")]
    Confinement(#[source] Reason),
    /// There is no such program.
    #[error(transparent)]
    Executable(#[from] ExecutableError),
    /// The program of `on-event` cannot be opened.
    #[error("on-event: {0}")]
    Hook(#[source] Reason),
    /// An address cannot be served.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The access log cannot be opened.
    #[error("{0}")]
    AccessLog(#[source] Reason),
}

impl LoadError {
    /// Wraps an error of the sandbox.
    pub(super) fn confinement(reason: impl Into<Reason>) -> Self {
        Self::Confinement(reason.into())
    }

    /// Wraps an error about the program of `on-event`.
    pub(super) fn hook(reason: impl Into<Reason>) -> Self {
        Self::Hook(reason.into())
    }

    /// Wraps an error of the access log.
    pub(super) fn access_log(reason: impl Into<Reason>) -> Self {
        Self::AccessLog(reason.into())
    }
}
