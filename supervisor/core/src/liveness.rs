//! Whether a ready worker is healthy, as far as that is visible from outside.
//!
//! There are two grades. A worker is *stalled* when it has been silent for a few heartbeats, or
//! when its queue holds connections and none is accepted: new connections are steered elsewhere at
//! once, which costs little and is undone when it shows life again. It is *hung* when that has
//! lasted for the whole `hang_timeout`, or when a handler runs longer than `request_timeout`: then
//! it is aborted.
//!
//! A worker that sends heartbeats is never killed for its queue, since it may have good reason to
//! accept nothing (all its connections are in use). For a program that sends none, the queue is the
//! only sign of life.

use crate::event::{Stall, WorkerSample};
use crate::plan::Plan;
use crate::record;
use crate::time::Time;
use std::time::Duration;

/// A worker whose queue has not moved for this long, over at least [`MIN_OBSERVATIONS`], is
/// stalled.
const MIN_STUCK: Duration = Duration::from_millis(300);
/// See [`MIN_STUCK`]: on a busy machine, time alone proves nothing.
const MIN_OBSERVATIONS: u32 = 3;
/// The shortest interval at which a suspicious queue is observed; it grows the longer the suspicion
/// lasts.
const SUSPICIOUS_INTERVAL: Duration = Duration::from_millis(50);
/// How often queues are observed while the server is active.
pub(crate) const ACTIVE_INTERVAL: Duration = Duration::from_millis(200);
/// How long a worker gets to end an overdue request itself, with 503.
const WORKER_TIMEOUT_GRACE: Duration = Duration::from_secs(1);
/// How far a heartbeat may lie ahead of the observation that finds it.
const MAX_HEARTBEAT_LEAD: Duration = Duration::from_secs(1);

/// The signs of life of a ready worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Liveness {
    /// When its last heartbeat was.
    pub(crate) heard: Time,
    /// Time since then in which the machine stood still.
    pub(crate) excuse: Duration,
    pub(crate) beats: bool,
    /// Whether it has certainly been ready.
    pub(crate) proven: bool,
    pub(crate) done: Option<u64>,
    /// Whether it has done anything since its queue was last observed.
    pub(crate) moved: bool,
    /// When its longest-running handler began, postponed by time in which the machine stood still.
    pub(crate) oldest: Option<Oldest>,
    /// When its slot's queue was last observed, and the queue's length then.
    pub(crate) observed: Time,
    pub(crate) queue: u32,
    pub(crate) wait: Option<Wait>,
    pub(crate) stalled: Option<Stalled>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Oldest {
    pub(crate) began: Time,
    pub(crate) excuse: Duration,
}

/// A queue with connections of which no observation since then has seen any accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) since: Time,
    /// When that was last observed.
    pub(crate) until: Time,
    pub(crate) observations: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stalled {
    pub(crate) since: Time,
    /// Whether it has shown life since then.
    pub(crate) sign: bool,
    /// When its queue was last observed not to have moved.
    pub(crate) stuck: Time,
    /// Whether the stall was reported.
    pub(crate) reported: bool,
}

record!(Liveness {
    heard,
    excuse,
    beats,
    proven,
    done,
    moved,
    oldest,
    observed,
    queue,
    wait,
    stalled
});
record!(Oldest { began, excuse });
record!(Wait {
    since,
    until,
    observations
});
record!(Stalled {
    since,
    sign,
    stuck,
    reported
});

impl Liveness {
    pub(crate) fn new(now: Time) -> Self {
        Self {
            heard: now,
            excuse: Duration::ZERO,
            beats: true,
            proven: false,
            done: None,
            moved: false,
            oldest: None,
            observed: now,
            queue: 0,
            wait: None,
            stalled: None,
        }
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Records its signs of life. `missed` is how much of the time before `now` the supervisor did
    /// not run.
    pub(crate) fn see(&mut self, now: Time, sample: &WorkerSample, missed: Duration) {
        // A heartbeat from the future would be new to every observation and keep a hung worker
        // alive for ever. A little after `now` is legitimate: a worker may beat before its row is
        // read.
        let heard = if sample.heard > now + MAX_HEARTBEAT_LEAD {
            self.heard
        } else {
            sample.heard.min(now)
        };
        if heard > self.heard {
            self.heard = heard;
            self.excuse = Duration::ZERO;
            if let Some(stalled) = &mut self.stalled {
                stalled.sign |= heard > stalled.since;
            }
        }
        self.moved |= sample.done != self.done;
        (self.beats, self.done) = (sample.beats, sample.done);
        self.proven |= sample.greeted;
        if self.oldest.map(|oldest| oldest.began) != sample.oldest {
            // A handler that began unobserved had no more time of its own than any other.
            self.oldest = sample.oldest.map(|began| Oldest {
                began,
                excuse: missed.min(now - began),
            });
        }
        if let Some(stalled) = &mut self.stalled {
            stalled.sign |= self.moved;
        }
    }

    /// Records the length of its queue, and whether anything was accepted since the last
    /// observation, which must have been by this worker if it is `alone` in its slot.
    pub(crate) fn observe(&mut self, now: Time, length: u32, moved: bool, alone: bool) {
        (self.observed, self.queue, self.moved) = (now, length, false);
        self.proven |= moved && alone;
        if length == 0 || moved {
            self.wait = (length > 0).then_some(Wait {
                since: now,
                until: now,
                observations: 0,
            });
            if let Some(stalled) = &mut self.stalled {
                // Siblings accept from the queue of a worker that counts; an external program has
                // its queue to itself.
                stalled.sign |= self.done.is_none();
            }
        } else {
            let wait = self.wait.get_or_insert(Wait {
                since: now,
                until: now,
                observations: 0,
            });
            (wait.until, wait.observations) = (now, wait.observations + 1);
            if let Some(stalled) = &mut self.stalled {
                stalled.stuck = now;
            }
        }
    }

    /// Postpones everything after the supervisor was stopped for `gap`; comes after
    /// [`forgive`](Self::forgive).
    pub(crate) fn put_off(&mut self, late: Duration, gap: Duration) {
        self.heard += gap;
        // `forgive` has excused `late` already.
        self.excuse = self.excuse.saturating_sub(late);
        if let Some(oldest) = &mut self.oldest {
            // The stop may have begun right after the last step; `late` counts only from the
            // deadline on.
            oldest.excuse += gap.saturating_sub(late);
        }
    }

    /// Excuses `late`, for which the machine stood still.
    pub(crate) fn forgive(&mut self, now: Time, late: Duration) {
        self.excuse += late;
        if let Some(oldest) = &mut self.oldest {
            oldest.excuse += late;
        }
        if let Some(wait) = &mut self.wait {
            // As if the last observation had been now, with at least two more to come.
            wait.since += now - wait.until;
            (wait.until, wait.observations) = (now, wait.observations.min(MIN_OBSERVATIONS - 2));
        }
    }

    /// Returns when its silence makes it stalled.
    pub(crate) fn silent_at(&self, plan: &Plan) -> Option<Time> {
        // A heartbeat may be two periods old when it is read, and a busy machine delays everything
        // a little.
        let slack = (plan.heartbeat / 2).max(Duration::from_millis(200));
        plan.hang_timeout
            .map(|_| self.heard + self.excuse + plan.heartbeat * 2 + slack)
    }

    /// Returns how soon after the observation at `observed` its queue must be observed again, if at
    /// all. Measured from that observation: a gap that grew until it is over would be approached in
    /// ever smaller steps, each of them a wake-up.
    pub(crate) fn observe_within(&self, observed: Time) -> Option<Duration> {
        let patient = |since: Time| ((observed - since) / 4).max(SUSPICIOUS_INTERVAL);
        let wait = self.wait.map(|wait| {
            if wait.observations == 0 {
                ACTIVE_INTERVAL
            } else {
                patient(wait.since)
            }
        });
        wait.into_iter()
            .chain(self.stalled.map(|stalled| patient(stalled.since)))
            .min()
    }

    /// Returns since when it has certainly accepted nothing from its queue.
    pub(crate) fn stuck_since(&self) -> Option<Time> {
        self.wait
            .filter(|wait| wait.observations >= MIN_OBSERVATIONS)
            .map(|wait| wait.since)
    }

    /// Returns what makes it stalled now.
    pub(crate) fn trouble(&self, now: Time, plan: &Plan) -> Option<(Stall, Duration)> {
        plan.hang_timeout?;
        if self.silent_at(plan).is_some_and(|at| at <= now) {
            return Some((Stall::Silent, now - self.heard));
        }
        // Only observed time counts.
        let stuck = self
            .wait
            .filter(|wait| wait.observations >= MIN_OBSERVATIONS)
            .map(|wait| wait.until - wait.since);
        stuck
            .filter(|span| *span >= MIN_STUCK)
            .map(|span| (Stall::Stuck, span))
    }

    /// Whether a stalled worker may get new connections again: it lives, and its queue is empty or
    /// moves.
    pub(crate) fn is_healthy(&self, now: Time, plan: &Plan, stalled: &Stalled) -> bool {
        let flows = self.queue == 0 || self.observed - stalled.stuck >= MIN_STUCK;
        stalled.sign && flows && self.trouble(now, plan).is_none()
    }

    /// Returns when it will be hung, for each way in which it can.
    pub(crate) fn hangs_at(&self, plan: &Plan) -> [(Stall, Option<Time>); 3] {
        let silent = plan.hang_timeout.map(|timeout| self.heard + timeout);
        let mute = self.stuck_since().filter(|_| !self.beats);
        // A program that merely counts as ready may still be starting.
        let grace = if self.proven {
            Duration::ZERO
        } else {
            plan.start_timeout
        };
        let stuck =
            mute.and_then(|since| plan.hang_timeout.map(|timeout| since + timeout.max(grace)));
        let overdue = self.oldest.and_then(|oldest| {
            plan.request_timeout
                .map(|timeout| oldest.began + oldest.excuse + timeout + WORKER_TIMEOUT_GRACE)
        });
        [
            (Stall::Overdue, overdue),
            (Stall::Silent, silent),
            (Stall::Stuck, stuck),
        ]
    }

    pub(crate) fn deadline(&self, plan: &Plan) -> Option<Time> {
        self.hangs_at(plan)
            .into_iter()
            .filter_map(|(_, at)| at)
            .min()
    }

    /// Returns why it is hung now, and since how long.
    pub(crate) fn hang(&self, now: Time, plan: &Plan) -> Option<(Stall, Duration)> {
        let due = |(why, at): (Stall, Option<Time>)| at.filter(|at| *at <= now).map(|_| why);
        let why = self.hangs_at(plan).into_iter().find_map(due)?;
        let since = match why {
            Stall::Silent => Some(self.heard),
            Stall::Stuck => self.stuck_since(),
            Stall::Overdue => self.oldest.map(|oldest| oldest.began),
        };
        since.map(|since| (why, now - since))
    }
}
