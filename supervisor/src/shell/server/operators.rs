//! What operators ask, by signal or on the control socket, and what they and systemd are told.

use super::{Server, TELL_AGAIN};
use crate::core::{Command, Event, Fact, RequestId};
use crate::shell::control::{Answer, Request};
use crate::shell::status::{LastReload, Status, status};
use crate::shell::{deaths, log as logfile, report};
use log::{debug, error, info};
use nix::sys::signal::Signal;

impl Server {
    pub(super) fn take_signals(&mut self) {
        let signals = self.signals.take().collect();
        self.act_on(signals);
    }

    pub(super) fn act_on(&mut self, signals: Vec<Signal>) {
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
                Signal::SIGUSR1 => reopen_log(),
                Signal::SIGUSR2 => upgrade = true,
                Signal::SIGCHLD => self.bury_orphans(),
                _ => {}
            }
        }
        // Quick stop before stop before upgrade before reload before scale, whatever the order in which they came.
        commands.sort_by_key(|command| match command {
            Command::StopNow => 0,
            Command::Stop => 1,
            Command::Reload(_) => 2,
            Command::DrainAll => 3,
            Command::Resize(_) => 4,
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

    pub(super) fn answer_request(&mut self, client: u64, request: Request) {
        match request {
            Request::Status => {
                let sockets = self.generations.get(&self.accepted).map(|generation| &generation.sockets);
                let status = status(
                    self.core.view(),
                    &self.hands,
                    &self.scoreboard,
                    &self.dead,
                    |slot| sockets.and_then(|sockets| sockets.queue(slot)),
                    sockets.map(|sockets| sockets.describe()).unwrap_or_default(),
                    self.last_reload.clone(),
                );
                let status = Status {
                    last_upgrade: self.upgrade.last.clone(),
                    deaths: self.deaths.by_cause(),
                    ..status
                };
                let answer = Answer { status: serde_json::to_value(status).ok(), ..Answer::done() };
                self.answer(client, &answer);
            }
            Request::Reload { wait: true } => {
                self.waiting.insert(client);
                self.feed(Event::Command(Command::Reload(Some(RequestId(client)))));
            }
            Request::Reload { wait: false } => {
                self.answer(client, &Answer::done());
                self.feed(Event::Command(Command::Reload(None)));
            }
            Request::Upgrade { wait: true } => self.ask_for_upgrade(Some(client)),
            Request::Upgrade { wait: false } => {
                self.answer(client, &Answer::done());
                self.ask_for_upgrade(None);
            }
            Request::Stop { now } => {
                self.answer(client, &Answer::done());
                self.feed(Event::Command(if now { Command::StopNow } else { Command::Stop }));
            }
        }
    }

    pub(super) fn answer(&mut self, client: u64, answer: &Answer) {
        if let Some(control) = &mut self.control {
            control.answer(self.now, &self.poll, client, answer);
        }
    }

    /// What systemd does not take at once it is told again, or a unit could hang in "reloading".
    pub(super) fn tell_systemd(&mut self, fact: &Fact) {
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

    pub(super) fn report(&mut self, fact: &Fact) {
        let pid = report::subject(fact).and_then(|who| self.hands.get(&who.worker)).map(|hand| hand.pid);
        match fact {
            Fact::Died(who, demise) => {
                let remains = self.remains.as_ref().filter(|(worker, _)| *worker == who.worker);
                deaths::log(*who, demise, remains.map(|(_, remains)| remains), prefork::sys::monotonic_ms());
                self.deaths.count(demise.cause);
            }
            _ => report::log(fact, pid),
        }
        match fact {
            Fact::Reloaded(..) if self.begin_to_settle(fact) => {}
            Fact::ReloadBegan(_) | Fact::ReloadFailed(..) | Fact::Stopping(_) | Fact::Hopeless(_) => {
                // The end of one thing is told before the beginning of another.
                self.settle_now();
                self.tell_systemd(fact);
            }
            _ => self.tell_systemd(fact),
        }
        match fact {
            Fact::ServerReady(..) => self.booted = true,
            Fact::Reloaded(generation, _) => {
                self.last_reload = Some(LastReload { generation: generation.0, ok: true, reason: None });
            }
            Fact::ReloadFailed(refused, _, reason) => {
                self.last_reload =
                    Some(LastReload { generation: refused.0, ok: false, reason: Some(reason.clone()) });
            }
            _ => {}
        }
        if let Some(progress) = report::progress(fact) {
            let answer = Answer::progress(progress);
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
