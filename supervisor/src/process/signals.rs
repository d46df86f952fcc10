//! Signals, turned into something that an event loop can wait for.
//!
//! A handler only counts the signal and wakes the loop through an eventfd. So of each kind at least
//! one is seen, however many come, and SIGTTIN and SIGTTOU, which mean "one more" and "one fewer",
//! are all seen. What a signal means is decided elsewhere.

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use prefork_os::signal::{Counted, ignore};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The signals that are caught, in the order in which [`Signals::take`] returns them.
pub(crate) const CAUGHT: [Signal; 10] = [
    Signal::SIGCHLD,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// Those that a terminal sends to all processes of a job: to the foreground when its window
/// changes, to the background when one of them writes to it (`stty tostop`) or reads from it.
const OF_TERMINALS: [Signal; 3] = [Signal::SIGWINCH, Signal::SIGTTIN, Signal::SIGTTOU];

/// Those that would end or stop a process without handlers, and whose sender means a server. The
/// signals that ask it to stop do that without handlers, too.
const HELD: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// Ignores SIGXFSZ: a write to a file that has reached its limit fails then, and its caller reports
/// why.
pub(crate) fn survive_full_files() {
    let _ = ignore(Signal::SIGXFSZ);
}

/// Blocks signals that a server acts on as soon as it can, until [handlers](Signals::install) are
/// there. To be called first thing in a process that may become a server, before it starts a
/// thread.
pub(crate) fn hold_until_installed() {
    let _ = pthread_sigmask(
        SigmaskHow::SIG_BLOCK,
        Some(&HELD.into_iter().collect()),
        None,
    );
}

/// Ends that in a process that becomes no server.
pub(crate) fn release() {
    let held = HELD.into_iter().collect();
    let _ = pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&held), None);
}

/// The most signals of a counted kind that one [`Signals::take`] returns: as many as there can be
/// slots.
const COUNTED_AT_ONCE: u32 = prefork_protocol::Slot::MAX as u32;

/// The signals of this process, caught as long as it lives. Afterwards they are swallowed, not back
/// to default.
#[derive(Debug)]
pub(crate) struct Signals(Counted);

impl Signals {
    /// Catches [`CAUGHT`], also where the process was started with some of them blocked or ignored,
    /// and ignores SIGPIPE.
    ///
    /// # Errors
    /// Those of eventfd(2) and sigaction(2).
    pub(crate) fn install() -> io::Result<Self> {
        let this = Self(Counted::install(&CAUGHT, &OF_TERMINALS)?);
        ignore(Signal::SIGPIPE)?;
        this.go_on()?;
        Ok(this)
    }

    /// Blocks signals until a process [installs](Self::install) handlers or [goes
    /// on](Self::go_on), across an exec too.
    ///
    /// # Errors
    /// Those of sigprocmask(2).
    pub(crate) fn hold(&self) -> io::Result<()> {
        Ok(pthread_sigmask(
            SigmaskHow::SIG_BLOCK,
            Some(&CAUGHT.into_iter().collect::<SigSet>()),
            None,
        )?)
    }

    /// Ends a [`hold`](Self::hold).
    ///
    /// # Errors
    /// Those of sigprocmask(2).
    pub(crate) fn go_on(&self) -> io::Result<()> {
        Ok(pthread_sigmask(
            SigmaskHow::SIG_UNBLOCK,
            Some(&CAUGHT.into_iter().collect::<SigSet>()),
            None,
        )?)
    }

    /// Returns the signals that came since the last call: each once, except SIGTTIN and SIGTTOU,
    /// which are returned as often as they were delivered (the kernel itself merges what comes
    /// while one is pending).
    pub(crate) fn take(&self) -> impl Iterator<Item = Signal> + use<> {
        self.0.take().into_iter().flat_map(|(signal, count)| {
            let most = match signal {
                Signal::SIGTTIN | Signal::SIGTTOU => COUNTED_AT_ONCE,
                _ => 1,
            };
            std::iter::repeat_n(signal, count.min(most) as usize)
        })
    }
}

impl AsFd for Signals {
    /// Readable when [`take`](Self::take) has something to return.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::signal::raise;
    use nix::sys::wait::{WaitStatus, waitpid};
    use prefork_os::testing::fork;

    /// Runs a test in a process of its own: signals are the whole process's, and would interrupt
    /// other tests.
    fn alone(test: fn() -> Result<(), u32>) {
        // Lines above 255 wrap, but never to 0.
        let status = |line: u32| (line % 255).cast_signed() + 1;
        let child = fork(|| test().err().map_or(0, status)).expect("fork");
        let status = waitpid(child, None).expect("reaped");
        assert_eq!(
            status,
            WaitStatus::Exited(child, 0),
            "the status is the failed line, modulo 255, plus 1"
        );
    }

    fn fact(fact: bool, line: u32) -> Result<(), u32> {
        if fact { Ok(()) } else { Err(line) }
    }

    fn readable(signals: &Signals) -> bool {
        let mut waited = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        poll(&mut waited, PollTimeout::ZERO) == Ok(1)
    }

    #[test]
    fn each_kind_is_told_and_more_and_fewer_are_counted() {
        alone(|| {
            let signals = Signals::install().map_err(|_| line!())?;
            fact(!readable(&signals) && signals.take().count() == 0, line!())?;
            for signal in
                CAUGHT
                    .into_iter()
                    .chain([Signal::SIGTTIN, Signal::SIGHUP, Signal::SIGTTIN])
            {
                Errno::set_raw(7);
                raise(signal).map_err(|_| line!())?;
                fact(Errno::last_raw() == 7, line!())?;
            }
            fact(readable(&signals), line!())?;
            let told: Vec<Signal> = signals.take().collect();
            let mut expected = CAUGHT.to_vec();
            expected.splice(9..9, [Signal::SIGTTIN, Signal::SIGTTIN]);
            fact(told == expected, line!())?;
            fact(!readable(&signals) && signals.take().count() == 0, line!())?;
            for _ in 0..5000 {
                raise(Signal::SIGTTOU).map_err(|_| line!())?;
                raise(Signal::SIGTERM).map_err(|_| line!())?;
            }
            fact(signals.take().count() == 1 + 1024, line!())
        });
    }

    #[test]
    fn signals_that_were_blocked_or_ignored_at_the_start_are_caught() {
        alone(|| {
            ignore(Signal::SIGINT).map_err(|_| line!())?;
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
                .map_err(|_| line!())?;
            raise(Signal::SIGHUP).map_err(|_| line!())?;
            let signals = Signals::install().map_err(|_| line!())?;
            raise(Signal::SIGINT).map_err(|_| line!())?;
            fact(signals.take().eq([Signal::SIGINT, Signal::SIGHUP]), line!())
        });
    }

    #[test]
    fn a_broken_pipe_is_no_signal() {
        alone(|| {
            let signals = Signals::install().map_err(|_| line!())?;
            raise(Signal::SIGPIPE).map_err(|_| line!())?;
            drop(signals);
            raise(Signal::SIGTERM).map_err(|_| line!())
        });
    }
}
