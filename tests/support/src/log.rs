//! A process's output, read line by line as it comes.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The lines that a process has written so far; more come while it lives.
#[derive(Debug, Clone, Default)]
pub struct Log {
    shared: Arc<(Mutex<Lines>, Condvar)>,
}

#[derive(Debug, Default)]
struct Lines {
    all: Vec<String>,
    /// Nobody can write any more.
    ended: bool,
}

impl Log {
    /// Reads `output` in a thread of its own until its last writer closes it.
    pub fn read(output: impl Read + Send + 'static) -> Self {
        let log = Self::default();
        let writer = log.clone();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output
                .read_until(b'\n', &mut line)
                .is_ok_and(|length| length > 0)
            {
                writer
                    .guard()
                    .all
                    .push(String::from_utf8_lossy(&line).trim_end().to_owned());
                writer.shared.1.notify_all();
                line.clear();
            }
            writer.guard().ended = true;
            writer.shared.1.notify_all();
        });
        log
    }

    fn guard(&self) -> MutexGuard<'_, Lines> {
        self.shared
            .0
            .lock()
            .expect("no thread panics while it holds the log")
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.guard().all.clone()
    }

    /// How many lines so far contain `text`.
    pub fn count(&self, text: &str) -> usize {
        self.guard()
            .all
            .iter()
            .filter(|line| line.contains(text))
            .count()
    }

    /// All lines there will ever be: waits until nobody can write any more, or for `limit` when a process that was left
    /// behind still could.
    pub fn all(&self, limit: Duration) -> Vec<String> {
        let waited = self
            .shared
            .1
            .wait_timeout_while(self.guard(), limit, |lines| !lines.ended);
        waited
            .expect("no thread panics while it holds the log")
            .0
            .all
            .clone()
    }

    /// Waits for a line that contains `text`, and returns it. Lines from before the call count too.
    ///
    /// # Panics
    /// When none comes within `limit`, with the whole log.
    #[track_caller]
    pub fn wait_for(&self, text: &str, limit: Duration) -> String {
        self.wait_by(text, limit, |line| line.contains(text))
    }

    /// Waits for the first line that `wanted` accepts; `what` names it in the panic.
    ///
    /// # Panics
    /// As for [`Log::wait_for`].
    #[track_caller]
    pub fn wait_by(&self, what: &str, limit: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + limit;
        let mut lines = self.guard();
        loop {
            if let Some(line) = lines.all.iter().find(|line| wanted(line)) {
                return line.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let all = lines.all.join("\n  ");
                // Not poisoned by the panic: the same log is printed again when the server is dropped.
                drop(lines);
                panic!("no line `{what}` within {limit:?} in:\n  {all}");
            }
            let woken = self.shared.1.wait_timeout(lines, left);
            lines = woken.expect("no thread panics while it holds the log").0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_whether_they_came_before_or_come_later() {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let log = Log::read(reader);
        std::io::Write::write_all(&mut writer, b"one\ntwo\n").expect("a pipe takes two lines");
        assert_eq!(log.wait_for("tw", Duration::from_secs(10)), "two");
        assert_eq!(log.wait_for("one", Duration::ZERO), "one");
        assert_eq!(log.count("o"), 2);
    }
}
