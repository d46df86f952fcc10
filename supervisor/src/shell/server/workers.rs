//! What is seen and heard of the workers while they live, and what is left when they are dead.

use super::Server;
use crate::core::{Event, Look};
use crate::shell::deaths::{Remains, end};
use crate::shell::generation::Generation;
use crate::shell::hand::{Hand, Line};
use crate::shell::reap::{reap_orphans, reap_with_usage};
use log::debug;
use nix::unistd::Pid;
use prefork::{Slot, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// The most notices taken from foreign workers in one wake-up.
const NOTICES_AT_ONCE: usize = 64;

impl Server {
    /// What the scoreboard, the notices and, if it is time, the queues say of everybody.
    pub(super) fn look(&self) -> Look {
        let sight =
            |hand: &Hand| (hand.id, hand.sight(self.now, &self.scoreboard.row(hand.slot, hand.seat).read()));
        let workers = self.hands.values().map(sight).collect();
        let queues = self.core.wants_queues(self.now).then(|| self.queues().into_iter().collect());
        Look { workers, queues }
    }

    /// How many connections wait for each slot that has a worker, or had one until a while ago.
    pub(super) fn queues(&self) -> BTreeMap<Slot, u32> {
        let mut queues = BTreeMap::new();
        for hand in self.hands.values() {
            let sockets = self.generations.get(&hand.generation).map(|generation| &generation.sockets);
            if let Some(length) = sockets.and_then(|sockets| sockets.queue(hand.slot.0)) {
                // Two workers in a slot mostly have the same sockets.
                queues
                    .entry(hand.slot)
                    .and_modify(|most: &mut u32| *most = length.max(*most))
                    .or_insert(length);
            }
        }
        let accepted = self.generations.get(&self.accepted).filter(|accepted| accepted.serves_each_queue());
        if let Some(Generation { sockets, .. }) = accepted {
            for slot in self.core.retired() {
                if let Some(length) = sockets.queue(slot.0) {
                    queues.entry(slot).or_insert(length);
                }
            }
        }
        queues
    }

    pub(super) fn take_notices(&mut self) {
        let pids: BTreeMap<Pid, WorkerId> = self.hands.values().map(|hand| (hand.pid, hand.id)).collect();
        for _ in 0..NOTICES_AT_ONCE {
            let received = match self.notify.receive(|pid| pids.contains_key(&pid)) {
                Ok(Some(received)) => received,
                Ok(None) => return,
                Err(error) => return debug!("cannot read a notice: {error}"),
            };
            let Some(worker) = received.worker.and_then(|pid| pids.get(&pid)) else { continue };
            for notice in received.notices {
                let event = self.hands.get_mut(worker).and_then(|hand| hand.notice(self.now, notice));
                if let Some(event) = event {
                    self.feed(event);
                }
            }
        }
    }

    pub(super) fn hear(&mut self, worker: WorkerId) {
        let Some(hand) = self.hands.get_mut(&worker) else { return };
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
    pub(super) fn bury(&mut self, worker: WorkerId) {
        self.hear(worker);
        let Some(hand) = self.hands.get(&worker) else { return };
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
        let row = self.scoreboard.row(hand.slot, hand.seat);
        let reading = row.read();
        if let Some(totals) = self.dead.get_mut(hand.slot.index()) {
            totals.fold(&reading);
        }
        row.clear();
        let generation = self.generations.get(&hand.generation);
        let remains = Remains {
            pid: hand.pid,
            death,
            failure: hand.exec_errors.failure(),
            oom: None,
            usage,
            reading: generation.is_some_and(Generation::has_channel).then_some(reading),
            last_words: Vec::new(),
        };
        let clean = generation.map(|generation| generation.config.clean_exit.clone()).unwrap_or_default();
        let end = end(hand, &remains, &clean);
        self.poll.remove(&hand.pidfd);
        if let Line::Channel { channel, .. } = &hand.line {
            self.poll.remove(channel);
        }
        self.remains = Some((worker, remains));
        self.feed(Event::Died(worker, end));
        self.remains = None;
        self.hands.remove(&worker);
        self.orphans_left = true;
    }

    pub(super) fn bury_orphans(&mut self) {
        let known: BTreeSet<Pid> =
            self.hands.values().map(|hand| hand.pid).chain(self.upgrade.pid()).collect();
        match reap_orphans(|pid| known.contains(&pid)) {
            Ok(orphans) => {
                for (pid, death) in orphans.reaped {
                    debug!("orphan {pid} {death}");
                }
                self.orphans_left = orphans.more;
            }
            Err(error) => {
                debug!("cannot reap orphans: {error}");
                self.orphans_left = false;
            }
        }
    }
}
