//! The limits at which a worker is recycled: requests, age, memory.

use crate::float;
use crate::record;
use crate::rng::Rng;
use crate::time::Time;
use std::time::Duration;

/// The largest share by which a limit is reduced at random.
const JITTER: f64 = 0.2;

/// When a worker is replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// After this many requests.
    pub requests: Option<u64>,
    /// At this age.
    pub age: Option<Duration>,
    /// When it uses this many bytes of memory.
    pub memory: Option<u64>,
}

record!(Limits {
    requests,
    age,
    memory
});

/// The limit that a worker has reached: the measured value, then the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum RecycleReason {
    /// Requests answered.
    Requests(u64, u64),
    /// Age.
    Age(Duration, Duration),
    /// Bytes in use.
    Memory(u64, u64),
}

/// A recycle that is pending: since when, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) struct RecyclePending {
    pub(crate) since: Time,
    pub(crate) why: RecycleReason,
}

impl Limits {
    /// Draws the limits of one worker.
    pub(crate) fn draw(self, rng: &mut Rng) -> Self {
        if self == Self::default() {
            return self;
        }
        let share = 1.0 - JITTER * rng.fraction();
        let part = |whole: u64| float::to_u64(float::from_u64(whole) * share).max(1);
        Self {
            requests: self.requests.map(part),
            age: self.age.map(|age| age.mul_f64(share)),
            memory: self.memory.map(part),
        }
    }

    /// Returns the first limit that a worker has reached.
    pub(crate) fn reached(
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
            "without limits no random number is drawn"
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
