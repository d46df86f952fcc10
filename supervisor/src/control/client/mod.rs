//! The operator's end of the control socket.
//!
//! Every request works the same way: one line is sent, lines come back until one has the verdict,
//! and that is the exit status. Progress goes to standard error, the result to standard output.

pub(crate) mod connection;
pub(crate) mod printable;
pub(crate) mod progress;
mod render;

use crate::api::answer::{Answer, AnswerError, Json};
use crate::api::request::Request;
use crate::api::status::Status;
use connection::Connection;
use nix::unistd::Pid;
use progress::Bar;
use std::io;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A request that was not done, or whose outcome is unknown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// There is no server, or it cannot be reached.
    #[error("cannot reach the server at {}: {error} ({})", path.display(), remedy(error))]
    Unreachable { path: PathBuf, error: io::Error },
    /// The connection failed while the request was sent.
    #[error("cannot ask the server at {}: {error}", path.display())]
    Send { path: PathBuf, error: io::Error },
    /// The connection failed before the verdict.
    #[error("cannot read the answer from {}: {error}", path.display())]
    Receive { path: PathBuf, error: io::Error },
    /// The connection ended before the verdict.
    #[error(
        "cannot read the answer from {}: the server closed the connection without a verdict",
        path.display()
    )]
    NoVerdict { path: PathBuf },
    /// The server accepts connections, and answers nothing.
    #[error(
        "the server at {}{} has not answered for {} s (a stopped process goes on by kill -CONT; \
         whether the request was granted is not known)", path.display(), of_pid(*pid),
        waited.as_secs()
    )]
    Silent {
        path: PathBuf,
        pid: Option<Pid>,
        waited: Duration,
    },
    /// The answer is not one of this protocol.
    #[error("cannot understand the answer from {}: {problem}", path.display())]
    Understand { path: PathBuf, problem: AnswerError },
    /// The server is not ready.
    #[error("the server is not ready: its state is {0}")]
    NotReady(String),
    /// The server's verdict is no, for this reason.
    #[error("{0}")]
    Refused(String),
}

/// Returns what may be the matter, and what to do about it.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => {
            "is the server running? Its control socket is elsewhere if it runs as another user, or \
             was started with another --name, --control or XDG_RUNTIME_DIR: give the same here"
        }
        ErrorKind::ConnectionRefused => "the server that made this socket is gone: start it again",
        ErrorKind::PermissionDenied => "ask as root or as the server's user",
        _ => "is the server running? --control or --name names another one",
    }
}

impl ClientError {
    fn silent(path: &Path, pid: Option<Pid>, waited: Duration) -> Self {
        Self::Silent {
            path: path.to_owned(),
            pid,
            waited,
        }
    }
}

fn of_pid(pid: Option<Pid>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

/// Returns the server's status.
///
/// # Errors
/// When there is no server, or it does not answer.
pub(crate) fn status(path: &Path) -> Result<Status, ClientError> {
    let mut connection = Connection::open(path)?;
    let answer = converse(&mut connection, path, &Request::Status {}, |_| Ok(()))?;
    match &answer.status {
        Some(status) => read(path, status),
        None => Err(ClientError::Refused(answer.reason().to_owned())),
    }
}

/// Succeeds if the server is ready, as `/readyz` says it; prints its state.
///
/// # Errors
/// When there is no server, it does not answer, or it is not ready.
pub(crate) fn check_ready(path: &Path, json: bool) -> Result<(), ClientError> {
    let status = status(path)?;
    if json {
        let state = serde_json::json!({"ready": status.ready, "state": status.state.word()});
        print(&state.to_string());
    } else if status.ready {
        print(&format!("ready: {}", status.state));
    }
    if status.ready {
        Ok(())
    } else {
        Err(ClientError::NotReady(status.state.to_string()))
    }
}

/// Asks the server to stop, and waits until its process has ended.
///
/// # Errors
/// When there is no server, its verdict is no, or it stops to show life.
pub(crate) fn stop_and_wait(path: &Path, now: bool, json: bool) -> Result<(), ClientError> {
    let mut connection = Connection::open(path)?;
    // Before it is asked: afterwards its number may be another process's.
    let process = connection.process();
    let verdict = converse(&mut connection, path, &Request::Stop { now }, |_| Ok(()))?;
    if verdict.ok == Some(true) {
        connection.wait_for_exit(process.as_ref())?;
    }
    if json {
        print_line(&verdict);
    }
    granted(&verdict)
}

/// Reads a document in an answer.
fn read<T: for<'de> serde::Deserialize<'de>>(
    path: &Path,
    document: &Json<T>,
) -> Result<T, ClientError> {
    document.read().map_err(|_| ClientError::Understand {
        path: path.to_owned(),
        problem: AnswerError::Document,
    })
}

/// Sends a request and prints the answer, for people or as `json`.
///
/// # Errors
/// When there is no server, or its verdict is no.
pub(crate) fn ask(path: &Path, request: &Request, json: bool) -> Result<(), ClientError> {
    let mut bar = Bar::new();
    let mut connection = Connection::open(path)?;
    let verdict = converse(&mut connection, path, request, |answer| {
        match &answer.event {
            Some(event) if json => print(event.text()),
            Some(event) => print(&render::event(&read(path, event)?)),
            None if json => print_line(answer),
            None => bar.show(answer),
        }
        Ok(())
    });
    bar.clear();
    let verdict = verdict?;
    if let Some(status) = &verdict.status {
        if json {
            print(status.text());
        } else {
            print(&render::status(&read(path, status)?));
        }
    } else if let Some(config) = &verdict.config {
        if json {
            print(config.text());
        } else {
            print(&render::config(&read(path, config)?));
        }
    } else if json {
        if !matches!(request, Request::Events { .. }) {
            print_line(&verdict);
        }
    } else if let Some(generation) = verdict.generation {
        print(&format!("generation {generation} serves"));
    } else if let Some(version) = &verdict.upgraded {
        print(&format!("upgraded to version {version}"));
    } else if let Some((from, to)) = verdict.scaled {
        print(&format!("{to} workers (before: {from})"));
    } else if let Some((slot, worker)) = verdict.slot.zip(verdict.worker) {
        print(&format!("worker {worker} serves slot {slot}"));
    } else if let Some(slot) = verdict.slot {
        print(&format!("slot {slot} is empty"));
    }
    granted(&verdict)
}

/// Returns the verdict as a result.
fn granted(verdict: &Answer) -> Result<(), ClientError> {
    if verdict.ok == Some(true) {
        return Ok(());
    }
    Err(ClientError::Refused(verdict.reason().to_owned()))
}

/// Sends a request, passes on the lines before the verdict, and returns the line with the verdict.
fn converse(
    connection: &mut Connection,
    path: &Path,
    request: &Request,
    mut pass_on: impl FnMut(&Answer) -> Result<(), ClientError>,
) -> Result<Answer, ClientError> {
    connection.send(request)?;
    while let Some(answer) = connection.next(request)? {
        if answer.ok.is_some() {
            return Ok(answer);
        }
        pass_on(&answer)?;
    }
    Err(ClientError::NoVerdict {
        path: path.to_owned(),
    })
}

fn print_line(answer: &Answer) {
    if let Ok(line) = serde_json::to_string(answer) {
        print(&line);
    }
}

fn print(text: &str) {
    // When the reader of a pipe has gone, nothing is left to do.
    if writeln!(io::stdout(), "{text}").is_err_and(|error| error.kind() == ErrorKind::BrokenPipe) {
        std::process::exit(0);
    }
}
