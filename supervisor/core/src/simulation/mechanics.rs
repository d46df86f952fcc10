//! The world's mechanics: carries out what the core asks for, and lets happen what is due.

use super::world::*;

impl World {
    pub(crate) fn schedule(&mut self, after: Duration, happening: Happening) {
        self.sequence += 1;
        self.happenings.insert(self.sequence, happening);
        self.queue.push(Reverse((
            self.now + after,
            self.sequence as u64,
            self.sequence,
        )));
    }

    pub(crate) fn step(&mut self, event: Event) {
        if self.verbose && event != Event::Tick && !matches!(event, Event::Observation(..)) {
            eprintln!("{:>12.3?} {event:?}", self.now.0);
        }
        let actions = self.step_core(event);
        for action in actions {
            if self.verbose {
                eprintln!("{:>12.3?}     {action:?}", self.now.0);
            }
            self.perform(action);
        }
        self.check();
    }

    pub(crate) fn perform(&mut self, action: Action) {
        invariant!(
            self,
            !self.exited,
            "nothing is asked for after the exit: {action:?}"
        );
        match action {
            Action::Prepare(generation) => {
                self.asked_at_last_prepare = self.asked;
                self.operations.push_back(self.now);
                self.open_at_reload = Some(self.core.view().open);
                let plan = random_plan(&mut self.dice, self.kind);
                let fate = if self.calm || self.healthy {
                    Fate::Good
                } else {
                    random_fate(&mut self.dice)
                };
                self.fates.insert(generation, (fate, plan));
                let delay = self.dice.millis(20);
                self.schedule(delay, Happening::Answer(generation));
            }
            Action::Steer(slots) => {
                let left = self.rotation.iter().filter(|slot| !slots.contains(slot));
                self.left.extend(left.map(|slot| (*slot, self.now)));
                self.rotation = slots;
            }
            Action::Spawn {
                worker,
                slot,
                generation,
            } => self.spawn(worker, slot, generation),
            Action::Drain { worker, grace, .. } => self.drain(worker, grace),
            Action::Abort(worker) => self.abort(worker),
            Action::Kill(worker) => self.kill(worker),
            Action::Forget(generation) => {
                let alive = self
                    .processes
                    .values()
                    .any(|process| process.generation == generation);
                invariant!(
                    self,
                    !alive,
                    "a generation is forgotten only when no worker of it is alive: {generation}"
                );
                self.fates.remove(&generation);
            }
            Action::Reply(request, _) => {
                let before = self.unanswered.len();
                self.unanswered.retain(|waiting| *waiting != request);
                invariant!(
                    self,
                    self.unanswered.len() + 1 == before,
                    "a request is answered exactly once: {request:?}"
                );
            }
            Action::Report(fact) => self.hear(fact),
            Action::Commit(_) => self.committed_at = self.now,
            Action::Exit(_) => {
                invariant!(
                    self,
                    self.processes.is_empty(),
                    "the exit comes when no worker is alive"
                );
                self.exited = true;
            }
        }
    }

    fn drain(&mut self, worker: WorkerId, grace: Duration) {
        let now = self.now;
        let leaves_after = self.dice.millis(1500);
        let Some(process) = self.processes.get_mut(&worker) else {
            invariant!(self, false, "no action names a dead worker: drain {worker}");
            return;
        };
        let (again, deaf) = (
            process.drained_at.is_some(),
            process.hangs || process.ignores_drain,
        );
        process.drained_at = Some((now, grace));
        invariant!(self, !again, "a worker is drained at most once: {worker}");
        self.check_drain(worker);
        if !deaf {
            self.schedule(leaves_after, Happening::Dies(worker));
        }
        // Seldom as late as the supervisor waits for it at the most; a program may never report it.
        if self.kind.is_rust() {
            let stops_after = leaves_after / 2 + Duration::from_millis(u64::from(deaf) * 900);
            self.schedule(stops_after, Happening::StopsAccepting(worker));
        }
    }

    fn abort(&mut self, worker: WorkerId) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&worker) else {
            invariant!(self, false, "no action names a dead worker: abort {worker}");
            return;
        };
        process.aborted_at = Some(now);
        invariant!(
            self,
            !self.stalled_supervisor,
            "a supervisor that was stopped aborts no worker: {worker}"
        );
        self.check_abort(worker);
        if self.dice.percent(50) {
            self.schedule(Duration::from_millis(300), Happening::Dies(worker));
        }
    }

    fn kill(&mut self, worker: WorkerId) {
        let Some(process) = self.processes.get_mut(&worker) else {
            invariant!(self, false, "no action names a dead worker: kill {worker}");
            return;
        };
        process.killed = true;
        invariant!(
            self,
            !self.stalled_supervisor,
            "a supervisor that was stopped kills no worker: {worker}"
        );
        let over = |since: Option<Time>, grace| since.is_some_and(|at| self.now - at >= grace);
        let late = process
            .drained_at
            .is_some_and(|(at, grace)| over(Some(at), grace));
        let deserved = late || over(process.aborted_at, ABORT_GRACE) || process.violated_protocol;
        invariant!(
            self,
            deserved || self.stops_now,
            "no worker is killed that may still finish: {worker}"
        );
        self.schedule(Duration::from_millis(2), Happening::Dies(worker));
    }

    fn hear(&mut self, fact: Fact) {
        match fact {
            Fact::ReloadFailed(..) => {
                let open = self.core.view().open;
                if let Some(before) = self.open_at_reload.take() {
                    invariant!(
                        self,
                        open == before,
                        "a failed reload keeps the worker count: {before}, now {open}"
                    );
                }
            }
            Fact::Resized(_, to) => {
                self.open_at_reload = None;
                self.by_hand = Some(to);
                // Scaling up and down again before the new workers are ready may drain the ready
                // one.
                self.served_before = 0;
                self.operations.push_back(self.now);
            }
            Fact::Holding(_) => self.served_before = 0,
            Fact::Stopping(_) => self.stopping = true,
            Fact::Recycling(who, excess) => self.check_recycling(who, excess),
            Fact::Restarting(_) => self.check_permits(),
            Fact::Draining(who, DrainReason::Recycled | DrainReason::Restarted) => {
                self.check_relieved(who);
            }
            Fact::Scaled { from, to, reason } => {
                self.check_scaled(from, to, reason);
            }
            Fact::StartupFailed(_) => {
                self.check_given_up();
                self.stops_now = true;
            }
            Fact::Stalled(who, why, _) => self.check_stalled(who, why),
            Fact::Died(_, worker_exit) => self.worker_exit = Some(worker_exit),
            Fact::Reloaded(generation, _) => {
                self.by_hand = None;
                self.check_reloaded(generation);
            }
            _ => {}
        }
    }

    /// Returns how a process ends.
    fn end(&mut self) -> ProcessEnd {
        match self.dice.below::<u64>(3) {
            0 => ProcessEnd {
                manner: Manner::Clean,
                ..ProcessEnd::unclean("exited with status 0", Cause::Exit)
            },
            1 => ProcessEnd {
                manner: Manner::AsAsked,
                ..ProcessEnd::unclean("killed by SIGTERM", Cause::Signal)
            },
            _ => ProcessEnd::unclean("died", Cause::Exit),
        }
    }

    pub(crate) fn spawn(&mut self, worker: WorkerId, slot: Slot, generation: GenerationId) {
        invariant!(
            self,
            !self.stopping,
            "no worker is spawned after a stop: {worker}"
        );
        let in_slot: Vec<_> = self
            .processes
            .values()
            .filter(|process| process.slot == slot)
            .collect();
        invariant!(
            self,
            in_slot.len() < 2,
            "at most two workers are alive in a slot: {slot}"
        );
        let Some((fate, _)) = self.fates.get(&generation).copied() else {
            invariant!(
                self,
                false,
                "a worker's generation was prepared and not forgotten: {generation}"
            );
            return;
        };
        self.count_spawn(slot);
        let fate = if self.calm || generation == GenerationId(1) && self.healthy {
            Fate::Good
        } else {
            fate
        };
        let start = self.dice.millis(800);
        match fate {
            Fate::Good => self.schedule(start, Happening::Ready(worker)),
            Fate::DiesAfter(life) => {
                self.schedule(start, Happening::Ready(worker));
                self.schedule(start + life, Happening::Dies(worker));
            }
            Fate::ExitsAtStart => self.schedule(start, Happening::Dies(worker)),
            Fate::NeverReady | Fate::RefusedConfig => {}
        }
        let ignores_drain = !self.healthy && !self.calm && self.dice.percent(5);
        let process = Process {
            slot,
            generation,
            visits: self.core.retired().any(|retired| retired == slot),
            ready: false,
            ready_at: self.now,
            violated_protocol: false,
            hangs: false,
            ignores_drain,
            drained_at: None,
            aborted_at: None,
            killed: false,
            stopped_accepting: false,
            silent_since: None,
            deaf: false,
            busy_since: None,
            troubled: false,
            well_since: self.now,
            heard: self.now,
            done: 0,
            in_flight: 0,
            spent: Duration::ZERO,
        };
        self.processes.insert(worker, process);
    }

    pub(crate) fn happen(&mut self, happening: &Happening) {
        self.wake();
        match *happening {
            Happening::Ready(worker) => {
                let Some(process) = self.processes.get_mut(&worker) else {
                    return;
                };
                if process.drained_at.is_none() && process.aborted_at.is_none() && !process.killed {
                    process.ready = true;
                    process.ready_at = self.now;
                    (process.heard, process.well_since) = (self.now, self.now);
                    self.step(Event::Ready(worker));
                }
            }
            Happening::Dies(worker) => {
                if let Some(process) = self.processes.remove(&worker) {
                    let end = self.end();
                    let excused = end.manner == Manner::Clean && self.excuses(&process);
                    if excused {
                        self.excused.push_back((self.now, process.slot));
                    }
                    self.step(Event::Died(worker, end));
                    self.check_death(&process, excused);
                }
            }
            Happening::StopsAccepting(worker) => {
                if let Some(process) = self.processes.get_mut(&worker) {
                    process.stopped_accepting = true;
                    self.step(Event::StoppedAccepting(worker));
                }
            }
            Happening::GetsWell(worker) => self.get_well(worker),
            Happening::Answer(generation) => {
                let Some((fate, plan)) = self.fates.get(&generation).copied() else {
                    return;
                };
                if fate == Fate::RefusedConfig {
                    self.fates.remove(&generation);
                    self.step(Event::Refused(generation, "refused".to_owned()));
                } else {
                    self.step(Event::Prepared(generation, plan));
                }
            }
        }
    }

    /// What the shell does first in every wake-up.
    pub(crate) fn wake(&mut self) {
        if self.now > self.heard_at {
            self.heard_at = self.now;
            self.flow();
            let observation = self.observe();
            self.step(Event::Observation(observation));
            self.arrive();
        }
    }

    /// Advances to whatever comes first: a happening, or the core's own deadline (or `limit`).
    pub(crate) fn advance(&mut self, limit: Time) {
        let next = self.queue.peek().map(|Reverse((time, ..))| *time);
        let due = self.core.next_deadline();
        let earliest_deadline = next.into_iter().chain(due).min().unwrap_or(limit);
        if earliest_deadline > limit {
            self.now = limit;
            return;
        }
        self.now = self.now.max(earliest_deadline);
        if next == Some(earliest_deadline)
            && let Some(Reverse((_, _, key))) = self.queue.pop()
        {
            if let Some(happening) = self.happenings.remove(&key) {
                self.happen(&happening);
            }
        } else {
            self.wake();
        }
    }
}
