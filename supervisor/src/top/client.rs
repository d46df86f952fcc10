//! A client of the control socket that never waits for an answer: each request has a connection of
//! its own, and answers are read as they come.

use super::TopError;
use crate::api::answer::{Answer, Json};
use crate::api::events::Event;
use crate::api::request::Request;
use crate::api::status::Status;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::io;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the server has to answer with its status.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest line that is read, in bytes; more than any answer has.
const MAX_LINE: usize = 16 << 20;
/// Past events that are requested at the beginning.
const RECENT: u32 = 50;

/// News from the server.
#[derive(Debug)]
pub(crate) enum News {
    /// Its status.
    Status(Box<Status>),
    /// An event.
    Event(Event),
    /// A command is done, or is not: the text for the operator.
    Verdict(Result<String, String>),
    /// A command is in progress.
    Progress(String),
    /// It does not answer: why.
    Silence(String),
}

/// The purpose of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Status,
    Events,
    Command,
}

#[derive(Debug)]
struct Conversation {
    purpose: Purpose,
    stream: UnixStream,
    input: Vec<u8>,
    /// By when it must be answered.
    until: Option<Instant>,
}

/// The client, and its open conversations.
#[derive(Debug)]
pub(crate) struct Client {
    path: PathBuf,
    open: Vec<Conversation>,
    /// The newest event.
    last: Option<u64>,
    news: Vec<News>,
}

impl Client {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            open: Vec::new(),
            last: None,
            news: Vec::new(),
        }
    }

    /// Checks that there is a server at all.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub(crate) fn check(&self) -> Result<(), TopError> {
        self.connect()
            .map(drop)
            .map_err(|error| TopError::Unreachable {
                path: self.path.clone(),
                error,
            })
    }

    /// Requests the status, unless the last request is still open.
    pub(crate) fn poll_status(&mut self, now: Instant) {
        if !self.asks(Purpose::Status) {
            self.ask(
                Purpose::Status,
                &Request::Status {},
                Some(now + STATUS_TIMEOUT),
            );
        }
    }

    /// Follows the events, unless it does already.
    pub(crate) fn follow(&mut self) {
        if !self.asks(Purpose::Events) {
            let recent = self.last.is_none().then_some(RECENT);
            self.ask(
                Purpose::Events,
                &Request::Events {
                    follow: true,
                    since: self.last,
                    recent,
                },
                None,
            );
        }
    }

    /// Sends a command.
    pub(crate) fn command(&mut self, request: Request) {
        self.news
            .push(News::Progress("asking the server".to_owned()));
        self.ask(Purpose::Command, &request, None);
    }

    fn asks(&self, purpose: Purpose) -> bool {
        self.open
            .iter()
            .any(|conversation| conversation.purpose == purpose)
    }

    fn ask(&mut self, purpose: Purpose, request: &Request, until: Option<Instant>) {
        let asked = self.connect().and_then(|mut stream| {
            // A line fits into the buffer of a socket that was just connected.
            stream.write_all(&request.line())?;
            Ok(stream)
        });
        match asked {
            Ok(stream) => self.open.push(Conversation {
                purpose,
                stream,
                input: Vec::new(),
                until,
            }),
            Err(error) => match purpose {
                Purpose::Command => {
                    let reason = format!("not done: {}", reason(&error));
                    self.news.push(News::Verdict(Err(reason)));
                }
                Purpose::Status => self.news.push(News::Silence(reason(&error))),
                Purpose::Events => {}
            },
        }
    }

    /// Connects, or fails at once where it would have to wait.
    fn connect(&self) -> io::Result<UnixStream> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(&self.path)?)?;
        Ok(UnixStream::from(socket))
    }

    /// Returns the descriptors to wait for.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.open
            .iter()
            .map(|conversation| conversation.stream.as_fd())
            .collect()
    }

    /// Returns when to receive at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let soon = (!self.news.is_empty()).then(Instant::now);
        self.open
            .iter()
            .filter_map(|conversation| conversation.until)
            .chain(soon)
            .min()
    }

    /// Returns the news since the last time.
    pub(crate) fn receive(&mut self, now: Instant) -> Vec<News> {
        let mut news = std::mem::take(&mut self.news);
        for mut conversation in std::mem::take(&mut self.open) {
            let ended = conversation.read();
            let mut done = false;
            for line in conversation.lines() {
                done |= self.understand(conversation.purpose, &line, &mut news);
            }
            let late = conversation.until.is_some_and(|until| until <= now);
            match (done, ended || late, conversation.purpose) {
                (true, _, _) | (false, true, Purpose::Events) => {}
                (false, true, Purpose::Status) => {
                    let why = if late {
                        "no answer"
                    } else {
                        "the server has gone"
                    };
                    news.push(News::Silence(why.to_owned()));
                }
                (false, true, Purpose::Command) => {
                    let reason = "not known: the server closed the connection without a verdict";
                    news.push(News::Verdict(Err(reason.to_owned())));
                }
                (false, false, _) => self.open.push(conversation),
            }
        }
        news
    }

    /// Reads a line into `news`; returns whether it is the last one.
    fn understand(&mut self, purpose: Purpose, line: &[u8], news: &mut Vec<News>) -> bool {
        let answer = match Answer::read(line) {
            Ok(answer) => answer,
            Err(error) => {
                match purpose {
                    Purpose::Status => news.push(News::Silence(error.to_string())),
                    Purpose::Command => {
                        news.push(News::Verdict(Err(format!("not known: {error}"))));
                    }
                    Purpose::Events => {}
                }
                return true;
            }
        };
        match purpose {
            Purpose::Status => news.push(match &answer.status {
                Some(status) => match status.read() {
                    Ok(status) => News::Status(Box::new(status)),
                    Err(_) => News::Silence("its status has other kinds of values".to_owned()),
                },
                None => News::Silence(answer.reason().to_owned()),
            }),
            Purpose::Events => {
                if let Some(Ok(event)) = answer.event.as_ref().map(Json::read) {
                    self.last = Some(event.seq);
                    news.push(News::Event(event));
                }
            }
            Purpose::Command if answer.ok.is_some() => news.push(News::Verdict(verdict(&answer))),
            Purpose::Command => news.extend(answer.progress.clone().map(News::Progress)),
        }
        answer.ok.is_some()
    }
}

/// Returns why a connection failed, without the number of the error.
fn reason(error: &io::Error) -> String {
    let errno = error.raw_os_error().map(nix::errno::Errno::from_raw);
    errno.map_or_else(|| error.to_string(), |errno| errno.desc().to_owned())
}

/// Returns the verdict on a command, as text for the operator.
fn verdict(answer: &Answer) -> Result<String, String> {
    if answer.ok != Some(true) {
        return Err(format!("not done: {}", answer.reason()));
    }
    Ok(match answer {
        Answer {
            slot: Some(slot),
            worker: Some(worker),
            ..
        } => format!("done: worker {worker} serves slot {slot}"),
        Answer {
            slot: Some(slot), ..
        } => format!("done: slot {slot} is empty"),
        Answer {
            generation: Some(generation),
            ..
        } => format!("done: generation {generation} serves"),
        Answer {
            scaled: Some((from, to)),
            ..
        } => format!("done: {to} workers (before: {from})"),
        _ => "done".to_owned(),
    })
}

impl Conversation {
    /// Reads what is there; returns whether the connection has ended.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(length) if self.input.len() + length <= MAX_LINE => {
                    self.input.extend_from_slice(&buffer[..length]);
                }
                Ok(_) => return true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }

    /// Returns the complete lines.
    fn lines(&mut self) -> Vec<Vec<u8>> {
        let Some(end) = self.input.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.input.split_off(end + 1);
        let lines = std::mem::replace(&mut self.input, rest);
        lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(<[u8]>::to_vec)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_put_into_words() {
        let scaled = Answer {
            scaled: Some((2, 4)),
            ..Answer::done()
        };
        assert_eq!(
            verdict(&scaled),
            Ok("done: 4 workers (before: 2)".to_owned())
        );
        assert_eq!(
            verdict(&Answer::failed("no")),
            Err("not done: no".to_owned())
        );
    }
}
