//! Clocks.

use std::time::Duration;

/// Returns the time since an arbitrary start, by the clock that never jumps. It is the same in
/// every process of a machine.
pub fn monotonic() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid timespec to write to; CLOCK_MONOTONIC cannot fail on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Returns [`monotonic`] in whole microseconds.
pub fn monotonic_us() -> u64 {
    u64::try_from(monotonic().as_micros()).unwrap_or(u64::MAX)
}

/// Returns [`monotonic`] in whole milliseconds.
pub fn monotonic_ms() -> u64 {
    u64::try_from(monotonic().as_millis()).unwrap_or(u64::MAX)
}

/// A time as a calendar and a clock show it; months from 1, the offset from UTC in seconds.
#[derive(Debug, Clone, Copy)]
pub struct LocalTime {
    /// The year.
    pub year: i32,
    /// The month, from 1.
    pub month: i32,
    /// The day of the month, from 1.
    pub day: i32,
    /// Hours.
    pub hour: i32,
    /// Minutes.
    pub minute: i32,
    /// Seconds; 60 in a leap second.
    pub second: i32,
    /// How far local time is ahead of UTC, in seconds.
    pub offset: i64,
}

/// Returns the local time of a second since 1970; UTC where the time zone cannot be read.
pub fn local_time(second: i64) -> LocalTime {
    // SAFETY: tm is made of integers and a pointer, for which zero is a value.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid; localtime_r keeps neither, and leaves `tm` alone when it
    // fails.
    unsafe { libc::localtime_r(&raw const second, &raw mut tm) };
    LocalTime {
        year: tm.tm_year + 1900,
        month: tm.tm_mon + 1,
        day: tm.tm_mday,
        hour: tm.tm_hour,
        minute: tm.tm_min,
        second: tm.tm_sec,
        offset: tm.tm_gmtoff,
    }
}
