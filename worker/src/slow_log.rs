//! The slow-request log: a warning for each request that took long, rate-limited.

use crate::clock::now_ms;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How many requests a worker logs per second, sustained and in a burst.
const PER_SECOND: u64 = 10;

/// The worker's, shared by its threads.
#[derive(Debug)]
pub(crate) struct SlowLog {
    /// From how many microseconds on.
    pub(crate) from_us: u64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// In thousandths.
    tokens: u64,
    since: u64,
    suppressed: u64,
}

impl SlowLog {
    pub(crate) fn new(from_ms: u64) -> Self {
        let bucket = Bucket {
            tokens: PER_SECOND * 1000,
            since: now_ms(),
            suppressed: 0,
        };
        Self {
            from_us: from_ms.saturating_mul(1000),
            bucket: Mutex::new(bucket),
        }
    }

    /// Logs a request, unless the rate limit is reached.
    pub(crate) fn report(&self, request: &[u8], status: u16, took_us: u64, body: u64, peer: &str) {
        let Some(suppressed) = self.take(now_ms()) else {
            return;
        };
        warn_suppressed(suppressed);
        let request = String::from_utf8_lossy(request);
        let took = Duration::from_micros(took_us).as_secs_f64();
        let status = if status == 0 {
            "no answer".to_owned()
        } else {
            format!("status {status}")
        };
        log::warn!(
            "slow request: {request} took {took:.3} s ({status}, {body} bytes, from {peer})"
        );
    }

    /// Logs how many requests were suppressed, when the rate limit permits.
    pub(crate) fn report_suppressed(&self) {
        let waits = self
            .bucket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .suppressed
            > 0;
        if waits && let Some(suppressed) = self.take(now_ms()) {
            warn_suppressed(suppressed);
        }
    }

    /// Takes a token, and returns how many requests had none.
    fn take(&self, now: u64) -> Option<u64> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let gained = now.saturating_sub(bucket.since).saturating_mul(PER_SECOND);
        bucket.tokens = bucket.tokens.saturating_add(gained).min(PER_SECOND * 1000);
        bucket.since = now;
        if bucket.tokens < 1000 {
            bucket.suppressed += 1;
            return None;
        }
        bucket.tokens -= 1000;
        Some(std::mem::take(&mut bucket.suppressed))
    }
}

fn warn_suppressed(suppressed: u64) {
    if suppressed > 0 {
        log::warn!("{suppressed} more slow requests suppressed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_second_are_told_and_the_others_counted() {
        let slow = SlowLog::new(1);
        let now = now_ms();
        let reported = (0..100).filter(|_| slow.take(now).is_some()).count();
        assert_eq!(reported, 10);
        assert_eq!(slow.take(now + 100), Some(90));
        assert_eq!(slow.take(now + 100), None);
        assert_eq!(
            (0..100)
                .filter(|_| slow.take(now + 60_000).is_some())
                .count(),
            10
        );
    }
}
