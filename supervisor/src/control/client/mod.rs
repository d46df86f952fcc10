//! The operator's end of the control socket.
//!
//! Whatever is asked, the way is the same: one line is sent, lines come back until one has the verdict, and that is the
//! exit status. What is told meanwhile goes to standard error, what was asked for to standard output.

pub(crate) mod progress;
mod table;

use crate::control::{Answer, Request};
use progress::Bar;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Asks for something, and tells the answer, for people or as `json`.
///
/// # Errors
/// When there is no server, or its verdict is no: the reason.
pub(crate) fn ask(path: &Path, request: &Request, json: bool) -> Result<(), String> {
    let mut bar = Bar::new();
    let verdict = converse(path, request, |answer| {
        if let Some(event) = &answer.event {
            return tell(&if json {
                event.to_string()
            } else {
                table::event(event)
            });
        }
        if json {
            tell_answer(answer)
        } else {
            bar.show(answer)
        }
    });
    bar.clear();
    let verdict = verdict?;
    if let Some(status) = &verdict.status {
        tell(&if json {
            status.to_string()
        } else {
            table::status(status)
        });
    } else if let Some(config) = &verdict.config {
        tell(&if json {
            config.to_string()
        } else {
            table::config(config)
        });
    } else if json {
        if !matches!(request, Request::Events { .. }) {
            tell_answer(&verdict);
        }
    } else if let Some(generation) = verdict.generation {
        tell(&format!("generation {generation} serves"));
    } else if let Some(version) = &verdict.upgraded {
        tell(&format!("upgraded to version {version}"));
    } else if let Some((from, to)) = verdict.scaled {
        tell(&format!("{to} workers (before: {from})"));
    } else if let Some((slot, worker)) = verdict.slot.zip(verdict.worker) {
        tell(&format!("worker {worker} serves slot {slot}"));
    } else if let Some(slot) = verdict.slot {
        tell(&format!("slot {slot} is empty"));
    }
    if verdict.ok == Some(true) {
        return Ok(());
    }
    Err(verdict
        .error
        .unwrap_or_else(|| "the server says no, without a reason".to_owned()))
}

/// Asks, hands on what is told meanwhile, and gives the line with the verdict.
fn converse(
    path: &Path,
    request: &Request,
    mut hear: impl FnMut(&Answer),
) -> Result<Answer, String> {
    let reason = |act: &str, error: &dyn std::fmt::Display| {
        format!("cannot {act} {}: {error}", path.display())
    };
    let mut stream = UnixStream::connect(path).map_err(|error| {
        format!(
            "{} (is the server running? --control or --name names another one)",
            reason("reach the server at", &error)
        )
    })?;
    let mut line =
        serde_json::to_vec(request).map_err(|error| reason("write the request to", &error))?;
    line.push(b'\n');
    match stream.write_all(&line) {
        // A server that refuses us closes at once; its reason can still be read.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            return Err(reason("ask the server at", &error));
        }
        _ => {}
    }
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(|error| reason("read the answer from", &error))?;
        let answer: Answer = serde_json::from_str(&line)
            .map_err(|error| reason("understand the answer from", &error))?;
        if answer.ok.is_some() {
            return Ok(answer);
        }
        hear(&answer);
    }
    Err(reason(
        "read the answer from",
        &"the server closed the connection without a verdict",
    ))
}

fn tell_answer(answer: &Answer) {
    if let Ok(line) = serde_json::to_string(answer) {
        tell(&line);
    }
}

fn tell(text: &str) {
    // Whoever reads may have gone: nobody is left to tell.
    if writeln!(std::io::stdout(), "{text}")
        .is_err_and(|error| error.kind() == ErrorKind::BrokenPipe)
    {
        std::process::exit(0);
    }
}
