//! What an operator asks of slots: so many of them, another worker in one, none in one. And the permits for it.
//!
//! Whoever takes a slot out of service because he wants to, or has two workers in it for a while, needs a *permit* for
//! it. There are as many as [`Plan::max_unavailable`](super::Plan) says, and a slot that is out of service by
//! accident takes one too. A permit is nothing that is handed out and given back: those in use are counted, each time
//! anew, from what the workers are. So none can be lost.
//!
//! A worker that is to be replaced has a [`Replacement`]. That is all: it does not count as its slot's occupant any more, so
//! `converge` starts another one beside it, and lets go of it when that one is ready. If that one fails, the relief is
//! taken back, and nothing has changed.
//!
//! A reload replaces every worker, so nothing of this is begun while one is under way, and what had begun is undone.

use super::event::{Command, Done, Fact, RequestId};
use super::time::Time;
use super::worker::{Replacement, Worker};
use super::{Core, Phase, STOPPING};
use crate::record;

use crate::{Slot, WorkerId};

/// Something that was asked of a slot, and that takes its time.
#[derive(Debug, Clone)]
pub(crate) struct SlotOperation {
    pub(crate) slot: Slot,
    pub(crate) request: Option<RequestId>,
    task: Task,
    /// It has its permit.
    begun: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
enum Task {
    /// Another worker is to be ready than this one.
    Restart { old: Option<WorkerId> },
    /// Nobody is to be there.
    Drain,
}

record!(SlotOperation {
    slot,
    request,
    task,
    begun
});

/// Whether a slot may be taken out of service.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Permit {
    Granted,
    /// Others are out of service for a while.
    Wait,
    /// Others are out of service, and will not come back by themselves: why.
    Refused(String),
}

const DRAINED: &str = "all workers were asked to drain (reload to start them again)";
const RELOADING: &str =
    "a reload is under way, which replaces every worker (ask again when it is done)";

impl Core {
    /// Sets the number of slots, if it may be that.
    pub(crate) fn scale(&mut self, to: u16, request: Option<RequestId>) {
        if self.phase == Phase::Drained {
            return self.refuse(Command::Scale(to, request), request, DRAINED);
        }
        let (from, most) = self.size();
        let least = self.fewest();
        if to < least || to > most {
            let remedy = match to {
                _ if least > 1 => "the range of workers is part of the configuration",
                0 => "drain SLOT empties one",
                _ => "raise max-workers to go beyond",
            };
            let reason = format!("there can be {least} to {most} workers, not {to} ({remedy})");
            return self.reply(request, Err(reason));
        }
        if to != from {
            self.set_open(self.within_range(to));
            if let Some(candidate) = &mut self.candidate {
                candidate.resize(to);
            }
            self.report(Fact::Resized(from, to));
        }
        self.set_manual_minimum(to);
        self.reply(request, Ok(Done::Scaled { from, to }));
    }

    /// How many slots there are, or will be after the reload, and how many there may be.
    pub(crate) fn size(&self) -> (u16, u16) {
        let candidate = self.candidate.as_ref().and_then(super::Candidate::size);
        candidate.unwrap_or((self.open, self.stable.plan.max_workers.max(1)))
    }

    /// Sets how many slots the accepted generation fills.
    pub(crate) fn set_open(&mut self, to: u16) {
        self.open = to;
        let all_held = (0..to)
            .map(Slot)
            .all(|slot| self.held_slots.contains(&slot));
        let released: Vec<Slot> = self
            .held_slots
            .iter()
            .copied()
            .filter(|slot| slot.0 >= to || all_held)
            .collect();
        for slot in released {
            self.held_slots.remove(&slot);
            if slot.0 < to {
                // Nobody would serve.
                self.report(Fact::Released(slot));
            }
        }
    }

    /// A slot's worker is to be replaced by another one of its generation.
    pub(crate) fn restart(&mut self, slot: Slot, request: Option<RequestId>) {
        let command = Command::Restart(slot, request);
        if let Some(why) = self.why_not_now(slot) {
            return self.refuse(command, request, &why);
        }
        // Whoever is just being started is as good as one that would be started now.
        let old = self
            .in_slot(slot)
            .find(|worker| worker.ready_since().is_some())
            .map(|worker| worker.id);
        if self.held_slots.remove(&slot) {
            self.report(Fact::Released(slot));
        }
        let drains =
            |operation: &SlotOperation| operation.slot == slot && operation.task == Task::Drain;
        self.abandon_slot_operations(drains, &format!("slot {slot} is to be filled again"));
        self.operations.push(SlotOperation {
            slot,
            request,
            task: Task::Restart { old },
            begun: false,
        });
    }

    /// A slot is to be empty.
    pub(crate) fn drain(&mut self, slot: Slot, request: Option<RequestId>) {
        let command = Command::Drain(slot, request);
        if let Some(why) = self.why_not_now(slot) {
            return self.refuse(command, request, &why);
        }
        if self
            .operations
            .iter()
            .any(|operation| operation.slot == slot && operation.task != Task::Drain)
        {
            return self.refuse(
                command,
                request,
                &format!("slot {slot} is just being restarted"),
            );
        }
        let begun = self.held_slots.contains(&slot);
        self.operations.push(SlotOperation {
            slot,
            request,
            task: Task::Drain,
            begun,
        });
    }

    /// Why nothing can be asked of a slot now.
    fn why_not_now(&self, slot: Slot) -> Option<String> {
        if self.phase == Phase::Drained {
            return Some(DRAINED.to_owned());
        }
        if self.is_reloading() {
            return Some(RELOADING.to_owned());
        }
        let last = self.open.saturating_sub(1);
        (slot.0 >= self.open).then(|| format!("there is no slot {slot} (they are 0 to {last})"))
    }

    pub(crate) fn is_reloading(&self) -> bool {
        self.candidate.is_some() || self.pending_reload.is_some()
    }

    /// Goes on with what was asked of slots, and answers where it is done or cannot be.
    pub(crate) fn run_slot_operations(&mut self, now: Time) {
        for mut operation in std::mem::take(&mut self.operations) {
            let done = match operation.task {
                Task::Restart { old } => self.run_restart(&mut operation, old),
                Task::Drain => self.run_drain(now, &mut operation),
            };
            match done {
                None => self.operations.push(operation),
                Some(answer) => self.reply(operation.request, answer),
            }
        }
    }

    fn run_restart(
        &mut self,
        operation: &mut SlotOperation,
        old: Option<WorkerId>,
    ) -> Option<Result<Done, String>> {
        let slot = operation.slot;
        if let Some(why) = self.why_obsolete(operation) {
            return Some(Err(why));
        }
        let occupant = self.occupant(slot, self.stable.id);
        match occupant {
            Some(worker) if Some(worker.id) != old => {
                operation.begun = true;
                let worker = worker.id;
                let ready = self.occupant(slot, self.stable.id)?.ready_since().is_some();
                ready.then_some(Ok(Done::Restarted { slot, worker }))
            }
            Some(worker) => {
                let id = worker.id;
                match self.permit(slot) {
                    Permit::Granted if self.in_slot(slot).count() == 1 => {
                        operation.begun = true;
                        self.begin_replacement(id, Replacement::Restart);
                        None
                    }
                    Permit::Granted | Permit::Wait => None,
                    Permit::Refused(why) => Some(Err(why)),
                }
            }
            None => {
                let is_leaving = self.in_slot(slot).any(Worker::is_occupant);
                if !operation.begun && !is_leaving {
                    // Asked for by somebody who knows better than the back-off.
                    self.backoffs[slot.index()].reset();
                }
                operation.begun = true;
                None
            }
        }
    }

    fn run_drain(
        &mut self,
        now: Time,
        operation: &mut SlotOperation,
    ) -> Option<Result<Done, String>> {
        let slot = operation.slot;
        if operation.begun {
            if !self.held_slots.contains(&slot) {
                return Some(Err(format!(
                    "slot {slot} is filled again before it was empty"
                )));
            }
        } else {
            if let Some(why) = self.why_obsolete(operation) {
                return Some(Err(why));
            }
            let others = (0..self.open).map(Slot).filter(|other| *other != slot);
            if !others
                .into_iter()
                .any(|other| self.in_slot(other).any(Worker::is_healthy))
            {
                return Some(Err(format!(
                    "slot {slot} is the only one with a worker that serves (scale up first, or stop the server)"
                )));
            }
            match self.permit(slot) {
                Permit::Granted => {}
                Permit::Wait => return None,
                Permit::Refused(why) => return Some(Err(why)),
            }
            operation.begun = true;
            self.held_slots.insert(slot);
            self.watch_queue(now, slot);
            self.report(Fact::Holding(slot));
        }
        // Whoever comes for those who wait in its queue is no part of this.
        let visited = self.needs_rescue(slot);
        let empty = self
            .in_slot(slot)
            .all(|worker| visited && worker.is_occupant());
        empty.then_some(Ok(Done::Drained { slot }))
    }

    /// Why something that was asked for cannot be done any more.
    fn why_obsolete(&self, operation: &SlotOperation) -> Option<String> {
        if operation.slot.0 >= self.open {
            Some(format!("slot {} is retired", operation.slot))
        } else if self.is_reloading() && !operation.begun {
            Some(RELOADING.to_owned())
        } else {
            None
        }
    }

    /// Whether a slot may be taken out of service, or may have two workers for a while.
    pub(crate) fn permit(&self, slot: Slot) -> Permit {
        let share = self.stable.plan.max_unavailable;
        let most = usize::from(share.of(self.open));
        let out: Vec<Slot> = self.unavailable().filter(|other| *other != slot).collect();
        if out.len() < most {
            return Permit::Granted;
        }
        let held = out
            .iter()
            .filter(|slot| self.held_slots.contains(slot))
            .count();
        let failing =
            |slot: &&Slot| self.backoffs[slot.index()].is_looping() && !self.is_served(**slot);
        let failing = out
            .iter()
            .filter(|slot| !self.held_slots.contains(slot))
            .filter(failing)
            .count();
        if held + failing < most {
            return Permit::Wait;
        }
        let slots = |count, what: &str| match count {
            0 => String::new(),
            1 => format!("1 slot {what}"),
            count => format!("{count} slots {what}"),
        };
        let reasons = [
            slots(held, "held empty"),
            slots(failing, "without a worker that can start"),
        ];
        let reasons: Vec<_> = reasons
            .into_iter()
            .filter(|reason| !reason.is_empty())
            .collect();
        Permit::Refused(format!(
            "{} already, and max-unavailable is {share} (restart-worker SLOT fills one that is held; or raise max-unavailable)",
            reasons.join(" and ")
        ))
    }

    /// The slots that are not *whole*: one worker, and that one is well. Those that are retired count while somebody leaves.
    pub(crate) fn unavailable(&self) -> impl Iterator<Item = Slot> {
        (0..self.slots_end()).map(Slot).filter(|slot| {
            let mut here = self.in_slot(*slot);
            let (first, second) = (here.next(), here.next());
            if slot.0 >= self.open {
                return first.is_some() && !self.needs_rescue(*slot);
            }
            // One of a generation that was rolled back is to be followed by another.
            let stays = |worker: &Worker| {
                worker.generation == self.stable.id && worker.replacement.is_none()
            };
            let healthy = first.is_some_and(|worker| worker.is_healthy() && stays(worker));
            !healthy || second.is_some() || self.held_slots.contains(slot)
        })
    }

    /// Has another worker take this one's place.
    pub(crate) fn begin_replacement(&mut self, id: WorkerId, replacement: Replacement) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.replacement = Some(replacement);
        let told = match replacement {
            Replacement::Restart => Some(Fact::Restarting(worker.worker_ref())),
            Replacement::Recycle => Self::recycling(worker),
            Replacement::Superseded => None,
        };
        if let Some(fact) = told {
            self.report(fact);
        }
    }

    /// Whoever was to replace a slot's worker has failed, if there is such a worker: it goes on. Tells who that is.
    pub(crate) fn replacement_failed(
        &mut self,
        now: Time,
        failed: &Worker,
        reason: &str,
    ) -> Option<WorkerId> {
        self.restart_failed(failed, reason);
        let serving = self.workers.values_mut().find(|worker| {
            worker.slot == failed.slot
                && worker.id != failed.id
                && worker.replacement.is_some()
                && worker.ready_since().is_some()
        })?;
        serving.replacement = None;
        let (id, who) = (serving.id, serving.worker_ref());
        let replacement_backoffs = self.replacement_backoffs.entry(failed.slot).or_default();
        replacement_backoffs.fail(now, std::time::Duration::ZERO, &mut self.rng);
        self.report(Fact::NotReplaced(who, reason.to_owned()));
        Some(id)
    }

    /// Whoever waits for another worker in this slot waits in vain.
    fn restart_failed(&mut self, failed: &Worker, reason: &str) {
        let waits = |operation: &SlotOperation| match operation.task {
            Task::Restart { old } => {
                operation.slot == failed.slot && operation.begun && old != Some(failed.id)
            }
            Task::Drain => false,
        };
        let (failures, operations) = std::mem::take(&mut self.operations)
            .into_iter()
            .partition(waits);
        self.operations = operations;
        let failures: Vec<SlotOperation> = failures;
        for operation in failures {
            self.reply(operation.request, Err(reason.to_owned()));
        }
    }

    /// A reload replaces every worker: whoever is only starting to replace one is not needed.
    pub(crate) fn supersede_replacements(&mut self) {
        for slot in (0..self.open).map(Slot) {
            self.withdraw_replacement(slot, RELOADING);
        }
    }

    /// The worker of a slot that was to be replaced is not any more.
    fn withdraw_replacement(&mut self, slot: Slot, why: &str) {
        let mut here = self
            .workers
            .values_mut()
            .filter(|worker| worker.slot == slot);
        let Some(serving) =
            here.find(|worker| worker.replacement.is_some() && worker.is_occupant())
        else {
            return;
        };
        serving.replacement = None;
        let id = serving.id;
        for other in self.workers.values_mut() {
            if other.slot == slot && other.id != id && other.is_occupant() {
                other.replacement = Some(Replacement::Superseded);
            }
        }
        self.abandon_slot_operations(|operation| operation.slot == slot && operation.begun, why);
    }

    /// Another generation serves: whatever was asked of slots was asked of the old one's.
    pub(crate) fn forget_slots(&mut self) {
        self.replacement_backoffs.clear();
        for slot in std::mem::take(&mut self.held_slots) {
            if slot.0 < self.open {
                self.report(Fact::Released(slot));
            }
        }
    }

    /// Nothing that was asked of slots is done any more.
    pub(crate) fn abandon_all_slot_operations(&mut self, why: &str) {
        self.abandon_slot_operations(|_| true, why);
    }

    fn abandon_slot_operations(&mut self, which: impl Fn(&SlotOperation) -> bool, why: &str) {
        let (given_up, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.operations)
            .into_iter()
            .partition(which);
        self.operations = kept;
        for operation in given_up {
            self.reply(operation.request, Err(why.to_owned()));
        }
    }

    /// A command that does not apply now, and whoever waits for its answer.
    pub(crate) fn refuse(&mut self, command: Command, request: Option<RequestId>, why: &str) {
        match request {
            Some(_) => self.reply(request, Err(why.to_owned())),
            None => self.ignore(command, why),
        }
    }

    /// The server stops: whoever asks for anything is told so.
    pub(crate) fn refuse_while_stopping(&mut self, command: Command) {
        let request = match command {
            Command::Reload(request)
            | Command::Scale(_, request)
            | Command::Restart(_, request)
            | Command::Drain(_, request) => request,
            Command::Resize(_) | Command::DrainAll | Command::Stop | Command::StopNow => None,
        };
        self.ignore(command, STOPPING);
        self.reply(request, Err(STOPPING.to_owned()));
    }
}
