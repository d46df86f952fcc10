//! Why a worker exited: one cause for every exit, decided where it is known.
//!
//! The core knows which workers it has asked to leave or killed, and why. The shell knows how the
//! process ended, and reports it as a [`ProcessEnd`]. Both together make a [`WorkerExit`], which is
//! logged and counted once.

use crate::id::WorkerId;
use std::fmt;
use std::time::Duration;

macro_rules! causes {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// The cause of a worker's exit. Every exit has exactly one, and exits are counted by it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
        pub enum Cause {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Cause {
            /// All causes.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Returns its name in logs, status and metrics, which never changes.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }
        }
    };
}

// Append only: the order is part of the state that one version of the supervisor hands to the next.
causes! {
    /// A newer generation has taken over.
    Reload = "reload",
    /// Its own generation was rolled back.
    Rollback = "rollback",
    /// Its slot was retired.
    ScaleDown = "scale-down",
    /// All workers were asked to drain.
    DrainAll = "drain-all",
    /// The server stops.
    Stop = "stop",
    /// It left unasked, cleanly.
    Left = "left",
    /// It exited with an unclean status, asked to leave or not.
    Exit = "exit",
    /// A signal not sent by the supervisor killed it.
    Signal = "signal",
    /// Such a signal, with a core dump.
    Core = "core",
    /// The kernel's OOM killer killed it.
    Oom = "oom",
    /// It did not become ready in time.
    StartTimeout = "start-timeout",
    /// It was hung.
    Hang = "hang",
    /// A request was overdue.
    RequestTimeout = "request-timeout",
    /// It did not finish draining in time.
    DrainTimeout = "drain-timeout",
    /// It broke the protocol, or closed its channel without exiting.
    Protocol = "protocol",
    /// Its program could not be executed.
    Exec = "exec",
    /// No process could be created for it.
    Spawn = "spawn",
    /// The cause is unknown.
    Unknown = "unknown",
    /// Its replacement was requested.
    Restart = "restart",
    /// Its slot was drained on request.
    Drain = "drain",
    /// It reached a limit of requests, age or memory.
    Recycle = "recycle",
}

/// Why a worker drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainReason {
    /// A newer generation has taken over.
    Replaced,
    /// Its own generation was rolled back.
    RolledBack,
    /// There are fewer slots.
    Retired,
    /// All workers were asked to drain.
    DrainAll,
    /// The server stops.
    Stop,
    /// It was a replacement within its generation, which a reload has made obsolete.
    Superseded,
    /// Its replacement was requested.
    Restarted,
    /// Its slot is drained on request.
    Held,
    /// It reached a limit.
    Recycled,
}

impl fmt::Display for DrainReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replaced => "a newer generation has taken over",
            Self::RolledBack => "its generation was rolled back",
            Self::Retired => "its slot is retired",
            Self::DrainAll => "all workers were asked to drain",
            Self::Stop => "the server stops",
            Self::Superseded => "a reload replaces its slot's worker",
            Self::Restarted => "another worker has taken over its slot, as it was asked for",
            Self::Held => "its slot is to be empty, as it was asked for",
            Self::Recycled => "it is recycled, another worker has taken over its slot",
        })
    }
}

impl From<DrainReason> for Cause {
    fn from(why: DrainReason) -> Self {
        match why {
            DrainReason::Replaced | DrainReason::Superseded => Self::Reload,
            DrainReason::RolledBack => Self::Rollback,
            DrainReason::Retired => Self::ScaleDown,
            DrainReason::DrainAll => Self::DrainAll,
            DrainReason::Stop => Self::Stop,
            DrainReason::Restarted => Self::Restart,
            DrainReason::Held => Self::Drain,
            DrainReason::Recycled => Self::Recycle,
        }
    }
}

/// How a process ended, as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessEnd {
    /// A description.
    pub how: String,
    /// The cause that it suggests.
    pub cause: Cause,
    /// Whether it counts as clean.
    pub manner: Manner,
    /// What it wrote last, as far as that may say why; empty when nothing is known.
    pub output: String,
}

impl ProcessEnd {
    /// Returns an unclean end.
    pub fn unclean(how: impl Into<String>, cause: Cause) -> Self {
        Self {
            how: how.into(),
            cause,
            manner: Manner::Unclean,
            output: String::new(),
        }
    }
}

/// Whether a process ended cleanly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// By a status or signal that counts as clean.
    Clean,
    /// By the signal that requests a drain: clean if it was asked to.
    AsAsked,
    /// Any other.
    Unclean,
}

/// How bad an exit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// As intended.
    Clean,
    /// It was asked to leave and ended in another way.
    Unclean,
    /// It was meant to serve, or had to be killed.
    Failure,
}

/// The successor of a worker in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Successor {
    /// A new worker, after this long.
    New(Duration),
    /// This worker, which already exists.
    Known(WorkerId),
    /// None: its generation does not serve.
    Refused,
    /// None.
    None,
}

/// A worker's exit, as the core judges it.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerExit {
    /// The cause.
    pub cause: Cause,
    /// How the process ended, with the reason that the worker gave itself.
    pub how: String,
    /// How bad it is.
    pub grade: Grade,
    /// The worker's age.
    pub age: Duration,
    /// The successor.
    pub successor: Successor,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_word_of_its_own() {
        let words: std::collections::BTreeSet<_> =
            Cause::ALL.iter().map(|cause| cause.word()).collect();
        assert_eq!(words.len(), Cause::ALL.len());
    }
}
