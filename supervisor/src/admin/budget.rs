//! How much of a processor the child takes.
//!
//! Workers have to share the processors with it, and to be nice is not enough: a kernel that does not interrupt a system call
//! lets whoever wakes up wait, for a millisecond or more when the child has much to do. So it has never much to do: it
//! works for a moment and rests, all of its clients with it. What it saves in quiet times lets a page of requests pass at
//! once.

use nix::time::{ClockId, clock_gettime};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// One part in so many of one processor's time.
const PART: u32 = 20;
/// What can be saved.
const SAVED: Duration = Duration::from_millis(20);
/// How much more than it has the child takes before it rests.
const STRETCH: Duration = Duration::from_micros(50);

/// The child's time, shared by all who spend it.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Rc<RefCell<Account>>);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(Rc::new(RefCell::new(Account::new(
            Instant::now(),
            processor_time(),
        ))))
    }

    /// Something has been done. Rests, when it was too much: the child has one thread, and that is the point.
    pub(crate) fn spend(&self) {
        let rest = self.0.borrow_mut().settle(Instant::now(), processor_time());
        if let Some(rest) = rest {
            std::thread::sleep(rest);
        }
    }
}

/// The processor's time that this thread has taken.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// A token bucket of time.
#[derive(Debug)]
struct Account {
    at: Instant,
    taken: Duration,
    has: Duration,
    owes: Duration,
}

impl Account {
    fn new(at: Instant, taken: Duration) -> Self {
        Self {
            at,
            taken,
            has: SAVED,
            owes: Duration::ZERO,
        }
    }

    /// How long to rest, at a time and with so much taken by then.
    fn settle(&mut self, at: Instant, taken: Duration) -> Option<Duration> {
        let has = self.has + at.saturating_duration_since(self.at) / PART;
        let owes = self.owes + taken.saturating_sub(self.taken);
        (self.at, self.taken) = (at, taken);
        (self.has, self.owes) = (
            has.saturating_sub(owes).min(SAVED),
            owes.saturating_sub(has),
        );
        (self.owes > STRETCH).then(|| self.owes * PART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_little_is_free_and_much_takes_twenty_times_as_long() {
        let began = Instant::now();
        let mut account = Account::new(began, MS * 5);
        assert_eq!(
            account.settle(began + MS * 10, MS * 15),
            None,
            "it has saved"
        );
        let rest = account
            .settle(began + MS * 20, MS * 28)
            .expect("13 ms more");
        assert_eq!(rest, MS * 40, "2 ms too much");
        assert_eq!(
            account.settle(began + MS * 60, MS * 28),
            None,
            "it has rested"
        );
        assert!(
            account.settle(began + MS * 61, MS * 29).is_some(),
            "and has nothing saved"
        );
    }

    #[test]
    fn nobody_saves_for_hours() {
        let began = Instant::now();
        let mut account = Account::new(began, Duration::ZERO);
        assert_eq!(account.settle(began + MS * 3_600_000, Duration::ZERO), None);
        assert_eq!(account.settle(began + MS * 3_600_000, SAVED), None);
        assert!(account.settle(began + MS * 3_600_000, SAVED + MS).is_some());
    }

    #[test]
    fn whoever_always_wants_more_gets_its_part() {
        let began = Instant::now();
        let mut account = Account::new(began, Duration::ZERO);
        let (mut at, mut taken) = (began, Duration::ZERO);
        while at < began + MS * 10_000 {
            (at, taken) = (at + MS / 10, taken + MS / 10);
            at += account.settle(at, taken).unwrap_or_default();
        }
        let part = MS * 10_000 / PART;
        assert!(
            taken > part && taken < part + SAVED + MS * 10,
            "{taken:?} of {part:?}"
        );
    }
}
