//! The preflight: the command of `--preflight`, which must succeed before the first worker of a
//! generation starts.
//!
//! A generation whose preflight runs has been loaded, and is not held yet: the core is told that it
//! is prepared, or refused, when the command has ended. So a stop, and whatever else makes the core
//! lose interest, ends the command. An upgrade drops it, and the next version prepares the
//! generation again.

use super::Server;
use crate::api::worker_exit::stderr_tail;
use crate::config::Program;
use crate::generation::Generation;
use crate::helpers::{HelperExit, HelperId, HelperProcesses, Kind, StartError};
use crate::logging::stderr::Capture;
use crate::process::poll::{Interest, Poll, Token};
use crate::process::reap::Death;
use crate::process::spawn::{Executable, ExecutableError, Order};
use crate::sandbox::{Confinement, ConfinementError};
use crate::workers::launch::common_environment;
use log::info;
use prefork_core::Event;
use prefork_protocol::GenerationId;
use prefork_protocol::environment::PREFORK_GENERATION;
use std::ffi::{CString, NulError};
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

/// The preflight that runs, if any.
#[derive(Debug, Default)]
pub(crate) struct Preflight {
    running: Option<Running>,
}

#[derive(Debug)]
pub(crate) struct Running {
    id: GenerationId,
    /// The generation of a reload; the server holds its first one already.
    loaded: Option<Generation>,
    helper: HelperId,
    output: Capture,
    timeout: Duration,
}

/// Why a preflight could not be started.
#[derive(Debug, thiserror::Error)]
enum PreflightError {
    #[error(transparent)]
    Shell(#[from] ExecutableError),
    #[error(transparent)]
    Confinement(#[from] ConfinementError),
    #[error("a NUL byte in the environment: {0}")]
    Nul(#[from] NulError),
    #[error("cannot make a pipe: {0}")]
    Pipe(#[from] std::io::Error),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Preflight {
    /// Returns the generation of the reload whose preflight runs.
    pub(crate) fn of_reload(&self) -> Option<GenerationId> {
        let running = self.running.as_ref()?;
        running.loaded.as_ref().map(|_| running.id)
    }

    /// Whether the preflight of the first start runs.
    pub(crate) fn is_of_start(&self) -> bool {
        self.running.as_ref().is_some_and(|it| it.loaded.is_none())
    }
}

impl Server {
    /// Starts the preflight of a generation that was loaded. Returns the event for one that has
    /// none, or whose preflight cannot be started.
    pub(crate) fn begin_preflight(
        &mut self,
        id: GenerationId,
        loaded: Option<Generation>,
    ) -> Option<Event> {
        let held = self.generations.get(id);
        let generation = loaded.as_ref().or(held)?;
        let Some(command) = generation.config.preflight.clone() else {
            return Some(self.preflight_passed(id, loaded));
        };
        let timeout = generation.config.start_timeout;
        match launch(
            &self.poll,
            &mut self.helpers.processes,
            id,
            generation,
            &command,
        ) {
            Ok((helper, output)) => {
                info!("preflight of generation {id} starts: {command}");
                self.helpers
                    .processes
                    .set_deadline(helper, self.now + timeout);
                self.preflight.running = Some(Running {
                    id,
                    loaded,
                    helper,
                    output,
                    timeout,
                });
                None
            }
            Err(error) => Some(Event::Refused(
                id,
                format!("cannot start the preflight: {error}"),
            )),
        }
    }

    /// The preflight has written something, or can write no more.
    pub(crate) fn hear_preflight(&mut self) {
        if let Some(running) = &mut self.preflight.running
            && !running.output.keep_tail()
        {
            if let Some(pipe) = running.output.descriptor() {
                self.poll.remove(pipe);
            }
            running.output.close();
        }
    }

    /// The preflight has exited.
    pub(crate) fn preflight_exited(&mut self, exit: &HelperExit) {
        let Some(mut running) = self.preflight.running.take() else {
            return;
        };
        if let Some(pipe) = running.output.descriptor() {
            self.poll.remove(pipe);
        }
        let tail = running.output.tail_of_dead();
        let event = match (&exit.failure, &exit.death) {
            (None, Death::Exited(0)) => self.preflight_passed(running.id, running.loaded),
            (Some(failure), _) => Event::Refused(running.id, format!("preflight: {failure}")),
            (None, death) => {
                let tail = stderr_tail(&tail);
                let reason = if tail.is_empty() {
                    format!("preflight {death} without a word on standard error")
                } else {
                    format!("preflight {death}; stderr: \"{tail}\"")
                };
                Event::Refused(running.id, reason)
            }
        };
        self.feed(event);
    }

    /// The preflight has taken too long.
    pub(crate) fn preflight_expired(&mut self) {
        if let Some(running) = self.end_preflight() {
            let reason = format!(
                "preflight did not end within {:?} (make it faster, or raise start-timeout)",
                running.timeout
            );
            self.feed(Event::Refused(running.id, reason));
        }
    }

    /// Ends a preflight that the core does not wait for any more.
    pub(crate) fn tend_preflight(&mut self) {
        let running = self.preflight.running.as_ref();
        if running.is_some_and(|it| self.core.being_prepared() != Some(it.id)) {
            self.end_preflight();
        }
    }

    /// Kills the preflight and whatever it has started.
    pub(crate) fn end_preflight(&mut self) -> Option<Running> {
        let running = self.preflight.running.take()?;
        if let Some(pipe) = running.output.descriptor() {
            self.poll.remove(pipe);
        }
        self.helpers.processes.terminate(&self.poll, running.helper);
        Some(running)
    }

    /// Goes on with a generation that may start workers.
    fn preflight_passed(&mut self, id: GenerationId, loaded: Option<Generation>) -> Event {
        if let Some(generation) = loaded {
            self.generations.held.insert(id, generation);
        }
        let plan = self.generations.get(id).map(Generation::plan);
        match plan {
            Some(plan) => Event::Prepared(id, plan),
            None => Event::Refused(id, format!("generation {id} is not held any more")),
        }
    }
}

/// Starts the command of a preflight.
fn launch(
    poll: &Poll,
    processes: &mut HelperProcesses,
    id: GenerationId,
    generation: &Generation,
    command: &str,
) -> Result<(HelperId, Capture), PreflightError> {
    let shell = Executable::open("/bin/sh")?;
    // A stock app's own sandbox lets it execute nothing.
    let free = match generation.config.program {
        Program::App(_) => Some(Confinement::prepare(&generation.config)?),
        Program::Linked | Program::Command(_) => None,
    };
    let argv = ["sh", "-c", command].map(CString::new);
    let argv: Vec<CString> = argv.into_iter().collect::<Result<_, _>>()?;
    let (output, theirs) = Capture::open()?;
    let nothing = File::open("/dev/null")?;
    let env = common_environment(
        generation,
        vec![(PREFORK_GENERATION, id.to_string().into())],
    )?;
    let order = Order {
        stdin: Some(nothing.as_fd()),
        stderr: Some(theirs.as_fd()),
        directory: generation.directory.as_ref(),
        confinement: free.as_ref().unwrap_or(&generation.confinement),
        ..Order::own(&shell, &argv, env)
    };
    if let Some(pipe) = output.descriptor() {
        poll.add(pipe, Token::Preflight, Interest::Read)?;
    }
    let helper = processes.start(poll, Kind::Preflight, order, None)?;
    Ok((helper, output))
}
