//! Taking connections out of the queues of inherited listeners.
//!
//! The listeners sit in an epoll instance of their own, level-triggered and with `EPOLLEXCLUSIVE`, which tokio
//! cannot set itself; the descriptor of that instance is what tokio watches. This is the only module that knows
//! how a thread waits for connections: whoever replaces the waiting replaces it here.
//!
//! It deliberately decides nothing: when to accept, and how many, is up to the serving thread.
//! A listener's file description is shared with other processes, so a queue that was ready may be empty by now.

use crate::sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The listeners of a worker, watched by one thread.
pub(crate) struct Acceptor {
    watch: AsyncFd<OwnedFd>,
    listeners: Arc<Vec<OwnedFd>>,
    /// Which listener is asked first.
    next: Cell<usize>,
}

impl Acceptor {
    /// Watches the listeners from now on. To be called within a tokio runtime.
    pub(crate) fn new(listeners: Arc<Vec<OwnedFd>>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (index, listener) in listeners.iter().enumerate() {
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
            epoll.add(listener, EpollEvent::new(flags, index as u64))?;
        }
        Ok(Self { watch: sys::watch(epoll.0, Interest::READABLE)?, listeners, next: Cell::new(0) })
    }

    /// Waits until a queue has something, and takes one connection out of it.
    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<OwnedFd>> {
        loop {
            let mut guard = ready!(self.watch.poll_read_ready(cx))?;
            if let Some(connection) = self.accept_now()? {
                return Poll::Ready(Ok(connection));
            }
            // Only now may the readiness be given up: every queue was seen empty after it was noted, and
            // whatever comes later makes a new edge. Another process may have been faster; wait again.
            guard.clear_ready();
        }
    }

    /// Takes one connection if any queue has one, without waiting.
    pub(crate) fn accept_now(&self) -> io::Result<Option<OwnedFd>> {
        let count = self.listeners.len();
        let first = self.next.get();
        for index in (first..count).chain(0..first) {
            if let Some(found) = self.take(index)? {
                // The next listener's turn, so that a busy address does not starve another.
                self.next.set((index + 1) % count);
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Whether somebody waits in a queue.
    pub(crate) fn somebody_waits(&self) -> bool {
        let mut fds = [PollFd::new(self.watch.get_ref().as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    fn take(&self, index: usize) -> io::Result<Option<OwnedFd>> {
        match sys::accept(self.listeners[index].as_fd()) {
            Ok(connection) => Ok(Some(connection)),
            Err(error) => match error.raw_os_error() {
                // The rest are connections that died in the queue: the next one may be well.
                Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED | libc::EPROTO) => Ok(None),
                _ => Err(error),
            },
        }
    }
}
