//! A worker's standard error: a pipe, the line that is not yet complete, and the tail of the
//! output.

use super::writer::stderr_writer;
use crate::logging::output::PIECE;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most bytes that are read at a time, so that a worker that writes without end leaves others
/// their turn.
const AT_ONCE: usize = 16 << 10;
/// The most bytes that are read after a worker's death: its children may write on.
const AFTER_DEATH: usize = 1 << 20;
/// The length of the tail, in bytes.
pub(crate) const TAIL: usize = 4096;

/// What a worker writes to its standard error.
#[derive(Debug)]
pub(crate) struct Capture {
    /// `None` when every process that could write has closed it.
    pipe: Option<File>,
    /// What was read and not forwarded: the beginning of a line, or, while our own standard error
    /// is blocked, at most what is read at a time.
    held: Vec<u8>,
    /// The priority, such as `<4>` or nothing, of a line whose rest begins `held`, if it was cut.
    cut: Option<Vec<u8>>,
    tail: VecDeque<u8>,
}

/// The outcome of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    /// Everything that was read has been forwarded, as far as its lines are complete.
    Flowing,
    /// Something cannot be forwarded now.
    Blocked,
    /// The end. The descriptor must be unwatched before it is dropped.
    Ended,
}

impl Capture {
    /// Makes a pipe; the worker gets the other end.
    ///
    /// # Errors
    /// Those of pipe2(2) and fcntl(2).
    pub(crate) fn open() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        // Each end is an open file of its own: the worker's blocks, as it would expect.
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok((Self::adopted(Some(ours), Vec::new(), &[], None), theirs))
    }

    /// Continues where another version of the program was.
    pub(crate) fn adopted(
        pipe: Option<OwnedFd>,
        held: Vec<u8>,
        tail: &[u8],
        cut: Option<Vec<u8>>,
    ) -> Self {
        Self {
            pipe: pipe.map(File::from),
            held,
            cut,
            tail: tail.iter().copied().collect(),
        }
    }

    /// Returns the end of the pipe that is to be watched.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Returns what was read and not forwarded, and the priority of its first line, if that was
    /// cut.
    pub(crate) fn held(&self) -> (&[u8], Option<&[u8]>) {
        (&self.held, self.cut.as_deref())
    }

    /// Returns the last bytes that were read.
    pub(crate) fn tail(&self) -> Vec<u8> {
        self.tail.iter().copied().collect()
    }

    /// Reads once and forwards what it can.
    pub(crate) fn forward(&mut self) -> ReadOutcome {
        if !self.try_write() {
            return ReadOutcome::Blocked;
        }
        match self.read() {
            Ok(0) => {
                self.end(&mut |lines| stderr_writer().try_write(lines));
                ReadOutcome::Ended
            }
            Ok(_) if self.try_write() => ReadOutcome::Flowing,
            Ok(_) => ReadOutcome::Blocked,
            Err(_) => ReadOutcome::Flowing,
        }
    }

    /// Forwards what is held, in whole lines. Returns whether that was possible.
    pub(crate) fn try_write(&mut self) -> bool {
        self.emit(&mut |lines| stderr_writer().try_write(lines), false)
    }

    /// Reads what a dead worker has left in the pipe, forwards it now or later, and returns the
    /// tail.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let mut write_or_queue = |lines: &[u8]| {
            stderr_writer().write_or_queue(lines);
            true
        };
        let mut read = 0;
        while read < AFTER_DEATH {
            match self.read() {
                Ok(count @ 1..) => read += count,
                Ok(0) | Err(_) => break,
            }
            self.emit(&mut write_or_queue, false);
        }
        self.end(&mut write_or_queue);
        self.tail()
    }

    /// Reads what a dead process has left in the pipe, for the tail alone, and returns that.
    pub(crate) fn tail_of_dead(&mut self) -> Vec<u8> {
        let mut read = 0;
        while read < AFTER_DEATH
            && let Ok(count @ 1..) = self.read()
        {
            self.held.clear();
            read += count;
        }
        self.tail()
    }

    /// Reads once, for the tail alone. Returns whether more may follow.
    pub(crate) fn keep_tail(&mut self) -> bool {
        let read = self.read();
        self.held.clear();
        !matches!(read, Ok(0))
    }

    /// Completes the last line, as nothing follows. The owner closes the pipe.
    fn end(&mut self, take: &mut dyn FnMut(&[u8]) -> bool) {
        self.emit(take, true);
    }

    /// Closes the pipe.
    pub(crate) fn close(&mut self) {
        self.pipe = None;
    }

    fn read(&mut self) -> io::Result<usize> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(0);
        };
        let mut buffer = [0; AT_ONCE];
        let count = pipe.read(&mut buffer)?;
        let read = &buffer[..count];
        self.held.extend_from_slice(read);
        let last = &read[read.len().saturating_sub(TAIL)..];
        let over = (self.tail.len() + last.len()).saturating_sub(TAIL);
        self.tail.drain(..over);
        self.tail.extend(last);
        Ok(count)
    }

    /// Passes what is held to `take`, in whole lines and in pieces of at most [`PIECE`] bytes. A
    /// line that does not fit is cut, and each part becomes a line with its priority. `take`
    /// returns whether it took the piece.
    fn emit(&mut self, take: &mut dyn FnMut(&[u8]) -> bool, last: bool) -> bool {
        let mut at = 0;
        let taken = loop {
            let rest = &self.held[at..];
            let priority = self.cut.as_deref().unwrap_or_default();
            let room = PIECE - priority.len();
            let window = &rest[..rest.len().min(room)];
            // The rest of a cut line goes alone, with its priority before it.
            let end = match self.cut {
                Some(_) => window.iter().position(|byte| *byte == b'\n'),
                None => window.iter().rposition(|byte| *byte == b'\n'),
            };
            let (length, whole) = match end {
                Some(end) => (end + 1, true),
                None if rest.len() >= room => (boundary(rest, room - 1), false),
                None if last && !rest.is_empty() => (rest.len(), false),
                None => break true,
            };
            let taken = if self.cut.is_none() && whole {
                take(&rest[..length])
            } else {
                let end: &[u8] = if whole { b"" } else { b"\n" };
                take(&[priority, &rest[..length], end].concat())
            };
            if !taken {
                break false;
            }
            if whole {
                self.cut = None;
            } else if self.cut.is_none() {
                self.cut = Some(priority_of(rest));
            }
            at += length;
        };
        self.held.drain(..at);
        if self.held.is_empty() {
            // Thousands of silent workers hold no memory.
            self.held = Vec::new();
        }
        taken
    }
}

/// Returns journald's priority at the beginning of a line, such as `<4>`, or nothing.
fn priority_of(line: &[u8]) -> Vec<u8> {
    match line {
        [b'<', b'0'..=b'7', b'>', ..] => line[..3].to_vec(),
        _ => Vec::new(),
    }
}

/// The last place up to `at` that is not within a character.
fn boundary(text: &[u8], at: usize) -> usize {
    (at.saturating_sub(3)..=at)
        .rev()
        .find(|place| text[*place] & 0xc0 != 0x80)
        .unwrap_or(at)
}

/// What `JOURNAL_STREAM` says of a descriptor.
pub(crate) fn stream(descriptor: impl AsFd) -> Option<String> {
    fstat(descriptor)
        .ok()
        .map(|status| format!("{}:{}", status.st_dev, status.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(text: &[u8]) -> Capture {
        Capture::adopted(None, text.to_vec(), b"", None)
    }

    fn dealt(capture: &mut Capture, last: bool) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        capture.emit(
            &mut |piece| {
                pieces.push(piece.to_vec());
                true
            },
            last,
        );
        pieces
    }

    #[test]
    fn whole_lines_go_together_and_the_rest_waits() {
        let mut capture = capture(b"one\ntwo\nthr");
        assert_eq!(dealt(&mut capture, false), [b"one\ntwo\n"]);
        assert_eq!(capture.held(), (&b"thr"[..], None));
        assert_eq!(dealt(&mut capture, true), [b"thr\n"]);
    }

    #[test]
    fn a_long_line_is_cut_and_each_part_has_its_priority() {
        for prefix in ["<4>", ""] {
            let long = format!("{prefix}{}\nnext\n", "ä".repeat(5000));
            let mut capture = capture(long.as_bytes());
            let pieces = dealt(&mut capture, false);
            assert!(
                pieces
                    .iter()
                    .all(|piece| piece.len() <= PIECE && piece.ends_with(b"\n"))
            );
            let texts: Vec<String> = pieces
                .into_iter()
                .map(|piece| String::from_utf8(piece).expect("whole characters"))
                .collect();
            let (next, parts) = texts.split_last().expect("pieces");
            assert_eq!(next, "next\n");
            assert!(parts.len() > 2 && parts.iter().all(|part| part.starts_with(prefix)));
            let joined: String = parts
                .iter()
                .map(|part| part[prefix.len()..].trim_end_matches('\n'))
                .collect();
            assert_eq!(joined, "ä".repeat(5000));
            assert_eq!(capture.held(), (&b""[..], None));
        }
    }

    #[test]
    fn what_is_refused_is_held() {
        let mut capture = capture(b"one\ntwo\n");
        assert!(!capture.emit(&mut |_| false, false));
        assert_eq!(capture.held().0, b"one\ntwo\n");
    }

    #[test]
    fn the_tail_are_the_last_4_kib() {
        let (mut capture, theirs) = Capture::open().expect("a pipe");
        for number in 0..2000 {
            nix::unistd::write(&theirs, format!("line {number}\n").as_bytes()).expect("room");
            while capture.read().is_ok_and(|count| count > 0) {}
            capture.held.clear();
        }
        let words = capture.tail();
        assert_eq!(words.len(), TAIL);
        assert!(words.ends_with(b"line 1999\n"));
        drop(theirs);
        // A process that another test has just forked holds it until its exec.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !matches!(capture.read(), Ok(0)) {
            assert!(std::time::Instant::now() < end, "no end of file");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
