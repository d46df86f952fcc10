//! The status document: a snapshot of the whole server.

use super::{Server, unix_time};
use crate::api::status::Totals as StatusTotals;
use crate::api::status::{Progress, Reloads, Scoreboard, SlotStatus, Status, WorkerStatus};
use crate::control::VERSION;
use crate::generation::Generation;
use crate::workers::handle::WorkerHandle;
use prefork_core::{View, WorkerView};
use prefork_os::monotonic;
use prefork_protocol::Slot;
use prefork_protocol::scoreboard::{LATENCY_BOUNDS_US, Reading, Totals};
use std::time::Duration;

impl Server {
    /// Returns the status as it is now.
    pub(crate) fn status(&self) -> Status {
        let view = self.core.view();
        let accepted = self.generations.accepted();
        let time = unix_time();
        let started = Duration::from_secs(self.operators.counts.started);
        let (unavailable, max_unavailable) = self.core.permits();
        let class = accepted
            .filter(|accepted| accepted.has_channel())
            .map(|accepted| accepted.config.class());
        Status {
            version: VERSION,
            name: self.name.clone(),
            instance: self.generations.instance().map(str::to_owned),
            pid: std::process::id(),
            program: crate::version::VERSION.into(),
            time: time.as_secs_f64(),
            uptime: time.saturating_sub(started).as_secs_f64(),
            state: view.state.into(),
            ready: view.ready,
            generation: view.generation.0,
            workers: view.open,
            min_workers: view.bounds.0,
            max_workers: view.bounds.1,
            autoscaling: accepted.is_some_and(|accepted| accepted.config.range),
            unavailable,
            max_unavailable,
            capacity: class.map(|class| u64::from(class.threads) * u64::from(class.connections)),
            slots: self.slots(&view),
            reload: view.reload.map(Progress::from),
            last_reload: self.operators.last_reload.clone(),
            last_upgrade: self.upgrade.last.clone(),
            reloads: Reloads {
                ok: self.operators.counts.reloads,
                failed: self.operators.counts.failed_reloads,
            },
            spawned: self.operators.counts.spawned,
            deaths: self.workers.exits.by_cause(),
            listeners: accepted
                .map(|accepted| accepted.sockets.describe())
                .unwrap_or_default(),
            admin: accepted
                .map(|accepted| accepted.admin.http.describe())
                .unwrap_or_default(),
            agent: accepted
                .map(|accepted| accepted.admin.agent.describe())
                .unwrap_or_default(),
            status_requests: self.operators.counts.status_requests,
            latency_bounds_us: LATENCY_BOUNDS_US.as_slice().into(),
            last_event: self.operators.journal.last(),
        }
    }

    fn slots(&self, view: &View) -> Vec<SlotStatus> {
        let accepted = self.generations.accepted();
        let now = monotonic();
        let served = self
            .workers
            .past_totals
            .iter()
            .rposition(|totals| *totals != Totals::default());
        let served = served
            .and_then(|slot| u16::try_from(slot + 1).ok())
            .unwrap_or(0);
        let alive = view
            .workers
            .iter()
            .map(|worker| worker.slot.0 + 1)
            .max()
            .unwrap_or(0);
        // Of retired slots, too, or the totals of all slots together would go back.
        let count = alive.max(view.open).max(served);
        // An empty slot counts what its next worker will count.
        let counts = accepted.is_some_and(Generation::has_channel);
        let slot = |slot: u16| {
            let mut totals = self
                .workers
                .past_totals
                .get(usize::from(slot))
                .copied()
                .unwrap_or_default();
            let mut counts_all = counts || counted(&totals);
            let mut counts_requests = totals.requests > 0;
            let here = view.workers.iter().filter(|worker| worker.slot.0 == slot);
            let workers: Vec<WorkerStatus> = here
                .filter_map(|worker| {
                    let handle = self.workers.handles.get(&worker.worker)?;
                    let reading = handle.reading();
                    if let Some(reading) = &reading {
                        totals.fold(reading);
                        counts_all = true;
                    }
                    let reported = handle.reported.requests;
                    totals.requests = totals.requests.saturating_add(reported.unwrap_or(0));
                    counts_requests |= reported.is_some();
                    Some(worker_status(worker, handle, reading, now))
                })
                .collect();
            SlotStatus {
                slot,
                open: slot < view.open,
                held: view.held.contains(&Slot(slot)),
                in_rotation: view.rotation.contains(&Slot(slot)),
                totals: StatusTotals::of(&totals, counts_all, counts_requests),
                queue: accepted.and_then(|accepted| accepted.sockets.queue_length(slot)),
                backlog: accepted.map_or(0, |accepted| accepted.config.backlog),
                workers,
            }
        };
        (0..count).map(slot).collect()
    }
}

/// Returns whether there is a number in it that only Rust workers count.
fn counted(totals: &Totals) -> bool {
    let requests = totals.requests;
    Totals {
        requests,
        ..Totals::default()
    } != *totals
}

/// Returns the status of a worker at `now`, by the clock of the scoreboard.
fn worker_status(
    view: &WorkerView,
    handle: &WorkerHandle,
    reading: Option<Reading>,
    now: Duration,
) -> WorkerStatus {
    let scoreboard = reading.map_or_else(
        || Scoreboard {
            requests: handle.reported.requests,
            busy: handle.reported.active,
            ..Scoreboard::default()
        },
        Scoreboard::from,
    );
    let reading = reading.unwrap_or_default();
    let since =
        |ms: u64| (ms > 0).then(|| now.saturating_sub(Duration::from_millis(ms)).as_secs_f64());
    WorkerStatus {
        worker: view.worker.0,
        pid: handle.pid.as_raw(),
        generation: view.generation.0,
        state: view.state.into(),
        status: handle.status.clone(),
        problem: handle.problem.clone(),
        age: now.saturating_sub(view.born.0).as_secs_f64(),
        beat_age: since(reading.heartbeat),
        memory: handle.memory,
        oldest_age: since(reading.oldest),
        scoreboard,
    }
}
