//! The number of workers follows the load.
//!
//! A configuration may give a range instead of a number of workers. Then each observation of the
//! queues also carries the load of the workers, and `policy` decides how many there should be. All
//! that `scale` does about it is to edit `open`, the number of slots: `converge` starts and drains
//! workers for it as it does when an operator scales.
//!
//! *Invariants*: the autoscaler never goes below the range or an operator's minimum, nor above the
//! range or what `memory` allows; it never drains a worker with a request in flight; it does
//! nothing during a reload, before the server serves, or when it drains or stops, and does not grow
//! while workers fail.

#[cfg(test)]
#[expect(
    clippy::disallowed_macros,
    clippy::disallowed_methods,
    reason = "scripts/autoscaling-plots names a directory for pictures and reads the table"
)]
mod curves;
pub(crate) mod load;
mod policy;
mod scale;
pub(crate) mod state;
