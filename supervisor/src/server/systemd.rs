//! What the server exchanges with systemd: notifications, the watchdog, and stored sockets.

use crate::listen::Listeners;
use crate::systemd::fd_store::FdStore;
use crate::systemd::notify::Notifier;
use crate::systemd::notify::facts;
use log::{debug, warn};
use prefork_core::{Fact, Time};
use prefork_protocol::environment::FDSTORE;
use std::io::ErrorKind;
use std::time::Duration;

/// The time until a notification that systemd's socket had no room for is sent again.
const RETRY: Duration = Duration::from_millis(200);

/// The server's side of systemd.
#[derive(Debug)]
pub(crate) struct Systemd {
    pub(crate) notifier: Notifier,
    pub(crate) store: FdStore,
    /// The watchdog's period, and when it is fed next.
    watchdog: Option<(Duration, Time)>,
    /// The last fact that systemd's socket had no room for, and when it is sent again.
    unsent: Option<(Time, Fact)>,
}

impl Systemd {
    /// Connects to the service manager that `NOTIFY_SOCKET` names, if it names one. `stored` are
    /// names and inodes of sockets that came from its FD store.
    pub(crate) fn connect(now: Time, stored: &[(String, u64)]) -> Self {
        let notifier = Notifier::from_env().unwrap_or_else(|error| {
            warn!("systemd notifications disabled: {error}");
            Notifier::default()
        });
        Self::new(now, notifier, stored)
    }

    /// Stays silent: a state is only checked.
    pub(crate) fn silent(now: Time, stored: &[(String, u64)]) -> Self {
        Self::new(now, Notifier::default(), stored)
    }

    fn new(now: Time, notifier: Notifier, stored: &[(String, u64)]) -> Self {
        let offered = std::env::var(FDSTORE).ok();
        Self {
            store: FdStore::new(now, &notifier, offered.as_deref(), stored),
            watchdog: notifier.watchdog_period().map(|period| (period, now)),
            notifier,
            unsent: None,
        }
    }

    /// Returns when [`tend`](Self::tend) has something to do.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let watchdog = self.watchdog.map(|(_, at)| at);
        let unsent = self.unsent.as_ref().map(|(at, _)| *at);
        [watchdog, unsent, self.store.due()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Feeds the watchdog, sends again what was not sent, and updates the FD store, as far as it is
    /// time.
    pub(crate) fn tend(&mut self, now: Time, booted: bool, listeners: &Listeners) {
        if let Some((period, at)) = &mut self.watchdog
            && *at <= now
        {
            // One that is not taken is followed by another.
            let _ = self.notifier.watchdog();
            *at = now + *period;
        }
        if let Some((_, fact)) = self.unsent.take_if(|(at, _)| *at <= now) {
            self.report(now, booted, &fact);
        }
        self.store
            .sync(now, &self.notifier, || listeners.storable_sockets());
    }

    /// Notifies systemd of a fact. One that it does not take is sent again later, or a unit could
    /// hang in "reloading".
    pub(crate) fn report(&mut self, now: Time, booted: bool, fact: &Fact) {
        let sent = facts::report(&self.notifier, fact, booted);
        self.unsent = match sent {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Some((now + RETRY, fact.clone()))
            }
            Err(error) => {
                debug!("cannot notify systemd: {error}");
                None
            }
            Ok(()) => self.unsent.take(),
        };
    }
}
