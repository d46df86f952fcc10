//! Why a worker ended: one cause for every death, decided where it is known.
//!
//! The core knows whom it has asked to leave or has killed, and why. The shell knows how the process ended, and says
//! so in an [`End`]. Both together make a [`WorkerExit`], which is logged and counted once.

use super::event::DrainReason;
use super::worker::{Stage, Worker};
use crate::WorkerId;
use std::time::Duration;

macro_rules! causes {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// What a worker died of. Every death has one; they are what deaths are counted by.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
        pub enum Cause {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Cause {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The word for it in logs, status and metrics. It never changes.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }
        }
    };
}

// Appended to only: the order is part of what one version of the supervisor tells the next.
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
    /// It left of its own accord, cleanly.
    Left = "left",
    /// It ended with a status that is not clean, unasked or not.
    Exit = "exit",
    /// A signal that nobody here had sent killed it.
    Signal = "signal",
    /// Such a signal, and it dumped core.
    Core = "core",
    /// The kernel killed it, for want of memory.
    Oom = "oom",
    /// It did not get ready in time.
    StartTimeout = "start-timeout",
    /// It was hung.
    Hang = "hang",
    /// A request was overdue.
    RequestTimeout = "request-timeout",
    /// It did not finish draining in time.
    DrainTimeout = "drain-timeout",
    /// It broke the protocol, or closed its channel and went on living.
    Protocol = "protocol",
    /// Its program could not be executed.
    Exec = "exec",
    /// There could be no process for it.
    Spawn = "spawn",
    /// Nobody can tell.
    Unknown = "unknown",
    /// Another one was asked for in its slot.
    Restart = "restart",
    /// Its slot was to be empty.
    Drain = "drain",
    /// It had reached a limit of requests, age or memory.
    Recycle = "recycle",
}

impl From<DrainReason> for Cause {
    fn from(why: DrainReason) -> Self {
        match why {
            DrainReason::Replaced => Self::Reload,
            DrainReason::RolledBack => Self::Rollback,
            DrainReason::Retired => Self::ScaleDown,
            DrainReason::DrainAll => Self::DrainAll,
            DrainReason::Stop => Self::Stop,
            DrainReason::Superseded => Self::Reload,
            DrainReason::Restarted => Self::Restart,
            DrainReason::Held => Self::Drain,
            DrainReason::Recycled => Self::Recycle,
        }
    }
}

/// How a process ended, as far as the process itself tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessEnd {
    /// In words.
    pub how: String,
    /// What that says of the cause.
    pub cause: Cause,
    /// Whether that is an end that its program may come to.
    pub manner: Manner,
}

impl ProcessEnd {
    /// An end that is not clean.
    pub fn unclean(how: impl Into<String>, cause: Cause) -> Self {
        Self {
            how: how.into(),
            cause,
            manner: Manner::Unclean,
        }
    }
}

/// Whether an end is a good one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// By a status or signal that counts as clean.
    Clean,
    /// By the signal that asks it to drain: clean if it was asked to.
    AsAsked,
    /// Any other.
    Unclean,
}

/// How bad a death is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Clean,
    /// It was to leave, and ended in another way than it should.
    Unclean,
    /// It was to serve, or had to be killed.
    Failure,
}

/// Who follows a dead worker in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Successor {
    /// A new worker, in so long.
    New(Duration),
    /// This worker is there already.
    Known(WorkerId),
    /// Nobody, since its generation does not serve.
    Refused,
    /// Nobody.
    Nobody,
}

/// A worker's death, as the core judges it.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerExit {
    /// What it died of.
    pub cause: Cause,
    /// How its process ended, in words, with what it had to say itself.
    pub how: String,
    /// How bad that is.
    pub grade: Grade,
    /// How long ago it was started.
    pub age: Duration,
    /// Who follows.
    pub successor: Successor,
}

/// What a worker that ends so has died of, and how bad that is.
pub(crate) fn judge(worker: &Worker, end: &ProcessEnd) -> (Cause, Grade) {
    let asked = worker.cause.unwrap_or(Cause::Left);
    match worker.stage {
        Stage::Ready { .. } if end.manner == Manner::Clean => (Cause::Left, Grade::Clean),
        Stage::Starting { .. } | Stage::Ready { .. } => (end.cause, Grade::Failure),
        Stage::Draining { .. } => match end.manner {
            Manner::Clean | Manner::AsAsked => (asked, Grade::Clean),
            // It was to leave anyway; but what it did instead is worth to be counted.
            Manner::Unclean => (end.cause, Grade::Unclean),
        },
        Stage::Aborting { .. } | Stage::Killed => match asked {
            Cause::Stop => (asked, Grade::Clean),
            Cause::DrainTimeout => (asked, Grade::Unclean),
            _ => (asked, Grade::Failure),
        },
    }
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
