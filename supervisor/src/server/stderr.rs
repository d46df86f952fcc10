//! Workers' standard error, forwarded to our own as long as that one is read.

use super::Server;
use crate::logging::stderr::Capture;
use crate::logging::stderr::capture::ReadOutcome;
use crate::logging::stderr::writer::stderr_writer;
use crate::process::poll::{Interest, Token};
use crate::workers::handle::WorkerHandle;
use log::{debug, warn};
use prefork_core::Time;
use prefork_protocol::WorkerId;
use std::time::Duration;

/// The time until a standard error that cannot be watched is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// The state of the forwarding.
#[derive(Debug, Default)]
pub(crate) struct StderrForwarder {
    /// Our own standard error is blocked: no worker's is read.
    paused: bool,
    /// When it is tried again, if it cannot be watched.
    due: Option<Time>,
    /// The worker that was refused last: the next one is first when forwarding goes on.
    turn: WorkerId,
}

impl StderrForwarder {
    /// Returns when our own standard error is tried again.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.due
    }
}

impl Server {
    /// A worker has written something, or can write no more.
    pub(crate) fn forward_stderr(&mut self, worker: WorkerId) {
        let Some(capture) = self
            .workers
            .handles
            .get_mut(&worker)
            .and_then(|handle| handle.stderr.as_mut())
        else {
            return;
        };
        match capture.forward() {
            ReadOutcome::Flowing => {}
            ReadOutcome::Blocked => self.stderr.turn = worker,
            ReadOutcome::Ended => {
                if let Some(pipe) = capture.descriptor() {
                    self.poll.remove(pipe);
                }
                capture.close();
            }
        }
    }

    /// Pauses when our own standard error is blocked, and goes on when it is not any more.
    pub(crate) fn tend_stderr(&mut self) {
        if self.stderr.due.take_if(|at| *at <= self.now).is_some() {
            stderr_writer().unblock();
        }
        let blocked = stderr_writer().is_blocked();
        match (blocked, self.stderr.paused) {
            (true, false) => self.pause_stderr(),
            (false, true) => self.resume_stderr(),
            (true, true) | (false, false) => {}
        }
    }

    fn pause_stderr(&mut self) {
        self.stderr.paused = true;
        for pipe in self
            .workers
            .handles
            .values()
            .filter_map(|handle| handle.stderr.as_ref()?.descriptor())
        {
            self.poll.remove(pipe);
        }
        self.wait_until_writable();
    }

    fn resume_stderr(&mut self) {
        stderr_writer().with_descriptor(|stderr| self.poll.remove(stderr));
        self.stderr.due = None;
        let dropped = stderr_writer().take_dropped();
        if dropped > 0 {
            warn!(lines = dropped; "dropped {dropped} lines of worker stderr: reader too slow");
        }
        // The one that was refused last has had its turn.
        let turn = self.stderr.turn;
        let mut waiting: Vec<WorkerId> = self.workers.handles.keys().copied().collect();
        let start = waiting.partition_point(|worker| *worker <= turn);
        waiting.rotate_left(start);
        for worker in waiting {
            let capture = self
                .workers
                .handles
                .get_mut(&worker)
                .and_then(|handle| handle.stderr.as_mut());
            if capture.is_some_and(|capture| !capture.try_write()) {
                self.stderr.turn = worker;
                return self.wait_until_writable();
            }
        }
        self.stderr.paused = false;
        for handle in self.workers.handles.values() {
            if let Err(error) = self.watch_stderr(handle) {
                debug!(
                    "cannot watch worker {}'s standard error: {error}",
                    handle.id
                );
            }
        }
    }

    fn wait_until_writable(&mut self) {
        let watched = stderr_writer()
            .with_descriptor(|stderr| self.poll.add(stderr, Token::StderrWriter, Interest::Write));
        if watched.is_err() {
            // What cannot be watched can mostly be written.
            self.stderr.due = Some(self.now + RETRY);
        }
    }

    /// Watches a worker's standard error, unless forwarding is paused.
    pub(crate) fn watch_stderr(&self, handle: &WorkerHandle) -> std::io::Result<()> {
        let pipe = handle.stderr.as_ref().and_then(Capture::descriptor);
        match pipe.filter(|_| !self.stderr.paused) {
            Some(pipe) => self
                .poll
                .add(pipe, Token::Stderr(handle.id), Interest::Read),
            None => Ok(()),
        }
    }
}
