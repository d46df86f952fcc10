//! Accepts connections from the queues of inherited listeners.
//!
//! A thread accepts from its own slot's queues first and from its siblings' when nothing waits
//! there, one connection per wake-up. It decides nothing else: when to accept, and how many, is up
//! to the serving thread. Other processes share a listener's file description, so a queue that was
//! ready may be empty by now.
//!
//! **Who is woken.** The kernel wakes one of the processes that wait for a queue: the one that has
//! watched it longest. So a thread begins to watch its siblings' queues [a little
//! later](Acceptor::watch_siblings) than its own, and again at each [heartbeat](Acceptor::beat):
//! the owner of a queue stays first in line. A thread that accepts from a queue shared by all goes
//! to the end of the line.

mod watch;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prefork_os::tokio::Watched;
use prefork_protocol::settings::Accept;
use socket2::SockRef;
use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::Interest;
use watch::{TokioEpoll, Watch};

/// The listeners of a worker, which its threads share.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// The worker's own, then the watched ones of its siblings, then the polled ones.
    sockets: Vec<Arc<OwnedFd>>,
    own: Range<usize>,
    watched: Range<usize>,
    /// Which of its own are shared by all workers.
    shared: Vec<bool>,
}

impl Listeners {
    /// The listeners that a worker has inherited.
    pub(crate) fn new(
        own: Vec<OwnedFd>,
        watched: Vec<OwnedFd>,
        polled: Vec<OwnedFd>,
        accept: Accept,
    ) -> Self {
        let of_slot = |socket: &OwnedFd| SockRef::from(socket).reuse_port().unwrap_or(false);
        let shared = own
            .iter()
            .map(|socket| accept == Accept::Shared || !of_slot(socket))
            .collect();
        let ends = (own.len(), own.len() + watched.len());
        let sockets = own
            .into_iter()
            .chain(watched)
            .chain(polled)
            .map(Arc::new)
            .collect();
        Self {
            sockets,
            own: 0..ends.0,
            watched: ends.0..ends.1,
            shared,
        }
    }

    /// Accepts one connection from a queue, if there is one. A socket that was shut down has none.
    fn take(&self, index: usize) -> io::Result<Option<OwnedFd>> {
        match take(self.sockets[index].as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            taken => taken,
        }
    }

    /// Returns whether a connection waits in one of these queues.
    fn has_waiting(&self, queues: Range<usize>) -> bool {
        let mut fds: Vec<_> = self.sockets[queues]
            .iter()
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        !fds.is_empty() && poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }
}

fn take(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match prefork_os::accept(listener) {
        Ok(connection) => Ok(Some(connection)),
        Err(error) => match error.raw_os_error() {
            // The last two are connections that died in the queue: the next one may be fine.
            Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED | libc::EPROTO) => Ok(None),
            _ => Err(error),
        },
    }
}

/// The queues that one thread accepts connections from.
pub(crate) struct Acceptor {
    listeners: Arc<Listeners>,
    /// Of its own and the watched queues.
    watches: Vec<Watch>,
    watching: Cell<bool>,
    /// Whether it watches the watched queues, too.
    watching_siblings: Cell<bool>,
    /// How often it has accepted: which queue is next.
    turn: Cell<usize>,
    /// Whether a connection was seen in a polled queue, and the task to wake for it.
    polled_waiting: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Acceptor {
    /// Watches nothing before [`resume`](Self::resume). To be called within a tokio runtime.
    pub(crate) fn new(listeners: Arc<Listeners>) -> io::Result<Self> {
        let event_loop = TokioEpoll::of_this_thread()?;
        // Without the event loop every worker would be woken for every connection, so the watched
        // queues are polled, too.
        let count = if event_loop.is_some() {
            listeners.watched.end
        } else {
            listeners.own.end
        };
        let watches = listeners.sockets[..count].iter().map(|listener| {
            Watch::new(
                event_loop.as_ref(),
                Watched::new(Arc::clone(listener), Interest::READABLE)?,
            )
        });
        Ok(Self {
            watches: watches.collect::<io::Result<_>>()?,
            listeners,
            watching: Cell::new(false),
            watching_siblings: Cell::new(false),
            turn: Cell::new(0),
            polled_waiting: Cell::new(false),
            waker: RefCell::new(None),
        })
    }

    /// Watches the queues.
    pub(crate) fn resume(&self) -> io::Result<()> {
        if !self.watching.replace(true) {
            let count = if self.watching_siblings.get() {
                self.watches.len()
            } else {
                self.listeners.own.end
            };
            self.watches[..count].iter().try_for_each(Watch::begin)?;
        }
        Ok(())
    }

    /// Stops watching for a while. A thread that has no capacity and is about to wait for something
    /// else must not be woken for a connection that an idle sibling could serve.
    pub(crate) fn pause(&self) {
        if self.watching.replace(false) {
            self.watches.iter().for_each(Watch::end);
        }
    }

    /// Watches the siblings' queues from now on. Workers start together: by now the owners watch
    /// them.
    pub(crate) fn watch_siblings(&self) {
        self.watching_siblings.set(true);
        self.listeners
            .watched
            .clone()
            .for_each(|index| self.rearm(index));
    }

    /// Lets the owners of the watched queues go first, and checks its own and the polled ones.
    pub(crate) fn beat(&self) {
        // The process that was woken for a connection may have accepted another one at the same
        // time and have no capacity any more. The kernel wakes no other process for it, and
        // siblings that could check are busy.
        if self.watching.get() && self.has_waiting() {
            self.listeners
                .own
                .clone()
                .for_each(|index| self.rearm(index));
        }
        if self.watching_siblings.get() {
            self.listeners
                .watched
                .clone()
                .for_each(|index| self.rearm(index));
        }
        self.polled_waiting.set(
            self.listeners
                .has_waiting(self.watches.len()..self.listeners.sockets.len()),
        );
        if self.polled_waiting.get()
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }

    /// Waits until a queue has a connection, and accepts it.
    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<OwnedFd>> {
        for index in self.in_turn() {
            let taken = match self.watches.get(index) {
                Some(watch) => match watch.poll_take(cx, take) {
                    Poll::Ready(taken) => Some(taken?),
                    Poll::Pending => None,
                },
                None if self.polled_waiting.get() => self.listeners.take(index)?,
                None => None,
            };
            if let Some(connection) = taken {
                self.turn.set(self.turn.get().wrapping_add(1));
                if self.listeners.shared.get(index) == Some(&true) {
                    self.rearm(index);
                }
                return Poll::Ready(Ok(connection));
            }
        }
        self.polled_waiting.set(false);
        if self.watches.len() < self.listeners.sockets.len() {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Accepts one connection from its own queues if there is one, without waiting.
    pub(crate) fn take_own(&self) -> io::Result<Option<OwnedFd>> {
        self.take_of(self.listeners.own.clone())
    }

    /// Accepts one connection from a sibling's queue if there is one, without waiting.
    pub(crate) fn take_siblings(&self) -> io::Result<Option<OwnedFd>> {
        self.take_of(self.listeners.own.end..self.listeners.sockets.len())
    }

    /// Accepts one connection, without waiting, from a queue for which processes may wait in
    /// accept(2).
    ///
    /// The kernel wakes one process for a connection. When that was this one, which watches nothing
    /// any more, no other is woken: those in epoll look again by themselves, but those in accept(2)
    /// wait until the next connection.
    pub(crate) fn take_from_blocking(&self) -> io::Result<Option<OwnedFd>> {
        let blocks = |index: &usize| {
            prefork_os::is_nonblocking(&self.listeners.sockets[*index]).is_ok_and(|it| !it)
        };
        (0..self.watches.len())
            .filter(blocks)
            .find_map(|index| self.listeners.take(index).transpose())
            .transpose()
    }

    /// Returns whether a connection waits in its own queues.
    pub(crate) fn has_waiting(&self) -> bool {
        self.listeners.has_waiting(self.listeners.own.clone())
    }

    fn take_of(&self, mut queues: Range<usize>) -> io::Result<Option<OwnedFd>> {
        queues
            .find_map(|index| self.listeners.take(index).transpose())
            .transpose()
    }

    /// Returns all queues in the order in which to try them: own, watched, polled. Within the first
    /// two groups another one comes first each time, so that a busy address does not starve
    /// another.
    fn in_turn(&self) -> impl Iterator<Item = usize> + use<> {
        let turn = self.turn.get();
        let rotate = move |queues: Range<usize>| {
            let first = queues.start + turn.checked_rem(queues.len()).unwrap_or(0);
            (first..queues.end).chain(queues.start..first)
        };
        let polled = self.listeners.watched.end..self.listeners.sockets.len();
        rotate(self.listeners.own.clone())
            .chain(rotate(self.listeners.watched.clone()))
            .chain(polled)
    }

    /// Goes to the end of the line of processes that wait for a queue.
    fn rearm(&self, index: usize) {
        if let Some(watch) = self.watches.get(index).filter(|_| self.watching.get()) {
            watch.end();
            if let Err(error) = watch.begin() {
                log::warn!("cannot watch a listener any more: {error}");
            }
        }
    }
}
