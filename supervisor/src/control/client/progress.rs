//! How far a reload is: a bar on a terminal, lines elsewhere.

use crate::control::{Answer, Progress};
use std::io::{IsTerminal, Write};

/// The bar's width in characters.
const WIDTH: u64 = 24;

/// What is shown on standard error.
pub(crate) struct Bar {
    terminal: bool,
    shown: bool,
    last: String,
}

impl Bar {
    pub(crate) fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            shown: false,
            last: String::new(),
        }
    }

    /// Shows what an answer tells of progress.
    pub(crate) fn show(&mut self, answer: &Answer) {
        let words = answer.progress.as_deref().unwrap_or_default();
        let mut stderr = std::io::stderr().lock();
        let line = match &answer.reload {
            Some(reload) if reload.slots > 0 && self.terminal => {
                let _ = write!(stderr, "\r\x1b[K{}", bar(reload));
                let _ = stderr.flush();
                self.shown = true;
                return;
            }
            Some(reload) if reload.slots > 0 => counts(reload),
            Some(_) | None => words.to_owned(),
        };
        drop(stderr);
        self.clear();
        // Several facts may leave the counts as they are.
        if line != self.last {
            let _ = writeln!(std::io::stderr(), "{line}");
            self.last = line;
        }
    }

    /// Leaves the line to others.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn counts(reload: &Progress) -> String {
    let Progress {
        generation,
        slots,
        spawned,
        ready,
        passed,
    } = reload;
    format!(
        "generation {generation}: spawned {spawned}/{slots}, ready {ready}/{slots}, passed {passed}/{slots}"
    )
}

fn bar(reload: &Progress) -> String {
    let Progress {
        slots,
        spawned,
        ready,
        passed,
        ..
    } = *reload;
    format!(
        "{} {}",
        cells(slots.into(), [passed, ready, spawned].map(u64::from)),
        counts(reload)
    )
}

/// `[====>>>---...]`: how many of so many have passed, are ready, are spawned, are missing.
pub(crate) fn cells(slots: u64, so_far: [u64; 3]) -> String {
    let [passed, ready, spawned] = so_far.map(|count| count.min(slots) * WIDTH / slots.max(1));
    let cell = |at: u64| match at {
        _ if at < passed => '=',
        _ if at < ready => '>',
        _ if at < spawned => '-',
        _ => '.',
    };
    format!("[{}]", (0..WIDTH).map(cell).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_tells_spawned_ready_and_passed_apart() {
        let reload = Progress {
            generation: 2,
            slots: 8,
            spawned: 6,
            ready: 4,
            passed: 2,
        };
        assert_eq!(
            bar(&reload),
            "[======>>>>>>------......] generation 2: spawned 6/8, ready 4/8, passed 2/8"
        );
        let none = Progress {
            generation: 2,
            slots: 0,
            spawned: 0,
            ready: 0,
            passed: 0,
        };
        assert!(bar(&none).starts_with("[....."), "no slot, no division");
    }
}
