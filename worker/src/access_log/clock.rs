//! The time of day as text, formatted once a second.

use nix::time::{ClockId, clock_gettime};
use prefork_os::clock::{LocalTime, local_time};
use std::io::Write;

/// A serving thread's cached time.
#[derive(Default)]
pub(crate) struct ClockText {
    second: i64,
    local: Vec<u8>,
    iso: Vec<u8>,
    milliseconds: u32,
}

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Returns seconds since 1970, and milliseconds, at a resolution of a few milliseconds.
fn time_of_day() -> (i64, u32) {
    clock_gettime(ClockId::CLOCK_REALTIME_COARSE).map_or((0, 0), |now| {
        (
            now.tv_sec(),
            u32::try_from(now.tv_nsec() / 1_000_000).unwrap_or(0),
        )
    })
}

impl ClockText {
    /// Updates the time.
    pub(super) fn look(&mut self) {
        let (second, milliseconds) = time_of_day();
        self.milliseconds = milliseconds;
        if second != self.second || self.local.is_empty() {
            self.second = second;
            self.format(&local_time(second));
        }
    }

    fn format(&mut self, time: &LocalTime) {
        let LocalTime {
            year,
            month,
            day,
            hour,
            minute,
            second,
            offset,
        } = *time;
        let sign = if offset < 0 { '-' } else { '+' };
        let (hours, minutes) = (
            offset.unsigned_abs() / 3600,
            offset.unsigned_abs() / 60 % 60,
        );
        let month_index = usize::try_from(month - 1).ok();
        let name = month_index
            .and_then(|index| MONTHS.get(index))
            .unwrap_or(&"???");
        self.local.clear();
        self.iso.clear();
        // A Vec takes everything.
        let _ = write!(
            self.local,
            "{day:02}/{name}/{year}:{hour:02}:{minute:02}:{second:02} {sign}{hours:02}{minutes:02}"
        );
        let _ = write!(
            self.iso,
            "{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}\
             {sign}{hours:02}:{minutes:02}"
        );
    }

    pub(super) fn local(&self) -> &[u8] {
        &self.local
    }

    pub(super) fn iso(&self) -> &[u8] {
        &self.iso
    }

    /// Seconds since 1970, and milliseconds.
    pub(super) fn unix(&self) -> (u64, u32) {
        (self.second.unsigned_abs(), self.milliseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations() {
        let mut clock = ClockText::default();
        let time = LocalTime {
            year: 2026,
            month: 3,
            day: 1,
            hour: 2,
            minute: 3,
            second: 4,
            offset: -12_600,
        };
        clock.format(&time);
        assert_eq!(clock.local(), b"01/Mar/2026:02:03:04 -0330");
        assert_eq!(clock.iso(), b"2026-03-01T02:03:04-03:30");
    }
}
