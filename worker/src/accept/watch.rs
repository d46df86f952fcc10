//! Waits for a listener so that one connection wakes one of all waiting processes.
//!
//! The kernel does that for descriptors in the very epoll instance in which a thread sleeps, if
//! they are registered with `EPOLLEXCLUSIVE` (epoll_ctl(2)). Registered in an instance that another
//! one watches, every connection wakes every worker. The instance in which a thread sleeps is
//! tokio's, and tokio cannot set that flag: so tokio registers a listener, and this module
//! registers it again in the same instance with the same data and the flag. The meaning of the data
//! stays private to tokio. `docs/accepting.md` compares this with the alternatives.
//!
//! *Invariant*: the data of a registration is what tokio gave for this very descriptor, and tokio
//! keeps what it refers to for as long as the [`Watched`] lives; the registration is removed when
//! that is dropped.
//!
//! The flag also makes the event level-triggered: it is repeated for as long as a connection waits.

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use prefork_os::descriptor::duplicate;
use prefork_os::tokio::Watched;
use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::{fs, io};
use tokio::io::Interest;

/// The epoll instance in which this thread's tokio runtime sleeps.
pub(super) struct TokioEpoll(Rc<Epoll>);

impl TokioEpoll {
    /// Finds it: the one that watches a descriptor which only this thread has asked tokio to watch.
    /// `None` where `/proc` is not readable.
    pub(super) fn of_this_thread() -> io::Result<Option<Self>> {
        let sign = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let sign = Watched::new(Arc::new(OwnedFd::from(sign)), Interest::READABLE)?;
        let Ok(open) = fs::read_dir("/proc/self/fd") else {
            return Ok(None);
        };
        let numbers =
            open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
        let watches = |number: RawFd| data_of(number, sign.as_raw_fd()).is_some();
        for number in numbers.filter(|number| watches(*number)) {
            // Between the check and the copy another thread may have put something else there:
            // check the copy.
            if let Ok(copy) = duplicate(number)
                && watches(copy.as_raw_fd())
            {
                return Ok(Some(Self(Rc::new(Epoll(copy)))));
            }
        }
        Ok(None)
    }
}

/// The data with which an epoll instance watches a descriptor, by proc_pid_fdinfo(5).
fn data_of(epoll: RawFd, watched: RawFd) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).ok()?;
    info.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let mut value = |name| words.find(|word| *word == name).and_then(|_| words.next());
        let number: RawFd = value("tfd:")?.parse().ok()?;
        let data = value("data:")?;
        if number == watched {
            u64::from_str_radix(data, 16).ok()
        } else {
            None
        }
    })
}

/// A listener that the thread's event loop knows.
pub(super) struct Watch {
    listener: Watched,
    /// The instance, and tokio's data; without it tokio watches in its own way, and always.
    exclusive: Option<(Rc<Epoll>, u64)>,
    /// It does not listen any more.
    shut: Cell<bool>,
}

impl Watch {
    /// Prepares it: it is not watched before [`begin`](Self::begin).
    pub(super) fn new(event_loop: Option<&TokioEpoll>, listener: Watched) -> io::Result<Self> {
        let watched = listener.get_ref().as_raw_fd();
        let exclusive = event_loop.and_then(|TokioEpoll(epoll)| {
            Some((Rc::clone(epoll), data_of(epoll.0.as_raw_fd(), watched)?))
        });
        if let Some((epoll, _)) = &exclusive {
            epoll.delete(listener.get_ref().as_fd())?;
        }
        Ok(Self {
            listener,
            exclusive,
            shut: Cell::new(false),
        })
    }

    /// Watches it, behind every process that already does.
    pub(super) fn begin(&self) -> io::Result<()> {
        let Some((epoll, data)) = self.exclusive.as_ref().filter(|_| !self.shut.get()) else {
            return Ok(());
        };
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE, *data);
        Ok(epoll.add(self.listener.get_ref().as_fd(), event)?)
    }

    /// Watches it no longer.
    pub(super) fn end(&self) {
        if let Some((epoll, _)) = &self.exclusive {
            // It fails only for what is not watched.
            let _ = epoll.delete(self.listener.get_ref().as_fd());
        }
    }

    /// Waits until the queue has something, and calls `take` to accept it. A listener that was shut
    /// down never has: for as long as it is watched, the kernel reports that it has ended.
    pub(super) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        take: impl Fn(BorrowedFd<'_>) -> io::Result<Option<OwnedFd>>,
    ) -> Poll<io::Result<OwnedFd>> {
        // tokio remembers forever that it has ended.
        while !self.shut.get() {
            let mut guard = ready!(self.listener.poll_read_ready(cx))?;
            let taken = match take(self.listener.get_ref().as_fd()) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    log::warn!("a listening socket was shut down; going on without it");
                    self.shut.set(true);
                    self.end();
                    break;
                }
                taken => taken?,
            };
            if taken.is_none() || self.exclusive.is_some() {
                // The kernel reports remaining connections again; in tokio's own way it reports new
                // ones only.
                guard.clear_ready();
            }
            if let Some(connection) = taken {
                return Poll::Ready(Ok(connection));
            }
        }
        Poll::Pending
    }
}
