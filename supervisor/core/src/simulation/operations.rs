//! What operators request, and what befalls workers.

use super::world::*;

impl World {
    pub(crate) fn random_worker(&mut self) -> Option<WorkerId> {
        let count = u64::try_from(self.processes.len()).unwrap_or(u64::MAX);
        (count > 0)
            .then(|| self.dice.below(count))
            .and_then(|n| self.processes.keys().nth(n).copied())
    }

    pub(crate) fn reload(&mut self) {
        self.asked += 1;
        let request = self.dice.percent(50).then(|| {
            self.next_request += 1;
            RequestId(self.next_request)
        });
        self.unanswered.extend(request);
        self.step(Event::Command(Command::Reload(request)));
    }

    /// Replaces a slot's worker, drains a slot, or changes the number of slots.
    fn ask_of_a_slot(&mut self) {
        let slot = Slot(self.dice.below(8));
        let request = self.dice.percent(50).then(|| {
            self.next_request += 1;
            RequestId(self.next_request)
        });
        let command = match self.dice.below::<u64>(10) {
            0..5 => Command::Restart(slot, request),
            5..8 => Command::Drain(slot, request),
            _ => Command::Scale(slot.0 + 1, request),
        };
        self.unanswered.extend(request);
        self.operations.push_back(self.now);
        self.step(Event::Command(command));
    }

    pub(crate) fn operate(&mut self) {
        self.wake();
        match self.dice.below::<u64>(if self.healthy { 50 } else { 100 }) {
            0..20 => self.reload(),
            20..30 => {
                let by = i32::from(self.dice.below::<u8>(5)) - 2;
                self.step(Event::Command(Command::Resize(by)));
            }
            30..40 => self.hold_up(),
            40..50 => self.ask_of_a_slot(),
            50..52 => {
                self.operations.push_back(self.now);
                self.step(Event::Command(Command::DrainAll));
            }
            52..72 => {
                if let Some(worker) = self.random_worker() {
                    self.happen(&Happening::Dies(worker));
                }
            }
            72..82 => {
                let now = self.now;
                if let Some(process) = self
                    .random_worker()
                    .and_then(|id| self.processes.get_mut(&id))
                    && process.ready
                {
                    process.hangs = true;
                    process.troubled = true;
                    process.silent_since.get_or_insert(now);
                }
            }
            82..88 => {
                if let Some(worker) = self.random_worker() {
                    self.processes
                        .entry(worker)
                        .and_modify(|process| process.violated_protocol = true);
                    self.step(Event::ProtocolViolation(worker, "garbage".to_owned()));
                }
            }
            88..92 => {
                if self.dice.percent(30) {
                    // No observation has found yet that this holds a request up.
                    self.hold_up();
                }
                let from = self.now;
                self.now += self.dice.millis(90_000);
                self.stalled_supervisor = self
                    .core
                    .next_deadline()
                    .is_some_and(|due| self.now > due + LONG_STALL);
                self.sleeps.push((from, self.now));
                self.wake();
                self.stalled_supervisor = false;
            }
            92..94 => {
                let now = self.now;
                let leaving = self.random_worker().filter(|id| {
                    self.processes[id].ready && self.processes[id].drained_at.is_none()
                });
                if let Some(worker) = leaving {
                    let grace = |generation| {
                        self.fates
                            .get(&generation)
                            .map(|fate| fate.1.graceful_timeout)
                    };
                    let grace = self
                        .processes
                        .get(&worker)
                        .and_then(|process| grace(process.generation));
                    if let Some(process) = self.processes.get_mut(&worker) {
                        process.drained_at = Some((now, grace.unwrap_or(MINUTE)));
                        process.stopped_accepting = true;
                    }
                    self.step(Event::StoppedAccepting(worker));
                    let after = self.dice.millis(3000);
                    self.schedule(after, Happening::Dies(worker));
                }
            }
            94..96 => {
                // A worker that has exited or never existed.
                self.step(Event::Ready(WorkerId(1 << 40)));
                self.step(Event::Died(
                    WorkerId(0),
                    ProcessEnd::unclean("twice", Cause::Exit),
                ));
            }
            _ => {}
        }
    }

    pub(crate) fn stop(&mut self) {
        self.wake();
        let command = if self.dice.percent(70) {
            Command::Stop
        } else {
            Command::StopNow
        };
        self.stops_now = command == Command::StopNow;
        self.step(Event::Command(command));
    }
}
