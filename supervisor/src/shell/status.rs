//! The answer to `supervisor status`: a picture of the server, in JSON.

use super::hand::Hand;
use crate::core::{ReloadView, State, View, WorkerState};
use prefork::WorkerId;
use prefork::scoreboard::{Reading, Scoreboard, Totals};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The whole picture. Fields are only ever added.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The version of this schema.
    pub version: u32,
    /// The supervisor's pid.
    pub pid: u32,
    /// What the server does.
    pub state: State,
    /// The generation that serves.
    pub generation: u32,
    /// How many slots it fills.
    pub workers: u16,
    /// The reload in progress.
    pub reload: Option<ReloadView>,
    /// How the last reload ended, if there was one.
    pub last_reload: Option<LastReload>,
    /// The version of the program that serves.
    pub program: &'static str,
    /// How the last upgrade ended, if there was one.
    pub last_upgrade: Option<LastUpgrade>,
    /// How many workers have died of each cause since the server started.
    pub deaths: BTreeMap<String, u64>,
    /// Where clients reach it.
    pub listeners: Vec<String>,
    /// Every slot that is open or was.
    pub slots: Vec<SlotStatus>,
}

/// How a reload ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastReload {
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
pub struct LastUpgrade {
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
pub struct SlotStatus {
    /// Its number.
    pub slot: u16,
    /// What all its workers together have done, dead ones too.
    pub totals: Totals,
    /// Connections that wait in its own queues; `None` when it has none.
    pub queue: Option<u32>,
    /// Those alive in it.
    pub workers: Vec<WorkerStatus>,
}

/// A worker.
#[derive(Debug, Serialize)]
pub struct WorkerStatus {
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
    /// Its row on the scoreboard; all zero for a foreign program.
    pub scoreboard: Reading,
}

/// Puts the picture together.
pub(super) fn status(
    view: View,
    hands: &BTreeMap<WorkerId, Hand>,
    scoreboard: &Scoreboard,
    dead: &[Totals],
    queue: impl Fn(u16) -> Option<u32>,
    listeners: Vec<String>,
    last_reload: Option<LastReload>,
) -> Status {
    let count = view.workers.iter().map(|worker| worker.slot.0 + 1).max().unwrap_or(0).max(view.open);
    let slots = (0..count).map(|slot| {
        let mut totals = dead.get(usize::from(slot)).copied().unwrap_or_default();
        let here = view.workers.iter().filter(|worker| worker.slot.0 == slot);
        let workers = here.filter_map(|worker| {
            let hand = hands.get(&worker.worker)?;
            let reading = scoreboard.row(worker.slot, worker.seat).read();
            totals.fold(&reading);
            Some(WorkerStatus {
                worker: worker.worker.0,
                pid: hand.pid.as_raw(),
                generation: worker.generation.0,
                state: worker.state,
                status: hand.status.clone(),
                scoreboard: reading,
            })
        });
        let workers = workers.collect();
        SlotStatus { slot, totals, queue: queue(slot), workers }
    });
    let slots = slots.collect();
    Status {
        version: super::control::VERSION,
        pid: std::process::id(),
        state: view.state,
        generation: view.generation.0,
        workers: view.open,
        reload: view.reload,
        last_reload,
        program: crate::VERSION,
        last_upgrade: None,
        deaths: BTreeMap::new(),
        listeners,
        slots,
    }
}
