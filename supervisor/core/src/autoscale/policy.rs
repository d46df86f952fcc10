//! How many workers the load asks for: numbers in, a number out.
//!
//! The load is measured in *workers' worth of work*: 2.5 means that two and a half workers were
//! fully busy. That many would suffice if requests came one after the other; as they arrive at
//! random, some headroom is needed, and the more workers there are the less of it for each:
//! `n = a + √a` (the square-root staffing rule, after Erlang). As shares: one worker's worth of
//! work gets two workers, four get six, sixteen get twenty (80 % busy).
//!
//! **Up** for either of two reasons. *Backlog*: connections wait, no worker is idle, and the same
//! held at the previous observation: at once, by as many workers as the queue needs, at most
//! doubling their number. *Busy*: the load of the last second or so asks for more workers than
//! there are, at three consecutive observations.
//!
//! **Down** one by one, always the last slot. Each slot remembers when it was last *needed*; one
//! that has not been needed for the whole `down_after` may go. Short lulls change nothing, so that
//! a fluctuating load does not start and stop workers all the time.

use super::load::ScaleReason;
use crate::float;
use crate::id::Slot;
use crate::record;
use crate::time::Time;
use std::time::Duration;

/// Time constant of the low-pass filter that smooths the load, in seconds.
const SMOOTHING_SECONDS: f64 = 1.0;
/// Consecutive observations, and their span, at which the load must ask for more workers.
const BUSY_OBSERVATIONS: u32 = 3;
const BUSY_SPAN: Duration = Duration::from_millis(500);
/// Consecutive observations, and their span, for which a queue must stand that is shorter than half
/// of the requests in flight.
const STANDING_OBSERVATIONS: u32 = 3;
const STANDING_SPAN: Duration = Duration::from_millis(300);
/// Without knowledge of idle workers each step down is an experiment: the next one follows after
/// this fraction of the usual wait, and each wrong one doubles the wait, up to a limit.
const STEPS_PER_WAIT: u32 = 4;
const MAX_WRONG_STEPS: u32 = 3;

/// What one observation measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measurements {
    /// Slots to be filled, including slots held empty.
    pub(crate) open: u16,
    /// Slots held empty.
    pub(crate) held: u16,
    /// Workers that accept connections.
    pub(crate) ready: u16,
    /// Work since the last observation, in workers' worth.
    pub(crate) load: f64,
    /// Requests that one worker handles at a time; `None` when only processor time shows the load.
    pub(crate) requests_per_worker: Option<u32>,
    /// Connections that have waited since the last observation, if no worker is idle.
    pub(crate) standing: u32,
    /// Time since the last observation.
    pub(crate) gap: Duration,
}

/// The limits of a decision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) least: u16,
    pub(crate) most: u16,
    pub(crate) down_after: Duration,
    /// Whether the last slot may be retired now: it is idle, and no other change is in progress.
    pub(crate) may_retire: bool,
}

/// The history of the load.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy {
    /// The load, smoothed.
    smooth: f64,
    /// Consecutive observations, and their span, at which the load asked for more workers.
    busy: (u32, Duration),
    /// Consecutive observations, and their span, at which a queue stood.
    stood: (u32, Duration),
    /// When each slot was last needed.
    needed: Vec<Time>,
    /// When a worker was last retired.
    retired: Option<Time>,
    /// Steps down that turned out wrong.
    wrong_steps: u32,
}

record!(Policy {
    smooth,
    busy,
    stood,
    needed,
    retired,
    wrong_steps
});

impl Policy {
    /// Returns the new number of slots, if it changes, and why.
    pub(crate) fn judge(
        &mut self,
        now: Time,
        measurements: &Measurements,
        bounds: &Bounds,
    ) -> Option<(u16, ScaleReason)> {
        let gap = measurements.gap.as_secs_f64();
        self.smooth += (measurements.load - self.smooth) * gap / (SMOOTHING_SECONDS + gap);
        let wanted = staffing(self.smooth, measurements.requests_per_worker)
            .saturating_add(measurements.held);
        let count = |row: &mut (u32, Duration), goes_on: bool| {
            *row = if goes_on {
                (row.0 + 1, row.1 + measurements.gap)
            } else {
                Default::default()
            };
        };
        count(&mut self.busy, wanted > measurements.open);
        count(&mut self.stood, measurements.standing > 0);
        let needed = if measurements.standing > 0 {
            measurements.open
        } else {
            wanted
        };
        self.need(now, needed.min(bounds.most));

        let up = self
            .backlog(measurements)
            .or_else(|| self.busyness(measurements, wanted));
        let to = up
            .map(|(to, _)| to.min(bounds.most))
            .filter(|to| *to > measurements.open);
        if let (Some(to), Some((_, reason))) = (to, up) {
            return Some((to, reason));
        }
        self.down(now, measurements, bounds)
    }

    /// Notes that the server grows, as [`judge`](Self::judge) decided.
    pub(crate) fn grown(
        &mut self,
        now: Time,
        measurements: &Measurements,
        to: u16,
        down_after: Duration,
    ) {
        self.need(now, to);
        (self.busy, self.stood) = Default::default();
        let soon = self
            .retired
            .is_some_and(|at| now - at < down_after.saturating_mul(2));
        if measurements.requests_per_worker.is_none() && soon {
            self.wrong_steps = (self.wrong_steps + 1).min(MAX_WRONG_STEPS);
        }
        self.retired = None;
    }

    /// Marks the first `count` slots as needed now.
    pub(crate) fn need(&mut self, now: Time, count: u16) {
        let count = usize::from(count);
        if self.needed.len() < count {
            self.needed.resize(count, now);
        }
        self.needed
            .iter_mut()
            .take(count)
            .for_each(|needed| *needed = now);
    }

    /// Postpones everything by time in which nothing was observed: it proves nothing about need.
    pub(crate) fn put_off(&mut self, gap: Duration) {
        self.needed.iter_mut().for_each(|needed| *needed += gap);
        (self.busy, self.stood) = Default::default();
    }

    /// Returns the slots that a standing backlog asks for.
    fn backlog(&self, measurements: &Measurements) -> Option<(u16, ScaleReason)> {
        let requests_per_worker = measurements.requests_per_worker.unwrap_or(1).max(1);
        let long = u64::from(measurements.standing) * 2
            >= u64::from(measurements.ready) * u64::from(requests_per_worker);
        let (observations, span) = self.stood;
        let stands = observations > 0
            && (long || observations >= STANDING_OBSERVATIONS && span >= STANDING_SPAN);
        // Workers that are starting will take their part of it.
        let serving = measurements.open.saturating_sub(measurements.held);
        let starting = serving.saturating_sub(measurements.ready);
        let need =
            u16::try_from(measurements.standing.div_ceil(requests_per_worker)).unwrap_or(u16::MAX);
        let more = need.saturating_sub(starting).min(serving);
        (stands && more > 0).then(|| {
            (
                bounded(measurements, measurements.open.saturating_add(more)),
                ScaleReason::Backlog(measurements.standing),
            )
        })
    }

    /// Returns the slots that sustained load asks for.
    fn busyness(&self, measurements: &Measurements, wanted: u16) -> Option<(u16, ScaleReason)> {
        let (observations, span) = self.busy;
        let share = (self.smooth / f64::from(measurements.ready.max(1)) * 100.0).clamp(0.0, 100.0);
        (observations >= BUSY_OBSERVATIONS && span >= BUSY_SPAN).then(|| {
            (
                bounded(measurements, wanted),
                ScaleReason::Busy(u8::try_from(float::to_u64(share.round())).unwrap_or(u8::MAX)),
            )
        })
    }

    fn down(
        &mut self,
        now: Time,
        measurements: &Measurements,
        bounds: &Bounds,
    ) -> Option<(u16, ScaleReason)> {
        let to = measurements
            .open
            .checked_sub(1)
            .filter(|to| *to >= bounds.least)?;
        let unneeded = now - *self.needed.get(usize::from(to)).unwrap_or(&now);
        let patience = bounds
            .down_after
            .saturating_mul(1 << self.wrong_steps.min(MAX_WRONG_STEPS));
        if !bounds.may_retire || unneeded < patience {
            return None;
        }
        if measurements.requests_per_worker.is_none() {
            // The capacity of the remaining workers is unknown until they have to use it.
            let pace = now + bounds.down_after / STEPS_PER_WAIT;
            for needed in self.needed.iter_mut().take(usize::from(to)) {
                *needed = (*needed).max(Time(pace.0.saturating_sub(patience)));
            }
            if self
                .retired
                .is_some_and(|at| now - at >= patience.saturating_mul(2))
            {
                self.wrong_steps = self.wrong_steps.saturating_sub(1);
            }
        }
        self.retired = Some(now);
        Some((to, ScaleReason::Unneeded(Slot(to), unneeded)))
    }
}

/// Limits growth to four times the ready workers: slow starters must not be outnumbered by a
/// short burst.
fn bounded(measurements: &Measurements, to: u16) -> u16 {
    let twice = measurements.open.saturating_mul(2);
    to.min(twice).min(
        measurements
            .ready
            .saturating_mul(4)
            .saturating_add(measurements.held),
    )
}

/// Returns how many workers a load needs; see the module.
fn staffing(load: f64, requests_per_worker: Option<u32>) -> u16 {
    let requests_per_worker = f64::from(requests_per_worker.unwrap_or(1).max(1));
    let requests = load.max(0.0) * requests_per_worker;
    // A hundredth of a worker is noise.
    let wanted = (requests + requests.sqrt()) / requests_per_worker - 0.01;
    u16::try_from(float::to_u64(wanted.ceil())).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_workers_there_are_the_less_headroom_each_needs() {
        let sync = [0.0, 0.005, 0.2, 1.0, 4.0, 16.0].map(|load| staffing(load, Some(1)));
        assert_eq!(sync, [0, 1, 1, 2, 6, 20]);
        let threads = [0.2, 0.7, 1.0, 4.0].map(|load| staffing(load, Some(16)));
        assert_eq!(
            threads,
            [1, 1, 2, 5],
            "sixteen threads are as good as sixteen workers"
        );
        assert_eq!(
            (staffing(f64::NAN, None), staffing(1e300, None)),
            (0, u16::MAX)
        );
    }

    const BOUNDS: Bounds = Bounds {
        least: 2,
        most: 16,
        down_after: Duration::from_mins(1),
        may_retire: true,
    };

    fn measurements(open: u16, load: f64, standing: u32) -> Measurements {
        Measurements {
            open,
            held: 0,
            ready: open,
            load,
            requests_per_worker: Some(1),
            standing,
            gap: Duration::from_millis(200),
        }
    }

    #[test]
    fn a_long_queue_asks_for_more_at_once_and_for_at_most_twice_as_many() {
        let mut policy = Policy::default();
        let now = Time::from_millis(1000);
        assert_eq!(
            policy.judge(now, &measurements(4, 4.0, 3), &BOUNDS),
            Some((7, ScaleReason::Backlog(3)))
        );
        assert_eq!(
            policy.judge(now, &measurements(4, 4.0, 90), &BOUNDS),
            Some((8, ScaleReason::Backlog(90)))
        );
        assert_eq!(
            policy.judge(now, &measurements(12, 12.0, 90), &BOUNDS),
            Some((16, ScaleReason::Backlog(90)))
        );
        let starting = Measurements {
            ready: 4,
            ..measurements(8, 4.0, 4)
        };
        assert_eq!(
            policy.judge(now, &starting, &BOUNDS),
            None,
            "four are on their way"
        );
    }

    #[test]
    fn a_lull_that_is_shorter_than_the_wait_changes_nothing() {
        let mut policy = Policy::default();
        let mut now = Time::from_millis(1000);
        policy.need(now, 8);
        for second in 0..600 {
            now += Duration::from_secs(1);
            // Every 50 seconds, a few of much work.
            let load = if second % 50 < 5 { 5.0 } else { 0.1 };
            let observation = Measurements {
                gap: Duration::from_secs(1),
                ..measurements(8, load, 0)
            };
            let verdict = policy.judge(now, &observation, &BOUNDS);
            assert_eq!(verdict, None, "after {second} s");
        }
        let mut open = 8;
        for _ in 0..70 {
            now += Duration::from_secs(1);
            let observation = Measurements {
                gap: Duration::from_secs(1),
                ..measurements(open, 0.1, 0)
            };
            if let Some((to, _)) = policy.judge(now, &observation, &BOUNDS) {
                assert_eq!(to, open - 1, "one by one");
                open = to;
            }
        }
        assert_eq!(open, 2);
    }

    #[test]
    fn a_wrong_step_down_without_load_figures_doubles_the_wait() {
        let mut policy = Policy::default();
        let mut now = Time::from_millis(1000);
        policy.need(now, 4);
        let blind = |open, standing| Measurements {
            requests_per_worker: None,
            gap: Duration::from_secs(1),
            ..measurements(open, 0.0, standing)
        };
        let mut falls = Vec::new();
        for second in 0..600 {
            now += Duration::from_secs(1);
            if let Some((to, _)) = policy.judge(now, &blind(4, 0), &BOUNDS) {
                falls.push(second);
                assert_eq!(to, 3);
                let missed = policy.judge(now, &blind(3, 9), &BOUNDS);
                assert!(
                    matches!(missed, Some((_, ScaleReason::Backlog(9)))),
                    "{missed:?}"
                );
                policy.grown(now, &blind(3, 9), 4, BOUNDS.down_after);
            }
        }
        assert_eq!(
            falls.len(),
            3,
            "after one, three and seven minutes: {falls:?}"
        );
    }
}
