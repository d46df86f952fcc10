//! One worker, as far as the core knows it.

use super::cause::Cause;
use super::event::{DrainReason, Plan, WorkerRef};
use super::liveness::Liveness;
use super::recycle::{Limits, RecyclePending};
use super::time::Time;
use crate::{GenerationId, Slot, WorkerId};
use std::time::Duration;

/// A worker's stage in life, with what is due in it. Stages only go down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) enum Stage {
    /// Spawned, not ready yet.
    Starting { deadline: Time },
    /// It accepts connections, and shows these signs of life.
    Ready { since: Time, liveness: Liveness },
    /// It was asked to leave.
    Draining { deadline: Time },
    /// It hangs and was told to dump core.
    Aborting { kill_at: Time },
    /// It was killed and is not dead yet.
    Killed,
}

#[derive(Debug, Clone)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) slot: Slot,
    pub(crate) generation: GenerationId,
    pub(crate) plan: Plan,
    pub(crate) born: Time,
    pub(crate) stage: Stage,
    /// Why it will not start, in its own words.
    pub(crate) failure_reason: Option<String>,
    /// Why it is to leave, or was killed.
    pub(crate) cause: Option<Cause>,
    /// Another one of its generation is to take its place, and why.
    pub(crate) replacement: Option<Replacement>,
    /// When it is to be replaced.
    pub(crate) limits: Limits,
    /// It is to be replaced for having reached one of them.
    pub(crate) recycle_pending: Option<RecyclePending>,
}

/// Why a worker is to be replaced by another one of its generation. It serves until that one is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) enum Replacement {
    /// It was to replace another one itself, and is not wanted for that any more.
    Superseded,
    /// Somebody asked for it.
    Restart,
    /// It has reached a limit.
    Recycle,
}

impl From<Replacement> for DrainReason {
    fn from(replacement: Replacement) -> Self {
        match replacement {
            Replacement::Superseded => Self::Superseded,
            Replacement::Restart => Self::Restarted,
            Replacement::Recycle => Self::Recycled,
        }
    }
}

impl Worker {
    pub(crate) fn worker_ref(&self) -> WorkerRef {
        WorkerRef {
            worker: self.id,
            slot: self.slot,
            generation: self.generation,
        }
    }

    /// It fills its slot: it serves, or will.
    pub(crate) fn is_occupant(&self) -> bool {
        match self.stage {
            Stage::Starting { .. } | Stage::Ready { .. } => true,
            Stage::Draining { .. } | Stage::Aborting { .. } | Stage::Killed => false,
        }
    }

    /// Since when it accepts connections.
    pub(crate) fn ready_since(&self) -> Option<Time> {
        match self.stage {
            Stage::Ready { since, .. } => Some(since),
            Stage::Starting { .. }
            | Stage::Draining { .. }
            | Stage::Aborting { .. }
            | Stage::Killed => None,
        }
    }

    /// Its signs of life, while it is to accept connections.
    pub(crate) fn liveness(&self) -> Option<&Liveness> {
        match &self.stage {
            Stage::Ready { liveness, .. } => Some(liveness),
            Stage::Starting { .. }
            | Stage::Draining { .. }
            | Stage::Aborting { .. }
            | Stage::Killed => None,
        }
    }

    /// It accepts connections, and nothing is wrong with it.
    pub(crate) fn is_healthy(&self) -> bool {
        self.liveness()
            .is_some_and(|liveness| !liveness.is_stalled())
    }

    /// It has filled its slot until it stopped serving, and is still there.
    pub(crate) fn is_in_the_way(&self) -> bool {
        match &self.stage {
            Stage::Ready { liveness, .. } => liveness.is_stalled(),
            Stage::Aborting { .. } => true,
            Stage::Starting { .. } | Stage::Draining { .. } | Stage::Killed => false,
        }
    }

    /// When something is due about it.
    pub(crate) fn deadline(&self) -> Option<Time> {
        match self.stage {
            Stage::Starting { deadline } | Stage::Draining { deadline } => Some(deadline),
            Stage::Ready { liveness, .. } => liveness.deadline(&self.plan),
            Stage::Aborting { kill_at } => Some(kill_at),
            Stage::Killed => None,
        }
    }

    /// Counts time in which the machine stood still as if it had not been.
    pub(crate) fn extend_min_ready(&mut self, span: Duration) {
        if let Stage::Ready { since, .. } = &mut self.stage {
            *since += span;
        }
    }

    /// Stalls are not judged by time in which the machine stood still.
    pub(crate) fn forgive(&mut self, now: Time, late: Duration) {
        if let Stage::Ready { liveness, .. } = &mut self.stage {
            liveness.forgive(now, late);
        }
    }

    /// Puts everything off by the time in which nobody watched.
    pub(crate) fn put_off(&mut self, late: Duration, gap: Duration) {
        match &mut self.stage {
            Stage::Starting { deadline } | Stage::Draining { deadline } => *deadline += gap,
            Stage::Ready { liveness, .. } => liveness.put_off(late, gap),
            Stage::Aborting { kill_at } => *kill_at += gap,
            Stage::Killed => {}
        }
    }
}
