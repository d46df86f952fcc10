//! Helper processes: processes of the server's own, each for one thing that the loop must not wait
//! for.
//!
//! [`HelperProcesses`] owns all of them, from fork to reaping: their pidfds, their deadlines, and
//! those that were killed and are not reaped yet. What a helper is for, and what its exit means, is
//! known to its own module: [`readiness_probe`], [`memory_sampler`], [`hooks`],
//! [`admin`](crate::admin), and the preflight and the upgrade's check in
//! [`server`](crate::server).
//!
//! A new kind of helper is a variant of [`Kind`]; the compiler then names the two places in
//! `server/helpers.rs` that say what happens at its exit and at its deadline.

pub(crate) mod hooks;
pub(crate) mod memory_sampler;
pub(crate) mod readiness_probe;

pub(crate) use crate::process::poll::HelperId;
use crate::process::poll::{Interest, Poll, Token};
use crate::process::reap::{Death, reap};
use crate::process::spawn::{ExecFailure, Order, SpawnError, Spawned, send_signal, spawn};
use crate::upgrade::{ChildState, Packing, Unpacking};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use prefork_core::Time;
use prefork_protocol::WorkerId;
use prefork_protocol::environment::PREFORK_HELPER;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;

/// What a helper process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Serves metrics, health and the dashboard over HTTP.
    Admin,
    /// The program of `--on-event`, for one event.
    Hook,
    /// Reads the workers' memory.
    MemorySampler,
    /// Watches for a starting worker to wait for connections.
    ReadinessProbe(WorkerId),
    /// The command of `--preflight`.
    Preflight,
    /// A new program that checks whether it could take the server over.
    UpgradeCheck,
}

/// How a helper process ended.
#[derive(Debug)]
pub(crate) struct HelperExit {
    pub(crate) kind: Kind,
    /// The program that it ran, as it was named.
    pub(crate) program: String,
    pub(crate) death: Death,
    /// Why it did not become its program.
    pub(crate) failure: Option<ExecFailure>,
}

/// Why a helper process could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// There is no process.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// There was one, and it was killed.
    #[error("cannot watch it: {0}")]
    Watch(#[from] io::Error),
}

/// Every helper process that was started and not reaped yet.
#[derive(Debug, Default)]
pub(crate) struct HelperProcesses {
    running: BTreeMap<HelperId, Helper>,
    last: u64,
}

#[derive(Debug)]
struct Helper {
    kind: Kind,
    spawned: Spawned,
    deadline: Option<Time>,
    /// It was killed, and nothing of its owner's waits for it.
    terminating: bool,
}

impl HelperProcesses {
    /// Starts one and watches it. At `deadline` it shows up in [`expired`](Self::expired); its exit
    /// is announced by [`Token::Helper`].
    ///
    /// # Errors
    /// When there is no process, or none that can be watched.
    pub(crate) fn start(
        &mut self,
        poll: &Poll,
        kind: Kind,
        order: Order<'_>,
        deadline: Option<Time>,
    ) -> Result<HelperId, StartError> {
        let id = self.adopt(kind, spawn(&order)?, deadline);
        if let Err(error) = self.watch(poll, id) {
            self.terminate(poll, id);
            return Err(error.into());
        }
        Ok(id)
    }

    /// Takes over a process that another version of this program started. To be
    /// [watched](Self::watch_all) later.
    pub(crate) fn adopt(
        &mut self,
        kind: Kind,
        spawned: Spawned,
        deadline: Option<Time>,
    ) -> HelperId {
        self.last += 1;
        let id = HelperId(self.last);
        let helper = Helper {
            kind,
            spawned,
            deadline,
            terminating: false,
        };
        self.running.insert(id, helper);
        id
    }

    /// Watches all that were adopted.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn watch_all(&self, poll: &Poll) -> io::Result<()> {
        let watched = self.running.iter().filter(|(_, it)| !it.terminating);
        watched
            .map(|(id, _)| *id)
            .try_for_each(|id| self.watch(poll, id))
    }

    fn watch(&self, poll: &Poll, id: HelperId) -> io::Result<()> {
        self.running.get(&id).map_or(Ok(()), |helper| {
            poll.add(&helper.spawned.pidfd, Token::Helper(id), Interest::Read)
        })
    }

    /// Reaps a helper that has exited; `None` while it lives, and for one that was terminated.
    pub(crate) fn reap(&mut self, poll: &Poll, id: HelperId) -> Option<HelperExit> {
        let helper = self.running.get(&id)?;
        // Until the process is reaped, its group's number belongs to it: whatever it left there
        // goes.
        let _ = killpg(helper.spawned.pid, Signal::SIGKILL);
        let death = match reap(&helper.spawned.pidfd) {
            Ok(None) => return None,
            Ok(Some(death)) => death,
            Err(_) => Death::Unknown,
        };
        poll.remove(&helper.spawned.pidfd);
        let helper = self.running.remove(&id)?;
        let (program, _) = helper.spawned.exec_errors.about();
        (!helper.terminating).then(|| HelperExit {
            kind: helper.kind,
            program: program.to_owned(),
            failure: helper.spawned.exec_errors.failure(),
            death,
        })
    }

    /// Reaps the terminated ones that are dead by now. To be called when a child has died.
    pub(crate) fn reap_terminated(&mut self) {
        self.running
            .retain(|_, it| !it.terminating || matches!(reap(&it.spawned.pidfd), Ok(None)));
    }

    /// Kills a helper whose owner does not wait for it any more. It stays known until it is reaped,
    /// so that it is taken neither for an orphan nor for something that a worker left behind.
    pub(crate) fn terminate(&mut self, poll: &Poll, id: HelperId) {
        if let Some(helper) = self.running.get_mut(&id) {
            poll.remove(&helper.spawned.pidfd);
            helper.terminating = true;
            helper.deadline = None;
            kill(&helper.spawned, Signal::SIGKILL);
        }
    }

    /// Sends a signal to a helper and whatever it has started.
    pub(crate) fn signal(&self, id: HelperId, signal: Signal) {
        if let Some(helper) = self.running.get(&id) {
            kill(&helper.spawned, signal);
        }
    }

    /// Returns the helpers whose deadline has passed, each once.
    pub(crate) fn expired(&mut self, now: Time) -> Vec<(HelperId, Kind)> {
        let due = |it: &mut Helper| it.deadline.take_if(|at| *at <= now).is_some();
        self.running
            .iter_mut()
            .filter_map(|(id, it)| due(it).then_some((*id, it.kind)))
            .collect()
    }

    /// Sets or moves a helper's deadline.
    pub(crate) fn set_deadline(&mut self, id: HelperId, deadline: Time) {
        if let Some(helper) = self.running.get_mut(&id) {
            helper.deadline = Some(deadline);
        }
    }

    /// Returns a helper's deadline, if it has one.
    pub(crate) fn deadline_of(&self, id: HelperId) -> Option<Time> {
        self.running.get(&id)?.deadline
    }

    /// Returns the earliest deadline.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.running.values().filter_map(|it| it.deadline).min()
    }

    /// Whether one of this kind runs that is not terminated.
    pub(crate) fn runs(&self, kind: Kind) -> bool {
        let mut running = self.running.values();
        running.any(|it| it.kind == kind && !it.terminating)
    }

    /// Returns the process of a helper.
    pub(crate) fn pid(&self, id: HelperId) -> Option<Pid> {
        self.running.get(&id).map(|it| it.spawned.pid)
    }

    /// Returns the program of a helper, as it was named.
    pub(crate) fn program(&self, id: HelperId) -> &str {
        self.running
            .get(&id)
            .map_or("", |it| it.spawned.exec_errors.about().0)
    }

    /// Returns all processes: they are neither orphans nor leftovers.
    pub(crate) fn pids(&self) -> impl Iterator<Item = Pid> {
        self.running.values().map(|it| it.spawned.pid)
    }

    /// Describes one helper for the next version of this program.
    pub(crate) fn child_state(&self, id: HelperId, packing: &mut Packing) -> Option<ChildState> {
        let helper = self.running.get(&id)?;
        Some(ChildState::of(&helper.spawned, packing))
    }

    /// Describes the admin children for the next version. Their connections end with this one,
    /// which tells them to leave.
    pub(crate) fn admin_state(&self, packing: &mut Packing) -> Vec<ChildState> {
        self.states(packing, |it| it.kind == Kind::Admin && !it.terminating)
    }

    /// Describes those for which the next version has no use: it kills and reaps them.
    pub(crate) fn useless_state(&self, packing: &mut Packing) -> Vec<ChildState> {
        self.states(packing, |it| match it.kind {
            Kind::Admin | Kind::Hook => it.terminating,
            Kind::MemorySampler
            | Kind::ReadinessProbe(_)
            | Kind::Preflight
            | Kind::UpgradeCheck => true,
        })
    }

    fn states(&self, packing: &mut Packing, wanted: impl Fn(&Helper) -> bool) -> Vec<ChildState> {
        self.running
            .values()
            .filter(|it| wanted(it))
            .map(|it| ChildState::of(&it.spawned, packing))
            .collect()
    }

    /// Takes over what [`useless_state`](Self::useless_state) described. While a state is only
    /// checked, nothing is killed.
    pub(crate) fn adopt_useless(
        &mut self,
        state: Vec<ChildState>,
        unpacking: &mut Unpacking,
        check: bool,
    ) {
        for child in state {
            let spawned = child.adopted(unpacking, check, "a helper of no use");
            if !check {
                kill(&spawned, Signal::SIGKILL);
            }
            // The kind does not matter any more.
            let id = self.adopt(Kind::MemorySampler, spawned, None);
            if let Some(helper) = self.running.get_mut(&id) {
                helper.terminating = true;
            }
        }
    }
}

/// Signals a process with its group. Before its own `setsid` it has no group yet: then only itself.
fn kill(spawned: &Spawned, signal: Signal) {
    if killpg(spawned.pid, signal) == Err(Errno::ESRCH) {
        let _ = send_signal(spawned.pidfd.as_fd(), signal);
    }
}

/// Returns the variable that makes a process a helper of this role, with what belongs to it.
pub(crate) fn role(role: &str, words: &[String]) -> CString {
    let text = format!("{PREFORK_HELPER}={role} {}", words.join(" "));
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

/// Returns what this process was started with, if it is a helper of this role.
pub(crate) fn words_of(role: &str) -> Option<Vec<String>> {
    let text = std::env::var(PREFORK_HELPER).ok()?;
    let mut words = text.split(' ').map(str::to_owned);
    (words.next()? == role).then(|| words.collect())
}
