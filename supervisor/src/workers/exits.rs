//! Worker exits: what an exit status says about the cause, and how many workers have exited for
//! which cause.
//!
//! The cause is decided by the core ([`Cause`]); this module supplies what the system knows. How an
//! exit is reported is a matter of the API.

use crate::config::CleanExits;
use crate::logging::stderr::excerpt::excerpt;
use crate::process::reap::Death;
use crate::workers::handle::{ExitRecord, Line, WorkerHandle};
use nix::sys::signal::Signal;
use prefork_core::{Cause, Manner, ProcessEnd};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What a status begins with that stands for a signal.
const SIGNALED: i32 = 128;

/// How many workers have exited for which cause since the server started. The counts never go back,
/// upgrades in place included.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExitCounts {
    /// By the cause's name; another version may have known causes that this one does not.
    counts: BTreeMap<Cow<'static, str>, u64>,
}

impl ExitCounts {
    /// Counts one exit.
    pub(crate) fn count(&mut self, cause: Cause) {
        *self.counts.entry(cause.word().into()).or_default() += 1;
    }

    /// Returns every cause with its count, also those that have not occurred.
    pub(crate) fn by_cause(&self) -> BTreeMap<String, u64> {
        let all = Cause::ALL.iter().map(|cause| (cause.word().to_owned(), 0));
        all.chain(self.seen().map(|(cause, count)| (cause.to_owned(), count)))
            .collect()
    }

    /// Returns every cause that has occurred, with its count.
    pub(crate) fn seen(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counts
            .iter()
            .map(|(cause, count)| (cause.as_ref(), *count))
    }

    /// Takes over the counts of another version.
    pub(crate) fn resumed(counts: impl IntoIterator<Item = (String, u64)>) -> Self {
        Self {
            counts: counts
                .into_iter()
                .map(|(cause, count)| (cause.into(), count))
                .collect(),
        }
    }
}

/// Returns what a worker's exit says about its cause.
pub(crate) fn end(handle: &WorkerHandle, record: &ExitRecord, clean: &CleanExits) -> ProcessEnd {
    if let Some(failure) = &record.failure {
        return ProcessEnd::unclean(failure.to_string(), Cause::Exec);
    }
    let Some(death) = record.death else {
        return ProcessEnd::unclean("gone, cause unknown", Cause::Unknown);
    };
    let asks = match handle.line {
        Line::Notify { stop, .. } => Some(stop as i32),
        Line::Channel { .. } | Line::Closed => None,
    };
    let (cause, manner) = match death {
        Death::Exited(status) if clean.has_status(status) => (Cause::Exit, Manner::Clean),
        // As shells and the JVM report a signal that has ended them.
        Death::Exited(status) if clean.has_signal(status - SIGNALED) => {
            (Cause::Exit, Manner::Clean)
        }
        Death::Exited(status) if asks == Some(status - SIGNALED) => (Cause::Exit, Manner::AsAsked),
        Death::Exited(_) => (Cause::Exit, Manner::Unclean),
        Death::Signaled { core: true, .. } => (Cause::Core, Manner::Unclean),
        Death::Signaled { signal, .. }
            if record.oom == Some(true) && signal == Signal::SIGKILL as i32 =>
        {
            (Cause::Oom, Manner::Unclean)
        }
        Death::Signaled { signal, .. } if clean.has_signal(signal) => {
            (Cause::Signal, Manner::Clean)
        }
        Death::Signaled { signal, .. } if asks == Some(signal) => (Cause::Signal, Manner::AsAsked),
        Death::Signaled { .. } => (Cause::Signal, Manner::Unclean),
        Death::Unknown => (Cause::Unknown, Manner::Unclean),
    };
    ProcessEnd {
        how: death.to_string(),
        cause,
        manner,
        output: excerpt(&record.stderr_tail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_never_go_back_and_unknown_causes_are_kept() {
        let mut deaths = ExitCounts::resumed([("exit".to_owned(), 3), ("boredom".to_owned(), 1)]);
        deaths.count(Cause::Exit);
        deaths.count(Cause::Oom);
        let all = deaths.by_cause();
        assert_eq!(
            (all["exit"], all["oom"], all["boredom"], all["core"]),
            (4, 1, 1, 0)
        );
        assert_eq!(deaths.seen().count(), 3);
    }
}
