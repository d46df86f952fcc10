//! Waiting: one epoll instance, level-triggered, with typed tokens.

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use prefork_protocol::WorkerId;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// One helper process. Counts from 1 and is never reused while the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HelperId(pub(crate) u64);

/// Whose descriptor is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// A signal came.
    Signals,
    /// A foreign worker says something on the notification socket.
    Notify,
    /// A client connects to the control socket.
    Control,
    /// A control client says something, or can be told more.
    Client(u64),
    /// A worker is dead.
    Death(WorkerId),
    /// A worker says something on its channel.
    Channel(WorkerId),
    /// A helper process has exited.
    Helper(HelperId),
    /// A worker has written to its standard error.
    Stderr(WorkerId),
    /// Our own standard error can be written.
    StderrWriter,
    /// The preflight has written to its standard error.
    Preflight,
}

const KIND_SHIFT: u32 = 56;
const NUMBER: u64 = (1 << KIND_SHIFT) - 1;

impl Token {
    fn pack(self) -> u64 {
        let (kind, number) = match self {
            Self::Signals => (0, 0),
            Self::Notify => (1, 0),
            Self::Control => (2, 0),
            Self::Client(client) => (3, client),
            Self::Death(worker) => (4, worker.0),
            Self::Channel(worker) => (5, worker.0),
            Self::Helper(helper) => (6, helper.0),
            Self::Stderr(worker) => (7, worker.0),
            Self::StderrWriter => (8, 0),
            Self::Preflight => (9, 0),
        };
        kind << KIND_SHIFT | number & NUMBER
    }

    fn unpack(packed: u64) -> Self {
        let number = packed & NUMBER;
        match packed >> KIND_SHIFT {
            0 => Self::Signals,
            1 => Self::Notify,
            2 => Self::Control,
            3 => Self::Client(number),
            4 => Self::Death(WorkerId(number)),
            5 => Self::Channel(WorkerId(number)),
            6 => Self::Helper(HelperId(number)),
            7 => Self::Stderr(WorkerId(number)),
            8 => Self::StderrWriter,
            _ => Self::Preflight,
        }
    }
}

/// What to wait for on a descriptor, besides its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    /// That it can be read.
    Read,
    /// That it can be written.
    Write,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Read => EpollFlags::EPOLLIN,
            Self::Write => EpollFlags::EPOLLOUT,
        }
    }
}

/// The one place where the supervisor waits.
#[derive(Debug)]
pub(crate) struct Poll {
    epoll: Epoll,
}

impl Poll {
    /// # Errors
    /// Those of epoll_create1(2).
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        })
    }

    /// Watches a descriptor until it is closed or [`remove`](Self::remove)d.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        Ok(self
            .epoll
            .add(fd, EpollEvent::new(interest.flags(), token.pack()))?)
    }

    /// Watches a descriptor for something else.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn change(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        Ok(self
            .epoll
            .modify(fd, &mut EpollEvent::new(interest.flags(), token.pack()))?)
    }

    /// Stops watching. Needed before closing whatever a child may have inherited a copy of.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Waits until something is ready or the time is over, at most some dozens at a time.
    ///
    /// # Errors
    /// Those of epoll_wait(2), an interruption excepted: that is nothing ready.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Token>> {
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            // Rounded up: waking a millisecond early would find nothing to do, over and over.
            Some(span) => {
                let millis = span.as_nanos().div_ceil(1_000_000).min(60_000);
                EpollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX))
            }
        };
        let mut ready = [EpollEvent::empty(); 64];
        match self.epoll.wait(&mut ready, timeout) {
            Ok(count) => Ok(ready[..count]
                .iter()
                .map(|event| Token::unpack(event.data()))
                .collect()),
            Err(nix::errno::Errno::EINTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Signals,
            Token::Notify,
            Token::Control,
            Token::Client(9),
            Token::Death(WorkerId(7)),
            Token::Channel(WorkerId(1 << 40)),
            Token::Helper(HelperId(6)),
            Token::Stderr(WorkerId(3)),
            Token::StderrWriter,
            Token::Preflight,
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
