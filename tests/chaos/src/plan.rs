//! What is done to the server, and when: all of it follows from the seed.

use crate::random::Random;
use crate::subject::{Asked, Broken};
use std::fmt;
use std::time::Duration;

/// One thing that is done to the server, or one thing that happens to it. Where a worker is
/// concerned, the number tells which one of those that are there by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A reload that must work.
    Reload(Asked),
    /// A reload that must fail and change nothing.
    Break(Broken),
    /// To this many workers, and back again.
    Scale {
        /// How few.
        to: usize,
        /// Whether the workers that are too many have left before the way back begins.
        settle: bool,
    },
    /// SIGKILL to this many workers at once.
    Kill {
        /// The first of them.
        worker: u64,
        /// How many.
        count: u64,
    },
    /// SIGABRT to a worker.
    Abort {
        /// Which.
        worker: u64,
    },
    /// SIGSTOP to workers, and SIGCONT later.
    Stall {
        /// The first of them.
        worker: u64,
        /// How many.
        count: u64,
        /// How long.
        time: Duration,
    },
    /// SIGSTOP to the supervisor, and SIGCONT later.
    StallSupervisor {
        /// How long.
        time: Duration,
    },
    /// SIGTERM to a worker, which drains and is replaced.
    Recycle {
        /// Which.
        worker: u64,
    },
    /// The supervisor's own program is replaced.
    Upgrade,
    /// Many connections at once.
    Burst {
        /// How many.
        count: u64,
        /// To which address.
        address: u64,
    },
}

impl Operation {
    /// Its kind in the report.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Reload(_) => "reload",
            Self::Break(_) => "broken reload",
            Self::Scale { .. } => "scale",
            Self::Kill { .. } => "kill -9",
            Self::Abort { .. } => "abort",
            Self::Stall { .. } => "stop workers",
            Self::StallSupervisor { .. } => "stop supervisor",
            Self::Recycle { .. } => "recycle",
            Self::Upgrade => "upgrade",
            Self::Burst { .. } => "burst",
        }
    }

    /// Whether the outcome of something else that is under way at the same time may be another one
    /// because of it.
    fn disturbs(&self) -> bool {
        !matches!(self, Self::Burst { .. })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Self::Reload(Asked::Signal) => write!(f, "{kind} by HUP"),
            Self::Reload(Asked::Signals(count)) => write!(f, "{kind} by {count} HUPs"),
            Self::Reload(Asked::Control) => write!(f, "{kind} by name"),
            Self::Break(how) => write!(f, "{kind}: {}", how.as_str()),
            Self::Scale { to, settle: true } => write!(f, "{kind} to {to}, wait, and back"),
            Self::Scale { to, settle: false } => write!(f, "{kind} to {to} and back"),
            Self::Kill { count, .. } => write!(f, "{kind} {count}"),
            Self::Stall { count, time, .. } => write!(f, "{kind} {count} for {time:?}"),
            Self::StallSupervisor { time } => write!(f, "{kind} for {time:?}"),
            Self::Burst { count, .. } => write!(f, "{kind} of {count}"),
            Self::Abort { .. } | Self::Recycle { .. } | Self::Upgrade => f.write_str(kind),
        }
    }
}

/// Operations that overlap, each begun so long after the step's beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub operations: Vec<(Duration, Operation)>,
    /// How long nothing is done afterwards.
    pub pause: Duration,
}

impl Step {
    /// Whether nothing else is done that could change the outcome of any of it.
    pub fn is_alone(&self) -> bool {
        self.operations
            .iter()
            .filter(|(_, operation)| operation.disturbs())
            .count()
            < 2
    }
}

/// An endless plan.
#[derive(Debug)]
pub struct Plan {
    random: Random,
    workers: usize,
    deck: Vec<Operation>,
}

impl Plan {
    /// The plan of a seed for a server with this many workers.
    pub fn new(seed: u64, workers: usize) -> Self {
        Self {
            random: Random::new(seed, 2),
            workers,
            deck: Vec::new(),
        }
    }

    /// What to do next.
    pub fn step(&mut self) -> Step {
        let random = &mut self.random;
        let together = [1, 1, 1, 2, 2, 3][usize::try_from(random.between(0, 5)).unwrap_or(0)];
        let mut operations: Vec<(Duration, Operation)> = Vec::new();
        while operations.len() < together {
            let offset = Duration::from_millis(match operations.len() {
                0 => 0,
                _ => self.random.between(0, 1500),
            });
            operations.push((offset, self.draw()));
        }
        let pause = Duration::from_millis(self.random.between(0, 600));
        Step { operations, pause }
    }

    /// Every kind comes once before any comes again, so that a short run sees all of them.
    fn draw(&mut self) -> Operation {
        if let Some(operation) = self.deck.pop() {
            return operation;
        }
        let workers = self.workers;
        let random = &mut self.random;
        let few = (workers / 4).max(1);
        let worker = |random: &mut Random| random.between(0, 1_000_000);
        let stall =
            |random: &mut Random, low, high| Duration::from_millis(random.between(low, high));
        let broken = random.between(0, Broken::ALL.len() as u64 - 1);
        let broken = |more: u64| {
            let index = usize::try_from(broken + more).unwrap_or(0) % Broken::ALL.len();
            Operation::Break(Broken::ALL[index])
        };
        let mut deck = vec![
            Operation::Reload(Asked::Signal),
            Operation::Reload(Asked::Control),
            Operation::Reload(Asked::Signals(
                2 + u32::try_from(random.between(0, 6)).unwrap_or(0),
            )),
            broken(0),
            broken(3),
            Operation::Scale {
                to: few,
                settle: true,
            },
            Operation::Scale {
                to: few,
                settle: false,
            },
            Operation::Kill {
                worker: worker(random),
                count: 1,
            },
            Operation::Kill {
                worker: worker(random),
                count: random.between(1, 3),
            },
            Operation::Abort {
                worker: worker(random),
            },
            Operation::Stall {
                worker: worker(random),
                count: 1,
                time: stall(random, 200, 5000),
            },
            Operation::Stall {
                worker: worker(random),
                count: random.between(1, 3),
                time: stall(random, 200, 1500),
            },
            Operation::StallSupervisor {
                time: stall(random, 100, 2000),
            },
            Operation::Recycle {
                worker: worker(random),
            },
            Operation::Upgrade,
            Operation::Upgrade,
            Operation::Burst {
                count: random.between(100, 400),
                address: worker(random),
            },
            Operation::Burst {
                count: random.between(100, 400),
                address: worker(random),
            },
        ];
        random.shuffle(&mut deck);
        self.deck = deck;
        self.deck.pop().unwrap_or(Operation::Upgrade)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_same_seed_makes_the_same_plan_and_another_one_another() {
        let steps = |seed| {
            let mut plan = Plan::new(seed, 8);
            (0..100).map(|_| plan.step()).collect::<Vec<_>>()
        };
        assert_eq!(steps(1), steps(1));
        assert_ne!(steps(1), steps(2));
    }

    #[test]
    fn a_short_plan_does_everything() {
        for seed in 0..100 {
            let mut plan = Plan::new(seed, 8);
            let mut kinds = BTreeSet::new();
            for _ in 0..19 {
                kinds.extend(
                    plan.step()
                        .operations
                        .iter()
                        .map(|(_, operation)| operation.kind()),
                );
            }
            assert_eq!(kinds.len(), 10, "{kinds:?}");
        }
    }
}
