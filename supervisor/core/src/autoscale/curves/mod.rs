//! The autoscaler against load curves: what it costs, and what clients notice.
//!
//! A small server is simulated request by request around a real [`Core`](crate::Core): requests
//! arrive at random at the rate of a curve, take a random time, wait in their slot's queue while no
//! worker is idle, and are stolen by workers that are. Each curve is run with two workers, with
//! sixteen, and with `2..16`; what counts is how many *worker-seconds* that took (workers × time)
//! and how long clients waited.
//!
//! * `world` – the server and its clients;
//! * `shapes` – the curves;
//! * `plot` – tables and pictures for `docs/autoscaling.md` (`scripts/autoscaling-plots`).
//!
//! `CURVES_SEED=n` gives another random run.

mod plot;
mod shapes;
mod world;

use crate::fixtures::PLAN;
use crate::{Autoscale, Plan};
use shapes::Curve;
use std::time::Duration;
use world::{Outcome, World};

/// Returns a plan for workers of one request at a time, as stock apps are with `--class sync`.
fn plan(workers: u16, most: u16) -> Plan {
    let autoscale = Autoscale {
        down_after: Duration::from_mins(1),
        memory: None,
        requests_per_worker: Some(1),
    };
    Plan {
        workers,
        max_workers: most,
        autoscale: (most > workers).then_some(autoscale),
        ..PLAN
    }
}

fn seed() -> u64 {
    std::env::var("CURVES_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1)
}

/// The three runs of a curve: two workers, sixteen, and as many as the load needs.
struct Trio {
    curve: Curve,
    two: Outcome,
    sixteen: Outcome,
    autoscaled: Outcome,
}

impl Trio {
    fn of(curve: Curve) -> Self {
        let run = |plan| World::new(&curve, plan, seed()).run();
        let (two, sixteen, autoscaled) = (run(plan(2, 2)), run(plan(16, 16)), run(plan(2, 16)));
        Self {
            curve,
            two,
            sixteen,
            autoscaled,
        }
    }

    /// The 99th percentile of the range over that of sixteen, without the rush's first seconds.
    fn slower(&self) -> f64 {
        let p99 = |outcome: &Outcome| outcome.percentile(0.99, |at| !self.curve.is_rush(at));
        p99(&self.autoscaled) / p99(&self.sixteen)
    }

    /// The worker-seconds of the range over those of sixteen.
    fn cheaper(&self) -> f64 {
        self.autoscaled.worker_seconds / self.sixteen.worker_seconds
    }
}

#[test]
fn what_clients_notice_and_what_it_costs_on_each_curve() {
    for (curve, slower, cheaper) in [
        (Curve::diurnal(), 1.5, 0.65),
        (Curve::flash_crowd(), 1.5, 0.6),
        (Curve::sawtooth(90.0), 1.5, 0.95),
        (Curve::recorded(), 1.5, 0.95),
    ] {
        let trio = Trio::of(curve);
        let (name, seed) = (trio.curve.name, seed());
        println!("{}", plot::row(&trio));
        assert!(
            trio.slower() <= slower,
            "{name} (CURVES_SEED={seed}): p99 is {:.2} of sixteen's",
            trio.slower()
        );
        assert!(
            trio.cheaper() <= cheaper,
            "{name} (CURVES_SEED={seed}): costs {:.2} of sixteen",
            trio.cheaper()
        );
        assert!(
            trio.autoscaled.answered == trio.sixteen.answered,
            "{name}: no request is lost"
        );
    }
}

#[test]
fn a_rush_is_met_within_seconds() {
    let trio = Trio::of(Curve::flash_crowd());
    let met = trio
        .autoscaled
        .met_after(trio.curve.rush.expect("it has one"), 10);
    assert!(met < 3.0, "ten workers after {met:.1} s");
}

#[test]
fn teeth_that_are_shorter_than_the_wait_stop_hardly_any_worker() {
    let trio = Trio::of(Curve::sawtooth(45.0));
    let spawned = trio.autoscaled.spawned;
    assert!(
        spawned <= 32,
        "{spawned} workers were started in twenty teeth"
    );
}

/// Writes the table and the pictures of `docs/autoscaling.md`.
#[test]
#[ignore = "run by scripts/autoscaling-plots"]
fn draw() {
    let Some(directory) = std::env::var_os("CURVES_OUT") else {
        return;
    };
    plot::write(std::path::Path::new(&directory)).expect("files can be written there");
}
