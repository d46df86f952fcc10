//! Answers of a server, as text for people.

use super::printable::printable;
use crate::api::answer::Setting;
use crate::api::events::Event;
use crate::api::status::{SlotStatus, Status, WorkerStatus};
use std::collections::BTreeMap;
use std::time::Duration;

/// The widest that a column of `config` gets.
const MAX_WIDTH: usize = 40;

/// Renders the worker exits by cause; `None` when there were none.
fn deaths(counts: &BTreeMap<String, u64>) -> Option<String> {
    let counts: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    let all: u64 = counts.iter().map(|(_, count)| **count).sum();
    let by_cause: Vec<String> = counts
        .iter()
        .map(|(cause, count)| format!("{} {count}", printable(cause)))
        .collect();
    (all > 0).then(|| format!("deaths      {all} ({})", by_cause.join(", ")))
}

/// Renders the status.
pub(crate) fn status(status: &Status) -> String {
    let workers = status.workers;
    let range = if status.autoscaling {
        format!(
            ", of {} to {} by load",
            status.min_workers, status.max_workers
        )
    } else {
        format!(" (scale can reach {})", status.max_workers)
    };
    let workers = format!(
        "{workers}{range}; {} of {workers} slots may be out of service, {} are",
        status.max_unavailable, status.unavailable,
    );
    let mut lines = Vec::new();
    lines.extend(
        status
            .instance
            .as_deref()
            .map(|name| format!("name        {name}")),
    );
    lines.extend([
        format!("state       {}", status.state),
        format!("pid         {}", status.pid),
        format!("version     {}", status.program),
        format!("up for      {}", span(status.uptime)),
        format!("generation  {}", status.generation),
        format!("workers     {workers}"),
        format!("listening   {}", status.listeners.join(", ")),
    ]);
    lines.extend(deaths(&status.deaths));
    if let Some(last) = &status.last_reload
        && let Some(reason) = &last.reason
    {
        let (generation, reason) = (last.generation, printable(reason));
        lines.push(format!(
            "last reload of generation {generation} failed: {reason}"
        ));
    }
    let last_upgrade = status.last_upgrade.as_ref();
    if let Some(reason) = last_upgrade.and_then(|last| last.reason.as_ref()) {
        lines.push(format!("last upgrade failed: {}", printable(reason)));
    }
    lines.push(row(
        &[
            "SLOT",
            "WORKER",
            "PID",
            "GEN",
            "STATE",
            "REQUESTS",
            "CONNECTIONS",
            "BUSY",
            "QUEUE",
        ]
        .map(str::to_owned),
        "",
    ));
    for slot in &status.slots {
        if slot.workers.is_empty() {
            let state = match (slot.open, slot.held) {
                (false, _) => "retired",
                (true, true) => "held",
                (true, false) => "empty",
            };
            lines.push(slot_row(slot, None, state));
        }
        let rows = slot
            .workers
            .iter()
            .map(|worker| slot_row(slot, Some(worker), worker.state.word()));
        lines.extend(rows);
    }
    let workers = status.slots.iter().flat_map(|slot| &slot.workers);
    lines.extend(workers.filter_map(|worker| {
        let problem = printable(worker.problem.as_ref()?);
        Some(format!("worker {} {problem}", worker.worker))
    }));
    lines
        .iter()
        .map(|line| line.trim_end())
        .collect::<Vec<_>>()
        .join("\n")
}

/// A row for a worker, or for a slot that has none.
fn slot_row(slot: &SlotStatus, worker: Option<&WorkerStatus>, state: &str) -> String {
    let of = |what: fn(&WorkerStatus) -> String| worker.map_or_else(|| "-".to_owned(), what);
    let queue = slot.queue.map(|queue| queue.to_string());
    row(
        &[
            slot.slot.to_string(),
            of(|worker| worker.worker.to_string()),
            of(|worker| worker.pid.to_string()),
            of(|worker| worker.generation.to_string()),
            state.to_owned(),
            or_dash(slot.totals.requests),
            or_dash(slot.totals.connections),
            of(|worker| or_dash(worker.scoreboard.busy)),
            queue.unwrap_or_else(|| "-".to_owned()),
        ],
        &worker.map_or_else(String::new, |worker| printable(&worker.status)),
    )
}

/// Renders a count; a dash when nothing counts it.
fn or_dash(count: Option<u64>) -> String {
    count.map_or_else(|| "-".to_owned(), |count| count.to_string())
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
        "{slot:>4}  {worker:>6}  {pid:>7}  {generation:>4}  {state:<9} {requests:>10} \
         {connections:>12} {busy:>6} {queue:>6}  {words}"
    )
}

/// Renders a number of seconds as people say it.
fn span(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds.floor()).map_or_else(
        |_| "-".to_owned(),
        |span| humantime::format_duration(span).to_string(),
    )
}

/// Renders an event as one line.
pub(crate) fn event(event: &Event) -> String {
    format!(
        "{} {:<5} {}",
        event.time,
        event.level.to_uppercase(),
        printable(&event.text)
    )
}

/// Renders a setting per line: its name, its value, and its origin.
pub(crate) fn config(settings: &[Setting]) -> String {
    let value = |setting: &Setting| match &setting.value {
        serde_json::Value::Null => "-".to_owned(),
        value => value.to_string(),
    };
    let width = |of: &dyn Fn(&Setting) -> usize| {
        let widest = settings.iter().map(of).max();
        widest.unwrap_or(0).min(MAX_WIDTH)
    };
    let names = width(&|setting| setting.name.len());
    let values = width(&|setting| value(setting).len());
    let line = |setting: &Setting| {
        let from = setting.place.as_ref().map_or_else(
            || setting.from.to_string(),
            |place| format!("{} ({place})", setting.from),
        );
        format!(
            "{:names$}  {:values$}  {from}",
            setting.name,
            value(setting)
        )
    };
    settings.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::tests::document;

    #[test]
    fn a_setting_has_its_origin() {
        let settings: Vec<Setting> = serde_json::from_str(
            r#"[{"name":"workers","value":8,"from":"flag","where":"--workers"},
                {"name":"user","value":null,"from":"default"}]"#,
        )
        .expect("settings");
        assert_eq!(
            config(&settings),
            "workers  8  flag (--workers)\nuser     -  default"
        );
    }

    #[test]
    fn an_empty_slot_has_its_reason() {
        let mut shown = document();
        shown.uptime = 3700.9;
        shown.slots[0].workers[0].status = "a\u{1b}b".to_owned();
        shown.slots.push(SlotStatus {
            slot: 2,
            ..SlotStatus::default()
        });
        let text = status(&shown);
        assert!(
            text.starts_with("name        shop\n") && text.contains("up for      1h 1m 40s"),
            "{text}"
        );
        assert!(text.contains("deaths      4 (hang 4)"), "{text}");
        assert!(
            text.contains("workers     2, of 1 to 8 by load; 1 of 2 slots"),
            "{text}"
        );
        shown.autoscaling = false;
        let fixed = status(&shown);
        assert!(
            fixed.contains("workers     2 (scale can reach 8); 1 of 2 slots"),
            "a fixed number is no range: {fixed}"
        );
        let states: Vec<_> = text
            .lines()
            .rev()
            .map(|line| line.split_whitespace().nth(4))
            .take(3)
            .collect();
        assert_eq!(
            states,
            [Some("retired"), Some("held"), Some("ready")],
            "{text}"
        );
        assert!(text.contains("a b"), "{text}");
    }

    #[test]
    fn text_of_a_worker_cannot_reach_the_terminal_raw() {
        let died = Event {
            time: "T".to_owned(),
            level: "error".into(),
            text: "died\u{1b}[2J".to_owned(),
            ..Event::default()
        };
        assert_eq!(event(&died), "T ERROR died [2J");
    }
}
