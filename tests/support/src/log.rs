//! A process's output, read line by line as it comes.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The lines that a process has written so far; more come while it lives.
#[derive(Debug, Clone, Default)]
pub struct Log {
    shared: Arc<(Mutex<Lines>, Condvar)>,
    /// The pipe that the lines come from, to see whether more wait in it.
    pipe: Option<Arc<OwnedFd>>,
}

/// As much as a pipe holds: one read takes all that was in it.
const PIPE: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Lines {
    all: Vec<String>,
    /// The last writer has closed the pipe.
    ended: bool,
    /// How many reads there have been.
    reads: u64,
    /// The beginning of a line whose end has not been read yet.
    rest: Vec<u8>,
}

impl Lines {
    fn add(&mut self, read: &[u8]) {
        self.rest.extend_from_slice(read);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return;
        };
        let rest = self.rest.split_off(end + 1);
        self.flush();
        self.rest = rest;
    }

    /// Takes what was read so far as whole lines.
    fn flush(&mut self) {
        let text = String::from_utf8_lossy(&self.rest).into_owned();
        let lines = text.split_terminator('\n');
        self.all
            .extend(lines.map(|line| line.trim_end().to_owned()));
        self.rest.clear();
    }
}

impl Log {
    /// Reads `output` in a thread of its own until its last writer closes it.
    ///
    /// # Panics
    /// When its descriptor cannot be duplicated.
    pub fn read(mut output: impl Read + AsFd + Send + 'static) -> Self {
        let copy = output.as_fd().try_clone_to_owned().expect("a descriptor");
        let log = Self {
            shared: Arc::default(),
            pipe: Some(Arc::new(copy)),
        };
        let writer = log.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; PIPE];
            let mut ended = false;
            while !ended {
                let _ = waiting(output.as_fd(), PollTimeout::NONE);
                // Read under the lock, so that a line is either in the pipe or in `all`.
                let mut lines = writer.guard();
                match output.read(&mut buffer) {
                    Ok(length @ 1..) => lines.add(&buffer[..length]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => ended = true,
                }
                if ended {
                    lines.flush();
                }
                lines.ended = ended;
                lines.reads += 1;
                drop(lines);
                writer.shared.1.notify_all();
            }
        });
        log
    }

    /// The lines, with all that was written before the call.
    fn up_to_date(&self) -> MutexGuard<'_, Lines> {
        let lines = self.guard();
        let more = |pipe: &Arc<OwnedFd>| waiting(pipe.as_fd(), PollTimeout::ZERO);
        if lines.ended || !self.pipe.as_ref().is_some_and(more) {
            return lines;
        }
        let before = lines.reads;
        let read = |lines: &mut Lines| lines.reads == before && !lines.ended;
        let read = self.shared.1.wait_while(lines, read);
        read.expect("no thread panics while it holds the log")
    }

    fn guard(&self) -> MutexGuard<'_, Lines> {
        self.shared
            .0
            .lock()
            .expect("no thread panics while it holds the log")
    }

    /// Returns all lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.up_to_date().all.clone()
    }

    /// Counts the lines so far that contain `text`.
    pub fn count(&self, text: &str) -> usize {
        self.up_to_date()
            .all
            .iter()
            .filter(|line| line.contains(text))
            .count()
    }

    /// All lines there will ever be: waits until the last writer has closed the pipe, or for
    /// `limit` when a process that was left behind still could.
    ///
    /// # Panics
    /// When a thread has panicked while it held the log.
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
                // Not poisoned by the panic: the same log is printed again when the server is
                // dropped.
                drop(lines);
                panic!("no line `{what}` within {limit:?} in:\n  {all}");
            }
            let woken = self.shared.1.wait_timeout(lines, left);
            lines = woken.expect("no thread panics while it holds the log").0;
        }
    }
}

/// Waits until a pipe can be read or has ended.
fn waiting(pipe: std::os::fd::BorrowedFd<'_>, limit: PollTimeout) -> bool {
    let mut one = [PollFd::new(pipe, PollFlags::POLLIN)];
    poll(&mut one, limit).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_before_the_call_is_there() {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let log = Log::read(reader);
        for number in 1..=1000 {
            let line = format!("line {number}\n");
            std::io::Write::write_all(&mut writer, line.as_bytes()).expect("room in the pipe");
            assert_eq!(log.count("line"), number);
        }
        std::io::Write::write_all(&mut writer, b"no end").expect("room in the pipe");
        drop(writer);
        let lines = log.all(Duration::from_secs(10));
        assert_eq!((lines.len(), lines[1000].as_str()), (1001, "no end"));
    }

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
