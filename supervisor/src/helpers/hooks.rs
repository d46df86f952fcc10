//! Hooks: the program of `--on-event`, started once for each event that it subscribes to.
//!
//! The event lies in memory that is the program's standard input, so that writing it never blocks.
//! A hook runs as the workers' user, outside their sandbox, in a session of its own, with none of
//! our descriptors. All of it is bounded: the hooks that run at a time, the events that wait, the
//! time of each. The supervisor never waits for one while it serves, and a hook's failure is a line
//! in the log and no event: otherwise a failing hook would be started for its own failure.
//!
//! An upgrade hands over the hooks that run and the events that wait.

use super::{HelperExit, HelperId, HelperProcesses, Kind, StartError};
use crate::api::events::Event;
use crate::config::{Config, Hooks as Settings};
use crate::generation::LoadError;
use crate::generation::loader::open_hook_program;
use crate::logging;
use crate::process::poll::Poll;
use crate::process::reap::Death;
use crate::process::spawn::Order;
use crate::sandbox::Confinement;
use crate::upgrade::{EventState, HookState, HooksState, Packing, Unpacking, environment_without};
use log::{debug, warn};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use prefork_core::Time;
use prefork_protocol::environment::{ALL, PREFORK_EVENT};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// The most hooks that run at a time.
const MAX_RUNNING: usize = 4;
/// The most events that wait for one of them to end.
const MAX_WAITING: usize = 64;
/// The time between SIGTERM and SIGKILL for a hook that takes too long.
const GRACE: Duration = Duration::from_secs(1);

/// The hooks that run, and the events that wait for one.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    running: BTreeMap<HelperId, Running>,
    waiting: VecDeque<Waiting>,
    /// Events that were dropped since that was last reported.
    dropped: u64,
}

#[derive(Debug)]
struct Running {
    kind: String,
    /// SIGTERM was sent; SIGKILL is next.
    terminating: bool,
}

#[derive(Debug)]
struct Waiting {
    kind: String,
    json: Vec<u8>,
}

/// Why a hook was not started.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("{0}")]
    Confinement(String),
    #[error(transparent)]
    Program(#[from] LoadError),
    #[error("on-event names no program any more")]
    NoProgram,
    #[error("cannot make memory for it: {0}")]
    Memory(#[from] std::io::Error),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Hooks {
    /// Queues an event for the program, if the program subscribes to it and there is room.
    pub(crate) fn offer(&mut self, settings: Option<&Settings>, level: log::Level, event: &Event) {
        if !settings.is_some_and(|settings| settings.want(&event.kind, level)) {
            return;
        }
        if self.waiting.len() >= MAX_WAITING {
            self.dropped += 1;
            if self.dropped == 1 {
                warn!(
                    "{MAX_WAITING} events wait for the program of on-event; \
                     this and further ones are dropped"
                );
            }
            return;
        }
        if let Ok(mut json) = serde_json::to_vec(event) {
            json.push(b'\n');
            self.waiting.push_back(Waiting {
                kind: event.kind.to_string(),
                json,
            });
        }
    }

    /// Starts hooks for the events that wait, as far as there is room.
    pub(crate) fn start_next(
        &mut self,
        now: Time,
        poll: &Poll,
        processes: &mut HelperProcesses,
        config: &Config,
    ) {
        while self.running.len() < MAX_RUNNING
            && let Some(event) = self.waiting.pop_front()
        {
            match launch(now, poll, processes, config, &event) {
                Ok(helper) => {
                    let Waiting { kind, json: _ } = event;
                    let terminating = false;
                    self.running.insert(helper, Running { kind, terminating });
                }
                Err(reason) => warn!(
                    "the program of on-event misses the event {}: {reason}",
                    event.kind
                ),
            }
        }
        if self.dropped > 0 && self.waiting.is_empty() {
            let dropped = std::mem::take(&mut self.dropped);
            warn!("the program of on-event has missed {dropped} events: too slow");
        }
    }

    /// Forgets a hook that has exited.
    pub(crate) fn finish(&mut self, helper: HelperId, exit: &HelperExit) {
        let Some(Running { kind, terminating }) = self.running.remove(&helper) else {
            return;
        };
        let program = &exit.program;
        match (&exit.failure, &exit.death) {
            (Some(failure), _) => warn!("on-event, for the event {kind}: {failure}"),
            (None, Death::Exited(0)) => debug!("{program} has handled the event {kind}"),
            // That was logged when it was terminated.
            (None, _) if terminating => {}
            (None, death) => warn!("{program}, started for the event {kind}: {death}"),
        }
    }

    /// Ends a hook that takes too long: by SIGTERM, then by SIGKILL.
    pub(crate) fn expire(&mut self, now: Time, processes: &mut HelperProcesses, helper: HelperId) {
        let Some(running) = self.running.get_mut(&helper) else {
            return;
        };
        let signal = if std::mem::replace(&mut running.terminating, true) {
            Signal::SIGKILL
        } else {
            warn!(
                "{}, started for the event {}, takes too long: sending SIGTERM, then SIGKILL in 1 s",
                processes.program(helper),
                running.kind
            );
            Signal::SIGTERM
        };
        processes.signal(helper, signal);
        processes.set_deadline(helper, now + GRACE);
    }

    /// Describes hooks and events for the next version of this program.
    pub(crate) fn state(&self, processes: &HelperProcesses, packing: &mut Packing) -> HooksState {
        let running = self.running.iter().filter_map(|(helper, running)| {
            Some(HookState {
                child: processes.child_state(*helper, packing)?,
                kind: running.kind.clone(),
                deadline: processes.deadline_of(*helper).unwrap_or_default(),
                asked: running.terminating,
            })
        });
        let running = running.collect();
        let waiting = self.waiting.iter().map(|event| EventState {
            kind: event.kind.clone(),
            json: event.json.clone(),
        });
        HooksState {
            running,
            waiting: waiting.collect(),
            dropped: self.dropped,
        }
    }

    /// Continues where another version was.
    pub(crate) fn adopted(
        state: HooksState,
        processes: &mut HelperProcesses,
        unpacking: &mut Unpacking,
        check: bool,
    ) -> Self {
        let running = state.running.into_iter().map(|hook| {
            let what = format!("the hook for {}", hook.kind);
            let spawned = hook.child.adopted(unpacking, check, &what);
            let running = Running {
                kind: hook.kind,
                terminating: hook.asked,
            };
            let helper = processes.adopt(Kind::Hook, spawned, Some(hook.deadline));
            (helper, running)
        });
        let running = running.collect();
        let waiting = state.waiting.into_iter().map(|event| Waiting {
            kind: event.kind,
            json: event.json,
        });
        Self {
            running,
            waiting: waiting.collect(),
            dropped: state.dropped,
        }
    }

    /// Moves every deadline to `end` at the latest.
    pub(crate) fn hurry(&self, processes: &mut HelperProcesses, end: Time) {
        for helper in self.running.keys() {
            let deadline = processes.deadline_of(*helper).unwrap_or(end);
            processes.set_deadline(*helper, deadline.min(end));
        }
    }

    /// Returns the present if an event waits and there is room for another hook.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let startable = !self.waiting.is_empty() && self.running.len() < MAX_RUNNING;
        startable.then(Time::default)
    }

    /// Whether any hook runs or any event waits.
    pub(crate) fn are_busy(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty()
    }

    /// Kills all hooks: the server exits, and nothing would enforce their deadlines any more.
    pub(crate) fn kill(&self, processes: &HelperProcesses) {
        for helper in self.running.keys() {
            processes.signal(*helper, Signal::SIGKILL);
        }
    }
}

fn launch(
    now: Time,
    poll: &Poll,
    processes: &mut HelperProcesses,
    config: &Config,
    event: &Waiting,
) -> Result<HelperId, HookError> {
    let confinement =
        Confinement::prepare(config).map_err(|error| HookError::Confinement(error.to_string()))?;
    let executable = open_hook_program(config, &confinement)?.ok_or(HookError::NoProgram)?;
    let argv = [CString::new(executable.path().as_os_str().as_bytes()).unwrap_or_default()];
    let memory = memory(&event.json)?;
    let order = Order {
        stdin: Some(memory.as_fd()),
        death_signal: Signal::SIGTERM,
        confinement: &confinement,
        ..Order::own(&executable, &argv, environment(&confinement, &event.kind))
    };
    Ok(processes.start(poll, Kind::Hook, order, Some(now + config.hooks.timeout))?)
}

/// Makes memory that holds these bytes and is read from the start.
fn memory(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("prefork-event", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Returns a hook's environment: the supervisor's without what concerns systemd or workers, the
/// kind of the event, and the variables of the user that the hook runs as.
fn environment(confinement: &Confinement, kind: &str) -> Vec<CString> {
    let user = confinement.variables();
    let removed: Vec<&str> = ALL
        .iter()
        .copied()
        .chain([logging::FORMAT_VARIABLE, logging::FILE_VARIABLE])
        .chain(user.iter().map(|(key, _)| *key))
        .collect();
    let variable = |key: &str, value: &OsStr| {
        CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).ok()
    };
    let mut environment = environment_without(&removed);
    environment.extend(variable(PREFORK_EVENT, OsStr::new(kind)));
    environment.extend(user.iter().filter_map(|(key, value)| variable(key, value)));
    environment
}
