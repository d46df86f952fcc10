//! The event of a worker's exit.

use super::events::EventRecord;
use crate::logging::stderr::excerpt::{is_remark, without_escapes};
use crate::process::reap::{Death, Usage};
use crate::workers::handle::ExitRecord;
use log::Level;
use nix::sys::signal::Signal;
use prefork_core::{Cause, Grade, Successor, WorkerExit, WorkerRef};
use prefork_protocol::scoreboard::Reading;
use std::fmt::Write;
use std::time::Duration;

/// The most lines and characters of a worker's standard error in a line of the log.
const MAX_LINES: usize = 3;
const MAX_CHARACTERS: usize = 300;

/// Returns the event of a worker's exit: one line that has everything, and the same as fields.
/// `now`, in milliseconds, is the clock of the scoreboard.
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
    if !record.stderr_tail.is_empty() {
        event = event.with("stderr", String::from_utf8_lossy(&record.stderr_tail));
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
        let memory = f64::from(u32::try_from(max_resident_kib).unwrap_or(u32::MAX)) / 1024.0;
        let (user, system) = (user.as_secs_f64(), system.as_secs_f64());
        let _ = write!(
            text,
            ", after {:.1?}; CPU {user:.2} s user, {system:.2} s system; {memory:.1} MiB at most",
            worker_exit.age
        );
        if let Some(reading) = &record.reading {
            let _ = write!(text, "; in flight: {}", count(reading.busy, "request"));
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
    if let Some(tail) = record
        .filter(|_| worker_exit.grade != Grade::Clean)
        .map(|record| stderr_tail(&record.stderr_tail))
        .filter(|tail| !tail.is_empty())
    {
        let _ = write!(text, "; stderr: \"{tail}\"");
    }
    text
}

fn was_killed(record: &ExitRecord) -> bool {
    matches!(record.death, Some(Death::Signaled { signal, .. }) if signal == Signal::SIGKILL as i32)
}

/// Returns the age of the oldest request in flight. The worker may have written any number.
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

/// Returns what follows a worker's exit, for messages.
pub(crate) fn follow(follow: Successor) -> String {
    match follow {
        Successor::New(Duration::ZERO) => "replacing it at once".to_owned(),
        Successor::New(wait) => format!("trying again in {wait:.1?}"),
        Successor::Known(worker) => format!("worker {worker} replaces it"),
        Successor::Refused => "not replacing it: its generation does not serve".to_owned(),
        Successor::None => String::new(),
    }
}

/// Returns the last lines that a worker wrote, without terminals' escape sequences, escaped and
/// bounded.
pub(crate) fn stderr_tail(bytes: &[u8]) -> String {
    let text = without_escapes(&String::from_utf8_lossy(bytes));
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !is_remark(line))
        .collect();
    let last = lines[lines.len().saturating_sub(MAX_LINES)..].join("\n");
    let escaped: String = last.escape_debug().collect();
    match escaped.char_indices().rev().nth(MAX_CHARACTERS - 1) {
        Some((start, _)) if start > 0 => format!("...{}", &escaped[start..]),
        _ => escaped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stderr_tail_is_the_last_lines_escaped_and_bounded() {
        assert_eq!(stderr_tail(b""), "");
        assert_eq!(
            stderr_tail(b"one\ntwo\n\nthree\nfour\n"),
            "two\\nthree\\nfour"
        );
        assert_eq!(stderr_tail(b"\x1b[31mred\xff\""), "red\u{fffd}\\\"");
        let long = stderr_tail(&[b'x'; 4096]);
        assert_eq!((long.len(), &long[..4]), (MAX_CHARACTERS + 3, "...x"));
        assert!(stderr_tail("ä".repeat(2048).as_bytes()).ends_with('ä'));
    }

    #[test]
    fn a_request_that_began_in_the_future_has_no_age() {
        let reading = Reading {
            busy: 1,
            oldest: 2000,
            ..Reading::default()
        };
        assert_eq!(oldest(&reading, 3500), Some(Duration::from_millis(1500)));
        assert_eq!(oldest(&reading, 1999), None);
    }
}
