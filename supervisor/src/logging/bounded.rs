//! A writer that never waits for its reader: our own standard error, or the log file.
//!
//! What cannot be written now waits in a bounded backlog: the log's lines up to one bound, then
//! they are counted and dropped; what dead workers have left, up to a lower one; what living
//! workers write never, since their pipes hold it.

use super::output::Output;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// The most bytes that dead workers have in the backlog.
const MAX_DEAD_BACKLOG: usize = 256 << 10;
/// The most bytes in the backlog, so that the log has room left.
pub(super) const MAX_BACKLOG: usize = MAX_DEAD_BACKLOG + (64 << 10);
/// The most time that the reader has for the last lines when the server exits.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// A descriptor and what waits to be written to it.
#[derive(Debug)]
pub(crate) struct BoundedWriter {
    /// `None` is standard error, before its first use.
    output: Option<Output>,
    /// What is to be written before anything else.
    backlog: Vec<u8>,
    /// A living worker's lines were not taken.
    refused: bool,
    /// Lines that found no room, or could not be written.
    dropped: u64,
    /// Why the last write failed, if it did.
    failure: Option<io::Error>,
}

impl BoundedWriter {
    /// Returns a writer to standard error.
    pub(super) const fn stderr() -> Self {
        Self {
            output: None,
            backlog: Vec::new(),
            refused: false,
            dropped: 0,
            failure: None,
        }
    }

    /// Returns a writer to something else.
    pub(super) fn to(output: Output) -> Self {
        Self {
            output: Some(output),
            ..Self::stderr()
        }
    }

    /// Writes to another output from now on, beginning with the backlog.
    pub(super) fn redirect(&mut self, output: Output) {
        self.output = Some(output);
    }

    /// Writes whole lines of a worker, at most a [`PIECE`], or nothing: then `false`.
    pub(crate) fn try_write(&mut self, lines: &[u8]) -> bool {
        let written = if self.flush() { self.write(lines) } else { 0 };
        self.refused = written == 0 && !lines.is_empty();
        if !self.refused {
            // The rest of a line goes out before anything else.
            self.backlog.extend_from_slice(&lines[written..]);
        }
        !self.refused
    }

    /// Writes whole lines of a dead worker now or later, if there is room for them.
    pub(crate) fn write_or_queue(&mut self, lines: &[u8]) {
        self.queue(lines, MAX_DEAD_BACKLOG);
    }

    /// Writes whole lines now or later, if the backlog is not beyond `most` bytes.
    pub(super) fn queue(&mut self, lines: &[u8], most: usize) {
        let written = if self.flush() { self.write(lines) } else { 0 };
        let rest = &lines[written..];
        if written == 0 && self.backlog.len() + rest.len() > most {
            self.dropped += count(rest);
        } else {
            self.backlog.extend_from_slice(rest);
        }
    }

    /// Writes the backlog. Returns whether it is empty now.
    pub(crate) fn flush(&mut self) -> bool {
        if !self.backlog.is_empty() {
            let backlog = std::mem::take(&mut self.backlog);
            let written = self.write(&backlog);
            self.backlog = backlog;
            self.backlog.drain(..written);
        }
        self.backlog.is_empty()
    }

    /// Tries again: standard error may be writable.
    pub(crate) fn unblock(&mut self) {
        self.refused = !self.flush();
    }

    /// Whether something waits to be written.
    pub(crate) fn is_blocked(&self) -> bool {
        self.refused || !self.backlog.is_empty()
    }

    /// Returns how many lines were dropped since the last call.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Returns why nothing can be written, after a write that failed.
    pub(super) fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    /// Returns the backlog, for the next version of the program.
    pub(crate) fn backlog(&self) -> &[u8] {
        &self.backlog
    }

    /// Continues with the backlog of another version. To be called before anything is written.
    pub(crate) fn resume(&mut self, backlog: Vec<u8>) {
        self.backlog = backlog;
    }

    /// Calls `act` with the descriptor by which it can be watched for being writable.
    pub(crate) fn with_descriptor<T>(&mut self, act: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        act(self.output().descriptor())
    }

    /// Gives the reader a last chance. To be called when the server exits.
    pub(crate) fn finish(&mut self) {
        let end = Instant::now() + FLUSH_TIMEOUT;
        while !self.flush() && Instant::now() < end {
            let timeout = PollTimeout::from(10_u8);
            self.with_descriptor(|descriptor| {
                let _ =
                    nix::poll::poll(&mut [PollFd::new(descriptor, PollFlags::POLLOUT)], timeout);
            });
        }
    }

    fn output(&mut self) -> &mut Output {
        self.output.get_or_insert_with(Output::stderr)
    }

    /// Writes what can be written now, and returns how much: all of it when that fails, as when no
    /// reader is left.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let output = self.output();
        let mut written = 0;
        while written < bytes.len() {
            match output.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.dropped += count(&bytes[written..]);
                    self.failure = Some(error);
                    return bytes.len();
                }
            }
        }
        self.failure = None;
        written
    }
}

fn count(lines: &[u8]) -> u64 {
    let lines = lines.split_inclusive(|byte| *byte == b'\n').count();
    u64::try_from(lines).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::output::PIECE;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    /// A writer into a pipe that can be filled.
    fn piped() -> (BoundedWriter, File) {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).expect("a pipe");
        let [reader, writer]: [File; 2] = [reader, writer].map(|end: OwnedFd| end.into());
        (BoundedWriter::to(Output::Own(writer)), reader)
    }

    fn read(reader: &mut File) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; PIECE];
        while let Ok(count) = reader.read(&mut buffer) {
            all.extend_from_slice(&buffer[..count]);
        }
        all
    }

    #[test]
    fn workers_lines_are_written_or_refused_and_the_log_waits() {
        let (mut writer, mut reader) = piped();
        let line = [[b'x'; PIECE - 1].as_slice(), b"\n"].concat();
        let mut count = 0;
        while writer.try_write(&line) {
            count += 1;
        }
        writer.queue(b"log\n", MAX_BACKLOG);
        writer.write_or_queue(b"dead\n");
        assert!(writer.is_blocked() && !writer.try_write(b"worker\n"));
        let read_so_far = read(&mut reader).len();
        assert_eq!(read_so_far, count * PIECE);
        assert!(writer.try_write(b"worker\n") && !writer.is_blocked());
        assert_eq!(read(&mut reader), b"log\ndead\nworker\n");
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let (mut writer, mut reader) = piped();
        while writer.try_write(&[b'\n'; PIECE]) {}
        let line = [[b'y'; 999].as_slice(), b"\n"].concat();
        (0..1000).for_each(|_| writer.write_or_queue(&line));
        assert!(writer.backlog.len() <= MAX_DEAD_BACKLOG);
        let before = writer.take_dropped();
        assert!(before > 700, "{before}");
        (0..1000).for_each(|_| writer.queue(&line, MAX_BACKLOG));
        assert!(writer.backlog.len() <= MAX_BACKLOG && writer.backlog.len() > MAX_DEAD_BACKLOG);
        assert!(writer.take_dropped() > 900);
        while !writer.flush() {
            read(&mut reader);
        }
        assert!(read(&mut reader).ends_with(b"y\n"));
    }

    #[test]
    fn a_reader_that_is_gone_blocks_nothing() {
        let (mut writer, reader) = piped();
        drop(reader);
        assert!(writer.try_write(b"without a reader\n") && !writer.is_blocked());
    }
}
