//! The admin child: when one is started, and what becomes of it.

use super::Server;
use crate::api::events::EventRecord;
use crate::control::Role;
use crate::process::poll::{Interest, Token};
use log::{Level, debug, warn};
use prefork_core::Time;

impl Server {
    /// When something is to be done about it.
    pub(crate) fn admin_due(&self) -> Option<Time> {
        self.admin.due(self.generations.get(&self.accepted))
    }

    /// Has the child be the one that the accepted generation wants.
    pub(crate) fn tend_admin(&mut self) {
        self.admin.expire(self.now, &mut self.doomed);
        let Some(generation) = self.generations.get(&self.accepted) else {
            return;
        };
        if self.admin.is_outdated(generation) {
            self.control.dismiss(&self.poll);
            self.admin.retire(self.now);
        }
        let started = match self.admin.start(self.now, &self.name, generation) {
            Ok(None) => return,
            Ok(Some(started)) => started,
            Err(reason) => return warn!("{reason}"),
        };
        let [status, events] = started.ends;
        let watched = self
            .poll
            .add(started.pidfd, Token::Admin(started.id), Interest::Read)
            .and_then(|()| self.control.take_in(&self.poll, status, Role::Read))
            .and_then(|()| self.control.take_in(&self.poll, events, Role::Read));
        match watched {
            Ok(()) => debug!("the admin child is process {}", started.pid),
            Err(error) => {
                warn!("cannot watch the admin child: {error}");
                // Without its connections it leaves by itself, or is killed.
                self.control.dismiss(&self.poll);
                self.admin.retire_failed(self.now);
            }
        }
    }

    /// A child is dead.
    pub(crate) fn reap_admin(&mut self, id: u64) {
        if let Some(pidfd) = self.admin.pidfd(id) {
            self.poll.remove(pidfd);
        }
        if let Some(ended) = self.admin.end(self.now, id) {
            let wait = ended.wait;
            let text = format!(
                "the admin child is dead ({}); its clients wait, and another one starts",
                ended.how
            );
            let text = if wait.is_zero() {
                text
            } else {
                format!("{text} in {wait:.1?}")
            };
            self.announce(EventRecord::new("admin-died", Level::Warn, text).with("end", ended.how));
        }
    }
}
