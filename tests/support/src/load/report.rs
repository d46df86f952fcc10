//! What a load found.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How a request failed. A reset right after the handshake shows as `ConnectReset` or `ReadReset`
/// by chance: judge their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// No process listens.
    Refused,
    /// Reset while connecting.
    ConnectReset,
    /// Not connected in time.
    ConnectTimeout,
    /// Another error while connecting.
    ConnectOther,
    /// A Unix socket's queue was full.
    BacklogFull,
    /// Reset or closed while the first request was being sent.
    WriteReset,
    /// Reset before the whole response had come.
    ReadReset,
    /// Closed before the whole response had come.
    EofEarly,
    /// A request on a kept-alive connection was met by a close or a reset, without one byte of a
    /// response and without the server having announced it.
    Unanswered,
    /// No whole response in time.
    ResponseTimeout,
    /// A response with another status or body than expected, or no response at all.
    BadResponse,
    /// Reset after the whole response, where an orderly close was due.
    CloseReset,
    /// Not closed in time after the whole response.
    CloseTimeout,
    /// The client's own trouble (descriptors, ports): the run says nothing about the server.
    Local,
}

impl Failure {
    /// Its name in the summary.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::ConnectReset => "conn_reset",
            Self::ConnectTimeout => "conn_timeout",
            Self::ConnectOther => "conn_other",
            Self::BacklogFull => "backlog_full",
            Self::WriteReset => "write_reset",
            Self::ReadReset => "read_reset",
            Self::EofEarly => "eof_early",
            Self::Unanswered => "unanswered",
            Self::ResponseTimeout => "timeout",
            Self::BadResponse => "bad_response",
            Self::CloseReset => "close_reset",
            Self::CloseTimeout => "close_timeout",
            Self::Local => "local",
        }
    }
}

/// Latency in milliseconds, of answered requests only.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Latency {
    /// Half of the requests were faster.
    pub p50: f64,
    /// 90 % were faster.
    pub p90: f64,
    /// 99 % were faster.
    pub p99: f64,
    /// 99.9 % were faster.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

impl Latency {
    pub(crate) fn of(mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        let at = |share: f64| {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss
            )]
            let index = (share * micros.len() as f64) as usize;
            micros
                .get(index.min(micros.len().saturating_sub(1)))
                .map_or(0.0, |us| f64::from(*us) / 1000.0)
        };
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }

    fn to_json(self) -> Value {
        json!({"p50": self.p50, "p90": self.p90, "p99": self.p99, "p999": self.p999, "max": self.max})
    }
}

/// What a load found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Requests begun.
    pub requests: u64,
    /// Requests answered as promised.
    pub answered: u64,
    /// Connections opened.
    pub connections: u64,
    /// Kept-alive connections that the server closed as it had announced.
    pub announced: u64,
    /// Failures by class.
    pub failures: BTreeMap<Failure, u64>,
    /// The first failures in words, with their time.
    pub samples: Vec<String>,
    /// How long it took.
    pub elapsed: Duration,
    /// Latency of the answered requests.
    pub latency: Latency,
    /// Of a mix: answered requests and their latency, by path.
    pub paths: BTreeMap<String, (u64, Latency)>,
    /// Answers by `x-prefork-generation`.
    pub generations: BTreeMap<String, u64>,
    /// Answers by `x-prefork-pid`.
    pub pids: BTreeMap<String, u64>,
}

impl Report {
    /// How many requests failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// How many requests failed in this way.
    pub fn count(&self, failure: Failure) -> u64 {
        self.failures.get(&failure).copied().unwrap_or(0)
    }

    /// Demands that something was asked and that everything was answered.
    ///
    /// # Panics
    /// Otherwise, with the whole report.
    #[track_caller]
    pub fn assert_flawless(&self) {
        assert!(
            self.failed() == 0 && self.answered > 0 && self.answered == self.requests,
            "{self}"
        );
    }

    /// The report as one JSON object.
    pub fn to_json(&self) -> Value {
        let failures: BTreeMap<_, _> = self
            .failures
            .iter()
            .map(|(class, n)| (class.as_str(), *n))
            .collect();
        #[allow(clippy::cast_precision_loss)]
        let per_second = self.answered as f64 / self.elapsed.as_secs_f64().max(1e-9);
        let paths: BTreeMap<_, _> = self
            .paths
            .iter()
            .map(|(path, (answered, latency))| {
                (
                    path,
                    json!({"answered": answered, "latency_ms": latency.to_json()}),
                )
            })
            .collect();
        json!({
            "requests": self.requests,
            "answered": self.answered,
            "failed": self.failed(),
            "failures": failures,
            "connections": self.connections,
            "announced_closes": self.announced,
            "elapsed_s": self.elapsed.as_secs_f64(),
            "per_second": per_second.round(),
            "latency_ms": self.latency.to_json(),
            "paths": paths,
            "generations": self.generations,
            "pids": self.pids,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to_json())?;
        self.samples
            .iter()
            .try_for_each(|sample| write!(f, "\n  {sample}"))
    }
}
