//! One worker, as far as the core knows it.

use super::cause::Cause;
use super::event::{Plan, Who, Why};
use super::pulse::Pulse;
use super::recycle::{Due, Limits};
use super::time::Time;
use crate::{GenerationId, Slot, WorkerId};
use std::time::Duration;

/// A worker's stage in life, with what is due in it. Stages only go down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) enum Stage {
    /// Spawned, not ready yet.
    Starting { deadline: Time },
    /// It accepts connections, and shows these signs of life.
    Ready { since: Time, pulse: Pulse },
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
    pub(crate) complaint: Option<String>,
    /// Why it is to leave, or was killed.
    pub(crate) cause: Option<Cause>,
    /// Another one of its generation is to take its place, and why.
    pub(crate) relief: Option<Relief>,
    /// When it is to be replaced.
    pub(crate) limits: Limits,
    /// It is to be replaced for having reached one of them.
    pub(crate) due: Option<Due>,
}

/// Why a worker is to be replaced by another one of its generation. It serves until that one is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) enum Relief {
    /// It was to replace another one itself, and is not wanted for that any more.
    Superseded,
    /// Somebody asked for it.
    Restart,
    /// It has reached a limit.
    Recycle,
}

impl From<Relief> for Why {
    fn from(relief: Relief) -> Self {
        match relief {
            Relief::Superseded => Self::Superseded,
            Relief::Restart => Self::Restarted,
            Relief::Recycle => Self::Recycled,
        }
    }
}

impl Worker {
    pub(crate) fn who(&self) -> Who {
        Who {
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
    pub(crate) fn pulse(&self) -> Option<&Pulse> {
        match &self.stage {
            Stage::Ready { pulse, .. } => Some(pulse),
            Stage::Starting { .. }
            | Stage::Draining { .. }
            | Stage::Aborting { .. }
            | Stage::Killed => None,
        }
    }

    /// It accepts connections, and nothing is wrong with it.
    pub(crate) fn is_well(&self) -> bool {
        self.pulse().is_some_and(|pulse| !pulse.is_stalled())
    }

    /// It has filled its slot until it stopped serving, and is still there.
    pub(crate) fn is_in_the_way(&self) -> bool {
        match &self.stage {
            Stage::Ready { pulse, .. } => pulse.is_stalled(),
            Stage::Aborting { .. } => true,
            Stage::Starting { .. } | Stage::Draining { .. } | Stage::Killed => false,
        }
    }

    /// When something is due about it.
    pub(crate) fn deadline(&self) -> Option<Time> {
        match self.stage {
            Stage::Starting { deadline } | Stage::Draining { deadline } => Some(deadline),
            Stage::Ready { pulse, .. } => pulse.deadline(&self.plan),
            Stage::Aborting { kill_at } => Some(kill_at),
            Stage::Killed => None,
        }
    }

    /// Counts time in which the machine stood still as if it had not been.
    pub(crate) fn prolong_probation(&mut self, span: Duration) {
        if let Stage::Ready { since, .. } = &mut self.stage {
            *since += span;
        }
    }

    /// Stalls are not judged by time in which the machine stood still.
    pub(crate) fn forgive(&mut self, now: Time, late: Duration) {
        if let Stage::Ready { pulse, .. } = &mut self.stage {
            pulse.forgive(now, late);
        }
    }

    /// Puts everything off by the time in which nobody watched.
    pub(crate) fn put_off(&mut self, late: Duration, gap: Duration) {
        match &mut self.stage {
            Stage::Starting { deadline } | Stage::Draining { deadline } => *deadline += gap,
            Stage::Ready { pulse, .. } => pulse.put_off(late, gap),
            Stage::Aborting { kill_at } => *kill_at += gap,
            Stage::Killed => {}
        }
    }
}
