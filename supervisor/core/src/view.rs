//! A snapshot of the core for `supervisor status`.

use crate::id::{GenerationId, Slot, WorkerId};
use crate::machine::{Core, Phase};
use crate::time::Time;
use crate::worker::{Stage, Worker};
use serde::Serialize;

/// The state of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not every slot has been filled yet.
    Starting,
    /// Every slot is filled.
    Serving,
    /// Some slot is empty because its workers keep failing.
    Degraded,
    /// All workers were asked to drain; the sockets stay.
    Draining,
    /// The server stops.
    Stopping,
    /// A stop was requested; the server serves until the pre-stop delay is over.
    PreStop,
}

/// The state of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// It is not ready yet.
    Starting,
    /// It accepts connections.
    Ready,
    /// It is ready but seems not to serve.
    Stalled,
    /// It was asked to drain.
    Draining,
    /// It hangs and was aborted.
    Aborting,
    /// It was killed.
    Killed,
}

/// A worker in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerView {
    /// Its id.
    pub worker: WorkerId,
    /// Its slot.
    pub slot: Slot,
    /// Its generation.
    pub generation: GenerationId,
    /// Its state.
    pub state: WorkerState,
    /// When it was started.
    pub born: Time,
}

/// A reload in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ReloadView {
    /// The candidate generation.
    pub generation: GenerationId,
    /// Slots it will fill.
    pub slots: u16,
    /// Slots of it that have a worker, ready or not.
    pub spawned: u16,
    /// Slots of it that have a ready worker.
    pub ready: u16,
    /// Slots of it that have been ready for `min_ready`.
    pub passed: u16,
}

/// A snapshot of the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The state of the server.
    pub state: State,
    /// The committed generation.
    pub generation: GenerationId,
    /// How many slots it fills.
    pub open: u16,
    /// The fewest and the most that it may fill.
    pub bounds: (u16, u16),
    /// Whether every new connection is served: the server has started and stays, and slots in
    /// rotation have workers.
    pub ready: bool,
    /// Slots that get new connections.
    pub rotation: Vec<Slot>,
    /// Slots held empty.
    pub held: Vec<Slot>,
    /// The reload in progress.
    pub reload: Option<ReloadView>,
    /// Every worker that is alive.
    pub workers: Vec<WorkerView>,
}

impl Core {
    /// Returns a snapshot.
    pub fn view(&self) -> View {
        let state = match self.phase {
            Phase::Preparing => State::Starting,
            Phase::Booting if self.degraded == 0 => State::Starting,
            Phase::Serving if self.degraded == 0 => State::Serving,
            Phase::Booting | Phase::Serving => State::Degraded,
            Phase::Drained => State::Draining,
            Phase::PreStop { .. } => State::PreStop,
            Phase::Stopping { .. } | Phase::Gone => State::Stopping,
        };
        let reload = self.candidate.as_ref().map(|candidate| {
            let of_it = || {
                let mine = |worker: &&Worker| {
                    worker.generation == candidate.generation() && worker.is_occupant()
                };
                self.workers.values().filter(mine)
            };
            let ready = of_it().filter(|worker| worker.ready_since().is_some());
            ReloadView {
                generation: candidate.generation(),
                slots: candidate.size().map_or(0, |(count, _)| count),
                spawned: u16::try_from(of_it().count()).unwrap_or(u16::MAX),
                ready: u16::try_from(ready.count()).unwrap_or(u16::MAX),
                passed: candidate.moved(),
            }
        });
        let workers = self.workers.values().map(Worker::view).collect();
        let plan = &self.stable.plan;
        View {
            state,
            generation: self.stable.id,
            open: self.open,
            bounds: (self.least(), plan.max_workers),
            ready: self.is_ready(),
            rotation: self.rotation.clone(),
            held: self.held_slots.iter().copied().collect(),
            reload,
            workers,
        }
    }
}

impl Core {
    /// Whether load balancers should send connections: the server has started and stays, and some
    /// slot serves.
    fn is_ready(&self) -> bool {
        match self.phase {
            Phase::Serving => self.rotation.iter().any(|slot| self.is_served(*slot)),
            Phase::Preparing
            | Phase::Booting
            | Phase::Drained
            | Phase::PreStop { .. }
            | Phase::Stopping { .. }
            | Phase::Gone => false,
        }
    }

    /// Returns how many slots are out of service or have two workers, and how many may be because
    /// of operations.
    pub fn permits(&self) -> (u16, u16) {
        let used = u16::try_from(self.unavailable().count()).unwrap_or(u16::MAX);
        (used, self.stable.plan.max_unavailable.of(self.open))
    }
}

impl Worker {
    fn view(&self) -> WorkerView {
        let state = match self.stage {
            Stage::Starting { .. } => WorkerState::Starting,
            Stage::Ready { liveness, .. } if liveness.is_stalled() => WorkerState::Stalled,
            Stage::Ready { .. } => WorkerState::Ready,
            Stage::Draining { .. } => WorkerState::Draining,
            Stage::Aborting { .. } => WorkerState::Aborting,
            Stage::Killed => WorkerState::Killed,
        };
        WorkerView {
            worker: self.id,
            slot: self.slot,
            generation: self.generation,
            state,
            born: self.born,
        }
    }
}
