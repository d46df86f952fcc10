//! The life of workers: they send heartbeats, accept connections, stall, and recover.

use super::world::*;

impl Process {
    /// Whether it fills its slot, healthy or not.
    pub(crate) fn serves(&self) -> bool {
        self.ready && self.drained_at.is_none() && self.aborted_at.is_none() && !self.killed
    }

    /// Whether it accepts connections.
    pub(crate) fn takes(&self) -> bool {
        self.serves() && self.silent_since.is_none() && !self.deaf
    }
}

impl World {
    pub(crate) fn plan_of(&self, process: &Process) -> Option<Plan> {
        self.fates.get(&process.generation).map(|fate| fate.1)
    }

    /// Lets workers accept connections, whatever the supervisor does.
    pub(crate) fn flow(&mut self) {
        let now = self.now;
        for (slot, queue) in &mut self.queues {
            let own = self
                .processes
                .values_mut()
                .filter(|process| process.takes());
            let (mut own, others): (Vec<_>, Vec<_>) =
                own.partition(|process| process.slot == *slot);
            let stolen = self.kind == Kind::Rust { steals: true } && !others.is_empty();
            let accepted = match own.first_mut() {
                _ if queue.length == 0 => 0,
                Some(acceptor) => {
                    let all = !self.kind.is_rust() || self.dice.percent(70);
                    let taken = if all {
                        queue.length
                    } else {
                        1 + self.dice.below::<u32>(queue.length.into())
                    };
                    acceptor.done += u64::from(taken);
                    taken
                }
                None if stolen && self.dice.percent(70) => queue.length,
                None => 0,
            };
            queue.length -= accepted;
            if accepted > 0 || queue.length == 0 {
                queue.still_since = now;
            }
        }
    }

    /// Lets clients connect to slots in rotation. Some are late: their handshake began when the
    /// slot still was.
    pub(crate) fn arrive(&mut self) {
        let (now, open) = (self.now, self.core.view().open);
        self.left
            .retain(|slot, left| now - *left < MINUTE && !self.rotation.contains(slot));
        for slot in self.left.keys().filter(|slot| slot.0 >= open) {
            if self.dice.percent(3) {
                let queue = self.queues.entry(*slot).or_insert(Queue::new(now));
                queue.length += 1;
                self.operations.push_back(now);
            }
        }
        for slot in &self.rotation {
            let queue = self.queues.entry(*slot).or_insert(Queue::new(now));
            if self.dice.percent(30) {
                queue.length += 1 + self.dice.below::<u32>(3);
            }
        }
    }

    pub(crate) fn observe(&mut self) -> Observation {
        let mut workers = Vec::new();
        let now = self.now;
        for (id, process) in self
            .processes
            .iter_mut()
            .filter(|(_, process)| process.ready)
        {
            let plan = self.fates.get(&process.generation).map(|fate| fate.1);
            let period = match self.kind {
                Kind::Feeds => plan.and_then(|plan| plan.hang_timeout).unwrap_or(MINUTE) / 2,
                Kind::Rust { .. } | Kind::Mute { .. } => plan.map_or(MINUTE, |plan| plan.heartbeat),
            };
            if process.silent_since.is_none() {
                let age = self
                    .dice
                    .millis(1 + u64::try_from(period.as_millis()).unwrap_or(0));
                process.heard = process.heard.max(Time(now.0.saturating_sub(age)));
            }
            let sample = WorkerSample {
                heard: if self.kind.is_mute() {
                    now
                } else {
                    process.heard
                },
                beats: !self.kind.is_mute(),
                greeted: self.kind != Kind::Mute { greets: false },
                done: self.kind.is_rust().then_some(process.done),
                oldest: process.busy_since,
                requests: self.kind.is_rust().then_some(process.done),
                memory: Some(process.done << 10),
            };
            workers.push((*id, sample));
        }
        let seen = |slot: &Slot| {
            self.processes.values().any(|process| process.slot == *slot)
                || self.core.retired().any(|one| one == *slot)
        };
        let queues = || self.queues.iter().filter(|(slot, _)| seen(slot));
        let lengths = || {
            queues()
                .map(|(slot, queue)| (*slot, queue.length))
                .collect()
        };
        let lengths: Option<Vec<_>> = self.core.wants_queues(now).then(lengths);
        for (slot, length) in lengths.iter().flatten() {
            if let Some(queue) = self.queues.get_mut(slot) {
                if *length < queue.seen || *length == 0 {
                    queue.seen_since = now;
                }
                queue.seen = *length;
            }
        }
        let loads = self.core.wants_loads().filter(|_| lengths.is_some());
        let loads = loads.map(|memory| self.loads(memory)).unwrap_or_default();
        Observation {
            workers,
            queues: lengths,
            loads,
        }
    }

    /// Changes the load of workers. Now and then all have a lot, or nothing.
    fn loads(&mut self, memory: bool) -> Vec<(WorkerId, WorkerLoad)> {
        let gap = self.now - self.loaded;
        self.loaded = self.now;
        if self.calm {
            self.busy = 0;
        } else if self.load.percent(3) {
            self.busy = if self.load.percent(60) {
                0
            } else {
                self.load.below(101)
            };
        }
        let (busy, counts) = (self.busy, self.kind.is_rust());
        let mut loads = Vec::new();
        for (id, process) in &mut self.processes {
            let works = self.load.percent(busy) || process.busy_since.is_some();
            process.in_flight = if works && counts {
                1 + self.load.below::<u32>(2)
            } else {
                0
            };
            process.spent += if works { gap } else { Duration::ZERO };
            let load = WorkerLoad {
                spent: process.spent,
                in_flight: counts.then_some(process.in_flight),
                filled: 0.0,
                memory: memory.then_some(MEMORY),
            };
            loads.push((*id, load));
        }
        loads
    }

    /// Holds a worker up for a while.
    pub(crate) fn hold_up(&mut self) {
        let Some(id) = self.random_worker().filter(|id| self.processes[id].ready) else {
            return;
        };
        let Some(plan) = self.plan_of(&self.processes[&id]) else {
            return;
        };
        let longest = if self.healthy || self.dice.percent(50) {
            3000
        } else {
            40_000
        };
        let span = self.dice.millis(longest);
        let (now, rust) = (self.now, self.kind.is_rust());
        // In a healthy world, nothing lasts long enough for an abort.
        let harmless =
            |limit: Option<Duration>| !self.healthy || limit.is_none_or(|limit| limit > span * 3);
        let (may_hang, may_last) = (harmless(plan.hang_timeout), harmless(plan.request_timeout));
        let way = self.dice.below::<u64>(3);
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        match way {
            0 if may_hang => _ = process.silent_since.get_or_insert(now),
            1 if may_hang => process.deaf = true,
            2 if may_last && rust => _ = process.busy_since.get_or_insert(now),
            _ => return,
        }
        process.troubled = true;
        self.schedule(span, Happening::GetsWell(id));
    }

    pub(crate) fn get_well(&mut self, id: WorkerId) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        process.busy_since = None;
        if !process.hangs {
            if process.silent_since.is_some() {
                // It sends a heartbeat as it comes back, even if it falls silent again in the same
                // moment.
                process.heard = now;
            }
            (process.silent_since, process.deaf, process.well_since) = (None, false, now);
        }
    }
}
