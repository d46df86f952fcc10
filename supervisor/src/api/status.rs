//! The answer to `supervisor status`: a picture of the server, in JSON. `docs/control.md` is its schema for people.

use crate::workers::handle::WorkerHandle;
use prefork_core::{ReloadView, State, WorkerState, WorkerView};
use prefork_protocol::scoreboard::{Reading, Totals};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The whole picture. Fields are only ever added.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    /// The version of this schema.
    pub version: u32,
    /// The program's name.
    pub name: String,
    /// The server's own name, by `--name`.
    pub instance: Option<String>,
    /// The supervisor's pid.
    pub pid: u32,
    /// The version of the program that serves.
    pub program: &'static str,
    /// When this picture was made, in seconds since 1970.
    pub time: f64,
    /// How long the server has been there, in seconds, upgrades in place included.
    pub uptime: f64,
    /// What the server does.
    pub state: State,
    /// Everybody who comes is served, and the server stays.
    pub ready: bool,
    /// The generation that serves.
    pub generation: u32,
    /// How many slots it fills.
    pub workers: u16,
    /// The fewest that it may fill by itself.
    pub min_workers: u16,
    /// The most that it may fill.
    pub max_workers: u16,
    /// Slots that are out of service or have two workers.
    pub unavailable: u16,
    /// How many slots may be so because somebody wants it.
    pub max_unavailable: u16,
    /// Connections that one worker has in hand at most; `None` when nobody knows, as of a foreign program.
    pub capacity: Option<u64>,
    /// The reload in progress.
    pub reload: Option<ReloadView>,
    /// How the last reload ended, if there was one.
    pub last_reload: Option<LastReload>,
    /// How the last upgrade ended, if there was one.
    pub last_upgrade: Option<LastUpgrade>,
    /// Reloads since the server started.
    pub reloads: Reloads,
    /// How many workers were started since the server started.
    pub spawned: u64,
    /// How many workers have died of each cause since the server started.
    pub deaths: BTreeMap<String, u64>,
    /// Where clients reach it.
    pub listeners: Vec<String>,
    /// Where the admin child serves HTTP.
    pub admin: Vec<String>,
    /// Where it answers agent checks.
    pub agent: Vec<String>,
    /// How many pictures like this one were made.
    pub status_requests: u64,
    /// The upper bounds of the latency buckets but the last, which has none, in microseconds.
    pub latency_bounds_us: &'static [u64],
    /// The number of the newest event.
    pub last_event: u64,
    /// Every slot that is open or was.
    pub slots: Vec<SlotStatus>,
}

/// How many reloads there were.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Reloads {
    /// Accepted ones.
    pub ok: u64,
    /// Refused ones.
    pub failed: u64,
}

/// How a reload ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LastReload {
    /// The generation that it offered.
    pub generation: u32,
    /// Whether it was accepted.
    pub ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How an upgrade ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LastUpgrade {
    /// The version that serves since then.
    pub version: String,
    /// Whether it was upgraded to.
    pub ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A slot.
#[derive(Debug, Serialize)]
pub(crate) struct SlotStatus {
    /// Its number.
    pub slot: u16,
    /// It is to be filled.
    pub open: bool,
    /// Somebody asked for it to be empty.
    pub held: bool,
    /// New connections go to it.
    pub in_rotation: bool,
    /// What all its workers together have done, dead ones too.
    pub totals: Totals,
    /// Connections that wait in its own queues; `None` when it has none.
    pub queue: Option<u32>,
    /// Connections that may wait in each of them.
    pub backlog: u32,
    /// Those alive in it.
    pub workers: Vec<WorkerStatus>,
}

/// A worker.
#[derive(Debug, Serialize)]
pub(crate) struct WorkerStatus {
    /// Its id.
    pub worker: u64,
    /// Its process.
    pub pid: i32,
    /// Its generation.
    pub generation: u32,
    /// What it does.
    pub state: WorkerState,
    /// What it says that it does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// How long ago it was started, in seconds.
    pub age: f64,
    /// How long ago it showed that it lives, in seconds; `None` when it never has.
    pub beat_age: Option<f64>,
    /// Bytes of memory that it uses (proportional set size), if that was measured.
    pub memory: Option<u64>,
    /// For how long its oldest request has been in a handler's hands, in seconds; `None` when none is.
    pub oldest_age: Option<f64>,
    /// Its row on the scoreboard; all zero for a foreign program.
    pub scoreboard: Reading,
}

impl WorkerStatus {
    /// A worker as it is at `now`, by the clock of the scoreboard.
    pub(crate) fn new(view: &WorkerView, hand: &WorkerHandle, now: Duration) -> Self {
        let scoreboard = hand.reading().unwrap_or_default();
        let since =
            |ms: u64| (ms > 0).then(|| now.saturating_sub(Duration::from_millis(ms)).as_secs_f64());
        Self {
            worker: view.worker.0,
            pid: hand.pid.as_raw(),
            generation: view.generation.0,
            state: view.state,
            status: hand.status.clone(),
            age: now.saturating_sub(view.born.0).as_secs_f64(),
            beat_age: since(scoreboard.heartbeat),
            memory: hand.memory,
            oldest_age: since(scoreboard.oldest),
            scoreboard,
        }
    }
}
