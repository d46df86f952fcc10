//! What the core decided, told to people: one log line a fact, with everything that identifies a worker.

use super::notify::Notifier;
use crate::core::{Command, Fact, Stall, Who};
use log::{error, info, warn};
use nix::unistd::Pid;
use std::time::Duration;

/// A worker as a line names it.
struct Named(Who, Option<Pid>);

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Who { worker, slot, generation } = self.0;
        write!(f, "worker {worker} (slot {slot}, generation {generation}")?;
        match self.1 {
            Some(pid) => write!(f, ", pid {pid})"),
            None => f.write_str(")"),
        }
    }
}

/// Logs a line about a worker, with its numbers as fields for machines.
macro_rules! tell {
    ($level:ident, $named:expr, $($text:tt)+) => {{
        let Named(who, pid) = &$named;
        log::$level!(
            worker = who.worker.0, slot = who.slot.0, generation = who.generation.0, pid = pid.map_or(0, Pid::as_raw);
            "{} {}", $named, format_args!($($text)+)
        );
    }};
}

/// In how long a slot is filled again, in words.
fn again(wait: Option<Duration>) -> String {
    match wait {
        None => "not replacing it, since its generation does not serve".to_owned(),
        Some(Duration::ZERO) => "replacing it at once".to_owned(),
        Some(wait) => format!("trying again in {wait:.1?}"),
    }
}

/// What a worker that does not serve has done, in words.
fn stalled(why: Stall, span: Duration) -> String {
    match why {
        Stall::Silent => format!("missed its heartbeat for {span:.1?}"),
        Stall::Stuck => format!("took nothing out of its queue for {span:.1?}"),
        Stall::Overdue => format!("has had a request in hand for {span:.1?}"),
    }
}

fn command_name(command: &Command) -> &'static str {
    match command {
        Command::Reload(_) => "reload",
        Command::Resize(by) if *by > 0 => "one worker more",
        Command::Resize(_) => "one worker fewer",
        Command::DrainAll => "drain of all workers",
        Command::Stop => "stop",
        Command::StopNow => "quick stop",
    }
}

/// Logs a fact. `pid` is that of the worker it is about, where it is known.
pub(super) fn log(fact: &Fact, pid: Option<Pid>) {
    let named = |who: &Who| Named(*who, pid);
    match fact {
        // The line comes when its pid is known.
        Fact::Spawning(_) => {}
        Fact::WorkerReady(who, after) => tell!(info, named(who), "is ready after {after:.1?}"),
        Fact::Stalled(who, why, span) => {
            tell!(
                warn,
                named(who),
                "is stalled, it {}; it gets no new connections while others can take them",
                stalled(*why, *span)
            )
        }
        Fact::Resumed(who, span) => {
            tell!(info, named(who), "serves again after {span:.1?} and gets new connections")
        }
        Fact::Hung(who, why, span) => {
            tell!(error, named(who), "{}; sending SIGABRT, then SIGKILL in 2 s", stalled(*why, *span));
        }
        Fact::StartTimedOut(who, timeout, proof) => {
            tell!(
                error,
                named(who),
                "did not get ready within {timeout:?}{proof}; sending SIGABRT, then SIGKILL in 2 s"
            );
        }
        Fact::Condemned(who, reason) => tell!(error, named(who), "{reason}; sending SIGKILL"),
        Fact::LeavesUnasked(who, wait) => {
            tell!(warn, named(who), "drains although it was not asked to; {}", again(*wait))
        }
        Fact::Draining(who, why) => tell!(info, named(who), "drains: {why}"),
        Fact::DrainTimedOut(who, timeout) => {
            tell!(warn, named(who), "did not finish draining within {timeout:?}; sending SIGKILL");
        }
        // The line needs more than the core knows: see `deaths`.
        Fact::Died(..) => {}
        Fact::ServerReady(generation, workers) => {
            info!(generation = generation.0, workers = workers; "ready: {workers} workers of generation {generation} serve");
        }
        Fact::Degraded(slots, reason) => {
            warn!(slots = slots; "degraded: {slots} slots are empty since their workers keep failing; the last one: {reason}");
        }
        Fact::Recovered => info!("recovered: every slot is filled again"),
        Fact::ReloadBegan(generation) => {
            info!(generation = generation.0; "reload: preparing generation {generation}")
        }
        Fact::ReloadWaits => info!("reload: waiting until the workers of another generation have left"),
        Fact::Reloaded(generation, workers) => {
            info!(generation = generation.0, workers = workers; "reloaded: {workers} workers of generation {generation} serve");
        }
        Fact::ReloadFailed(refused, serving, reason) => {
            error!(generation = serving.0, refused = refused.0; "reload failed, generation {serving} goes on serving: {reason}");
        }
        Fact::Resized(from, to) => info!(workers = to; "scaling from {from} to {to} workers"),
        Fact::Stragglers(slot, waiting) => {
            info!(slot = slot.0, waiting = waiting; "slot {slot} is retired, but connections wait in its queue; starting a worker for them");
        }
        Fact::Ignored(command, why) => warn!("ignoring the {}: {why}", command_name(command)),
        Fact::DrainingAll => info!("all workers drain, the sockets stay (reload to start workers again)"),
        Fact::Stopping(None) => info!("stopping at once"),
        Fact::Stopping(Some(grace)) => info!("stopping: workers have {grace:?} to finish"),
        Fact::Hopeless(reason) => error!("giving up, no worker can be started: {reason}"),
        Fact::Overslept(gap) => {
            warn!("the supervisor itself was stopped for {gap:.1?}; putting every deadline off by as much");
        }
    }
}

/// Whom a fact is about.
pub(super) fn subject(fact: &Fact) -> Option<Who> {
    match fact {
        Fact::Spawning(who)
        | Fact::WorkerReady(who, _)
        | Fact::Stalled(who, _, _)
        | Fact::Resumed(who, _)
        | Fact::Hung(who, _, _)
        | Fact::StartTimedOut(who, _, _)
        | Fact::Condemned(who, _)
        | Fact::LeavesUnasked(who, _)
        | Fact::Draining(who, _)
        | Fact::DrainTimedOut(who, _)
        | Fact::Died(who, _) => Some(*who),
        Fact::ServerReady(..)
        | Fact::Degraded(..)
        | Fact::Recovered
        | Fact::ReloadBegan(_)
        | Fact::ReloadWaits
        | Fact::Reloaded(..)
        | Fact::ReloadFailed(..)
        | Fact::Resized(..)
        | Fact::Stragglers(..)
        | Fact::Ignored(..)
        | Fact::DrainingAll
        | Fact::Stopping(_)
        | Fact::Hopeless(_)
        | Fact::Overslept(_) => None,
    }
}

/// Tells systemd what concerns it. Every RELOADING=1 is followed by a READY=1, or the unit would hang in "reloading".
///
/// # Errors
/// Those of the notifier: `WouldBlock` means that it has to be told again.
pub(super) fn tell_systemd(notifier: &Notifier, fact: &Fact, booted: bool) -> std::io::Result<()> {
    match fact {
        Fact::ServerReady(_, workers) => notifier.ready(&format!("{workers} workers serve")),
        // Before the first READY=1 the unit is starting, and a reload is part of that.
        Fact::ReloadBegan(generation) if booted => {
            notifier.reloading(&format!("reloading: trying generation {generation}"))
        }
        Fact::Reloaded(generation, workers) if booted => {
            notifier.ready(&format!("{workers} workers of generation {generation} serve"))
        }
        Fact::ReloadFailed(_, serving, reason) if booted => {
            notifier.ready(&format!("generation {serving} serves; the last reload failed: {reason}"))
        }
        Fact::Degraded(slots, reason) => {
            notifier.status(&format!("degraded: {slots} slots are empty: {reason}"))
        }
        Fact::Recovered => notifier.status("every slot is filled again"),
        Fact::Resized(_, to) => notifier.status(&format!("scaling to {to} workers")),
        Fact::DrainingAll => notifier.status("all workers drain"),
        Fact::Stopping(_) => notifier.stopping("stopping"),
        Fact::Hopeless(reason) => notifier.stopping(&format!("giving up: {reason}")),
        _ => Ok(()),
    }
}

/// What a client that waits for a reload's verdict is told meanwhile.
pub(super) fn progress(fact: &Fact) -> Option<String> {
    match fact {
        Fact::ReloadBegan(generation) => Some(format!("trying generation {generation}")),
        Fact::ReloadWaits => Some("waiting until the workers of another generation have left".to_owned()),
        Fact::WorkerReady(who, _) => Some(format!("{} is ready", Named(*who, None))),
        _ => None,
    }
}
