//! What the autoscaler remembers.

use super::policy::Policy;
use crate::id::{Slot, WorkerId};
use crate::record;
use crate::time::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// The observed load, and the minimum that an operator has set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Autoscaler {
    /// The minimum that an operator has set by hand; it holds until the next reload.
    pub(crate) manual_minimum: Option<u16>,
    /// The same for the candidate generation.
    pub(crate) candidate_minimum: Option<u16>,
    pub(crate) policy: Policy,
    /// When the load was last observed; `None` when earlier observations do not count.
    pub(crate) observed: Option<Time>,
    /// The time that each worker had spent by then.
    pub(crate) spent: BTreeMap<WorkerId, Duration>,
    /// How many connections waited in each slot's queue then.
    pub(crate) waited: BTreeMap<Slot, u32>,
    /// How many more of them there were than the workers had room for.
    pub(crate) excess: u32,
    /// Whether the lack of memory for more workers has been reported.
    pub(crate) shortage_reported: bool,
}

record!(Autoscaler {
    manual_minimum,
    candidate_minimum,
    policy,
    observed,
    spent,
    waited,
    excess,
    shortage_reported
});

impl Autoscaler {
    /// Postpones what is remembered after the supervisor was stopped for `gap`.
    pub(crate) fn put_off(&mut self, gap: Duration) {
        self.policy.put_off(gap);
    }
}
