//! How a worker is to serve: decided by the supervisor's configuration, sent in the
//! [welcome](crate::message::Welcome).

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A worker's concurrency, which is two numbers: serving threads, and active connections of each.
///
/// ```
/// use prefork_protocol::settings::{Class, ClassName};
/// let class = Class::new(ClassName::Threads, 16, 1000);
/// assert_eq!((class.threads, class.connections), (16, 1));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Class {
    /// Serving threads, each with an event loop of its own.
    pub threads: u16,
    /// The most active connections of a thread.
    pub connections: u32,
}

impl Class {
    /// The two numbers of a named class: `threads` counts for [`ClassName::Threads`] only,
    /// `connections` for [`ClassName::Async`] only.
    pub fn new(name: ClassName, threads: u16, connections: u32) -> Self {
        match name {
            ClassName::Sync => Self {
                threads: 1,
                connections: 1,
            },
            ClassName::Threads => Self {
                threads,
                connections: 1,
            },
            ClassName::Async => Self {
                threads: 1,
                connections,
            },
        }
    }
}

/// Why a text is not the value of a setting.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SettingError {
    /// It names no [`ClassName`].
    #[error("`{0}` is no worker class (choose sync, threads or async)")]
    Class(String),
    /// It names no [`Accept`].
    #[error("`{0}` is no way to accept (choose own, steal or shared)")]
    Accept(String),
}

/// The three worker classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassName {
    /// One thread, one connection at a time: simplest, for CPU-bound or fragile handlers.
    Sync,
    /// Several threads, one connection each: for handlers that block.
    Threads,
    /// One thread, many connections: for handlers that wait asynchronously.
    Async,
}

impl ClassName {
    /// All of them, in the order in which the documentation names them.
    pub const ALL: [Self; 3] = [Self::Sync, Self::Threads, Self::Async];

    /// Returns its name, as on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Threads => "threads",
            Self::Async => "async",
        }
    }
}

impl fmt::Display for ClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ClassName {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        Self::ALL
            .into_iter()
            .find(|name| name.as_str() == text)
            .ok_or_else(|| SettingError::Class(text.to_owned()))
    }
}

/// Whose queues a Rust worker takes connections from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accept {
    /// Its own slot's only.
    Own,
    /// Its own slot's first, and its siblings' when nothing waits there.
    #[default]
    Steal,
    /// The one queue that all workers share.
    Shared,
}

impl Accept {
    /// All of them, in the order in which the documentation names them.
    pub const ALL: [Self; 3] = [Self::Own, Self::Steal, Self::Shared];

    /// Returns its name, as on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Steal => "steal",
            Self::Shared => "shared",
        }
    }
}

impl fmt::Display for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Accept {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        Self::ALL
            .into_iter()
            .find(|accept| accept.as_str() == text)
            .ok_or_else(|| SettingError::Accept(text.to_owned()))
    }
}

/// Everything a Rust worker needs to know to serve. Durations are milliseconds; 0 switches a
/// timeout off.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct WorkerSettings {
    /// Threads and connections per thread.
    pub class: Class,
    /// The stock app to run, such as `hello` or `files:/srv/www`. A program that brings its own
    /// service ignores it.
    pub app: String,
    /// How often a serving thread beats in the scoreboard.
    pub heartbeat_ms: u64,
    /// At drain: how long an idle kept-alive connection may still bring its next request.
    pub drain_idle_ms: u64,
    /// How long a kept-alive connection may be idle.
    pub keep_alive_ms: u64,
    /// How long a request's head may take to arrive.
    pub header_timeout_ms: u64,
    /// How long a handler may take until its client gets 503. Off by default.
    pub request_timeout_ms: u64,
    /// The longest request head, in bytes; longer ones get 431.
    pub max_head_bytes: u32,
    /// The longest request body, in bytes; longer ones get 413. 0: no limit.
    pub max_body_bytes: u64,
    /// Log level: 0 off, 1 error, 2 warn, 3 info, 4 debug, 5 trace.
    pub log_level: u8,
}
