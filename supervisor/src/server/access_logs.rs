//! The log file, when its reader is slow, and the access logs of the generations: checked once a
//! second, and whenever USR1 asks for it.

use super::Server;
use crate::logging;
use crate::workers::handle::Line;
use log::{debug, error};
use prefork_core::Time;
use prefork_protocol::message::ToWorker;
use std::os::fd::AsFd;
use std::time::Duration;

/// The time between two checks whether a log's path names another file.
const PERIOD: Duration = Duration::from_secs(1);

/// The time until a log file that cannot be written now is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// When access logs were checked last, and what could not be done about them.
#[derive(Debug, Default)]
pub(crate) struct AccessLogs {
    checked: Time,
    /// When the log file is tried again.
    log_due: Option<Time>,
    /// Reported already.
    problem: Option<String>,
}

impl AccessLogs {
    /// Returns when the log file is tried again.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.log_due
    }
}

impl Server {
    /// Writes what waits for the reader of the log file.
    pub(crate) fn tend_log(&mut self) {
        if self.access_logs.log_due.is_none_or(|at| at <= self.now) {
            self.access_logs.log_due = logging::flush().then_some(self.now + RETRY);
        }
    }

    /// Checks the access logs if it is time. The server wakes up for other reasons often enough.
    pub(crate) fn tend_access_logs(&mut self) {
        if self.now - self.access_logs.checked >= PERIOD {
            self.reopen_access_logs(false);
        }
    }

    /// Reopens logs whose path names another file, or all of them, and passes them to the workers
    /// that have an older one.
    pub(crate) fn reopen_access_logs(&mut self, anyway: bool) {
        self.access_logs.checked = self.now;
        let mut problem = None;
        for generation in self.generations.held.values_mut() {
            if let Some(log) = &mut generation.access {
                match log.reopen(anyway) {
                    Ok(true) => debug!("the access log was reopened"),
                    Ok(false) => (),
                    Err(reason) => problem = Some(reason),
                }
            }
        }
        if let Some(reason) = problem
            .as_ref()
            .filter(|reason| self.access_logs.problem.as_ref() != Some(reason))
        {
            error!("{reason}; the old file goes on being written");
        }
        self.access_logs.problem = problem;
        for handle in self.workers.handles.values_mut() {
            let log = self
                .generations
                .get(handle.generation)
                .and_then(|generation| generation.access.as_ref());
            let Some(log) = log.filter(|log| log.reopen_count != handle.reopen_count) else {
                continue;
            };
            if let Line::Channel { channel, .. } = &handle.line {
                // A worker whose channel is full gets it in a later round.
                match channel.send_with(&ToWorker::Reopen, log.as_fd()) {
                    Ok(()) => handle.reopen_count = log.reopen_count,
                    Err(error) => {
                        debug!(
                            "worker {} cannot be given the access log: {error}",
                            handle.id
                        );
                    }
                }
            }
        }
    }
}
