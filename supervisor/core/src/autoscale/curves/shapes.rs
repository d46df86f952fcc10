//! The curves: how many requests a second there are at each time.

use crate::float;
use std::time::Duration;

/// A curve.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// How long it lasts.
    pub(crate) length: Duration,
    /// How long a request takes on average.
    pub(crate) service: Duration,
    /// When the rush begins, if there is one: percentiles leave out its first seconds.
    pub(crate) rush: Option<f64>,
    shape: Shape,
}

#[derive(Debug, Clone)]
enum Shape {
    Diurnal,
    Flash,
    /// With this period in seconds.
    Sawtooth(f64),
    /// Requests in each second.
    Recorded(Vec<f64>),
}

/// How long a rush is new.
const NEW: f64 = 5.0;

impl Curve {
    /// Returns a day, squeezed into half an hour: little at night, two peaks.
    pub(crate) fn diurnal() -> Self {
        Self {
            name: "diurnal",
            title: "A day in half an hour",
            length: Duration::from_mins(30),
            service: Duration::from_millis(100),
            rush: None,
            shape: Shape::Diurnal,
        }
    }

    /// Returns a flash crowd: twenty times the load at once, which then fades slowly.
    pub(crate) fn flash_crowd() -> Self {
        Self {
            name: "flash-crowd",
            title: "A flash crowd",
            length: Duration::from_mins(15),
            service: Duration::from_millis(100),
            rush: Some(300.0),
            shape: Shape::Flash,
        }
    }

    /// Returns a sawtooth: up for this many seconds, down at once, and again.
    pub(crate) fn sawtooth(period: f64) -> Self {
        Self {
            name: "sawtooth",
            title: "A sawtooth of 90 seconds",
            length: Duration::from_mins(15),
            service: Duration::from_millis(100),
            rush: None,
            shape: Shape::Sawtooth(period),
        }
    }

    /// Returns seven minutes recorded with our own load client and server.
    pub(crate) fn recorded() -> Self {
        let lines = include_str!("recorded.txt")
            .lines()
            .filter(|line| !line.starts_with('#'));
        let counts: Vec<f64> = lines.filter_map(|line| line.trim().parse().ok()).collect();
        Self {
            name: "recorded",
            title: "Recorded",
            length: Duration::from_secs(counts.len() as u64),
            service: Duration::from_millis(50),
            rush: None,
            shape: Shape::Recorded(counts),
        }
    }

    /// Returns the requests per second at this time.
    pub(crate) fn rate(&self, at: f64) -> f64 {
        match &self.shape {
            Shape::Diurnal => {
                let day = at / self.length.as_secs_f64();
                let wave = |peak: f64, width: f64| (-((day - peak) / width).powi(2)).exp();
                3.0 + 60.0 * wave(0.45, 0.1) + 75.0 * wave(0.8, 0.07) + 12.0 * wave(0.6, 0.25)
            }
            Shape::Flash => match at - 300.0 {
                before if before < 0.0 => 5.0,
                rush if rush < 120.0 => 100.0,
                after => 5.0 + 95.0 * (-(after - 120.0) / 60.0).exp(),
            },
            Shape::Sawtooth(period) => 5.0 + 85.0 * (at % period) / period,
            Shape::Recorded(counts) => usize::try_from(float::to_u64(at))
                .ok()
                .and_then(|second| counts.get(second).copied())
                .unwrap_or(0.0),
        }
    }

    /// Returns the highest rate.
    pub(crate) fn most(&self) -> f64 {
        let seconds = 0..self.length.as_secs() * 10;
        seconds
            .map(|tenth| self.rate(float::from_u64(tenth) / 10.0))
            .fold(1.0, f64::max)
    }

    /// Whether a request of that time belongs to the unforeseeable start of a rush.
    pub(crate) fn is_rush(&self, at: f64) -> bool {
        self.rush
            .is_some_and(|rush| (rush..rush + NEW).contains(&at))
    }
}
