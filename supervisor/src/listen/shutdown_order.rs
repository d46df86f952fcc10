//! The order in which listening sockets were shut down.
//!
//! Each one that leaves the kernel's group lets the last member take its index, so that the indices
//! of the others depend on the order. An epoll instance tells it: it reports sockets in the order
//! in which they became ready, and one that is watched for nothing becomes ready only by its end.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::os::fd::OwnedFd;

/// Watches the listening sockets of one group.
#[derive(Debug)]
pub(crate) struct ShutdownOrder(Epoll);

impl ShutdownOrder {
    /// Starts to watch nothing.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub(crate) fn new() -> Result<Self, Errno> {
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map(Self)
    }

    /// Watches a slot's socket, which has just begun to listen.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn watch(&self, slot: usize, socket: &OwnedFd) -> Result<(), Errno> {
        let slot = u64::try_from(slot).unwrap_or(u64::MAX);
        self.0
            .add(socket, EpollEvent::new(EpollFlags::empty(), slot))
    }

    /// Watches a socket no longer. Closing it would not be enough, as a worker holds it too.
    pub(crate) fn forget(&self, socket: &OwnedFd) {
        // It may not be watched.
        let _ = self.0.delete(socket);
    }

    /// Returns the slots, of at most this many, whose sockets were shut down: the first one first.
    pub(crate) fn slots(&self, most: usize) -> Vec<usize> {
        let mut events = vec![EpollEvent::empty(); most];
        let ready = self.0.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        events[..ready]
            .iter()
            .filter_map(|event| usize::try_from(event.data()).ok())
            .collect()
    }
}
