//! What a server tells, for people.

use serde_json::Value;

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

/// How the server is.
pub(super) fn status(status: &Value) -> String {
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

/// One event a line.
pub(super) fn event(event: &Value) -> String {
    let word = |name: &str| event[name].as_str().unwrap_or("-");
    // Workers have a say in the words.
    let text: String = word("text").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("{} {:<5} {text}", word("time"), word("level").to_uppercase())
}

/// A setting a line: its name, its value, and where it was set.
pub(super) fn config(settings: &Value) -> String {
    let settings = settings.as_array().map(Vec::as_slice).unwrap_or_default();
    let value = |setting: &Value| match &setting["value"] {
        Value::Null => "-".to_owned(),
        value => value.to_string(),
    };
    let width = |of: &dyn Fn(&Value) -> usize| settings.iter().map(of).max().unwrap_or(0).min(40);
    let name = |setting: &Value| setting["name"].as_str().unwrap_or("?").to_owned();
    let (names, values) = (width(&|it| name(it).len()), width(&|it| value(it).len()));
    let line = |setting: &Value| {
        let (from, place) = (setting["from"].as_str().unwrap_or("?"), setting["where"].as_str());
        let from = place.map_or_else(|| from.to_owned(), |place| format!("{from} ({place})"));
        format!("{:names$}  {:values$}  {from}", name(setting), value(setting))
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
        assert_eq!(config(&settings), "workers  8  flag (--workers)\nuser     -  default");
    }

    #[test]
    fn what_a_worker_says_cannot_reach_the_terminal_raw() {
        let told = event(&json!({"time":"T","level":"error","text":"died\u{1b}[2J"}));
        assert_eq!(told, "T ERROR died [2J");
    }
}
