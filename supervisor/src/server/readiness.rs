//! ReadinessProbes: who is looked at, and what comes of it.

use super::Server;
use crate::config::Ready;
use crate::helpers::readiness_probe::Ended;
use crate::process::poll::{Interest, Token};
use crate::workers::sockets::WorkerSockets;
use log::debug;
use prefork_core::Event;
use prefork_protocol::WorkerId;
use std::os::fd::BorrowedFd;

impl Server {
    /// Has a program that has just been started looked at, if its readiness is to be seen.
    pub(crate) fn look_out(&mut self, worker: WorkerId) -> Option<Event> {
        let hand = self.hands.get(&worker).filter(|hand| hand.is_awaited())?;
        let generation = self.generations.get(&hand.generation)?;
        if generation.config.ready != Ready::Listen {
            return None;
        }
        let queues = WorkerSockets::of(generation, hand.slot);
        let sockets: Vec<BorrowedFd<'_>> = queues.own.iter().map(|(_, socket)| *socket).collect();
        let log = &generation.config.log;
        let pidfd = self
            .lookouts
            .start(&self.name, worker, hand.pid, &sockets, log);
        let watched = pidfd.and_then(|pidfd| {
            let watched = self
                .poll
                .add(pidfd, Token::ReadinessProbe(worker), Interest::Read);
            watched
                .map_err(|error| format!("cannot watch the lookout for worker {worker}: {error}"))
        });
        match watched {
            Ok(()) => None,
            Err(reason) => {
                self.stop_looking_out(worker);
                Some(Event::ProtocolViolation(worker, reason))
            }
        }
    }

    /// Whether a program is ready when it says so. Whoever is to be seen may say so too early, as gunicorn does, whose master
    /// speaks before it has a worker.
    pub(crate) fn takes_its_word(&self, worker: WorkerId) -> bool {
        let generation = self
            .hands
            .get(&worker)
            .and_then(|hand| self.generations.get(&hand.generation));
        generation.is_none_or(|generation| generation.config.ready != Ready::Listen)
    }

    /// Everybody who is not ready yet is looked at anew: the lookouts of the version before are nobody's.
    pub(crate) fn look_out_again(&mut self) {
        for worker in self.hands.keys().copied().collect::<Vec<_>>() {
            if let Some(event) = self.look_out(worker) {
                self.feed(event);
            }
        }
    }

    /// A lookout has ended.
    pub(crate) fn hear_lookout(&mut self, worker: WorkerId) {
        if let Some(pidfd) = self.lookouts.pidfd(worker) {
            self.poll.remove(pidfd);
        }
        match self.lookouts.end(worker, &mut self.doomed) {
            Some(Ended::Seen) => {
                let event = self
                    .hands
                    .get_mut(&worker)
                    .and_then(|hand| hand.seen_to_wait());
                if let Some(event) = event {
                    self.feed(event);
                }
            }
            Some(Ended::Gone) | None => {
                debug!("the lookout for worker {worker} has nobody to look at")
            }
            Some(Ended::Failed(how)) => {
                // Nobody would ever know.
                let reason = format!("cannot be seen to get ready: its lookout {how}");
                self.feed(Event::ProtocolViolation(worker, reason));
            }
        }
    }

    /// A worker is gone.
    pub(crate) fn stop_looking_out(&mut self, worker: WorkerId) {
        if let Some(pidfd) = self.lookouts.pidfd(worker) {
            self.poll.remove(pidfd);
            self.lookouts.end(worker, &mut self.doomed);
        }
    }
}
