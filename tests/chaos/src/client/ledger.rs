//! What the clients found: every request verified, or put into one kind of failure.

use super::Shape;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// No process listens, or the queue is full.
    Refused,
    /// Reset or closed while connecting, or before a byte of the first request could be sent.
    ResetBefore,
    /// Reset when the request was sent, before a byte of the answer had come.
    ResetAfter,
    /// Closed in order, but without an answer.
    Unanswered,
    /// Closed or reset within the answer.
    Truncated,
    /// A whole answer with another length or other bytes than it must have, or to another request.
    WrongBytes,
    /// An answer with another status than 200.
    WrongStatus,
    /// What came is no HTTP, or an answer without a length.
    Malformed,
    /// Unrequested bytes.
    Surplus,
    /// Not connected, or not answered, in time.
    TimedOut,
    /// Answered, but not closed in time although it had to be.
    NotClosed,
    /// Reset after the whole answer, where an orderly close was due.
    CloseReset,
    /// The client's own trouble (descriptors, ports, memory): the run says nothing about the
    /// server.
    Local,
}

impl Failure {
    /// Its name in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::ResetBefore => "reset-before-request",
            Self::ResetAfter => "reset-after-request",
            Self::Unanswered => "closed-unanswered",
            Self::Truncated => "truncated",
            Self::WrongBytes => "wrong-bytes",
            Self::WrongStatus => "wrong-status",
            Self::Malformed => "malformed",
            Self::Surplus => "surplus-bytes",
            Self::TimedOut => "timed-out",
            Self::NotClosed => "not-closed",
            Self::CloseReset => "reset-after-answer",
            Self::Local => "local",
        }
    }

    /// Whether the answer had come and only the connection's end was wrong.
    pub(crate) fn after_answer(self) -> bool {
        matches!(self, Self::NotClosed | Self::CloseReset | Self::Surplus)
    }
}

/// One failure, to be studied.
#[derive(Debug, Clone)]
pub struct Incident {
    /// Since the load's beginning.
    pub at: Duration,
    /// Of which shape the request was.
    pub shape: Shape,
    /// Where it went, by its place in the list of addresses.
    pub address: usize,
    /// How it failed.
    pub failure: Failure,
    /// In more words.
    pub detail: String,
    /// The kill in whose victim's hands it was.
    pub kill: Option<usize>,
    /// How many requests failed with it: several, if they were pipelined.
    pub requests: u64,
}

/// What one shape of load found.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Requests begun.
    pub begun: u64,
    /// Requests answered as they must be.
    pub verified: u64,
    /// Requests that the server had told beforehand to repeat elsewhere: pipelined behind an answer
    /// with `Connection: close`, or not written at all since the connection was found closed.
    pub withdrawn: u64,
    /// Requests on kept connections that met the server's orderly end of an idle connection on
    /// their way: the end was here before an answer could have been, so it had left before the
    /// request was there. HTTP/1.1 knows no way around that; a client that is far away must be
    /// ready to repeat.
    pub crossed: u64,
    /// Requests that were due when the client had too many open already; nothing was sent.
    pub unbegun: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Of these, in the hands of a killed worker.
    pub allowed: u64,
    /// Verified ones that took longer than they should.
    pub late: u64,
    /// Connections opened.
    pub connections: u64,
    /// Kept connections that the server closed while nothing was asked.
    pub closed_idle: u64,
    /// Of these, by a reset.
    pub reset_idle: u64,
    /// How long the verified ones took.
    pub micros: Vec<u32>,
}

impl Tally {
    /// The latency, in milliseconds, under which this share of the requests stayed.
    pub fn latency(&self, share: f64) -> f64 {
        let mut micros = self.micros.clone();
        if micros.is_empty() {
            return 0.0;
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let index = ((share * micros.len() as f64) as usize).min(micros.len() - 1);
        f64::from(*micros.select_nth_unstable(index).1) / 1000.0
    }
}

/// Everything that the clients found.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// By shape.
    pub shapes: BTreeMap<Shape, Tally>,
    /// How many incidents of each kind that no kill explains.
    pub failures: BTreeMap<Failure, u64>,
    /// How many incidents of each kind were in the hands of a killed worker.
    pub allowed: BTreeMap<Failure, u64>,
    /// Incidents in their order; of those without an explanation the first thousand.
    pub incidents: Vec<Incident>,
    /// Answers by the build that gave them.
    pub builds: BTreeMap<String, u64>,
    /// By process that answered, how many answers.
    pub pids: BTreeMap<u32, u64>,
    /// How long the load ran.
    pub elapsed: Duration,
    /// How late the clients themselves were, at worst: much more than some milliseconds mean that
    /// the machine had no time for them, and that the times of the answers are theirs too.
    pub lag: Duration,
}

impl Ledger {
    pub(crate) fn shape(&mut self, shape: Shape) -> &mut Tally {
        self.shapes.entry(shape).or_default()
    }

    /// Sums up over all shapes.
    pub fn sum(&self, of: impl Fn(&Tally) -> u64) -> u64 {
        self.shapes.values().map(of).sum()
    }

    /// Failures that nothing explains.
    pub fn unexplained(&self) -> u64 {
        self.failures.values().sum()
    }

    pub(crate) fn failed(&mut self, incident: Incident) {
        let tally = self.shape(incident.shape);
        tally.failed += incident.requests;
        let kinds = if incident.kill.is_some() {
            tally.allowed += incident.requests;
            &mut self.allowed
        } else {
            &mut self.failures
        };
        *kinds.entry(incident.failure).or_default() += incident.requests.max(1);
        if incident.kill.is_some() || self.incidents.len() < 1000 {
            self.incidents.push(incident);
        }
    }

    /// As one JSON object.
    pub fn to_json(&self) -> Value {
        let shapes: BTreeMap<_, _> = self
            .shapes
            .iter()
            .map(|(s, t)| (s.as_str(), tally_json(t)))
            .collect();
        let names = |kinds: &BTreeMap<Failure, u64>| -> BTreeMap<&str, u64> {
            kinds
                .iter()
                .map(|(failure, count)| (failure.as_str(), *count))
                .collect()
        };
        json!({
            "begun": self.sum(|t| t.begun),
            "verified": self.sum(|t| t.verified),
            "unexplained": self.unexplained(),
            "failures": names(&self.failures),
            "allowed": names(&self.allowed),
            "late": self.sum(|t| t.late),
            "withdrawn": self.sum(|t| t.withdrawn),
            "crossed": self.sum(|t| t.crossed),
            "unbegun": self.sum(|t| t.unbegun),
            "connections": self.sum(|t| t.connections),
            "closed_idle": self.sum(|t| t.closed_idle),
            "builds": self.builds,
            "processes": self.pids.len(),
            "client_lag_ms": self.lag.as_secs_f64() * 1000.0,
            "shapes": shapes,
        })
    }
}

fn tally_json(tally: &Tally) -> Value {
    json!({
        "begun": tally.begun,
        "verified": tally.verified,
        "withdrawn": tally.withdrawn,
        "crossed": tally.crossed,
        "unbegun": tally.unbegun,
        "failed": tally.failed,
        "allowed": tally.allowed,
        "late": tally.late,
        "connections": tally.connections,
        "closed_idle": tally.closed_idle,
        "reset_idle": tally.reset_idle,
        "p50_ms": tally.latency(0.5),
        "p99_ms": tally.latency(0.99),
        "max_ms": tally.latency(1.0),
    })
}
