//! A worker's standard error: a pipe, the line that is not yet whole, and the last words.

use super::outlet::{PIECE, outlet};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How much is read at a time. A worker that writes without end has its turn, and then the others have theirs.
const AT_ONCE: usize = 16 << 10;
/// How much is read after a worker's death, at most: its children may write on.
const AFTER_DEATH: usize = 1 << 20;
/// How much of the last words is kept.
pub(crate) const LAST_WORDS: usize = 4096;
/// What a worker writes to its standard error.
#[derive(Debug)]
pub(crate) struct Capture {
    /// `None` when everybody who could write has closed it.
    pipe: Option<File>,
    /// What was read and not passed on: the beginning of a line, or, while our own standard error is blocked, at most
    /// what is read at a time.
    held: Vec<u8>,
    /// The line at the beginning of `held` is the rest of one that was cut and had this priority, such as `<4>`, or none.
    cut: Option<Vec<u8>>,
    last_words: VecDeque<u8>,
}

/// What came of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Something, or nothing for now; what could be passed on was.
    Flowing,
    /// Something that cannot be passed on now.
    Blocked,
    /// Nothing more will come. Before the descriptor is dropped, it is not to be watched any more.
    Ended,
}

impl Capture {
    /// A new pipe; the worker gets the other end.
    ///
    /// # Errors
    /// When there can be none.
    pub(crate) fn open() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        // Each end has a description of its own: the worker's blocks, as it would expect.
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok((Self::adopted(Some(ours), Vec::new(), &[], None), theirs))
    }

    /// Goes on where another version of the program was.
    pub(crate) fn adopted(
        pipe: Option<OwnedFd>,
        held: Vec<u8>,
        last_words: &[u8],
        cut: Option<Vec<u8>>,
    ) -> Self {
        Self {
            pipe: pipe.map(File::from),
            held,
            cut,
            last_words: last_words.iter().copied().collect(),
        }
    }

    /// The pipe's end that is to be watched.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// What was read and not passed on, and the priority of the line that it begins with, if that was cut.
    pub(crate) fn held(&self) -> (&[u8], Option<&[u8]>) {
        (&self.held, self.cut.as_deref())
    }

    /// The last that was read.
    pub(crate) fn last_words(&self) -> Vec<u8> {
        self.last_words.iter().copied().collect()
    }

    /// Reads once, and passes on.
    pub(crate) fn relay(&mut self) -> Heard {
        if !self.pass_on() {
            return Heard::Blocked;
        }
        match self.read() {
            Ok(0) => {
                self.end(&mut |lines| outlet().pass_on(lines));
                Heard::Ended
            }
            Ok(_) if self.pass_on() => Heard::Flowing,
            Ok(_) => Heard::Blocked,
            Err(_) => Heard::Flowing,
        }
    }

    /// Passes on what is held, in whole lines; `false` when that is not possible now.
    pub(crate) fn pass_on(&mut self) -> bool {
        self.deal(&mut |lines| outlet().pass_on(lines), false)
    }

    /// The worker is dead: reads what it has left in the pipe, passes it on now or later, and gives its last words.
    pub(crate) fn reap(mut self) -> Vec<u8> {
        let mut bequeath = |lines: &[u8]| {
            outlet().bequeath(lines);
            true
        };
        let mut read = 0;
        while read < AFTER_DEATH {
            match self.read() {
                Ok(count @ 1..) => read += count,
                Ok(0) | Err(_) => break,
            }
            self.deal(&mut bequeath, false);
        }
        self.end(&mut bequeath);
        self.last_words()
    }

    /// Nothing follows: the last line is whole, with or without its end. The pipe is closed by whoever owns this.
    fn end(&mut self, take: &mut dyn FnMut(&[u8]) -> bool) {
        self.deal(take, true);
    }

    /// Lets go of the pipe.
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
        let last = &read[read.len().saturating_sub(LAST_WORDS)..];
        let over = (self.last_words.len() + last.len()).saturating_sub(LAST_WORDS);
        self.last_words.drain(..over);
        self.last_words.extend(last);
        Ok(count)
    }

    /// Gives out what is held, in whole lines and in pieces of at most [`PIECE`] bytes. A line that does not fit is cut,
    /// and each part of it is a line with its priority. `take` tells whether it has taken a piece.
    fn deal(&mut self, take: &mut dyn FnMut(&[u8]) -> bool, last: bool) -> bool {
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
            // Thousands of quiet workers hold nothing.
            self.held = Vec::new();
        }
        taken
    }
}

/// journald's priority at the beginning of a line, such as `<4>`, or nothing.
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
        capture.deal(
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
        assert!(!capture.deal(&mut |_| false, false));
        assert_eq!(capture.held().0, b"one\ntwo\n");
    }

    #[test]
    fn the_last_words_are_the_last_4_kib() {
        let (mut capture, theirs) = Capture::open().expect("a pipe");
        for number in 0..2000 {
            nix::unistd::write(&theirs, format!("line {number}\n").as_bytes()).expect("room");
            while capture.read().is_ok_and(|count| count > 0) {}
            capture.held.clear();
        }
        let words = capture.last_words();
        assert_eq!(words.len(), LAST_WORDS);
        assert!(words.ends_with(b"line 1999\n"));
        drop(theirs);
        assert!(matches!(capture.read(), Ok(0)));
    }
}
