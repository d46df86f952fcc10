//! Errors: of a service ([`BoxError`]), and of a start ([`StartError`]).

use prefork_protocol::channel::ChannelError;
use prefork_protocol::environment::EnvironmentError;
use prefork_protocol::message::{PROTOCOL, ToWorker};
use std::io;
use std::time::Duration;
use thiserror::Error;

/// Any error that a service or a body may end with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a worker cannot start. The text is the reason that the operator reads.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    #[error("it was not started by a supervisor (PREFORK_CHANNEL is not set)")]
    NotAWorker,
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error("cannot handle signals: {0}")]
    Signals(#[source] io::Error),
    #[error("expected a welcome from the supervisor, received {0:?}")]
    NoWelcome(ToWorker),
    #[error("the supervisor has sent no welcome for {0:?}")]
    WelcomeTimeout(Duration),
    #[error("the supervisor is gone")]
    SupervisorGone,
    #[error("cannot understand the supervisor: {0}")]
    Channel(#[from] ChannelError),
    #[error("the supervisor speaks protocol {0}, this worker {PROTOCOL}")]
    Protocol(u16),
    /// From the service's own constructor, in its own words.
    #[error("{0}")]
    Service(BoxError),
    #[error("the service panicked while it was made")]
    ServicePanicked,
    #[error("cannot map this worker's rows of the scoreboard: {0}")]
    Scoreboard(#[source] io::Error),
    #[error("cannot set up the worker: {0}")]
    SetUp(#[source] io::Error),
    #[error("cannot start thread {number} of {threads}: {error}")]
    Thread {
        number: usize,
        threads: usize,
        #[source]
        error: io::Error,
    },
    #[error("cannot start an event loop: {0}")]
    EventLoop(#[source] io::Error),
    #[error("cannot watch the listeners: {0}")]
    Listeners(#[source] io::Error),
    #[error("a serving thread panicked")]
    ThreadPanicked,
}
