//! The answer to `supervisor status`: a snapshot of the server. `docs/control.md` is its schema for
//! people.
//!
//! The words and the shape are this module's, not the core's nor the scoreboard's: they are an
//! interface to others. What is missing gets its default, and an unknown word is
//! [`State::Unknown`], so that a client can read what a newer or an older server sends.

use prefork_core::{ReloadView, State as CoreState, WorkerState as CoreWorkerState};
use prefork_protocol::scoreboard::{Reading, Totals as SlotTotals};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// A snapshot of the server. Fields are only ever added.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    /// The version of this schema.
    pub(crate) version: u32,
    /// The program's name.
    pub(crate) name: String,
    /// The server's own name, by `--name`.
    pub(crate) instance: Option<String>,
    /// The supervisor's pid.
    pub(crate) pid: u32,
    /// The version of the program that serves.
    pub(crate) program: Cow<'static, str>,
    /// When this snapshot was made, in seconds since 1970.
    pub(crate) time: f64,
    /// Seconds since the server started, upgrades in place included.
    pub(crate) uptime: f64,
    /// The server's phase.
    pub(crate) state: State,
    /// Every new connection is served, and the server stays.
    pub(crate) ready: bool,
    /// The generation that serves.
    pub(crate) generation: u32,
    /// How many slots it fills.
    pub(crate) workers: u16,
    /// The fewest that autoscaling may fill.
    pub(crate) min_workers: u16,
    /// The most that it may fill.
    pub(crate) max_workers: u16,
    /// Whether the number of slots follows the load.
    pub(crate) autoscaling: bool,
    /// Slots that are out of service or have two workers.
    pub(crate) unavailable: u16,
    /// How many slots may be so on purpose.
    pub(crate) max_unavailable: u16,
    /// Concurrent connections per worker at most; `None` when that is not known, as of an external
    /// program.
    pub(crate) capacity: Option<u64>,
    /// The reload in progress.
    pub(crate) reload: Option<Progress>,
    /// How the last reload ended, if there was one.
    pub(crate) last_reload: Option<LastReload>,
    /// How the last upgrade ended, if there was one.
    pub(crate) last_upgrade: Option<LastUpgrade>,
    /// Reloads since the server started.
    pub(crate) reloads: Reloads,
    /// Workers started since the server started.
    pub(crate) spawned: u64,
    /// Worker exits since the server started, by cause.
    pub(crate) deaths: BTreeMap<String, u64>,
    /// The addresses for clients.
    pub(crate) listeners: Vec<String>,
    /// The addresses at which the admin child serves HTTP.
    pub(crate) admin: Vec<String>,
    /// The addresses at which it answers agent checks.
    pub(crate) agent: Vec<String>,
    /// How many snapshots were made.
    pub(crate) status_requests: u64,
    /// The upper bounds of the latency buckets but the last, which has none, in microseconds.
    pub(crate) latency_bounds_us: Cow<'static, [u64]>,
    /// The number of the newest event.
    pub(crate) last_event: u64,
    /// Every slot that is open or was.
    pub(crate) slots: Vec<SlotStatus>,
}

/// How many reloads there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Reloads {
    /// Accepted ones.
    pub(crate) ok: u64,
    /// Rejected ones.
    pub(crate) failed: u64,
}

/// How far a reload is, in slots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Progress {
    /// The candidate generation.
    pub(crate) generation: u32,
    /// How many slots it fills.
    pub(crate) slots: u16,
    /// Those that have a worker of it.
    pub(crate) spawned: u16,
    /// Those in which it is ready.
    pub(crate) ready: u16,
    /// Those in which it has been ready for as long as `--min-ready` says.
    pub(crate) passed: u16,
}

/// How a reload ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LastReload {
    /// The candidate generation.
    pub(crate) generation: u32,
    /// Whether it was accepted.
    pub(crate) ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// How an upgrade ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LastUpgrade {
    /// The version that serves since then.
    pub(crate) version: String,
    /// Whether it was upgraded to.
    pub(crate) ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// A slot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SlotStatus {
    /// Its number.
    pub(crate) slot: u16,
    /// It is to be filled.
    pub(crate) open: bool,
    /// An operator has emptied it.
    pub(crate) held: bool,
    /// New connections are steered to it.
    pub(crate) in_rotation: bool,
    /// What all its workers together have done, dead ones included.
    pub(crate) totals: Totals,
    /// Connections waiting in its own queues; `None` when it has none.
    pub(crate) queue: Option<u32>,
    /// Connections that may wait in each of them.
    pub(crate) backlog: u32,
    /// Those alive in it.
    pub(crate) workers: Vec<WorkerStatus>,
}

/// What a slot's workers have done. What none of them counts is `None`, not 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Totals {
    /// Requests answered.
    pub(crate) requests: Option<u64>,
    /// Connections accepted.
    pub(crate) connections: Option<u64>,
    /// Requests answered with a status of 500 or more.
    pub(crate) errors: Option<u64>,
    /// Bytes received from clients.
    pub(crate) bytes_in: Option<u64>,
    /// Bytes sent to clients.
    pub(crate) bytes_out: Option<u64>,
    /// The summed duration of all answered requests, in microseconds.
    pub(crate) busy_us: Option<u64>,
    /// Requests by duration: see [`Status::latency_bounds_us`]. Empty when that is not counted.
    pub(crate) latency: Vec<u64>,
}

/// A worker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WorkerStatus {
    /// Its id.
    pub(crate) worker: u64,
    /// Its process.
    pub(crate) pid: i32,
    /// Its generation.
    pub(crate) generation: u32,
    /// Its stage of life.
    pub(crate) state: WorkerState,
    /// Its own words about its status.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) status: String,
    /// How it fails to accept from its sockets, if that was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
    /// Seconds since it was started.
    pub(crate) age: f64,
    /// Seconds since its last heartbeat; `None` before the first one.
    pub(crate) beat_age: Option<f64>,
    /// Its proportional set size in bytes, if that was measured.
    pub(crate) memory: Option<u64>,
    /// How long its oldest active request has been with the handler, in seconds; `None` without
    /// any.
    pub(crate) oldest_age: Option<f64>,
    /// Its scoreboard rows; of an external program, what it reports.
    pub(crate) scoreboard: Scoreboard,
}

/// A worker's own numbers. Untrusted: a worker may write anything. What it does not count is
/// `None`, not 0: an external program counts what it reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Scoreboard {
    /// When a serving thread last beat, in milliseconds of the monotonic clock.
    pub(crate) heartbeat: u64,
    /// Requests answered since the worker started.
    pub(crate) requests: Option<u64>,
    /// Connections accepted since the worker started.
    pub(crate) connections: Option<u64>,
    /// Open connections.
    pub(crate) open: Option<u64>,
    /// Active requests.
    pub(crate) busy: Option<u64>,
    /// Since when at least one request has been active.
    pub(crate) busy_since: u64,
    /// When the handler that has been running longest began.
    pub(crate) oldest: u64,
    /// Requests answered with a status of 500 or more.
    pub(crate) errors: Option<u64>,
    /// Bytes received from clients.
    pub(crate) bytes_in: Option<u64>,
    /// Bytes sent to clients.
    pub(crate) bytes_out: Option<u64>,
    /// The summed duration of all answered requests, in microseconds.
    pub(crate) busy_us: Option<u64>,
    /// Requests by duration: see [`Status::latency_bounds_us`]. Empty when that is not counted.
    pub(crate) latency: Vec<u64>,
}

/// The server's phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// Not every slot has been filled yet.
    Starting,
    /// Every slot is filled.
    Serving,
    /// Some slot is empty because its workers keep failing.
    Degraded,
    /// All workers were asked to drain; the sockets stay.
    Draining,
    /// A stop was requested, and `--pre-stop-delay` runs.
    PreStop,
    /// The workers drain, then the server exits.
    Stopping,
    /// A phase that this client does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A worker's stage of life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WorkerState {
    /// Not ready yet.
    Starting,
    /// It accepts connections.
    Ready,
    /// It is ready, and seems not to serve.
    Stalled,
    /// It was asked to leave.
    Draining,
    /// It hangs and was aborted.
    Aborting,
    /// It was killed.
    Killed,
    /// A stage that this client does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl State {
    /// The phases of this version.
    pub(crate) const ALL: [Self; 6] = [
        Self::Starting,
        Self::Serving,
        Self::Degraded,
        Self::Draining,
        Self::PreStop,
        Self::Stopping,
    ];

    /// Returns its word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::PreStop => "pre-stop",
            Self::Stopping => "stopping",
            Self::Unknown => "unknown",
        }
    }
}

impl WorkerState {
    /// The stages of this version.
    pub(crate) const ALL: [Self; 6] = [
        Self::Starting,
        Self::Ready,
        Self::Stalled,
        Self::Draining,
        Self::Aborting,
        Self::Killed,
    ];

    /// Returns its word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stalled => "stalled",
            Self::Draining => "draining",
            Self::Aborting => "aborting",
            Self::Killed => "killed",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl From<CoreState> for State {
    fn from(state: CoreState) -> Self {
        match state {
            CoreState::Starting => Self::Starting,
            CoreState::Serving => Self::Serving,
            CoreState::Degraded => Self::Degraded,
            CoreState::Draining => Self::Draining,
            CoreState::Stopping => Self::Stopping,
            CoreState::PreStop => Self::PreStop,
        }
    }
}

impl From<CoreWorkerState> for WorkerState {
    fn from(state: CoreWorkerState) -> Self {
        match state {
            CoreWorkerState::Starting => Self::Starting,
            CoreWorkerState::Ready => Self::Ready,
            CoreWorkerState::Stalled => Self::Stalled,
            CoreWorkerState::Draining => Self::Draining,
            CoreWorkerState::Aborting => Self::Aborting,
            CoreWorkerState::Killed => Self::Killed,
        }
    }
}

impl From<ReloadView> for Progress {
    fn from(view: ReloadView) -> Self {
        Self {
            generation: view.generation.0,
            slots: view.slots,
            spawned: view.spawned,
            ready: view.ready,
            passed: view.passed,
        }
    }
}

impl Totals {
    /// Returns what a slot's workers have counted: everything, or perhaps their requests only.
    pub(crate) fn of(totals: &SlotTotals, everything: bool, requests: bool) -> Self {
        let counted = |count| everything.then_some(count);
        Self {
            requests: (everything || requests).then_some(totals.requests),
            connections: counted(totals.connections),
            errors: counted(totals.errors),
            bytes_in: counted(totals.bytes_in),
            bytes_out: counted(totals.bytes_out),
            busy_us: counted(totals.busy_us),
            latency: if everything {
                totals.latency.to_vec()
            } else {
                Vec::new()
            },
        }
    }
}

impl From<Reading> for Scoreboard {
    fn from(reading: Reading) -> Self {
        Self {
            heartbeat: reading.heartbeat,
            requests: Some(reading.requests),
            connections: Some(reading.connections),
            open: Some(reading.open),
            busy: Some(reading.busy),
            busy_since: reading.busy_since,
            oldest: reading.oldest,
            errors: Some(reading.errors),
            bytes_in: Some(reading.bytes_in),
            bytes_out: Some(reading.bytes_out),
            busy_us: Some(reading.busy_us),
            latency: reading.latency.to_vec(),
        }
    }
}

impl Status {
    /// Returns the server's own name, or the program's.
    pub(crate) fn title(&self) -> &str {
        self.instance.as_deref().unwrap_or(&self.name)
    }

    /// Returns how many connections wait in the slots' queues.
    pub(crate) fn queue(&self) -> u64 {
        let queues = self.slots.iter().filter_map(|slot| slot.queue);
        queues.map(u64::from).sum()
    }
}

/// Returns a count as a float, which rounds those above 2^53.
pub(crate) fn approximate(count: u64) -> f64 {
    let half = |bits: u64| f64::from(u32::try_from(bits).unwrap_or(u32::MAX));
    half(count >> 32) * 4_294_967_296.0 + half(count & 0xffff_ffff)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A status as a server writes it, with every field that there is.
    pub(crate) const DOCUMENT: &str = concat!(
        r#"{"version":1,"name":"supervisor","instance":"shop","pid":4711,"program":"1.0","#,
        r#""time":1000.5,"uptime":900.5,"state":"serving","ready":true,"generation":2,"#,
        r#""workers":2,"min_workers":1,"max_workers":8,"autoscaling":true,"unavailable":0,"max_unavailable":1,"#,
        r#""capacity":64,"reload":{"generation":3,"slots":2,"spawned":2,"ready":1,"passed":0},"#,
        r#""last_reload":{"generation":2,"ok":false,"reason":"no"},"#,
        r#""last_upgrade":{"version":"1.0","ok":true},"reloads":{"ok":1,"failed":2},"#,
        r#""spawned":9,"deaths":{"exit":0,"hang":4},"listeners":["127.0.0.1:8000"],"#,
        r#""admin":["127.0.0.1:9000"],"agent":[],"status_requests":12,"#,
        r#""latency_bounds_us":[500,1000000],"last_event":70,"slots":["#,
        r#"{"slot":0,"open":true,"held":false,"in_rotation":true,"totals":"#,
        r#"{"requests":5,"connections":3,"errors":1,"bytes_in":10,"bytes_out":20,"#,
        r#""busy_us":1500000,"latency":[2,1,2]},"queue":3,"backlog":64,"workers":["#,
        r#"{"worker":7,"pid":4712,"generation":2,"state":"ready","status":"fine","age":65.5,"#,
        r#""beat_age":0.5,"memory":4096,"oldest_age":0.5,"scoreboard":{"heartbeat":1,"#,
        r#""requests":5,"connections":3,"open":2,"busy":1,"busy_since":2,"oldest":3,"errors":1,"#,
        r#""bytes_in":10,"bytes_out":20,"busy_us":1500000,"latency":[2,1,2]}}]},"#,
        r#"{"slot":1,"open":true,"held":true,"in_rotation":false,"totals":"#,
        r#"{"requests":5,"connections":3,"errors":1,"bytes_in":10,"bytes_out":20,"#,
        r#""busy_us":1500000,"latency":[2,1,2]},"queue":null,"backlog":64,"workers":[]}]}"#,
    );

    /// What [`DOCUMENT`] says.
    pub(crate) fn document() -> Status {
        serde_json::from_str(DOCUMENT).expect("a status")
    }

    #[test]
    fn a_status_document_is_written_as_it_was_read() {
        let status = document();
        assert_eq!(serde_json::to_string(&status).expect("JSON"), DOCUMENT);
        let worker = &status.slots[0].workers[0];
        assert_eq!(
            (status.state, worker.state, worker.scoreboard.busy),
            (State::Serving, WorkerState::Ready, Some(1))
        );
    }

    #[test]
    fn what_is_missing_gets_its_default_and_what_is_unknown_is_ignored() {
        let read = |text| serde_json::from_str::<Status>(text).expect("a status");
        assert_eq!(read("{}"), Status::default());
        let newer = read(r#"{"state":"asleep","weather":{"rain":1},"slots":[{"slot":1}]}"#);
        assert_eq!(newer.state, State::Unknown);
        assert_eq!(newer.slots[0].slot, 1);
    }

    #[test]
    fn words_are_those_of_the_document() {
        for state in State::ALL {
            let word = serde_json::to_string(&state).expect("JSON");
            assert_eq!(word.trim_matches('"'), state.word());
        }
        for state in WorkerState::ALL {
            let word = serde_json::to_string(&state).expect("JSON");
            assert_eq!(word.trim_matches('"'), state.word());
        }
    }

    /// Every key that the page reads of the status: `now.KEY`, `slot.KEY`, `w.KEY` and so on.
    #[test]
    fn the_dashboard_reads_only_keys_that_a_status_has() {
        let page = include_str!("../admin/dashboard.html");
        let script = page.split("<script>").nth(1).expect("a script");
        let known: serde_json::Value = serde_json::from_str(DOCUMENT).expect("JSON");
        let slot = &known["slots"][0];
        let worker = &slot["workers"][0];
        let objects = [
            (&["now", "status"][..], &known),
            (&["slot"], slot),
            (&["w"], worker),
            (&["scoreboard"], &worker["scoreboard"]),
            (&["totals"], &slot["totals"]),
            (&["reload"], &known["reload"]),
        ];
        let words: Vec<&str> = script
            .split(|letter: char| !letter.is_ascii_alphanumeric() && !"_.".contains(letter))
            .collect();
        let mut seen = 0;
        for (names, object) in objects {
            for path in &words {
                let mut parts = path.split('.').skip_while(|part| !names.contains(part));
                let (Some(name), Some(key)) = (parts.next(), parts.next()) else {
                    continue;
                };
                assert!(object.get(key).is_some(), "{path}: {name} has no {key}");
                seen += 1;
            }
        }
        assert!(seen > 40, "only {seen} uses found: has the page changed?");
    }

    #[test]
    fn counts_become_floats() {
        let counts = [0, 7, u64::from(u32::MAX), 1 << 40, u64::MAX].map(approximate);
        let floats = [
            0.0,
            7.0,
            4_294_967_295.0,
            1_099_511_627_776.0,
            18_446_744_073_709_551_616.0,
        ];
        assert_eq!(counts.map(f64::to_bits), floats.map(f64::to_bits));
    }
}
