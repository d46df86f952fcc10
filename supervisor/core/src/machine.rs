//! The state of the whole server, and queries on it. Nothing here makes a decision.

use crate::autoscale::state::Autoscaler;
use crate::backoff::Backoffs;
use crate::candidate::{Candidate, CandidateStage};
use crate::event::{Action, Command, Done, Fact, RequestId};
use crate::id::{GenerationId, Slot, WorkerId};
use crate::plan::Plan;
use crate::quiesce::Quiesce;
use crate::record;
use crate::retired::Retired;
use crate::rng::Rng;
use crate::slot_operation::SlotOperation;
use crate::time::Time;
use crate::worker::{Worker, Workers};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const STOPPING: &str = "the server stops";

/// The phase of the server's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) enum Phase {
    /// Not every slot has been filled yet.
    Booting,
    /// It serves.
    Serving,
    /// All workers were asked to drain, the sockets stay; a reload ends it.
    Drained,
    /// It exits with this status as soon as no worker is alive.
    Stopping { now: bool, status: u8 },
    /// It has exited.
    Gone,
    /// It serves until then and stops: load balancers must notice before workers drain.
    PreStop { until: Time },
    /// The first generation is not prepared yet. No worker starts.
    Preparing,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Committed {
    pub(crate) id: GenerationId,
    pub(crate) plan: Plan,
}

record!(Committed { id, plan });

/// The state of the whole server.
///
/// ```
/// use std::time::Duration;
/// use prefork_core::{Action, Core, Event, GenerationId, Limits, Plan, ReadinessSignal, Share, Time};
/// let plan = Plan {
///     workers: 2,
///     max_workers: 8,
///     surge: 2,
///     start_timeout: Duration::from_secs(60),
///     heartbeat: Duration::from_secs(1),
///     hang_timeout: None,
///     request_timeout: None,
///     graceful_timeout: Duration::from_secs(30),
///     min_ready: Duration::from_secs(2),
///     steals: true,
///     readiness: ReadinessSignal::Message,
///     max_unavailable: Share::Percent(10),
///     autoscale: None,
///     recycle: Limits::default(),
///     pre_stop_delay: Duration::ZERO,
/// };
/// let mut core = Core::new(GenerationId(1), plan, 42);
/// let actions = core.step(Time::default(), Event::Tick);
/// assert_eq!(actions.iter().filter(|action| matches!(action, Action::Spawn { .. })).count(), 2);
/// ```
#[derive(Debug, Clone)]
pub struct Core {
    pub(crate) phase: Phase,
    pub(crate) stable: Committed,
    /// Slots that the committed generation fills.
    pub(crate) open: u16,
    pub(crate) candidate: Option<Candidate>,
    /// A reload that has not begun, and the requests that wait for its verdict.
    pub(crate) pending_reload: Option<Vec<RequestId>>,
    pub(crate) reload_wait_reported: bool,
    pub(crate) quiesce: Option<Quiesce>,
    pub(crate) workers: Workers,
    pub(crate) backoffs: Backoffs,
    /// Generations that the shell still holds.
    pub(crate) held_generations: BTreeSet<GenerationId>,
    pub(crate) last_generation: GenerationId,
    pub(crate) last_worker: WorkerId,
    pub(crate) rotation: Vec<Slot>,
    /// When the queues were last observed.
    pub(crate) observed: Time,
    /// Whether workers were active then.
    pub(crate) active: bool,
    /// When a stall in a slot was last reported.
    pub(crate) stall_reported: BTreeMap<Slot, Time>,
    /// Slots in whose queues connections may still turn up.
    pub(crate) retired: BTreeMap<Slot, Retired>,
    /// One past the last slot that was wanted at the last step.
    pub(crate) wanted_end: u16,
    /// Slots held empty.
    pub(crate) held_slots: BTreeSet<Slot>,
    /// Pending slot operations.
    pub(crate) operations: Vec<SlotOperation>,
    /// When a replacement may be tried again in a slot where one has failed.
    pub(crate) replacement_backoffs: Backoffs,
    /// The state of the autoscaler.
    pub(crate) autoscaler: Autoscaler,
    pub(crate) ever_ready: bool,
    pub(crate) boot_failures: u32,
    pub(crate) last_failure: String,
    pub(crate) degraded: u16,
    pub(crate) rng: Rng,
    pub(crate) last_step: Time,
    pub(crate) deadline: Option<Time>,
    pub(crate) out: Vec<Action>,
}

impl Core {
    /// Creates a server about to start its first generation, which the shell has prepared already.
    /// `seed` feeds the jitter of retries.
    pub fn new(generation: GenerationId, plan: Plan, seed: u64) -> Self {
        Self {
            phase: Phase::Booting,
            stable: Committed {
                id: generation,
                plan,
            },
            open: plan.workers,
            candidate: None,
            pending_reload: None,
            reload_wait_reported: false,
            quiesce: None,
            workers: Workers::default(),
            backoffs: Backoffs::default(),
            held_generations: BTreeSet::from([generation]),
            last_generation: generation,
            last_worker: WorkerId(0),
            rotation: Vec::new(),
            observed: Time::default(),
            active: false,
            stall_reported: BTreeMap::new(),
            retired: BTreeMap::new(),
            wanted_end: plan.workers,
            held_slots: BTreeSet::new(),
            operations: Vec::new(),
            replacement_backoffs: Backoffs::default(),
            autoscaler: Autoscaler::default(),
            ever_ready: false,
            boot_failures: 0,
            last_failure: String::new(),
            degraded: 0,
            rng: Rng(seed),
            last_step: Time::default(),
            deadline: None,
            out: Vec::new(),
        }
    }

    /// Creates a server whose first generation is still being prepared. Its workers start with
    /// [`Event::Prepared`](crate::Event::Prepared); with
    /// [`Event::Refused`](crate::Event::Refused) it exits.
    pub fn preparing(generation: GenerationId, plan: Plan, seed: u64) -> Self {
        Self {
            phase: Phase::Preparing,
            ..Self::new(generation, plan, seed)
        }
    }

    /// Returns the generation that the shell is preparing, if any.
    pub fn being_prepared(&self) -> Option<GenerationId> {
        match (self.phase, &self.candidate) {
            (Phase::Preparing, _) => Some(self.stable.id),
            (_, Some(candidate)) if candidate.plan().is_none() => Some(candidate.generation()),
            _ => None,
        }
    }

    /// Returns when [`step`](Self::step) must be called at the latest, with
    /// [`Event::Tick`](crate::Event::Tick) if nothing else happens. Always later than the last
    /// step.
    pub fn next_deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// Whether the server stops, so that nothing new may begin.
    pub fn is_stopping(&self) -> bool {
        matches!(
            self.phase,
            Phase::PreStop { .. } | Phase::Stopping { .. } | Phase::Gone
        )
    }

    /// Whether every slot is to be filled and dead workers replaced.
    pub(crate) fn is_to_serve(&self) -> bool {
        matches!(
            self.phase,
            Phase::Booting | Phase::Serving | Phase::PreStop { .. }
        )
    }

    /// Returns when the pre-stop delay ends.
    pub(crate) fn pre_stop_until(&self) -> Option<Time> {
        match self.phase {
            Phase::PreStop { until } => Some(until),
            Phase::Preparing
            | Phase::Booting
            | Phase::Serving
            | Phase::Drained
            | Phase::Stopping { .. }
            | Phase::Gone => None,
        }
    }

    pub(crate) fn is_reloading(&self) -> bool {
        self.candidate.is_some() || self.pending_reload.is_some()
    }

    /// Returns the slots that are not healthy: a healthy slot has exactly one worker, and that
    /// worker is healthy. Retired slots count while a worker drains there.
    pub(crate) fn unavailable(&self) -> impl Iterator<Item = Slot> {
        (0..self.slots_end()).map(Slot).filter(|slot| {
            let mut here = self.in_slot(*slot);
            let (first, second) = (here.next(), here.next());
            if slot.0 >= self.open {
                return first.is_some() && !self.needs_rescue(*slot);
            }
            // A worker of a generation that was rolled back is about to be replaced.
            let stays = |worker: &Worker| {
                worker.generation == self.stable.id && worker.replacement.is_none()
            };
            let healthy = first.is_some_and(|worker| worker.is_healthy() && stays(worker));
            !healthy || second.is_some() || self.held_slots.contains(slot)
        })
    }

    /// Returns how many slots there are, or will be after the reload, and how many there may be.
    pub(crate) fn size(&self) -> (u16, u16) {
        let candidate = self.candidate.as_ref().and_then(Candidate::size);
        candidate.unwrap_or((self.open, self.stable.plan.max_workers.max(1)))
    }

    /// Returns one past the last slot that the candidate fills now.
    pub(crate) fn batch_end(&self) -> u16 {
        let Some(Candidate {
            stage: CandidateStage::Replacing { plan, count, moved },
            ..
        }) = self.candidate
        else {
            return 0;
        };
        let last_batch_leaves = self
            .workers
            .values()
            .any(|worker| worker.generation == self.stable.id && worker.slot.0 < moved);
        if last_batch_leaves {
            moved
        } else {
            moved.saturating_add(plan.surge.max(1)).min(count)
        }
    }

    /// Returns the generations that must have a worker in a slot: the committed one, the candidate,
    /// or for a while both.
    pub(crate) fn wanted_in(&self, slot: Slot) -> impl Iterator<Item = GenerationId> {
        let moved = self
            .candidate
            .as_ref()
            .is_some_and(|candidate| slot.0 < candidate.moved());
        let open = slot.0 < self.open && !self.held_slots.contains(&slot);
        let stable = self.is_to_serve() && open && !moved || self.needs_rescue(slot);
        let candidate = self
            .candidate
            .as_ref()
            .map(super::candidate::Candidate::generation);
        let candidate = candidate.filter(|_| slot.0 < self.batch_end());
        stable
            .then_some(self.stable.id)
            .into_iter()
            .chain(candidate)
    }

    /// Returns the worker that fills a slot for a generation, unless it is being replaced.
    pub(crate) fn occupant(&self, slot: Slot, generation: GenerationId) -> Option<&Worker> {
        let fills = |worker: &&Worker| {
            worker.generation == generation && worker.is_occupant() && worker.replacement.is_none()
        };
        self.in_slot(slot).find(fills)
    }

    pub(crate) fn in_slot(&self, slot: Slot) -> impl Iterator<Item = &Worker> {
        self.workers
            .values()
            .filter(move |worker| worker.slot == slot)
    }

    /// Whether a ready worker fills the slot.
    pub(crate) fn is_served(&self, slot: Slot) -> bool {
        self.in_slot(slot)
            .any(|worker| worker.ready_since().is_some())
    }

    /// Returns one past the last slot that is or may become filled.
    pub(crate) fn slots_end(&self) -> u16 {
        let highest = self
            .workers
            .values()
            .map(|worker| worker.slot.0 + 1)
            .max()
            .unwrap_or(0);
        let visited = self
            .retired()
            .filter(|slot| self.needs_rescue(*slot))
            .map(|slot| slot.0 + 1)
            .max();
        highest
            .max(self.open)
            .max(self.batch_end())
            .max(visited.unwrap_or(0))
    }

    pub(crate) fn rescues_stranded(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::PreStop { .. })
    }

    /// Whether a retired slot needs a rescue worker for the connections in its queue.
    pub(crate) fn needs_rescue(&self, slot: Slot) -> bool {
        self.rescues_stranded()
            && self
                .retired
                .get(&slot)
                .is_some_and(|retired| retired.rescue_since.is_some())
    }

    /// Returns the retired slots whose queues belong in the next
    /// [`Observation`](crate::Observation) that has any.
    pub fn retired(&self) -> impl Iterator<Item = Slot> {
        self.retired.keys().copied()
    }

    pub(crate) fn report(&mut self, fact: Fact) {
        self.out.push(Action::Report(fact));
    }

    pub(crate) fn ignore(&mut self, command: Command, why: &str) {
        self.report(Fact::Ignored(command, why.to_owned()));
    }

    pub(crate) fn reply(&mut self, request: Option<RequestId>, answer: Result<Done, String>) {
        self.out
            .extend(request.map(|request| Action::Reply(request, answer)));
    }
}
