//! The supervisor's handle of a worker: its process, and its line to the supervisor.
//!
//! A message counts only where the present phase allows it, and the rate of messages is limited. A
//! message that is out of phase, undecodable or one too many becomes [`Event::ProtocolViolation`];
//! nothing here can fail because of what a worker sends.

use super::proc_stat;
use super::process_tree::with_descendants;
use crate::config::{Config, KillMode};
use crate::logging::stderr::Capture;
use crate::process::reap::{Death, Usage};
use crate::process::spawn::{ExecErrors, ExecFailure};
use crate::systemd::notify::WorkerNotice;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use prefork_core::{Event, Time, WorkerLoad, WorkerSample};
use prefork_os::monotonic_ms;
use prefork_protocol::channel::{ChannelError, Received, SupervisorEnd};
use prefork_protocol::message::{Drain, PROTOCOL, ToSupervisor, ToWorker};
use prefork_protocol::scoreboard::{Reading, SharedRows};
use prefork_protocol::{GenerationId, Slot, WorkerId};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// The most messages taken from one worker before others have their turn.
const MESSAGES_PER_TURN: u32 = 16;
/// The most messages a worker may send in a second.
const MESSAGES_PER_SECOND: u32 = 100;
/// The most notices a program may send in a second: it may report its status at each request.
const NOTICES_PER_SECOND: u32 = 1000;
/// How long a worker may live after it has closed its channel.
const EXIT_GRACE: Duration = Duration::from_secs(1);
/// The longest status text that is stored, in characters.
const MAX_STATUS: usize = 200;

/// A worker process, and what it has said.
#[derive(Debug)]
pub(crate) struct WorkerHandle {
    pub(crate) id: WorkerId,
    pub(crate) slot: Slot,
    pub(crate) generation: GenerationId,
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) exec_errors: ExecErrors,
    pub(crate) line: Line,
    /// Its standard error, if that goes through us.
    pub(crate) stderr: Option<Capture>,
    /// Its rows of the scoreboard; an external program has none.
    pub(crate) rows: Option<SharedRows>,
    /// Its status, in its own words.
    pub(crate) status: String,
    /// How it fails to accept from its sockets, as a probe has seen.
    pub(crate) problem: Option<String>,
    /// It has exited, others of its process group drain, and this is when to look again.
    pub(crate) outlived: Option<Time>,
    /// What an external program has counted, in its own words.
    pub(crate) reported: Reported,
    /// What to do at a time, unless something else happens first.
    pub(crate) alarm: Option<(Time, Alarm)>,
    /// Its proportional set size in bytes, at the last measurement.
    pub(crate) memory: Option<u64>,
    /// The reopen count of the access log that it was given last.
    pub(crate) reopen_count: u64,
    /// How it ended, from its reaping until its exit is reported.
    pub(crate) exit: Option<ExitRecord>,
}

/// What an external program counts, as far as it has said so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reported {
    /// Requests answered since it started.
    pub(crate) requests: Option<u64>,
    /// Active requests.
    pub(crate) active: Option<u64>,
}

/// What is known of an exited worker.
#[derive(Debug)]
pub(crate) struct ExitRecord {
    pub(crate) pid: Pid,
    /// How it ended; `None` when that is not known.
    pub(crate) death: Option<Death>,
    /// Why it did not become its program.
    pub(crate) failure: Option<ExecFailure>,
    /// Whether the kernel killed it for want of memory; `None` when that is not known.
    pub(crate) oom: Option<bool>,
    pub(crate) usage: Usage,
    /// Its rows of the scoreboard; an external program has none.
    pub(crate) reading: Option<Reading>,
    /// The end of what it has written to its standard error.
    pub(crate) stderr_tail: Vec<u8>,
}

/// What to do about a worker at a certain time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// It has said nothing and lives: it counts as ready.
    CountsAsReady,
    /// It has closed its channel and lives: it is terminated.
    ChannelClosed,
}

/// How a worker talks to the supervisor.
#[derive(Debug)]
pub(crate) enum Line {
    /// A Rust worker, on its channel.
    Channel {
        channel: SupervisorEnd,
        phase: Phase,
        allowance: Allowance,
    },
    /// An external program, through the notification socket: by what signal it drains, whether it
    /// is ready, whether it has said so itself (or was seen to be), and when it last fed the
    /// watchdog, if ever.
    Notify {
        stop: Signal,
        ready: bool,
        greeted: bool,
        fed: Option<Time>,
        allowance: Allowance,
    },
    /// It has closed its channel.
    Closed,
}

/// What a Rust worker may say now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Hello.
    Silent,
    /// That it is ready, or that it fails.
    Greeted,
    /// Its status, and that it drains.
    Ready,
}

/// What a worker has done against the protocol. It is terminated for that.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolViolation {
    /// It was built from another release.
    #[error("speaks protocol {0}, this supervisor {PROTOCOL} (build both from the same release)")]
    Version(u16),
    /// It has said something that the present phase does not allow.
    #[error("said {0:?} out of phase ({1:?})")]
    OutOfPhase(ToSupervisor, Phase),
    /// It has sent too many messages.
    #[error("sent more than {MESSAGES_PER_SECOND} messages in a second")]
    TooManyMessages,
    /// It, or one of its descendants, has sent too many notices.
    #[error("sent more than {NOTICES_PER_SECOND} notices in a second")]
    TooManyNotices,
    /// What came from its channel is no message.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Its channel takes no message.
    #[error("cannot be asked to drain: {0}")]
    CannotDrain(#[source] ChannelError),
    /// It has closed its channel without exiting.
    #[error("closed its channel and went on living")]
    ChannelClosed,
}

/// How many messages are left in this second.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Allowance {
    since: Time,
    used: u32,
}

impl Allowance {
    /// Counts a message. Returns whether it is within the limit.
    fn spend(&mut self, now: Time, limit: u32) -> bool {
        if now - self.since >= Duration::from_secs(1) {
            *self = Self {
                since: now,
                used: 0,
            };
        }
        self.used = self.used.saturating_add(1);
        self.used <= limit
    }
}

impl WorkerHandle {
    /// Reads what waits in the channel, up to a bound.
    pub(crate) fn listen(&mut self, now: Time) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..MESSAGES_PER_TURN {
            let Line::Channel {
                channel, allowance, ..
            } = &mut self.line
            else {
                break;
            };
            match channel.receive() {
                Ok(Received::Nothing) => break,
                Ok(Received::Closed) => {
                    self.line = Line::Closed;
                    self.alarm = Some((now + EXIT_GRACE, Alarm::ChannelClosed));
                    break;
                }
                Ok(Received::Message(message)) => {
                    if !allowance.spend(now, MESSAGES_PER_SECOND) {
                        events.push(self.violation(&ProtocolViolation::TooManyMessages));
                        break;
                    }
                    match self.hear(message) {
                        Ok(event) => events.extend(event),
                        Err(violation) => {
                            events.push(self.violation(&violation));
                            break;
                        }
                    }
                }
                Err(error) => {
                    events.push(self.violation(&error.into()));
                    break;
                }
            }
        }
        events
    }

    /// Takes one message; returns the event that it means, if any.
    fn hear(&mut self, message: ToSupervisor) -> Result<Option<Event>, ProtocolViolation> {
        let id = self.id;
        let Line::Channel { phase, .. } = &mut self.line else {
            return Ok(None);
        };
        match (message, *phase) {
            (ToSupervisor::Hello { protocol: PROTOCOL }, Phase::Silent) => {
                *phase = Phase::Greeted;
                Ok(None)
            }
            (ToSupervisor::Hello { protocol }, Phase::Silent) => {
                Err(ProtocolViolation::Version(protocol))
            }
            (ToSupervisor::Ready, Phase::Greeted) => {
                *phase = Phase::Ready;
                Ok(Some(Event::Ready(id)))
            }
            (ToSupervisor::Failed { reason }, Phase::Greeted) => {
                Ok(Some(Event::Failed(id, plain(&reason))))
            }
            (ToSupervisor::Draining, Phase::Greeted | Phase::Ready) => {
                Ok(Some(Event::StoppedAccepting(id)))
            }
            (ToSupervisor::Status { text }, Phase::Greeted | Phase::Ready) => {
                self.status = plain(&text);
                Ok(None)
            }
            (message, phase) => Err(ProtocolViolation::OutOfPhase(message, phase)),
        }
    }

    /// Counts a datagram with notices from this program or one of its descendants. Returns an event
    /// if it is one too many.
    pub(crate) fn count_notice(&mut self, now: Time) -> Option<Event> {
        let Line::Notify { allowance, .. } = &mut self.line else {
            return None;
        };
        let within = allowance.spend(now, NOTICES_PER_SECOND);
        (!within).then(|| self.violation(&ProtocolViolation::TooManyNotices))
    }

    /// Takes a notice of this program or one of its descendants.
    pub(crate) fn notice(&mut self, now: Time, notice: WorkerNotice) -> Option<Event> {
        let id = self.id;
        let Line::Notify {
            ready,
            greeted,
            fed,
            ..
        } = &mut self.line
        else {
            return None;
        };
        match notice {
            WorkerNotice::Ready => {
                self.alarm = None;
                *greeted = true;
                return (!std::mem::replace(ready, true)).then_some(Event::Ready(id));
            }
            WorkerNotice::Status(text) => self.status = plain(&text),
            // A counter that goes back is not one.
            WorkerNotice::Requests(count) => {
                self.reported.requests = self.reported.requests.max(Some(count));
            }
            WorkerNotice::Active(count) => self.reported.active = Some(count),
            WorkerNotice::Watchdog => *fed = Some(now),
            // It speaks the protocol, so it is not ready before it says so.
            WorkerNotice::ExtendTimeout(_) => self.alarm = None,
            WorkerNotice::Stopping => return Some(Event::StoppedAccepting(id)),
        }
        None
    }

    /// Takes note that it waits for connections, as the readiness probe has seen.
    pub(crate) fn seen_to_wait(&mut self) -> Option<Event> {
        let Line::Notify { ready, greeted, .. } = &mut self.line else {
            return None;
        };
        *greeted = true;
        (!std::mem::replace(ready, true)).then_some(Event::Ready(self.id))
    }

    /// Whether it is an external program that counts as ready.
    pub(crate) fn counts_as_ready(&self) -> bool {
        matches!(self.line, Line::Notify { ready: true, .. })
    }

    /// Whether it is an external program that is not ready yet.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self.line, Line::Notify { ready: false, .. })
    }

    /// Handles its alarm, whose time has come.
    pub(crate) fn ring(&mut self) -> Option<Event> {
        let (_, alarm) = self.alarm.take()?;
        match (alarm, &mut self.line) {
            (Alarm::CountsAsReady, Line::Notify { ready, .. }) => {
                (!std::mem::replace(ready, true)).then_some(Event::Ready(self.id))
            }
            (Alarm::ChannelClosed, _) => Some(self.violation(&ProtocolViolation::ChannelClosed)),
            (Alarm::CountsAsReady, _) => None,
        }
    }

    /// Returns what it has written on the scoreboard.
    pub(crate) fn reading(&self) -> Option<Reading> {
        self.rows.as_ref().map(SharedRows::read)
    }

    /// Returns its load, with its memory if that is asked for.
    pub(crate) fn load(&self, config: &Config, memory: bool) -> WorkerLoad {
        let row = self.reading();
        let class = config.class();
        let capacity = u64::from(class.threads) * u64::from(class.connections);
        let spent = match (&self.rows, config.requests_per_worker()) {
            (Some(rows), Some(_)) => Some(rows.busy_time(monotonic_ms())),
            (Some(_) | None, _) => with_descendants(self.pid)
                .into_iter()
                .filter_map(proc_stat::cpu_time)
                .reduce(Duration::saturating_add),
        };
        WorkerLoad {
            spent: spent.unwrap_or_default(),
            in_flight: row.map(|row| u32::try_from(row.busy).unwrap_or(u32::MAX)),
            filled: row.map_or(0.0, |row| match config.requests_per_worker() {
                Some(_) => 0.0,
                None => float(row.open) / float(capacity.max(1)),
            }),
            memory: memory
                .then(|| with_descendants(self.pid).into_iter())
                .and_then(|all| {
                    all.filter_map(proc_stat::private_memory)
                        .reduce(u64::saturating_add)
                }),
        }
    }

    /// Returns its signs of life.
    pub(crate) fn sample(&self, now: Time) -> WorkerSample {
        let row = self.reading().unwrap_or_default();
        match &self.line {
            Line::Channel { .. } | Line::Closed => WorkerSample {
                heard: Time::from_millis(row.heartbeat),
                beats: true,
                greeted: true,
                done: Some(row.connections.wrapping_add(row.requests)),
                oldest: (row.oldest > 0).then(|| Time::from_millis(row.oldest)),
                requests: Some(row.requests),
                memory: self.memory,
            },
            // A program that never fed the watchdog has not opted in.
            Line::Notify { fed, greeted, .. } => WorkerSample {
                heard: fed.unwrap_or(now),
                beats: fed.is_some(),
                // One that listens elsewhere is not starting any more.
                greeted: *greeted || self.problem.is_some(),
                done: None,
                oldest: None,
                requests: None,
                memory: self.memory,
            },
        }
    }

    /// Asks the worker to drain: an external program alone, or with its process group.
    pub(crate) fn drain(
        &mut self,
        now: Time,
        grace: Duration,
        empty_queue: bool,
        mode: KillMode,
    ) -> Option<Event> {
        match &mut self.line {
            Line::Channel { channel, .. } => {
                let deadline_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                let asked = channel.send(&ToWorker::Drain(Drain {
                    deadline_ms,
                    empty_queue,
                }));
                match asked {
                    Ok(()) => None,
                    // It has exited already, or is about to: what it has said last is read before
                    // its death is judged. One that lives on hears nothing, and is terminated.
                    Err(ChannelError::Closed) => {
                        self.alarm
                            .get_or_insert((now + EXIT_GRACE, Alarm::ChannelClosed));
                        None
                    }
                    Err(error) => Some(self.violation(&ProtocolViolation::CannotDrain(error))),
                }
            }
            Line::Notify { stop, .. } => {
                let stop = *stop;
                match mode {
                    KillMode::Mixed => self.signal(stop),
                    KillMode::ControlGroup => self.signal_group(stop),
                }
                None
            }
            Line::Closed => None,
        }
    }

    fn violation(&self, violation: &ProtocolViolation) -> Event {
        Event::ProtocolViolation(self.id, violation.to_string())
    }

    /// Sends a signal to the worker. It cannot reach another process: the pidfd names the worker
    /// even when its pid is reused.
    pub(crate) fn signal(&self, signal: Signal) {
        // It fails only when the worker is dead already.
        let _ = crate::process::spawn::send_signal(self.pidfd.as_fd(), signal);
    }

    /// Sends a signal to the worker's process group, which cannot be another one: see
    /// [`kill_group`](Self::kill_group).
    pub(crate) fn signal_group(&self, signal: Signal) {
        if nix::sys::signal::killpg(self.pid, signal).is_err() {
            // It was forked just now and has no process group yet.
            self.signal(signal);
        }
    }

    /// Whether others of the worker's process group live on although it has exited. It has not been
    /// reaped yet, or the group's number could be another's.
    pub(crate) fn is_outlived(&self) -> bool {
        let mut exited = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut exited, PollTimeout::ZERO).is_ok_and(|count| count > 0)
            && proc_stat::lives_in_group(self.pid)
    }

    /// Kills the worker and what it has started. Its process group cannot be another one: the
    /// worker, alive or not yet reaped, holds the number.
    pub(crate) fn kill_group(&self) {
        // A worker that was forked just now has no process group yet.
        self.signal(Signal::SIGKILL);
        let _ = nix::sys::signal::killpg(self.pid, Signal::SIGKILL);
    }
}

/// Returns a number of connections for a quotient. More than fit into 32 bits are a lie.
fn float(connections: u64) -> f64 {
    f64::from(u32::try_from(connections).unwrap_or(u32::MAX))
}

/// Returns text from a worker in a form that is safe in a log line.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(MAX_STATUS)
        .collect()
}
