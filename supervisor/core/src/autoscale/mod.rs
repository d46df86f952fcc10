//! The number of workers follows the load.
//!
//! A configuration may give a range instead of a number of workers. Then each look at the queues also tells how much the workers have to
//! do, and [`policy`] says how many there should be. All that is done about it is to edit `open`, the number of slots:
//! `converge` starts and drains workers for it as it does when an operator scales.
//!
//! *Invariants*: the load never asks for fewer workers than the range or somebody by hand (the *floor*) wants, nor for more
//! than the range, or `memory`, allows; it never asks a worker to leave that has a request in hand; it does nothing while a
//! reload is under way, before the server serves, when it drains or stops, and does not grow while workers fail.

#[cfg(test)]
mod curves;
mod policy;

use super::event::{Fact, Observation};
use super::time::Time;
use super::worker::Worker;
use super::{Core, Phase};
use crate::record;

use crate::{Slot, WorkerId};
use policy::{Bounds, Measurements, Policy};
use std::collections::BTreeMap;
use std::time::Duration;

/// Looks that follow each other sooner than this tell nothing new.
const MIN_OBSERVATION_GAP: Duration = Duration::from_millis(40);
/// A program that only its processor time tells of, and that uses more than this share, is looked at like one that counts.
const ACTIVE_SHARE: f64 = 0.02;

/// How the number of workers follows the load, between [`workers`](super::Plan::workers) and
/// [`max_workers`](super::Plan::max_workers).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Autoscale {
    /// How long a worker must have been unneeded before it is retired.
    pub down_after: Duration,
    /// Bytes that all workers together may use after a scale-up.
    pub memory: Option<u64>,
    /// Requests that one worker has in hand at a time; `None` when that tells nothing of how busy it is, but its
    /// processor time does.
    pub requests_per_worker: Option<u32>,
}

record!(Autoscale {
    down_after,
    memory,
    requests_per_worker
});

/// What a worker has to do. Untrusted, like all that is seen of workers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WorkerLoad {
    /// Time that it has spent since it started: with requests in hand, each counted for itself; or on a processor.
    pub spent: Duration,
    /// Requests in hand now; `None` when nobody knows.
    pub in_flight: Option<u32>,
    /// How full it is, from 0 to 1, by the connections that it can have.
    pub filled: f64,
    /// Bytes of memory of its own, if that was asked for.
    pub memory: Option<u64>,
}

/// Why the number of workers is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleReason {
    /// So many connections wait, and nobody has time.
    Backlog(u32),
    /// The workers are busy: so many of a hundred parts of their time.
    Busy(u8),
    /// This slot was not needed for so long.
    Unneeded(Slot, Duration),
}

/// What was seen of the load, and what somebody wants by hand.
#[derive(Debug, Clone, Default)]
pub(crate) struct Autoscaler {
    /// The fewest workers, as somebody has set by hand; until the next reload.
    manual_minimum: Option<u16>,
    /// The same for the generation on candidate.
    candidate_minimum: Option<u16>,
    policy: Policy,
    /// When the load was last looked at; `None` when nothing before counts.
    observed: Option<Time>,
    /// What each worker had spent by then.
    spent: BTreeMap<WorkerId, Duration>,
    /// How many connections waited in each slot's queue then.
    waited: BTreeMap<Slot, u32>,
    /// How many more of them there were than workers could have taken.
    excess: u32,
    /// The operator was told that memory does not suffice for more.
    told: bool,
}

record!(Autoscaler {
    manual_minimum,
    candidate_minimum,
    policy,
    observed,
    spent,
    waited,
    excess,
    told
});

/// What a look tells of the workers that serve.
#[derive(Debug, Default)]
struct LoadSummary {
    ready: u16,
    load: f64,
    /// Requests that they could take besides, as far as can be told.
    free: u32,
    /// Bytes of all workers, those that leave included; and how many workers that are.
    memory: (u64, u64),
}

impl Autoscaler {
    /// The supervisor was stopped for so long.
    pub(crate) fn put_off(&mut self, gap: Duration) {
        self.policy.put_off(gap);
    }
}

impl Core {
    /// Whether the next [`Observation`] with queues is to have the workers' [`WorkerLoad`]s; and whether with their memory.
    pub fn wants_loads(&self) -> Option<bool> {
        self.stable
            .plan
            .autoscale
            .map(|autoscale| autoscale.memory.is_some())
    }

    /// How many slots a generation begins with: as many as there are, as far as its range allows.
    pub(crate) fn first_size(&self, plan: &super::Plan) -> u16 {
        let least = plan.workers.max(1);
        match plan.autoscale {
            Some(_) => self.open.clamp(least, plan.max_workers.max(least)),
            None => least,
        }
    }

    /// The fewest workers that somebody may ask for.
    pub(crate) fn fewest(&self) -> u16 {
        let plan = self
            .candidate
            .as_ref()
            .and_then(super::Candidate::plan)
            .unwrap_or(self.stable.plan);
        plan.autoscale.map_or(1, |_| plan.workers.max(1))
    }

    /// The number that is nearest to this one and may be.
    pub(crate) fn within_range(&self, to: u16) -> u16 {
        let plan = &self.stable.plan;
        let least = plan.autoscale.map_or(1, |_| plan.workers.max(1));
        to.clamp(least, plan.max_workers.max(least))
    }

    /// The fewest workers that there are without somebody's asking for fewer.
    pub(crate) fn least(&self) -> u16 {
        let plan = &self.stable.plan;
        let manual_minimum = self
            .autoscaler
            .manual_minimum
            .filter(|_| plan.autoscale.is_some())
            .unwrap_or(0);
        plan.workers
            .max(1)
            .max(manual_minimum.min(plan.max_workers))
    }

    /// Somebody has set the number by hand: it is the least from now on.
    pub(crate) fn set_manual_minimum(&mut self, to: u16) {
        let autoscale = |plan: super::Plan| plan.autoscale.is_some();
        self.autoscaler.manual_minimum = Some(to).filter(|_| autoscale(self.stable.plan));
        let candidate = self.candidate.as_ref().and_then(super::Candidate::plan);
        self.autoscaler.candidate_minimum = Some(to).filter(|_| candidate.is_some_and(autoscale));
    }

    /// A reload's candidate begins; what was set by hand before does not concern it.
    pub(crate) fn begin_autoscaling_candidate(&mut self) {
        self.autoscaler.candidate_minimum = None;
    }

    /// Another generation is accepted.
    pub(crate) fn autoscale_committed(&mut self) {
        self.autoscaler = Autoscaler {
            manual_minimum: self.autoscaler.candidate_minimum.take(),
            ..Autoscaler::default()
        };
    }

    /// Takes in a look at the queues, and sets the number of slots by it. Of the time before, `missed` was not watched.
    pub(crate) fn autoscale(&mut self, now: Time, observation: &Observation, missed: Duration) {
        let Some(autoscale) = self.stable.plan.autoscale else {
            return;
        };
        if self.phase != Phase::Serving || self.candidate.is_some() || self.pending_reload.is_some()
        {
            self.autoscaler.observed = None;
            return;
        }
        let since = self.autoscaler.observed;
        let gap = since.map_or(Duration::ZERO, |since| now - since);
        if since.is_some() && missed.is_zero() && gap < MIN_OBSERVATION_GAP {
            return;
        }
        let before = std::mem::take(&mut self.autoscaler.spent);
        let sum = self.summarize(observation, &autoscale, gap, &before);
        let standing = self.note_waiting(observation, &autoscale, &sum);
        self.autoscaler.spent = observation
            .loads
            .iter()
            .map(|(id, load)| (*id, load.spent))
            .collect();
        self.autoscaler.observed = Some(now);
        if autoscale.requests_per_worker.is_none() {
            self.active |= sum.load > ACTIVE_SHARE;
        }
        if since.is_none() {
            // Whoever is there is needed until the contrary is proven.
            return self.autoscaler.policy.need(now, self.open);
        }
        if !missed.is_zero() {
            return;
        }
        if sum.ready == 0 {
            return;
        }
        let held = self
            .held_slots
            .iter()
            .filter(|slot| slot.0 < self.open)
            .count();
        let measurements = Measurements {
            open: self.open,
            held: u16::try_from(held).unwrap_or(u16::MAX),
            ready: sum.ready,
            load: sum.load,
            requests_per_worker: autoscale.requests_per_worker,
            standing,
            gap,
        };
        // A slot that somebody holds empty stays held: a later scale-up must not fill it.
        let last_held = self.held_slots.last().map_or(0, |slot| slot.0 + 1);
        let bounds = Bounds {
            least: self.least().max(last_held),
            most: self.stable.plan.max_workers,
            down_after: autoscale.down_after,
            may_retire: self.may_retire(observation),
        };
        let Some((to, reason)) = self.autoscaler.policy.judge(now, &measurements, &bounds) else {
            return;
        };
        if to > self.open {
            self.grow(now, to, reason, &measurements, &sum, &autoscale);
        } else {
            self.rescale(to, reason);
        }
    }

    fn grow(
        &mut self,
        now: Time,
        to: u16,
        reason: ScaleReason,
        measurements: &Measurements,
        sum: &LoadSummary,
        autoscale: &Autoscale,
    ) {
        // Of workers that cannot start, more would not help.
        let failing = (0..self.open).map(Slot).any(|slot| {
            self.backoffs[slot.index()].is_looping()
                && !self.is_served(slot)
                && !self.held_slots.contains(&slot)
        });
        if failing {
            return;
        }
        let to = match autoscale.memory {
            Some(most) => to.min(self.affordable(most, sum)),
            None => to,
        };
        if to <= self.open {
            if !std::mem::replace(&mut self.autoscaler.told, true) {
                self.report(Fact::NoMemory {
                    workers: self.open,
                    used: sum.memory.0,
                });
            }
            return;
        }
        self.autoscaler
            .policy
            .grown(now, measurements, to, autoscale.down_after);
        self.rescale(to, reason);
    }

    /// How many slots there may be for all workers together to use no more than so many bytes, if those to come are like
    /// those that there are.
    fn affordable(&self, most: u64, sum: &LoadSummary) -> u16 {
        let (used, workers) = sum.memory;
        let each = (used / workers.max(1)).max(1);
        let alive = u64::try_from(self.workers.len()).unwrap_or(u64::MAX);
        // Of those that have not been measured yet, too.
        let coming = alive.saturating_sub(workers);
        let more = (most.saturating_sub(used) / each).saturating_sub(coming);
        self.open
            .saturating_add(u16::try_from(more).unwrap_or(u16::MAX))
    }

    fn rescale(&mut self, to: u16, reason: ScaleReason) {
        let from = self.open;
        self.autoscaler.told = false;
        self.set_open(to);
        self.report(Fact::Scaled { from, to, reason });
    }

    /// Whether the last slot's worker has nothing to do, and nobody leaves or comes anywhere.
    fn may_retire(&self, observation: &Observation) -> bool {
        let last = Slot(self.open.saturating_sub(1));
        let queues = observation.queues.iter().flatten();
        let waits = queues
            .filter(|(slot, _)| *slot == last)
            .any(|(_, length)| *length > 0);
        let load = |worker: &Worker| {
            observation
                .loads
                .iter()
                .find(|(id, _)| *id == worker.id)
                .map(|(_, load)| load)
        };
        let idle =
            |worker: &Worker| load(worker).is_some_and(|load| load.in_flight.unwrap_or(0) == 0);
        let whole = self
            .unavailable()
            .all(|slot| self.held_slots.contains(&slot) && self.in_slot(slot).next().is_none());
        !waits && whole && self.operations.is_empty() && self.in_slot(last).all(idle)
    }

    /// The workers that serve, and what they have to do.
    fn summarize(
        &self,
        observation: &Observation,
        autoscale: &Autoscale,
        gap: Duration,
        before: &BTreeMap<WorkerId, Duration>,
    ) -> LoadSummary {
        let mut sum = LoadSummary::default();
        let requests_per_worker = autoscale.requests_per_worker.unwrap_or(1).max(1);
        for (id, load) in &observation.loads {
            let Some(worker) = self.workers.get(id) else {
                continue;
            };
            if let Some(memory) = load.memory {
                sum.memory = (sum.memory.0.saturating_add(memory), sum.memory.1 + 1);
            }
            if worker.ready_since().is_none()
                || worker.slot.0 >= self.open
                || worker.generation != self.stable.id
            {
                continue;
            }
            let spent = before
                .get(id)
                .map_or(Duration::ZERO, |before| load.spent.saturating_sub(*before));
            let whole = gap.as_secs_f64() * f64::from(requests_per_worker);
            let share = if whole > 0.0 {
                spent.as_secs_f64() / whole
            } else {
                0.0
            };
            let filled = if load.filled.is_finite() {
                load.filled
            } else {
                0.0
            };
            sum.ready = sum.ready.saturating_add(1);
            sum.load += share.max(filled).clamp(0.0, 1.0);
            let free = load
                .in_flight
                .map_or(0, |in_flight| requests_per_worker.saturating_sub(in_flight));
            sum.free = sum.free.saturating_add(free);
        }
        sum
    }

    /// Notes who waits, and tells how many have done so since the last look and for want of anybody who has time.
    fn note_waiting(
        &mut self,
        observation: &Observation,
        autoscale: &Autoscale,
        sum: &LoadSummary,
    ) -> u32 {
        let queues = observation.queues.iter().flatten();
        let now: BTreeMap<Slot, u32> = queues
            .copied()
            .filter(|(slot, _)| slot.0 < self.open)
            .collect();
        let total = now
            .values()
            .fold(0, |sum: u32, length| sum.saturating_add(*length));
        let excess = std::mem::replace(&mut self.autoscaler.excess, total.saturating_sub(sum.free));
        let before = std::mem::replace(&mut self.autoscaler.waited, now);
        let now = &self.autoscaler.waited;
        if autoscale.requests_per_worker.is_some() {
            return excess.min(self.autoscaler.excess);
        }
        // Where nobody tells who has time, one worker that is slow must not count as all.
        let stands =
            |slot: &Slot, length: &u32| before.get(slot).map_or(0, |before| *before.min(length));
        let standing: Vec<u32> = now
            .iter()
            .map(|(slot, length)| stands(slot, length))
            .filter(|one| *one > 0)
            .collect();
        let many = standing.len() * 2 >= usize::from(sum.ready);
        if many {
            standing
                .iter()
                .fold(0, |sum: u32, one| sum.saturating_add(*one))
        } else {
            0
        }
    }
}
