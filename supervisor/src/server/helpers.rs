//! The server's side of its helper processes: when each is started, and what its exit or its
//! deadline means.

use super::Server;
use crate::admin::Admin;
use crate::api::events::EventRecord;
use crate::api::report::of_worker;
use crate::config::Ready;
use crate::control::Role;
use crate::helpers::hooks::Hooks;
use crate::helpers::memory_sampler::MemorySampler;
use crate::helpers::readiness_probe::{
    Misdirected, ProbeResult, Purpose, ReadinessProbes, Subject,
};
use crate::helpers::{HelperExit, HelperId, HelperProcesses, Kind};
use crate::upgrade::{ChildState, HooksState, Packing, Unpacking};
use crate::workers::handle::WorkerHandle;
use crate::workers::sockets::WorkerSockets;
use log::{Level, debug, warn};
use nix::sys::socket::{SockaddrStorage, getsockname};
use prefork_core::{Event, Time, WorkerRef};
use prefork_protocol::WorkerId;
use prefork_protocol::environment::FIRST_FD;
use std::os::fd::{AsRawFd, BorrowedFd};

/// All helper processes, and what each kind of them knows.
#[derive(Debug, Default)]
pub(crate) struct Helpers {
    pub(crate) processes: HelperProcesses,
    pub(crate) admin: Admin,
    pub(crate) hooks: Hooks,
    sampler: MemorySampler,
    probes: ReadinessProbes,
}

/// What the next version of this program is told of helpers.
#[derive(Debug)]
pub(crate) struct HelpersState {
    pub(crate) hooks: HooksState,
    pub(crate) leaving: Vec<ChildState>,
    pub(crate) useless: Vec<ChildState>,
}

impl Helpers {
    /// Describes all of them for the next version of this program.
    pub(crate) fn state(&self, packing: &mut Packing) -> HelpersState {
        HelpersState {
            hooks: self.hooks.state(&self.processes, packing),
            leaving: self.processes.admin_state(packing),
            useless: self.processes.useless_state(packing),
        }
    }

    /// Continues where another version was.
    pub(crate) fn adopted(
        state: HelpersState,
        now: Time,
        unpacking: &mut Unpacking,
        check: bool,
    ) -> Self {
        let mut processes = HelperProcesses::default();
        let hooks = Hooks::adopted(state.hooks, &mut processes, unpacking, check);
        Admin::adopt_leaving(state.leaving, now, &mut processes, unpacking, check);
        processes.adopt_useless(state.useless, unpacking, check);
        Self {
            processes,
            hooks,
            ..Self::default()
        }
    }
}

impl Server {
    /// A helper process has exited.
    pub(crate) fn helper_exited(&mut self, id: HelperId) {
        let Some(exit) = self.helpers.processes.reap(&self.poll, id) else {
            return;
        };
        match exit.kind {
            Kind::Admin => self.admin_exited(id, &exit),
            Kind::Hook => self.helpers.hooks.finish(id, &exit),
            Kind::MemorySampler => self.memory_sampled(false),
            Kind::ReadinessProbe(worker) => self.readiness_probed(worker, &exit),
            Kind::Preflight => self.preflight_exited(&exit),
            Kind::UpgradeCheck => self.upgrade_checked(exit),
        }
    }

    /// Deals with the helpers whose deadline has passed.
    fn expire_helpers(&mut self) {
        for (id, kind) in self.helpers.processes.expired(self.now) {
            match kind {
                // It was told to leave, and has not.
                Kind::Admin => self.helpers.processes.terminate(&self.poll, id),
                Kind::Hook => {
                    let processes = &mut self.helpers.processes;
                    self.helpers.hooks.expire(self.now, processes, id);
                }
                Kind::MemorySampler => self.memory_sampled(true),
                // The core has the deadline of a worker's start.
                Kind::ReadinessProbe(_) => {}
                Kind::Preflight => self.preflight_expired(),
                Kind::UpgradeCheck => self.upgrade_check_expired(),
            }
        }
    }

    /// Returns when a helper is due: to be started, or to be ended.
    pub(crate) fn helpers_deadline(&self) -> Option<Time> {
        let sampler = self.helpers.sampler.deadline();
        [
            self.helpers.processes.deadline(),
            self.helpers.admin.deadline(self.generations.accepted()),
            self.helpers.hooks.deadline(),
            sampler.filter(|_| self.samples_memory()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Starts and ends helpers, as far as it is time.
    pub(crate) fn tend_helpers(&mut self) {
        self.expire_helpers();
        self.sample_memory();
        self.tend_admin();
        self.tend_hooks();
    }

    /// Starts hooks for the events of this round.
    pub(crate) fn tend_hooks(&mut self) {
        if let Some(generation) = self.generations.accepted() {
            let Helpers {
                hooks, processes, ..
            } = &mut self.helpers;
            hooks.start_next(self.now, &self.poll, processes, &generation.config);
        }
    }

    /// Gives helpers that do something for others until `end` to finish: hooks, and the admin child,
    /// which answers the clients that it has accepted. Returns whether any of them still runs or
    /// waits.
    pub(crate) fn finish_helpers(&mut self, end: Time) -> bool {
        self.tend_hooks();
        self.operators.control.drop_lasting(&self.poll);
        let Helpers {
            processes,
            admin,
            hooks,
            ..
        } = &mut self.helpers;
        hooks.hurry(processes, end);
        admin.leave_until(end, processes);
        self.expire_helpers();
        self.helpers.hooks.are_busy() || self.helpers.processes.runs(Kind::Admin)
    }

    fn samples_memory(&self) -> bool {
        let limited = self
            .generations
            .iter()
            .any(|(_, generation)| generation.config.max_memory.is_some());
        limited && !self.core.is_stopping()
    }

    /// Starts a memory sampler, if it is time.
    fn sample_memory(&mut self) {
        let due = self.helpers.sampler.deadline();
        if due.is_none_or(|due| due > self.now) || !self.samples_memory() {
            return;
        }
        let handles = self.workers.handles.values();
        let workers = handles.map(|handle| (handle.id, handle.pid)).collect();
        let Helpers {
            sampler, processes, ..
        } = &mut self.helpers;
        if let Err(error) = sampler.start(self.now, &self.poll, processes, &self.name, workers) {
            warn!("{error}");
        }
    }

    /// The memory sampler has exited, or has `timed_out`.
    fn memory_sampled(&mut self, timed_out: bool) {
        let Helpers {
            sampler, processes, ..
        } = &mut self.helpers;
        let Some(samples) = sampler.finish(self.now, &self.poll, processes, timed_out) else {
            return;
        };
        if let Some(problem) = samples.problem {
            warn!("{problem}");
        }
        for (worker, bytes) in samples.memory {
            if let Some(handle) = self.workers.handles.get_mut(&worker) {
                handle.memory = Some(bytes);
            }
        }
        let look = self.look();
        self.feed(Event::Observation(look));
    }

    /// Starts, replaces or retires the admin child, as the accepted generation wants it.
    fn tend_admin(&mut self) {
        let Some(generation) = self.generations.accepted().filter(|_| self.exit.is_none()) else {
            return;
        };
        let Helpers {
            admin, processes, ..
        } = &mut self.helpers;
        if admin.is_outdated(generation) {
            self.operators.control.drop_lasting(&self.poll);
            admin.retire(self.now, processes);
        }
        let started = admin.start(self.now, &self.poll, processes, &self.name, generation);
        let [status, events] = match started {
            Ok(None) => return,
            Ok(Some(ends)) => ends,
            Err(reason) => return warn!("{reason}"),
        };
        let control = &mut self.operators.control;
        let watched = control
            .admit_lasting(&self.poll, status, Role::Read)
            .and_then(|()| control.admit_lasting(&self.poll, events, Role::Read));
        if let Err(error) = watched {
            warn!("cannot watch the admin child: {error}");
            // Without its connections it leaves by itself, or is killed.
            control.drop_lasting(&self.poll);
            admin.retire_failed(self.now, processes);
        }
    }

    fn admin_exited(&mut self, id: HelperId, exit: &HelperExit) {
        let Some(ended) = self.helpers.admin.finish(self.now, id, exit) else {
            return;
        };
        let wait = ended.wait;
        let text = format!(
            "the admin child is dead ({}); its clients wait, and another one starts",
            ended.how
        );
        let text = if wait.is_zero() {
            text
        } else {
            format!("{text} in {wait:.1?}")
        };
        self.announce(EventRecord::new("admin-died", Level::Warn, text).with("end", ended.how));
    }

    /// Starts the readiness probe of a program that has just been started, if `--ready listen` asks
    /// for one.
    pub(crate) fn probe_readiness(&mut self, worker: WorkerId) -> Option<Event> {
        self.probe(worker, true)
            .map(|reason| Event::Unobservable(worker, reason))
    }

    /// Checks by a probe whether a program that counts as ready waits for connections.
    pub(crate) fn check_readiness(&mut self, worker: WorkerId) {
        if let Some(reason) = self.probe(worker, true) {
            debug!("{reason}");
        }
    }

    /// Starts the probe that this worker needs, if it needs one; returns why there is none.
    fn probe(&mut self, worker: WorkerId, reports: bool) -> Option<String> {
        let handle = self.workers.handles.get(&worker)?;
        let generation = self.generations.get(handle.generation)?;
        let purpose = match generation.config.ready {
            Ready::Listen if handle.is_awaited() => Purpose::Readiness,
            Ready::Auto | Ready::After(_) if handle.counts_as_ready() => Purpose::Check,
            _ => return None,
        };
        let queues = WorkerSockets::of(generation, handle.slot);
        let sockets: Vec<BorrowedFd<'_>> = queues.own.iter().map(|(_, socket)| *socket).collect();
        let Helpers {
            probes, processes, ..
        } = &mut self.helpers;
        let subject = Subject {
            worker,
            pid: handle.pid,
            purpose,
            reports,
        };
        let started = probes.start(
            &self.poll,
            processes,
            &self.name,
            subject,
            &sockets,
            &generation.config.log,
        );
        started.err().map(|error| error.to_string())
    }

    /// Starts the probes of all workers: those of the version before were killed.
    pub(crate) fn probe_readiness_again(&mut self) {
        for worker in self.workers.handles.keys().copied().collect::<Vec<_>>() {
            if let Some(event) = self.probe_readiness(worker) {
                self.feed(event);
            }
        }
    }

    /// Stops probing a worker that is gone.
    pub(crate) fn stop_probing(&mut self, worker: WorkerId) {
        let Helpers {
            probes, processes, ..
        } = &mut self.helpers;
        probes.stop(&self.poll, processes, worker);
    }

    /// Whether a program is ready when it says so. With `--ready listen` it may say so too early,
    /// as gunicorn does, whose master reports readiness before it has a worker.
    pub(crate) fn trusts_notified_readiness(&self, worker: WorkerId) -> bool {
        let handle = self.workers.handles.get(&worker);
        let generation = handle.and_then(|handle| self.generations.get(handle.generation));
        generation.is_none_or(|generation| generation.config.ready != Ready::Listen)
    }

    fn readiness_probed(&mut self, worker: WorkerId, exit: &HelperExit) {
        match self.helpers.probes.finish(worker, exit) {
            ProbeResult::Ready => {
                let handle = self.workers.handles.get_mut(&worker);
                if handle.is_some_and(|handle| handle.problem.take().is_some()) {
                    self.feed(Event::Failed(worker, String::new()));
                }
                let handle = self.workers.handles.get_mut(&worker);
                if let Some(event) = handle.and_then(WorkerHandle::seen_to_wait) {
                    self.feed(event);
                }
            }
            ProbeResult::Gone => debug!("worker {worker} is gone, its readiness probe reports"),
            ProbeResult::Unseen => debug!("worker {worker} is not seen to wait for connections"),
            ProbeResult::Misdirected(found) => {
                self.report_misdirected(worker, &found);
                // It may still come to wait.
                if let Some(reason) = self.probe(worker, false) {
                    debug!("{reason}");
                }
            }
            ProbeResult::Failed { how, again: true } => {
                warn!(
                    "starting another readiness probe of worker {worker}: one ended early ({how})"
                );
                if let Some(event) = self.probe_readiness(worker) {
                    self.feed(event);
                }
            }
            ProbeResult::Failed { how, again: false } => {
                // Without a probe its readiness would never be known.
                let reason =
                    format!("cannot be seen to get ready: its readiness probes end early ({how})");
                self.feed(Event::Unobservable(worker, reason));
            }
        }
    }

    /// Reports a worker that does not wait on its sockets.
    fn report_misdirected(&mut self, worker: WorkerId, found: &Misdirected) {
        let Some(handle) = self.workers.handles.get(&worker) else {
            return;
        };
        let Some(generation) = self.generations.get(handle.generation) else {
            return;
        };
        let own = WorkerSockets::of(generation, handle.slot).own;
        let unwatched = own.iter().zip(FIRST_FD..).filter(|((_, socket), _)| {
            nix::sys::stat::fstat(socket).is_ok_and(|it| found.unwatched.contains(&it.st_ino))
        });
        let sockets: Vec<String> = unwatched
            .map(|((name, socket), number)| {
                let address = getsockname::<SockaddrStorage>(socket.as_raw_fd());
                let address = match address.map(|it| it.to_string()) {
                    Ok(address) if !name.starts_with("unix-") => address,
                    _ => name.replacen("unix-", "unix:", 1),
                };
                format!("{address} (descriptor {number})")
            })
            .collect();
        if sockets.is_empty() {
            return;
        }
        let elsewhere = if found.elsewhere.is_empty() {
            String::new()
        } else {
            format!("; it listens on {}", found.elsewhere.join(" and "))
        };
        let problem = format!(
            "does not accept on {}{elsewhere}. It must use the inherited socket (LISTEN_FDS)",
            sockets.join(" and ")
        );
        let who = WorkerRef {
            worker,
            slot: handle.slot,
            generation: handle.generation,
        };
        let (level, text) = (Level::Warn, format_args!("{problem}"));
        let event = of_worker("not-accepting", level, who, Some(handle.pid), text);
        self.announce(event);
        if let Some(handle) = self.workers.handles.get_mut(&worker) {
            handle.problem = Some(problem.clone());
        }
        self.feed(Event::Failed(worker, problem));
    }
}
