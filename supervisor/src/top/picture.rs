//! What the server tells, as numbers, and what changed from one time to the next.

use super::words::harmless;
use serde_json::Value;
use std::collections::BTreeMap;

/// The server at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Picture {
    pub(crate) time: f64,
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) version: String,
    pub(crate) ready: bool,
    pub(crate) uptime: f64,
    pub(crate) generation: u64,
    pub(crate) listeners: Vec<String>,
    pub(crate) workers: u64,
    pub(crate) range: (u64, u64),
    pub(crate) unavailable: (u64, u64),
    pub(crate) reload: Option<Reload>,
    pub(crate) last_failure: Option<String>,
    pub(crate) reloads: (u64, u64),
    /// By cause, those that are not 0.
    pub(crate) deaths: Vec<(String, u64)>,
    pub(crate) slots: Vec<Slot>,
    /// The upper ends of the latency buckets, in seconds.
    bounds: Vec<f64>,
}

/// How far a reload is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reload {
    pub(crate) generation: u64,
    pub(crate) slots: u64,
    pub(crate) spawned: u64,
    pub(crate) ready: u64,
    pub(crate) passed: u64,
}

/// A slot.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Slot {
    pub(crate) slot: u64,
    pub(crate) open: bool,
    pub(crate) held: bool,
    pub(crate) in_rotation: bool,
    pub(crate) queue: Option<u64>,
    pub(crate) totals: Totals,
    pub(crate) workers: Vec<Worker>,
}

/// What a slot's workers have done.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Totals {
    requests: f64,
    errors: f64,
    connections: f64,
    received: f64,
    sent: f64,
    latency: Vec<f64>,
}

/// A worker.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Worker {
    pub(crate) worker: u64,
    pub(crate) pid: u64,
    pub(crate) generation: u64,
    pub(crate) state: String,
    pub(crate) status: String,
    pub(crate) age: f64,
    pub(crate) busy: u64,
    pub(crate) open: u64,
    pub(crate) memory: Option<f64>,
    pub(crate) oldest: Option<f64>,
}

/// What happened a second, between two pictures.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rates {
    pub(crate) requests: f64,
    pub(crate) errors: f64,
    pub(crate) connections: f64,
    pub(crate) received: f64,
    pub(crate) sent: f64,
    /// Half of the requests took no longer, and 99 of 100; in seconds; `None` when there were none.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
}

impl Picture {
    /// Reads one; what is missing is 0 or empty.
    pub(crate) fn read(status: &Value) -> Self {
        let number = |name: &str| whole(&status[name]);
        let reload = status["reload"].is_object().then(|| {
            let part = |name: &str| whole(&status["reload"][name]);
            Reload {
                generation: part("generation"),
                slots: part("slots"),
                spawned: part("spawned"),
                ready: part("ready"),
                passed: part("passed"),
            }
        });
        let deaths = status["deaths"].as_object().into_iter().flatten();
        Self {
            time: real(&status["time"]),
            name: text(status["instance"].as_str().or(status["name"].as_str())),
            state: text(status["state"].as_str()),
            version: text(status["program"].as_str()),
            ready: status["ready"] == true,
            uptime: real(&status["uptime"]),
            generation: number("generation"),
            listeners: list(&status["listeners"])
                .iter()
                .map(|one| text(one.as_str()))
                .collect(),
            workers: number("workers"),
            range: (number("min_workers"), number("max_workers")),
            unavailable: (number("unavailable"), number("max_unavailable")),
            reload,
            last_failure: status["last_reload"]["reason"].as_str().map(harmless),
            reloads: (
                whole(&status["reloads"]["ok"]),
                whole(&status["reloads"]["failed"]),
            ),
            deaths: deaths
                .map(|(cause, count)| (harmless(cause), whole(count)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            slots: list(&status["slots"]).iter().map(Slot::read).collect(),
            bounds: list(&status["latency_bounds_us"])
                .iter()
                .map(|bound| real(bound) / 1e6)
                .collect(),
        }
    }

    /// What happened since an earlier picture, in each slot and altogether. A server that was started anew has no past.
    pub(crate) fn since(&self, before: &Self) -> (BTreeMap<u64, Rates>, Rates) {
        let span = self.time - before.time;
        let same = self.uptime >= before.uptime;
        let mut all = Totals::default();
        let mut rates = BTreeMap::new();
        for slot in &self.slots {
            let earlier = before
                .slots
                .iter()
                .find(|other| other.slot == slot.slot)
                .filter(|_| same);
            let did = slot.totals.minus(earlier.map(|earlier| &earlier.totals));
            let did = if same || earlier.is_some() {
                did
            } else {
                Totals::default()
            };
            rates.insert(slot.slot, did.rates(span, &self.bounds));
            all.add(&did);
        }
        (rates, all.rates(span, &self.bounds))
    }

    /// Connections that wait.
    pub(crate) fn queue(&self) -> u64 {
        self.slots.iter().filter_map(|slot| slot.queue).sum()
    }
}

impl Slot {
    fn read(slot: &Value) -> Self {
        let total = |name: &str| real(&slot["totals"][name]);
        Self {
            slot: whole(&slot["slot"]),
            open: slot["open"] != false,
            held: slot["held"] == true,
            in_rotation: slot["in_rotation"] == true,
            queue: slot["queue"].as_u64(),
            totals: Totals {
                requests: total("requests"),
                errors: total("errors"),
                connections: total("connections"),
                received: total("bytes_in"),
                sent: total("bytes_out"),
                latency: list(&slot["totals"]["latency"]).iter().map(real).collect(),
            },
            workers: list(&slot["workers"]).iter().map(Worker::read).collect(),
        }
    }
}

impl Worker {
    fn read(worker: &Value) -> Self {
        Self {
            worker: whole(&worker["worker"]),
            pid: whole(&worker["pid"]),
            generation: whole(&worker["generation"]),
            state: text(worker["state"].as_str()),
            status: text(worker["status"].as_str()),
            age: real(&worker["age"]),
            busy: whole(&worker["scoreboard"]["busy"]),
            open: whole(&worker["scoreboard"]["open"]),
            memory: worker["memory"].as_f64(),
            oldest: worker["oldest_age"].as_f64(),
        }
    }
}

impl Totals {
    fn minus(&self, before: Option<&Self>) -> Self {
        let none = Self::default();
        let before = before.unwrap_or(&none);
        let less = |now: f64, then: f64| (now - then).max(0.0);
        let bucket = |(index, now): (usize, &f64)| {
            less(*now, before.latency.get(index).copied().unwrap_or(0.0))
        };
        Self {
            requests: less(self.requests, before.requests),
            errors: less(self.errors, before.errors),
            connections: less(self.connections, before.connections),
            received: less(self.received, before.received),
            sent: less(self.sent, before.sent),
            latency: self.latency.iter().enumerate().map(bucket).collect(),
        }
    }

    fn add(&mut self, more: &Self) {
        self.requests += more.requests;
        self.errors += more.errors;
        self.connections += more.connections;
        self.received += more.received;
        self.sent += more.sent;
        self.latency
            .resize(self.latency.len().max(more.latency.len()), 0.0);
        for (sum, more) in self.latency.iter_mut().zip(&more.latency) {
            *sum += more;
        }
    }

    fn rates(&self, span: f64, bounds: &[f64]) -> Rates {
        let a_second = |count: f64| if span > 0.0 { count / span } else { 0.0 };
        Rates {
            requests: a_second(self.requests),
            errors: a_second(self.errors),
            connections: a_second(self.connections),
            received: a_second(self.received),
            sent: a_second(self.sent),
            p50: quantile(&self.latency, bounds, 0.5),
            p99: quantile(&self.latency, bounds, 0.99),
        }
    }
}

/// How long a share of the requests took at most: the end of the bucket in which that request fell. Of the last bucket, which
/// has no end, its beginning.
fn quantile(buckets: &[f64], bounds: &[f64], share: f64) -> Option<f64> {
    let all: f64 = buckets.iter().sum();
    let wanted = all * share;
    let mut seen = 0.0;
    let place = buckets.iter().position(|count| {
        seen += count;
        *count > 0.0 && seen >= wanted
    })?;
    bounds.get(place).or(bounds.last()).copied()
}

fn real(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn whole(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn text(word: Option<&str>) -> String {
    harmless(word.unwrap_or_default())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A server of two slots that has answered so many requests in each.
    pub(crate) fn status(time: f64, requests: [u64; 2]) -> Value {
        let slot = |slot: usize| {
            json!({
                "slot":slot,"open":true,"held":false,"in_rotation":true,"queue":slot,
                "totals":{"requests":requests[slot],"errors":0,"connections":requests[slot],"bytes_in":0,"bytes_out":requests[slot] * 1000,
                    "latency":[requests[slot], 0, 0]},
                "workers":[{"worker":slot + 1,"pid":100 + slot,"generation":2,"state":"ready","status":"a\u{1b}[31mb","age":65.0,
                    "memory":slot * 8_388_608,"oldest_age":null,"scoreboard":{"busy":slot,"open":3}}]
            })
        };
        json!({
            "name":"supervisor","instance":"shop","state":"serving","program":"1.0","ready":true,"time":time,"uptime":time - 100.0,
            "generation":2,"workers":2,"min_workers":1,"max_workers":8,"unavailable":0,"max_unavailable":1,"listeners":["127.0.0.1:8000"],
            "deaths":{"hang":1,"exit":0},"reloads":{"ok":1,"failed":0},"latency_bounds_us":[500,1000],"slots":[slot(0), slot(1)]
        })
    }

    #[test]
    fn rates_are_differences_over_time() {
        let (before, now) = (
            Picture::read(&status(1000.0, [10, 5])),
            Picture::read(&status(1002.0, [30, 5])),
        );
        let (slots, all) = now.since(&before);
        assert_eq!(
            (
                slots[&0].requests,
                slots[&1].requests,
                all.requests,
                all.sent
            ),
            (10.0, 0.0, 10.0, 10_000.0)
        );
        assert_eq!(
            (all.p50, all.p99, slots[&1].p99),
            (Some(0.0005), Some(0.0005), None)
        );
        // A server that was started anew.
        let young = Picture {
            uptime: 1.0,
            ..now.clone()
        };
        assert_eq!(young.since(&now).1.requests, 0.0);
        // Nothing that a worker says commands the terminal.
        assert_eq!(now.slots[0].workers[0].status, "a [31mb");
        assert_eq!(Picture::read(&json!({})), Picture::default());
    }

    #[test]
    fn quantiles_are_the_ends_of_buckets() {
        let bounds = [0.1, 0.2];
        assert_eq!(quantile(&[98.0, 1.0, 1.0], &bounds, 0.5), Some(0.1));
        assert_eq!(quantile(&[98.0, 1.0, 1.0], &bounds, 0.99), Some(0.2));
        assert_eq!(
            quantile(&[0.0, 0.0, 9.0], &bounds, 0.5),
            Some(0.2),
            "at least"
        );
        assert_eq!(quantile(&[0.0, 0.0], &bounds, 0.5), None);
    }
}
