//! Random configurations, and what the programs that they name do.

use super::dice::Dice;
use crate::fixtures::*;

pub(crate) const MINUTE: Duration = Duration::from_mins(1);

/// How the workers of a world show that they live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Rust workers send heartbeats and count; siblings may accept from each other's queues.
    Rust { steals: bool },
    /// A program that reports nothing, or only its readiness: only its queue shows life.
    Mute { greets: bool },
    /// A program that feeds the watchdog.
    Feeds,
}

impl Kind {
    pub(crate) fn of(seed: u64) -> Self {
        match seed % 5 {
            0 | 1 => Self::Rust { steals: false },
            2 => Self::Rust { steals: true },
            3 => Self::Mute {
                greets: seed % 10 == 3,
            },
            _ => Self::Feeds,
        }
    }

    pub(crate) fn is_mute(self) -> bool {
        matches!(self, Self::Mute { .. })
    }

    pub(crate) fn is_rust(self) -> bool {
        matches!(self, Self::Rust { .. })
    }
}

/// What a generation's program does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fate {
    Good,
    RefusedConfig,
    ExitsAtStart,
    NeverReady,
    DiesAfter(Duration),
}

pub(crate) fn random_plan(dice: &mut Dice, kind: Kind) -> Plan {
    let workers = 1 + dice.below::<u16>(8);
    let hang_timeout = dice
        .percent(80)
        .then(|| Duration::from_secs(1 + dice.below::<u64>(30)));
    let beats = sampling_period(hang_timeout.unwrap_or(MINUTE));
    let mut plan = Plan {
        workers,
        max_workers: workers + dice.below::<u16>(6),
        surge: if dice.percent(50) {
            u16::MAX
        } else {
            1 + dice.below::<u16>(3)
        },
        start_timeout: Duration::from_secs(1 + dice.below::<u64>(10)),
        heartbeat: if kind.is_rust() {
            beats
        } else {
            hang_timeout.unwrap_or_default()
        },
        hang_timeout,
        request_timeout: dice
            .percent(30)
            .then(|| Duration::from_millis(1 + dice.below::<u64>(20_000))),
        graceful_timeout: Duration::from_millis(dice.below(20_000)),
        min_ready: Duration::from_millis(dice.below(3000)),
        steals: kind == Kind::Rust { steals: true },
        readiness: ReadinessSignal::default(),
        max_unavailable: Share::Count(1),
        autoscale: None,
        recycle: Limits::default(),
        pre_stop_delay: Duration::ZERO,
    };
    // Derived from earlier rolls, so that a seed means the same with and without ranges.
    let rolled = plan.min_ready.as_millis() + plan.graceful_timeout.as_millis();
    let of = |bound: u16| u16::try_from(rolled % u128::from(bound)).unwrap_or(0);
    if of(5) == 1 {
        plan.recycle = Limits {
            requests: (of(2) == 0).then(|| 5 + u64::from(of(61))),
            age: (of(7) < 4).then(|| Duration::from_secs(60 + u64::from(of(211)))),
            memory: (of(11) < 4).then_some(1 << 15),
        };
        plan.max_unavailable = Share::Count(1 + of(3));
    }
    if of(13) < 3 {
        plan.pre_stop_delay = Duration::from_millis(1 + 100 * u64::from(of(89)));
    }
    if of(3) == 0 {
        plan.max_workers = plan.workers + of(7);
        plan.autoscale = Some(Autoscale {
            down_after: Duration::from_millis(500 + 100 * u64::from(of(97))),
            memory: (of(2) == 0).then(|| MEMORY * (1 + u64::from(of(12)))),
            requests_per_worker: kind.is_rust().then(|| 1 + u32::from(of(2))),
        });
    }
    plan
}

/// Bytes that each worker uses.
pub(crate) const MEMORY: u64 = 1 << 20;

pub(crate) fn random_fate(dice: &mut Dice) -> Fate {
    match dice.below::<u64>(100) {
        0..60 => Fate::Good,
        60..70 => Fate::RefusedConfig,
        70..80 => Fate::ExitsAtStart,
        80..88 => Fate::NeverReady,
        _ => Fate::DiesAfter(dice.millis(5000)),
    }
}
