//! The operator's end of the control socket.

use crate::shell::control::{Answer, Request};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Asks for something and waits for the verdict, telling progress on stderr.
///
/// # Errors
/// When there is no server, or its verdict is no: the reason.
pub(crate) fn ask(path: &Path, request: &Request) -> Result<(), String> {
    let verdict = converse(path, request)?;
    if let Some(generation) = verdict.generation {
        println_stdout(&format!("generation {generation} serves"));
    }
    if let Some(version) = verdict.upgraded {
        println_stdout(&format!("upgraded to version {version}"));
    }
    Ok(())
}

/// Prints how the server is, for people or as JSON.
///
/// # Errors
/// When there is no server, or it does not tell.
pub(crate) fn status(path: &Path, json: bool) -> Result<(), String> {
    let verdict = converse(path, &Request::Status)?;
    let status = verdict.status.ok_or("the server sent no status")?;
    println_stdout(&if json { status.to_string() } else { table(&status) });
    Ok(())
}

fn converse(path: &Path, request: &Request) -> Result<Answer, String> {
    let reason =
        |act: &str, error: &dyn std::fmt::Display| format!("cannot {act} {}: {error}", path.display());
    let mut stream = UnixStream::connect(path).map_err(|error| {
        format!(
            "{} (is the server running? --control names another socket)",
            reason("reach the server at", &error)
        )
    })?;
    let mut line = serde_json::to_vec(request).map_err(|error| reason("write the request to", &error))?;
    line.push(b'\n');
    match stream.write_all(&line) {
        // A server that refuses us closes at once; its reason can still be read.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            return Err(reason("ask the server at", &error));
        }
        _ => {}
    }
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(|error| reason("read the answer from", &error))?;
        let answer: Answer =
            serde_json::from_str(&line).map_err(|error| reason("understand the answer from", &error))?;
        if let Some(progress) = &answer.progress {
            let _ = writeln!(std::io::stderr(), "{progress}");
        }
        match answer.ok {
            None => {}
            Some(true) => return Ok(answer),
            Some(false) => {
                return Err(answer
                    .error
                    .unwrap_or_else(|| "the server says no, without a reason".to_owned()));
            }
        }
    }
    Err(reason("read the answer from", &"the server closed the connection without a verdict"))
}

fn println_stdout(text: &str) {
    // Whoever reads may have gone; that is no failure of ours.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// How many workers have died of what.
fn deaths(counts: &Value) -> Option<String> {
    let counts: Vec<(&String, u64)> = counts
        .as_object()?
        .iter()
        .filter_map(|(cause, count)| Some((cause, count.as_u64().filter(|count| *count > 0)?)))
        .collect();
    let all: u64 = counts.iter().map(|(_, count)| count).sum();
    let words: Vec<String> = counts.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
    (all > 0).then(|| format!("deaths      {all} ({})", words.join(", ")))
}

/// The picture for people.
fn table(status: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let list = |value: &Value| value.as_array().map(Vec::as_slice).unwrap_or_default().to_vec();
    let listeners: Vec<String> = list(&status["listeners"]).iter().map(text).collect();
    let mut lines = vec![
        format!("state       {}", text(&status["state"])),
        format!("pid         {}", text(&status["pid"])),
        format!("version     {}", text(&status["program"])),
        format!("generation  {}", text(&status["generation"])),
        format!("listening   {}", listeners.join(", ")),
    ];
    lines.extend(deaths(&status["deaths"]));
    if let Some(reason) = status["last_reload"]["reason"].as_str() {
        lines.push(format!(
            "last reload of generation {} failed: {reason}",
            text(&status["last_reload"]["generation"])
        ));
    }
    if let Some(reason) = status["last_upgrade"]["reason"].as_str() {
        lines.push(format!("last upgrade failed: {reason}"));
    }
    lines.push(format!(
        "{:>4}  {:>6}  {:>7}  {:>4}  {:<9} {:>10} {:>12} {:>6} {:>6}",
        "SLOT", "WORKER", "PID", "GEN", "STATE", "REQUESTS", "CONNECTIONS", "BUSY", "QUEUE"
    ));
    for slot in list(&status["slots"]) {
        let totals = &slot["totals"];
        let workers = list(&slot["workers"]);
        if workers.is_empty() {
            lines.push(format!(
                "{:>4}  {:>6}  {:>7}  {:>4}  {:<9} {:>10} {:>12} {:>6} {:>6}",
                text(&slot["slot"]),
                "-",
                "-",
                "-",
                "empty",
                text(&totals["requests"]),
                text(&totals["connections"]),
                "-",
                text(&slot["queue"])
            ));
        }
        for worker in workers {
            lines.push(format!(
                "{:>4}  {:>6}  {:>7}  {:>4}  {:<9} {:>10} {:>12} {:>6} {:>6}  {}",
                text(&slot["slot"]),
                text(&worker["worker"]),
                text(&worker["pid"]),
                text(&worker["generation"]),
                text(&worker["state"]),
                text(&totals["requests"]),
                text(&totals["connections"]),
                text(&worker["scoreboard"]["busy"]),
                text(&slot["queue"]),
                worker["status"].as_str().unwrap_or_default(),
            ));
        }
    }
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}
