//! How far a reload is: a bar on a terminal, lines elsewhere.

use crate::api::answer::Answer;
use crate::api::status::Progress;
use std::io::{IsTerminal, Write};

/// The bar's width in characters.
const WIDTH: u32 = 24;

/// The progress that is shown on standard error.
#[derive(Debug)]
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

    /// Shows the progress that an answer reports.
    pub(crate) fn show(&mut self, answer: &Answer) {
        let text = answer.progress.as_deref().unwrap_or_default();
        let mut stderr = std::io::stderr().lock();
        let line = match &answer.reload {
            Some(reload) if reload.slots > 0 && self.terminal => {
                let _ = write!(stderr, "\r\x1b[K{}", bar(reload));
                let _ = stderr.flush();
                self.shown = true;
                return;
            }
            Some(reload) if reload.slots > 0 => counts(reload),
            Some(_) | None => text.to_owned(),
        };
        drop(stderr);
        self.clear();
        // Several facts may leave the counts as they are.
        if line != self.last {
            let _ = writeln!(std::io::stderr(), "{line}");
            self.last = line;
        }
    }

    /// Clears the line, for other output.
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
        "generation {generation}: spawned {spawned}/{slots}, ready {ready}/{slots}, \
         passed {passed}/{slots}"
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
        cells(slots, [passed, ready, spawned]),
        counts(reload)
    )
}

/// Returns `[====>>>---...]`: how many slots have passed, are ready, are spawned, are missing.
pub(crate) fn cells(slots: u16, so_far: [u16; 3]) -> String {
    let of = u32::from(slots.max(1));
    let [passed, ready, spawned] = so_far.map(|count| u32::from(count.min(slots)) * WIDTH / of);
    let cell = |at: u32| match at {
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
    fn the_bar_shows_spawned_ready_and_passed() {
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
