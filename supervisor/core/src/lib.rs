//! The supervision logic of a prefork server, as a value: events in, actions out.
//!
//! [`Core::step`] is the only entry point. The core has no clock, process, descriptor or log: time
//! is an argument, workers are numbers, and everything to be done or reported is returned as
//! [`Action`]s. A test can therefore run an hour of crashes in a millisecond.
//!
//! How it works: commands and events only *edit intent* (which generation, how many slots, stop or
//! not) or record what became of a worker. Then one function, `converge`, compares intent with
//! reality and takes whatever steps are possible now. So a reload, a scale-down and a stop share
//! the same draining code, and a worker that dies in the middle of any of them needs no case of its
//! own.
//!
//! The modules, from the bottom up; each imports only from those above it:
//!
//! * `id`, `time`, `rng`, `record` – identifiers, time as an argument, chance, and how the state is
//!   encoded;
//! * `plan`, `limits`, `exit`, `event` – the vocabulary: [`Plan`], [`Cause`], [`Event`],
//!   [`Action`], [`Fact`];
//! * `backoff`, `liveness`, `worker`, `candidate`, `retired`, `slot_operation` – the parts of the
//!   state;
//! * `machine` – the state of the whole server, [`Core`], and queries on it;
//! * `slots` – operations on single slots, and permits for them;
//! * `recycle` – workers that are replaced before they have leaked too much;
//! * `reload` – a candidate generation, its commit, its rollback;
//! * `stalls` – observations, and workers that stall;
//! * `stranded` – connections in the queue of a retired slot;
//! * `autoscale` – the number of workers follows the load;
//! * `converge` – deadlines, filling and draining slots, steering, the end;
//! * `step` – events and commands;
//! * `snapshot`, `view` – the core as another process and `supervisor status` get it.
//!
//! *Invariant*: nothing in here waits. Whatever must be waited for is a state with a deadline.
#![forbid(unsafe_code)]

mod autoscale;
mod backoff;
mod candidate;
mod converge;
mod event;
mod exit;
#[cfg(test)]
mod fixtures;
mod float;
mod id;
mod limits;
mod liveness;
mod machine;
mod plan;
mod quiesce;
#[doc(hidden)]
pub mod record;
mod recycle;
mod reload;
mod retired;
mod rng;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
#[expect(
    clippy::disallowed_macros,
    clippy::disallowed_methods,
    reason = "a sweep reads SIM_SEED and prints what happened"
)]
mod simulation;
mod slot_operation;
mod slots;
mod snapshot;
mod stalls;
mod step;
mod stranded;
mod time;
mod view;
mod worker;

pub use autoscale::load::{Autoscale, ScaleReason, WorkerLoad};
pub use event::{
    Action, Command, Done, Event, Fact, Observation, RequestId, Stall, WorkerRef, WorkerSample,
};
pub use exit::{Cause, DrainReason, Grade, Manner, ProcessEnd, Successor, WorkerExit};
pub use id::{GenerationId, Slot, WorkerId};
pub use limits::{Limits, RecycleReason};
pub use machine::Core;
pub use plan::{Plan, ReadinessSignal, Share, sampling_period};
pub use snapshot::CoreState;
pub use time::Time;
pub use view::{ReloadView, State, View, WorkerState, WorkerView};
