//! systemd's file descriptor store: copies of our listening sockets with PID 1, which hands them to the next supervisor,
//! whether this one was restarted or died. Meanwhile connections wait in their queues.
//!
//! Whether there is a store, `FDSTORE` tells since systemd 254. Before, it has to be tried: PID 1 is given one end of a
//! pipe to store, then a barrier. If the pipe is still open when the barrier falls, somebody keeps it.
//!
//! Nothing here waits. What systemd does not take, and what it has not said, is tried and asked again a little later.

use super::notify::Notifier;
use crate::listen::{Listeners, inode};
use log::{debug, info, warn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prefork_core::Time;
use std::collections::BTreeMap;
use std::io;
use std::io::PipeReader;
use std::os::fd::AsFd;
use std::time::Duration;

/// The name under which a descriptor is stored only to see whether there is a store.
pub(crate) const PROBE: &str = "prefork-probe";
/// How long until the next look, while something is open.
const AGAIN: Duration = Duration::from_millis(20);
/// After this time without the barrier's fall, there is nobody who knows what a barrier is.
const PATIENCE: Duration = Duration::from_secs(5);

/// What PID 1 keeps for us.
#[derive(Debug)]
pub(crate) struct FdStore {
    state: State,
    /// What it was given: names and inodes of sockets.
    held: BTreeMap<String, u64>,
    /// When to look after it.
    due: Option<Time>,
}

#[derive(Debug)]
enum State {
    /// Nobody keeps anything.
    Off,
    /// It is not known yet.
    Asking {
        probe: PipeReader,
        barrier: PipeReader,
        until: Time,
    },
    /// So many descriptors at most are kept, if that is known.
    On { most: Option<usize> },
}

impl FdStore {
    /// Finds out whether there is a store. `offered` is what `FDSTORE` says; `came` are names and inodes of the sockets
    /// that came from it.
    pub(crate) fn new(
        now: Time,
        systemd: &Notifier,
        offered: Option<&str>,
        came: &[(String, u64)],
    ) -> Self {
        let state = match offered.map(|number| number.trim().parse::<usize>()) {
            _ if !systemd.is_connected() => State::Off,
            Some(Ok(0)) => State::Off,
            Some(Ok(most)) => State::On { most: Some(most) },
            // What came from a store is in it still.
            _ if !came.is_empty() => State::On { most: None },
            Some(Err(_)) | None => ask(now, systemd).unwrap_or_else(|error| {
                debug!("cannot ask systemd for its descriptor store: {error}");
                State::Off
            }),
        };
        Self {
            state,
            held: came.iter().cloned().collect(),
            due: Some(now),
        }
    }

    /// When [`tend`](Self::tend) has something to do.
    pub(crate) fn due(&self) -> Option<Time> {
        self.due.filter(|_| !matches!(self.state, State::Off))
    }

    /// Sockets may have come or gone.
    pub(crate) fn touch(&mut self, now: Time) {
        self.due = Some(self.due.map_or(now, |due| due.min(now)));
    }

    /// What it was given: names and inodes of sockets.
    pub(crate) fn held(&self) -> impl Iterator<Item = (&str, u64)> {
        self.held
            .iter()
            .map(|(name, inode)| (name.as_str(), *inode))
    }

    /// Whether the sockets outlive this process.
    pub(crate) fn keeps(&self) -> bool {
        matches!(self.state, State::On { .. }) && !self.held.is_empty()
    }

    /// Gives to the store what is new, and takes from it what is gone, if it is time to.
    pub(crate) fn tend(&mut self, now: Time, systemd: &Notifier, listeners: &Listeners) {
        if self.due().is_none_or(|due| due > now) {
            return;
        }
        self.due = None;
        if let State::Asking {
            probe,
            barrier,
            until,
        } = &self.state
        {
            self.state = match (is_closed(barrier), is_closed(probe)) {
                (true, false) => State::On { most: None },
                (true, true) => State::Off,
                (false, _) if *until <= now => State::Off,
                (false, _) => {
                    self.due = Some(now + AGAIN);
                    return;
                }
            };
            match self.state {
                // Dropping the probe's end has systemd forget the other.
                State::On { .. } => info!("systemd keeps the listening sockets over a restart"),
                State::Off | State::Asking { .. } => {
                    debug!("systemd keeps no sockets for this unit")
                }
            }
        }
        let State::On { most } = self.state else {
            return;
        };
        match self.bring(systemd, listeners, most) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.due = Some(now + AGAIN),
            Err(error) => warn!("cannot have systemd keep a listening socket: {error}"),
            Ok(()) => {}
        }
    }

    fn bring(
        &mut self,
        systemd: &Notifier,
        listeners: &Listeners,
        most: Option<usize>,
    ) -> io::Result<()> {
        let sockets = listeners.storable_sockets();
        let wanted: BTreeMap<&str, u64> = sockets
            .iter()
            .map(|(name, socket)| (name.as_str(), inode(socket)))
            .collect();
        // A name whose socket is another one by now is first forgotten too.
        let gone: Vec<String> = self
            .held
            .iter()
            .filter(|(name, held)| wanted.get(name.as_str()) != Some(held))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            systemd.forget(&name)?;
            self.held.remove(&name);
        }
        for (name, socket) in &sockets {
            if self.held.contains_key(name) {
                continue;
            }
            if most.is_some_and(|most| self.held.len() >= most) {
                warn!(
                    "systemd keeps {} of {} listening sockets only: connections in the queues of the others would be lost at a restart (raise FileDescriptorStoreMax=)",
                    self.held.len(),
                    sockets.len()
                );
                return Ok(());
            }
            systemd.keep(name, socket.as_fd())?;
            self.held.insert(name.clone(), inode(socket));
        }
        Ok(())
    }
}

fn ask(now: Time, systemd: &Notifier) -> io::Result<State> {
    let (probe, kept) = io::pipe()?;
    let (barrier, held) = io::pipe()?;
    systemd.keep(PROBE, kept.as_fd())?;
    systemd.barrier(held.as_fd())?;
    Ok(State::Asking {
        probe,
        barrier,
        until: now + PATIENCE,
    })
}

/// Whether nobody has the other end of a pipe.
fn is_closed(pipe: &PipeReader) -> bool {
    let mut pipe = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    matches!(poll(&mut pipe, PollTimeout::ZERO), Ok(1..))
}
