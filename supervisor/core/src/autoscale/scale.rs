//! Sets the number of slots from the observed load.

use super::load::{Autoscale, ScaleReason};
use super::policy::{Bounds, Measurements};
use super::state::Autoscaler;
use crate::candidate::Candidate;
use crate::event::{Fact, Observation};
use crate::id::{Slot, WorkerId};
use crate::machine::{Core, Phase};
use crate::plan::Plan;
use crate::time::Time;
use crate::worker::Worker;
use std::collections::BTreeMap;
use std::time::Duration;

/// Observations closer together than this are skipped: they carry no new information.
const MIN_OBSERVATION_GAP: Duration = Duration::from_millis(40);
/// A program measured by processor time is sampled as often as a counting one above this share.
const ACTIVE_SHARE: f64 = 0.02;

/// The load of the workers that serve, summed up.
#[derive(Debug, Default)]
struct LoadSummary {
    ready: u16,
    load: f64,
    /// Further requests that they could take, as far as is known.
    free: u32,
    /// Bytes of all workers, draining ones included; and how many workers that is.
    memory: (u64, u64),
}

impl Core {
    /// Returns whether the next [`Observation`] with queues needs [`WorkerLoad`](crate::WorkerLoad)s, and if so
    /// whether with memory.
    pub fn wants_loads(&self) -> Option<bool> {
        self.stable
            .plan
            .autoscale
            .map(|autoscale| autoscale.memory.is_some())
    }

    /// Returns how many slots a generation starts with: the present number, clamped to its range.
    pub(crate) fn first_size(&self, plan: &Plan) -> u16 {
        let least = plan.workers.max(1);
        match plan.autoscale {
            Some(_) => self.open.clamp(least, plan.max_workers.max(least)),
            None => least,
        }
    }

    /// Returns the fewest workers that an operator may ask for.
    pub(crate) fn fewest(&self) -> u16 {
        let plan = self
            .candidate
            .as_ref()
            .and_then(Candidate::plan)
            .unwrap_or(self.stable.plan);
        plan.autoscale.map_or(1, |_| plan.workers.max(1))
    }

    /// Clamps a number of workers to the configured range.
    pub(crate) fn within_range(&self, to: u16) -> u16 {
        let plan = &self.stable.plan;
        let least = plan.autoscale.map_or(1, |_| plan.workers.max(1));
        to.clamp(least, plan.max_workers.max(least))
    }

    /// Returns the fewest workers that the autoscaler may leave.
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

    /// Makes a number set by hand the minimum from now on.
    pub(crate) fn set_manual_minimum(&mut self, to: u16) {
        let autoscale = |plan: Plan| plan.autoscale.is_some();
        self.autoscaler.manual_minimum = Some(to).filter(|_| autoscale(self.stable.plan));
        let candidate = self.candidate.as_ref().and_then(Candidate::plan);
        self.autoscaler.candidate_minimum = Some(to).filter(|_| candidate.is_some_and(autoscale));
    }

    /// Starts a candidate without a manual minimum: what was set before does not concern it.
    pub(crate) fn begin_autoscaling_candidate(&mut self) {
        self.autoscaler.candidate_minimum = None;
    }

    /// Starts afresh for a generation that has been committed.
    pub(crate) fn autoscale_committed(&mut self) {
        self.autoscaler = Autoscaler {
            manual_minimum: self.autoscaler.candidate_minimum.take(),
            ..Autoscaler::default()
        };
    }

    /// Sets the number of slots from an observation of queues and loads. `missed` is how much of
    /// the time before it went unobserved.
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
            // Assume every existing worker is needed until measurements say otherwise.
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
        // A slot held empty stays held: a later scale-up must not fill it.
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
        // More workers that cannot start would not help.
        let failing = (0..self.open).map(Slot).any(|slot| {
            self.backoffs.is_looping(slot)
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
            if !std::mem::replace(&mut self.autoscaler.shortage_reported, true) {
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

    /// Returns how many slots keep all workers together within `most` bytes, if new workers use as
    /// much as the present ones.
    fn affordable(&self, most: u64, sum: &LoadSummary) -> u16 {
        let (used, workers) = sum.memory;
        let each = (used / workers.max(1)).max(1);
        let alive = u64::try_from(self.workers.len()).unwrap_or(u64::MAX);
        // Includes workers not measured yet.
        let coming = alive.saturating_sub(workers);
        let more = (most.saturating_sub(used) / each).saturating_sub(coming);
        self.open
            .saturating_add(u16::try_from(more).unwrap_or(u16::MAX))
    }

    fn rescale(&mut self, to: u16, reason: ScaleReason) {
        let from = self.open;
        self.autoscaler.shortage_reported = false;
        self.set_open(to);
        self.report(Fact::Scaled { from, to, reason });
    }

    /// Whether the last slot's worker is idle, and no other slot changes.
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

    /// Sums up the load of the workers that serve.
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

    /// Records the queues. Returns how many connections have waited since the last observation
    /// because no worker was idle.
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
        // Without knowledge of idle workers, one slow worker must not count as all being busy.
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
