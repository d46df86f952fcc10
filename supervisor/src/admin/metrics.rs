//! The status as metrics, in the text format of Prometheus (0.0.4) or as OpenMetrics (1.0).
//!
//! Numbers that only grow come from totals in which dead workers count, so they never go back. `docs/metrics.md` lists all,
//! and a test compares.

use serde_json::Value;
use std::fmt::Write;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// What a client wants that accepts this.
    pub(crate) fn wanted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// What it is called in a response's head.
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
    MemorySampler,
    Histogram,
    Info,
}

const STATES: [&str; 6] = [
    "starting", "serving", "degraded", "draining", "pre-stop", "stopping",
];
const WORKER_STATES: [&str; 6] = [
    "starting", "ready", "stalled", "draining", "aborting", "killed",
];

/// Everything that the status tells, as metrics.
pub(crate) fn render(status: &Value, format: Format) -> String {
    let mut page = Page {
        format,
        text: String::new(),
        family: String::new(),
        kind: Kind::MemorySampler,
    };
    page.server(status);
    page.slots(status);
    if format == Format::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

struct Page {
    format: Format,
    text: String,
    family: String,
    kind: Kind,
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Page {
    fn server(&mut self, status: &Value) {
        let number = |name: &str| status[name].as_f64().unwrap_or(0.0);
        let yes = |yes: bool| f64::from(u8::from(yes));
        let word = |name: &str| status[name].as_str().unwrap_or_default();
        self.family("prefork_build", Kind::Info, "Which version serves.");
        self.sample(
            &[
                ("version", word("program")),
                ("instance_name", word("instance")),
            ],
            1.0,
        );
        self.one(
            "prefork_ready",
            "Whether everybody who comes is served and the server stays.",
            yes(status["ready"] == true),
        );
        self.family(
            "prefork_state",
            Kind::MemorySampler,
            "What the server does: 1 for the state that it is in.",
        );
        for state in STATES {
            self.sample(&[("state", state)], yes(status["state"] == state));
        }
        self.one(
            "prefork_start_time_seconds",
            "When the server started, upgrades in place included.",
            number("time") - number("uptime"),
        );
        self.one(
            "prefork_generation",
            "The generation that serves.",
            number("generation"),
        );
        self.one(
            "prefork_slots",
            "Slots that are to be filled.",
            number("workers"),
        );
        self.one(
            "prefork_slots_min",
            "The fewest slots that there may be.",
            number("min_workers"),
        );
        self.one(
            "prefork_slots_max",
            "The most slots that there may be.",
            number("max_workers"),
        );
        self.one(
            "prefork_slots_unavailable",
            "Slots that are not whole.",
            number("unavailable"),
        );
        self.one(
            "prefork_slots_unavailable_limit",
            "Slots that may be taken out of service on purpose.",
            number("max_unavailable"),
        );
        self.family(
            "prefork_workers",
            Kind::MemorySampler,
            "Workers that are alive, by what they do.",
        );
        let all: Vec<&Value> = list(&status["slots"])
            .iter()
            .flat_map(|slot| list(&slot["workers"]))
            .collect();
        for state in WORKER_STATES {
            let count = all.iter().filter(|worker| worker["state"] == state).count();
            self.sample(&[("state", state)], count as f64);
        }
        self.family(
            "prefork_workers_spawned",
            Kind::Counter,
            "Workers that were started.",
        );
        self.sample(&[], number("spawned"));
        self.family(
            "prefork_worker_deaths",
            Kind::Counter,
            "Workers that have died, by cause.",
        );
        for (cause, count) in status["deaths"].as_object().into_iter().flatten() {
            self.sample(&[("cause", cause)], count.as_f64().unwrap_or(0.0));
        }
        self.family(
            "prefork_reloads",
            Kind::Counter,
            "Reloads, by how they ended.",
        );
        for result in ["ok", "failed"] {
            self.sample(
                &[("result", result)],
                status["reloads"][result].as_f64().unwrap_or(0.0),
            );
        }
        self.one(
            "prefork_reload_in_progress",
            "Whether a reload is under way.",
            yes(status["reload"].is_object()),
        );
        self.family("prefork_events", Kind::Counter, "Events that were told.");
        self.sample(&[], number("last_event"));
        self.family(
            "prefork_status_requests",
            Kind::Counter,
            "Pictures of the server that were made.",
        );
        self.sample(&[], number("status_requests"));
    }

    fn slots(&mut self, status: &Value) {
        let slots = list(&status["slots"]);
        let total = |name: &'static str| move |slot: &Value| slot["totals"][name].as_f64();
        self.each(
            "prefork_slot_requests",
            Kind::Counter,
            "Requests answered.",
            slots,
            total("requests"),
        );
        self.each(
            "prefork_slot_errors",
            Kind::Counter,
            "Requests answered with a status of 500 or more.",
            slots,
            total("errors"),
        );
        self.each(
            "prefork_slot_connections",
            Kind::Counter,
            "Connections accepted.",
            slots,
            total("connections"),
        );
        self.each(
            "prefork_slot_received_bytes",
            Kind::Counter,
            "Bytes received from clients.",
            slots,
            total("bytes_in"),
        );
        self.each(
            "prefork_slot_sent_bytes",
            Kind::Counter,
            "Bytes sent to clients.",
            slots,
            total("bytes_out"),
        );
        self.family(
            "prefork_slot_request_duration_seconds",
            Kind::Histogram,
            "How long requests were in hand.",
        );
        let bounds: Vec<f64> = list(&status["latency_bounds_us"])
            .iter()
            .filter_map(Value::as_f64)
            .map(|us| us / 1e6)
            .collect();
        for slot in slots {
            self.histogram(&name(slot), &slot["totals"], &bounds);
        }
        let sum = |field: &'static str| {
            move |slot: &Value| {
                Some(
                    list(&slot["workers"])
                        .iter()
                        .filter_map(|one| one["scoreboard"][field].as_f64())
                        .sum(),
                )
            }
        };
        self.each(
            "prefork_slot_open_connections",
            Kind::MemorySampler,
            "Connections open now.",
            slots,
            sum("open"),
        );
        self.each(
            "prefork_slot_requests_in_hand",
            Kind::MemorySampler,
            "Requests in hand now.",
            slots,
            sum("busy"),
        );
        self.each(
            "prefork_slot_queue",
            Kind::MemorySampler,
            "Connections that wait to be accepted, where the slot has a queue of its own.",
            slots,
            |slot| slot["queue"].as_f64(),
        );
        self.each(
            "prefork_slot_queue_limit",
            Kind::MemorySampler,
            "Connections that may wait.",
            slots,
            |slot| slot["backlog"].as_f64(),
        );
        let most = |field: &'static str| {
            move |slot: &Value| {
                list(&slot["workers"])
                    .iter()
                    .filter_map(|one| one[field].as_f64())
                    .reduce(f64::max)
            }
        };
        self.each(
            "prefork_slot_oldest_request_seconds",
            Kind::MemorySampler,
            "For how long the oldest request has been in a handler's hands; 0 when none is.",
            slots,
            move |slot| Some(most("oldest_age")(slot).unwrap_or(0.0)),
        );
        self.each(
            "prefork_slot_in_rotation",
            Kind::MemorySampler,
            "Whether new connections go to the slot.",
            slots,
            |slot| Some(f64::from(u8::from(slot["in_rotation"] == true))),
        );
        self.each(
            "prefork_slot_memory_bytes",
            Kind::MemorySampler,
            "Proportional set size of the slot's workers, with max-memory.",
            slots,
            |slot| {
                let known: Vec<f64> = list(&slot["workers"])
                    .iter()
                    .filter_map(|one| one["memory"].as_f64())
                    .collect();
                (!known.is_empty()).then(|| known.iter().sum())
            },
        );
    }

    /// A bucket counts what fell into it and into those below it (Prometheus, *Histograms and summaries*).
    fn histogram(&mut self, slot: &str, totals: &Value, bounds: &[f64]) {
        let mut count = 0.0;
        let buckets = list(&totals["latency"]);
        for (index, bucket) in buckets.iter().enumerate() {
            count += bucket.as_f64().unwrap_or(0.0);
            let bound = bounds
                .get(index)
                .map_or("+Inf".to_owned(), |bound| decimal(*bound, self.format));
            self.line("_bucket", &[("slot", slot), ("le", &bound)], count);
        }
        self.line(
            "_sum",
            &[("slot", slot)],
            totals["busy_us"].as_f64().unwrap_or(0.0) / 1e6,
        );
        self.line("_count", &[("slot", slot)], count);
    }

    fn one(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, Kind::MemorySampler, help);
        self.sample(&[], value);
    }

    fn each(
        &mut self,
        family: &str,
        kind: Kind,
        help: &str,
        slots: &[Value],
        value: impl Fn(&Value) -> Option<f64>,
    ) {
        self.family(family, kind, help);
        for slot in slots {
            if let Some(value) = value(slot) {
                self.sample(&[("slot", &name(slot))], value);
            }
        }
    }

    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        (self.family, self.kind) = (name.to_owned(), kind);
        // OpenMetrics names a family without the ending that its samples have.
        let (told, word) = match (self.format, kind) {
            (Format::OpenMetrics, Kind::Counter) => (name.to_owned(), "counter"),
            (Format::OpenMetrics, Kind::Info) => (name.to_owned(), "info"),
            (Format::Prometheus, Kind::Counter) => (format!("{name}_total"), "counter"),
            (Format::Prometheus, Kind::Info) => (format!("{name}_info"), "gauge"),
            (_, Kind::MemorySampler) => (name.to_owned(), "gauge"),
            (_, Kind::Histogram) => (name.to_owned(), "histogram"),
        };
        // A string takes every line, here and below.
        let _ = write!(self.text, "# HELP {told} {help}\n# TYPE {told} {word}\n");
        let unit = ["seconds", "bytes"]
            .into_iter()
            .find(|unit| name.ends_with(&format!("_{unit}")));
        if let (Format::OpenMetrics, Some(unit)) = (self.format, unit) {
            let _ = writeln!(self.text, "# UNIT {told} {unit}");
        }
    }

    fn sample(&mut self, labels: Labels<'_>, value: f64) {
        let ending = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::MemorySampler | Kind::Histogram => "",
        };
        self.line(ending, labels, value);
    }

    fn line(&mut self, ending: &str, labels: Labels<'_>, value: f64) {
        self.text.push_str(&self.family);
        self.text.push_str(ending);
        for (index, (name, value)) in labels.iter().enumerate() {
            let _ = write!(
                self.text,
                "{}{name}=\"{}\"",
                if index == 0 { '{' } else { ',' },
                escaped(value)
            );
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(
            self.text,
            " {}",
            if value.is_finite() { value } else { 0.0 }
        );
    }
}

/// OpenMetrics wants a bound to look like a number with a fraction.
fn decimal(bound: f64, format: Format) -> String {
    if format == Format::OpenMetrics && bound.fract() == 0.0 {
        format!("{bound:.1}")
    } else {
        bound.to_string()
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn name(slot: &Value) -> String {
    slot["slot"].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status() -> Value {
        let totals = json!({"requests":5,"connections":3,"errors":1,"bytes_in":10,"bytes_out":20,"busy_us":1_500_000,"latency":[2,1,2]});
        json!({
            "program":"1.2.3","instance":"a\"b\\c","ready":true,"state":"serving","time":1000.5,"uptime":100.0,
            "generation":2,"workers":2,"deaths":{"hang":4},"reloads":{"ok":1,"failed":2},"spawned":9,"last_event":70,
            "latency_bounds_us":[500,1_000_000],
            "slots":[{"slot":0,"totals":totals,"queue":3,"backlog":64,"in_rotation":true,"workers":[
                {"state":"ready","memory":4096,"oldest_age":0.5,"scoreboard":{"open":2,"busy":1}}]},
                {"slot":1,"totals":totals,"queue":null,"backlog":64,"in_rotation":false,"workers":[]}]
        })
    }

    #[test]
    fn buckets_are_cumulative_and_labels_are_escaped() {
        let text = render(&status(), Format::Prometheus);
        let line =
            |wanted: &str| assert!(text.lines().any(|line| line == wanted), "{wanted}\n{text}");
        line(r#"prefork_build_info{version="1.2.3",instance_name="a\"b\\c"} 1"#);
        line(r#"prefork_slot_request_duration_seconds_bucket{slot="0",le="0.0005"} 2"#);
        line(r#"prefork_slot_request_duration_seconds_bucket{slot="0",le="1"} 3"#);
        line(r#"prefork_slot_request_duration_seconds_bucket{slot="0",le="+Inf"} 5"#);
        line(r#"prefork_slot_request_duration_seconds_sum{slot="0"} 1.5"#);
        line(r#"prefork_slot_requests_total{slot="1"} 5"#);
        line(r#"prefork_worker_deaths_total{cause="hang"} 4"#);
        line(r#"prefork_slot_queue{slot="0"} 3"#);
        line(r#"prefork_slot_memory_bytes{slot="0"} 4096"#);
        line("prefork_start_time_seconds 900.5");
        assert!(!text.contains("slot_queue{slot=\"1\"}"), "nobody knows it");
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
            render(&json!({}), Format::Prometheus).contains("prefork_ready 0"),
            "whatever is missing is 0"
        );
    }

    #[test]
    fn every_metric_is_documented_and_every_documented_one_is_there() {
        let text = render(&status(), Format::Prometheus);
        let types = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let told: std::collections::BTreeSet<&str> = types.collect();
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
        assert_eq!(told, documented);
        for file in ["alerts.yml", "grafana-dashboard.json"] {
            let text = std::fs::read_to_string(root.join("../scripts").join(file)).expect("a file");
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for word in words.filter(|word| word.starts_with("prefork_")) {
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| word.strip_suffix(end))
                    .unwrap_or(word);
                assert!(
                    told.contains(word) || told.contains(family),
                    "{file} uses {word}, which is no metric"
                );
            }
        }
    }
}
