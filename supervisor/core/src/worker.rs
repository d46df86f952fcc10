//! A worker, as far as the core knows it.

use crate::event::WorkerRef;
use crate::exit::{Cause, DrainReason, Grade, Manner, ProcessEnd};
use crate::id::{GenerationId, Slot, WorkerId};
use crate::limits::{Limits, RecyclePending};
use crate::liveness::Liveness;
use crate::plan::Plan;
use crate::record;
use crate::time::Time;
use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

/// How long an aborted worker may dump core before it is killed.
pub(crate) const ABORT_GRACE: Duration = Duration::from_secs(2);
/// How long a worker that was never ready may take to leave: it has no requests.
pub(crate) const UNREADY_GRACE: Duration = Duration::from_secs(2);
/// The shortest wait: a timeout of zero is still a deadline in the future.
pub(crate) const MIN_WAIT: Duration = Duration::from_millis(1);

/// A worker's stage of life, with its deadline. Stages only move down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) enum Stage {
    /// Spawned, not ready yet.
    Starting { deadline: Time },
    /// It accepts connections, with these signs of life.
    Ready { since: Time, liveness: Liveness },
    /// It was asked to drain.
    Draining { deadline: Time },
    /// It hangs and was sent SIGABRT.
    Aborting { kill_at: Time },
    /// It was killed and has not exited yet.
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
    /// Why it will not start, as it reported.
    pub(crate) failure_reason: Option<String>,
    /// Why it drains, or was killed.
    pub(crate) cause: Option<Cause>,
    /// Why it is being replaced by another worker of its generation, if so.
    pub(crate) replacement: Option<Replacement>,
    /// When it is recycled.
    pub(crate) limits: Limits,
    /// Set once it has reached a limit.
    pub(crate) recycle_pending: Option<RecyclePending>,
    /// It has reported that it accepts no more connections.
    pub(crate) stopped_accepting: bool,
}

/// Why a worker is being replaced by another one of its generation. It serves until that one is
/// ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) enum Replacement {
    /// It was a replacement itself, and is not wanted any more.
    Superseded,
    /// Requested by an operator.
    Restart,
    /// It has reached a limit.
    Recycle,
}

/// All workers that are alive. Encoded as a list, as each knows its own id.
#[derive(Debug, Clone, Default)]
pub(crate) struct Workers(BTreeMap<WorkerId, Worker>);

impl Deref for Workers {
    type Target = BTreeMap<WorkerId, Worker>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Workers {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Encode for Workers {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.values().collect::<Vec<_>>().encode(encoder)
    }
}

impl<Context> Decode<Context> for Workers {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let workers = Vec::<Worker>::decode(decoder)?;
        let count = workers.len();
        let workers: BTreeMap<_, _> = workers.into_iter().map(|one| (one.id, one)).collect();
        if workers.len() != count {
            return Err(DecodeError::Other("two workers have the same id"));
        }
        Ok(Self(workers))
    }
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

record!(Worker { id, slot, generation, plan, born, stage, failure_reason, cause } added { replacement: None, limits: Limits::default(), recycle_pending: None, stopped_accepting: false });

impl Worker {
    pub(crate) fn worker_ref(&self) -> WorkerRef {
        WorkerRef {
            worker: self.id,
            slot: self.slot,
            generation: self.generation,
        }
    }

    /// Appends what it has reported, or was seen to do wrong.
    pub(crate) fn with_reason(&self, how: String) -> String {
        match &self.failure_reason {
            Some(reason) => format!("{how}: {reason}"),
            None => how,
        }
    }

    /// Whether it fills its slot: it serves, or will.
    pub(crate) fn is_occupant(&self) -> bool {
        match self.stage {
            Stage::Starting { .. } | Stage::Ready { .. } => true,
            Stage::Draining { .. } | Stage::Aborting { .. } | Stage::Killed => false,
        }
    }

    /// Returns since when it accepts connections.
    pub(crate) fn ready_since(&self) -> Option<Time> {
        match self.stage {
            Stage::Ready { since, .. } => Some(since),
            Stage::Starting { .. }
            | Stage::Draining { .. }
            | Stage::Aborting { .. }
            | Stage::Killed => None,
        }
    }

    /// Returns its signs of life while it is ready.
    pub(crate) fn liveness(&self) -> Option<&Liveness> {
        match &self.stage {
            Stage::Ready { liveness, .. } => Some(liveness),
            Stage::Starting { .. }
            | Stage::Draining { .. }
            | Stage::Aborting { .. }
            | Stage::Killed => None,
        }
    }

    /// Whether it accepts connections and is not stalled.
    pub(crate) fn is_healthy(&self) -> bool {
        self.liveness()
            .is_some_and(|liveness| !liveness.is_stalled())
    }

    /// Whether it has stopped serving and still occupies its slot.
    pub(crate) fn is_in_the_way(&self) -> bool {
        match &self.stage {
            Stage::Ready { liveness, .. } => liveness.is_stalled(),
            Stage::Aborting { .. } => true,
            Stage::Starting { .. } | Stage::Draining { .. } | Stage::Killed => false,
        }
    }

    /// Returns its deadline.
    pub(crate) fn deadline(&self) -> Option<Time> {
        match self.stage {
            Stage::Starting { deadline } | Stage::Draining { deadline } => Some(deadline),
            Stage::Ready { liveness, .. } => liveness.deadline(&self.plan),
            Stage::Aborting { kill_at } => Some(kill_at),
            Stage::Killed => None,
        }
    }

    /// Excludes time in which the machine stood still from `min_ready`.
    pub(crate) fn extend_min_ready(&mut self, span: Duration) {
        if let Stage::Ready { since, .. } = &mut self.stage {
            *since += span;
        }
    }

    /// Excludes time in which the machine stood still from the detection of stalls.
    pub(crate) fn forgive(&mut self, now: Time, late: Duration) {
        if let Stage::Ready { liveness, .. } = &mut self.stage {
            liveness.forgive(now, late);
        }
    }

    /// Postpones every deadline by time in which nothing was observed.
    pub(crate) fn put_off(&mut self, late: Duration, gap: Duration) {
        match &mut self.stage {
            Stage::Starting { deadline } | Stage::Draining { deadline } => *deadline += gap,
            Stage::Ready { liveness, .. } => liveness.put_off(late, gap),
            Stage::Aborting { kill_at } => *kill_at += gap,
            Stage::Killed => {}
        }
    }

    /// Returns the cause and grade of an exit.
    pub(crate) fn judge_end(&self, end: &ProcessEnd) -> (Cause, Grade) {
        let asked = self.cause.unwrap_or(Cause::Left);
        match self.stage {
            Stage::Ready { .. } if end.manner == Manner::Clean => (Cause::Left, Grade::Clean),
            Stage::Starting { .. } | Stage::Ready { .. } => (end.cause, Grade::Failure),
            Stage::Draining { .. } => match end.manner {
                Manner::Clean | Manner::AsAsked => (asked, Grade::Clean),
                // It was leaving anyway, but the unclean end is worth counting.
                Manner::Unclean => (end.cause, Grade::Unclean),
            },
            Stage::Aborting { .. } | Stage::Killed => match asked {
                Cause::Stop => (asked, Grade::Clean),
                Cause::DrainTimeout => (asked, Grade::Unclean),
                _ => (asked, Grade::Failure),
            },
        }
    }
}
