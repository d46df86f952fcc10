//! A candidate: the generation that a reload tries beside the committed one.

use crate::event::RequestId;
use crate::id::GenerationId;
use crate::plan::Plan;
use crate::record;

#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) generation: GenerationId,
    pub(crate) requests: Vec<RequestId>,
    pub(crate) stage: CandidateStage,
}

#[derive(Debug, Clone, Copy, bincode::Encode, bincode::Decode)]
// At most one exists.
#[allow(clippy::large_enum_variant)]
pub(crate) enum CandidateStage {
    /// The shell reads the configuration and binds.
    Preparing,
    /// Slots below `moved` have passed, of `count`.
    Replacing { plan: Plan, count: u16, moved: u16 },
}

record!(Candidate {
    generation,
    requests,
    stage
});

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

    /// Returns how many slots it will fill, and how many it may.
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

    /// Returns how many slots have passed.
    pub(crate) fn moved(&self) -> u16 {
        match self.stage {
            CandidateStage::Preparing => 0,
            CandidateStage::Replacing { moved, .. } => moved,
        }
    }
}
