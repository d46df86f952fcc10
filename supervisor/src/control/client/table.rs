//! What a server tells, for people.

use crate::top::words::harmless;
use serde_json::Value;
use std::time::Duration;

/// How many workers have died of what.
fn deaths(counts: &Value) -> Option<String> {
    let counts: Vec<(&String, u64)> = counts
        .as_object()?
        .iter()
        .filter_map(|(cause, count)| Some((cause, count.as_u64().filter(|count| *count > 0)?)))
        .collect();
    let all: u64 = counts.iter().map(|(_, count)| count).sum();
    let words: Vec<String> = counts
        .iter()
        .map(|(cause, count)| format!("{cause} {count}"))
        .collect();
    (all > 0).then(|| format!("deaths      {all} ({})", words.join(", ")))
}

/// How the server is.
pub(crate) fn status(status: &Value) -> String {
    let listeners: Vec<String> = list(&status["listeners"]).iter().map(text).collect();
    let workers = format!(
        "{} of {} to {}; {} of {} slots may be out of service, {} are",
        text(&status["workers"]),
        text(&status["min_workers"]),
        text(&status["max_workers"]),
        text(&status["max_unavailable"]),
        text(&status["workers"]),
        text(&status["unavailable"]),
    );
    let mut lines = Vec::new();
    lines.extend(
        status["instance"]
            .as_str()
            .map(|name| format!("name        {name}")),
    );
    lines.extend([
        format!("state       {}", text(&status["state"])),
        format!("pid         {}", text(&status["pid"])),
        format!("version     {}", text(&status["program"])),
        format!("up for      {}", span(&status["uptime"])),
        format!("generation  {}", text(&status["generation"])),
        format!("workers     {workers}"),
        format!("listening   {}", listeners.join(", ")),
    ]);
    lines.extend(deaths(&status["deaths"]));
    if let Some(reason) = status["last_reload"]["reason"].as_str() {
        lines.push(format!(
            "last reload of generation {} failed: {}",
            text(&status["last_reload"]["generation"]),
            harmless(reason)
        ));
    }
    if let Some(reason) = status["last_upgrade"]["reason"].as_str() {
        lines.push(format!("last upgrade failed: {}", harmless(reason)));
    }
    let heads = [
        "SLOT",
        "WORKER",
        "PID",
        "GEN",
        "STATE",
        "REQUESTS",
        "CONNECTIONS",
        "BUSY",
        "QUEUE",
    ];
    lines.push(row(&heads.map(str::to_owned), ""));
    for slot in list(&status["slots"]) {
        let totals = &slot["totals"];
        let cells = |worker: &Value, state: String| {
            row(
                &[
                    text(&slot["slot"]),
                    text(&worker["worker"]),
                    text(&worker["pid"]),
                    text(&worker["generation"]),
                    state,
                    text(&totals["requests"]),
                    text(&totals["connections"]),
                    text(&worker["scoreboard"]["busy"]),
                    text(&slot["queue"]),
                ],
                &harmless(worker["status"].as_str().unwrap_or_default()),
            )
        };
        let workers = list(&slot["workers"]);
        if workers.is_empty() {
            let why = match (slot["open"].as_bool(), slot["held"].as_bool()) {
                (Some(false), _) => "retired",
                (_, Some(true)) => "held",
                _ => "empty",
            };
            lines.push(cells(&Value::Null, why.to_owned()));
        }
        lines.extend(
            workers
                .iter()
                .map(|worker| cells(worker, text(&worker["state"]))),
        );
    }
    lines
        .iter()
        .map(|line| line.trim_end())
        .collect::<Vec<_>>()
        .join("\n")
}

fn row(cells: &[String; 9], words: &str) -> String {
    let [
        slot,
        worker,
        pid,
        generation,
        state,
        requests,
        connections,
        busy,
        queue,
    ] = cells;
    format!(
        "{slot:>4}  {worker:>6}  {pid:>7}  {generation:>4}  {state:<9} {requests:>10} {connections:>12} {busy:>6} {queue:>6}  {words}"
    )
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A number of seconds, as people say it.
fn span(seconds: &Value) -> String {
    let seconds = seconds
        .as_f64()
        .filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
    let span = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.floor()).ok());
    span.map_or_else(
        || "-".to_owned(),
        |span| humantime::format_duration(span).to_string(),
    )
}

/// One event a line.
pub(crate) fn event(event: &Value) -> String {
    let word = |name: &str| event[name].as_str().unwrap_or("-");
    format!(
        "{} {:<5} {}",
        word("time"),
        word("level").to_uppercase(),
        harmless(word("text"))
    )
}

/// A setting a line: its name, its value, and where it was set.
pub(crate) fn config(settings: &Value) -> String {
    let settings = list(settings);
    let value = |setting: &Value| match &setting["value"] {
        Value::Null => "-".to_owned(),
        value => value.to_string(),
    };
    let width = |of: &dyn Fn(&Value) -> usize| settings.iter().map(of).max().unwrap_or(0).min(40);
    let name = |setting: &Value| setting["name"].as_str().unwrap_or("?").to_owned();
    let (names, values) = (width(&|it| name(it).len()), width(&|it| value(it).len()));
    let line = |setting: &Value| {
        let (from, place) = (
            setting["from"].as_str().unwrap_or("?"),
            setting["where"].as_str(),
        );
        let from = place.map_or_else(|| from.to_owned(), |place| format!("{from} ({place})"));
        format!(
            "{:names$}  {:values$}  {from}",
            name(setting),
            value(setting)
        )
    };
    settings.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_setting_is_told_with_its_origin() {
        let settings = json!([
            {"name":"workers","value":8,"from":"flag","where":"--workers"},
            {"name":"user","value":null,"from":"default"}
        ]);
        assert_eq!(
            config(&settings),
            "workers  8  flag (--workers)\nuser     -  default"
        );
    }

    #[test]
    fn an_empty_slot_is_told_with_its_reason() {
        let told = status(&json!({
            "instance":"shop","state":"serving","uptime":3700.9,"workers":2,
            "slots":[
                {"slot":0,"open":true,"held":false,"workers":[{"worker":7,"state":"ready","status":"a\u{1b}b"}]},
                {"slot":1,"open":true,"held":true,"workers":[]},
                {"slot":2,"open":false,"held":false,"workers":[]},
            ]
        }));
        assert!(
            told.starts_with("name        shop\n") && told.contains("up for      1h 1m 40s"),
            "{told}"
        );
        let states: Vec<_> = told
            .lines()
            .rev()
            .map(|line| line.split_whitespace().nth(4))
            .take(3)
            .collect();
        assert_eq!(
            states,
            [Some("retired"), Some("held"), Some("ready")],
            "{told}"
        );
        assert!(told.contains("a b"), "{told}");
    }

    #[test]
    fn what_a_worker_says_cannot_reach_the_terminal_raw() {
        let told = event(&json!({"time":"T","level":"error","text":"died\u{1b}[2J"}));
        assert_eq!(told, "T ERROR died [2J");
    }
}
