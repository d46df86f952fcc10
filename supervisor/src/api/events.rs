//! Events: what is told to people in a line of the log is told to machines as an *event*, in JSON.
//!
//! [`EventRecord`] is the one form that a fact gets before anybody hears of it: the log writes its text, and its fields if it
//! writes JSON; the [`Journal`] numbers it and keeps the last ones for whoever asks, as the JSON that he gets: that is a
//! third of what their parts would take. Numbers go on over an upgrade in place; the journal itself begins anew.

use log::{Level, Record};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::VecDeque;
use std::time::SystemTime;

/// How many events are kept.
const KEPT: usize = 512;

/// Something that has happened, in words and in fields.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EventRecord {
    /// What it is, as in `reload-failed`. It never changes.
    pub(crate) kind: &'static str,
    pub(crate) level: Level,
    pub(crate) text: String,
    /// Everything in it that a machine may want, by name.
    pub(crate) fields: Vec<(&'static str, Value)>,
}

impl EventRecord {
    pub(crate) fn new(kind: &'static str, level: Level, text: impl Into<String>) -> Self {
        Self {
            kind,
            level,
            text: text.into(),
            fields: Vec::new(),
        }
    }

    /// With one field more.
    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// Writes it into the log.
    pub(crate) fn log(&self) {
        if !log::log_enabled!(self.level) {
            return;
        }
        let fields: Vec<(&str, log::kv::Value<'_>)> = self
            .fields
            .iter()
            .map(|(name, value)| {
                let value = match value {
                    Value::Number(number) if number.is_u64() => {
                        number.as_u64().unwrap_or_default().into()
                    }
                    Value::Number(number) => number.as_i64().unwrap_or_default().into(),
                    Value::Bool(yes) => (*yes).into(),
                    Value::String(text) => text.as_str().into(),
                    other => log::kv::Value::from_display(other),
                };
                (*name, value)
            })
            .collect();
        let fields = fields.as_slice();
        log::logger().log(
            &Record::builder()
                .level(self.level)
                .target(module_path!())
                .module_path_static(Some(module_path!()))
                .key_values(&fields)
                .args(format_args!("{}", self.text))
                .build(),
        );
    }
}

/// An event: what was told, with its number and its time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Event {
    /// Counts from 1 and is never used again.
    pub(crate) seq: u64,
    /// When, in UTC, as RFC 3339 has it.
    pub(crate) time: String,
    /// See [`EventRecord::kind`].
    pub(crate) kind: &'static str,
    /// `error`, `warn`, `info`, `debug`.
    pub(crate) level: String,
    pub(crate) text: String,
    #[serde(flatten)]
    pub(crate) fields: Map<String, Value>,
}

/// The last events.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// By number, in JSON.
    kept: VecDeque<(u64, Box<RawValue>)>,
    last: u64,
}

impl Journal {
    /// Goes on counting where another version was.
    pub(crate) fn resumed(last: u64) -> Self {
        Self {
            kept: VecDeque::new(),
            last,
        }
    }

    /// Numbers what was told, and keeps it.
    pub(crate) fn note(&mut self, record: EventRecord) -> Event {
        self.last += 1;
        let event = Event {
            seq: self.last,
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            kind: record.kind,
            level: record.level.as_str().to_ascii_lowercase(),
            text: record.text,
            fields: record
                .fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        };
        if let Ok(json) = serde_json::value::to_raw_value(&event) {
            if self.kept.len() >= KEPT {
                self.kept.pop_front();
            }
            self.kept.push_back((event.seq, json));
        }
        event
    }

    /// The number of the newest.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// The last `recent` of those after number `since`, oldest first, in JSON.
    pub(crate) fn after(&self, since: u64, recent: Option<u32>) -> impl Iterator<Item = &RawValue> {
        let first = self.kept.partition_point(|(seq, _)| *seq <= since);
        let recent = recent
            .and_then(|recent| usize::try_from(recent).ok())
            .unwrap_or(KEPT);
        self.kept
            .range(first.max(self.kept.len().saturating_sub(recent))..)
            .map(|(_, json)| json.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(journal: &Journal, since: u64, recent: Option<u32>) -> Vec<u64> {
        let number = |json: &RawValue| {
            let event: Value = serde_json::from_str(json.get()).expect("JSON");
            event["seq"].as_u64().expect("a number")
        };
        journal.after(since, recent).map(number).collect()
    }

    #[test]
    fn the_journal_keeps_the_last_ones_and_never_numbers_two_alike() {
        let mut journal = Journal::resumed(7);
        for _ in 0..KEPT + 3 {
            journal.note(EventRecord::new("ready", Level::Info, "a worker is ready"));
        }
        let last = 7 + KEPT as u64 + 3;
        assert_eq!(journal.last(), last);
        assert_eq!(numbers(&journal, 0, None).len(), KEPT);
        assert_eq!(numbers(&journal, last - 2, None), [last - 1, last]);
        assert_eq!(numbers(&journal, 0, Some(1)), [last]);
        assert_eq!(numbers(&journal, last - 1, Some(9)), [last]);
        assert_eq!(numbers(&journal, last + 5, None), [0_u64; 0]);
    }

    #[test]
    fn fields_stand_beside_the_words() {
        let mut journal = Journal::default();
        let record = EventRecord::new("died", Level::Error, "worker 7 died")
            .with("worker", 7)
            .with("cause", "hang");
        let event = serde_json::to_value(journal.note(record)).expect("JSON");
        assert_eq!((&event["seq"], &event["worker"]), (&1.into(), &7.into()));
        assert_eq!(
            (&event["kind"], &event["level"], &event["cause"]),
            (&"died".into(), &"error".into(), &"hang".into())
        );
    }
}
