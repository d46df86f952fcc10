//! The upgrade in place: when it is tried, what becomes of it, and how a server becomes a state.
//!
//! A check is a child that the loop does not wait for: it has a pidfd and a deadline. Only when it
//! has passed does this process become the new program. A reload that finds the supervisor's own
//! program replaced on disk is put off until the new one has taken over; the core sees that as a
//! preparation that takes its time.

use super::{Server, clock};
use crate::api::events::EventRecord;
use crate::api::status::LastUpgrade;
use crate::control::Answer;
use crate::helpers::{HelperExit, HelperId, Kind as HelperKind, StartError};
use crate::logging::stderr::writer::stderr_writer;
use crate::process::reap::Death;
use crate::process::spawn::{Executable, ExecutableError, Order};
use crate::sandbox::started_with;
use crate::upgrade::{
    AccessState, AlarmState, Bytes, ChannelState, CountsState, DeathsState, ExecErrorsState,
    GenerationState, HandleState, InterpreterState, Kind, LineState, NoticesState, Packing,
    PathState, PhaseState, ProgramState, ReloadState, RowState, State, StderrState, StoredState,
    TotalsState, Unpacking, UpgradeState, VARIABLE, check_arguments, environment_without, execute,
    seal, verdict,
};
use crate::version::VERSION;
use crate::workers::handle::{Alarm, Line, Phase, WorkerHandle};
use log::{Level, debug, info};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::stat::{SFlag, fstat, stat};
use prefork_core::Event;
use prefork_protocol::environment::{LISTEN_PID, NOTIFY_SOCKET, WATCHDOG_PID, WATCHDOG_USEC};
use prefork_protocol::message::PROTOCOL;
use prefork_protocol::scoreboard::Totals;
use prefork_protocol::{GenerationId, Slot};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a check may take, unless `start-timeout` is less.
const CHECK_AT_MOST: Duration = Duration::from_secs(10);

/// What the server knows of upgrades.
#[derive(Debug, Default)]
pub(crate) struct Upgrade {
    /// Device and inode of the program that runs.
    running: Option<(u64, u64)>,
    attempt: Option<Attempt>,
    /// How the last one ended.
    pub(crate) last: Option<LastUpgrade>,
}

/// A new program that may take over.
#[derive(Debug)]
struct Attempt {
    next: Executable,
    report: OwnedFd,
    check: Check,
    asked: Asked,
}

/// The check of a new program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Running(HelperId),
    Passed,
}

/// Who asked for an upgrade.
#[derive(Debug, Default)]
struct Asked {
    /// Control clients that wait for the verdict.
    clients: Vec<u64>,
    /// The reload that waits for it.
    reload: Option<GenerationId>,
}

/// Why an upgrade was not tried.
#[derive(Debug, thiserror::Error)]
enum UpgradeError {
    #[error("the server stops")]
    Stopping,
    #[error("the server has not started yet (wait for its preflight)")]
    Starting,
    #[error(transparent)]
    Program(#[from] ExecutableError),
    #[error("{} is a script, not this program (put the program itself there)", .0.display())]
    Script(PathBuf),
    #[error("cannot write down the state: {0}")]
    State(#[source] io::Error),
    #[error("cannot make a pipe: {0}")]
    Pipe(#[source] io::Error),
    #[error(transparent)]
    Check(#[from] StartError),
}

/// What becomes of a reload that may need an upgrade first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Preparation {
    /// It needs none: this program prepares it.
    Now,
    /// The new program will prepare it, once it has taken over.
    Pending,
    /// The new program cannot take over: why.
    Refused(String),
}

/// What a server that was taken over has still to do.
#[derive(Debug)]
pub(crate) struct Resumption {
    /// The version that it had.
    pub(super) version: String,
    /// Who asked for the upgrade.
    pub(super) upgrade: UpgradeState,
    /// Signals that came and were not acted upon.
    pub(super) signals: Vec<i32>,
    /// Descriptors that this version has no use for.
    pub(super) rest: Unpacking,
}

impl Upgrade {
    /// Remembers the program that runs.
    pub(crate) fn new() -> Self {
        let running = stat("/proc/self/exe")
            .ok()
            .map(|status| (status.st_dev, status.st_ino));
        Self {
            running,
            ..Self::default()
        }
    }
}

impl Server {
    /// Tries an upgrade; `client` waits for the verdict.
    pub(crate) fn ask_for_upgrade(&mut self, client: Option<u64>) {
        let asked = Asked {
            clients: client.into_iter().collect(),
            reload: None,
        };
        if let Err((asked, error)) = self.try_upgrade(asked) {
            self.upgrade_failed(asked, &error.to_string());
        }
    }

    /// A reload is to be prepared: when this program was replaced on disk, the new one does that.
    pub(crate) fn upgrade_before(&mut self, generation: GenerationId) -> Preparation {
        let there = stat(&self.generations.loader.own_path)
            .ok()
            .map(|status| (status.st_dev, status.st_ino));
        if there.is_none() || there == self.upgrade.running {
            return Preparation::Now;
        }
        let asked = Asked {
            clients: Vec::new(),
            reload: Some(generation),
        };
        match self.try_upgrade(asked) {
            Ok(()) => Preparation::Pending,
            Err((_, error)) => {
                let path = &self.generations.loader.own_path;
                Preparation::Refused(cannot_take_over(path, &error.to_string()))
            }
        }
    }

    /// Begins to check the program at our path, or joins a check of the very same file.
    fn try_upgrade(&mut self, mut asked: Asked) -> Result<(), (Asked, UpgradeError)> {
        if self.core.is_stopping() {
            return Err((asked, UpgradeError::Stopping));
        }
        if self.preflight.is_of_start() {
            return Err((asked, UpgradeError::Starting));
        }
        let next = match self.next_program() {
            Ok(next) => next,
            Err(error) => return Err((asked, error)),
        };
        if let Some(attempt) = self.upgrade.attempt.take() {
            let Asked { clients, reload } = attempt.asked;
            asked.clients.splice(0..0, clients);
            asked.reload = asked.reload.or(reload);
            if identity(&attempt.next) == identity(&next) {
                self.upgrade.attempt = Some(Attempt { asked, ..attempt });
                return Ok(());
            }
            debug!("the program was replaced again while it was checked");
            self.drop_check(attempt.check);
        }
        match self.check(&next) {
            Ok((check, report)) => {
                info!(
                    "upgrade: checking whether {} can take over",
                    next.path().display()
                );
                for client in &asked.clients {
                    let progress =
                        format!("checking whether {} can take over", next.path().display());
                    self.answer(*client, &Answer::progress(progress));
                }
                self.upgrade.attempt = Some(Attempt {
                    next,
                    report,
                    check: Check::Running(check),
                    asked,
                });
                Ok(())
            }
            Err(error) => Err((asked, error)),
        }
    }

    /// Opens the program that lies at our path now.
    fn next_program(&self) -> Result<Executable, UpgradeError> {
        let path = &self.generations.loader.own_path;
        let next = Executable::open(path)?;
        if next.is_script() {
            return Err(UpgradeError::Script(path.clone()));
        }
        Ok(next)
    }

    /// Starts the new program to check the state as it is now.
    fn check(&mut self, next: &Executable) -> Result<(HelperId, OwnedFd), UpgradeError> {
        let state = self.state(&Asked::default(), &[]);
        let memory = seal(&state).map_err(UpgradeError::State)?;
        let (report, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .map_err(|errno| UpgradeError::Pipe(errno.into()))?;
        let kept = state
            .kept()
            .chain([memory.as_raw_fd(), theirs.as_raw_fd()])
            .collect::<Vec<_>>();
        let argv = check_arguments(&memory, &theirs);
        // What it says must not be taken for our word, and the sockets are in the state.
        let env = environment_without(&[
            NOTIFY_SOCKET,
            WATCHDOG_USEC,
            WATCHDOG_PID,
            LISTEN_PID,
            VARIABLE,
        ]);
        let order = Order {
            kept: &kept,
            ..Order::own(next, &argv, env)
        };
        let deadline = self.now + self.check_timeout();
        let processes = &mut self.helpers.processes;
        let kind = HelperKind::UpgradeCheck;
        let check = processes.start(&self.poll, kind, order, Some(deadline))?;
        Ok((check, report))
    }

    fn check_timeout(&self) -> Duration {
        let accepted = self.generations.accepted();
        accepted.map_or(CHECK_AT_MOST, |generation| {
            generation.config.start_timeout.min(CHECK_AT_MOST)
        })
    }

    fn drop_check(&mut self, check: Check) {
        if let Check::Running(helper) = check {
            self.helpers.processes.terminate(&self.poll, helper);
        }
    }

    /// The check has exited.
    pub(crate) fn upgrade_checked(&mut self, exit: HelperExit) {
        let Some(attempt) = &mut self.upgrade.attempt else {
            return;
        };
        let said = verdict(&attempt.report);
        let reason = match (exit.failure, said, exit.death) {
            (Some(failure), ..) => failure.to_string(),
            (None, Ok(version), Death::Exited(0)) => {
                debug!("version {version} can take over");
                attempt.check = Check::Passed;
                return;
            }
            (None, Err(reason), _) if !reason.is_empty() => reason,
            (None, _, death) => {
                format!(
                    "its check {death} without a word (it is no version of this program that can take over)"
                )
            }
        };
        self.give_up_upgrade(&reason);
    }

    /// The check did not exit in time.
    pub(crate) fn upgrade_check_expired(&mut self) {
        let timeout = self.check_timeout();
        self.give_up_upgrade(&format!("its check did not end within {timeout:?}"));
    }

    /// Becomes the program that has passed its check, or gives up a check in vain. To be called at
    /// the end of every round.
    pub(crate) fn advance_upgrade(&mut self) {
        let Some(attempt) = &self.upgrade.attempt else {
            return;
        };
        if self.core.is_stopping() {
            self.give_up_upgrade("the server stops");
        } else if attempt.check == Check::Passed && !self.core.is_quiescing() {
            let reason = self.hand_over();
            self.give_up_upgrade(&reason);
        }
    }

    fn give_up_upgrade(&mut self, reason: &str) {
        if let Some(attempt) = self.upgrade.attempt.take() {
            self.drop_check(attempt.check);
            self.upgrade_failed(attempt.asked, reason);
        }
    }

    /// Becomes the new program. Returns only why it cannot; everything is as before then.
    fn hand_over(&mut self) -> String {
        // From here on signals wait for the program that goes on.
        if let Err(error) = self.signals.hold() {
            return format!("cannot hold signals: {error}");
        }
        let signals: Vec<Signal> = self.signals.take().collect();
        let reason = self.execute(&signals);
        let _ = self.signals.go_on();
        self.act_on(signals);
        reason
    }

    fn execute(&mut self, signals: &[Signal]) -> String {
        let Some(attempt) = &self.upgrade.attempt else {
            return "nothing was checked".to_owned();
        };
        let previous = match Executable::current() {
            Ok(previous) => OwnedFd::from(previous),
            Err(error) => return error.to_string(),
        };
        let state = self.state(&attempt.asked, signals);
        let memory = match seal(&state) {
            Ok(memory) => memory,
            Err(error) => return format!("cannot write down the state: {error}"),
        };
        let errno = execute(&attempt.next, &state, &memory, &previous);
        format!(
            "cannot execute {}: {}",
            attempt.next.path().display(),
            errno.desc()
        )
    }

    /// Reports to those who asked why nothing has changed.
    fn upgrade_failed(&mut self, asked: Asked, reason: &str) {
        let Asked { clients, reload } = asked;
        self.upgrade.last = Some(LastUpgrade {
            version: VERSION.to_owned(),
            ok: false,
            reason: Some(reason.to_owned()),
        });
        for client in clients {
            self.answer(client, &Answer::failed(reason));
        }
        if let Some(generation) = reload {
            // The reload's verdict says it.
            let reason = cannot_take_over(&self.generations.loader.own_path, reason);
            self.feed(Event::Refused(generation, reason));
        } else {
            let text = format!("upgrade failed, version {VERSION} goes on: {reason}");
            self.announce(
                EventRecord::new("upgrade-failed", Level::Error, text).with("reason", reason),
            );
            let _ = self.systemd.notifier.status(&format!(
                "version {VERSION} goes on; the last upgrade failed: {reason}"
            ));
        }
    }

    /// This process has become the program that it was to become; or `failed` to, and is the old
    /// one again.
    pub(crate) fn resume(&mut self, resumption: Resumption, failed: Option<&str>) {
        self.now = clock();
        let Resumption {
            version,
            upgrade,
            signals,
            rest,
        } = resumption;
        match rest.finish() {
            0 => {}
            count => debug!("closed {count} descriptors that only another version has a use for"),
        }
        if let Some(reason) = failed {
            let asked = Asked {
                clients: upgrade.clients,
                reload: upgrade.reload,
            };
            self.upgrade_failed(asked, reason);
        } else {
            let workers = self.workers.handles.len();
            let text = format!(
                "upgraded in place from version {version} to {VERSION} (pid {}): {workers} workers go on",
                std::process::id()
            );
            self.announce(
                EventRecord::new("upgraded", Level::Info, text)
                    .with("from", version)
                    .with("to", VERSION),
            );
            self.upgrade.last = Some(LastUpgrade {
                version: VERSION.to_owned(),
                ok: true,
                reason: None,
            });
            for client in upgrade.clients {
                self.answer(
                    client,
                    &Answer {
                        upgraded: Some(VERSION.to_owned()),
                        ..Answer::done()
                    },
                );
            }
            // What the old version could not tell systemd any more ends here.
            let status = format!("version {VERSION}: {workers} workers serve");
            let _ = match self.core.view().reload {
                None if self.booted => self.systemd.notifier.ready(&status),
                _ => self.systemd.notifier.status(&status),
            };
            if let Some(generation) = upgrade.reload
                && let Some(event) = self.prepare(generation)
            {
                self.feed(event);
            }
        }
        self.probe_readiness_again();
        self.act_on(
            signals
                .into_iter()
                .filter_map(|number| Signal::try_from(number).ok())
                .collect(),
        );
    }

    /// Returns all that the next program needs to know.
    fn state(&self, asked: &Asked, signals: &[Signal]) -> State {
        let packing = &mut Packing::default();
        let mut groups = Vec::new();
        let generations = self.generations.held.iter().map(|(id, generation)| {
            let (backlog, sockets) = generation.sockets.state(&mut groups, packing);
            let (_, admin) = generation.admin.http.state(&mut groups, packing);
            let (_, agent) = generation.admin.agent.state(&mut groups, packing);
            let program = &generation.executable;
            GenerationState {
                id: *id,
                file: generation.origin.file.clone(),
                cpus: generation.origin.cpus as u64,
                protocol: PROTOCOL,
                program: program_state(program, packing),
                opened: generation.opened,
                backlog,
                sockets,
                admin,
                agent,
                access: generation.access.as_ref().and_then(|log| match log.kind() {
                    SFlag::S_IFREG => Some(AccessState::File(packing.add(Kind::Lock, log))),
                    SFlag::S_IFIFO => Some(AccessState::Pipe(packing.add(Kind::Pipe, log))),
                    _ => None,
                }),
                // By a kind of descriptor that all versions know: opened by path only.
                directory: generation
                    .directory
                    .as_ref()
                    .map(|directory| packing.add(Kind::Program, directory)),
                interpreters: program
                    .interpreters()
                    .map(|it| InterpreterState {
                        program: program_state(&it.program, packing),
                        argument: it.argument.as_ref().map(|it| Bytes(it.to_bytes().to_vec())),
                    })
                    .collect(),
                paths: generation
                    .confinement
                    .held_paths()
                    .iter()
                    .map(|(path, held)| PathState {
                        path: path.into(),
                        descriptor: packing.add(Kind::Program, &held),
                    })
                    .collect(),
                command: generation
                    .command
                    .iter()
                    .map(|word| Bytes(word.to_bytes().to_vec()))
                    .collect(),
            }
        });
        let generations = generations.collect();
        let helpers = self.helpers.state(packing);
        let totals = (0..)
            .map(Slot)
            .zip(&self.workers.past_totals)
            .filter(|(_, totals)| **totals != Totals::default());
        State {
            version: VERSION.to_owned(),
            pid: std::process::id(),
            arguments: std::env::args_os().map(Bytes::from).collect(),
            own_path: (&self.generations.loader.own_path).into(),
            inherited: self.generations.listeners.inherited_state(packing),
            core: self.core.state(),
            accepted: self.generations.accepted,
            generations,
            groups: groups.into_iter().map(|(_, group)| group).collect(),
            workers: self
                .workers
                .handles
                .values()
                .map(|handle| handle_state(handle, packing))
                .collect(),
            totals: totals
                .map(|(slot, totals)| TotalsState::of(slot, totals))
                .collect(),
            deaths: self
                .workers
                .exits
                .seen()
                .map(|(cause, count)| DeathsState {
                    cause: cause.to_owned(),
                    count,
                })
                .collect(),
            foreign_orphans: self.workers.leftovers.has_foreign_orphans(),
            backlog: stderr_writer().backlog().to_vec(),
            notify: self.workers.notify.state(packing),
            control: self.operators.control.state(packing),
            waiting: self.operators.waiting.iter().copied().collect(),
            last_reload: self.operators.last_reload.as_ref().map(|last| ReloadState {
                generation: last.generation,
                reason: last.reason.clone(),
            }),
            booted: self.booted,
            rotation: self.steering.rotation.clone(),
            stored: self
                .systemd
                .store
                .stored()
                .map(|(name, inode)| StoredState {
                    name: name.to_owned(),
                    inode,
                })
                .collect(),
            steering_failed: self.steering.failed,
            on_terminal: self.on_terminal,
            signals: signals.iter().map(|signal| *signal as i32).collect(),
            upgrade: UpgradeState {
                clients: asked.clients.clone(),
                // The next version prepares it again.
                reload: asked.reload.or(self.preflight.of_reload()),
            },
            cgroups: self
                .workers
                .cgroups
                .as_ref()
                .map(|groups| groups.base().into()),
            counts: CountsState {
                started: self.operators.counts.started,
                spawned: self.operators.counts.spawned,
                reloads: self.operators.counts.reloads,
                failed_reloads: self.operators.counts.failed_reloads,
                events: self.operators.journal.last(),
                status_requests: self.operators.counts.status_requests,
            },
            hooks: helpers.hooks,
            leaving: helpers.leaving,
            terminating: helpers.useless,
            open_files: started_with(),
            read_at_start: self.generations.read_at_start.clone().into_iter().collect(),
            // All of them, so after everything that adds one.
            descriptors: std::mem::take(packing).finish(),
            #[cfg(feature = "next")]
            novelty: "something that only this version knows".to_owned(),
        }
    }
}

fn program_state(program: &Executable, packing: &mut Packing) -> ProgramState {
    ProgramState {
        descriptor: packing.add(Kind::Program, program),
        path: program.path().into(),
        script: program.is_script(),
    }
}

fn handle_state(handle: &WorkerHandle, packing: &mut Packing) -> HandleState {
    let line = match &handle.line {
        Line::Channel { channel, phase, .. } => LineState::Channel(ChannelState {
            channel: packing.add(Kind::Channel, channel),
            phase: match phase {
                Phase::Silent => PhaseState::Silent,
                Phase::Greeted => PhaseState::Greeted,
                Phase::Ready => PhaseState::Ready,
            },
            draining: false,
        }),
        Line::Notify {
            stop,
            ready,
            greeted,
            fed,
            allowance: _,
        } => LineState::Notices(NoticesState {
            stop: *stop as i32,
            ready: *ready,
            greeted: *greeted,
            fed: *fed,
        }),
        Line::Closed => LineState::Closed,
    };
    HandleState {
        id: handle.id,
        slot: handle.slot,
        generation: handle.generation,
        pid: handle.pid.as_raw(),
        pidfd: packing.add(Kind::Process, &handle.pidfd),
        exec_errors: ExecErrorsState::of(&handle.exec_errors, packing),
        protocol: PROTOCOL,
        line,
        stderr: handle.stderr.as_ref().map(|capture| {
            let (held, cut) = capture.held();
            StderrState {
                pipe: capture
                    .descriptor()
                    .map(|pipe| packing.add(Kind::Pipe, &pipe)),
                held: held.to_vec(),
                cut: cut.map(<[u8]>::to_vec),
                stderr_tail: capture.tail(),
            }
        }),
        row: handle.rows.as_ref().map(|rows| RowState {
            memory: packing.add(Kind::Memory, rows),
            size: rows.layout().size,
            rows: rows.layout().rows,
        }),
        status: handle.status.clone(),
        reported_requests: handle.reported.requests,
        reported_active: handle.reported.active,
        alarm: handle.alarm.map(|(time, alarm)| match alarm {
            Alarm::CountsAsReady => (time, AlarmState::CountsAsReady),
            Alarm::ChannelClosed => (time, AlarmState::Mute),
        }),
        #[cfg(feature = "next")]
        novelty: vec![1, 2, 3],
    }
}

fn identity(program: &Executable) -> Option<(u64, u64)> {
    fstat(program.as_fd())
        .ok()
        .map(|status| (status.st_dev, status.st_ino))
}

fn cannot_take_over(path: &Path, reason: &str) -> String {
    format!("the new {} cannot take over: {reason}", path.display())
}
