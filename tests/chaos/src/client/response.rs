//! Reads an answer as it comes and compares it with what it must be, byte by byte.

use super::ledger::Failure;
use crate::pattern::Pattern;
use crate::service::{BUILD, PID, REQUEST};
use std::time::{Duration, Instant};

/// No head is longer; what is, is none.
const LONGEST_HEAD: usize = 8 * 1024;

/// A request that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// Its number, unique in the run.
    pub(super) id: u64,
    /// What the answer's body must be.
    pub(super) body: Pattern,
    /// Since when it is due.
    pub(super) due: Instant,
    /// How long its handler takes on purpose.
    pub(super) takes: Duration,
}

/// What an answer's head says.
#[derive(Debug, Default, Clone)]
pub(super) struct Head {
    /// The server closes after it.
    pub(super) close: bool,
    /// Who answered; 0 if it does not say.
    pub(super) pid: u32,
    /// Which build answered.
    pub(super) build: String,
}

/// An error: its kind, and more words.
pub(super) type Wrong = (Failure, String);

#[derive(Debug, Default)]
pub(super) struct Reader {
    head: Vec<u8>,
    body: Option<(Head, u64)>,
}

impl Reader {
    /// Whether a part of an answer has come.
    pub(super) fn midway(&self) -> bool {
        !self.head.is_empty() || self.body.is_some()
    }

    /// How much of it has come, for people.
    pub(super) fn progress(&self, asked: Option<&Asked>) -> String {
        match (&self.body, asked) {
            (Some((_, done)), Some(asked)) => {
                format!("after {done} of {} bytes", asked.body.length)
            }
            _ => format!("after {} bytes of the head", self.head.len()),
        }
    }

    /// Takes bytes up to the answer's end. `Some` when the answer is whole and right.
    pub(super) fn feed(&mut self, bytes: &mut &[u8], asked: &Asked) -> Result<Option<Head>, Wrong> {
        if self.body.is_none() {
            let Some(head) = self.read_head(bytes)? else {
                return Ok(None);
            };
            self.body = Some((parse(&head, asked)?, 0));
        }
        let Some((head, done)) = &mut self.body else {
            return Ok(None);
        };
        let left = asked.body.length - *done;
        let (piece, rest) =
            bytes.split_at(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        if let Some(at) = asked.body.differs(*done, piece) {
            return Err((
                Failure::WrongBytes,
                format!("byte {at} of the body of request {}", asked.id),
            ));
        }
        *bytes = rest;
        *done += piece.len() as u64;
        if *done < asked.body.length {
            return Ok(None);
        }
        let head = std::mem::take(head);
        self.body = None;
        Ok(Some(head))
    }

    /// The whole head, without the empty line.
    fn read_head(&mut self, bytes: &mut &[u8]) -> Result<Option<Vec<u8>>, Wrong> {
        const END: &[u8] = b"\r\n\r\n";
        let known = self.head.len();
        self.head.extend_from_slice(bytes);
        let start = self.head.len().min(9);
        if self.head[..start] != b"HTTP/1.1 "[..start] {
            let text = String::from_utf8_lossy(&self.head[..self.head.len().min(40)]).into_owned();
            return Err((Failure::Malformed, format!("no status line but {text:?}")));
        }
        let from = known.saturating_sub(END.len() - 1);
        let found = self.head[from..]
            .windows(END.len())
            .position(|window| window == END);
        let Some(at) = found.map(|at| from + at) else {
            *bytes = &[];
            if self.head.len() > LONGEST_HEAD {
                return Err((Failure::Malformed, "a head without an end".to_owned()));
            }
            return Ok(None);
        };
        *bytes = &bytes[at + END.len() - known..];
        let mut head = std::mem::take(&mut self.head);
        head.truncate(at);
        Ok(Some(head))
    }
}

fn parse(head: &[u8], asked: &Asked) -> Result<Head, Wrong> {
    let malformed = |what: &str| {
        (
            Failure::Malformed,
            format!("{what} in the answer to request {}", asked.id),
        )
    };
    let head = std::str::from_utf8(head).map_err(|_| malformed("no text"))?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .unwrap_or("none");
    if status != "200" {
        return Err((
            Failure::WrongStatus,
            format!("status {status} for request {}", asked.id),
        ));
    }
    let mut found = Head::default();
    let mut length = None;
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| malformed("a line that is no header"))?;
        let value = value.trim();
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        if is("content-length") {
            length = Some(
                value
                    .parse::<u64>()
                    .map_err(|_| malformed("a length that is no number"))?,
            );
        } else if is("connection") {
            found.close = value.eq_ignore_ascii_case("close");
        } else if is(REQUEST) {
            if value.parse() != Ok(asked.id) {
                return Err((
                    Failure::WrongBytes,
                    format!("the answer to request {value}, for request {}", asked.id),
                ));
            }
        } else if is(PID) {
            found.pid = value.parse().unwrap_or(0);
        } else if is(BUILD) {
            value.clone_into(&mut found.build);
        }
    }
    match length {
        None => Err(malformed("no length")),
        Some(length) if length != asked.body.length => {
            let wanted = asked.body.length;
            Err((
                Failure::WrongBytes,
                format!(
                    "{length} bytes instead of {wanted} for request {}",
                    asked.id
                ),
            ))
        }
        Some(_) => Ok(found),
    }
}
