//! The worker processes: what they report while they live, and what is left when they have exited.

use super::Server;
use super::blocking::Displaced;
use crate::generation::Generation;
use crate::process::reap::{reap_orphans, reap_with_usage};
use crate::systemd::notify::NotifyServer;
use crate::systemd::notify::WorkerNotice;
use crate::workers::cgroup::WorkerCgroups;
use crate::workers::exits::{ExitCounts, end};
use crate::workers::handle::ExitRecord;
use crate::workers::handle::{Line, WorkerHandle};
use crate::workers::leftovers::{Leftover, Leftovers};
use log::{debug, warn};
use nix::unistd::Pid;
use prefork_core::{Event, Observation, Time, WorkerLoad, WorkerState};
use prefork_protocol::scoreboard::Totals;
use prefork_protocol::{Slot, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The longest that an exiting server waits for what its workers have left, and again for helpers.
const FAREWELL: Duration = Duration::from_secs(1);
/// The most notices taken from external programs in one wake-up.
const NOTICES_AT_ONCE: usize = 64;
/// How often to look whether what has outlived a draining program is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The time until dead processes that could not be reaped are tried again.
const REAP_AGAIN: Duration = Duration::from_millis(100);

/// The workers, and what is counted and cleaned up of those that have exited.
#[derive(Debug)]
pub(crate) struct Workers {
    pub(crate) handles: BTreeMap<WorkerId, WorkerHandle>,
    /// What exited workers have done, by slot.
    pub(crate) past_totals: Vec<Totals>,
    pub(crate) exits: ExitCounts,
    pub(crate) leftovers: Leftovers,
    pub(crate) displaced: Displaced,
    /// Where external programs notify.
    pub(crate) notify: NotifyServer,
    pub(crate) cgroups: Option<WorkerCgroups>,
    /// When to reap processes that are not ours, and to look for what exited workers have left.
    pub(crate) orphans_due: Option<Time>,
}

impl Workers {
    /// None yet.
    pub(crate) fn new(notify: NotifyServer, cgroups: Option<WorkerCgroups>) -> Self {
        Self {
            handles: BTreeMap::new(),
            past_totals: vec![Totals::default(); usize::from(Slot::MAX)],
            exits: ExitCounts::default(),
            leftovers: Leftovers::new(),
            displaced: Displaced::default(),
            notify,
            cgroups,
            orphans_due: None,
        }
    }

    /// Returns when [`Server::tend_workers`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let alarms = self.handles.values();
        let alarms = alarms.filter_map(|handle| handle.alarm.map(|(time, _)| time));
        let outlived = self.handles.values().filter_map(|handle| handle.outlived);
        alarms
            .chain(outlived)
            .chain(self.leftovers.due())
            .chain(self.orphans_due)
            .min()
    }
}

impl Server {
    /// What the scoreboard, the notices and, if it is time, the queues say of everybody.
    pub(crate) fn look(&self) -> Observation {
        let sample = |handle: &WorkerHandle| (handle.id, handle.sample(self.now));
        let workers = self.workers.handles.values().map(sample).collect();
        let queues = self
            .core
            .wants_queues(self.now)
            .then(|| self.queues().into_iter().collect());
        let loads = self.core.wants_loads().filter(|_| queues.is_some());
        let loads = loads.map(|memory| self.loads(memory)).unwrap_or_default();
        Observation {
            workers,
            queues,
            loads,
        }
    }

    /// How much everybody has to do.
    fn loads(&self, memory: bool) -> Vec<(WorkerId, WorkerLoad)> {
        let load = |handle: &WorkerHandle| {
            let config = &self.generations.get(handle.generation)?.config;
            Some((handle.id, handle.load(config, memory)))
        };
        self.workers.handles.values().filter_map(load).collect()
    }

    /// A worker whose listening socket was shut down accepts nothing any more, whoever has done
    /// that. Its successor gets a socket that listens.
    pub(crate) fn terminate_the_shut_down(&mut self) {
        let is_shut = |handle: &WorkerHandle| {
            let generation = self.generations.get(handle.generation);
            generation.is_some_and(|generation| {
                generation.sockets.is_shut(generation.queue_of(handle.slot))
            })
        };
        let shut: BTreeSet<WorkerId> = self
            .workers
            .handles
            .values()
            .filter(|handle| is_shut(handle))
            .map(|handle| handle.id)
            .collect();
        if shut.is_empty() {
            return;
        }
        let accepts = |state| {
            matches!(
                state,
                WorkerState::Starting | WorkerState::Ready | WorkerState::Stalled
            )
        };
        let workers = self.core.view().workers.into_iter();
        let found: Vec<WorkerId> = workers
            .filter(|worker| accepts(worker.state) && shut.contains(&worker.worker))
            .map(|worker| worker.worker)
            .collect();
        for worker in found {
            let reason =
                "cannot accept any more, since a listening socket of its slot was shut down";
            self.feed(Event::ProtocolViolation(worker, reason.to_owned()));
        }
    }

    /// How many connections wait for each slot that has a worker, or had one until a while ago.
    pub(crate) fn queues(&self) -> BTreeMap<Slot, u32> {
        let mut queues = BTreeMap::new();
        for handle in self.workers.handles.values() {
            let sockets = self
                .generations
                .get(handle.generation)
                .map(|generation| &generation.sockets);
            if let Some(length) = sockets.and_then(|sockets| sockets.queue_length(handle.slot.0)) {
                // Two workers in a slot mostly have the same sockets.
                queues
                    .entry(handle.slot)
                    .and_modify(|most: &mut u32| *most = length.max(*most))
                    .or_insert(length);
            }
        }
        let accepted = self
            .generations
            .accepted()
            .filter(|accepted| accepted.serves_each_queue());
        if let Some(Generation { sockets, .. }) = accepted {
            for slot in self.core.retired() {
                if let Some(length) = sockets.queue_length(slot.0) {
                    queues.entry(slot).or_insert(length);
                }
            }
        }
        queues
    }

    pub(crate) fn take_notices(&mut self) {
        let pids: BTreeMap<Pid, WorkerId> = self
            .workers
            .handles
            .values()
            .map(|handle| (handle.pid, handle.id))
            .collect();
        for _ in 0..NOTICES_AT_ONCE {
            let received = match self.workers.notify.receive(|pid| pids.contains_key(&pid)) {
                Ok(Some(received)) => received,
                Ok(None) => return,
                Err(error) => return debug!("cannot read a notice: {error}"),
            };
            let Some(worker) = received.worker.and_then(|pid| pids.get(&pid)) else {
                continue;
            };
            if let Some(event) = self
                .workers
                .handles
                .get_mut(worker)
                .and_then(|handle| handle.count_notice(self.now))
            {
                self.feed(event);
                continue;
            }
            for notice in received.notices {
                if notice == WorkerNotice::Ready && !self.trusts_notified_readiness(*worker) {
                    continue;
                }
                let event = self
                    .workers
                    .handles
                    .get_mut(worker)
                    .and_then(|handle| handle.notice(self.now, notice));
                if let Some(event) = event {
                    self.feed(event);
                }
            }
        }
    }

    pub(crate) fn hear(&mut self, worker: WorkerId) {
        let Some(handle) = self.workers.handles.get_mut(&worker) else {
            return;
        };
        let before = matches!(handle.line, Line::Channel { .. });
        let events = handle.listen(self.now);
        if before && matches!(handle.line, Line::Closed) {
            debug!("worker {worker} has closed its channel");
        }
        for event in events {
            self.feed(event);
        }
    }

    /// A worker has exited, perhaps: reaps it, and reports its last messages, its cause of death,
    /// its numbers and its leftovers.
    pub(crate) fn worker_exited(&mut self, worker: WorkerId) {
        self.hear(worker);
        if self.is_outlived(worker) {
            return;
        }
        let Some(handle) = self.workers.handles.get_mut(&worker) else {
            return;
        };
        // Until it is reaped, its process group's number belongs to it.
        handle.kill_group();
        let (death, usage) = match reap_with_usage(&handle.pidfd) {
            Ok(None) => return,
            Ok(Some((death, usage))) => (Some(death), usage),
            Err(error) => {
                debug!("cannot tell how worker {worker} ended: {error}");
                Default::default()
            }
        };
        // A group only knows of what was killed in it.
        let oom = self
            .workers
            .cgroups
            .as_mut()
            .is_some_and(|groups| groups.close(worker))
            .then_some(true);
        let stderr_tail = handle.stderr.take().map(|capture| {
            if let Some(pipe) = capture.descriptor() {
                self.poll.remove(pipe);
            }
            capture.finish()
        });
        let reading = handle.reading();
        let totals = self.workers.past_totals.get_mut(handle.slot.index());
        if let Some((totals, reading)) = totals.zip(reading.as_ref()) {
            totals.fold(reading);
        }
        if let Some((totals, requests)) = self
            .workers
            .past_totals
            .get_mut(handle.slot.index())
            .zip(handle.reported.requests)
        {
            totals.requests = totals.requests.saturating_add(requests);
        }
        let record = ExitRecord {
            pid: handle.pid,
            death,
            failure: handle.exec_errors.failure(),
            oom,
            usage,
            reading,
            stderr_tail: stderr_tail.unwrap_or_default(),
        };
        let (slot, id) = (handle.slot, handle.generation);
        let generation = self.generations.get(id);
        let clean = generation
            .map(|generation| generation.config.clean_exit.clone())
            .unwrap_or_default();
        let end = end(handle, &record, &clean);
        self.poll.remove(&handle.pidfd);
        if let Line::Channel { channel, .. } = &handle.line {
            self.poll.remove(channel);
        }
        handle.exit = Some(record);
        self.stop_probing(worker);
        // Whatever it has left is gone before its death is reported.
        self.workers.leftovers.scan_now(self.now);
        self.sweep_leftovers(Some(worker));
        self.restore_blocking_after(worker, slot, id);
        self.feed(Event::Died(worker, end));
        self.workers.handles.remove(&worker);
        self.workers.orphans_due = Some(self.now);
    }

    /// Whether a program that was asked to drain has exited while others of its process group still
    /// drain. The worker is gone when they are, and until then its slot has not drained: they may
    /// have its requests, as behind a shell script or `npm run`.
    fn is_outlived(&mut self, worker: WorkerId) -> bool {
        let workers = self.core.view().workers;
        let drains = |state| state == WorkerState::Draining;
        let is_draining = workers
            .iter()
            .any(|it| it.worker == worker && drains(it.state));
        let Some(handle) = self.workers.handles.get_mut(&worker) else {
            return false;
        };
        let Line::Notify { stop, .. } = handle.line else {
            return false;
        };
        if !is_draining || !handle.is_outlived() {
            return false;
        }
        if handle.outlived.is_none() {
            // It has exited, and would be reported all the time.
            self.poll.remove(&handle.pidfd);
            handle.signal_group(stop);
        }
        handle.outlived = Some(self.now + LOOK_AGAIN);
        true
    }

    /// Rings alarms, reaps orphans and kills leftovers, as far as it is time.
    pub(crate) fn tend_workers(&mut self) {
        let handles = self.workers.handles.values();
        let due = handles.filter(|it| it.alarm.is_some_and(|(time, _)| time <= self.now));
        for worker in due.map(|it| it.id).collect::<Vec<_>>() {
            let handle = self.workers.handles.get_mut(&worker);
            if let Some(event) = handle.and_then(WorkerHandle::ring) {
                self.feed(event);
            }
        }
        let handles = self.workers.handles.values();
        let outlived = handles.filter(|it| it.outlived.is_some_and(|time| time <= self.now));
        for worker in outlived.map(|it| it.id).collect::<Vec<_>>() {
            self.worker_exited(worker);
        }
        if self.workers.orphans_due.is_some_and(|at| at <= self.now) {
            self.reap_orphans_now();
        }
        self.sweep_leftovers(None);
    }

    /// Returns all processes that were started here and not reaped yet.
    fn children(&self) -> BTreeSet<Pid> {
        let workers = self.workers.handles.values().map(|handle| handle.pid);
        workers.chain(self.helpers.processes.pids()).collect()
    }

    /// Kills what dead workers have left, if there was reason to look; `exited` is one of them.
    pub(crate) fn sweep_leftovers(&mut self, exited: Option<WorkerId>) {
        if self
            .workers
            .leftovers
            .due()
            .is_none_or(|due| due > self.now)
        {
            return;
        }
        let known = self.children();
        let lives = |worker| Some(worker) != exited && self.workers.handles.contains_key(&worker);
        for Leftover { pid, name, worker } in self.workers.leftovers.sweep(self.now, &known, lives)
        {
            match worker {
                Some(worker) => warn!(worker = worker.0, pid = pid.as_raw();
                    "killed process {pid} ({name}), which worker {worker} had left behind"),
                None => warn!(pid = pid.as_raw();
                    "killed process {pid} ({name}), which a worker had left behind without its environment"),
            }
        }
    }

    /// Whether a server that exits, with all workers dead, still waits for what they have left or
    /// for helpers.
    pub(crate) fn clear_away(&mut self, farewell: &mut Option<Time>) -> bool {
        let end = *farewell.get_or_insert_with(|| {
            self.workers.leftovers.scan_now(self.now);
            self.now + FAREWELL
        });
        self.sweep_leftovers(None);
        self.workers.leftovers.rescan_soon(self.now);
        let end_of_helpers = end + FAREWELL;
        let helpers = self.finish_helpers(end_of_helpers);
        self.workers.leftovers.is_busy() && self.now < end || helpers && self.now < end_of_helpers
    }

    /// Reaps every dead process that is not ours: orphans, and helpers that were killed.
    pub(crate) fn reap_orphans_now(&mut self) {
        self.helpers.processes.reap_terminated();
        let unswept = self.workers.cgroups.as_mut().is_some_and(|groups| {
            groups.sweep();
            !groups.is_swept()
        });
        let known = self.children();
        match reap_orphans(|pid| known.contains(&pid)) {
            Ok(orphans) => {
                for (pid, death) in orphans.reaped {
                    debug!("orphan {pid} {death}");
                    self.workers.leftovers.reaped(self.now, pid);
                }
                // One that hides others is reaped in this very round; too many are not.
                let soon = if orphans.full { Some(self.now) } else { None };
                let later = orphans.hidden || unswept;
                self.workers.orphans_due = soon.or(later.then(|| self.now + REAP_AGAIN));
            }
            Err(error) => {
                debug!("cannot reap orphans: {error}");
                self.workers.orphans_due = None;
            }
        }
    }
}
