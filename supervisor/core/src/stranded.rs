//! Stranded connections: those that wait in the queue of a retired slot.
//!
//! A handshake that had begun when a slot was steered away from ends in the slot's queue, where
//! there may be no worker any more. Siblings that steal find it. Others do not: an external program
//! gets only its own slot's sockets, and a worker may be older than the slot. So the queues of
//! retired slots are watched for as long as a handshake can take, and a slot with stranded
//! connections gets a *rescue worker*: out of rotation, and only until the queue is empty.

use crate::event::Fact;
use crate::id::Slot;
use crate::machine::Core;
use crate::retired::Retired;
use crate::time::Time;
use std::time::Duration;

/// How long the queue of a retired slot is watched. The kernel gives up a handshake after about a
/// minute.
const QUEUE_WATCH: Duration = Duration::from_mins(2);
/// How often it is observed.
const TICK: Duration = Duration::from_secs(1);
/// How long connections may wait where a sibling, or a worker draining there, is likely to accept
/// them.
const SIBLING_GRACE: Duration = Duration::from_secs(3);
/// How long a rescue worker may take to empty the queue before another one is tried.
const RESCUE_TIMEOUT: Duration = Duration::from_mins(2);

impl Core {
    /// Records which slots have been retired since the last step, and which are wanted again.
    pub(crate) fn retire(&mut self, now: Time) {
        let wanted_end = self.open.max(self.batch_end());
        self.retired
            .retain(|slot, _| slot.0 >= wanted_end || self.held_slots.contains(slot));
        for slot in wanted_end..self.wanted_end {
            self.watch_queue(now, Slot(slot));
        }
        // After a drain of all workers, connections are still steered here until there is an
        // alternative.
        for slot in &self.rotation {
            if let Some(retired) = self.retired.get_mut(slot) {
                retired.until = now + QUEUE_WATCH;
            }
        }
        self.wanted_end = wanted_end;
    }

    /// Starts watching the queue of a slot that is to be empty.
    pub(crate) fn watch_queue(&mut self, now: Time, slot: Slot) {
        let retired = Retired {
            until: now + QUEUE_WATCH,
            length: 0,
            waits: None,
            rescue_since: None,
            reported: false,
        };
        self.retired.insert(slot, retired);
    }

    /// Returns how often retired slots must be observed, if there are any.
    pub(crate) fn retired_gap(&self) -> Option<Duration> {
        (self.rescues_stranded() && !self.retired.is_empty()).then_some(TICK)
    }

    /// Records the queue length of each retired slot.
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
                    // While it drains, the worker may still empty the queue.
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
                        let reported = std::mem::replace(&mut retired.reported, true);
                        facts.extend((!reported).then_some(Fact::Stranded(*slot, length)));
                    }
                }
            }
            true
        });
        for fact in facts {
            self.report(fact);
        }
    }

    /// Postpones everything after the supervisor was stopped for `gap`.
    pub(crate) fn put_off_retired(&mut self, gap: Duration) {
        for retired in self.retired.values_mut() {
            retired.until += gap;
            retired.rescue_since = retired.rescue_since.map(|since| since + gap);
        }
    }
}
