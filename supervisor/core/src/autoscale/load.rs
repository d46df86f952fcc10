//! The load of workers, and how the number of workers is to follow it.

use crate::id::Slot;
use crate::record;
use std::time::Duration;

/// How the number of workers follows the load, between [`workers`](crate::Plan::workers) and
/// [`max_workers`](crate::Plan::max_workers).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Autoscale {
    /// How long a worker must have been unneeded before it is retired.
    pub down_after: Duration,
    /// Bytes that all workers together may use after a scale-up.
    pub memory: Option<u64>,
    /// Requests that one worker handles at a time; `None` when their number does not show how busy
    /// it is, but its processor time does.
    pub requests_per_worker: Option<u32>,
}

record!(Autoscale {
    down_after,
    memory,
    requests_per_worker
});

/// The load of one worker. Untrusted, like everything observed of workers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WorkerLoad {
    /// Time spent since the worker started: on requests in flight, each counted separately; or on a
    /// processor.
    pub spent: Duration,
    /// Requests in flight now; `None` when unknown.
    pub in_flight: Option<u32>,
    /// Connections in use as a share of the most it can have, from 0 to 1.
    pub filled: f64,
    /// Bytes of private memory, if requested.
    pub memory: Option<u64>,
}

/// Why the autoscaler changes the number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleReason {
    /// This many connections wait, and no worker is idle.
    Backlog(u32),
    /// The workers are busy for this percentage of their time.
    Busy(u8),
    /// This slot has not been needed for this long.
    Unneeded(Slot, Duration),
}
