//! Events: what people read as a line of the log, machines read as an *event* in JSON.
//!
//! An [`EventRecord`] is the one form of a fact before it is published: the log writes its text,
//! and its fields if it writes JSON; the [`Journal`] numbers it and keeps the last ones as JSON,
//! which takes a third of the memory of their parts. Numbers continue over an upgrade in place; the
//! journal itself starts empty.

use log::{Level, Record};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::SystemTime;

/// Events kept for clients.
const MAX_EVENTS: usize = 512;

/// Something that has happened, as text and as fields.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EventRecord {
    /// Its kind, as in `reload-failed`. A kind never changes its name.
    pub(crate) kind: &'static str,
    pub(crate) level: Level,
    pub(crate) text: String,
    /// The facts in the text, by name.
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

    /// Adds a field.
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

/// An event: a record with its number and its time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Event {
    /// Counts from 1 and is never used again.
    pub(crate) seq: u64,
    /// When, in UTC, by RFC 3339.
    pub(crate) time: String,
    /// See [`EventRecord::kind`].
    pub(crate) kind: Cow<'static, str>,
    /// `error`, `warn`, `info`, `debug`.
    pub(crate) level: Cow<'static, str>,
    pub(crate) text: String,
    #[serde(flatten)]
    pub(crate) fields: Map<String, Value>,
}

fn level_word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// The last events.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// Each with its number, as JSON.
    events: VecDeque<(u64, Box<RawValue>)>,
    last: u64,
}

impl Journal {
    /// Continues to count where another version was.
    pub(crate) fn resumed(last: u64) -> Self {
        Self {
            events: VecDeque::new(),
            last,
        }
    }

    /// Numbers a record, and keeps the event.
    pub(crate) fn note(&mut self, record: EventRecord) -> Event {
        self.last += 1;
        let event = Event {
            seq: self.last,
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            kind: record.kind.into(),
            level: level_word(record.level).into(),
            text: record.text,
            fields: record
                .fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        };
        if let Ok(json) = serde_json::value::to_raw_value(&event) {
            if self.events.len() >= MAX_EVENTS {
                self.events.pop_front();
            }
            self.events.push_back((event.seq, json));
        }
        event
    }

    /// Returns the number of the newest event.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Returns the last `recent` of the events after number `since`, oldest first, as JSON.
    pub(crate) fn after(&self, since: u64, recent: Option<u32>) -> impl Iterator<Item = &RawValue> {
        let first = self.events.partition_point(|(seq, _)| *seq <= since);
        let recent = recent
            .and_then(|recent| usize::try_from(recent).ok())
            .unwrap_or(MAX_EVENTS);
        self.events
            .range(first.max(self.events.len().saturating_sub(recent))..)
            .map(|(_, json)| json.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(journal: &Journal, since: u64, recent: Option<u32>) -> Vec<u64> {
        let number = |json: &RawValue| {
            let event: Event = serde_json::from_str(json.get()).expect("an event");
            event.seq
        };
        journal.after(since, recent).map(number).collect()
    }

    #[test]
    fn the_journal_keeps_the_last_events_and_never_reuses_a_number() {
        let mut journal = Journal::resumed(7);
        for _ in 0..MAX_EVENTS + 3 {
            journal.note(EventRecord::new("ready", Level::Info, "a worker is ready"));
        }
        let last = 7 + MAX_EVENTS as u64 + 3;
        assert_eq!(journal.last(), last);
        assert_eq!(numbers(&journal, 0, None).len(), MAX_EVENTS);
        assert_eq!(numbers(&journal, last - 2, None), [last - 1, last]);
        assert_eq!(numbers(&journal, 0, Some(1)), [last]);
        assert_eq!(numbers(&journal, last - 1, Some(9)), [last]);
        assert_eq!(numbers(&journal, last + 5, None), [0_u64; 0]);
    }

    #[test]
    fn an_event_is_read_as_it_is_written_its_fields_beside_the_rest() {
        let record = EventRecord::new("died", Level::Error, "worker 7 died")
            .with("worker", 7)
            .with("cause", "hang");
        let event = Journal::default().note(record);
        let text = serde_json::to_string(&event).expect("JSON");
        let head = format!("{{\"seq\":1,\"time\":\"{}\",", event.time);
        let rest =
            r#""kind":"died","level":"error","text":"worker 7 died","cause":"hang","worker":7}"#;
        assert_eq!(text, head + rest);
        assert_eq!(serde_json::from_str::<Event>(&text).expect("JSON"), event);
    }
}
