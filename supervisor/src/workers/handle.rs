//! What the shell holds of a worker: its process, and its line to the supervisor.
//!
//! A worker's word counts only where the present phase allows it, and only so many words a second. Whatever is out
//! of phase, undecodable or too much becomes [`Event::ProtocolViolation`]; nothing here can fail because of what a worker
//! sends.

use super::proc_stat;
use crate::config::Config;
use crate::logging::stderr::Capture;
use crate::process::spawn::ExecErrors;
use crate::systemd::notify::WorkerNotice;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use prefork_core::{Event, Time, WorkerLoad, WorkerSample};
use prefork_os::monotonic_ms;
use prefork_protocol::channel::{Received, SupervisorEnd};
use prefork_protocol::message::{Drain, PROTOCOL, ToSupervisor, ToWorker};
use prefork_protocol::scoreboard::{Reading, SharedRows};
use prefork_protocol::{GenerationId, Slot, WorkerId};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// The most messages taken from one worker before others have their turn.
const AT_ONCE: u32 = 16;
/// The most messages a worker may send in a second.
const A_SECOND: u32 = 100;
/// The most notices a program may send in a second: it may tell its status at each request.
const NOTICES_A_SECOND: u32 = 1000;
/// How long a worker whose channel is closed may go on living.
const MUTE: Duration = Duration::from_secs(1);
/// The longest status text kept, in characters.
const STATUS: usize = 200;

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
    /// Its rows of the scoreboard; a foreign program has none.
    pub(crate) rows: Option<SharedRows>,
    /// What it says that it is doing.
    pub(crate) status: String,
    /// Something to do at a time, unless it is overtaken.
    pub(crate) alarm: Option<(Time, Alarm)>,
    /// It accepts no more connections, by its own word.
    pub(crate) quiet: bool,
    /// Its proportional set size in bytes, as it was measured last.
    pub(crate) memory: Option<u64>,
    /// Which edition of the access log it was given.
    pub(crate) edition: u64,
}

/// What to do with a worker at a certain time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// It has said nothing and lives: it counts as ready.
    CountsAsReady,
    /// It has closed its channel and lives: it is condemned.
    Mute,
}

/// How a worker talks.
#[derive(Debug)]
pub(crate) enum Line {
    /// A Rust worker, on its channel.
    Channel {
        channel: SupervisorEnd,
        phase: Phase,
        draining: bool,
        allowance: Allowance,
    },
    /// Any other program, through the notification socket: by what signal it drains, whether it is ready, whether it has
    /// said so itself (or was seen to be), and when it last fed the watchdog, if ever.
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

/// How many messages are left in this second.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Allowance {
    since: Time,
    used: u32,
}

impl Allowance {
    fn spend(&mut self, now: Time, most: u32) -> bool {
        if now - self.since >= Duration::from_secs(1) {
            *self = Self {
                since: now,
                used: 0,
            };
        }
        self.used = self.used.saturating_add(1);
        self.used <= most
    }
}

impl WorkerHandle {
    /// Takes what waits in the channel, up to a bound.
    pub(crate) fn listen(&mut self, now: Time) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..AT_ONCE {
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
                    self.alarm = Some((now + MUTE, Alarm::Mute));
                    break;
                }
                Ok(Received::Message(message)) => {
                    if !allowance.spend(now, A_SECOND) {
                        events.push(
                            self.condemn(&format!(
                                "sent more than {A_SECOND} messages in a second"
                            )),
                        );
                        break;
                    }
                    match self.hear(message) {
                        Ok(event) => events.extend(event),
                        Err(reason) => {
                            events.push(self.condemn(&reason));
                            break;
                        }
                    }
                }
                Err(error) => {
                    events.push(self.condemn(&error.to_string()));
                    break;
                }
            }
        }
        events
    }

    fn hear(&mut self, message: ToSupervisor) -> Result<Option<Event>, String> {
        let id = self.id;
        let Line::Channel {
            phase, draining, ..
        } = &mut self.line
        else {
            return Ok(None);
        };
        match (message, *phase) {
            (ToSupervisor::Hello { protocol: PROTOCOL }, Phase::Silent) => {
                *phase = Phase::Greeted;
                Ok(None)
            }
            (ToSupervisor::Hello { protocol }, Phase::Silent) => Err(format!(
                "speaks protocol {protocol}, this supervisor {PROTOCOL} (build both from the same release)"
            )),
            (ToSupervisor::Ready, Phase::Greeted) => {
                *phase = Phase::Ready;
                Ok(Some(Event::Ready(id)))
            }
            (ToSupervisor::Failed { reason }, Phase::Greeted) => {
                Ok(Some(Event::Failed(id, plain(&reason))))
            }
            // Asked to by somebody else, with a signal.
            (ToSupervisor::Draining, Phase::Greeted | Phase::Ready) => {
                self.quiet = true;
                Ok((!std::mem::replace(draining, true)).then_some(Event::Leaving(id)))
            }
            (ToSupervisor::Status { text }, Phase::Greeted | Phase::Ready) => {
                self.status = plain(&text);
                Ok(None)
            }
            (message, phase) => Err(format!("said {message:?} out of phase ({phase:?})")),
        }
    }

    /// A datagram with notices has come from this program or one of its descendants: whether it is one too many.
    pub(crate) fn overspend(&mut self, now: Time) -> Option<Event> {
        let Line::Notify { allowance, .. } = &mut self.line else {
            return None;
        };
        let within = allowance.spend(now, NOTICES_A_SECOND);
        (!within).then(|| {
            self.condemn(&format!(
                "sent more than {NOTICES_A_SECOND} notices in a second"
            ))
        })
    }

    /// A notice of this program or one of its descendants.
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
            WorkerNotice::Watchdog => *fed = Some(now),
            // It speaks the protocol, so its silence about being ready means something.
            WorkerNotice::ExtendTimeout(_) => self.alarm = None,
            WorkerNotice::Stopping => {
                self.quiet = true;
                return Some(Event::Leaving(id));
            }
        }
        None
    }

    /// It was seen to wait for connections.
    pub(crate) fn seen_to_wait(&mut self) -> Option<Event> {
        let Line::Notify { ready, greeted, .. } = &mut self.line else {
            return None;
        };
        *greeted = true;
        (!std::mem::replace(ready, true)).then_some(Event::Ready(self.id))
    }

    /// It is a program that is not ready yet.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self.line, Line::Notify { ready: false, .. })
    }

    /// The alarm went off.
    pub(crate) fn ring(&mut self) -> Option<Event> {
        let (_, alarm) = self.alarm.take()?;
        match (alarm, &mut self.line) {
            (Alarm::CountsAsReady, Line::Notify { ready, .. }) => {
                (!std::mem::replace(ready, true)).then_some(Event::Ready(self.id))
            }
            (Alarm::Mute, _) => Some(self.condemn("closed its channel and went on living")),
            (Alarm::CountsAsReady, _) => None,
        }
    }

    /// What it has written on the scoreboard.
    pub(crate) fn reading(&self) -> Option<Reading> {
        self.rows.as_ref().map(SharedRows::read)
    }

    /// How much it has to do; with its memory, if that is asked for.
    pub(crate) fn load(&self, config: &Config, memory: bool) -> WorkerLoad {
        let row = self.reading();
        let class = config.class();
        let capacity = u64::from(class.threads) * u64::from(class.connections);
        let spent = match (&self.rows, config.requests_per_worker()) {
            (Some(rows), Some(_)) => Some(rows.busy_time(monotonic_ms())),
            (Some(_) | None, _) => proc_stat::cpu_time(self.pid),
        };
        WorkerLoad {
            spent: spent.unwrap_or_default(),
            in_flight: row.map(|row| u32::try_from(row.busy).unwrap_or(u32::MAX)),
            filled: row.map_or(0.0, |row| match config.requests_per_worker() {
                Some(_) => 0.0,
                None => row.open as f64 / capacity.max(1) as f64,
            }),
            memory: if memory {
                proc_stat::private_memory(self.pid)
            } else {
                None
            },
        }
    }

    /// Its signs of life.
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
                greeted: *greeted,
                done: None,
                oldest: None,
                requests: None,
                memory: self.memory,
            },
        }
    }

    /// Asks the worker to drain.
    pub(crate) fn drain(&mut self, grace: Duration, empty_queue: bool) -> Option<Event> {
        match &mut self.line {
            Line::Channel {
                channel, draining, ..
            } => {
                *draining = true;
                let deadline_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                let asked = channel.send(&ToWorker::Drain(Drain {
                    deadline_ms,
                    empty_queue,
                }));
                asked
                    .err()
                    .map(|error| self.condemn(&format!("cannot be asked to drain: {error}")))
            }
            Line::Notify { stop, .. } => {
                let stop = *stop;
                self.signal(stop);
                None
            }
            Line::Closed => None,
        }
    }

    fn condemn(&self, reason: &str) -> Event {
        Event::ProtocolViolation(self.id, reason.to_owned())
    }

    /// Sends a signal to the worker, which cannot be another process: the pidfd names it even when its pid is reused.
    pub(crate) fn signal(&self, signal: Signal) {
        // A worker that is dead already needs no signal.
        let _ = crate::process::spawn::send_signal(self.pidfd.as_fd(), signal);
    }

    /// Kills the worker and whatever it has started. Its group cannot be another one: the worker, alive or not yet
    /// reaped, holds the number.
    pub(crate) fn kill_group(&self) {
        // One that was forked just now has no group yet.
        self.signal(Signal::SIGKILL);
        let _ = nix::sys::signal::killpg(self.pid, Signal::SIGKILL);
    }
}

/// Text from a worker, made fit for a log line.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(STATUS)
        .collect()
}
