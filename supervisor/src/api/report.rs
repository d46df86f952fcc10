//! Decisions of the core as events: one record per fact, with everything that identifies the
//! worker.

use super::events::EventRecord;
use super::worker_exit;
use crate::config::NEVER;
use log::Level;
use nix::unistd::Pid;
use prefork_core::{Command, Fact, RecycleReason, ScaleReason, Stall, WorkerRef};
use std::time::Duration;

/// A worker, as a line of the log names it.
struct Named(WorkerRef, Option<Pid>);

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let WorkerRef {
            worker,
            slot,
            generation,
        } = self.0;
        write!(f, "worker {worker} (slot {slot}, generation {generation}")?;
        match self.1 {
            Some(pid) => write!(f, ", pid {pid})"),
            None => f.write_str(")"),
        }
    }
}

/// Describes what a stalled worker has done.
fn stalled(why: Stall, span: Duration) -> String {
    match why {
        Stall::Silent => format!("missed its heartbeat for {span:.1?}"),
        Stall::Stuck => format!("took nothing out of its queue for {span:.1?}"),
        Stall::Overdue => format!("has had an active request for {span:.1?}"),
    }
}

/// Describes the limit that a worker has reached.
fn reached(excess: RecycleReason) -> String {
    let mib = |bytes: u64| f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0;
    match excess {
        RecycleReason::Requests(served, most) => {
            format!("it has served {served} requests (limit {most})")
        }
        RecycleReason::Age(age, most) => format!("it is {age:.1?} old (limit {most:.1?})"),
        RecycleReason::Memory(used, most) => {
            format!(
                "it uses {:.1} MiB of memory (limit {:.1} MiB)",
                mib(used),
                mib(most)
            )
        }
    }
}

/// Returns the same as fields: which limit, how much of it was used, how much it is. Ages are in
/// milliseconds.
fn numbers(excess: RecycleReason) -> (&'static str, u64, u64) {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    match excess {
        RecycleReason::Requests(served, most) => ("requests", served, most),
        RecycleReason::Age(age, most) => ("age", millis(age), millis(most)),
        RecycleReason::Memory(used, most) => ("memory", used, most),
    }
}

fn command_name(command: &Command) -> String {
    match command {
        Command::Reload(_) => "reload".to_owned(),
        Command::Resize(by) if *by > 0 => "addition of a worker".to_owned(),
        Command::Resize(_) => "removal of a worker".to_owned(),
        Command::Scale(to, _) => format!("scaling to {to} workers"),
        Command::Restart(slot, _) => format!("restart of slot {slot}"),
        Command::Drain(slot, _) => format!("drain of slot {slot}"),
        Command::DrainAll => "drain of all workers".to_owned(),
        Command::Stop => "stop".to_owned(),
        Command::StopNow => "quick stop".to_owned(),
    }
}

/// Returns the record of a fact. `None` for a worker's start and exit, whose lines need more than
/// the core knows: its pid, and how it ended (see [`worker_exit`]). `pid` is the process of the
/// worker that the fact is about, where it is known.
pub(crate) fn to_event(fact: &Fact, pid: Option<Pid>) -> Option<EventRecord> {
    use Level::{Error, Info, Warn};
    let about =
        |kind: &'static str, level: Level, who: &WorkerRef, text: std::fmt::Arguments<'_>| {
            of_worker(kind, level, *who, pid, text)
        };
    Some(match fact {
        Fact::Spawning(_) | Fact::Died(..) => return None,
        Fact::WorkerReady(who, after) => {
            about("ready", Info, who, format_args!("is ready after {after:.1?}"))
        }
        Fact::Stalled(who, why, span) => {
            let how = stalled(*why, *span);
            let text =
                format_args!("is stalled: it {how}; out of rotation while others can serve");
            about("stalled", Warn, who, text)
        }
        Fact::Resumed(who, span) => {
            let text = format_args!("serves again after {span:.1?}, back in rotation");
            about("resumed", Info, who, text)
        }
        Fact::Hung(who, why, span) => {
            let how = stalled(*why, *span);
            about("hung", Error, who, format_args!("{how}; sending SIGABRT, then SIGKILL in 2 s"))
        }
        Fact::StartTimedOut(who, timeout, proof) => {
            let text = format_args!(
                "did not get ready within {timeout:?}{proof}; sending SIGABRT, then SIGKILL in 2 s"
            );
            about("start-timeout", Error, who, text)
        }
        Fact::ProtocolViolation(who, reason) => {
            about("protocol-violation", Error, who, format_args!("{reason}; sending SIGKILL"))
        }
        Fact::LeavesUnasked(who, follow) => {
            let follow = worker_exit::follow(*follow);
            about("leaving", Warn, who, format_args!("drains without being asked to; {follow}"))
        }
        Fact::Draining(who, why) => about("draining", Info, who, format_args!("drains: {why}")),
        Fact::DrainTimedOut(who, timeout) => {
            let text = format_args!("did not finish draining within {timeout:?}; sending SIGKILL");
            about("drain-timeout", Warn, who, text)
        }
        Fact::ServerReady(generation, workers) => {
            let text = format!("ready: {workers} workers of generation {generation} serve");
            EventRecord::new("server-ready", Info, text).with("generation", generation.0).with("workers", *workers)
        }
        Fact::Degraded(slots, reason) => EventRecord::new(
            "degraded",
            Warn,
            format!(
                "degraded: {slots} slots are empty because their workers keep failing; last failure: {reason}"
            ),
        )
        .with("slots", *slots),
        Fact::Recovered => EventRecord::new("recovered", Info, "recovered: every slot is filled again"),
        Fact::ReloadBegan(generation) => {
            EventRecord::new("reload-began", Info, format!("reload: preparing generation {generation}"))
                .with("generation", generation.0)
        }
        Fact::ReloadWaits => {
            let text = "reload: waiting for the workers of another generation to exit";
            EventRecord::new("reload-waits", Info, text)
        }
        Fact::Reloaded(generation, workers) => {
            let text = format!("reloaded: {workers} workers of generation {generation} serve");
            EventRecord::new("reloaded", Info, text).with("generation", generation.0).with("workers", *workers)
        }
        Fact::ReloadFailed(refused, serving, reason) => EventRecord::new(
            "reload-failed",
            Error,
            format!("reload failed, generation {serving} keeps serving: {reason}"),
        )
        .with("generation", serving.0)
        .with("refused", refused.0)
        .with("reason", reason.as_str()),
        Fact::Resized(from, to) => {
            EventRecord::new("resized", Info, format!("scaling from {from} to {to} workers")).with("workers", *to)
        }
        Fact::Scaled { from, to, reason } => {
            let (word, why) = reason_of(*reason);
            EventRecord::new("scaled", Info, format!("scaling from {from} to {to} workers: {why}"))
                .with("from", *from)
                .with("workers", *to)
                .with("reason", word)
        }
        Fact::NoMemory { workers, used } => {
            let text = format!(
                "not scaling up: {workers} workers use {} MiB, one more would exceed scale-up-memory",
                used >> 20
            );
            EventRecord::new("no-memory", Warn, text).with("workers", *workers).with("used", *used)
        }
        Fact::Restarting(who) => about(
            "restarting",
            Info,
            who,
            format_args!("is being replaced; it serves until its replacement is ready"),
        ),
        Fact::Recycling(who, excess) => {
            let text =
                format_args!("is being recycled: {}; it serves until its replacement is ready", reached(*excess));
            let (word, used, most) = numbers(*excess);
            about("recycling", Info, who, text).with("limit", word).with("used", used).with("most", most)
        }
        Fact::NotReplaced(who, reason) => {
            let text = format_args!("could not be replaced and keeps serving: {reason}");
            about("not-replaced", Warn, who, text)
        }
        Fact::Holding(slot) => EventRecord::new(
            "holding",
            Info,
            format!(
                "slot {slot} is held empty (restart-worker {slot} or a reload fills it again)"
            ),
        )
        .with("slot", slot.0),
        Fact::Released(slot) => {
            EventRecord::new("released", Info, format!("slot {slot} is no longer held empty"))
                .with("slot", slot.0)
        }
        Fact::Stranded(slot, waiting) => EventRecord::new(
            "stranded",
            Info,
            format!("slot {slot} has no worker, but connections wait in its queue; starting a rescue worker"),
        )
        .with("slot", slot.0)
        .with("waiting", *waiting),
        Fact::Ignored(command, why) => {
            EventRecord::new("ignored", Warn, format!("ignoring the {}: {why}", command_name(command)))
        }
        Fact::DrainingAll => EventRecord::new(
            "draining-all",
            Info,
            "draining all workers, the sockets stay (reload to start workers again)",
        ),
        Fact::PreStop(delay) => EventRecord::new(
            "pre-stop",
            Info,
            format!(
                "stopping in {delay:?}: no longer ready, still serving (a second signal stops now)"
            ),
        )
        .with("delay_ms", u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
        Fact::Stopping(None) => EventRecord::new("stopping", Info, "stopping at once"),
        Fact::Stopping(Some(grace)) => {
            let time = if *grace >= NEVER {
                "as long as they need".to_owned()
            } else {
                format!("{grace:?}")
            };
            EventRecord::new("stopping", Info, format!("stopping: workers have {time} to finish"))
        }
        Fact::StartupFailed(reason) => {
            EventRecord::new("startup-failed", Error, format!("giving up, no worker can be started: {reason}"))
        }
        Fact::SupervisorStalled(gap) => EventRecord::new(
            "supervisor-stalled",
            Warn,
            format!("the supervisor itself was stalled for {gap:.1?}; every deadline is extended by as much"),
        ),
    })
}

/// Returns why autoscaling has changed the number of workers, as a field and as text.
fn reason_of(reason: ScaleReason) -> (&'static str, String) {
    match reason {
        ScaleReason::Backlog(1) => ("backlog", "1 connection waiting, no idle worker".to_owned()),
        ScaleReason::Backlog(waiting) => (
            "backlog",
            format!("{waiting} connections waiting, no idle worker"),
        ),
        ScaleReason::Busy(percent) => ("busy", format!("{percent} % busy")),
        ScaleReason::Unneeded(slot, span) => {
            let span = humantime::format_duration(Duration::from_secs(span.as_secs()));
            ("unneeded", format!("slot {slot} was not needed for {span}"))
        }
    }
}

/// Returns a record about a worker, with its numbers as fields.
pub(crate) fn of_worker(
    kind: &'static str,
    level: Level,
    who: WorkerRef,
    pid: Option<Pid>,
    text: std::fmt::Arguments<'_>,
) -> EventRecord {
    let event = EventRecord::new(kind, level, format!("{} {text}", Named(who, pid)))
        .with("worker", who.worker.0)
        .with("slot", who.slot.0)
        .with("generation", who.generation.0);
    match pid {
        Some(pid) => event.with("pid", pid.as_raw()),
        None => event,
    }
}

/// Returns the worker that a fact is about.
pub(crate) fn subject(fact: &Fact) -> Option<WorkerRef> {
    match fact {
        Fact::Spawning(who)
        | Fact::WorkerReady(who, _)
        | Fact::Stalled(who, _, _)
        | Fact::Resumed(who, _)
        | Fact::Hung(who, _, _)
        | Fact::StartTimedOut(who, _, _)
        | Fact::ProtocolViolation(who, _)
        | Fact::LeavesUnasked(who, _)
        | Fact::Draining(who, _)
        | Fact::Restarting(who)
        | Fact::Recycling(who, _)
        | Fact::NotReplaced(who, _)
        | Fact::DrainTimedOut(who, _)
        | Fact::Died(who, _) => Some(*who),
        Fact::ServerReady(..)
        | Fact::Degraded(..)
        | Fact::Recovered
        | Fact::ReloadBegan(_)
        | Fact::ReloadWaits
        | Fact::Reloaded(..)
        | Fact::ReloadFailed(..)
        | Fact::Holding(_)
        | Fact::Released(_)
        | Fact::Resized(..)
        | Fact::Scaled { .. }
        | Fact::NoMemory { .. }
        | Fact::Stranded(..)
        | Fact::Ignored(..)
        | Fact::DrainingAll
        | Fact::PreStop(_)
        | Fact::Stopping(_)
        | Fact::StartupFailed(_)
        | Fact::SupervisorStalled(_) => None,
    }
}

/// Returns what a client that waits for a reload's verdict reads meanwhile.
pub(crate) fn progress(fact: &Fact) -> Option<String> {
    match fact {
        Fact::ReloadBegan(generation) => Some(format!("trying generation {generation}")),
        Fact::ReloadWaits => {
            Some("waiting for the workers of another generation to exit".to_owned())
        }
        Fact::Spawning(who) => Some(format!("starting {}", Named(*who, None))),
        Fact::WorkerReady(who, _) => Some(format!("{} is ready", Named(*who, None))),
        _ => None,
    }
}
