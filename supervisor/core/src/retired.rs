//! A retired slot whose queue is still watched.

use crate::record;
use crate::time::Time;

/// A slot that is empty after a scale-down, is held empty, or was a candidate's and is not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retired {
    /// Its queue is watched until then, and until it is empty.
    pub(crate) until: Time,
    /// The queue's length at the last observation.
    pub(crate) length: u32,
    /// Since when nothing has been accepted, if connections wait.
    pub(crate) waits: Option<Time>,
    /// Since when a rescue worker is wanted.
    pub(crate) rescue_since: Option<Time>,
    /// Whether stranded connections were reported.
    pub(crate) reported: bool,
}

record!(Retired {
    until,
    length,
    waits,
    rescue_since,
    reported
});
