//! The child's budget of processor time.
//!
//! Workers share the processors with the child, and a low priority is not enough: a kernel that
//! does not preempt a system call lets a waking worker wait, for a millisecond or more when the
//! child has much to do. So the child works for a moment and rests, all of its clients with it.
//! Time that it saves while idle lets a page of requests pass at once.

use nix::time::{ClockId, clock_gettime};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The child gets one part in this many of one processor's time.
const PART: u32 = 20;
/// The most that can be saved.
const MAX_SAVED: Duration = Duration::from_millis(20);
/// The debt at which the child rests.
const MAX_DEBT: Duration = Duration::from_micros(50);

/// The budget, shared by all tasks that spend it.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Rc<RefCell<Account>>);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(Rc::new(RefCell::new(Account::new(
            Instant::now(),
            processor_time(),
        ))))
    }

    /// Charges the time spent since the last call. Sleeps when it was too much: as the child has
    /// one thread, that stops all of it, on purpose.
    pub(crate) fn spend(&self) {
        let rest = self.0.borrow_mut().charge(Instant::now(), processor_time());
        if let Some(rest) = rest {
            std::thread::sleep(rest);
        }
    }
}

/// Returns the processor time that this thread has used.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// A token bucket of time.
#[derive(Debug)]
struct Account {
    at: Instant,
    used: Duration,
    credit: Duration,
    debt: Duration,
}

impl Account {
    fn new(at: Instant, used: Duration) -> Self {
        Self {
            at,
            used,
            credit: MAX_SAVED,
            debt: Duration::ZERO,
        }
    }

    /// Charges the processor time used until now; returns how long to rest.
    fn charge(&mut self, at: Instant, used: Duration) -> Option<Duration> {
        let credit = self.credit + at.saturating_duration_since(self.at) / PART;
        let debt = self.debt + used.saturating_sub(self.used);
        (self.at, self.used) = (at, used);
        (self.credit, self.debt) = (
            credit.saturating_sub(debt).min(MAX_SAVED),
            debt.saturating_sub(credit),
        );
        (self.debt > MAX_DEBT).then(|| self.debt * PART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn little_work_is_free_and_much_takes_twenty_times_as_long() {
        let began = Instant::now();
        let mut account = Account::new(began, MS * 5);
        assert_eq!(
            account.charge(began + MS * 10, MS * 15),
            None,
            "from its savings"
        );
        let rest = account
            .charge(began + MS * 20, MS * 28)
            .expect("13 ms more");
        assert_eq!(rest, MS * 40, "2 ms too much");
        assert_eq!(
            account.charge(began + MS * 60, MS * 28),
            None,
            "it has rested"
        );
        assert!(
            account.charge(began + MS * 61, MS * 29).is_some(),
            "and has no savings"
        );
    }

    #[test]
    fn savings_are_limited() {
        let began = Instant::now();
        let mut account = Account::new(began, Duration::ZERO);
        assert_eq!(account.charge(began + MS * 3_600_000, Duration::ZERO), None);
        assert_eq!(account.charge(began + MS * 3_600_000, MAX_SAVED), None);
        assert!(
            account
                .charge(began + MS * 3_600_000, MAX_SAVED + MS)
                .is_some()
        );
    }

    #[test]
    fn a_busy_child_gets_its_part() {
        let began = Instant::now();
        let mut account = Account::new(began, Duration::ZERO);
        let (mut at, mut used) = (began, Duration::ZERO);
        while at < began + MS * 10_000 {
            (at, used) = (at + MS / 10, used + MS / 10);
            at += account.charge(at, used).unwrap_or_default();
        }
        let part = MS * 10_000 / PART;
        assert!(
            used > part && used < part + MAX_SAVED + MS * 10,
            "{used:?} of {part:?}"
        );
    }
}
