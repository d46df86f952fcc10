//! Children that were killed because nobody needs them any more, until they are dead.
//!
//! They are known until then, so that they are taken neither for orphans nor for what a worker has left behind.

use crate::process::reap::reap;
use crate::process::spawn::{Spawned, send_signal};
use crate::upgrade::{ChildState, Packing, Unpacking};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::os::fd::AsFd;

/// Those that are not dead yet.
#[derive(Debug, Default)]
pub(crate) struct Terminating(Vec<Spawned>);

impl Terminating {
    /// Kills a child.
    pub(crate) fn kill(&mut self, child: Spawned) {
        let _ = send_signal(child.pidfd.as_fd(), Signal::SIGKILL);
        self.0.push(child);
    }

    /// For the next version of this program, together with others that it has no use for.
    pub(crate) fn state<'a>(
        &'a self,
        useless: impl Iterator<Item = &'a Spawned>,
        packing: &mut Packing,
    ) -> Vec<ChildState> {
        self.0
            .iter()
            .chain(useless)
            .map(|child| ChildState::of(child, packing))
            .collect()
    }

    /// Goes on where another version was. While a state is only checked, nobody is killed.
    pub(crate) fn adopted(state: Vec<ChildState>, unpacking: &mut Unpacking, check: bool) -> Self {
        let mut doomed = Self::default();
        for child in state {
            let child = child.adopted(unpacking, check, "a child of no use");
            if check {
                doomed.0.push(child)
            } else {
                doomed.kill(child)
            }
        }
        doomed
    }

    /// Buries those that are dead. To be called when a child has died.
    pub(crate) fn reap(&mut self) {
        self.0
            .retain(|child| matches!(reap(&child.pidfd), Ok(None)));
    }

    /// Their processes, which are no orphans.
    pub(crate) fn pids(&self) -> impl Iterator<Item = Pid> {
        self.0.iter().map(|child| child.pid)
    }
}
