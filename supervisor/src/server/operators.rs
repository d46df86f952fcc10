//! The operators' side: signals and control requests come in, answers and events go out.

use super::Server;
use crate::api::answer::Json;
use crate::api::events::{EventRecord, Journal};
use crate::api::report;
use crate::api::status::LastReload;
use crate::api::worker_exit::to_event;
use crate::control::{Answer, ControlServer, Progress, Request, event_line};
use crate::logging;
use crate::upgrade::CountsState;
use log::{debug, error, info};
use nix::sys::signal::Signal;
use prefork_core::{Command, Event, Fact, RequestId, Time};
use prefork_protocol::Slot;
use std::collections::BTreeSet;
use std::time::Duration;

/// What operators ask by, and how they are answered.
#[derive(Debug)]
pub(crate) struct Operators {
    pub(crate) control: ControlServer,
    /// What has happened.
    pub(crate) journal: Journal,
    /// What the server has done.
    pub(crate) counts: Counts,
    /// The answer to `status`, as of this time.
    pub(crate) status_line: Option<(Time, Vec<u8>)>,
    /// Control clients that wait for a reload's verdict.
    pub(crate) waiting: BTreeSet<u64>,
    pub(crate) last_reload: Option<LastReload>,
}

/// What the server has done since it started, upgrades in place included.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// When it started, in seconds of Unix time.
    pub(crate) started: u64,
    pub(crate) spawned: u64,
    pub(crate) reloads: u64,
    pub(crate) failed_reloads: u64,
    /// Answers to `status`.
    pub(crate) status_requests: u64,
}

impl Counts {
    /// Continues to count where another version was.
    pub(crate) fn resumed(state: &CountsState) -> Self {
        Self {
            started: state.started,
            spawned: state.spawned,
            reloads: state.reloads,
            failed_reloads: state.failed_reloads,
            status_requests: state.status_requests,
        }
    }
}

impl Operators {
    /// Those of a server that starts now.
    pub(crate) fn new(unix_time: Duration) -> Self {
        Self {
            control: ControlServer::default(),
            journal: Journal::default(),
            counts: Counts {
                started: unix_time.as_secs(),
                ..Counts::default()
            },
            status_line: None,
            waiting: BTreeSet::new(),
            last_reload: None,
        }
    }

    /// Returns when a control client has had its time.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.control.next_deadline()
    }
}

impl Server {
    pub(crate) fn take_signals(&mut self) {
        let signals = self.signals.take().collect();
        self.act_on(signals);
    }

    pub(crate) fn act_on(&mut self, signals: Vec<Signal>) {
        let mut commands = Vec::new();
        let mut upgrade = false;
        for signal in signals {
            match signal {
                Signal::SIGINT => commands.push(Command::StopNow),
                Signal::SIGTERM | Signal::SIGQUIT => commands.push(Command::Stop),
                Signal::SIGHUP => commands.push(Command::Reload(None)),
                Signal::SIGTTIN => commands.push(Command::Resize(1)),
                Signal::SIGTTOU => commands.push(Command::Resize(-1)),
                // What is between a terminal and us, such as sudo, may pass on that its window
                // has changed.
                Signal::SIGWINCH if self.on_terminal => {}
                Signal::SIGWINCH => commands.push(Command::DrainAll),
                Signal::SIGUSR1 => {
                    reopen_log();
                    self.reopen_access_logs(true);
                }
                Signal::SIGUSR2 => upgrade = true,
                Signal::SIGCHLD => self.reap_orphans_now(),
                _ => {}
            }
        }
        // Quick stop before stop before upgrade before reload before scale, whatever the order in
        // which they came.
        commands.sort_by_key(|command| match command {
            Command::StopNow => 0,
            Command::Stop => 1,
            Command::Reload(_) => 2,
            Command::DrainAll => 3,
            Command::Scale(..) | Command::Resize(_) => 4,
            Command::Restart(..) | Command::Drain(..) => 5,
        });
        for command in commands {
            let stops = matches!(command, Command::Stop | Command::StopNow);
            if !stops && std::mem::take(&mut upgrade) {
                self.ask_for_upgrade(None);
            }
            self.feed(Event::Command(command));
        }
        if upgrade {
            self.ask_for_upgrade(None);
        }
    }

    pub(crate) fn answer_request(&mut self, client: u64, request: Request) {
        match request {
            Request::Status {} => self.answer_status(client),
            Request::Events {
                follow,
                since,
                recent,
            } => self.answer_events(client, follow, since, recent),
            Request::Config {} => self.answer_config(client),
            Request::Reload { wait: true } => {
                self.operators.waiting.insert(client);
                self.feed(Event::Command(Command::Reload(Some(RequestId(client)))));
            }
            Request::Reload { wait: false } => {
                self.answer(client, &Answer::done());
                self.feed(Event::Command(Command::Reload(None)));
            }
            Request::Scale { workers } => {
                self.feed(Event::Command(Command::Scale(
                    workers,
                    Some(RequestId(client)),
                )));
            }
            Request::RestartWorker { slot, wait } => {
                self.command_slot(client, wait, |request| {
                    Command::Restart(Slot(slot), Some(request))
                });
            }
            Request::Drain { slot, wait } => {
                self.command_slot(client, wait, |request| {
                    Command::Drain(Slot(slot), Some(request))
                });
            }
            Request::Upgrade { wait: true } => self.ask_for_upgrade(Some(client)),
            Request::Upgrade { wait: false } => {
                self.answer(client, &Answer::done());
                self.ask_for_upgrade(None);
            }
            Request::Stop { now } => {
                self.answer(client, &Answer::done());
                self.feed(Event::Command(if now {
                    Command::StopNow
                } else {
                    Command::Stop
                }));
            }
        }
    }

    /// Gives the core a command for a slot. A client that does not wait is answered as soon as the
    /// core has not refused: it learns that there is no such slot all the same.
    fn command_slot(
        &mut self,
        client: u64,
        waits: bool,
        command: impl FnOnce(RequestId) -> Command,
    ) {
        self.feed(Event::Command(command(RequestId(client))));
        if !waits && self.operators.control.is_waiting(client) {
            self.answer(client, &Answer::done());
        }
    }

    /// Answers with the status, which is rendered once for all clients of one round.
    fn answer_status(&mut self, client: u64) {
        if self
            .operators
            .status_line
            .as_ref()
            .is_none_or(|(made, _)| *made != self.now)
        {
            self.operators.counts.status_requests += 1;
            let answer = Answer {
                status: Json::write(&self.status()),
                ..Answer::done()
            };
            self.operators.status_line = Some((self.now, answer.line()));
        }
        if let Some((_, line)) = &self.operators.status_line {
            self.operators
                .control
                .send(self.now, &self.poll, client, line, true);
        }
    }

    fn answer_events(
        &mut self,
        client: u64,
        follow: bool,
        since: Option<u64>,
        recent: Option<u32>,
    ) {
        let mut lines = Vec::new();
        for event in self.operators.journal.after(since.unwrap_or(0), recent) {
            lines.extend(event_line(&event));
        }
        if follow {
            self.operators.control.follow(client);
        } else {
            lines.extend(Answer::done().line());
        }
        self.operators
            .control
            .send(self.now, &self.poll, client, &lines, !follow);
    }

    fn answer_config(&mut self, client: u64) {
        let generation = self.generations.accepted();
        let config = generation.map(|generation| self.generations.loader.explain(generation));
        let answer = Answer {
            config: config.and_then(|config| Json::write(&config)),
            generation: Some(self.generations.accepted.0),
            ..Answer::done()
        };
        self.answer(client, &answer);
    }

    pub(crate) fn answer(&mut self, client: u64, answer: &Answer) {
        self.operators
            .control
            .answer(self.now, &self.poll, client, answer);
    }

    /// Publishes an event: in the log, in the journal, to hooks, and to the clients that follow.
    pub(crate) fn announce(&mut self, record: EventRecord) {
        record.log();
        let level = record.level;
        let event = self.operators.journal.note(record);
        let generation = self.generations.accepted();
        self.helpers.hooks.offer(
            generation.map(|generation| &generation.config.hooks),
            level,
            &event,
        );
        if self.operators.control.is_followed() {
            let line = event_line(&event);
            self.operators
                .control
                .broadcast(self.now, &self.poll, &line);
        }
    }

    /// Reports a fact: in the log and as an event, to systemd, to clients that wait, and in the
    /// counts.
    pub(crate) fn report(&mut self, fact: &Fact) {
        let handles = &self.workers.handles;
        let handle = report::subject(fact).and_then(|who| handles.get(&who.worker));
        let event = match fact {
            Fact::Died(who, worker_exit) => {
                let record = handle.and_then(|handle| handle.exit.as_ref());
                let now = prefork_os::monotonic_ms();
                self.workers.exits.count(worker_exit.cause);
                Some(to_event(*who, worker_exit, record, now))
            }
            _ => report::to_event(fact, handle.map(|handle| handle.pid)),
        };
        if let Some(event) = event {
            self.announce(event);
        }
        self.systemd.report(self.now, self.booted, fact);
        match fact {
            Fact::ServerReady(..) => self.booted = true,
            Fact::Spawning(_) => self.operators.counts.spawned += 1,
            Fact::Reloaded(generation, _) => {
                self.operators.counts.reloads += 1;
                self.operators.last_reload = Some(LastReload {
                    generation: generation.0,
                    ok: true,
                    reason: None,
                });
            }
            Fact::ReloadFailed(refused, _, reason) => {
                self.operators.counts.failed_reloads += 1;
                self.operators.last_reload = Some(LastReload {
                    generation: refused.0,
                    ok: false,
                    reason: Some(reason.clone()),
                });
            }
            _ => {}
        }
        if !self.operators.waiting.is_empty()
            && let Some(progress) = report::progress(fact)
        {
            let reload = self.core.view().reload.map(Progress::from);
            let answer = Answer {
                reload,
                ..Answer::progress(progress)
            };
            for client in self.operators.waiting.clone() {
                self.answer(client, &answer);
            }
        }
    }
}

fn reopen_log() {
    match logging::reopen() {
        Ok(true) => info!("log file reopened"),
        Ok(false) => debug!("there is no log file to reopen"),
        Err(reason) => error!("{reason}; going on with the old one"),
    }
}
