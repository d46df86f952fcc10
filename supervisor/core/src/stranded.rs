//! Who still waits in the queue of a slot that is retired.
//!
//! A handshake that had begun when a slot was steered away from ends in the slot's queue, and nobody may be there any
//! more. Siblings that steal find it. Others do not: a foreign program gets its own slot's sockets only, and a
//! worker may be older than the slot. So the queues of retired slots are looked at for as long as a handshake can take, and a
//! slot in whose queue somebody waits gets a worker once more: out of rotation, and only until the queue is empty.

use super::event::Fact;
use super::time::Time;
use super::{Core, Phase};
use crate::record;

use crate::Slot;
use std::time::Duration;

/// How long the queue of a retired slot is looked at. The kernel gives a handshake up after about a minute.
const QUEUE_WATCH: Duration = Duration::from_secs(120);
/// How often.
const TICK: Duration = Duration::from_secs(1);
/// How long somebody may wait where a sibling, or a worker that drains there, is likely to come.
const SIBLING_GRACE: Duration = Duration::from_secs(3);
/// How long a worker has to empty the queue before another one may try.
const RESCUE_TIMEOUT: Duration = Duration::from_secs(120);

/// A slot that is empty after a scale-down, is held so, or was on candidate and is not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retired {
    /// Its queue is looked at until then, and until it is empty.
    until: Time,
    /// How long the queue was at the last look.
    length: u32,
    /// Since when nothing has been taken out of it, if somebody waits.
    waits: Option<Time>,
    /// Since when a worker is wanted there.
    rescue_since: Option<Time>,
    /// The operator was told.
    said: bool,
}

record!(Retired {
    until,
    length,
    waits,
    rescue_since,
    said
});

impl Core {
    fn rescues_stranded(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::PreStop { .. })
    }

    /// The retired slots whose queues are to be in the next [`Observation`](super::Observation) that has any.
    pub fn retired(&self) -> impl Iterator<Item = Slot> {
        self.retired.keys().copied()
    }

    /// Notes which slots have been retired since the last step, and which are wanted again.
    pub(crate) fn retire(&mut self, now: Time) {
        let wanted_end = self.open.max(self.batch_end());
        self.retired
            .retain(|slot, _| slot.0 >= wanted_end || self.held_slots.contains(slot));
        for slot in wanted_end..self.wanted_end {
            self.watch_queue(now, Slot(slot));
        }
        // Where all workers were asked to drain, nobody is steered elsewhere until there is an elsewhere.
        for slot in &self.rotation {
            if let Some(retired) = self.retired.get_mut(slot) {
                retired.until = now + QUEUE_WATCH;
            }
        }
        self.wanted_end = wanted_end;
    }

    /// Nobody is to be in a slot any more.
    pub(crate) fn watch_queue(&mut self, now: Time, slot: Slot) {
        let retired = Retired {
            until: now + QUEUE_WATCH,
            length: 0,
            waits: None,
            rescue_since: None,
            said: false,
        };
        self.retired.insert(slot, retired);
    }

    /// Whether a retired slot is to have a worker for those who wait in its queue.
    pub(crate) fn needs_rescue(&self, slot: Slot) -> bool {
        self.rescues_stranded()
            && self
                .retired
                .get(&slot)
                .is_some_and(|retired| retired.rescue_since.is_some())
    }

    /// How often retired slots are to be looked at, if there are any.
    pub(crate) fn retired_gap(&self) -> Option<Duration> {
        (self.rescues_stranded() && !self.retired.is_empty()).then_some(TICK)
    }

    /// Takes in how long the queue of each slot is.
    pub(crate) fn observe_retired(&mut self, now: Time, length: impl Fn(Slot) -> u32) {
        if !self.rescues_stranded() {
            return;
        }
        let mut facts = Vec::new();
        let (workers, steals) = (&self.workers, self.stable.plan.steals);
        self.retired.retain(|slot, retired| {
            let length = length(*slot);
            if length == 0 {
                (retired.waits, retired.rescue_since) = (None, None);
            } else if length < retired.length {
                retired.waits = Some(now);
            }
            retired.length = length;
            if length == 0 {
                return now < retired.until;
            }
            let waits = now - *retired.waits.get_or_insert(now);
            match retired.rescue_since {
                Some(since) if now - since >= RESCUE_TIMEOUT => {
                    // Asked to leave, it may still empty the queue.
                    (retired.waits, retired.rescue_since) = (Some(now), None);
                }
                Some(_) => {}
                None => {
                    let may_be_served =
                        steals || workers.values().any(|worker| worker.slot == *slot);
                    if waits
                        >= if may_be_served {
                            SIBLING_GRACE
                        } else {
                            Duration::ZERO
                        }
                    {
                        retired.rescue_since = Some(now);
                        let said = std::mem::replace(&mut retired.said, true);
                        facts.extend((!said).then_some(Fact::Stranded(*slot, length)));
                    }
                }
            }
            true
        });
        facts.into_iter().for_each(|fact| self.report(fact));
    }

    /// The supervisor was stopped for so long.
    pub(crate) fn put_off_retired(&mut self, gap: Duration) {
        for retired in self.retired.values_mut() {
            retired.until += gap;
            retired.rescue_since = retired.rescue_since.map(|since| since + gap);
        }
    }
}
