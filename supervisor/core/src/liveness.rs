//! Whether a ready worker is well, as far as that can be seen from outside.
//!
//! Two grades. A worker is *stalled* when it has been silent for a few heartbeats, or when its queue holds connections
//! and nothing is taken out of it: new connections are steered elsewhere at once, which costs little and is undone
//! when it shows life again. It is *hung* when that has lasted for the whole `hang_timeout`, or when a handler runs
//! longer than `request_timeout`: then it is aborted.
//!
//! A worker that beats is never killed for its queue, since it may have good reason to accept nothing (all its
//! connections are taken). Of a program that does not beat, the queue is the only sign.

use super::event::{Fact, Observation, Plan, Stall, WorkerSample};
use super::time::Time;
use super::worker::{Stage, Worker};
use super::{Core, sampling_period};
use crate::record;

use crate::Slot;
use std::time::Duration;

/// A worker whose queue has not moved for this long, in at least [`MIN_OBSERVATIONS`] looks, is stalled.
const MIN_STUCK: Duration = Duration::from_millis(300);
/// See [`MIN_STUCK`]: on a busy machine, time alone proves nothing.
const MIN_OBSERVATIONS: u32 = 3;
/// How soon a queue that gives reason to is looked at again. The longer the reason lasts, the rarer the looks.
const SUSPICIOUS_INTERVAL: Duration = Duration::from_millis(50);
/// How often queues are looked at while the server has something to do.
const ACTIVE_INTERVAL: Duration = Duration::from_millis(200);
/// A worker ends overdue requests itself, with 503. Whoever has not by then cannot.
const WORKER_TIMEOUT_GRACE: Duration = Duration::from_secs(1);
/// Stalls of a slot are told of once in this time: handlers that block for half a second each would fill the log.
const STALL_REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// How much later than a look a beat may be that it finds.
const MAX_HEARTBEAT_LEAD: Duration = Duration::from_secs(1);

/// The signs of life of a ready worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Liveness {
    /// When it was last heard of.
    heard: Time,
    /// Time since then in which the machine stood still.
    excuse: Duration,
    beats: bool,
    /// It is certain to have been ready.
    proven: bool,
    done: Option<u64>,
    /// It has done something since the last look at its queue.
    moved: bool,
    /// When its longest-running handler began, put off by time in which the machine stood still.
    oldest: Option<Oldest>,
    /// When its slot's queue was last looked at, and how long it was.
    observed: Time,
    queue: u32,
    wait: Option<Wait>,
    stalled: Option<Stalled>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Oldest {
    began: Time,
    excuse: Duration,
}

/// Somebody waits in the queue, and at no look since then had anything been taken out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wait {
    since: Time,
    /// When that was last seen.
    until: Time,
    observations: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stalled {
    since: Time,
    /// It has shown life since then.
    sign: bool,
    /// When its queue was last seen not to have moved.
    stuck: Time,
    /// The operator was told.
    said: bool,
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
    said
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

    /// Takes in its signs of life. Of the time before `now`, the supervisor has just `missed` so much.
    fn see(&mut self, now: Time, sample: &WorkerSample, missed: Duration) {
        // A beat from the future is a lie: each look would find it new, and a hung worker would live for ever. A little after
        // `now` is what an honest worker may beat before its row is read.
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
            // One that began unseen had no more time of its own than any other.
            self.oldest = sample.oldest.map(|began| Oldest {
                began,
                excuse: missed.min(now - began),
            });
        }
        if let Some(stalled) = &mut self.stalled {
            stalled.sign |= self.moved;
        }
    }

    /// Notes how long its queue is, and whether anything was taken out of it since the last look, which must have been by
    /// this worker if it is `alone` in its slot.
    fn observe(&mut self, now: Time, length: u32, moved: bool, alone: bool) {
        (self.observed, self.queue, self.moved) = (now, length, false);
        self.proven |= moved && alone;
        if length == 0 || moved {
            self.wait = (length > 0).then_some(Wait {
                since: now,
                until: now,
                observations: 0,
            });
            if let Some(stalled) = &mut self.stalled {
                // Siblings take from the queue of a worker that counts; a foreign program has its queue to itself.
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

    /// The supervisor was stopped for so long: what [`forgive`](Self::forgive) does, and more.
    pub(crate) fn put_off(&mut self, late: Duration, gap: Duration) {
        self.heard += gap;
        // One excuse for it is enough.
        self.excuse = self.excuse.saturating_sub(late);
        if let Some(oldest) = &mut self.oldest {
            // The stop may have begun right after the last step; `late` counts only from when there was something to do.
            oldest.excuse += gap.saturating_sub(late);
        }
    }

    /// The machine stood still for `late`.
    pub(crate) fn forgive(&mut self, now: Time, late: Duration) {
        self.excuse += late;
        if let Some(oldest) = &mut self.oldest {
            oldest.excuse += late;
        }
        if let Some(wait) = &mut self.wait {
            // As if the last look had been now; and one more look is not enough.
            wait.since += now - wait.until;
            (wait.until, wait.observations) = (now, wait.observations.min(MIN_OBSERVATIONS - 2));
        }
    }

    /// When its silence makes it stalled.
    fn silent_at(&self, plan: &Plan) -> Option<Time> {
        // A beat may be as old as two periods when it is read; and a machine that is busy delays everything a little.
        let slack = (plan.heartbeat / 2).max(Duration::from_millis(200));
        plan.hang_timeout
            .map(|_| self.heard + self.excuse + plan.heartbeat * 2 + slack)
    }

    /// How soon after the look at `looked` its queue is to be looked at again, if there is a reason to. As of that look: a
    /// gap that grew until it is over would be approached in ever smaller steps, each of them a wake-up.
    fn observe_within(&self, observed: Time) -> Option<Duration> {
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

    /// Since when it has certainly taken nothing out of its queue.
    fn stuck_since(&self) -> Option<Time> {
        self.wait
            .filter(|wait| wait.observations >= MIN_OBSERVATIONS)
            .map(|wait| wait.since)
    }

    /// What makes it stalled now.
    fn trouble(&self, now: Time, plan: &Plan) -> Option<(Stall, Duration)> {
        plan.hang_timeout?;
        if self.silent_at(plan).is_some_and(|at| at <= now) {
            return Some((Stall::Silent, now - self.heard));
        }
        // What was seen counts, not what may have happened since.
        let stuck = self
            .wait
            .filter(|wait| wait.observations >= MIN_OBSERVATIONS)
            .map(|wait| wait.until - wait.since);
        stuck
            .filter(|span| *span >= MIN_STUCK)
            .map(|span| (Stall::Stuck, span))
    }

    /// Whether a stalled worker may have new connections again: it lives, and its queue is empty or keeps moving.
    fn is_healthy(&self, now: Time, plan: &Plan, stalled: &Stalled) -> bool {
        let flows = self.queue == 0 || self.observed - stalled.stuck >= MIN_STUCK;
        stalled.sign && flows && self.trouble(now, plan).is_none()
    }

    /// When it will be hung, for each way in which it can.
    fn hangs_at(&self, plan: &Plan) -> [(Stall, Option<Time>); 3] {
        let silent = plan.hang_timeout.map(|timeout| self.heard + timeout);
        let mute = self.stuck_since().filter(|_| !self.beats);
        // A program that only counts as ready may still be starting.
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

    /// Why it is hung now, and since how long.
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

impl Core {
    /// Takes in what was seen. Verdicts are [`judge_stalls`](Self::judge_stalls)' and `converge`'s.
    pub(crate) fn observe(&mut self, now: Time, observation: &Observation, missed: Duration) {
        for (id, sample) in &observation.workers {
            if let Some(Worker {
                stage: Stage::Ready { liveness, .. },
                ..
            }) = self.workers.get_mut(id)
            {
                liveness.see(now, sample, missed);
            }
        }
        let Some(queues) = &observation.queues else {
            return;
        };
        self.observed = now;
        self.active = self
            .workers
            .values()
            .filter_map(Worker::liveness)
            .any(|liveness| liveness.moved);
        let mut seen = vec![None; usize::from(Slot::MAX)];
        for (slot, length) in queues.iter().filter(|(slot, _)| slot.0 < Slot::MAX) {
            let alone = self.in_slot(*slot).count() == 1;
            seen[slot.index()] = Some((*length, self.queue_moved(*slot, *length), alone));
        }
        self.observe_retired(now, |slot| {
            seen[slot.index()].map_or(0, |(length, ..)| length)
        });
        for worker in self.workers.values_mut() {
            let seen = seen[worker.slot.index()];
            if let Stage::Ready { liveness, .. } = &mut worker.stage {
                // A slot without a queue of its own has nothing that could wait in it.
                let (length, moved, alone) = seen.unwrap_or_default();
                liveness.observe(now, length, moved, alone);
            }
        }
        self.autoscale(now, observation, missed);
    }

    /// Whether anything was taken out of a slot's queue since the last look, as far as can be told. Two workers share it
    /// during a reload.
    fn queue_moved(&self, slot: Slot, length: u32) -> bool {
        let liveness_of_all = || self.in_slot(slot).filter_map(Worker::liveness);
        liveness_of_all()
            .any(|liveness| (liveness.moved && liveness.done.is_some()) || length < liveness.queue)
    }

    /// Whether the next [`Observation`] is to have the queues' lengths, which cost a system call each.
    pub fn wants_queues(&self, now: Time) -> bool {
        let judged = |worker: &Worker| worker.deadline().is_some_and(|deadline| deadline <= now);
        self.observation_interval()
            .is_some_and(|gap| self.observed + gap <= now)
            || self
                .workers
                .values()
                .filter(|worker| worker.liveness().is_some())
                .any(judged)
    }

    /// How long after the last look at the queues the next one is due; `None` while nobody is watched.
    fn observation_interval(&self) -> Option<Duration> {
        let ready = || {
            self.workers
                .values()
                .filter_map(|worker| Some((worker.liveness()?, &worker.plan)))
        };
        let autoscale = self.stable.plan.autoscale.is_some();
        let watched = ready().filter(|(_, plan)| {
            plan.hang_timeout.is_some() || plan.request_timeout.is_some() || autoscale
        });
        let calm = watched
            .map(|(_, plan)| sampling_period(plan.hang_timeout.unwrap_or(Duration::MAX)))
            .min();
        let usual = calm.map(|calm| {
            if self.active {
                calm.min(ACTIVE_INTERVAL)
            } else {
                calm
            }
        });
        let reasons = ready().filter(|(_, plan)| plan.hang_timeout.is_some() || autoscale);
        reasons
            .filter_map(|(liveness, _)| liveness.observe_within(self.observed))
            .chain(usual)
            .chain(self.retired_gap())
            .min()
    }

    /// When signs of life are to be looked at next.
    pub(crate) fn next_observation(&self, now: Time) -> Option<Time> {
        let gap = self.observation_interval()?;
        let silences = self.workers.values().filter_map(|worker| {
            worker
                .liveness()
                .filter(|liveness| !liveness.is_stalled())
                .and_then(|liveness| liveness.silent_at(&worker.plan))
        });
        let observations = [self.observed + gap, now + gap];
        // Whoever does not look when it is asked to is not asked in vain all the time.
        observations
            .into_iter()
            .chain(silences)
            .filter(|at| *at > now)
            .min()
    }

    /// Takes whoever stalls out of rotation (which `steer` does), and back in who shows life again.
    pub(crate) fn judge_stalls(&mut self, now: Time) {
        let mut changes = Vec::new();
        for (id, worker) in &self.workers {
            let Some(liveness) = worker.liveness() else {
                continue;
            };
            match (&liveness.stalled, liveness.trouble(now, &worker.plan)) {
                (None, Some(trouble)) => changes.push((*id, Some(trouble))),
                (Some(stalled), _) if liveness.is_healthy(now, &worker.plan, stalled) => {
                    changes.push((*id, None))
                }
                (None, None) | (Some(_), _) => {}
            }
        }
        for (id, trouble) in changes {
            let Some(worker) = self.workers.get_mut(&id) else {
                continue;
            };
            let (who, slot) = (worker.worker_ref(), worker.slot);
            let Stage::Ready { liveness, .. } = &mut worker.stage else {
                continue;
            };
            match trouble {
                Some((why, span)) => {
                    let told = self
                        .stall_reported
                        .get(&slot)
                        .is_some_and(|told| now - *told < STALL_REPORT_INTERVAL);
                    liveness.stalled = Some(Stalled {
                        since: now,
                        sign: false,
                        stuck: now,
                        said: !told,
                    });
                    if !told {
                        self.stall_reported.insert(slot, now);
                        self.report(Fact::Stalled(who, why, span));
                    }
                }
                None => {
                    let stalled = liveness.stalled.take();
                    if let Some(stalled) = stalled.filter(|stalled| stalled.said) {
                        self.report(Fact::Resumed(who, now - stalled.since));
                    }
                }
            }
        }
    }
}
