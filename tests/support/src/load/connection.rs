//! One connection of a load: what it is waiting for, and what happened to it.

use super::report::Failure;
use super::{Pace, Plan, Talk};
use crate::Address;
use crate::http::{self, Parsed};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, SockaddrStorage, UnixAddr, connect,
    getsockopt, recv, send, setsockopt, shutdown, socket, sockopt,
};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Sending {
        done: usize,
    },
    Receiving,
    /// The whole response is here; the server is to close.
    Closing,
}

/// What became of a connection after it was driven as far as it goes.
#[derive(Debug)]
pub(super) enum Step {
    /// It waits for the kernel.
    Waiting,
    /// A request was answered, and the connection can take another one.
    Answered(Marks),
    /// A request was answered and the connection is over; `announced` if the server had said so
    /// beforehand.
    Over { marks: Marks, announced: bool },
    /// The request failed and the connection is over.
    Failed(Failure, String),
}

/// Who answered, by the stock apps' headers.
#[derive(Debug, Default, Clone)]
pub(super) struct Marks {
    pub(super) generation: Option<String>,
    pub(super) pid: Option<String>,
}

/// What all connections of a load have in common.
#[derive(Debug)]
pub(super) struct Script {
    request: Vec<u8>,
    /// What is asked instead, now and then.
    other: Vec<u8>,
    talk: Talk,
    kept: bool,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Tcp(SockaddrStorage, AddressFamily),
    Unix(UnixAddr),
}

impl Script {
    pub(super) fn new(plan: &Plan) -> Self {
        let kept = matches!(plan.pace, Pace::KeptAlive(_));
        let close = if kept { "" } else { "Connection: close\r\n" };
        let get =
            |path: &str| format!("GET {path} HTTP/1.1\r\nHost: load\r\n{close}\r\n").into_bytes();
        let other = plan
            .mix
            .as_ref()
            .map(|(path, _)| get(path))
            .unwrap_or_default();
        let request = match &plan.talk {
            Talk::Http { path, .. } => get(path),
            Talk::Echo(bytes) => (b'a'..=b'z')
                .cycle()
                .take(bytes - 1)
                .chain([b'\n'])
                .collect(),
            Talk::Ask(question, _) => question.clone().into_bytes(),
        };
        let target = match &plan.target {
            Address::Tcp(address) => {
                let family = if address.is_ipv4() {
                    AddressFamily::Inet
                } else {
                    AddressFamily::Inet6
                };
                Target::Tcp(SockaddrStorage::from(*address), family)
            }
            Address::Unix(path) => {
                Target::Unix(UnixAddr::new(path).expect("a path that fits a Unix address"))
            }
        };
        Self {
            request,
            other,
            talk: plan.talk.clone(),
            kept,
            target,
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    /// When the request in flight was due; its latency counts from here.
    pub(super) due: Instant,
    /// When to give up.
    pub(super) deadline: Instant,
    /// Whether the request in flight is for the other path of a mix.
    pub(super) other: bool,
    stage: Stage,
    answered: u64,
    marks: Marks,
    buffer: Vec<u8>,
}

impl Connection {
    /// Begins to connect.
    pub(super) fn open(
        script: &Script,
        due: Instant,
        deadline: Instant,
    ) -> Result<Self, (Failure, String)> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let family = match &script.target {
            Target::Tcp(_, family) => *family,
            Target::Unix(_) => AddressFamily::Unix,
        };
        let socket = socket(family, SockType::Stream, flags, None)
            .map_err(|error| failed(Failure::Local, error))?;
        let began = match &script.target {
            Target::Tcp(address, _) => {
                let _ = setsockopt(&socket, sockopt::TcpNoDelay, &true);
                connect(socket.as_raw_fd(), address)
            }
            Target::Unix(address) => connect(socket.as_raw_fd(), address),
        };
        let stage = match began {
            Ok(()) => Stage::Sending { done: 0 },
            Err(Errno::EINPROGRESS) => Stage::Connecting,
            Err(error) => return Err(failed(classify_connect(error), error)),
        };
        Ok(Self {
            socket,
            due,
            deadline,
            other: false,
            stage,
            answered: 0,
            marks: Marks::default(),
            buffer: Vec::new(),
        })
    }

    /// Makes another request on the same connection.
    pub(super) fn again(&mut self, due: Instant, deadline: Instant) {
        (self.due, self.deadline, self.stage) = (due, deadline, Stage::Sending { done: 0 });
        self.buffer.clear();
    }

    /// What it means that the deadline has passed.
    pub(super) fn timed_out(&self) -> Failure {
        match self.stage {
            Stage::Connecting => Failure::ConnectTimeout,
            Stage::Sending { .. } | Stage::Receiving => Failure::ResponseTimeout,
            Stage::Closing => Failure::CloseTimeout,
        }
    }

    /// Goes as far as it can without waiting.
    pub(super) fn drive(&mut self, script: &Script) -> Step {
        if self.stage == Stage::Connecting {
            match getsockopt(&self.socket, sockopt::SocketError) {
                Ok(0)
                    if nix::sys::socket::getpeername::<SockaddrStorage>(
                        self.socket.as_raw_fd(),
                    )
                    .is_err() =>
                {
                    return Step::Waiting;
                }
                Ok(0) => self.stage = Stage::Sending { done: 0 },
                Ok(code) => {
                    return fail(
                        classify_connect(Errno::from_raw(code)),
                        Errno::from_raw(code),
                    );
                }
                Err(error) => return fail(Failure::Local, error),
            }
        }
        let request = if self.other {
            &script.other
        } else {
            &script.request
        };
        while let Stage::Sending { done } = self.stage {
            match send(
                self.socket.as_raw_fd(),
                &request[done..],
                MsgFlags::MSG_NOSIGNAL,
            ) {
                Ok(sent) if done + sent == request.len() => self.stage = Stage::Receiving,
                Ok(sent) => self.stage = Stage::Sending { done: done + sent },
                Err(Errno::EAGAIN) => return Step::Waiting,
                Err(error) if self.answered > 0 => return fail(Failure::Unanswered, error),
                Err(error) => return fail(Failure::WriteReset, error),
            }
        }
        self.receive(script)
    }

    fn receive(&mut self, script: &Script) -> Step {
        let mut bytes = [0; 16 * 1024];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return Step::Waiting,
                Err(error) if self.stage == Stage::Closing => {
                    return fail(Failure::CloseReset, error);
                }
                Err(error) if self.lost() => return fail(Failure::Unanswered, error),
                Err(error) => return fail(Failure::ReadReset, error),
            };
            if self.stage == Stage::Closing {
                return match length {
                    0 => Step::Over {
                        marks: std::mem::take(&mut self.marks),
                        announced: false,
                    },
                    _ => Step::Failed(
                        Failure::BadResponse,
                        "bytes after the whole response".to_owned(),
                    ),
                };
            }
            self.buffer.extend_from_slice(&bytes[..length]);
            match self.judge(script, length == 0) {
                Ok(None) if length == 0 && self.lost() => {
                    return Step::Failed(Failure::Unanswered, "closed".to_owned());
                }
                Ok(None) if length == 0 => {
                    return Step::Failed(
                        Failure::EofEarly,
                        format!("closed after {} bytes", self.buffer.len()),
                    );
                }
                Ok(None) => {}
                Ok(Some(announced)) => {
                    self.answered += 1;
                    // A body that ended with the connection announced the close by itself.
                    if length == 0 || (script.kept && announced) {
                        return Step::Over {
                            marks: std::mem::take(&mut self.marks),
                            announced,
                        };
                    }
                    if script.kept {
                        return Step::Answered(std::mem::take(&mut self.marks));
                    }
                    if matches!(script.talk, Talk::Echo(_)) {
                        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
                    }
                    self.stage = Stage::Closing;
                }
                Err(why) => return Step::Failed(Failure::BadResponse, why),
            }
        }
    }

    /// Whether a request on a kept-alive connection goes unanswered if the connection ends now.
    fn lost(&self) -> bool {
        self.answered > 0 && self.buffer.is_empty()
    }

    /// `Some(close announced)` for a whole and right response, `None` for a part of one, an error
    /// for a wrong one.
    fn judge(&mut self, script: &Script, eof: bool) -> Result<Option<bool>, String> {
        let expected: &[u8] = match &script.talk {
            Talk::Http { body, .. } => {
                return self.judge_http(body.as_deref().filter(|_| !self.other), eof);
            }
            Talk::Echo(_) => &script.request,
            Talk::Ask(_, answer) => answer.as_bytes(),
        };
        if !expected.starts_with(&self.buffer) {
            return Err(format!("got {:?}", String::from_utf8_lossy(&self.buffer)));
        }
        Ok((self.buffer.len() == expected.len()).then_some(false))
    }

    fn judge_http(&mut self, body: Option<&str>, eof: bool) -> Result<Option<bool>, String> {
        match http::parse(&self.buffer, eof) {
            Parsed::Incomplete => Ok(None),
            Parsed::Bad(why) => Err(why.to_owned()),
            Parsed::Complete(head) if head.status != 200 => Err(format!("status {}", head.status)),
            Parsed::Complete(head) if body.is_some_and(|body| body.as_bytes() != &*head.body) => {
                Err(format!("body {:?}", String::from_utf8_lossy(&head.body)))
            }
            Parsed::Complete(head) if head.used != self.buffer.len() => {
                Err("bytes after the response".to_owned())
            }
            Parsed::Complete(head) => {
                self.marks = Marks {
                    generation: head.header("x-prefork-generation").map(str::to_owned),
                    pid: head.header("x-prefork-pid").map(str::to_owned),
                };
                Ok(Some(head.close))
            }
        }
    }
}

fn classify_connect(error: Errno) -> Failure {
    match error {
        Errno::ECONNREFUSED | Errno::ENOENT => Failure::Refused,
        Errno::ECONNRESET => Failure::ConnectReset,
        Errno::ETIMEDOUT => Failure::ConnectTimeout,
        Errno::EAGAIN => Failure::BacklogFull,
        Errno::EADDRNOTAVAIL
        | Errno::EADDRINUSE
        | Errno::EMFILE
        | Errno::ENFILE
        | Errno::ENOMEM
        | Errno::ENOBUFS => Failure::Local,
        _ => Failure::ConnectOther,
    }
}

fn failed(failure: Failure, error: Errno) -> (Failure, String) {
    (failure, error.to_string())
}

fn fail(failure: Failure, error: Errno) -> Step {
    Step::Failed(failure, error.to_string())
}
