//! When workers' memory is measured, and what comes of it.

use super::Server;
use crate::process::poll::{Interest, Token};
use log::{debug, warn};
use prefork_core::{Event, Time};

impl Server {
    fn measures_memory(&self) -> bool {
        self.generations
            .values()
            .any(|generation| generation.config.max_memory.is_some())
            && !self.core.is_stopping()
    }

    /// When memory is to be measured next, or whoever measures it has had his time.
    pub(crate) fn gauge_due(&self) -> Option<Time> {
        (self.gauge.pid().is_some() || self.measures_memory()).then(|| self.gauge.due())
    }

    /// Measures, if it is time.
    pub(crate) fn tend_gauge(&mut self) {
        if self.gauge_due().is_none_or(|due| due > self.now) {
            return;
        }
        if self.gauge.pid().is_some() {
            return self.hear_gauge();
        }
        let workers = self
            .hands
            .values()
            .map(|hand| (hand.id, hand.pid))
            .collect();
        match self.gauge.start(self.now, &self.name, workers) {
            Ok(None) => {}
            Ok(Some(pidfd)) => {
                if let Err(error) = self.poll.add(pidfd, Token::MemorySampler, Interest::Read) {
                    // It is heard when it has had its time.
                    debug!("cannot watch the gauge: {error}");
                }
            }
            Err(reason) => warn!("{reason}"),
        }
    }

    /// It has ended, or has had its time.
    pub(crate) fn hear_gauge(&mut self) {
        if let Some(pidfd) = self.gauge.pidfd() {
            self.poll.remove(pidfd);
        }
        let Some(measured) = self.gauge.end(self.now, &mut self.doomed) else {
            return;
        };
        if let Some(trouble) = measured.trouble {
            warn!("{trouble}");
        }
        for (worker, bytes) in measured.memory {
            if let Some(hand) = self.hands.get_mut(&worker) {
                hand.memory = Some(bytes);
            }
        }
        let look = self.look();
        self.feed(Event::Observation(look));
    }
}
