//! The status as metrics, in the text format of Prometheus (0.0.4) or as OpenMetrics (1.0).
//!
//! Counters come from totals that include dead workers, so they never go back. `docs/metrics.md`
//! lists all metrics, and a test compares.

use crate::api::status::{SlotStatus, State, Status, Totals, WorkerState, WorkerStatus};
use std::fmt;
use std::fmt::{Display, Write};

/// The two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Prometheus,
    OpenMetrics,
}

/// A counter of a slot: its name, its HELP text, and how it is read.
type Counter = (&'static str, &'static str, fn(&Totals) -> Option<u64>);

impl Format {
    /// Returns the format for a client with this `Accept` header.
    pub(crate) fn wanted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// Returns its media type.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

/// Renders the status as metrics.
pub(crate) fn render(status: &Status, format: Format) -> String {
    let mut page = Page {
        format,
        text: String::new(),
        family: "",
        kind: Kind::Gauge,
    };
    page.server(status);
    page.counts(status);
    page.slot_counters(status);
    page.slot_gauges(&status.slots);
    if format == Format::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

struct Page {
    format: Format,
    text: String,
    family: &'static str,
    kind: Kind,
}

type Labels<'a> = &'a [(&'a str, &'a dyn Display)];

/// A duration in microseconds, written in seconds without a loss.
#[derive(Debug, Clone, Copy)]
struct Seconds {
    us: u64,
    /// A whole number gets a fraction, too, as OpenMetrics wants of a bound.
    fraction: bool,
}

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, us) = (self.us / 1_000_000, self.us % 1_000_000);
        match us {
            0 if self.fraction => write!(f, "{seconds}.0"),
            0 => write!(f, "{seconds}"),
            _ => {
                let fraction = format!("{us:06}");
                write!(f, "{seconds}.{}", fraction.trim_end_matches('0'))
            }
        }
    }
}

impl Page {
    fn server(&mut self, status: &Status) {
        self.family("prefork_build", Kind::Info, "The version that serves.");
        let instance = status.instance.as_deref().unwrap_or_default();
        self.sample(
            &[("version", &status.program), ("instance_name", &instance)],
            1,
        );
        self.one(
            "prefork_ready",
            "Whether every new connection is served and the server stays.",
            u8::from(status.ready),
        );
        self.family(
            "prefork_state",
            Kind::Gauge,
            "The server's phase: 1 for the current one.",
        );
        for state in State::ALL {
            self.sample(&[("state", &state)], u8::from(status.state == state));
        }
        self.one(
            "prefork_start_time_seconds",
            "Start time of the server in Unix time; unchanged by upgrades in place.",
            status.time - status.uptime,
        );
        self.one(
            "prefork_generation",
            "The generation that serves.",
            status.generation,
        );
        self.one(
            "prefork_slots",
            "Slots that are to be filled.",
            status.workers,
        );
        self.one(
            "prefork_slots_min",
            "Lower bound of the number of slots.",
            status.min_workers,
        );
        self.one(
            "prefork_slots_max",
            "Upper bound of the number of slots.",
            status.max_workers,
        );
        self.one(
            "prefork_slots_unavailable",
            "Slots that are not healthy.",
            status.unavailable,
        );
        self.one(
            "prefork_slots_unavailable_limit",
            "Slots that may be taken out of service on purpose.",
            status.max_unavailable,
        );
    }

    fn counts(&mut self, status: &Status) {
        self.family("prefork_workers", Kind::Gauge, "Live workers by state.");
        let workers = || status.slots.iter().flat_map(|slot| &slot.workers);
        for state in WorkerState::ALL {
            let count = workers().filter(|worker| worker.state == state).count();
            self.sample(&[("state", &state)], count);
        }
        self.family("prefork_workers_spawned", Kind::Counter, "Workers started.");
        self.sample(&[], status.spawned);
        self.family(
            "prefork_worker_deaths",
            Kind::Counter,
            "Worker exits by cause.",
        );
        for (cause, count) in &status.deaths {
            self.sample(&[("cause", cause)], count);
        }
        self.family("prefork_reloads", Kind::Counter, "Reloads by result.");
        for (result, count) in [("ok", status.reloads.ok), ("failed", status.reloads.failed)] {
            self.sample(&[("result", &result)], count);
        }
        self.one(
            "prefork_reload_in_progress",
            "Whether a reload is in progress.",
            u8::from(status.reload.is_some()),
        );
        self.family("prefork_events", Kind::Counter, "Events emitted.");
        self.sample(&[], status.last_event);
        self.family(
            "prefork_status_requests",
            Kind::Counter,
            "Status snapshots rendered.",
        );
        self.sample(&[], status.status_requests);
    }

    fn slot_counters(&mut self, status: &Status) {
        let slots = &status.slots;
        let counters: [Counter; 5] = [
            ("prefork_slot_requests", "Requests answered.", |totals| {
                totals.requests
            }),
            (
                "prefork_slot_errors",
                "Requests answered with a status of 500 or more.",
                |totals| totals.errors,
            ),
            (
                "prefork_slot_connections",
                "Connections accepted.",
                |totals| totals.connections,
            ),
            (
                "prefork_slot_received_bytes",
                "Bytes received from clients.",
                |totals| totals.bytes_in,
            ),
            (
                "prefork_slot_sent_bytes",
                "Bytes sent to clients.",
                |totals| totals.bytes_out,
            ),
        ];
        for (family, help, of) in counters {
            self.each(family, Kind::Counter, help, slots, |slot| of(&slot.totals));
        }
        self.family(
            "prefork_slot_request_duration_seconds",
            Kind::Histogram,
            "Duration of requests in the worker.",
        );
        // A slot whose workers do not count has no histogram: one of zeros would be a measurement.
        for slot in slots.iter().filter(|slot| !slot.totals.latency.is_empty()) {
            self.histogram(slot.slot, &slot.totals, &status.latency_bounds_us);
        }
    }

    fn slot_gauges(&mut self, slots: &[SlotStatus]) {
        // What no worker counts has no sample. A slot without a worker has nothing in flight.
        let sum = |slot: &SlotStatus, of: fn(&WorkerStatus) -> Option<u64>| {
            let none = (slot.workers.is_empty() && slot.totals.busy_us.is_some()).then_some(0);
            let values = slot.workers.iter().filter_map(of);
            values.reduce(u64::saturating_add).or(none)
        };
        self.each(
            "prefork_slot_open_connections",
            Kind::Gauge,
            "Open connections.",
            slots,
            |slot| sum(slot, |worker| worker.scoreboard.open),
        );
        self.each(
            "prefork_slot_requests_in_hand",
            Kind::Gauge,
            "Active requests.",
            slots,
            |slot| sum(slot, |worker| worker.scoreboard.busy),
        );
        self.each(
            "prefork_slot_queue",
            Kind::Gauge,
            "Connections waiting to be accepted, where the slot has its own queue.",
            slots,
            |slot| slot.queue,
        );
        self.each(
            "prefork_slot_queue_limit",
            Kind::Gauge,
            "Connections that may wait.",
            slots,
            |slot| Some(slot.backlog),
        );
        self.each(
            "prefork_slot_oldest_request_seconds",
            Kind::Gauge,
            "Age of the oldest request that a handler works on; 0 without any.",
            slots,
            |slot| {
                let ages = slot.workers.iter().filter_map(|worker| worker.oldest_age);
                let oldest = ages.fold(0.0, f64::max);
                slot.totals.busy_us.is_some().then_some(oldest)
            },
        );
        self.each(
            "prefork_slot_in_rotation",
            Kind::Gauge,
            "Whether new connections are steered to the slot.",
            slots,
            |slot| Some(u8::from(slot.in_rotation)),
        );
        self.each(
            "prefork_slot_memory_bytes",
            Kind::Gauge,
            "Proportional set size of the slot's workers, with max-memory.",
            slots,
            |slot| {
                let known = slot.workers.iter().filter_map(|worker| worker.memory);
                known.reduce(u64::saturating_add)
            },
        );
    }

    /// Writes a histogram, in which a bucket counts the requests of the buckets below it, too
    /// (Prometheus, *Histograms and summaries*).
    fn histogram(&mut self, slot: u16, totals: &Totals, bounds: &[u64]) {
        let fraction = self.format == Format::OpenMetrics;
        let mut count: u64 = 0;
        for (index, bucket) in totals.latency.iter().enumerate() {
            count = count.saturating_add(*bucket);
            let bound = bounds.get(index).map(|us| Seconds { us: *us, fraction });
            let bound: &dyn Display = match &bound {
                Some(bound) => bound,
                None => &"+Inf",
            };
            self.line("_bucket", &[("slot", &slot), ("le", bound)], count);
        }
        let sum = Seconds {
            us: totals.busy_us.unwrap_or(0),
            fraction: false,
        };
        self.line("_sum", &[("slot", &slot)], sum);
        self.line("_count", &[("slot", &slot)], count);
    }

    fn one(&mut self, name: &'static str, help: &str, value: impl Display) {
        self.family(name, Kind::Gauge, help);
        self.sample(&[], value);
    }

    fn each<T: Display>(
        &mut self,
        family: &'static str,
        kind: Kind,
        help: &str,
        slots: &[SlotStatus],
        value: impl Fn(&SlotStatus) -> Option<T>,
    ) {
        self.family(family, kind, help);
        for slot in slots {
            if let Some(value) = value(slot) {
                self.sample(&[("slot", &slot.slot)], value);
            }
        }
    }

    fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        (self.family, self.kind) = (name, kind);
        // OpenMetrics names a family without the suffix of its samples.
        let (suffix, word) = match (self.format, kind) {
            (Format::OpenMetrics, Kind::Counter) => ("", "counter"),
            (Format::OpenMetrics, Kind::Info) => ("", "info"),
            (Format::Prometheus, Kind::Counter) => ("_total", "counter"),
            (Format::Prometheus, Kind::Info) => ("_info", "gauge"),
            (_, Kind::Gauge) => ("", "gauge"),
            (_, Kind::Histogram) => ("", "histogram"),
        };
        // Writing into a string cannot fail, here and below.
        let _ = writeln!(self.text, "# HELP {name}{suffix} {help}");
        let _ = writeln!(self.text, "# TYPE {name}{suffix} {word}");
        let unit = ["seconds", "bytes"]
            .into_iter()
            .find(|unit| name.rsplit('_').next() == Some(unit));
        if let (Format::OpenMetrics, Some(unit)) = (self.format, unit) {
            let _ = writeln!(self.text, "# UNIT {name}{suffix} {unit}");
        }
    }

    fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        self.line(suffix, labels, value);
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, value: impl Display) {
        self.text.push_str(self.family);
        self.text.push_str(suffix);
        for (index, (name, value)) in labels.iter().enumerate() {
            let separator = if index == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{separator}{name}=\"");
            escape_into(&mut self.text, &value.to_string());
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

/// Appends a label's value, escaped.
fn escape_into(text: &mut String, value: &str) {
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            _ => text.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::tests::document;

    fn status() -> Status {
        Status {
            instance: Some("a\"b\\c".into()),
            reload: None,
            ..document()
        }
    }

    #[test]
    fn buckets_are_cumulative_and_labels_are_escaped() {
        let text = render(&status(), Format::Prometheus);
        let line =
            |wanted: &str| assert!(text.lines().any(|line| line == wanted), "{wanted}\n{text}");
        line(r#"prefork_build_info{version="1.0",instance_name="a\"b\\c"} 1"#);
        line(r#"prefork_slot_request_duration_seconds_bucket{slot="0",le="0.0005"} 2"#);
        line(r#"prefork_slot_request_duration_seconds_bucket{slot="0",le="1"} 3"#);
        line(r#"prefork_slot_request_duration_seconds_bucket{slot="0",le="+Inf"} 5"#);
        line(r#"prefork_slot_request_duration_seconds_sum{slot="0"} 1.5"#);
        line(r#"prefork_slot_requests_total{slot="1"} 5"#);
        line(r#"prefork_worker_deaths_total{cause="hang"} 4"#);
        line(r#"prefork_slot_queue{slot="0"} 3"#);
        line(r#"prefork_slot_memory_bytes{slot="0"} 4096"#);
        line(r#"prefork_slot_oldest_request_seconds{slot="0"} 0.5"#);
        line(r#"prefork_slot_oldest_request_seconds{slot="1"} 0"#);
        line("prefork_start_time_seconds 100");
        assert!(!text.contains("slot_queue{slot=\"1\"}"), "it is not known");
        assert!(!text.contains("# EOF"));
        let text = render(&status(), Format::OpenMetrics);
        assert!(
            text.ends_with("# EOF\n") && text.contains("# TYPE prefork_slot_requests counter\n"),
            "{text}"
        );
        assert!(
            text.contains("le=\"1.0\"") && text.contains("# TYPE prefork_build info\n"),
            "{text}"
        );
        assert!(
            render(&Status::default(), Format::Prometheus).contains("prefork_ready 0"),
            "whatever is missing is 0"
        );
    }

    #[test]
    fn seconds_are_exact() {
        let whole = |us| Seconds {
            us,
            fraction: false,
        };
        let texts = [0, 1, 500, 1_500_000, 2_000_000].map(|us| whole(us).to_string());
        assert_eq!(texts, ["0", "0.000001", "0.0005", "1.5", "2"]);
    }

    #[test]
    fn every_metric_is_documented_and_every_documented_one_is_there() {
        let text = render(&status(), Format::Prometheus);
        let types = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let rendered: std::collections::BTreeSet<&str> = types.collect();
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let page =
            std::fs::read_to_string(root.join("../docs/metrics.md")).expect("the documentation");
        let rows = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `prefork_")?.split(['`', '{']).next());
        let documented: std::collections::BTreeSet<String> =
            rows.map(|name| format!("prefork_{name}")).collect();
        let documented: std::collections::BTreeSet<&str> =
            documented.iter().map(String::as_str).collect();
        assert_eq!(rendered, documented);
        for file in ["alerts.yml", "grafana-dashboard.json"] {
            let text = std::fs::read_to_string(root.join("../scripts").join(file)).expect("a file");
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for word in words.filter(|word| word.starts_with("prefork_")) {
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| word.strip_suffix(end))
                    .unwrap_or(word);
                assert!(
                    rendered.contains(word) || rendered.contains(family),
                    "{file} uses {word}, which is no metric"
                );
            }
        }
    }
}
