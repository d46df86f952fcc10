//! Back-off: when a slot whose worker died is filled again.
//!
//! The first exit costs nothing: the replacement starts at once. Every further one in a row doubles
//! the wait, from 0.1 s to 30 s, minus a random share of up to half, so that eight slots that fail
//! for one reason do not come back in step ("equal jitter", after M. Brooker, *Exponential Backoff
//! And Jitter*, 2015).

use crate::id::Slot;
use crate::record;
use crate::rng::Rng;
use crate::time::Time;
use std::collections::BTreeMap;
use std::time::Duration;

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A worker that was ready for this long and then left cleanly has not failed.
pub(crate) const MIN_SERVED: Duration = Duration::from_secs(1);

/// A worker that was ready for this long ends a series of failures.
pub(crate) const STEADY_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Backoff {
    pub(crate) failures: u32,
    pub(crate) not_before: Time,
}

record!(Backoff {
    failures,
    not_before
});

impl Backoff {
    /// Records a failure of a worker that had been ready for `served`. Returns how long the slot
    /// stays empty.
    pub(crate) fn fail(&mut self, now: Time, served: Duration, rng: &mut Rng) -> Duration {
        if served >= STEADY_AFTER {
            self.failures = 0;
        }
        let wait = match self.failures {
            0 => Duration::ZERO,
            n => {
                let full = FIRST_WAIT
                    .saturating_mul(1 << (n - 1).min(16))
                    .min(LONGEST_WAIT);
                full.mul_f64(1.0 - 0.5 * rng.fraction())
            }
        };
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + wait;
        wait
    }

    /// Lets the slot be filled at once: its worker has left without having failed.
    pub(crate) fn excuse(&mut self, now: Time) {
        self.not_before = now;
    }
}

/// The back-off of every slot that has one.
#[derive(Debug, Clone, Default, bincode::Encode, bincode::Decode)]
pub(crate) struct Backoffs(BTreeMap<Slot, Backoff>);

impl Backoffs {
    /// Records a failure in a slot; see [`Backoff::fail`].
    pub(crate) fn fail(
        &mut self,
        slot: Slot,
        now: Time,
        served: Duration,
        rng: &mut Rng,
    ) -> Duration {
        self.0.entry(slot).or_default().fail(now, served, rng)
    }

    /// Lets a slot be filled again at once; see [`Backoff::excuse`].
    pub(crate) fn excuse(&mut self, slot: Slot, now: Time) {
        self.0.entry(slot).or_default().excuse(now);
    }

    /// Forgets the failures in a slot.
    pub(crate) fn reset(&mut self, slot: Slot) {
        self.0.remove(&slot);
    }

    /// Forgets all failures: another generation fills the slots.
    pub(crate) fn reset_all(&mut self) {
        self.0.clear();
    }

    /// Returns when a slot may be filled again.
    pub(crate) fn not_before(&self, slot: Slot) -> Time {
        self.0
            .get(&slot)
            .map(|backoff| backoff.not_before)
            .unwrap_or_default()
    }

    /// Whether a slot has failed more than once in a row: a pattern, not an accident.
    pub(crate) fn is_looping(&self, slot: Slot) -> bool {
        self.0
            .get(&slot)
            .is_some_and(|backoff| backoff.failures > 1)
    }

    /// Returns the slots that have a back-off.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> {
        self.0.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_costs_nothing_and_the_wait_doubles_up_to_the_longest() {
        let (mut backoff, mut rng) = (Backoff::default(), Rng(7));
        let waits: Vec<_> = (0..14)
            .map(|_| backoff.fail(Time::default(), Duration::ZERO, &mut rng))
            .collect();
        assert_eq!(waits[0], Duration::ZERO);
        for (n, wait) in waits.iter().enumerate().skip(1) {
            let full = FIRST_WAIT.saturating_mul(1 << (n - 1)).min(LONGEST_WAIT);
            assert!(
                *wait >= full / 2 && *wait <= full,
                "wait {n} is {wait:?} of {full:?}"
            );
        }
    }

    #[test]
    fn a_steady_worker_ends_the_row() {
        let (mut backoff, mut rng) = (Backoff::default(), Rng(7));
        for _ in 0..5 {
            backoff.fail(Time::default(), Duration::ZERO, &mut rng);
        }
        assert_eq!(
            backoff.fail(Time::default(), STEADY_AFTER, &mut rng),
            Duration::ZERO
        );
    }
}
