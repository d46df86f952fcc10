//! Frames for whoever reads them elsewhere: as plain text, or as JSON.

use super::Options;
use super::picture::{Picture, Rates};
use super::screen::plain;
use super::session::{News, Session};
use super::table::{Column, Order};
use super::view::{Scene, page};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Instant;

/// How wide a page is, unless `COLUMNS` says.
const COLUMNS: usize = 132;
/// The version of the JSON frames.
const VERSION: u32 = 1;

/// Prints a frame for each look, from the second one on: the first one has no rates.
pub(crate) fn run(path: &Path, options: Options) -> Result<(), String> {
    let mut session = Session::new(path.to_owned());
    session.check()?;
    let columns = std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok())
        .unwrap_or(COLUMNS);
    let mut before = Picture::read(&look(&mut session)?);
    let mut printed = 0;
    while options.count.is_none_or(|count| printed < count) {
        std::thread::sleep(options.interval);
        let picture = Picture::read(&look(&mut session)?);
        let (rates, all) = picture.since(&before);
        let text = if options.json {
            json_frame(&picture, &rates, &all, picture.time - before.time).to_string() + "\n"
        } else {
            text_frame(&picture, &rates, &all, columns)
        };
        match std::io::stdout().write_all(text.as_bytes()) {
            // Whoever has read enough may go.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(format!("cannot write: {error}")),
            Ok(()) => {}
        }
        before = picture;
        printed += 1;
    }
    Ok(())
}

/// One picture; nobody minds waiting for it here.
fn look(session: &mut Session) -> Result<Value, String> {
    session.look(Instant::now());
    loop {
        let mut fds: Vec<PollFd<'_>> = session
            .descriptors()
            .into_iter()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let _ = poll(&mut fds, PollTimeout::from(100_u8));
        for news in session.hear(Instant::now()) {
            match news {
                News::Picture(status) => return Ok(status),
                News::Silence(reason) => {
                    return Err(format!("the server does not answer: {reason}"));
                }
                News::Event(_) | News::Verdict(_) | News::Progress(_) => {}
            }
        }
    }
}

fn text_frame(
    picture: &Picture,
    rates: &BTreeMap<u64, Rates>,
    all: &Rates,
    columns: usize,
) -> String {
    let scene = Scene {
        picture: Some(picture),
        rates,
        all,
        order: Order {
            column: Column::Slot,
            reversed: false,
        },
        chosen: None,
        events: &VecDeque::new(),
        trouble: None,
        prompt: None,
        help: false,
    };
    plain(&page(&scene, columns)) + "\n"
}

/// `docs/top.md` is its schema for people.
fn json_frame(
    picture: &Picture,
    rates: &BTreeMap<u64, Rates>,
    all: &Rates,
    interval: f64,
) -> Value {
    let of = |rates: &Rates| {
        json!({
            "requests": rates.requests, "errors": rates.errors, "connections": rates.connections,
            "bytes_in": rates.received, "bytes_out": rates.sent, "p50": rates.p50, "p99": rates.p99,
        })
    };
    let slots: Vec<Value> = picture
        .slots
        .iter()
        .map(|slot| {
            let workers: Vec<Value> = slot
                .workers
                .iter()
                .map(|worker| {
                    json!({
                        "worker": worker.worker, "pid": worker.pid, "generation": worker.generation, "state": worker.state,
                        "age": worker.age, "busy": worker.busy, "open": worker.open, "memory": worker.memory, "oldest_age": worker.oldest,
                    })
                })
                .collect();
            let rates = rates.get(&slot.slot).cloned().unwrap_or_default();
            json!({ "slot": slot.slot, "in_rotation": slot.in_rotation, "queue": slot.queue, "rates": of(&rates), "workers": workers })
        })
        .collect();
    json!({
        "version": VERSION, "time": picture.time, "interval": interval, "name": picture.name, "state": picture.state,
        "ready": picture.ready, "generation": picture.generation, "queue": picture.queue(), "rates": of(all), "slots": slots,
    })
}
