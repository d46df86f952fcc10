//! Texts and numbers in the columns of a terminal.

use std::time::Duration;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Returns the number of columns that a text takes.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// Returns the beginning of a text that fits into this many columns.
pub(crate) fn clipped(text: &str, columns: usize) -> String {
    let mut taken = 0;
    text.chars()
        .take_while(|letter| {
            taken += letter.width().unwrap_or(0);
            taken <= columns
        })
        .collect()
}

/// Renders a number in three or four characters: `7`, `1.2k`, `34M`.
pub(crate) fn short(number: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.into_iter().find(|(unit, _)| number >= *unit) {
        Some((unit, name)) if number / unit < 10.0 => format!("{:.1}{name}", number / unit),
        Some((unit, name)) => format!("{:.0}{name}", number / unit),
        None if number > 0.0 && number < 10.0 && number.fract() > 0.05 => format!("{number:.1}"),
        None => format!("{number:.0}"),
    }
}

/// Renders a number of bytes in binary units.
pub(crate) fn bytes(number: f64) -> String {
    let units = [(30, "G"), (20, "M"), (10, "K")];
    let unit = |shift: u32| f64::from(1_u32 << shift);
    match units.into_iter().find(|(shift, _)| number >= unit(*shift)) {
        Some((shift, name)) if number / unit(shift) < 10.0 => {
            format!("{:.1}{name}", number / unit(shift))
        }
        Some((shift, name)) => format!("{:.0}{name}", number / unit(shift)),
        None => format!("{number:.0}"),
    }
}

/// Renders a time span in two units at most: `850us`, `12ms`, `3.5s`, `2m05`, `3h07`, `4d02`.
pub(crate) fn span(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.max(0.0))
        .unwrap_or(Duration::MAX)
        .as_secs();
    match seconds {
        _ if seconds < 0.001 => format!("{:.0}us", seconds * 1e6),
        _ if seconds < 0.1 => format!("{:.1}ms", seconds * 1e3).replace(".0ms", "ms"),
        _ if seconds < 1.0 => format!("{:.0}ms", seconds * 1e3),
        _ if seconds < 60.0 => format!("{seconds:.1}s"),
        _ if whole < 3600 => format!("{}m{:02}", whole / 60, whole % 60),
        _ if whole < 86_400 => format!("{}h{:02}", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d{:02}", whole / 86_400, whole % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_letters_take_two_columns() {
        assert_eq!(
            (
                width("大"),
                clipped("大大大", 5).as_str(),
                clipped("abc", 9).as_str()
            ),
            (2, "大大", "abc")
        );
    }

    #[test]
    fn numbers_are_short() {
        let shorts = [0.0, 0.04, 7.0, 7.25, 999.0, 1234.0, 45_678.0, 2e6, 3e13].map(short);
        assert_eq!(
            shorts,
            ["0", "0", "7", "7.2", "999", "1.2k", "46k", "2.0M", "30T"]
        );
        assert_eq!(
            [512.0, 2048.0, 64.0 * 1_048_576.0].map(bytes),
            ["512", "2.0K", "64M"]
        );
        let spans = [0.0005, 0.0025, 0.25, 3.54, 125.0, 11_220.0, 352_800.0].map(span);
        assert_eq!(
            spans,
            ["500us", "2.5ms", "250ms", "3.5s", "2m05", "3h07", "4d02"]
        );
    }
}
