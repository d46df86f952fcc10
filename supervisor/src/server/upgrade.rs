//! The upgrade in place: when it is tried, what becomes of it, and how a server becomes a state.
//!
//! A check is a child that the loop does not wait for: it has a pidfd and a deadline. Only when it has passed does this
//! process become the new program. A reload that finds the supervisor's own program replaced on disk is put off
//! until the new one has taken over; the core sees that as a preparation that takes its time.

use super::takeover::Resumption;
use super::{Answer, Server, clock};
use crate::api::events::EventRecord;
use crate::api::status::LastUpgrade;
use crate::logging::stderr::outlet::outlet;
use crate::process::poll::{Interest, Token};
use crate::process::reap::{Death, reap};
use crate::process::spawn::{Executable, Order, Spawned, spawn};
use crate::upgrade::*;
use crate::version::VERSION;
use crate::workers::handle::{Alarm, Line, Phase, WorkerHandle};
use log::{Level, debug, info};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::stat::{SFlag, fstat, stat};
use nix::unistd::Pid;
use prefork_core::{Event, Time};
use prefork_protocol::environment::{LISTEN_PID, NOTIFY_SOCKET, WATCHDOG_PID, WATCHDOG_USEC};
use prefork_protocol::message::PROTOCOL;
use prefork_protocol::{GenerationId, Slot};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
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
    check: Spawned,
    report: OwnedFd,
    deadline: Time,
    /// It may.
    passed: bool,
    asked: Asked,
}

/// Who asked for an upgrade.
#[derive(Debug, Default)]
struct Asked {
    /// Control clients that wait for the verdict.
    clients: Vec<u64>,
    /// The reload that waits for it.
    reload: Option<GenerationId>,
}

impl Upgrade {
    /// Knows the program that runs.
    pub(crate) fn new() -> Self {
        let running = stat("/proc/self/exe")
            .ok()
            .map(|status| (status.st_dev, status.st_ino));
        Self {
            running,
            ..Self::default()
        }
    }

    /// The check's process, which is no orphan.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.attempt.as_ref().map(|attempt| attempt.check.pid)
    }

    /// When the check is late.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.attempt.as_ref().map(|attempt| attempt.deadline)
    }
}

impl Server {
    /// Somebody asks for an upgrade; `client` waits for the verdict.
    pub(crate) fn ask_for_upgrade(&mut self, client: Option<u64>) {
        let asked = Asked {
            clients: client.into_iter().collect(),
            reload: None,
        };
        if let Err((asked, reason)) = self.try_upgrade(asked) {
            self.upgrade_failed(asked, &reason);
        }
    }

    /// A reload is to be prepared. When this program was replaced on disk, the new one does that: then the reload's
    /// answer, if there is one already.
    pub(crate) fn upgrade_before(&mut self, generation: GenerationId) -> Option<Option<Event>> {
        let there = stat(&self.loader.own_path)
            .ok()
            .map(|status| (status.st_dev, status.st_ino));
        if there.is_none() || there == self.upgrade.running {
            return None;
        }
        let asked = Asked {
            clients: Vec::new(),
            reload: Some(generation),
        };
        Some(match self.try_upgrade(asked) {
            Ok(()) => None,
            Err((_, reason)) => Some(Event::Refused(
                generation,
                cannot_take_over(&self.loader.own_path, &reason),
            )),
        })
    }

    /// Begins to check the program at our path, or joins a check of the very same file.
    fn try_upgrade(&mut self, mut asked: Asked) -> Result<(), (Asked, String)> {
        if self.core.is_stopping() {
            return Err((asked, "the server stops".to_owned()));
        }
        let next = match self.next_program() {
            Ok(next) => next,
            Err(reason) => return Err((asked, reason)),
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
            self.drop_check(&attempt.check);
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
                let deadline = self.now + self.check_timeout();
                self.upgrade.attempt = Some(Attempt {
                    next,
                    check,
                    report,
                    deadline,
                    passed: false,
                    asked,
                });
                Ok(())
            }
            Err(reason) => Err((asked, reason)),
        }
    }

    /// The program that lies at our path now.
    fn next_program(&self) -> Result<Executable, String> {
        let path = &self.loader.own_path;
        let next = Executable::open(path).map_err(|error| error.to_string())?;
        if next.is_script() {
            let path = path.display();
            return Err(format!(
                "{path} is a script, not this program (put the program itself there)"
            ));
        }
        Ok(next)
    }

    /// Starts the new program to check the state as it is now.
    fn check(&self, next: &Executable) -> Result<(Spawned, OwnedFd), String> {
        let failed =
            |act: &'static str| move |error: std::io::Error| format!("cannot {act}: {error}");
        let state = self.state(&Asked::default(), &[]);
        let memory = seal(&state).map_err(failed("write down the state"))?;
        let (report, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .map_err(|errno| failed("make a pipe")(errno.into()))?;
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
        let check = spawn(Order {
            kept: &kept,
            ..Order::own(next, &argv, env)
        })
        .map_err(|error| error.to_string())?;
        if let Err(error) = self.poll.add(&check.pidfd, Token::Upgrade, Interest::Read) {
            self.drop_check(&check);
            return Err(format!("cannot watch the check: {error}"));
        }
        Ok((check, report))
    }

    fn check_timeout(&self) -> Duration {
        let accepted = self.generations.get(&self.accepted);
        accepted.map_or(CHECK_AT_MOST, |generation| {
            generation.config.start_timeout.min(CHECK_AT_MOST)
        })
    }

    /// Whoever checks is not waited for any more; its body is an orphan's.
    fn drop_check(&self, check: &Spawned) {
        let _ = crate::process::spawn::send_signal(check.pidfd.as_fd(), Signal::SIGKILL);
        let _ = nix::sys::signal::killpg(check.pid, Signal::SIGKILL);
        self.poll.remove(&check.pidfd);
    }

    /// The check has ended.
    pub(crate) fn hear_check(&mut self) {
        let Some(mut attempt) = self.upgrade.attempt.take_if(|attempt| !attempt.passed) else {
            return;
        };
        let death = match reap(&attempt.check.pidfd) {
            Ok(None) => {
                self.upgrade.attempt = Some(attempt);
                return;
            }
            Ok(Some(death)) => death,
            Err(_) => Death::Unknown,
        };
        self.poll.remove(&attempt.check.pidfd);
        let said = verdict(&attempt.report);
        let reason = match (attempt.check.exec_errors.failure(), said, death) {
            (Some(failure), ..) => failure.to_string(),
            (None, Ok(version), Death::Exited(0)) => {
                debug!("version {version} can take over");
                attempt.passed = true;
                self.upgrade.attempt = Some(attempt);
                return;
            }
            (None, Err(reason), _) if !reason.is_empty() => reason,
            (None, _, death) => {
                format!(
                    "its check {death} without a word (it is no version of this program that can take over)"
                )
            }
        };
        self.upgrade_failed(attempt.asked, &reason);
    }

    /// At the end of every round: gives up a check that is late or in vain, and becomes the program that has passed.
    pub(crate) fn advance_upgrade(&mut self) {
        let Some(attempt) = &self.upgrade.attempt else {
            return;
        };
        let reason = if self.core.is_stopping() {
            "the server stops".to_owned()
        } else if attempt.passed {
            self.hand_over()
        } else if attempt.deadline <= self.now {
            format!("its check did not end within {:?}", self.check_timeout())
        } else {
            return;
        };
        let Some(attempt) = self.upgrade.attempt.take() else {
            return;
        };
        if !attempt.passed {
            self.drop_check(&attempt.check);
            self.look_for_orphans = Some(self.now);
        }
        self.upgrade_failed(attempt.asked, &reason);
    }

    /// Becomes the new program. Returns only why it cannot; everything is as before then.
    fn hand_over(&mut self) -> String {
        self.settle_now();
        // From here on signals wait for whoever goes on.
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

    /// Nothing has changed, and whoever asked is told why.
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
        match reload {
            // The reload's verdict says it.
            Some(generation) => {
                let reason = cannot_take_over(&self.loader.own_path, reason);
                self.feed(Event::Refused(generation, reason));
            }
            None => {
                let text = format!("upgrade failed, version {VERSION} goes on: {reason}");
                self.announce(
                    EventRecord::new("upgrade-failed", Level::Error, text).with("reason", reason),
                );
                let _ = self.systemd.status(&format!(
                    "version {VERSION} goes on; the last upgrade failed: {reason}"
                ));
            }
        }
    }

    /// This process has become the program that it was to become; or `failed` to, and is the old one again.
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
            let workers = self.hands.len();
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
                None if self.booted => self.systemd.ready(&status),
                _ => self.systemd.status(&status),
            };
            if let Some(generation) = upgrade.reload {
                let event = self.prepare(generation);
                self.feed(event);
            }
        }
        self.look_out_again();
        self.act_on(
            signals
                .into_iter()
                .filter_map(|number| Signal::try_from(number).ok())
                .collect(),
        );
    }

    /// All that the next program needs to know.
    fn state(&self, asked: &Asked, signals: &[Signal]) -> State {
        let packing = &mut Packing::default();
        let mut groups = Vec::new();
        let generations = self.generations.iter().map(|(id, generation)| {
            let (backlog, sockets) = generation.sockets.state(&mut groups, packing);
            let (_, admin) = generation.admin.http.state(&mut groups, packing);
            let (_, agent) = generation.admin.agent.state(&mut groups, packing);
            let program = &generation.executable;
            GenerationState {
                id: *id,
                file: generation.origin.file.clone(),
                cpus: generation.origin.cpus as u64,
                protocol: PROTOCOL,
                program: ProgramState {
                    descriptor: packing.add(Kind::Program, program),
                    path: program.path().into(),
                    script: program.is_script(),
                },
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
            }
        });
        let generations = generations.collect();
        let totals = (0..)
            .map(Slot)
            .zip(&self.dead)
            .filter(|(_, totals)| **totals != Default::default());
        State {
            version: VERSION.to_owned(),
            pid: std::process::id(),
            arguments: std::env::args_os().map(Bytes::from).collect(),
            own_path: (&self.loader.own_path).into(),
            inherited: self.listeners.inherited_state(packing),
            core: self.core.state(),
            accepted: self.accepted,
            generations,
            groups: groups.into_iter().map(|(_, group)| group).collect(),
            hands: self
                .hands
                .values()
                .map(|hand| hand_state(hand, packing))
                .collect(),
            totals: totals
                .map(|(slot, totals)| TotalsState::of(slot, totals))
                .collect(),
            deaths: self
                .deaths
                .seen()
                .map(|(cause, count)| DeathsState {
                    cause: cause.to_owned(),
                    count,
                })
                .collect(),
            foster: self.leftovers.has_foreign_orphans(),
            backlog: outlet().backlog().to_vec(),
            notify: self.notify.state(packing),
            control: self.control.state(packing),
            waiting: self.waiting.iter().copied().collect(),
            last_reload: self.last_reload.as_ref().map(|last| ReloadState {
                generation: last.generation,
                reason: last.reason.clone(),
            }),
            booted: self.booted,
            rotation: self.rotation.clone(),
            stored: self
                .store
                .stored()
                .map(|(name, inode)| StoredState {
                    name: name.to_owned(),
                    inode,
                })
                .collect(),
            steering_failed: self.steering_failed,
            on_terminal: self.on_terminal,
            signals: signals.iter().map(|signal| *signal as i32).collect(),
            upgrade: UpgradeState {
                clients: asked.clients.clone(),
                reload: asked.reload,
            },
            cgroups: self.groups.as_ref().map(|groups| groups.base().into()),
            counts: CountsState {
                started: self.counts.started,
                spawned: self.counts.spawned,
                reloads: self.counts.reloads,
                failed_reloads: self.counts.failed_reloads,
                events: self.journal.last(),
                pictures: self.counts.pictures,
            },
            hooks: self.hooks.state(packing),
            leaving: self.admin.state(packing),
            doomed: self
                .doomed
                .state(self.lookouts.children().chain(self.gauge.child()), packing),
            // All of them, so after everything that adds one.
            descriptors: std::mem::take(packing).finish(),
            #[cfg(feature = "next")]
            novelty: "something that only this version knows".to_owned(),
        }
    }
}

fn hand_state(hand: &WorkerHandle, packing: &mut Packing) -> HandleState {
    let line = match &hand.line {
        Line::Channel {
            channel,
            phase,
            draining,
            ..
        } => LineState::Channel(ChannelState {
            channel: packing.add(Kind::Channel, channel),
            phase: match phase {
                Phase::Silent => PhaseState::Silent,
                Phase::Greeted => PhaseState::Greeted,
                Phase::Ready => PhaseState::Ready,
            },
            draining: *draining,
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
        id: hand.id,
        slot: hand.slot,
        generation: hand.generation,
        pid: hand.pid.as_raw(),
        pidfd: packing.add(Kind::Process, &hand.pidfd),
        exec_errors: ExecErrorsState::of(&hand.exec_errors, packing),
        protocol: PROTOCOL,
        line,
        stderr: hand.stderr.as_ref().map(|capture| {
            let (held, cut) = capture.held();
            StderrState {
                pipe: capture
                    .descriptor()
                    .map(|pipe| packing.add(Kind::Pipe, &pipe)),
                held: held.to_vec(),
                cut: cut.map(<[u8]>::to_vec),
                last_words: capture.last_words(),
            }
        }),
        row: hand.rows.as_ref().map(|rows| RowState {
            memory: packing.add(Kind::Memory, rows),
            size: rows.layout().size,
            rows: rows.layout().rows,
        }),
        status: hand.status.clone(),
        alarm: hand.alarm.map(|(time, alarm)| match alarm {
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
