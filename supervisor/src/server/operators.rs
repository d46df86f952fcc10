//! What operators ask, by signal or on the control socket, and what they and systemd are told.

use super::{Server, TELL_AGAIN};
use crate::api::events::EventRecord;
use crate::api::report;
use crate::api::status::LastReload;
use crate::api::worker_exit::to_event;
use crate::control::{Answer, Progress, Request, event_line};
use crate::logging as logfile;
use log::{debug, error, info};
use nix::sys::signal::Signal;
use prefork_core::{Command, Event, Fact, RequestId};
use prefork_protocol::Slot;

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
                // A terminal sends it whenever its window changes.
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
        // Quick stop before stop before upgrade before reload before scale, whatever the order in which they came.
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
            Request::Status => self.answer_status(client),
            Request::Events {
                follow,
                since,
                recent,
            } => self.answer_events(client, follow, since, recent),
            Request::Config => self.answer_config(client),
            Request::Reload { wait: true } => {
                self.waiting.insert(client);
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
                let asked = self.asked_by(client, wait);
                self.feed(Event::Command(Command::Restart(Slot(slot), asked)));
            }
            Request::Drain { slot, wait } => {
                let asked = self.asked_by(client, wait);
                self.feed(Event::Command(Command::Drain(Slot(slot), asked)));
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

    /// Who waits for the verdict. A client that does not is answered at once.
    fn asked_by(&mut self, client: u64, waits: bool) -> Option<RequestId> {
        if !waits {
            self.answer(client, &Answer::done());
        }
        waits.then_some(RequestId(client))
    }

    /// Makes the picture once for all who ask in one round.
    fn answer_status(&mut self, client: u64) {
        if self
            .picture
            .as_ref()
            .is_none_or(|(made, _)| *made != self.now)
        {
            self.counts.pictures += 1;
            let answer = Answer {
                status: serde_json::to_value(self.status()).ok(),
                ..Answer::done()
            };
            self.picture = Some((self.now, answer.line()));
        }
        if let Some((_, line)) = &self.picture {
            self.control.send(self.now, &self.poll, client, line, true);
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
        for event in self.journal.after(since.unwrap_or(0), recent) {
            lines.extend(event_line(&event));
        }
        if follow {
            self.control.follow(client);
        } else {
            lines.extend(Answer::done().line());
        }
        self.control
            .send(self.now, &self.poll, client, &lines, !follow);
    }

    fn answer_config(&mut self, client: u64) {
        let generation = self.generations.get(&self.accepted);
        let config = generation.map(|generation| self.loader.explain(generation));
        let answer = Answer {
            config: config.and_then(|config| serde_json::to_value(config).ok()),
            generation: Some(self.accepted.0),
            ..Answer::done()
        };
        self.answer(client, &answer);
    }

    pub(crate) fn answer(&mut self, client: u64, answer: &Answer) {
        self.control.answer(self.now, &self.poll, client, answer);
    }

    /// Tells of something: in the log, in the journal, and to whoever follows.
    pub(crate) fn announce(&mut self, record: EventRecord) {
        record.log();
        let level = record.level;
        let event = self.journal.note(record);
        let generation = self.generations.get(&self.accepted);
        self.hooks.offer(
            generation.map(|generation| &generation.config.hooks),
            level,
            &event,
        );
        if self.control.is_followed() {
            let line = event_line(&event);
            self.control.tell(self.now, &self.poll, &line);
        }
    }

    /// Starts hooks for the events of this round, and ends those that take too long.
    pub(crate) fn tend_hooks(&mut self) {
        self.hooks.expire(self.now);
        if let Some(generation) = self.generations.get(&self.accepted) {
            self.hooks
                .start_next(self.now, &self.poll, &generation.config);
        }
    }

    /// What systemd does not take at once it is told again, or a unit could hang in "reloading".
    pub(crate) fn tell_systemd(&mut self, fact: &Fact) {
        let told = report::tell_systemd(&self.systemd, fact, self.booted);
        self.untold = match told {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                Some((self.now + TELL_AGAIN, fact.clone()))
            }
            Err(error) => {
                debug!("cannot tell systemd: {error}");
                None
            }
            Ok(()) => self.untold.take(),
        };
    }

    pub(crate) fn report(&mut self, fact: &Fact) {
        let pid = report::subject(fact)
            .and_then(|who| self.hands.get(&who.worker))
            .map(|hand| hand.pid);
        match fact {
            Fact::Died(who, worker_exit) => {
                let record = self
                    .record
                    .as_ref()
                    .filter(|(worker, _)| *worker == who.worker);
                let now = prefork_os::monotonic_ms();
                let event = to_event(*who, worker_exit, record.map(|(_, record)| record), now);
                self.deaths.count(worker_exit.cause);
                self.announce(event);
            }
            _ => {
                if let Some(event) = report::to_event(fact, pid) {
                    self.announce(event);
                }
            }
        }
        match fact {
            Fact::Reloaded(..) if self.begin_to_settle(fact) => {}
            Fact::ReloadBegan(_)
            | Fact::ReloadFailed(..)
            | Fact::Stopping(_)
            | Fact::StartupFailed(_) => {
                // The end of one thing is told before the beginning of another.
                self.settle_now();
                self.tell_systemd(fact);
            }
            _ => self.tell_systemd(fact),
        }
        match fact {
            Fact::ServerReady(..) => self.booted = true,
            Fact::Spawning(_) => self.counts.spawned += 1,
            Fact::Reloaded(generation, _) => {
                self.counts.reloads += 1;
                self.last_reload = Some(LastReload {
                    generation: generation.0,
                    ok: true,
                    reason: None,
                });
            }
            Fact::ReloadFailed(refused, _, reason) => {
                self.counts.failed_reloads += 1;
                self.last_reload = Some(LastReload {
                    generation: refused.0,
                    ok: false,
                    reason: Some(reason.clone()),
                });
            }
            _ => {}
        }
        if !self.waiting.is_empty()
            && let Some(progress) = report::progress(fact)
        {
            let reload = self.core.view().reload.map(|view| Progress {
                generation: view.generation.0,
                slots: view.slots,
                spawned: view.spawned,
                ready: view.ready,
                passed: view.passed,
            });
            let answer = Answer {
                reload,
                ..Answer::progress(progress)
            };
            for client in self.waiting.clone() {
                self.answer(client, &answer);
            }
        }
    }
}

fn reopen_log() {
    match logfile::reopen() {
        Ok(true) => info!("log file reopened"),
        Ok(false) => debug!("there is no log file to reopen"),
        Err(reason) => error!("{reason}; going on with the old one"),
    }
}
