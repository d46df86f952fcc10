//! A snapshot of the server, and the rates between two of them.

use crate::api::status::{SlotStatus, Status, Totals, approximate};
use crate::control::client::printable::printable;
use std::collections::BTreeMap;

/// The server at one time. Whatever a worker or a configuration has a say in is printable.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) status: Status,
}

/// What happened per second between two snapshots; `None` for what nothing counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rates {
    pub(crate) requests: Option<f64>,
    pub(crate) errors: Option<f64>,
    pub(crate) connections: Option<f64>,
    pub(crate) received: Option<f64>,
    pub(crate) sent: Option<f64>,
    /// The median duration of requests and the 99th percentile, in seconds; `None` without
    /// requests.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
}

impl Snapshot {
    /// Takes the status of a server, and makes its texts printable.
    pub(crate) fn new(mut status: Status) -> Self {
        let clean = |text: &mut String| *text = printable(text);
        clean(&mut status.name);
        status.instance.iter_mut().for_each(clean);
        status.program = printable(&status.program).into();
        status.listeners.iter_mut().for_each(clean);
        let reason = status.last_reload.as_mut();
        reason
            .and_then(|last| last.reason.as_mut())
            .into_iter()
            .for_each(clean);
        status.deaths = std::mem::take(&mut status.deaths)
            .into_iter()
            .map(|(cause, count)| (printable(&cause), count))
            .collect();
        for slot in &mut status.slots {
            for worker in &mut slot.workers {
                clean(&mut worker.status);
            }
        }
        Self { status }
    }

    /// Returns what happened since an earlier snapshot, by slot and in total. A server that was
    /// restarted has no past.
    pub(crate) fn since(&self, before: &Self) -> (BTreeMap<u16, Rates>, Rates) {
        let (status, before) = (&self.status, &before.status);
        let span = status.time - before.time;
        let same = status.uptime >= before.uptime;
        let bounds: Vec<f64> = status
            .latency_bounds_us
            .iter()
            .map(|bound| approximate(*bound) / 1e6)
            .collect();
        let mut all = Totals::default();
        let mut rates = BTreeMap::new();
        for slot in &status.slots {
            let earlier = before.slots.iter().find(|other| other.slot == slot.slot);
            let did = if same {
                minus(&slot.totals, earlier)
            } else {
                minus(&slot.totals, Some(slot))
            };
            rates.insert(slot.slot, Rates::of(&did, span, &bounds));
            add(&mut all, &did);
        }
        let all = Rates::of(&all, span, &bounds);
        (rates, all)
    }

    /// Returns the worker exits by cause, without those that are 0.
    pub(crate) fn deaths(&self) -> impl Iterator<Item = (&str, u64)> {
        let deaths = self.status.deaths.iter().filter(|(_, count)| **count > 0);
        deaths.map(|(cause, count)| (cause.as_str(), *count))
    }

    /// Returns why the last reload failed, if it did.
    pub(crate) fn last_failure(&self) -> Option<&str> {
        self.status.last_reload.as_ref()?.reason.as_deref()
    }
}

impl Rates {
    fn of(did: &Totals, span: f64, bounds: &[f64]) -> Self {
        let rate = |count: Option<u64>| {
            count.map(|count| {
                if span > 0.0 {
                    approximate(count) / span
                } else {
                    0.0
                }
            })
        };
        Self {
            requests: rate(did.requests),
            errors: rate(did.errors),
            connections: rate(did.connections),
            received: rate(did.bytes_in),
            sent: rate(did.bytes_out),
            p50: quantile(&did.latency, bounds, 0.5),
            p99: quantile(&did.latency, bounds, 0.99),
        }
    }
}

/// Returns what a slot's workers have done since an earlier snapshot of it.
fn minus(now: &Totals, before: Option<&SlotStatus>) -> Totals {
    let none = Totals::default();
    let before = before.map_or(&none, |slot| &slot.totals);
    let did = |now: Option<u64>, before: Option<u64>| {
        now.map(|now| now.saturating_sub(before.unwrap_or(0)))
    };
    let bucket = |(index, count): (usize, &u64)| {
        count.saturating_sub(before.latency.get(index).copied().unwrap_or(0))
    };
    Totals {
        requests: did(now.requests, before.requests),
        connections: did(now.connections, before.connections),
        errors: did(now.errors, before.errors),
        bytes_in: did(now.bytes_in, before.bytes_in),
        bytes_out: did(now.bytes_out, before.bytes_out),
        busy_us: did(now.busy_us, before.busy_us),
        latency: now.latency.iter().enumerate().map(bucket).collect(),
    }
}

fn add(sum: &mut Totals, more: &Totals) {
    for (sum, more) in [
        (&mut sum.requests, more.requests),
        (&mut sum.connections, more.connections),
        (&mut sum.errors, more.errors),
        (&mut sum.bytes_in, more.bytes_in),
        (&mut sum.bytes_out, more.bytes_out),
        (&mut sum.busy_us, more.busy_us),
    ] {
        if let Some(more) = more {
            *sum = Some(sum.unwrap_or(0).saturating_add(more));
        }
    }
    let buckets = sum.latency.len().max(more.latency.len());
    sum.latency.resize(buckets, 0);
    for (sum, more) in sum.latency.iter_mut().zip(&more.latency) {
        *sum = sum.saturating_add(*more);
    }
}

/// Returns how long a share of the requests took at most: the upper bound of the bucket into which
/// that request fell. The last bucket has none, and counts as its lower bound.
fn quantile(buckets: &[u64], bounds: &[f64], share: f64) -> Option<f64> {
    let all: f64 = buckets.iter().copied().map(approximate).sum();
    let wanted = all * share;
    let mut seen = 0.0;
    let index = buckets.iter().position(|count| {
        seen += approximate(*count);
        *count > 0 && seen >= wanted
    })?;
    bounds.get(index).or(bounds.last()).copied()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::api::status::tests::document;

    /// The status of a server of two slots that has answered this many requests in each.
    pub(crate) fn status(time: f64, requests: [u64; 2]) -> Status {
        let mut status = document();
        (status.time, status.uptime) = (time, time - 100.0);
        (status.reload, status.last_reload) = (None, None);
        (status.deaths, status.reloads.ok, status.reloads.failed) =
            ([("exit".into(), 0), ("hang".into(), 1)].into(), 1, 0);
        status.latency_bounds_us = vec![500, 1000].into();
        let first = status.slots[0].workers[0].clone();
        for (number, requests) in (0_u16..).zip(requests) {
            let mut worker = first.clone();
            worker.worker = u64::from(number) + 1;
            worker.pid = 100 + i32::from(number);
            worker.status = "a\u{1b}[31mb".into();
            worker.memory = Some(u64::from(number) << 23);
            worker.oldest_age = None;
            worker.scoreboard.busy = Some(u64::from(number));
            worker.scoreboard.open = Some(3);
            status.slots[usize::from(number)] = SlotStatus {
                slot: number,
                open: true,
                held: false,
                in_rotation: true,
                totals: Totals {
                    requests: Some(requests),
                    connections: Some(requests),
                    errors: Some(0),
                    bytes_in: Some(0),
                    bytes_out: Some(requests * 1000),
                    busy_us: Some(0),
                    latency: vec![requests, 0, 0],
                },
                queue: Some(number.into()),
                backlog: 64,
                workers: vec![worker],
            };
        }
        status
    }

    #[test]
    fn rates_are_differences_over_time() {
        let before = Snapshot::new(status(1000.0, [10, 5]));
        let now = Snapshot::new(status(1002.0, [30, 5]));
        let (slots, all) = now.since(&before);
        let shown = [
            slots[&0].requests,
            slots[&1].requests,
            all.requests,
            all.sent,
        ];
        assert_eq!(
            shown.map(|rate| format!("{}", rate.expect("it is counted"))),
            ["10", "0", "10", "10000"]
        );
        assert_eq!(
            (all.p50, all.p99, slots[&1].p99),
            (Some(0.0005), Some(0.0005), None)
        );
    }

    #[test]
    fn a_restarted_server_has_no_past() {
        let now = Snapshot::new(status(1002.0, [30, 5]));
        let mut young = now.clone();
        young.status.uptime = 1.0;
        let rates = young.since(&now).1;
        assert_eq!((rates.requests, rates.p99), (Some(0.0), None));
    }

    #[test]
    fn text_of_a_worker_cannot_command_the_terminal() {
        let snapshot = Snapshot::new(status(1000.0, [0, 0]));
        assert_eq!(snapshot.status.slots[0].workers[0].status, "a [31mb");
    }

    #[test]
    fn quantiles_are_the_bounds_of_buckets() {
        let bounds = [0.1, 0.2];
        assert_eq!(quantile(&[98, 1, 1], &bounds, 0.5), Some(0.1));
        assert_eq!(quantile(&[98, 1, 1], &bounds, 0.99), Some(0.2));
        assert_eq!(quantile(&[0, 0, 9], &bounds, 0.5), Some(0.2), "at least");
        assert_eq!(quantile(&[0, 0], &bounds, 0.5), None);
    }
}
