//! The picture of the server that `status` tells.

use super::{Server, unix_time};
use crate::api::status::{Reloads, SlotStatus, Status, WorkerStatus};
use crate::control::VERSION;
use prefork_core::View;
use prefork_os::monotonic;
use prefork_protocol::Slot;
use prefork_protocol::scoreboard::{LATENCY_BOUNDS_US, Totals};

impl Server {
    /// How everything is now.
    pub(crate) fn status(&self) -> Status {
        let view = self.core.view();
        let accepted = self.generations.get(&self.accepted);
        let time = unix_time();
        let (unavailable, max_unavailable) = self.core.permits();
        let class = accepted
            .filter(|accepted| accepted.has_channel())
            .map(|accepted| accepted.config.class());
        Status {
            version: VERSION,
            name: self.name.clone(),
            instance: accepted.and_then(|accepted| accepted.config.name.clone()),
            pid: std::process::id(),
            program: crate::version::VERSION,
            time,
            uptime: (time - self.counts.started as f64).max(0.0),
            state: view.state,
            ready: view.ready,
            generation: view.generation.0,
            workers: view.open,
            min_workers: view.bounds.0,
            max_workers: view.bounds.1,
            unavailable,
            max_unavailable,
            capacity: class.map(|class| u64::from(class.threads) * u64::from(class.connections)),
            slots: self.slots(&view),
            reload: view.reload,
            last_reload: self.last_reload.clone(),
            last_upgrade: self.upgrade.last.clone(),
            reloads: Reloads {
                ok: self.counts.reloads,
                failed: self.counts.failed_reloads,
            },
            spawned: self.counts.spawned,
            deaths: self.deaths.by_cause(),
            listeners: accepted
                .map(|accepted| accepted.sockets.describe())
                .unwrap_or_default(),
            admin: accepted
                .map(|accepted| accepted.admin.http.describe())
                .unwrap_or_default(),
            agent: accepted
                .map(|accepted| accepted.admin.agent.describe())
                .unwrap_or_default(),
            status_requests: self.counts.pictures,
            latency_bounds_us: &LATENCY_BOUNDS_US,
            last_event: self.journal.last(),
        }
    }

    fn slots(&self, view: &View) -> Vec<SlotStatus> {
        let accepted = self.generations.get(&self.accepted);
        let now = monotonic();
        let served = self
            .dead
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
        let slot = |slot: u16| {
            let mut totals = self
                .dead
                .get(usize::from(slot))
                .copied()
                .unwrap_or_default();
            let here = view.workers.iter().filter(|worker| worker.slot.0 == slot);
            let workers: Vec<WorkerStatus> = here
                .filter_map(|worker| {
                    Some(WorkerStatus::new(
                        worker,
                        self.hands.get(&worker.worker)?,
                        now,
                    ))
                })
                .collect();
            workers
                .iter()
                .for_each(|worker| totals.fold(&worker.scoreboard));
            SlotStatus {
                slot,
                open: slot < view.open,
                held: view.held.contains(&Slot(slot)),
                in_rotation: view.rotation.contains(&Slot(slot)),
                totals,
                queue: accepted.and_then(|accepted| accepted.sockets.queue_length(slot)),
                backlog: accepted.map_or(0, |accepted| accepted.config.backlog),
                workers,
            }
        };
        (0..count).map(slot).collect()
    }
}
