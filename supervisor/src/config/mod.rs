//! The configuration: what was typed → what is true.
//!
//! [`Source`] holds the command line and the environment of this process. [`Source::load`] reads the file that
//! they name, lays the four layers over each other (flag, environment, file, default), checks everything that can
//! be known without serving, and gives a [`Config`]. Nothing downstream checks again. A reload calls it again.
//!
//! The module deliberately does not know how anything is done that it configures: it opens no socket, starts no
//! process and logs nothing.
//!
//! Start reading at the table in `options.rs`; each setting is one row there.

mod bind;
mod cgroups;
mod clean;
mod cli;
mod error;
mod file;
mod hooks;
mod options;
mod privileges;
mod reader;
mod ready;
mod render;
mod resolve;
mod sandbox;
mod source;
mod stderr;
#[cfg(test)]
mod tests;
mod words;

pub use bind::Bind;
pub(crate) use clean::CleanExits;
pub use cli::Identity;
pub(crate) use cli::{Act, completions, man};
pub(crate) use error::{ConfigError, USAGE};
pub use hooks::Hooks;
pub(crate) use privileges::{Account, Capabilities, CoreDumps, NamedGroup, Privileges};
pub(crate) use ready::Ready;
pub(crate) use sandbox::{Limit, Rigour, Sandbox, Seccomp};
pub(crate) use source::{Explained, Invocation};
pub use source::{Source, Surroundings};
pub(crate) use stderr::WorkerStderr;

use nix::sys::signal::Signal;
use prefork_core::Share;
use prefork_protocol::settings::{Accept, Class, ClassName, WorkerSettings};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

/// What the admin child serves, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Addresses for HTTP: TCP or Unix.
    pub http: Vec<Bind>,
    /// Addresses for HAProxy's agent-check: TCP or Unix.
    pub agent: Vec<Bind>,
    /// Whom it runs as; `None`: as the supervisor, which is not root then.
    pub user: Option<Account>,
}

/// A configuration in which everything has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where to listen: at least one address, none twice.
    pub binds: Vec<Bind>,
    /// Connections that may wait in each listening socket's queue.
    pub backlog: u32,
    /// Whose queues a worker takes connections from; a foreign program never steals.
    pub accept: Accept,
    /// Worker processes: 1 to [`max_workers`](Self::max_workers); the fewest, where their number follows the load.
    pub workers: u16,
    /// Workers that can be scaled up to: at most [`prefork_protocol::Slot::MAX`].
    pub max_workers: u16,
    /// The number of workers follows the load.
    pub range: bool,
    /// How long a worker must have been unneeded before it is retired.
    pub scale_down_after: Duration,
    /// Bytes that all workers together may use for more to be started.
    pub scale_up_memory: Option<u64>,
    /// What a worker runs.
    pub program: Program,
    /// How many slots may be out of service because somebody wants it.
    pub max_unavailable: Share,
    /// Requests after which a worker is replaced.
    pub max_requests: Option<u64>,
    /// Age at which a worker is replaced.
    pub max_age: Option<Duration>,
    /// Bytes of memory at which a worker is replaced.
    pub max_memory: Option<u64>,
    /// How a Rust worker serves.
    pub class: ClassName,
    /// Threads of a worker of class `threads`.
    pub threads: u16,
    /// Connections that a worker of class `async` has in hand at most.
    pub max_connections: u32,
    /// Variables to add to the workers' environment. None is one that the supervisor sets itself.
    pub env: BTreeMap<String, String>,
    /// Working directory of the workers; it existed when the configuration was loaded.
    pub directory: Option<PathBuf>,
    /// How workers are confined.
    pub sandbox: Sandbox,
    /// Resource limits of a worker, no resource twice.
    pub limits: Vec<Limit>,
    /// How many slots a reload replaces at a time.
    pub surge: Surge,
    /// How long a reload's new workers must live after they are ready before the old ones drain.
    pub min_ready: Duration,
    /// How long a worker may drain before it is killed.
    pub graceful_timeout: Duration,
    /// How long a graceful stop is announced before workers drain.
    pub pre_stop_delay: Duration,
    /// How long a draining worker leaves an idle kept-alive connection open for its next request.
    pub drain_idle: Duration,
    /// What asks a foreign worker to drain. Never KILL or STOP.
    pub stop_signal: Signal,
    /// By which statuses and signals a worker may end.
    pub clean_exit: CleanExits,
    /// Where the workers' control groups are.
    pub cgroups: Cgroups,
    /// Bytes that a worker's control group may use.
    pub worker_memory: Option<u64>,
    /// Thousandths of a CPU that a worker's control group may use.
    pub worker_cpus: Option<u32>,
    /// How long a worker may take to get ready.
    pub start_timeout: Duration,
    /// When a foreign program counts as ready.
    pub ready: Ready,
    /// How long a worker may give no sign of life.
    pub hang_timeout: Option<Duration>,
    /// How long a handler may take before its client gets 503.
    pub request_timeout: Option<Duration>,
    /// How long a kept-alive connection may be idle.
    pub keep_alive: Duration,
    /// How long a request's head may take to arrive.
    pub header_timeout: Duration,
    /// The longest request head, in bytes.
    pub max_head: u32,
    /// The longest request body, in bytes.
    pub max_body: Option<u64>,
    /// Whom workers and the supervisor run as, and what they keep.
    pub privileges: Privileges,
    /// What is logged, how and where.
    pub log: LogSettings,
    /// Where workers' standard error goes.
    pub worker_stderr: WorkerStderr,
    /// Where a child serves metrics, health and the dashboard.
    pub admin: Admin,
    /// Where a line for each request goes.
    pub access_log: Option<AccessTarget>,
    /// How these lines look.
    pub access_log_format: prefork_protocol::access_log::Format,
    /// From when on a request is slow.
    pub slow_log: Option<Duration>,
    /// What is started for events.
    pub hooks: Hooks,
    /// Where the control socket is.
    pub control: Control,
    /// The server's name among others.
    pub name: Option<String>,
    /// The group that may ask how things are.
    pub control_readers: Option<NamedGroup>,
    /// What is allowed but probably not meant, in sentences to be logged.
    pub warnings: Vec<String>,
}

/// What a worker runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// A stock app, such as `hello` or `files:/srv/www`.
    App(String),
    /// The service that this very program brings.
    Linked,
    /// Another program and its arguments; never empty.
    Command(Vec<OsString>),
}

/// How many slots a reload replaces at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surge {
    /// Every one: all new workers are ready before any old one drains.
    All,
    /// So many.
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
    /// Words for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where the control socket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// `prefork.sock` in `$RUNTIME_DIRECTORY`, else in `$XDG_RUNTIME_DIR`.
    Default,
    /// Here; short enough for a Unix socket's address.
    Path(PathBuf),
    /// There is none.
    Off,
}

impl Config {
    /// A Rust worker's two numbers.
    pub fn class(&self) -> Class {
        Class::new(self.class, self.threads, self.max_connections)
    }

    /// What a Rust worker is told.
    pub fn worker_settings(&self) -> WorkerSettings {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        WorkerSettings {
            class: self.class(),
            app: match &self.program {
                Program::App(app) => app.clone(),
                Program::Linked | Program::Command(_) => String::new(),
            },
            heartbeat_ms: millis(self.heartbeat()),
            drain_idle_ms: millis(self.drain_idle),
            keep_alive_ms: millis(self.keep_alive),
            header_timeout_ms: millis(self.header_timeout),
            request_timeout_ms: self.request_timeout.map_or(0, millis),
            max_head_bytes: self.max_head,
            max_body_bytes: self.max_body.unwrap_or(0),
            log_level: self.log.level as u8,
        }
    }

    /// Slots that there are without anybody's asking for more.
    pub fn slots(&self) -> u16 {
        if self.range {
            self.max_workers
        } else {
            self.workers
        }
    }

    /// Requests that one worker has in hand at a time; `None` for whom that says nothing of how busy it is: a worker of
    /// class async, whose handlers wait more than they work, and a foreign program, which does not tell.
    pub fn requests_per_worker(&self) -> Option<u32> {
        let class = self.class();
        match self.program {
            Program::App(_) | Program::Linked if class.connections <= 1 => {
                Some(u32::from(class.threads))
            }
            Program::App(_) | Program::Linked | Program::Command(_) => None,
        }
    }

    /// How often a Rust worker beats: four times within the timeout, so that one late beat is no hang.
    pub fn heartbeat(&self) -> Duration {
        let most = Duration::from_secs(1);
        self.hang_timeout.map_or(most, |timeout| {
            (timeout / 4).clamp(Duration::from_millis(100), most)
        })
    }

    /// `WATCHDOG_USEC` for foreign workers: a program that once answers the watchdog must go on doing so.
    pub fn worker_watchdog(&self) -> Option<Duration> {
        self.hang_timeout
    }
}
