//! Which worker this is: [`Context`].

use prefork_protocol::{GenerationId, Slot, WorkerId};

/// Which worker this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The slot it fills.
    pub slot: Slot,
    /// The generation it belongs to.
    pub generation: GenerationId,
    /// Its own id, never reused.
    pub worker: WorkerId,
    /// How many workers the server runs.
    pub workers: u16,
}
