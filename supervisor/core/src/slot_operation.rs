//! Slot operations: what an operator has requested of a slot and is not done yet.

use crate::event::RequestId;
use crate::id::{Slot, WorkerId};
use crate::record;

/// A pending operation on a slot.
#[derive(Debug, Clone)]
pub(crate) struct SlotOperation {
    pub(crate) slot: Slot,
    pub(crate) request: Option<RequestId>,
    pub(crate) task: Task,
    /// Whether it has its permit.
    pub(crate) begun: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) enum Task {
    /// Replace this worker by another one.
    Restart { old: Option<WorkerId> },
    /// Empty the slot and hold it empty.
    Drain,
}

record!(SlotOperation {
    slot,
    request,
    task,
    begun
});
