//! A reload: the trial of a new generation beside the accepted one, then its acceptance or its rollback.
//!
//! The slots are replaced in batches of `surge`. A batch passes when every new worker in it has been ready for the
//! whole probation; only then do the old workers of its slots drain, and only when they are gone does the next
//! batch begin. When the last batch has passed, the trial is accepted. Whatever goes wrong before that ends the
//! trial, and since intent is then the old generation again, `converge` brings back what had drained.

use super::event::{Action, Done, Fact, Plan, RequestId};
use super::time::Time;
use super::worker::Worker;
use super::{Accepted, Core, Phase};
use crate::{GenerationId, Slot};

#[derive(Debug, Clone)]
pub(crate) struct Trial {
    pub(crate) generation: GenerationId,
    pub(crate) requests: Vec<RequestId>,
    pub(crate) stage: TrialStage,
}

#[derive(Debug, Clone, Copy, bincode::Encode, bincode::Decode)]
// There is one of it at most.
#[allow(clippy::large_enum_variant)]
pub(crate) enum TrialStage {
    /// The shell reads the configuration and binds.
    Preparing,
    /// Slots under `moved` have passed, of `count`.
    Replacing { plan: Plan, count: u16, moved: u16 },
}

impl Trial {
    pub(crate) fn generation(&self) -> GenerationId {
        self.generation
    }

    pub(crate) fn plan(&self) -> Option<Plan> {
        match self.stage {
            TrialStage::Preparing => None,
            TrialStage::Replacing { plan, .. } => Some(plan),
        }
    }

    /// How many slots it will fill, and how many it may.
    pub(crate) fn size(&self) -> Option<(u16, u16)> {
        match self.stage {
            TrialStage::Preparing => None,
            TrialStage::Replacing { plan, count, .. } => Some((count, plan.max_workers)),
        }
    }

    pub(crate) fn resize(&mut self, to: u16) {
        if let TrialStage::Replacing { count, moved, .. } = &mut self.stage {
            *count = to;
            *moved = to.min(*moved);
        }
    }

    /// Slots that have passed.
    pub(crate) fn moved(&self) -> u16 {
        match self.stage {
            TrialStage::Preparing => 0,
            TrialStage::Replacing { moved, .. } => moved,
        }
    }
}

impl Core {
    /// One past the last slot that the trial fills now.
    pub(crate) fn batch_end(&self) -> u16 {
        let Some(Trial {
            stage: TrialStage::Replacing { plan, count, moved },
            ..
        }) = self.trial
        else {
            return 0;
        };
        let last_batch_leaves = self
            .workers
            .values()
            .any(|worker| worker.generation == self.stable.id && worker.slot.0 < moved);
        if last_batch_leaves {
            moved
        } else {
            moved.saturating_add(plan.surge.max(1)).min(count)
        }
    }

    /// Begins the reload that was asked for, unless another generation than the accepted one is still alive: two
    /// are as many as a machine's memory is asked to hold.
    pub(crate) fn begin_reload(&mut self) {
        if self.trial.is_some()
            || matches!(
                self.phase,
                Phase::Announcing { .. } | Phase::Stopping { .. } | Phase::Gone
            )
        {
            return;
        }
        let Some(requests) = self.wanted.take() else {
            return;
        };
        if self
            .workers
            .values()
            .any(|worker| worker.generation != self.stable.id)
        {
            self.wanted = Some(requests);
            if !self.wait_reported {
                self.wait_reported = true;
                self.report(Fact::ReloadWaits);
            }
            return;
        }
        self.wait_reported = false;
        self.last_generation = self.last_generation.next();
        let generation = self.last_generation;
        self.trial = Some(Trial {
            generation,
            requests,
            stage: TrialStage::Preparing,
        });
        self.report(Fact::ReloadBegan(generation));
        self.out.push(Action::Prepare(generation));
    }

    pub(crate) fn prepared(&mut self, generation: GenerationId, plan: Plan) {
        self.held.insert(generation);
        let count = self.first_size(&plan);
        match &mut self.trial {
            Some(trial) if trial.generation == generation => {
                trial.stage = TrialStage::Replacing {
                    plan,
                    count,
                    moved: 0,
                };
                self.begin_adapting_trial();
                self.supersede();
            }
            // A stop came in between; `forget` drops it.
            _ => {}
        }
    }

    pub(crate) fn refused(&mut self, generation: GenerationId, reason: String) {
        if self
            .trial
            .as_ref()
            .is_some_and(|trial| trial.generation == generation)
        {
            self.fail_trial(reason);
        }
    }

    /// Moves the batch border on, and accepts the trial when no slot is left.
    pub(crate) fn advance_trial(&mut self, now: Time) {
        let end = self.batch_end();
        if self.trial_proven_at().is_none_or(|at| at > now) {
            return;
        }
        let Some(trial) = &mut self.trial else { return };
        let TrialStage::Replacing { plan, count, moved } = &mut trial.stage else {
            return;
        };
        *moved = end;
        if end < *count {
            return;
        }
        let (generation, plan, count) = (trial.generation, *plan, *count);
        let requests = std::mem::take(&mut trial.requests);
        self.trial = None;
        self.stable = Accepted {
            id: generation,
            plan,
        };
        self.open = count;
        self.adapt_to_accepted();
        self.backoffs.iter_mut().for_each(super::Backoff::reset);
        self.forget_slots();
        self.out.push(Action::Accept(generation));
        self.report(Fact::Reloaded(generation, count));
        for request in requests {
            self.reply(Some(request), Ok(Done::Reloaded(generation)));
        }
        if self.phase != Phase::Serving {
            self.begin_serving();
        }
    }

    /// When the present batch will have passed, if no worker of it dies: once all of them are ready.
    pub(crate) fn trial_proven_at(&self) -> Option<Time> {
        let trial = self.trial.as_ref()?;
        let (plan, moved, end) = (trial.plan()?, trial.moved(), self.batch_end());
        // The border of a trial that was scaled down below it needs no proof; an empty batch that waits for the
        // last one's old workers does.
        if moved == end && trial.size().is_some_and(|(count, _)| end < count) {
            return None;
        }
        let mut proven = Time::default();
        for slot in 0..end {
            let since = self
                .occupant(Slot(slot), trial.generation)
                .and_then(Worker::ready_since)?;
            if slot >= moved {
                proven = proven.max(since + plan.probation);
            }
        }
        Some(proven)
    }

    /// Ends the trial. The accepted generation is what everything returns to.
    pub(crate) fn fail_trial(&mut self, reason: String) {
        let Some(trial) = self.trial.take() else {
            return;
        };
        self.report(Fact::ReloadFailed(
            trial.generation,
            self.stable.id,
            reason.clone(),
        ));
        for request in trial.requests {
            self.reply(Some(request), Err(reason.clone()));
        }
    }

    /// Ends the trial, if there is one, for a reason that is not its own.
    pub(crate) fn abandon_trial(&mut self, why: &str) {
        self.fail_trial(why.to_owned());
    }
}
