//! Operations on slots: their number, another worker in one, none in one. And the permits for them.
//!
//! Taking a slot out of service, or briefly running two workers in it, requires a *permit*. There
//! are as many as [`Plan::max_unavailable`](crate::Plan::max_unavailable) says, and a slot that is
//! out of service by accident uses one too. Permits are not handed out and returned: those in use
//! are counted from the state of the workers each time, so none can be lost.
//!
//! A worker that is being replaced has a [`Replacement`]. It then no longer counts as its slot's
//! occupant, so `converge` starts another one beside it, and drains it when that one is ready. If
//! that one fails, the replacement is withdrawn, and nothing has changed.
//!
//! A reload replaces every worker, so no operation begins during one, and those in progress are
//! undone.

use crate::event::{Command, Done, Fact, RequestId};
use crate::id::{Slot, WorkerId};
use crate::machine::{Core, Phase, STOPPING};
use crate::slot_operation::{SlotOperation, Task};
use crate::time::Time;
use crate::worker::{Replacement, Worker};
use std::time::Duration;

/// Whether a slot may be taken out of service.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Permit {
    Granted,
    /// Other slots are out of service for a while.
    Wait,
    /// Other slots are out of service and will not recover by themselves: why.
    Refused(String),
}

const DRAINED: &str = "all workers were asked to drain (reload to start them again)";
const RELOADING: &str =
    "a reload is under way, which replaces every worker (ask again when it is done)";

impl Core {
    /// Sets the number of slots, if it is allowed.
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

    /// Sets how many slots the committed generation fills.
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
                // No slot would serve otherwise.
                self.report(Fact::Released(slot));
            }
        }
    }

    /// Requests the replacement of a slot's worker by another one of its generation.
    pub(crate) fn restart(&mut self, slot: Slot, request: Option<RequestId>) {
        let command = Command::Restart(slot, request);
        if let Some(why) = self.why_not_now(slot) {
            return self.refuse(command, request, &why);
        }
        // A worker that is starting is as good as one that would be started now.
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

    /// Requests that a slot be drained and held empty.
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

    /// Returns why no operation on a slot is possible now.
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

    /// Advances pending slot operations, and answers those that are done or impossible.
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
                    // An operator's request overrides the back-off.
                    self.backoffs.reset(slot);
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
        // A rescue worker for its queue does not count.
        let visited = self.needs_rescue(slot);
        let empty = self
            .in_slot(slot)
            .all(|worker| visited && worker.is_occupant());
        empty.then_some(Ok(Done::Drained { slot }))
    }

    /// Returns why a pending operation cannot be done any more.
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
        let failing = |slot: &&Slot| self.backoffs.is_looping(**slot) && !self.is_served(**slot);
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

    /// Starts the replacement of a worker.
    pub(crate) fn begin_replacement(&mut self, id: WorkerId, replacement: Replacement) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.replacement = Some(replacement);
        let fact = match replacement {
            Replacement::Restart => Some(Fact::Restarting(worker.worker_ref())),
            Replacement::Recycle => Self::recycling(worker),
            Replacement::Superseded => None,
        };
        if let Some(fact) = fact {
            self.report(fact);
        }
    }

    /// Cancels a replacement whose new worker has failed. Returns the worker that keeps serving, if
    /// there is one.
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
        self.replacement_backoffs
            .fail(failed.slot, now, Duration::ZERO, &mut self.rng);
        self.report(Fact::NotReplaced(who, reason.to_owned()));
        Some(id)
    }

    /// Fails the restarts that waited for a worker in this slot.
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

    /// Cancels replacements in progress: a reload replaces every worker.
    pub(crate) fn supersede_replacements(&mut self) {
        for slot in (0..self.open).map(Slot) {
            self.withdraw_replacement(slot, RELOADING);
        }
    }

    /// Cancels the replacement of a slot's worker.
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

    /// Clears the state of slots when another generation serves.
    pub(crate) fn forget_slots(&mut self) {
        self.replacement_backoffs.reset_all();
        for slot in std::mem::take(&mut self.held_slots) {
            if slot.0 < self.open {
                self.report(Fact::Released(slot));
            }
        }
    }

    /// Abandons all pending slot operations.
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

    /// Refuses a command that does not apply now, to the client if one waits, or in the log.
    pub(crate) fn refuse(&mut self, command: Command, request: Option<RequestId>, why: &str) {
        match request {
            Some(_) => self.reply(request, Err(why.to_owned())),
            None => self.ignore(command, why),
        }
    }

    /// Refuses a command while the server stops.
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
