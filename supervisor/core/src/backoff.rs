//! When a slot whose worker died is filled again.
//!
//! The first death costs nothing: the replacement starts at once. Every further one in a row doubles the wait,
//! from 0.1 s to 30 s, and takes off up to half of it by chance, so that eight slots that fail for one reason do not
//! come back in step ("equal jitter", after M. Brooker, *Exponential Backoff And Jitter*, 2015).

use super::time::Time;
use std::time::Duration;

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A worker that was ready for this long, and then left cleanly, has not failed.
pub(crate) const MIN_SERVED: Duration = Duration::from_secs(1);

/// A worker that was ready for this long ends a row of failures.
pub(crate) const STEADY_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Backoff {
    pub(crate) failures: u32,
    pub(crate) not_before: Time,
}

impl Backoff {
    /// Notes a failure, after the worker had been ready for `served`; tells how long the slot stays empty.
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

    /// The slot's worker has left, and that was no failure: it is filled again at once.
    pub(crate) fn excuse(&mut self, now: Time) {
        self.not_before = now;
    }

    /// Forgets the failures: another generation fills the slot.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn not_before(&self) -> Time {
        self.not_before
    }

    /// More than one failure in a row: a pattern, not an accident.
    pub(crate) fn is_looping(&self) -> bool {
        self.failures > 1
    }
}

/// A small generator of pseudo-random numbers (SplitMix64, Steele et al., 2014). Seeded from outside, so that
/// the core stays a function of what it is told.
#[derive(Debug, Clone, bincode::Encode, bincode::Decode)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    /// A number from 0 to 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from(u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(0)) / f64::from(u32::MAX)
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
