//! systemd's file descriptor store: copies of our listening sockets, held by PID 1, which hands
//! them to the next supervisor when this one is restarted or dies. Meanwhile connections wait in
//! their queues.
//!
//! Since systemd 254, `FDSTORE` says whether there is a store. Before that it has to be tried: PID
//! 1 is given one end of a pipe to store, then a barrier. If the pipe is still open when the
//! barrier falls, the pipe is stored.
//!
//! Nothing here waits, and nothing here knows what the sockets are for. What systemd does not take,
//! and what it has not answered, is tried again a little later.

use super::notify::Notifier;
use log::{debug, info, warn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prefork_core::Time;
use std::collections::BTreeMap;
use std::io;
use std::io::PipeReader;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// The name under which a descriptor is stored only to see whether there is a store.
pub(crate) const PROBE: &str = "prefork-probe";
/// How long until the next attempt, while something is pending.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// If the barrier has not fallen after this time, the service manager does not know barriers.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(5);

/// The FD store of this unit, and what is in it.
#[derive(Debug)]
pub(crate) struct FdStore {
    state: State,
    /// What is stored: names and inodes of sockets.
    stored: BTreeMap<String, u64>,
    /// When [`sync`](Self::sync) has something to do.
    due: Option<Time>,
}

#[derive(Debug)]
enum State {
    /// There is no store.
    Off,
    /// It is not known yet whether there is one.
    Probing {
        probe: PipeReader,
        barrier: PipeReader,
        until: Time,
    },
    /// There is one, with a limit of descriptors if that is known.
    On { limit: Option<usize> },
}

impl FdStore {
    /// Finds out whether there is a store. `offered` is the value of `FDSTORE`; `restored` are
    /// names and inodes of the sockets that came from it.
    pub(crate) fn new(
        now: Time,
        systemd: &Notifier,
        offered: Option<&str>,
        restored: &[(String, u64)],
    ) -> Self {
        let state = match offered.map(|number| number.trim().parse::<usize>()) {
            _ if !systemd.is_connected() => State::Off,
            Some(Ok(0)) => State::Off,
            Some(Ok(limit)) => State::On { limit: Some(limit) },
            // What came from a store is still in it.
            _ if !restored.is_empty() => State::On { limit: None },
            Some(Err(_)) | None => start_probe(now, systemd).unwrap_or_else(|error| {
                debug!("cannot ask systemd for its descriptor store: {error}");
                State::Off
            }),
        };
        Self {
            state,
            stored: restored.iter().cloned().collect(),
            due: Some(now),
        }
    }

    /// Returns when [`sync`](Self::sync) has something to do.
    pub(crate) fn due(&self) -> Option<Time> {
        self.due.filter(|_| !matches!(self.state, State::Off))
    }

    /// Schedules a [`sync`](Self::sync), since sockets may have been opened or closed.
    pub(crate) fn schedule_sync(&mut self, now: Time) {
        self.due = Some(self.due.map_or(now, |due| due.min(now)));
    }

    /// Returns what is stored: names and inodes of sockets.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (&str, u64)> {
        self.stored
            .iter()
            .map(|(name, inode)| (name.as_str(), *inode))
    }

    /// Whether the sockets outlive this process.
    pub(crate) fn is_in_use(&self) -> bool {
        matches!(self.state, State::On { .. }) && !self.stored.is_empty()
    }

    /// Stores new sockets and removes closed ones, if it is time to. `sockets` returns what there
    /// is to store, with its names.
    pub(crate) fn sync(
        &mut self,
        now: Time,
        systemd: &Notifier,
        sockets: impl FnOnce() -> Vec<(String, Rc<OwnedFd>)>,
    ) {
        if self.due().is_none_or(|due| due > now) {
            return;
        }
        self.due = None;
        if let State::Probing {
            probe,
            barrier,
            until,
        } = &self.state
        {
            self.state = match (is_closed(barrier), is_closed(probe)) {
                (true, false) => State::On { limit: None },
                (true, true) => State::Off,
                (false, _) if *until <= now => State::Off,
                (false, _) => {
                    self.due = Some(now + RETRY_INTERVAL);
                    return;
                }
            };
            match self.state {
                // Dropping the probe's end makes systemd close the other.
                State::On { .. } => info!("systemd stores the listening sockets across restarts"),
                State::Off | State::Probing { .. } => {
                    debug!("systemd stores no sockets for this unit");
                }
            }
        }
        let State::On { limit } = self.state else {
            return;
        };
        match self.bring_up_to_date(systemd, &sockets(), limit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.due = Some(now + RETRY_INTERVAL);
            }
            Err(error) => warn!("cannot store a listening socket with systemd: {error}"),
            Ok(()) => {}
        }
    }

    fn bring_up_to_date(
        &mut self,
        systemd: &Notifier,
        sockets: &[(String, Rc<OwnedFd>)],
        limit: Option<usize>,
    ) -> io::Result<()> {
        let wanted: BTreeMap<&str, u64> = sockets
            .iter()
            .map(|(name, socket)| (name.as_str(), inode(socket)))
            .collect();
        // A name that belongs to another socket by now is removed first too.
        let gone: Vec<String> = self
            .stored
            .iter()
            .filter(|(name, stored)| wanted.get(name.as_str()) != Some(stored))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            systemd.remove_stored(&name)?;
            self.stored.remove(&name);
        }
        for (name, socket) in sockets {
            if self.stored.contains_key(name) {
                continue;
            }
            if limit.is_some_and(|limit| self.stored.len() >= limit) {
                warn!(
                    "systemd stores only {} of {} listening sockets: a restart would lose the \
                     connections in the queues of the others (raise FileDescriptorStoreMax=)",
                    self.stored.len(),
                    sockets.len()
                );
                return Ok(());
            }
            systemd.store(name, socket.as_fd())?;
            self.stored.insert(name.clone(), inode(socket));
        }
        Ok(())
    }
}

/// Returns a socket's inode, which no other socket has while it is open.
pub(crate) fn inode(socket: &OwnedFd) -> u64 {
    nix::sys::stat::fstat(socket).map_or(0, |status| status.st_ino)
}

fn start_probe(now: Time, systemd: &Notifier) -> io::Result<State> {
    let (probe, probe_end) = io::pipe()?;
    let (barrier, barrier_end) = io::pipe()?;
    systemd.store(PROBE, probe_end.as_fd())?;
    systemd.barrier(barrier_end.as_fd())?;
    Ok(State::Probing {
        probe,
        barrier,
        until: now + BARRIER_TIMEOUT,
    })
}

/// Whether no process has the other end of a pipe.
fn is_closed(pipe: &PipeReader) -> bool {
    let mut pipe = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    matches!(poll(&mut pipe, PollTimeout::ZERO), Ok(1..))
}
