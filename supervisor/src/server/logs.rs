//! The access logs of the generations: looked after once a second, and whenever USR1 asks for it.

use super::Server;
use crate::workers::handle::Line;
use log::{debug, error};
use prefork_core::Time;
use prefork_protocol::message::ToWorker;
use std::os::fd::AsFd;
use std::time::Duration;

/// How often to look whether a log's path names another file.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When access logs were looked after, and what could not be done about them.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    looked: Time,
    /// Said already.
    trouble: Option<String>,
}

impl Server {
    /// Looks after the access logs if it is time. The server wakes up for other reasons often enough.
    pub(crate) fn tend_logs(&mut self) {
        if self.now - self.logs.looked >= LOOK_EVERY {
            self.reopen_access_logs(false);
        }
    }

    /// Opens logs anew whose path names another file, or all of them, and gives them to whoever has an older one.
    pub(crate) fn reopen_access_logs(&mut self, anyway: bool) {
        self.logs.looked = self.now;
        let mut trouble = None;
        for generation in self.generations.values_mut() {
            if let Some(log) = &mut generation.access {
                match log.reopen(anyway) {
                    Ok(true) => debug!("the access log is opened anew"),
                    Ok(false) => (),
                    Err(reason) => trouble = Some(reason),
                }
            }
        }
        if let Some(reason) = trouble
            .as_ref()
            .filter(|reason| self.logs.trouble.as_ref() != Some(reason))
        {
            error!("{reason}; the old file goes on being written");
        }
        self.logs.trouble = trouble;
        for hand in self.hands.values_mut() {
            let log = self
                .generations
                .get(&hand.generation)
                .and_then(|generation| generation.access.as_ref());
            let Some(log) = log.filter(|log| log.reopen_count != hand.reopen_count) else {
                continue;
            };
            if let Line::Channel { channel, .. } = &hand.line {
                // Whoever does not read its channel now is told later.
                match channel.send_with(&ToWorker::Reopen, log.as_fd()) {
                    Ok(()) => hand.reopen_count = log.reopen_count,
                    Err(error) => {
                        debug!("worker {} cannot be given the access log: {error}", hand.id)
                    }
                }
            }
        }
    }
}
