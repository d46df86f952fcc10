//! What goes into the core and what comes out of it.

use super::autoscale::{Autoscale, ScaleReason, WorkerLoad};
use super::cause::{ProcessEnd, Successor, WorkerExit};
use super::recycle::{Limits, RecycleReason};
use super::time::Time;
use crate::{GenerationId, Slot, WorkerId};
use std::fmt;
use std::time::Duration;

/// What a generation's configuration means to the core. The rest of it is the shell's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Slots to fill, at least 1; the fewest, if their number follows the load.
    pub workers: u16,
    /// The most slots that scaling may reach.
    pub max_workers: u16,
    /// Slots that a reload replaces at a time, at least 1.
    pub surge: u16,
    /// How long a worker may take to get ready.
    pub start_timeout: Duration,
    /// How often a ready worker shows that it lives, if it does.
    pub heartbeat: Duration,
    /// How long a ready worker may be silent; without it, nobody is watched for stalls.
    pub hang_timeout: Option<Duration>,
    /// How long a handler may run.
    pub request_timeout: Option<Duration>,
    /// How long a draining worker may take.
    pub graceful_timeout: Duration,
    /// How long a reload's new workers must survive before the old ones drain.
    pub min_ready: Duration,
    /// Workers take connections out of the queues of slots that are retired.
    pub steals: bool,
    /// What tells that a worker is ready.
    pub readiness: ReadinessSignal,
    /// How many slots may be out of service, or have two workers, because somebody wants it so.
    pub max_unavailable: Share,
    /// The number of slots follows the load, from `workers` to `max_workers`, and how.
    pub autoscale: Option<Autoscale>,
    /// When a worker is to be replaced for what it has done or used.
    pub recycle: Limits,
    /// How long a graceful stop is announced before workers drain.
    pub pre_stop_delay: Duration,
}

/// So many of the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Share {
    /// This number.
    Count(u16),
    /// This many of a hundred.
    Percent(u8),
}

impl Share {
    /// How many of `slots` that is: at least one, or nothing could ever be done.
    pub fn of(self, slots: u16) -> u16 {
        let count = match self {
            Self::Count(count) => count,
            Self::Percent(percent) => {
                u16::try_from(u32::from(slots) * u32::from(percent) / 100).unwrap_or(u16::MAX)
            }
        };
        count.max(1)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// What tells that a worker is ready, as far as it matters to whoever reads that one did not get ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum ReadinessSignal {
    /// Its word, or its silence for a while.
    #[default]
    Message,
    /// `READY=1` and nothing else.
    Notify,
    /// It is seen to wait for connections.
    Probe,
}

impl fmt::Display for ReadinessSignal {
    /// What was missing and what can be done about it, to be put after "did not get ready within 5s".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Message => "",
            Self::Notify => ": it did not say READY=1 (a program that never does needs --ready after=TIME)",
            Self::Probe => {
                ": it was not seen to wait for connections on each of its sockets (if it does, it does so in a way that cannot be seen, and needs --ready after=TIME)"
            }
        })
    }
}

/// Somebody who asked for something and waits for the answer.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode,
)]
pub struct RequestId(pub u64);

/// What an operator can ask for, by signal or by the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Replace configuration and program, if the new ones work.
    Reload(Option<RequestId>),
    /// This many workers more, or fewer.
    Resize(i32),
    /// This many workers.
    Scale(u16, Option<RequestId>),
    /// Another worker in this slot: it is ready before the present one drains.
    Restart(Slot, Option<RequestId>),
    /// The slot's worker leaves, and nobody follows: the slot is held empty.
    Drain(Slot, Option<RequestId>),
    /// All workers leave, the sockets stay.
    DrainAll,
    /// All workers leave, then the server does.
    Stop,
    /// The server leaves at once.
    StopNow,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Somebody asks for something.
    Command(Command),
    /// [`Action::Prepare`] worked: the configuration is valid, its addresses are bound, its program is open.
    Prepared(GenerationId, Plan),
    /// [`Action::Prepare`] failed, and nothing has changed.
    Refused(GenerationId, String),
    /// A worker says that it accepts connections, or counts as doing so.
    Ready(WorkerId),
    /// What is seen of all workers. In one event, and the first of every wake-up, or a supervisor that wakes late
    /// would judge workers by what it has not read yet.
    Observation(Observation),
    /// A starting worker says why it will not start.
    Failed(WorkerId, String),
    /// A worker leaves of its own accord (somebody sent it a signal): it accepts no more, and finishes.
    Leaving(WorkerId),
    /// A worker broke the protocol and is not to be believed any more.
    ProtocolViolation(WorkerId, String),
    /// A worker is dead (or could not be born), and how.
    Died(WorkerId, ProcessEnd),
    /// Time has passed.
    Tick,
}

/// What is seen of the workers from outside, at one time. Untrusted: a worker may have written any number.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observation {
    /// Their signs of life.
    pub workers: Vec<(WorkerId, WorkerSample)>,
    /// How many connections wait in the queues of each slot, if that was looked at (see
    /// [`wants_queues`](super::Core::wants_queues)). Slots without a queue of their own are left out.
    pub queues: Option<Vec<(Slot, u32)>>,
    /// What workers that are ready have to do, if that was asked for (see [`wants_loads`](super::Core::wants_loads)) and queues
    /// were looked at.
    pub loads: Vec<(WorkerId, WorkerLoad)>,
}

/// A worker's signs of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerSample {
    /// When a thread of it that serves was last alive; now, of a program that does not tell.
    pub heard: Time,
    /// It tells. Of a program that does not, only its queue can.
    pub beats: bool,
    /// It has said itself that it is ready. Any other may still be starting until it takes a connection.
    pub greeted: bool,
    /// A number that moves when it accepts or answers. `None`: it does not count, and nobody else takes connections
    /// out of its queue.
    pub done: Option<u64>,
    /// When the handler began that has been running longest.
    pub oldest: Option<Time>,
    /// Requests that it has answered, if it counts.
    pub requests: Option<u64>,
    /// Bytes of memory that it uses, if that was measured.
    pub memory: Option<u64>,
}

/// How a ready worker fails to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    /// It does not beat.
    Silent,
    /// Connections wait in its queue, and it takes none.
    Stuck,
    /// A handler runs for too long.
    Overdue,
}

/// What the shell is to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Read the configuration, check it, bind what is new; answer [`Event::Prepared`] or [`Event::Refused`].
    Prepare(GenerationId),
    /// Let new connections go to these slots only.
    Steer(Vec<Slot>),
    /// Start a worker.
    Spawn {
        /// Its id, never used before.
        worker: WorkerId,
        /// The slot it fills.
        slot: Slot,
        /// Whose program and configuration.
        generation: GenerationId,
    },
    /// Ask a worker to drain.
    Drain {
        /// Whom.
        worker: WorkerId,
        /// How long it has.
        grace: Duration,
        /// Nobody follows in its slot: what waits in its queue is to be accepted first.
        empty_queue: bool,
    },
    /// Make a worker dump core.
    Abort(WorkerId),
    /// ProcessEnd a worker.
    Kill(WorkerId),
    /// This generation is the accepted one from now on.
    Commit(GenerationId),
    /// Nobody needs this generation any more.
    Forget(GenerationId),
    /// Tell the operator.
    Report(Fact),
    /// Tell whoever asked for something: what is done, or why it is not.
    Reply(RequestId, Result<Done, String>),
    /// Leave with this exit status. The last action ever.
    Exit(u8),
}

/// What was asked for, done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// This generation serves.
    Reloaded(GenerationId),
    /// There are so many slots, and were so many.
    Scaled {
        /// Before.
        from: u16,
        /// Now.
        to: u16,
    },
    /// A new worker serves a slot.
    Restarted {
        /// Which.
        slot: Slot,
        /// Who.
        worker: WorkerId,
    },
    /// A slot is empty, and stays so.
    Drained {
        /// Which.
        slot: Slot,
    },
}

/// A worker as logs name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerRef {
    /// The worker.
    pub worker: WorkerId,
    /// Its slot.
    pub slot: Slot,
    /// Its generation.
    pub generation: GenerationId,
}

/// Why a worker drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainReason {
    /// A newer generation has taken over.
    Replaced,
    /// Its own generation was rolled back.
    RolledBack,
    /// There are fewer slots.
    Retired,
    /// All workers were asked to drain.
    DrainAll,
    /// The server stops.
    Stop,
    /// It was to replace another one of its generation, and a reload does that now.
    Superseded,
    /// Somebody asked for another one in its slot.
    Restarted,
    /// Somebody asked for its slot to be empty.
    Held,
    /// It has reached a limit.
    Recycled,
}

impl fmt::Display for DrainReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replaced => "a newer generation has taken over",
            Self::RolledBack => "its generation was rolled back",
            Self::Retired => "its slot is retired",
            Self::DrainAll => "all workers were asked to drain",
            Self::Stop => "the server stops",
            Self::Superseded => "a reload replaces its slot's worker",
            Self::Restarted => "another worker has taken over its slot, as it was asked for",
            Self::Held => "its slot is to be empty, as it was asked for",
            Self::Recycled => "it is recycled, another worker has taken over its slot",
        })
    }
}

/// A decision or an observation that an operator wants to know of. The shell logs it, once, and counts it.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// A worker is being started.
    Spawning(WorkerRef),
    /// A worker accepts connections, after this long.
    WorkerReady(WorkerRef, Duration),
    /// A worker seems not to serve, for this reason and since this long: it is out of rotation, if another is in it.
    Stalled(WorkerRef, Stall, Duration),
    /// A worker that was stalled for this long is well again, and back in rotation.
    Resumed(WorkerRef, Duration),
    /// A worker has not served, for this reason and since this long, and is aborted.
    Hung(WorkerRef, Stall, Duration),
    /// A worker did not get ready in this time and is aborted.
    StartTimedOut(WorkerRef, Duration, ReadinessSignal),
    /// A worker broke the protocol and is killed.
    ProtocolViolation(WorkerRef, String),
    /// A worker drains although nobody here had asked it to; who follows.
    LeavesUnasked(WorkerRef, Successor),
    /// A worker is asked to drain.
    Draining(WorkerRef, DrainReason),
    /// A worker did not finish draining in time and is killed.
    DrainTimedOut(WorkerRef, Duration),
    /// A worker is dead.
    Died(WorkerRef, WorkerExit),
    /// Every slot is filled for the first time.
    ServerReady(GenerationId, u16),
    /// This many slots are empty because their workers keep failing; the latest reason.
    Degraded(u16, String),
    /// Every slot is filled again.
    Recovered,
    /// A reload begins.
    ReloadBegan(GenerationId),
    /// A reload was asked for and waits: older workers still drain.
    ReloadWaits,
    /// A reload is done: this generation serves, with this many workers.
    Reloaded(GenerationId, u16),
    /// A reload failed and nothing has changed: the refused generation, the one that serves, the reason.
    ReloadFailed(GenerationId, GenerationId, String),
    /// A worker is to be replaced since somebody asked for that.
    Restarting(WorkerRef),
    /// A worker is to be replaced since it has reached a limit.
    Recycling(WorkerRef, RecycleReason),
    /// A worker was to be replaced and goes on serving, since whoever was to follow has failed: why.
    NotReplaced(WorkerRef, String),
    /// A slot is being emptied, and held so.
    Holding(Slot),
    /// A slot that was held empty is filled again.
    Released(Slot),
    /// The number of slots was changed by hand: from, to.
    Resized(u16, u16),
    /// The load has changed the number of slots.
    Scaled {
        /// Before.
        from: u16,
        /// Now.
        to: u16,
        /// Why.
        reason: ScaleReason,
    },
    /// The load asks for more workers than memory is allowed for: how many there are, and the bytes that they use.
    NoMemory {
        /// Slots.
        workers: u16,
        /// Bytes of all workers together.
        used: u64,
    },
    /// A slot is retired, and so many connections wait in its queue: a worker is being started for them.
    Stranded(Slot, u32),
    /// A command does not apply now, and why.
    Ignored(Command, String),
    /// All workers are asked to drain; the sockets stay.
    DrainingAll,
    /// A graceful stop begins, which is announced for so long before anybody drains.
    PreStop(Duration),
    /// The server stops: at once, or gracefully within this time.
    Stopping(Option<Duration>),
    /// No worker could ever be started: the reason.
    StartupFailed(String),
    /// The supervisor itself was not running for this long; every deadline was put off by as much.
    SupervisorStalled(Duration),
}
