//! The core, written down for the next version of the program and read back.
//!
//! [`Core`] itself is not the format: [`CoreState`] is, as a [record](crate::record). A field that the core gets later
//! does not compile here before it has found its place in it.

use super::adapt::Adaptation;
use super::backoff::{Backoff, Chance};
use super::event::{Plan, Proof, RequestId, Share};
use super::recycle::Limits;
use super::reload::Trial;
use super::slots::Errand;
use super::stragglers::Retired;
use super::worker::Worker;
use super::{Accepted, Core, Phase, Time};
use crate::record;

use crate::{GenerationId, Slot, WorkerId};
use std::collections::BTreeMap;
use std::time::Duration;

/// All that a [`Core`] is, between two steps.
#[derive(Debug, Clone)]
pub struct CoreState {
    phase: Phase,
    stable: Accepted,
    open: u16,
    trial: Option<Trial>,
    wanted: Option<Vec<RequestId>>,
    wait_reported: bool,
    workers: Vec<Worker>,
    /// Those that are not as at first, with their slot.
    backoffs: Vec<(Slot, Backoff)>,
    held: Vec<GenerationId>,
    last_generation: GenerationId,
    last_worker: WorkerId,
    rotation: Vec<Slot>,
    ever_ready: bool,
    boot_failures: u32,
    last_failure: String,
    degraded: u16,
    chance: Chance,
    last_step: Time,
    looked: Time,
    lively: bool,
    stall_told: Vec<(Slot, Time)>,
    retired: Vec<(Slot, Retired)>,
    wide: u16,
    due: Option<Time>,
    held_slots: Vec<Slot>,
    errands: Vec<Errand>,
    attempts: Vec<(Slot, Backoff)>,
    adaptation: Adaptation,
}

record!(CoreState {
    phase,
    stable,
    open,
    trial,
    wanted,
    wait_reported,
    workers,
    backoffs,
    held,
    last_generation,
    last_worker,
    rotation,
    ever_ready,
    boot_failures,
    last_failure,
    degraded,
    chance,
    last_step,
    looked,
    lively,
    stall_told,
    retired,
    wide,
    due,
} added {
    held_slots: Vec::new(),
    errands: Vec::new(),
    attempts: Vec::new(),
    adaptation: Adaptation::default(),
});
record!(Accepted { id, plan });
record!(Plan {
    workers,
    max_workers,
    surge,
    start_timeout,
    heartbeat,
    hang_timeout,
    request_timeout,
    graceful_timeout,
    probation,
    steals
} added { proof: Proof::default(), max_unavailable: Share::Count(1), elastic: None, recycle: Limits::default(), pre_stop_delay: Duration::ZERO });
record!(Trial {
    generation,
    requests,
    stage
});
record!(Worker { id, slot, generation, plan, born, stage, complaint, cause } added { relief: None, limits: Limits::default(), due: None });
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
            trial,
            wanted,
            wait_reported,
            workers,
            backoffs,
            held,
            last_generation,
            last_worker,
            rotation,
            ever_ready,
            boot_failures,
            last_failure,
            degraded,
            chance,
            last_step,
            looked,
            lively,
            stall_told,
            retired,
            wide,
            due,
            held_slots,
            errands,
            attempts,
            adaptation,
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
            trial,
            wanted,
            wait_reported,
            workers: workers.into_values().collect(),
            backoffs: backoffs.collect(),
            held: held.into_iter().collect(),
            last_generation,
            last_worker,
            rotation,
            ever_ready,
            boot_failures,
            last_failure,
            degraded,
            chance,
            last_step,
            looked,
            lively,
            stall_told: stall_told.into_iter().collect(),
            retired: retired.into_iter().collect(),
            wide,
            due,
            held_slots: held_slots.into_iter().collect(),
            errands,
            attempts: attempts.into_iter().collect(),
            adaptation,
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
        let slots = slots.chain(state.errands.iter().map(|errand| errand.slot));
        let highest = state.open.max(state.wide).saturating_sub(1);
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
            trial: state.trial,
            wanted: state.wanted,
            wait_reported: state.wait_reported,
            workers,
            backoffs,
            held: state.held.into_iter().collect(),
            last_generation: state.last_generation,
            last_worker: state.last_worker,
            rotation: state.rotation,
            ever_ready: state.ever_ready,
            boot_failures: state.boot_failures,
            last_failure: state.last_failure,
            degraded: state.degraded,
            chance: state.chance,
            last_step: state.last_step,
            looked: state.looked,
            lively: state.lively,
            stall_told: state.stall_told.into_iter().collect(),
            retired: state.retired.into_iter().collect(),
            wide: state.wide,
            due: state.due,
            held_slots: state.held_slots.into_iter().collect(),
            errands: state.errands,
            attempts: state.attempts.into_iter().collect(),
            adaptation: state.adaptation,
            out: Vec::new(),
        })
    }

    /// The server stops, so that nothing new is to be begun.
    pub fn is_stopping(&self) -> bool {
        matches!(
            self.phase,
            Phase::Announcing { .. } | Phase::Stopping { .. } | Phase::Gone
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
