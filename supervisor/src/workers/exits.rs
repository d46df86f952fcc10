//! ExitCounts: what a process's end says of its cause, what is left of a worker to be told, and how many died of what.
//!
//! A death's cause is the core's ([`Cause`]); this module gives it what the system knows, and puts both into one line.

use crate::api::events::EventRecord;
use crate::config::CleanExits;
use crate::process::reap::{Death, Usage};
use crate::process::spawn::ExecFailure;
use crate::workers::handle::{Line, WorkerHandle};
use log::Level;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use prefork_core::{Cause, Grade, Manner, ProcessEnd, Successor, WorkerExit, WorkerRef};
use prefork_protocol::scoreboard::Reading;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// The most lines and characters of a worker's last words in a line of the log.
const LAST_LINES: usize = 3;
const LAST_CHARACTERS: usize = 300;

/// How many workers have died of what since the server started. Never goes back, upgrades in place included.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExitCounts {
    /// By the cause's word; another version may have known causes that this one does not.
    counts: BTreeMap<Cow<'static, str>, u64>,
}

impl ExitCounts {
    /// One more.
    pub(crate) fn count(&mut self, cause: Cause) {
        *self.counts.entry(cause.word().into()).or_default() += 1;
    }

    /// Every cause with its count, those that nobody died of yet too.
    pub(crate) fn by_cause(&self) -> BTreeMap<String, u64> {
        let all = Cause::ALL.iter().map(|cause| (cause.word().to_owned(), 0));
        all.chain(self.seen().map(|(cause, count)| (cause.to_owned(), count)))
            .collect()
    }

    /// Every cause that somebody died of, with its count.
    pub(crate) fn seen(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counts
            .iter()
            .map(|(cause, count)| (cause.as_ref(), *count))
    }

    /// Goes on counting where another version was.
    pub(crate) fn resumed(counts: impl IntoIterator<Item = (String, u64)>) -> Self {
        Self {
            counts: counts
                .into_iter()
                .map(|(cause, count)| (cause.into(), count))
                .collect(),
        }
    }
}

/// What is left of a worker.
#[derive(Debug)]
pub(crate) struct ExitRecord {
    pub(crate) pid: Pid,
    /// How it ended; `None` when that is not known.
    pub(crate) death: Option<Death>,
    /// Why it did not become its program.
    pub(crate) failure: Option<ExecFailure>,
    /// The kernel killed it for want of memory; `None` when nobody can tell.
    pub(crate) oom: Option<bool>,
    pub(crate) usage: Usage,
    /// Its row on the scoreboard, if it counts.
    pub(crate) reading: Option<Reading>,
    /// The end of what it has written to its standard error.
    pub(crate) last_words: Vec<u8>,
}

/// What a child's end says.
pub(crate) fn end(hand: &WorkerHandle, record: &ExitRecord, clean: &CleanExits) -> ProcessEnd {
    if let Some(failure) = &record.failure {
        return ProcessEnd::unclean(failure.to_string(), Cause::Exec);
    }
    let Some(death) = record.death else {
        return ProcessEnd::unclean("gone, cause unknown", Cause::Unknown);
    };
    let asks = match hand.line {
        Line::Notify { stop, .. } => Some(stop as i32),
        Line::Channel { .. } | Line::Closed => None,
    };
    let (cause, manner) = match death {
        Death::Exited(status) if clean.has_status(status) => (Cause::Exit, Manner::Clean),
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
    }
}

/// A death: one line that has everything, and the same as fields for machines. `now`, in milliseconds, is the clock of
/// the scoreboard.
pub(crate) fn to_event(
    who: WorkerRef,
    worker_exit: &WorkerExit,
    record: Option<&ExitRecord>,
    now: u64,
) -> EventRecord {
    let level = match worker_exit.grade {
        Grade::Clean => Level::Info,
        Grade::Unclean => Level::Warn,
        Grade::Failure => Level::Error,
    };
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let mut event = EventRecord::new("died", level, line(who, worker_exit, record, now))
        .with("worker", who.worker.0)
        .with("slot", who.slot.0)
        .with("generation", who.generation.0)
        .with("cause", worker_exit.cause.word())
        .with("end", worker_exit.how.as_str())
        .with("age_ms", millis(worker_exit.age))
        .with("follow", follow(worker_exit.successor));
    let Some(record) = record else { return event };
    event = event.with("pid", record.pid.as_raw());
    event = match record.death {
        Some(Death::Exited(status)) => event.with("status", status),
        Some(Death::Signaled { signal, core }) => event.with("signal", signal).with("core", core),
        Some(Death::Unknown) | None => event,
    };
    event = event
        .with("user_ms", millis(record.usage.user))
        .with("system_ms", millis(record.usage.system))
        .with("max_rss_kib", record.usage.max_resident_kib);
    if let Some(reading) = &record.reading {
        event = event
            .with("busy", reading.busy)
            .with("connections", reading.open)
            .with("requests", reading.requests);
        if let Some(age) = oldest(reading, now) {
            event = event.with("oldest_ms", millis(age));
        }
    }
    if !record.last_words.is_empty() {
        event = event.with("stderr", String::from_utf8_lossy(&record.last_words));
    }
    event
}

fn line(who: WorkerRef, worker_exit: &WorkerExit, record: Option<&ExitRecord>, now: u64) -> String {
    let WorkerRef {
        worker,
        slot,
        generation,
    } = who;
    let mut text = format!("worker {worker} (slot {slot}, generation {generation}");
    if let Some(record) = record {
        let _ = write!(text, ", pid {}", record.pid);
    }
    let verb = match worker_exit.grade {
        Grade::Clean => "is gone",
        Grade::Unclean | Grade::Failure => "died",
    };
    let _ = write!(
        text,
        ") {verb} ({}): {}",
        worker_exit.cause.word(),
        worker_exit.how
    );
    if let Some(record) = record {
        if worker_exit.cause == Cause::Signal && record.oom.is_none() && was_killed(record) {
            text.push_str(", not by this server (perhaps by the kernel, out of memory: see dmesg)");
        }
        let Usage {
            user,
            system,
            max_resident_kib,
        } = record.usage;
        let memory = max_resident_kib as f64 / 1024.0;
        let (user, system) = (user.as_secs_f64(), system.as_secs_f64());
        let _ = write!(
            text,
            ", after {:.1?}; CPU {user:.2} s user, {system:.2} s system; {memory:.1} MiB at most",
            worker_exit.age
        );
        if let Some(reading) = &record.reading {
            let _ = write!(text, "; in hand: {}", count(reading.busy, "request"));
            if let Some(age) = oldest(reading, now) {
                let _ = write!(text, ", the oldest for {age:.1?}");
            }
            let _ = write!(text, ", {}", count(reading.open, "connection"));
            let _ = write!(text, "; {} served", count(reading.requests, "request"));
        }
    }
    let follow = follow(worker_exit.successor);
    if !follow.is_empty() {
        let _ = write!(text, "; {follow}");
    }
    if let Some(words) = record
        .map(|record| last_words(&record.last_words))
        .filter(|words| !words.is_empty())
    {
        let _ = write!(text, "; last words: \"{words}\"");
    }
    text
}

fn was_killed(record: &ExitRecord) -> bool {
    matches!(record.death, Some(Death::Signaled { signal, .. }) if signal == Signal::SIGKILL as i32)
}

/// The age of the oldest request in hand. The worker may have written any number.
fn oldest(reading: &Reading, now: u64) -> Option<Duration> {
    (reading.busy > 0 && reading.oldest > 0 && reading.oldest <= now)
        .then(|| Duration::from_millis(now - reading.oldest))
}

fn count(number: u64, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

/// Who follows, in words.
pub(crate) fn follow(follow: Successor) -> String {
    match follow {
        Successor::New(Duration::ZERO) => "replacing it at once".to_owned(),
        Successor::New(wait) => format!("trying again in {wait:.1?}"),
        Successor::Known(worker) => format!("worker {worker} follows"),
        Successor::Refused => "not replacing it, since its generation does not serve".to_owned(),
        Successor::Nobody => String::new(),
    }
}

/// The last few lines of what it wrote, escaped and bounded.
fn last_words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
    let escaped: String = last.escape_debug().collect();
    match escaped.char_indices().rev().nth(LAST_CHARACTERS - 1) {
        Some((start, _)) if start > 0 => format!("...{}", &escaped[start..]),
        _ => escaped,
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

    #[test]
    fn last_words_are_the_last_lines_escaped_and_bounded() {
        assert_eq!(last_words(b""), "");
        assert_eq!(
            last_words(b"one\ntwo\n\nthree\nfour\n"),
            "two\\nthree\\nfour"
        );
        assert_eq!(
            last_words(b"\x1b[31mred\xff\""),
            "\\u{1b}[31mred\u{fffd}\\\""
        );
        let long = last_words(&[b'x'; 4096]);
        assert_eq!((long.len(), &long[..4]), (LAST_CHARACTERS + 3, "...x"));
        assert!(last_words("ä".repeat(2048).as_bytes()).ends_with('ä'));
    }

    #[test]
    fn a_request_that_began_in_the_future_is_a_lie() {
        let reading = Reading {
            busy: 1,
            oldest: 2000,
            ..Reading::default()
        };
        assert_eq!(oldest(&reading, 3500), Some(Duration::from_millis(1500)));
        assert_eq!(oldest(&reading, 1999), None);
    }
}
