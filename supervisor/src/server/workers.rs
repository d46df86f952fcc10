//! What is seen and heard of the workers while they live, and what is left when they are dead.

use super::Server;
use crate::generation::Generation;
use crate::process::reap::{reap_orphans, reap_with_usage};
use crate::systemd::notify::WorkerNotice;
use crate::workers::exits::{ExitRecord, end};
use crate::workers::handle::{Line, WorkerHandle};
use crate::workers::leftovers::Leftover;
use log::{debug, warn};
use nix::unistd::Pid;
use prefork_core::{Event, Observation, Time, WorkerLoad, WorkerState};
use prefork_protocol::{Slot, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a server that leaves waits for the end of what its workers have left.
const FAREWELL: Duration = Duration::from_secs(1);

/// The most notices taken from foreign workers in one wake-up.
const NOTICES_AT_ONCE: usize = 64;
/// How long to leave what is not gone yet of dead workers.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Server {
    /// What the scoreboard, the notices and, if it is time, the queues say of everybody.
    pub(crate) fn look(&self) -> Observation {
        let sample = |hand: &WorkerHandle| (hand.id, hand.sample(self.now));
        let workers = self.hands.values().map(sample).collect();
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
        let load = |hand: &WorkerHandle| {
            let config = &self.generations.get(&hand.generation)?.config;
            Some((hand.id, hand.load(config, memory)))
        };
        self.hands.values().filter_map(load).collect()
    }

    /// A worker whose listening socket was shut down accepts nothing any more, whoever has done that. Its successor gets a
    /// socket that listens.
    pub(crate) fn condemn_the_shut(&mut self) {
        let is_shut = |hand: &WorkerHandle| {
            let generation = self.generations.get(&hand.generation);
            generation.is_some_and(|generation| {
                generation.sockets.is_shut(generation.queue_of(hand.slot))
            })
        };
        let shut: BTreeSet<WorkerId> = self
            .hands
            .values()
            .filter(|hand| is_shut(hand))
            .map(|hand| hand.id)
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
            let reason = "cannot accept any more, since somebody has shut down a listening socket of its slot";
            self.feed(Event::ProtocolViolation(worker, reason.to_owned()));
        }
    }

    /// How many connections wait for each slot that has a worker, or had one until a while ago.
    pub(crate) fn queues(&self) -> BTreeMap<Slot, u32> {
        let mut queues = BTreeMap::new();
        for hand in self.hands.values() {
            let sockets = self
                .generations
                .get(&hand.generation)
                .map(|generation| &generation.sockets);
            if let Some(length) = sockets.and_then(|sockets| sockets.queue_length(hand.slot.0)) {
                // Two workers in a slot mostly have the same sockets.
                queues
                    .entry(hand.slot)
                    .and_modify(|most: &mut u32| *most = length.max(*most))
                    .or_insert(length);
            }
        }
        let accepted = self
            .generations
            .get(&self.accepted)
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
            .hands
            .values()
            .map(|hand| (hand.pid, hand.id))
            .collect();
        for _ in 0..NOTICES_AT_ONCE {
            let received = match self.notify.receive(|pid| pids.contains_key(&pid)) {
                Ok(Some(received)) => received,
                Ok(None) => return,
                Err(error) => return debug!("cannot read a notice: {error}"),
            };
            let Some(worker) = received.worker.and_then(|pid| pids.get(&pid)) else {
                continue;
            };
            if let Some(event) = self
                .hands
                .get_mut(worker)
                .and_then(|hand| hand.count_notice(self.now))
            {
                self.feed(event);
                continue;
            }
            for notice in received.notices {
                if notice == WorkerNotice::Ready && !self.takes_its_word(*worker) {
                    continue;
                }
                let event = self
                    .hands
                    .get_mut(worker)
                    .and_then(|hand| hand.notice(self.now, notice));
                if let Some(event) = event {
                    self.feed(event);
                }
            }
        }
    }

    pub(crate) fn hear(&mut self, worker: WorkerId) {
        let Some(hand) = self.hands.get_mut(&worker) else {
            return;
        };
        let before = matches!(hand.line, Line::Channel { .. });
        let events = hand.listen(self.now);
        if before && matches!(hand.line, Line::Closed) {
            debug!("worker {worker} has closed its channel");
        }
        for event in events {
            self.feed(event);
        }
    }

    /// A worker is dead: its last words, its cause of death, its numbers, its leftovers.
    pub(crate) fn reap(&mut self, worker: WorkerId) {
        self.hear(worker);
        let Some(hand) = self.hands.get_mut(&worker) else {
            return;
        };
        // While the body is not reaped, nobody else can have the group's number.
        hand.kill_group();
        let (death, usage) = match reap_with_usage(&hand.pidfd) {
            Ok(None) => return,
            Ok(Some((death, usage))) => (Some(death), usage),
            Err(error) => {
                debug!("cannot tell how worker {worker} ended: {error}");
                Default::default()
            }
        };
        // A group tells only of what was killed in it.
        let oom = self
            .groups
            .as_mut()
            .is_some_and(|groups| groups.close(worker))
            .then_some(true);
        let last_words = hand.stderr.take().map(|capture| {
            if let Some(pipe) = capture.descriptor() {
                self.poll.remove(pipe);
            }
            capture.reap()
        });
        let reading = hand.reading();
        if let Some((totals, reading)) = self.dead.get_mut(hand.slot.index()).zip(reading.as_ref())
        {
            totals.fold(reading);
        }
        let generation = self.generations.get(&hand.generation);
        let record = ExitRecord {
            pid: hand.pid,
            death,
            failure: hand.exec_errors.failure(),
            oom,
            usage,
            reading,
            stderr_tail: last_words.unwrap_or_default(),
        };
        let clean = generation
            .map(|generation| generation.config.clean_exit.clone())
            .unwrap_or_default();
        let end = end(hand, &record, &clean);
        self.poll.remove(&hand.pidfd);
        if let Line::Channel { channel, .. } = &hand.line {
            self.poll.remove(channel);
        }
        self.stop_looking_out(worker);
        // Whatever it has left is gone before its death is told.
        self.leftovers.scan_now(self.now);
        self.sweep_leftovers(Some(worker));
        self.record = Some((worker, record));
        self.feed(Event::Died(worker, end));
        self.record = None;
        self.hands.remove(&worker);
        self.look_for_orphans = Some(self.now);
    }

    /// All processes that were started here and not buried yet.
    fn children(&self) -> BTreeSet<Pid> {
        let workers = self.hands.values().map(|hand| hand.pid);
        workers
            .chain(self.upgrade.pid())
            .chain(self.lookouts.pids())
            .chain(self.hooks.pids())
            .chain(self.gauge.pid())
            .chain(self.doomed.pids())
            .chain(self.admin.pids())
            .collect()
    }

    /// Kills what dead workers have left, if there was reason to look; `buried` is one of them.
    pub(crate) fn sweep_leftovers(&mut self, buried: Option<WorkerId>) {
        if self.leftovers.due().is_none_or(|due| due > self.now) {
            return;
        }
        let known = self.children();
        let lives = |worker| Some(worker) != buried && self.hands.contains_key(&worker);
        for Leftover { pid, name, worker } in self.leftovers.sweep(self.now, &known, lives) {
            match worker {
                Some(worker) => warn!(worker = worker.0, pid = pid.as_raw();
                    "killed process {pid} ({name}), which worker {worker} had left behind"),
                None => warn!(pid = pid.as_raw();
                    "killed process {pid} ({name}), which a worker had left behind without its environment"),
            }
        }
    }

    /// The server is about to leave, and everybody is dead: whether to wait for what they have left, and for hooks.
    pub(crate) fn clear_away(&mut self, farewell: &mut Option<Time>) -> bool {
        let end = *farewell.get_or_insert_with(|| {
            self.leftovers.scan_now(self.now);
            self.now + FAREWELL
        });
        self.sweep_leftovers(None);
        self.leftovers.rescan_soon(self.now);
        self.tend_hooks();
        let end_of_hooks = end + FAREWELL;
        self.hooks.hurry(end_of_hooks);
        self.leftovers.is_busy() && self.now < end
            || self.hooks.are_busy() && self.now < end_of_hooks
    }

    pub(crate) fn reap_orphans_now(&mut self) {
        self.doomed.reap();
        let unswept = self.groups.as_mut().is_some_and(|groups| {
            groups.sweep();
            !groups.is_swept()
        });
        let known = self.children();
        match reap_orphans(|pid| known.contains(&pid)) {
            Ok(orphans) => {
                for (pid, death) in orphans.reaped {
                    debug!("orphan {pid} {death}");
                    self.leftovers.reaped(self.now, pid);
                }
                // A body that hides others is buried in this very round; too many bodies are not.
                let soon = if orphans.full { Some(self.now) } else { None };
                let later = orphans.hidden || unswept;
                self.look_for_orphans = soon.or(later.then(|| self.now + LOOK_AGAIN));
            }
            Err(error) => {
                debug!("cannot reap orphans: {error}");
                self.look_for_orphans = None;
            }
        }
    }
}
