//! Waiting for facts, never for time.

use std::time::{Duration, Instant};

/// How long a test waits for something that must come. Generous, because a loaded machine is slow,
/// not wrong.
pub const LONG: Duration = Duration::from_secs(30);

/// Asks `fact` again and again until it is true.
///
/// # Panics
/// When it is still false after `limit`, with `what` was waited for.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut fact: impl FnMut() -> bool) {
    wait_for(what, limit, || fact().then_some(()));
}

/// Asks `fact` again and again until it has an answer.
///
/// # Panics
/// When it has none after `limit`, with `what` was waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut fact: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = fact() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
