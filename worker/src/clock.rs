//! The monotonic clock, as cheaply as each use allows.

use nix::time::{ClockId, clock_gettime};
use prefork_os::monotonic_us;

/// Milliseconds of the monotonic clock at a few milliseconds' resolution, for a fifth of the price.
pub(crate) fn now_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |now| {
        u64::try_from(now.tv_sec()).unwrap_or(0) * 1000
            + u64::try_from(now.tv_nsec() / 1_000_000).unwrap_or(0)
    })
}

/// The time at which a request begins or ends, in microseconds of the same clock: one precise
/// reading for each.
pub(crate) fn now_us() -> u64 {
    // A build that does not count needs no precision, as there was none before there was counting.
    if cfg!(feature = "uncounted") {
        now_ms() * 1000
    } else {
        monotonic_us()
    }
}
