//! Workers that are replaced before they have leaked too much: by their requests, their age, their memory.
//!
//! Each worker gets limits of its own when it is born: what the configuration says, less a random share, so that workers
//! that were born together do not go together. One that has reached a limit is *due*. It is then replaced as if somebody
//! had asked for another one in its slot: it has a [`Replacement`], for which it needs a permit, serves until the new one is
//! ready, and goes on if that one fails. The one that has been due for longest goes first.
//!
//! Nothing is begun while a reload is under way, which replaces every worker anyway, or before the server serves, or when
//! it is to stop.

use super::event::{Fact, Observation, WorkerSample};
use super::slots::Permit;
use super::time::Time;
use super::worker::{Replacement, Stage, Worker};
use super::{Core, Phase, Rng};
use crate::record;

use crate::{Slot, WorkerId};
use std::time::Duration;

/// The largest share of a limit that is left off at random.
const JITTER: f64 = 0.2;

/// When a worker is to be replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// After it has answered so many requests.
    pub requests: Option<u64>,
    /// At this age.
    pub age: Option<Duration>,
    /// When it uses so many bytes of memory.
    pub memory: Option<u64>,
}

record!(Limits {
    requests,
    age,
    memory
});

/// The limit that a worker has reached, and how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum RecycleReason {
    /// Requests answered, of so many.
    Requests(u64, u64),
    /// Its age, of so much.
    Age(Duration, Duration),
    /// Bytes used, of so many.
    Memory(u64, u64),
}

/// A worker that is to be replaced, since when and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) struct RecyclePending {
    since: Time,
    pub(crate) why: RecycleReason,
}

impl Limits {
    /// Those of one worker.
    pub(crate) fn draw(self, rng: &mut Rng) -> Self {
        if self == Self::default() {
            return self;
        }
        let share = 1.0 - JITTER * rng.fraction();
        let part = |whole: u64| ((whole as f64 * share) as u64).max(1);
        Self {
            requests: self.requests.map(part),
            age: self.age.map(|age| age.mul_f64(share)),
            memory: self.memory.map(part),
        }
    }

    /// The first that a worker has reached.
    fn reached(
        &self,
        age: Duration,
        requests: Option<u64>,
        memory: Option<u64>,
    ) -> Option<RecycleReason> {
        let beyond = |used: Option<u64>, most: Option<u64>| {
            used.zip(most).filter(|(used, most)| used >= most)
        };
        let requests =
            beyond(requests, self.requests).map(|(used, most)| RecycleReason::Requests(used, most));
        let memory =
            || beyond(memory, self.memory).map(|(used, most)| RecycleReason::Memory(used, most));
        let old = || {
            self.age
                .filter(|most| age >= *most)
                .map(|most| RecycleReason::Age(age, most))
        };
        requests.or_else(memory).or_else(old)
    }
}

impl Worker {
    /// Notes that it has reached a limit.
    fn measure(&mut self, now: Time, sample: Option<&WorkerSample>) {
        if self.recycle_pending.is_some() || self.ready_since().is_none() {
            return;
        }
        let requests = sample.and_then(|sample| sample.requests);
        let memory = sample.and_then(|sample| sample.memory);
        let reached = self.limits.reached(now - self.born, requests, memory);
        self.recycle_pending = reached.map(|why| RecyclePending { since: now, why });
    }

    /// When it will be too old, if it is not due already.
    fn old_at(&self) -> Option<Time> {
        let age = self.limits.age.filter(|_| self.recycle_pending.is_none())?;
        matches!(self.stage, Stage::Ready { .. }).then(|| self.born + age)
    }
}

impl Core {
    /// Notes who has reached a limit, as far as can be seen.
    pub(crate) fn measure(&mut self, now: Time, observation: &Observation) {
        for (id, sample) in &observation.workers {
            if let Some(worker) = self.workers.get_mut(id) {
                worker.measure(now, Some(sample));
            }
        }
    }

    /// Has those replaced that are due, as far as there are permits.
    pub(crate) fn recycle(&mut self, now: Time) {
        self.workers
            .values_mut()
            .for_each(|worker| worker.measure(now, None));
        if !self.may_recycle() {
            return;
        }
        let mut due: Vec<(Time, WorkerId, Slot)> = self
            .workers
            .values()
            .filter(|worker| self.is_to_recycle(worker))
            .filter_map(|worker| Some((worker.recycle_pending?.since, worker.id, worker.slot)))
            .collect();
        due.sort();
        for (_, id, slot) in due {
            let alone = self.in_slot(slot).count() == 1;
            if alone && self.next_attempt(slot) <= now && self.permit(slot) == Permit::Granted {
                self.begin_replacement(id, Replacement::Recycle);
            }
        }
    }

    fn may_recycle(&self) -> bool {
        self.phase == Phase::Serving && !self.is_reloading()
    }

    fn is_to_recycle(&self, worker: &Worker) -> bool {
        let open = worker.slot.0 < self.open && !self.held_slots.contains(&worker.slot);
        open && worker.replacement.is_none()
            && worker.generation == self.stable.id
            && worker.ready_since().is_some()
            && worker.recycle_pending.is_some()
    }

    /// When a slot's worker may be replaced after whoever was to do that has failed.
    fn next_attempt(&self, slot: Slot) -> Time {
        self.replacement_backoffs
            .get(&slot)
            .map(super::Backoff::not_before)
            .unwrap_or_default()
    }

    /// When somebody will be due, or can be tried again.
    pub(crate) fn next_recycle(&self, now: Time) -> Option<Time> {
        if !self.may_recycle() {
            return None;
        }
        let old = self.workers.values().filter_map(Worker::old_at);
        let to_recycle = self
            .workers
            .values()
            .filter(|worker| self.is_to_recycle(worker));
        let retries = to_recycle.map(|worker| self.next_attempt(worker.slot));
        old.chain(retries).filter(|at| *at > now).min()
    }

    /// Whoever was to take a worker's place has done so: the next one begins without a back-off.
    pub(crate) fn replacement_succeeded(&mut self, slot: Slot) {
        self.replacement_backoffs.remove(&slot);
    }

    /// What is told when a worker is to be recycled.
    pub(crate) fn recycling(worker: &Worker) -> Option<Fact> {
        worker
            .recycle_pending
            .map(|due| Fact::Recycling(worker.worker_ref(), due.why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_has_limits_of_its_own_that_are_never_more_than_what_was_set() {
        let set = Limits {
            requests: Some(1000),
            age: Some(Duration::from_secs(100)),
            memory: Some(1 << 20),
        };
        let mut rng = Rng(7);
        let drawn: Vec<Limits> = (0..100).map(|_| set.draw(&mut rng)).collect();
        let requests: Vec<u64> = drawn.iter().filter_map(|limits| limits.requests).collect();
        assert!(
            requests.iter().all(|most| (800..=1000).contains(most)),
            "{requests:?}"
        );
        let (least, most) = (requests.iter().min(), requests.iter().max());
        assert!(
            least.is_some_and(|least| *least < 830) && most.is_some_and(|most| *most > 970),
            "{requests:?}"
        );
        assert!(
            drawn
                .iter()
                .all(|limits| limits.age <= set.age && limits.memory <= set.memory)
        );
        let tiny = Limits {
            requests: Some(1),
            ..Limits::default()
        };
        assert_eq!(tiny.draw(&mut rng).requests, Some(1), "not 0");
        let before = format!("{rng:?}");
        assert_eq!(Limits::default().draw(&mut rng), Limits::default());
        assert_eq!(
            format!("{rng:?}"),
            before,
            "whoever recycles nobody throws no dice"
        );
    }

    #[test]
    fn a_limit_is_reached_exactly_there() {
        let limits = Limits {
            requests: Some(10),
            age: Some(Duration::from_secs(5)),
            memory: Some(100),
        };
        let reached =
            |age, requests, memory| limits.reached(Duration::from_secs(age), requests, memory);
        assert_eq!(reached(4, Some(9), Some(99)), None);
        assert_eq!(
            reached(4, Some(10), None),
            Some(RecycleReason::Requests(10, 10))
        );
        assert_eq!(
            reached(4, None, Some(101)),
            Some(RecycleReason::Memory(101, 100))
        );
        let five = Duration::from_secs(5);
        assert_eq!(reached(5, None, None), Some(RecycleReason::Age(five, five)));
        assert_eq!(
            Limits::default().reached(Duration::MAX, Some(u64::MAX), Some(u64::MAX)),
            None
        );
    }
}
