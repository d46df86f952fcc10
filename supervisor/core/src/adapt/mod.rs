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

use super::event::{Fact, Look};
use super::time::Time;
use super::worker::Worker;
use super::{Core, Phase};
use crate::record;

use crate::{Slot, WorkerId};
use policy::{Bounds, Policy, Scene};
use std::collections::BTreeMap;
use std::time::Duration;

/// Looks that follow each other sooner than this tell nothing new.
const LEAST_GAP: Duration = Duration::from_millis(40);
/// A program that only its processor time tells of, and that uses more than this share, is looked at like one that counts.
const LIVELY: f64 = 0.02;

/// How the number of workers follows the load, between [`workers`](super::Plan::workers) and
/// [`max_workers`](super::Plan::max_workers).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elastic {
    /// How long a worker must have been unneeded before it is retired.
    pub down_after: Duration,
    /// Bytes that all workers together may use after a scale-up.
    pub memory: Option<u64>,
    /// Requests that one worker has in hand at a time; `None` when that tells nothing of how busy it is, but its
    /// processor time does.
    pub apiece: Option<u32>,
}

record!(Elastic {
    down_after,
    memory,
    apiece
});

/// What a worker has to do. Untrusted, like all that is seen of workers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Time that it has spent since it started: with requests in hand, each counted for itself; or on a processor.
    pub spent: Duration,
    /// Requests in hand now; `None` when nobody knows.
    pub in_hand: Option<u32>,
    /// How full it is, from 0 to 1, by the connections that it can have.
    pub filled: f64,
    /// Bytes of memory of its own, if that was asked for.
    pub memory: Option<u64>,
}

/// Why the number of workers is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// So many connections wait, and nobody has time.
    Backlog(u32),
    /// The workers are busy: so many of a hundred parts of their time.
    Busy(u8),
    /// This slot was not needed for so long.
    Unneeded(Slot, Duration),
}

/// What was seen of the load, and what somebody wants by hand.
#[derive(Debug, Clone, Default)]
pub(crate) struct Adaptation {
    /// The fewest workers, as somebody has set by hand; until the next reload.
    floor: Option<u16>,
    /// The same for the generation on trial.
    trial_floor: Option<u16>,
    policy: Policy,
    /// When the load was last looked at; `None` when nothing before counts.
    looked: Option<Time>,
    /// What each worker had spent by then.
    spent: BTreeMap<WorkerId, Duration>,
    /// How many connections waited in each slot's queue then.
    waited: BTreeMap<Slot, u32>,
    /// How many more of them there were than workers could have taken.
    excess: u32,
    /// The operator was told that memory does not suffice for more.
    told: bool,
}

record!(Adaptation {
    floor,
    trial_floor,
    policy,
    looked,
    spent,
    waited,
    excess,
    told
});

/// What a look tells of the workers that serve.
#[derive(Debug, Default)]
struct Sum {
    ready: u16,
    load: f64,
    /// Requests that they could take besides, as far as can be told.
    free: u32,
    /// Bytes of all workers, those that leave included; and how many workers that are.
    memory: (u64, u64),
}

impl Adaptation {
    /// The supervisor was stopped for so long.
    pub(crate) fn put_off(&mut self, gap: Duration) {
        self.policy.put_off(gap);
    }
}

impl Core {
    /// Whether the next [`Look`] with queues is to have the workers' [`Load`]s; and whether with their memory.
    pub fn wants_loads(&self) -> Option<bool> {
        self.stable
            .plan
            .elastic
            .map(|elastic| elastic.memory.is_some())
    }

    /// How many slots a generation begins with: as many as there are, as far as its range allows.
    pub(crate) fn first_size(&self, plan: &super::Plan) -> u16 {
        let least = plan.workers.max(1);
        match plan.elastic {
            Some(_) => self.open.clamp(least, plan.max_workers.max(least)),
            None => least,
        }
    }

    /// The fewest workers that somebody may ask for.
    pub(crate) fn fewest(&self) -> u16 {
        let plan = self
            .trial
            .as_ref()
            .and_then(super::Trial::plan)
            .unwrap_or(self.stable.plan);
        plan.elastic.map_or(1, |_| plan.workers.max(1))
    }

    /// The number that is nearest to this one and may be.
    pub(crate) fn within_range(&self, to: u16) -> u16 {
        let plan = &self.stable.plan;
        let least = plan.elastic.map_or(1, |_| plan.workers.max(1));
        to.clamp(least, plan.max_workers.max(least))
    }

    /// The fewest workers that there are without somebody's asking for fewer.
    pub(crate) fn least(&self) -> u16 {
        let plan = &self.stable.plan;
        let floor = self
            .adaptation
            .floor
            .filter(|_| plan.elastic.is_some())
            .unwrap_or(0);
        plan.workers.max(1).max(floor.min(plan.max_workers))
    }

    /// Somebody has set the number by hand: it is the least from now on.
    pub(crate) fn set_floor(&mut self, to: u16) {
        let elastic = |plan: super::Plan| plan.elastic.is_some();
        self.adaptation.floor = Some(to).filter(|_| elastic(self.stable.plan));
        let trial = self.trial.as_ref().and_then(super::Trial::plan);
        self.adaptation.trial_floor = Some(to).filter(|_| trial.is_some_and(elastic));
    }

    /// A reload's trial begins; what was set by hand before does not concern it.
    pub(crate) fn begin_adapting_trial(&mut self) {
        self.adaptation.trial_floor = None;
    }

    /// Another generation is accepted.
    pub(crate) fn adapt_to_accepted(&mut self) {
        self.adaptation = Adaptation {
            floor: self.adaptation.trial_floor.take(),
            ..Adaptation::default()
        };
    }

    /// Takes in a look at the queues, and sets the number of slots by it. Of the time before, `missed` was not watched.
    pub(crate) fn adapt(&mut self, now: Time, look: &Look, missed: Duration) {
        let Some(elastic) = self.stable.plan.elastic else {
            return;
        };
        if self.phase != Phase::Serving || self.trial.is_some() || self.wanted.is_some() {
            self.adaptation.looked = None;
            return;
        }
        let since = self.adaptation.looked;
        let gap = since.map_or(Duration::ZERO, |since| now - since);
        if since.is_some() && missed.is_zero() && gap < LEAST_GAP {
            return;
        }
        let before = std::mem::take(&mut self.adaptation.spent);
        let sum = self.sum_up(look, &elastic, gap, &before);
        let standing = self.note_waiting(look, &elastic, &sum);
        self.adaptation.spent = look
            .loads
            .iter()
            .map(|(id, load)| (*id, load.spent))
            .collect();
        self.adaptation.looked = Some(now);
        if elastic.apiece.is_none() {
            self.lively |= sum.load > LIVELY;
        }
        if since.is_none() {
            // Whoever is there is needed until the contrary is proven.
            return self.adaptation.policy.need(now, self.open);
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
        let scene = Scene {
            open: self.open,
            held: u16::try_from(held).unwrap_or(u16::MAX),
            ready: sum.ready,
            load: sum.load,
            apiece: elastic.apiece,
            standing,
            gap,
        };
        // A slot that somebody holds empty stays held: a later scale-up must not fill it.
        let last_held = self.held_slots.last().map_or(0, |slot| slot.0 + 1);
        let bounds = Bounds {
            least: self.least().max(last_held),
            most: self.stable.plan.max_workers,
            down_after: elastic.down_after,
            may_retire: self.may_retire(look),
        };
        let Some((to, reason)) = self.adaptation.policy.judge(now, &scene, &bounds) else {
            return;
        };
        if to > self.open {
            self.grow(now, to, reason, &scene, &sum, &elastic);
        } else {
            self.rescale(to, reason);
        }
    }

    fn grow(
        &mut self,
        now: Time,
        to: u16,
        reason: Reason,
        scene: &Scene,
        sum: &Sum,
        elastic: &Elastic,
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
        let to = match elastic.memory {
            Some(most) => to.min(self.affordable(most, sum)),
            None => to,
        };
        if to <= self.open {
            if !std::mem::replace(&mut self.adaptation.told, true) {
                self.report(Fact::NoMemory {
                    workers: self.open,
                    used: sum.memory.0,
                });
            }
            return;
        }
        self.adaptation
            .policy
            .grown(now, scene, to, elastic.down_after);
        self.rescale(to, reason);
    }

    /// How many slots there may be for all workers together to use no more than so many bytes, if those to come are like
    /// those that there are.
    fn affordable(&self, most: u64, sum: &Sum) -> u16 {
        let (used, workers) = sum.memory;
        let each = (used / workers.max(1)).max(1);
        let alive = u64::try_from(self.workers.len()).unwrap_or(u64::MAX);
        // Of those that have not been measured yet, too.
        let coming = alive.saturating_sub(workers);
        let more = (most.saturating_sub(used) / each).saturating_sub(coming);
        self.open
            .saturating_add(u16::try_from(more).unwrap_or(u16::MAX))
    }

    fn rescale(&mut self, to: u16, reason: Reason) {
        let from = self.open;
        self.adaptation.told = false;
        self.set_open(to);
        self.report(Fact::Scaled { from, to, reason });
    }

    /// Whether the last slot's worker has nothing to do, and nobody leaves or comes anywhere.
    fn may_retire(&self, look: &Look) -> bool {
        let last = Slot(self.open.saturating_sub(1));
        let queues = look.queues.iter().flatten();
        let waits = queues
            .filter(|(slot, _)| *slot == last)
            .any(|(_, length)| *length > 0);
        let load = |worker: &Worker| {
            look.loads
                .iter()
                .find(|(id, _)| *id == worker.id)
                .map(|(_, load)| load)
        };
        let idle =
            |worker: &Worker| load(worker).is_some_and(|load| load.in_hand.unwrap_or(0) == 0);
        let whole = self
            .unavailable()
            .all(|slot| self.held_slots.contains(&slot) && self.in_slot(slot).next().is_none());
        !waits && whole && self.errands.is_empty() && self.in_slot(last).all(idle)
    }

    /// The workers that serve, and what they have to do.
    fn sum_up(
        &self,
        look: &Look,
        elastic: &Elastic,
        gap: Duration,
        before: &BTreeMap<WorkerId, Duration>,
    ) -> Sum {
        let mut sum = Sum::default();
        let apiece = elastic.apiece.unwrap_or(1).max(1);
        for (id, load) in &look.loads {
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
            let whole = gap.as_secs_f64() * f64::from(apiece);
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
                .in_hand
                .map_or(0, |in_hand| apiece.saturating_sub(in_hand));
            sum.free = sum.free.saturating_add(free);
        }
        sum
    }

    /// Notes who waits, and tells how many have done so since the last look and for want of anybody who has time.
    fn note_waiting(&mut self, look: &Look, elastic: &Elastic, sum: &Sum) -> u32 {
        let queues = look.queues.iter().flatten();
        let now: BTreeMap<Slot, u32> = queues
            .copied()
            .filter(|(slot, _)| slot.0 < self.open)
            .collect();
        let total = now
            .values()
            .fold(0, |sum: u32, length| sum.saturating_add(*length));
        let excess = std::mem::replace(&mut self.adaptation.excess, total.saturating_sub(sum.free));
        let before = std::mem::replace(&mut self.adaptation.waited, now);
        let now = &self.adaptation.waited;
        if elastic.apiece.is_some() {
            return excess.min(self.adaptation.excess);
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
