//! The core, encoded for the next version of the program and read back.
//!
//! [`Core`] is a [record](crate::record). A field that the core gets later does not compile before
//! it has its place here.

use crate::autoscale::state::Autoscaler;
use crate::backoff::Backoffs;
use crate::id::{GenerationId, Slot, WorkerId};
use crate::machine::Core;
use crate::record;
use std::collections::BTreeSet;

record!(Core {
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
    held_slots: BTreeSet::new(),
    operations: Vec::new(),
    replacement_backoffs: Backoffs::default(),
    autoscaler: Autoscaler::default(),
} skipped {
    quiesce: None,
    // Empty between two steps.
    out: Vec::new(),
});

/// A [`Core`] between two steps, as it is handed to another process. Nothing is believed of it
/// until [`resume`](Core::resume) has checked it.
#[derive(Debug, Clone, bincode::Encode, bincode::Decode)]
pub struct CoreState(Core);

impl Core {
    /// Returns the whole state, for another process to continue with.
    pub fn state(&self) -> CoreState {
        CoreState(self.clone())
    }

    /// Continues where another core was.
    ///
    /// # Errors
    /// When the state names a slot that no core of this version can have.
    pub fn resume(state: CoreState) -> Result<Self, String> {
        let core = state.0;
        let end = core.open.max(core.wanted_end);
        let mut slots = [Slot(end.saturating_sub(1))]
            .into_iter()
            .chain(core.workers.values().map(|worker| worker.slot))
            .chain(core.backoffs.slots())
            .chain(core.rotation.iter().copied())
            .chain(core.retired.keys().copied())
            .chain(core.held_slots.iter().copied())
            .chain(core.operations.iter().map(|operation| operation.slot));
        let beyond = slots.find(|slot| slot.0 >= Slot::MAX);
        drop(slots);
        match beyond {
            Some(slot) => Err(format!(
                "slot {slot} is out of range (there are at most {})",
                Slot::MAX
            )),
            None => Ok(core),
        }
    }
}

impl CoreState {
    /// Returns the workers that are alive, each with its slot and generation.
    pub fn workers(&self) -> impl Iterator<Item = (WorkerId, Slot, GenerationId)> {
        self.0
            .workers
            .values()
            .map(|worker| (worker.id, worker.slot, worker.generation))
    }
}
