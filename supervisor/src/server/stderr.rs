//! Workers' standard error, passed on to our own as long as somebody reads that.

use super::Server;
use crate::logging::stderr::capture::Heard;
use crate::logging::stderr::outlet::outlet;
use crate::process::poll::{Interest, Token};
use log::{debug, warn};
use prefork_core::Time;
use prefork_protocol::WorkerId;
use std::time::Duration;

/// How soon a standard error that cannot be watched is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// How the relay is.
#[derive(Debug, Default)]
pub(crate) struct StderrForwarder {
    /// Our own standard error is blocked: nobody's is read.
    paused: bool,
    /// When it is tried again, if it cannot be watched.
    due: Option<Time>,
    /// Who was refused last: the next one is first when it goes on.
    turn: WorkerId,
}

impl StderrForwarder {
    pub(crate) fn due(&self) -> Option<Time> {
        self.due
    }
}

impl Server {
    /// A worker has written something, or can write no more.
    pub(crate) fn relay(&mut self, worker: WorkerId) {
        let Some(capture) = self
            .hands
            .get_mut(&worker)
            .and_then(|hand| hand.stderr.as_mut())
        else {
            return;
        };
        match capture.relay() {
            Heard::Flowing => {}
            Heard::Blocked => self.relay.turn = worker,
            Heard::Ended => {
                if let Some(pipe) = capture.descriptor() {
                    self.poll.remove(pipe);
                }
                capture.close();
            }
        }
    }

    /// Our own standard error can be written again.
    pub(crate) fn reopen_outlet(&mut self) {
        outlet().unblock();
    }

    /// At the end of every round: pauses when our own standard error is blocked, and goes on when it is not any more.
    pub(crate) fn tend_relay(&mut self) {
        if self.relay.due.take_if(|at| *at <= self.now).is_some() {
            outlet().unblock();
        }
        let blocked = outlet().is_blocked();
        match (blocked, self.relay.paused) {
            (true, false) => self.pause_relay(),
            (false, true) => self.resume_relay(),
            (true, true) | (false, false) => {}
        }
    }

    fn pause_relay(&mut self) {
        self.relay.paused = true;
        for pipe in self
            .hands
            .values()
            .filter_map(|hand| hand.stderr.as_ref()?.descriptor())
        {
            self.poll.remove(pipe);
        }
        self.wait_for_outlet();
    }

    fn resume_relay(&mut self) {
        outlet().with_descriptor(|stderr| self.poll.remove(stderr));
        self.relay.due = None;
        let lost = outlet().take_lost();
        if lost > 0 {
            warn!(lines = lost; "{lost} lines of standard error are lost, as nobody read it");
        }
        // Whoever was refused last has had its turn.
        let turn = self.relay.turn;
        let mut waiting: Vec<WorkerId> = self.hands.keys().copied().collect();
        let start = waiting.partition_point(|worker| *worker <= turn);
        waiting.rotate_left(start);
        for worker in waiting {
            let capture = self
                .hands
                .get_mut(&worker)
                .and_then(|hand| hand.stderr.as_mut());
            if capture.is_some_and(|capture| !capture.pass_on()) {
                self.relay.turn = worker;
                return self.wait_for_outlet();
            }
        }
        self.relay.paused = false;
        for hand in self.hands.values() {
            if let Err(error) = self.watch_stderr(hand) {
                debug!("cannot watch worker {}'s standard error: {error}", hand.id);
            }
        }
    }

    fn wait_for_outlet(&mut self) {
        let watched = outlet()
            .with_descriptor(|stderr| self.poll.add(stderr, Token::StderrWriter, Interest::Write));
        if watched.is_err() {
            // What cannot be watched can mostly be written.
            self.relay.due = Some(self.now + TRY_AGAIN);
        }
    }

    /// Watches a worker's standard error, unless the relay is paused.
    pub(crate) fn watch_stderr(
        &self,
        hand: &crate::workers::handle::WorkerHandle,
    ) -> std::io::Result<()> {
        let pipe = hand
            .stderr
            .as_ref()
            .and_then(|capture| capture.descriptor());
        match pipe.filter(|_| !self.relay.paused) {
            Some(pipe) => self.poll.add(pipe, Token::Stderr(hand.id), Interest::Read),
            None => Ok(()),
        }
    }
}
