//! A reload: a candidate generation beside the committed one, then its commit or its rollback.
//!
//! The slots are replaced in batches of `surge`. A batch passes when every new worker in it has
//! been ready for `min_ready`; only then do the old workers of its slots drain, and only when they
//! are gone does the next batch begin. When the last batch has passed, the candidate is committed,
//! and the reload is over when the old workers accept nothing more (see [`quiesce`](crate::quiesce)).
//! Any failure before that ends the candidate, and since intent is then the old generation again,
//! `converge` brings back what had drained.

use crate::candidate::{Candidate, CandidateStage};
use crate::event::{Action, Fact};
use crate::id::{GenerationId, Slot};
use crate::machine::{Committed, Core, Phase};
use crate::plan::Plan;
use crate::quiesce::{Quiesce, TIMEOUT};
use crate::time::Time;
use crate::worker::Worker;

impl Core {
    /// Begins the pending reload, unless a generation other than the committed one is still alive:
    /// a machine's memory has to hold two at most.
    pub(crate) fn begin_reload(&mut self) {
        if self.candidate.is_some()
            || matches!(
                self.phase,
                Phase::Preparing | Phase::PreStop { .. } | Phase::Stopping { .. } | Phase::Gone
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
        if self.phase == Phase::Preparing && generation == self.stable.id {
            self.phase = Phase::Booting;
            return;
        }
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
            // A stop came in between; `forget` drops the generation.
            Some(_) | None => {}
        }
    }

    pub(crate) fn refused(&mut self, generation: GenerationId, reason: &str) {
        if self.phase == Phase::Preparing && generation == self.stable.id {
            self.refuse_first(reason);
            return;
        }
        if self
            .candidate
            .as_ref()
            .is_some_and(|candidate| candidate.generation == generation)
        {
            self.fail_candidate(reason);
        }
    }

    /// Moves on to the next batch, and commits the candidate when no slot is left.
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
        self.backoffs.reset_all();
        self.forget_slots();
        self.out.push(Action::Commit(generation));
        self.quiesce = Some(Quiesce {
            generation,
            workers: count,
            requests,
            deadline: now + TIMEOUT,
        });
        if self.phase != Phase::Serving {
            self.begin_serving();
        }
    }

    /// Returns when the present batch will have passed if none of its workers dies: once all are
    /// ready.
    pub(crate) fn candidate_proven_at(&self) -> Option<Time> {
        let candidate = self.candidate.as_ref()?;
        let (plan, moved, end) = (candidate.plan()?, candidate.moved(), self.batch_end());
        // Nothing to prove for a candidate that was scaled down below its passed slots; an empty
        // batch that waits for old workers to drain still waits.
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

    /// Fails the candidate and returns to the committed generation.
    pub(crate) fn fail_candidate(&mut self, reason: &str) {
        let Some(candidate) = self.candidate.take() else {
            return;
        };
        self.report(Fact::ReloadFailed(
            candidate.generation,
            self.stable.id,
            reason.to_owned(),
        ));
        for request in candidate.requests {
            self.reply(Some(request), Err(reason.to_owned()));
        }
    }

    /// Abandons the candidate, if there is one, for a reason that is not its own.
    pub(crate) fn abandon_candidate(&mut self, why: &str) {
        self.fail_candidate(why);
    }
}
