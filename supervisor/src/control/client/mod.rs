//! The operator's end of the control socket.
//!
//! Every request works the same way: one line is sent, lines come back until one has the verdict,
//! and that is the exit status. Progress goes to standard error, the result to standard output.

pub(crate) mod printable;
pub(crate) mod progress;
mod render;

use crate::api::answer::Answer;
use crate::api::request::Request;
use progress::Bar;
use std::io;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

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
    /// The answer is not one of this protocol.
    #[error("cannot understand the answer from {}: {error}", path.display())]
    Decode {
        path: PathBuf,
        error: serde_json::Error,
    },
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

/// Sends a request and prints the answer, for people or as `json`.
///
/// # Errors
/// When there is no server, or its verdict is no.
pub(crate) fn ask(path: &Path, request: &Request, json: bool) -> Result<(), ClientError> {
    let decode = |error| ClientError::Decode {
        path: path.to_owned(),
        error,
    };
    let mut bar = Bar::new();
    let verdict = converse(path, request, |answer| {
        match &answer.event {
            Some(event) if json => print(event.text()),
            Some(event) => print(&render::event(&event.read().map_err(decode)?)),
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
            print(&render::status(&status.read().map_err(decode)?));
        }
    } else if let Some(config) = &verdict.config {
        if json {
            print(config.text());
        } else {
            print(&render::config(&config.read().map_err(decode)?));
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
    if verdict.ok == Some(true) {
        return Ok(());
    }
    Err(ClientError::Refused(verdict.reason().to_owned()))
}

/// Sends a request, passes on the lines before the verdict, and returns the line with the verdict.
fn converse(
    path: &Path,
    request: &Request,
    mut pass_on: impl FnMut(&Answer) -> Result<(), ClientError>,
) -> Result<Answer, ClientError> {
    let path = || path.to_owned();
    let mut stream = UnixStream::connect(path()).map_err(|error| ClientError::Unreachable {
        path: path(),
        error,
    })?;
    match stream.write_all(&request.line()) {
        // A server that refuses this client closes at once; its reason can still be read.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            return Err(ClientError::Send {
                path: path(),
                error,
            });
        }
        _ => {}
    }
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(|error| ClientError::Receive {
            path: path(),
            error,
        })?;
        let answer: Answer = serde_json::from_str(&line).map_err(|error| ClientError::Decode {
            path: path(),
            error,
        })?;
        if answer.ok.is_some() {
            return Ok(answer);
        }
        pass_on(&answer)?;
    }
    Err(ClientError::NoVerdict { path: path() })
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
