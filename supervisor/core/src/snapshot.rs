//! The core, written down for the next version of the program and read back.
//!
//! [`Core`] itself is not the format: [`CoreState`] is, as a [record](crate::record). A field that the core gets later
//! does not compile here before it has found its place in it.

use super::autoscale::Autoscaler;
use super::backoff::{Backoff, Rng};
use super::event::{Plan, ReadinessSignal, RequestId, Share};
use super::recycle::Limits;
use super::reload::Candidate;
use super::slots::SlotOperation;
use super::stranded::Retired;
use super::worker::Worker;
use super::{Committed, Core, Phase, Time};
use crate::record;

use crate::{GenerationId, Slot, WorkerId};
use std::collections::BTreeMap;
use std::time::Duration;

/// All that a [`Core`] is, between two steps.
#[derive(Debug, Clone)]
pub struct CoreState {
    phase: Phase,
    stable: Committed,
    open: u16,
    candidate: Option<Candidate>,
    pending_reload: Option<Vec<RequestId>>,
    reload_wait_reported: bool,
    workers: Vec<Worker>,
    /// Those that are not as at first, with their slot.
    backoffs: Vec<(Slot, Backoff)>,
    held_generations: Vec<GenerationId>,
    last_generation: GenerationId,
    last_worker: WorkerId,
    rotation: Vec<Slot>,
    ever_ready: bool,
    boot_failures: u32,
    last_failure: String,
    degraded: u16,
    rng: Rng,
    last_step: Time,
    observed: Time,
    active: bool,
    stall_reported: Vec<(Slot, Time)>,
    retired: Vec<(Slot, Retired)>,
    wanted_end: u16,
    deadline: Option<Time>,
    held_slots: Vec<Slot>,
    operations: Vec<SlotOperation>,
    replacement_backoffs: Vec<(Slot, Backoff)>,
    autoscaler: Autoscaler,
}

record!(CoreState {
    phase,
    stable,
    open,
    candidate,
    pending_reload,
    reload_wait_reported,
    workers,
    backoffs,
    held_generations,
    last_generation,
    last_worker,
    rotation,
    ever_ready,
    boot_failures,
    last_failure,
    degraded,
    rng,
    last_step,
    observed,
    active,
    stall_reported,
    retired,
    wanted_end,
    deadline,
} added {
    held_slots: Vec::new(),
    operations: Vec::new(),
    replacement_backoffs: Vec::new(),
    autoscaler: Autoscaler::default(),
});
record!(Committed { id, plan });
record!(Plan {
    workers,
    max_workers,
    surge,
    start_timeout,
    heartbeat,
    hang_timeout,
    request_timeout,
    graceful_timeout,
    min_ready,
    steals
} added { readiness: ReadinessSignal::default(), max_unavailable: Share::Count(1), autoscale: None, recycle: Limits::default(), pre_stop_delay: Duration::ZERO });
record!(Candidate {
    generation,
    requests,
    stage
});
record!(Worker { id, slot, generation, plan, born, stage, failure_reason, cause } added { replacement: None, limits: Limits::default(), recycle_pending: None });
record!(Backoff {
    failures,
    not_before
});

impl Core {
    /// What this core is, for another process to go on with.
    pub fn state(&self) -> CoreState {
        // A new field does not compile before it is in the state.
        let Self {
            phase,
            stable,
            open,
            candidate,
            pending_reload,
            reload_wait_reported,
            workers,
            backoffs,
            held_generations,
            last_generation,
            last_worker,
            rotation,
            ever_ready,
            boot_failures,
            last_failure,
            degraded,
            rng,
            last_step,
            observed,
            active,
            stall_reported,
            retired,
            wanted_end,
            deadline,
            held_slots,
            operations,
            replacement_backoffs,
            autoscaler,
            out: _,
        } = self.clone();
        let backoffs = (0..)
            .map(Slot)
            .zip(backoffs)
            .filter(|(_, backoff)| *backoff != Backoff::default());
        CoreState {
            phase,
            stable,
            open,
            candidate,
            pending_reload,
            reload_wait_reported,
            workers: workers.into_values().collect(),
            backoffs: backoffs.collect(),
            held_generations: held_generations.into_iter().collect(),
            last_generation,
            last_worker,
            rotation,
            ever_ready,
            boot_failures,
            last_failure,
            degraded,
            rng,
            last_step,
            observed,
            active,
            stall_reported: stall_reported.into_iter().collect(),
            retired: retired.into_iter().collect(),
            wanted_end,
            deadline,
            held_slots: held_slots.into_iter().collect(),
            operations,
            replacement_backoffs: replacement_backoffs.into_iter().collect(),
            autoscaler,
        }
    }

    /// Goes on where another core was.
    ///
    /// # Errors
    /// When the state is none that a core of this version could be in.
    pub fn resume(state: CoreState) -> Result<Self, String> {
        let slots = state.workers.iter().map(|worker| worker.slot);
        let slots = slots
            .chain(state.backoffs.iter().map(|(slot, _)| *slot))
            .chain(state.rotation.iter().copied());
        let slots = slots.chain(state.retired.iter().map(|(slot, _)| *slot));
        let slots = slots.chain(state.held_slots.iter().copied());
        let slots = slots.chain(state.operations.iter().map(|operation| operation.slot));
        let highest = state.open.max(state.wanted_end).saturating_sub(1);
        if let Some(slot) = slots
            .chain([Slot(highest)])
            .find(|slot| slot.0 >= Slot::MAX)
        {
            return Err(format!(
                "slot {slot} is beyond the {} that there can be",
                Slot::MAX
            ));
        }
        let mut backoffs = vec![Backoff::default(); usize::from(Slot::MAX)];
        for (slot, backoff) in state.backoffs {
            backoffs[slot.index()] = backoff;
        }
        let count = state.workers.len();
        let workers: BTreeMap<WorkerId, Worker> = state
            .workers
            .into_iter()
            .map(|worker| (worker.id, worker))
            .collect();
        if workers.len() != count {
            return Err("two workers have one id".to_owned());
        }
        Ok(Self {
            phase: state.phase,
            stable: state.stable,
            open: state.open,
            candidate: state.candidate,
            pending_reload: state.pending_reload,
            reload_wait_reported: state.reload_wait_reported,
            workers,
            backoffs,
            held_generations: state.held_generations.into_iter().collect(),
            last_generation: state.last_generation,
            last_worker: state.last_worker,
            rotation: state.rotation,
            ever_ready: state.ever_ready,
            boot_failures: state.boot_failures,
            last_failure: state.last_failure,
            degraded: state.degraded,
            rng: state.rng,
            last_step: state.last_step,
            observed: state.observed,
            active: state.active,
            stall_reported: state.stall_reported.into_iter().collect(),
            retired: state.retired.into_iter().collect(),
            wanted_end: state.wanted_end,
            deadline: state.deadline,
            held_slots: state.held_slots.into_iter().collect(),
            operations: state.operations,
            replacement_backoffs: state.replacement_backoffs.into_iter().collect(),
            autoscaler: state.autoscaler,
            out: Vec::new(),
        })
    }

    /// The server stops, so that nothing new is to be begun.
    pub fn is_stopping(&self) -> bool {
        matches!(
            self.phase,
            Phase::PreStop { .. } | Phase::Stopping { .. } | Phase::Gone
        )
    }
}

impl CoreState {
    /// The workers that are alive in it, each with its slot and generation.
    pub fn workers(&self) -> impl Iterator<Item = (WorkerId, Slot, GenerationId)> {
        self.workers
            .iter()
            .map(|worker| (worker.id, worker.slot, worker.generation))
    }
}
