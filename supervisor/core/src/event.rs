//! Input and output of the core.

use crate::autoscale::load::{ScaleReason, WorkerLoad};
use crate::exit::{DrainReason, ProcessEnd, Successor, WorkerExit};
use crate::id::{GenerationId, Slot, WorkerId};
use crate::limits::RecycleReason;
use crate::plan::{Plan, ReadinessSignal};
use crate::time::Time;
use std::time::Duration;

/// A request of a client that waits for the answer.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode,
)]
pub struct RequestId(pub u64);

/// What an operator can request, by signal or over the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Replace configuration and program, if the new ones work.
    Reload(Option<RequestId>),
    /// Change the number of workers by this much.
    Resize(i32),
    /// Set the number of workers.
    Scale(u16, Option<RequestId>),
    /// Replace the slot's worker: the new one is ready before the old one drains.
    Restart(Slot, Option<RequestId>),
    /// Drain the slot's worker and hold the slot empty.
    Drain(Slot, Option<RequestId>),
    /// Drain all workers; the sockets stay.
    DrainAll,
    /// Drain all workers, then exit.
    Stop,
    /// Exit immediately.
    StopNow,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An operator requests something.
    Command(Command),
    /// [`Action::Prepare`] worked: the configuration is valid, its addresses are bound and its
    /// program is open.
    Prepared(GenerationId, Plan),
    /// [`Action::Prepare`] failed, and nothing has changed.
    Refused(GenerationId, String),
    /// A worker reports that it accepts connections, or counts as ready.
    Ready(WorkerId),
    /// All workers, observed at one time. One event for all, and the first after every wake-up: a
    /// supervisor that wakes late must not judge workers by data it has not read yet.
    Observation(Observation),
    /// A starting worker reports why it will not start, or a worker was seen not to accept. Empty
    /// when that is over.
    Failed(WorkerId, String),
    /// Whether a starting worker becomes ready cannot be observed, and why.
    Unobservable(WorkerId, String),
    /// A worker reports that it accepts no more connections and finishes its requests: because it
    /// was asked to drain, or unasked (someone sent it a signal).
    StoppedAccepting(WorkerId),
    /// A worker broke the protocol and cannot be trusted any more.
    ProtocolViolation(WorkerId, String),
    /// A worker has exited (or could not be spawned), and how.
    Died(WorkerId, ProcessEnd),
    /// Time has passed.
    Tick,
}

/// An observation of all workers at one time. Untrusted: a worker may have written any number.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observation {
    /// What each worker shows of itself.
    pub workers: Vec<(WorkerId, WorkerSample)>,
    /// How many connections wait in each slot's queue, if requested (see
    /// [`wants_queues`](crate::Core::wants_queues)). Slots without a queue of their own are left
    /// out.
    pub queues: Option<Vec<(Slot, u32)>>,
    /// The load of ready workers, if requested (see [`wants_loads`](crate::Core::wants_loads))
    /// together with the queues.
    pub loads: Vec<(WorkerId, WorkerLoad)>,
}

/// A worker's signs of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerSample {
    /// When a serving thread was last alive; now, for a program that sends no heartbeat.
    pub heard: Time,
    /// Whether it sends heartbeats. For a program that does not, only its queue shows life.
    pub beats: bool,
    /// Whether it has reported readiness itself. Any other may still be starting until it accepts a
    /// connection.
    pub greeted: bool,
    /// A number that changes when it accepts or answers. `None`: it does not count, and no sibling
    /// takes connections from its queue.
    pub done: Option<u64>,
    /// When the longest-running handler began.
    pub oldest: Option<Time>,
    /// Requests answered, if it counts them.
    pub requests: Option<u64>,
    /// Bytes of memory in use, if measured.
    pub memory: Option<u64>,
}

/// How a ready worker fails to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    /// It sends no heartbeat.
    Silent,
    /// Connections wait in its queue, and it accepts none.
    Stuck,
    /// A handler runs for too long.
    Overdue,
}

/// An instruction to the shell, to be carried out in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Read and check the configuration and bind new addresses; answer with [`Event::Prepared`] or
    /// [`Event::Refused`].
    Prepare(GenerationId),
    /// Let new connections go to these slots only.
    Steer(Vec<Slot>),
    /// Start a worker.
    Spawn {
        /// Its id, never used before.
        worker: WorkerId,
        /// The slot it fills.
        slot: Slot,
        /// The generation whose program and configuration it gets.
        generation: GenerationId,
    },
    /// Ask a worker to drain.
    Drain {
        /// The worker.
        worker: WorkerId,
        /// How long it may take.
        grace: Duration,
        /// Whether it has no successor, so that it must first accept what waits in its queue.
        empty_queue: bool,
    },
    /// Make a worker dump core.
    Abort(WorkerId),
    /// Kill a worker.
    Kill(WorkerId),
    /// Make this generation the committed one.
    Commit(GenerationId),
    /// Drop a generation that is not needed any more.
    Forget(GenerationId),
    /// Log and count a fact.
    Report(Fact),
    /// Answer a request: what was done, or why not.
    Reply(RequestId, Result<Done, String>),
    /// Exit with this status. Always the last action.
    Exit(u8),
}

/// The result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// This generation serves.
    Reloaded(GenerationId),
    /// The number of slots has been set.
    Scaled {
        /// Before.
        from: u16,
        /// Now.
        to: u16,
    },
    /// A new worker serves a slot.
    Restarted {
        /// The slot.
        slot: Slot,
        /// The new worker.
        worker: WorkerId,
    },
    /// A slot is empty and held so.
    Drained {
        /// The slot.
        slot: Slot,
    },
}

/// A worker with everything that identifies it in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerRef {
    /// The worker.
    pub worker: WorkerId,
    /// Its slot.
    pub slot: Slot,
    /// Its generation.
    pub generation: GenerationId,
}

/// A decision or observation that matters to an operator. The shell logs and counts it once.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// A worker is being started.
    Spawning(WorkerRef),
    /// A worker became ready after this long.
    WorkerReady(WorkerRef, Duration),
    /// A worker seems not to serve, for this reason and since this long: it leaves the rotation, if
    /// another worker is in it.
    Stalled(WorkerRef, Stall, Duration),
    /// A worker that was stalled for this long serves again and returns to the rotation.
    Resumed(WorkerRef, Duration),
    /// A worker has not served, for this reason and since this long, and is aborted.
    Hung(WorkerRef, Stall, Duration),
    /// A worker did not become ready in this time and is aborted.
    StartTimedOut(WorkerRef, Duration, ReadinessSignal),
    /// A worker broke the protocol and is killed.
    ProtocolViolation(WorkerRef, String),
    /// A worker drains although it was not asked to; its successor.
    LeavesUnasked(WorkerRef, Successor),
    /// A worker is asked to drain.
    Draining(WorkerRef, DrainReason),
    /// A worker did not finish draining in time and is killed.
    DrainTimedOut(WorkerRef, Duration),
    /// A worker has exited.
    Died(WorkerRef, WorkerExit),
    /// Every slot is filled for the first time.
    ServerReady(GenerationId, u16),
    /// This many slots are empty because their workers keep failing; the latest reason.
    Degraded(u16, String),
    /// Every slot is filled again.
    Recovered,
    /// A reload begins.
    ReloadBegan(GenerationId),
    /// A reload is pending: older workers still drain.
    ReloadWaits,
    /// A reload is over: this generation serves, with this many workers, and the old workers accept
    /// no more connections.
    Reloaded(GenerationId, u16),
    /// A reload failed and changed nothing: the rejected generation, the one that serves, the
    /// reason.
    ReloadFailed(GenerationId, GenerationId, String),
    /// A worker is being replaced on request.
    Restarting(WorkerRef),
    /// A worker is being replaced because it reached a limit.
    Recycling(WorkerRef, RecycleReason),
    /// A worker keeps serving because its replacement failed: why.
    NotReplaced(WorkerRef, String),
    /// A slot is being drained, to be held empty.
    Holding(Slot),
    /// A slot that was held empty is filled again.
    Released(Slot),
    /// The number of slots was changed by hand: from, to.
    Resized(u16, u16),
    /// The autoscaler changed the number of slots.
    Scaled {
        /// Before.
        from: u16,
        /// Now.
        to: u16,
        /// Why.
        reason: ScaleReason,
    },
    /// The load asks for more workers than memory allows: how many there are, and the bytes they
    /// use.
    NoMemory {
        /// Slots.
        workers: u16,
        /// Bytes of all workers together.
        used: u64,
    },
    /// This many connections are stranded in a retired slot's queue; a rescue worker is being
    /// started.
    Stranded(Slot, u32),
    /// A command does not apply now, and why.
    Ignored(Command, String),
    /// All workers are asked to drain; the sockets stay.
    DrainingAll,
    /// A graceful stop was requested; workers drain after this delay.
    PreStop(Duration),
    /// The server stops: immediately, or gracefully within this time.
    Stopping(Option<Duration>),
    /// No worker could be started: the reason.
    StartupFailed(String),
    /// The supervisor did not run for this long; every deadline was postponed by as much.
    SupervisorStalled(Duration),
}
