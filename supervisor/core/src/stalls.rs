//! Observations: when they are due, what they change, and what follows from a stall.

use crate::event::{Fact, Observation};
use crate::id::Slot;
use crate::liveness::{ACTIVE_INTERVAL, Stalled};
use crate::machine::Core;
use crate::plan::sampling_period;
use crate::time::Time;
use crate::worker::{Stage, Worker};
use std::time::Duration;

/// Stalls of a slot are reported once in this time: handlers that block for half a second each
/// would fill the log.
const STALL_REPORT_INTERVAL: Duration = Duration::from_secs(10);

impl Core {
    /// Records an observation. [`judge_stalls`](Self::judge_stalls) and `converge` draw the
    /// conclusions.
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
                // In a slot without a queue of its own nothing can wait.
                let (length, moved, alone) = seen.unwrap_or_default();
                liveness.observe(now, length, moved, alone);
            }
        }
        self.autoscale(now, observation, missed);
    }

    /// Whether anything was accepted from a slot's queue since the last observation, as far as can
    /// be known. During a reload two workers share it.
    fn queue_moved(&self, slot: Slot, length: u32) -> bool {
        let liveness_of_all = || self.in_slot(slot).filter_map(Worker::liveness);
        liveness_of_all()
            .any(|liveness| (liveness.moved && liveness.done.is_some()) || length < liveness.queue)
    }

    /// Whether the next [`Observation`] needs the queues' lengths, which cost a system call each.
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

    /// Returns how long after the last observation of the queues the next one is due; `None` while
    /// no worker is watched.
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

    /// Returns when the next observation is due.
    pub(crate) fn next_observation(&self, now: Time) -> Option<Time> {
        let gap = self.observation_interval()?;
        let silences = self.workers.values().filter_map(|worker| {
            worker
                .liveness()
                .filter(|liveness| !liveness.is_stalled())
                .and_then(|liveness| liveness.silent_at(&worker.plan))
        });
        let observations = [self.observed + gap, now + gap];
        // A shell that skips an observation must not be woken for it all the time.
        observations
            .into_iter()
            .chain(silences)
            .filter(|at| *at > now)
            .min()
    }

    /// Marks stalled workers, which `steer` takes out of rotation, and clears the mark of those
    /// that serve again.
    pub(crate) fn judge_stalls(&mut self, now: Time) {
        let mut changes = Vec::new();
        for (id, worker) in self.workers.iter() {
            let Some(liveness) = worker.liveness() else {
                continue;
            };
            match (&liveness.stalled, liveness.trouble(now, &worker.plan)) {
                (None, Some(trouble)) => changes.push((*id, Some(trouble))),
                (Some(stalled), _) if liveness.is_healthy(now, &worker.plan, stalled) => {
                    changes.push((*id, None));
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
            if let Some((why, span)) = trouble {
                let reported = self
                    .stall_reported
                    .get(&slot)
                    .is_some_and(|at| now - *at < STALL_REPORT_INTERVAL);
                liveness.stalled = Some(Stalled {
                    since: now,
                    sign: false,
                    stuck: now,
                    reported: !reported,
                });
                if !reported {
                    self.stall_reported.insert(slot, now);
                    self.report(Fact::Stalled(who, why, span));
                }
            } else {
                let stalled = liveness.stalled.take();
                if let Some(stalled) = stalled.filter(|stalled| stalled.reported) {
                    self.report(Fact::Resumed(who, now - stalled.since));
                }
            }
        }
    }
}
