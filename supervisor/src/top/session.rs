//! What is asked of the server, without ever waiting for it: each question is a connection of its own, and answers are taken
//! as they come.

use super::control::verdict;
use crate::control::Request;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the server has for a picture.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than any answer has.
const LONGEST: usize = 16 << 20;
/// Events that are asked for in the beginning.
const RECENT: u32 = 50;

/// What the server tells.
#[derive(Debug, PartialEq)]
pub(crate) enum News {
    /// The status.
    Picture(Value),
    /// Something has happened.
    Event(Value),
    /// A command is done, or is not.
    Verdict(Result<String, String>),
    /// A command is under way.
    Progress(String),
    /// It does not answer: why.
    Silence(String),
}

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Status,
    Events,
    Command,
}

#[derive(Debug)]
struct Question {
    about: About,
    stream: UnixStream,
    heard: Vec<u8>,
    /// By when it must be answered.
    until: Option<Instant>,
}

/// All questions that are open.
#[derive(Debug)]
pub(crate) struct Session {
    path: PathBuf,
    open: Vec<Question>,
    /// The newest event.
    last: Option<u64>,
    news: Vec<News>,
}

impl Session {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            open: Vec::new(),
            last: None,
            news: Vec::new(),
        }
    }

    /// Looks whether there is a server at all.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.connect().map(drop).map_err(|reason| {
            let path = self.path.display();
            format!("cannot reach the server at {path}: {reason} (is the server running? --control or --name names another one)")
        })
    }

    /// Asks for a picture, unless the last one is still awaited.
    pub(crate) fn look(&mut self, now: Instant) {
        if !self.asks(About::Status) {
            self.ask(About::Status, &Request::Status, Some(now + PATIENCE));
        }
    }

    /// Listens to events, unless it does already.
    pub(crate) fn follow(&mut self) {
        if !self.asks(About::Events) {
            let recent = self.last.is_none().then_some(RECENT);
            self.ask(
                About::Events,
                &Request::Events {
                    follow: true,
                    since: self.last,
                    recent,
                },
                None,
            );
        }
    }

    /// Asks for something to be done.
    pub(crate) fn command(&mut self, request: Request) {
        self.news
            .push(News::Progress("asking the server".to_owned()));
        self.ask(About::Command, &request, None);
    }

    fn asks(&self, about: About) -> bool {
        self.open.iter().any(|question| question.about == about)
    }

    fn ask(&mut self, about: About, request: &Request, until: Option<Instant>) {
        let asked = self.connect().and_then(|mut stream| {
            let mut line = serde_json::to_vec(request).map_err(|error| error.to_string())?;
            line.push(b'\n');
            // A line fits into the socket of whoever has just accepted, or will.
            stream.write_all(&line).map_err(|error| error.to_string())?;
            Ok(stream)
        });
        match asked {
            Ok(stream) => self.open.push(Question {
                about,
                stream,
                heard: Vec::new(),
                until,
            }),
            Err(reason) if about == About::Command => self
                .news
                .push(News::Verdict(Err(format!("not done: {reason}")))),
            Err(reason) if about == About::Status => self.news.push(News::Silence(reason)),
            Err(_) => {}
        }
    }

    /// Connects, or fails at once where one would have to wait.
    fn connect(&self) -> Result<UnixStream, String> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let connected = || {
            let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            connect(socket.as_raw_fd(), &UnixAddr::new(&self.path)?)?;
            Ok(UnixStream::from(socket))
        };
        connected().map_err(|errno: nix::errno::Errno| errno.desc().to_owned())
    }

    /// What to wait for.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.open
            .iter()
            .map(|question| question.stream.as_fd())
            .collect()
    }

    /// When to listen at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let soon = (!self.news.is_empty()).then(Instant::now);
        self.open
            .iter()
            .filter_map(|question| question.until)
            .chain(soon)
            .min()
    }

    /// What has been told since the last time.
    pub(crate) fn hear(&mut self, now: Instant) -> Vec<News> {
        let mut news = std::mem::take(&mut self.news);
        for mut question in std::mem::take(&mut self.open) {
            let ended = question.read();
            let mut done = false;
            for line in question.lines() {
                done |= self.understand(question.about, &line, &mut news);
            }
            let late = question.until.is_some_and(|until| until <= now);
            match (done, ended || late, question.about) {
                (true, _, _) | (false, true, About::Events) => {}
                (false, true, About::Status) => {
                    let why = if late {
                        "no answer"
                    } else {
                        "the server has gone"
                    };
                    news.push(News::Silence(why.to_owned()));
                }
                (false, true, About::Command) => {
                    let reason = "not known: the server closed the connection without a verdict";
                    news.push(News::Verdict(Err(reason.to_owned())));
                }
                (false, false, _) => self.open.push(question),
            }
        }
        news
    }

    /// Whether the line is the last one.
    fn understand(&mut self, about: About, line: &[u8], news: &mut Vec<News>) -> bool {
        let Ok(mut answer) = serde_json::from_slice::<Value>(line) else {
            return true;
        };
        let last = answer["ok"].is_boolean();
        match about {
            About::Status if answer["status"].is_object() => {
                news.push(News::Picture(answer["status"].take()))
            }
            About::Status => {
                let reason = answer["error"]
                    .as_str()
                    .unwrap_or("it says nothing of itself");
                news.push(News::Silence(reason.to_owned()));
            }
            About::Events if answer["event"].is_object() => {
                let event = answer["event"].take();
                self.last = event["seq"].as_u64().or(self.last);
                news.push(News::Event(event));
            }
            About::Events => {}
            About::Command if last => news.push(News::Verdict(verdict(&answer))),
            About::Command => {
                if let Some(progress) = answer["progress"].as_str() {
                    news.push(News::Progress(progress.to_owned()));
                }
            }
        }
        last
    }
}

impl Question {
    /// Reads what is there; whether that was all that will ever be.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(length) if self.heard.len() + length <= LONGEST => {
                    self.heard.extend_from_slice(&buffer[..length])
                }
                Ok(_) => return true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }

    /// The lines that are whole.
    fn lines(&mut self) -> Vec<Vec<u8>> {
        let Some(end) = self.heard.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.heard.split_off(end + 1);
        let whole = std::mem::replace(&mut self.heard, rest);
        whole
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(<[u8]>::to_vec)
            .collect()
    }
}
