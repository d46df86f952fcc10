//! A reload: the candidate of a new generation beside the accepted one, then its acceptance or its rollback.
//!
//! The slots are replaced in batches of `surge`. A batch passes when every new worker in it has been ready for the
//! whole min-ready time; only then do the old workers of its slots drain, and only when they are gone does the next
//! batch begin. When the last batch has passed, the candidate is accepted. Whatever goes wrong before that ends the
//! candidate, and since intent is then the old generation again, `converge` brings back what had drained.

use super::event::{Action, Done, Fact, Plan, RequestId};
use super::time::Time;
use super::worker::Worker;
use super::{Committed, Core, Phase};
use crate::{GenerationId, Slot};

#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) generation: GenerationId,
    pub(crate) requests: Vec<RequestId>,
    pub(crate) stage: CandidateStage,
}

#[derive(Debug, Clone, Copy, bincode::Encode, bincode::Decode)]
// There is one of it at most.
#[allow(clippy::large_enum_variant)]
pub(crate) enum CandidateStage {
    /// The shell reads the configuration and binds.
    Preparing,
    /// Slots under `moved` have passed, of `count`.
    Replacing { plan: Plan, count: u16, moved: u16 },
}

impl Candidate {
    pub(crate) fn generation(&self) -> GenerationId {
        self.generation
    }

    pub(crate) fn plan(&self) -> Option<Plan> {
        match self.stage {
            CandidateStage::Preparing => None,
            CandidateStage::Replacing { plan, .. } => Some(plan),
        }
    }

    /// How many slots it will fill, and how many it may.
    pub(crate) fn size(&self) -> Option<(u16, u16)> {
        match self.stage {
            CandidateStage::Preparing => None,
            CandidateStage::Replacing { plan, count, .. } => Some((count, plan.max_workers)),
        }
    }

    pub(crate) fn resize(&mut self, to: u16) {
        if let CandidateStage::Replacing { count, moved, .. } = &mut self.stage {
            *count = to;
            *moved = to.min(*moved);
        }
    }

    /// Slots that have passed.
    pub(crate) fn moved(&self) -> u16 {
        match self.stage {
            CandidateStage::Preparing => 0,
            CandidateStage::Replacing { moved, .. } => moved,
        }
    }
}

impl Core {
    /// One past the last slot that the candidate fills now.
    pub(crate) fn batch_end(&self) -> u16 {
        let Some(Candidate {
            stage: CandidateStage::Replacing { plan, count, moved },
            ..
        }) = self.candidate
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
        if self.candidate.is_some()
            || matches!(
                self.phase,
                Phase::PreStop { .. } | Phase::Stopping { .. } | Phase::Gone
            )
        {
            return;
        }
        let Some(requests) = self.pending_reload.take() else {
            return;
        };
        if self
            .workers
            .values()
            .any(|worker| worker.generation != self.stable.id)
        {
            self.pending_reload = Some(requests);
            if !self.reload_wait_reported {
                self.reload_wait_reported = true;
                self.report(Fact::ReloadWaits);
            }
            return;
        }
        self.reload_wait_reported = false;
        self.last_generation = self.last_generation.next();
        let generation = self.last_generation;
        self.candidate = Some(Candidate {
            generation,
            requests,
            stage: CandidateStage::Preparing,
        });
        self.report(Fact::ReloadBegan(generation));
        self.out.push(Action::Prepare(generation));
    }

    pub(crate) fn prepared(&mut self, generation: GenerationId, plan: Plan) {
        self.held_generations.insert(generation);
        let count = self.first_size(&plan);
        match &mut self.candidate {
            Some(candidate) if candidate.generation == generation => {
                candidate.stage = CandidateStage::Replacing {
                    plan,
                    count,
                    moved: 0,
                };
                self.begin_autoscaling_candidate();
                self.supersede_replacements();
            }
            // A stop came in between; `forget` drops it.
            _ => {}
        }
    }

    pub(crate) fn refused(&mut self, generation: GenerationId, reason: String) {
        if self
            .candidate
            .as_ref()
            .is_some_and(|candidate| candidate.generation == generation)
        {
            self.fail_candidate(reason);
        }
    }

    /// Moves the batch border on, and accepts the candidate when no slot is left.
    pub(crate) fn advance_candidate(&mut self, now: Time) {
        let end = self.batch_end();
        if self.candidate_proven_at().is_none_or(|at| at > now) {
            return;
        }
        let Some(candidate) = &mut self.candidate else {
            return;
        };
        let CandidateStage::Replacing { plan, count, moved } = &mut candidate.stage else {
            return;
        };
        *moved = end;
        if end < *count {
            return;
        }
        let (generation, plan, count) = (candidate.generation, *plan, *count);
        let requests = std::mem::take(&mut candidate.requests);
        self.candidate = None;
        self.stable = Committed {
            id: generation,
            plan,
        };
        self.open = count;
        self.autoscale_committed();
        self.backoffs.iter_mut().for_each(super::Backoff::reset);
        self.forget_slots();
        self.out.push(Action::Commit(generation));
        self.report(Fact::Reloaded(generation, count));
        for request in requests {
            self.reply(Some(request), Ok(Done::Reloaded(generation)));
        }
        if self.phase != Phase::Serving {
            self.begin_serving();
        }
    }

    /// When the present batch will have passed, if no worker of it dies: once all of them are ready.
    pub(crate) fn candidate_proven_at(&self) -> Option<Time> {
        let candidate = self.candidate.as_ref()?;
        let (plan, moved, end) = (candidate.plan()?, candidate.moved(), self.batch_end());
        // The border of a candidate that was scaled down below it needs no readiness; an empty batch that waits for the
        // last one's old workers does.
        if moved == end && candidate.size().is_some_and(|(count, _)| end < count) {
            return None;
        }
        let mut proven = Time::default();
        for slot in 0..end {
            let since = self
                .occupant(Slot(slot), candidate.generation)
                .and_then(Worker::ready_since)?;
            if slot >= moved {
                proven = proven.max(since + plan.min_ready);
            }
        }
        Some(proven)
    }

    /// Ends the candidate. The accepted generation is what everything returns to.
    pub(crate) fn fail_candidate(&mut self, reason: String) {
        let Some(candidate) = self.candidate.take() else {
            return;
        };
        self.report(Fact::ReloadFailed(
            candidate.generation,
            self.stable.id,
            reason.clone(),
        ));
        for request in candidate.requests {
            self.reply(Some(request), Err(reason.clone()));
        }
    }

    /// Ends the candidate, if there is one, for a reason that is not its own.
    pub(crate) fn abandon_candidate(&mut self, why: &str) {
        self.fail_candidate(why.to_owned());
    }
}
