//! Frames without a terminal: as plain text, or as JSON.

use super::client::{Client, News};
use super::screen::plain;
use super::snapshot::{Rates, Snapshot};
use super::table::{Column, Order};
use super::view::{Scene, page};
use super::{Options, TopError};
use crate::api::status::{SlotStatus, State, Status, WorkerState, WorkerStatus};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Instant;

/// The width of a page, unless `COLUMNS` says otherwise.
const COLUMNS: usize = 132;
/// The version of the JSON frames.
const VERSION: u32 = 1;

/// A frame as JSON. `docs/top.md` is its schema for people.
#[derive(Debug, Serialize)]
struct Frame<'a> {
    version: u32,
    time: f64,
    interval: f64,
    name: &'a str,
    state: State,
    ready: bool,
    generation: u32,
    queue: u64,
    rates: RatesFrame,
    slots: Vec<SlotFrame>,
}

#[derive(Debug, Serialize)]
struct RatesFrame {
    requests: Option<f64>,
    errors: Option<f64>,
    connections: Option<f64>,
    bytes_in: Option<f64>,
    bytes_out: Option<f64>,
    p50: Option<f64>,
    p99: Option<f64>,
}

#[derive(Debug, Serialize)]
struct SlotFrame {
    slot: u16,
    in_rotation: bool,
    queue: Option<u32>,
    rates: RatesFrame,
    workers: Vec<WorkerFrame>,
}

#[derive(Debug, Serialize)]
struct WorkerFrame {
    worker: u64,
    pid: i32,
    generation: u32,
    state: WorkerState,
    age: f64,
    busy: Option<u64>,
    open: Option<u64>,
    memory: Option<u64>,
    oldest_age: Option<f64>,
}

/// Prints a frame per snapshot, from the second one on: the first one has no rates.
///
/// # Errors
/// When the server does not answer, or the frame cannot be written.
pub(crate) fn run(path: &Path, options: Options) -> Result<(), TopError> {
    let mut client = Client::new(path.to_owned());
    client.check()?;
    let columns = std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok())
        .unwrap_or(COLUMNS);
    let mut before = Snapshot::new(status(&mut client)?);
    let mut printed = 0;
    while options.count.is_none_or(|count| printed < count) {
        std::thread::sleep(options.interval);
        let snapshot = Snapshot::new(status(&mut client)?);
        let (rates, all) = snapshot.since(&before);
        let text = if options.json {
            json_frame(&snapshot.status, &rates, &all, before.status.time)
        } else {
            text_frame(&snapshot, &rates, &all, columns)
        };
        match std::io::stdout().write_all(text.as_bytes()) {
            // The reader of a pipe may leave at any time.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(TopError::Write)?,
        }
        before = snapshot;
        printed += 1;
    }
    Ok(())
}

/// Returns the status, for which it waits.
fn status(client: &mut Client) -> Result<Status, TopError> {
    client.poll_status(Instant::now());
    loop {
        let mut fds: Vec<PollFd<'_>> = client
            .descriptors()
            .into_iter()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let _ = poll(&mut fds, PollTimeout::from(100_u8));
        for news in client.receive(Instant::now()) {
            match news {
                News::Status(status) => return Ok(*status),
                News::Silence(reason) => return Err(TopError::Silent(reason)),
                News::Event(_) | News::Verdict(_) | News::Progress(_) => {}
            }
        }
    }
}

fn text_frame(
    snapshot: &Snapshot,
    rates: &BTreeMap<u16, Rates>,
    all: &Rates,
    columns: usize,
) -> String {
    let scene = Scene {
        snapshot: Some(snapshot),
        rates,
        all,
        order: Order {
            column: Column::Slot,
            reversed: false,
        },
        selected: None,
        events: &VecDeque::new(),
        trouble: None,
        prompt: None,
        help: false,
    };
    plain(&page(&scene, columns)) + "\n"
}

/// Renders a frame as one line. `before` is the time of the previous snapshot.
fn json_frame(status: &Status, rates: &BTreeMap<u16, Rates>, all: &Rates, before: f64) -> String {
    let slot = |slot: &SlotStatus| SlotFrame {
        slot: slot.slot,
        in_rotation: slot.in_rotation,
        queue: slot.queue,
        rates: RatesFrame::from(rates.get(&slot.slot).unwrap_or(&Rates::default())),
        workers: slot.workers.iter().map(WorkerFrame::from).collect(),
    };
    let frame = Frame {
        version: VERSION,
        time: status.time,
        interval: status.time - before,
        name: status.title(),
        state: status.state,
        ready: status.ready,
        generation: status.generation,
        queue: status.queue(),
        rates: all.into(),
        slots: status.slots.iter().map(slot).collect(),
    };
    // Strings and numbers only: nothing that JSON cannot say.
    serde_json::to_string(&frame).unwrap_or_default() + "\n"
}

impl From<&Rates> for RatesFrame {
    fn from(rates: &Rates) -> Self {
        Self {
            requests: rates.requests,
            errors: rates.errors,
            connections: rates.connections,
            bytes_in: rates.received,
            bytes_out: rates.sent,
            p50: rates.p50,
            p99: rates.p99,
        }
    }
}

impl From<&WorkerStatus> for WorkerFrame {
    fn from(worker: &WorkerStatus) -> Self {
        Self {
            worker: worker.worker,
            pid: worker.pid,
            generation: worker.generation,
            state: worker.state,
            age: worker.age,
            busy: worker.scoreboard.busy,
            open: worker.scoreboard.open,
            memory: worker.memory,
            oldest_age: worker.oldest_age,
        }
    }
}
