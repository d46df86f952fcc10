//! A generation's configuration, as far as it concerns the core.

use crate::autoscale::load::Autoscale;
use crate::limits::Limits;
use crate::record;
use std::fmt;
use std::time::Duration;

/// The part of a generation's configuration that concerns the core. The rest is the shell's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Slots to fill, at least 1; the minimum if their number follows the load.
    pub workers: u16,
    /// The most slots that scaling may reach.
    pub max_workers: u16,
    /// Slots that a reload replaces at a time, at least 1.
    pub surge: u16,
    /// How long a worker may take to become ready.
    pub start_timeout: Duration,
    /// The heartbeat interval of a ready worker that sends heartbeats.
    pub heartbeat: Duration,
    /// How long a ready worker may be silent; without it, stalls are not detected.
    pub hang_timeout: Option<Duration>,
    /// How long a handler may run.
    pub request_timeout: Option<Duration>,
    /// How long a draining worker may take.
    pub graceful_timeout: Duration,
    /// How long a reload's new workers must be ready before the old ones drain.
    pub min_ready: Duration,
    /// Whether workers accept connections from the queues of retired slots.
    pub steals: bool,
    /// What signals that a worker is ready.
    pub readiness: ReadinessSignal,
    /// How many slots may be out of service, or have two workers, because of an operation.
    pub max_unavailable: Share,
    /// How the number of slots follows the load, between `workers` and `max_workers`.
    pub autoscale: Option<Autoscale>,
    /// When a worker is recycled.
    pub recycle: Limits,
    /// How long a graceful stop waits before workers drain.
    pub pre_stop_delay: Duration,
}

/// A number of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Share {
    /// An absolute number.
    Count(u16),
    /// A percentage of all slots.
    Percent(u8),
}

impl Share {
    /// Returns how many of `slots` that is: at least one, or no operation could ever run.
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

/// What signals that a worker is ready. Completes the message about one that did not become ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum ReadinessSignal {
    /// A message of the worker, or a fixed delay.
    #[default]
    Message,
    /// `READY=1` and nothing else.
    Notify,
    /// A readiness probe finds it waiting for connections.
    Probe,
}

impl fmt::Display for ReadinessSignal {
    /// Writes what was missing and the remedy, to follow "did not get ready within 5s".
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

record!(Plan {
    workers,
    max_workers,
    surge,
    start_timeout,
    heartbeat,
    hang_timeout,
    request_timeout,
    graceful_timeout,
    min_ready,
    steals
} added { readiness: ReadinessSignal::default(), max_unavailable: Share::Count(1), autoscale: None, recycle: Limits::default(), pre_stop_delay: Duration::ZERO });

/// Returns how often heartbeats are sent and observed, so that a hang is noticed soon after the
/// timeout.
pub fn sampling_period(hang_timeout: Duration) -> Duration {
    (hang_timeout / 4).clamp(Duration::from_millis(100), Duration::from_secs(1))
}
