//! Sockets whose files are gone: the runtime directory was removed at a logout, or by a cleaner of
//! temporary files. Checked before workers are judged, about once a second.

use super::Server;
use crate::systemd::notify::NotifyFate;
use crate::workers::handle::Line;
use log::{error, info, warn};
use prefork_core::{Command, Event, Time};
use std::time::Duration;

/// The time between two checks.
const PERIOD: Duration = Duration::from_secs(1);
/// The time between two reloads that are to bind a listening socket again.
const RELOAD_AGAIN: Duration = Duration::from_secs(60);

/// When the files were checked, and what was reported.
#[derive(Debug, Default)]
pub(crate) struct LostSockets {
    checked: Time,
    /// Why there is no control socket.
    control: Option<String>,
    /// When the loss of a listening socket's file was last met by a reload.
    reloaded: Option<Time>,
}

impl Server {
    /// Makes sockets again whose files are gone. The server wakes up for other reasons often
    /// enough.
    pub(crate) fn restore_sockets(&mut self) {
        if self.now - self.lost_sockets.checked < PERIOD {
            return;
        }
        self.lost_sockets.checked = self.now;
        self.restore_notify_socket();
        self.restore_control_socket();
        self.restore_listening_sockets();
    }

    fn restore_notify_socket(&mut self) {
        let why = "it or its directory was removed";
        match self.workers.notify.restore(&self.poll) {
            Ok(NotifyFate::Present) => return,
            Ok(NotifyFate::Remade(path)) => {
                warn!(
                    "notification socket {} was gone ({why}); made it again",
                    path.display()
                );
            }
            Ok(NotifyFate::Gone(Some((path, error)))) => error!(
                "notification socket {} is gone ({why}) and cannot be made again: {error}; \
                 workers that notify there are not judged by their watchdog until it is back",
                path.display()
            ),
            Ok(NotifyFate::Gone(None)) => {}
            Err(error) => error!("cannot make a notification socket: {error}"),
        }
        // What they have sent since the last check is lost.
        for handle in self.workers.handles.values_mut() {
            if let Line::Notify { fed: Some(fed), .. } = &mut handle.line {
                *fed = self.now;
            }
        }
    }

    fn restore_control_socket(&mut self) {
        match self.operators.control.restore(&self.poll) {
            Ok(None) => self.lost_sockets.control = None,
            Ok(Some(path)) => {
                warn!("control socket {} was gone; made it again", path.display());
                self.lost_sockets.control = None;
            }
            Err(error) => {
                let reason = error.to_string();
                if self.lost_sockets.control.as_ref() != Some(&reason) {
                    error!("the control socket is gone: {reason}");
                    self.lost_sockets.control = Some(reason);
                }
            }
        }
    }

    fn restore_listening_sockets(&mut self) {
        let accepted = self.generations.accepted();
        let lost = accepted.and_then(|generation| generation.sockets.lost_files().next());
        let Some(address) = lost.filter(|_| self.booted && !self.core.is_stopping()) else {
            self.lost_sockets.reloaded = None;
            return;
        };
        let last = self.lost_sockets.reloaded;
        if self.core.view().reload.is_some() || last.is_some_and(|at| self.now - at < RELOAD_AGAIN)
        {
            return;
        }
        self.lost_sockets.reloaded = Some(self.now);
        warn!("the file of {address} is gone, and no client can connect");
        info!("reloading to bind {address} again");
        self.feed(Event::Command(Command::Reload(None)));
    }
}
