//! The layout of the screen.

use super::snapshot::{Rates, Snapshot};
use super::table::{Column, Order, Row, rows};
use super::text::{bytes, clipped, short, span, width};
use crate::api::status::State;
use crate::control::client::progress::cells;
use std::collections::{BTreeMap, VecDeque};

/// The style of a piece of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Bold,
    Dim,
    Good,
    Warn,
    Bad,
    /// The selected row.
    Selected,
}

/// A line of the screen: pieces of text.
pub(crate) type Line = Vec<(Style, String)>;

/// An event, as a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogLine {
    pub(crate) time: String,
    pub(crate) level: String,
    pub(crate) text: String,
}

/// The content of a frame.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) snapshot: Option<&'a Snapshot>,
    pub(crate) rates: &'a BTreeMap<u16, Rates>,
    pub(crate) all: &'a Rates,
    pub(crate) order: Order,
    /// The slot that is selected.
    pub(crate) selected: Option<u16>,
    pub(crate) events: &'a VecDeque<LogLine>,
    /// Why there is no newer snapshot.
    pub(crate) trouble: Option<&'a str>,
    /// A question, or a message.
    pub(crate) prompt: Option<(Style, String)>,
    pub(crate) help: bool,
}

const HELP: &[&str] = &[
    "up, down, PgUp, PgDn   select a slot          Home  select none",
    "<  >                   sort by the column to the left, to the right",
    "s w p g t a r 9 e b c u m o   sort by slot, worker, pid, generation, state,",
    "                       age, requests, p99, errors, busy, connections, queue,",
    "                       memory, oldest request;  i  reverse the order",
    "R                      reload                 S  set the number of workers",
    "x                      restart the worker of the selected slot",
    "d                      drain the selected slot and hold it empty",
    "                       (each asks for confirmation)",
    "?                      show or hide this help q  quit",
];
const KEYS: &str = "q quit  ? help  < > sort  R reload  S scale  x restart  d drain";

/// Returns the frame for a screen of this size.
pub(crate) fn frame(scene: &Scene<'_>, columns: usize, lines: usize) -> Vec<Line> {
    let (columns, lines) = (columns.max(20), lines.max(6));
    let mut frame = Vec::new();
    if let Some(snapshot) = scene.snapshot {
        frame.extend(head(scene, snapshot));
        frame.extend(
            scene
                .trouble
                .map(|trouble| vec![(Style::Bad, trouble.to_owned())]),
        );
        let footer = 1;
        let log = if scene.help {
            HELP.len()
        } else {
            scene.events.len().min((lines / 4).max(2))
        };
        let room = lines.saturating_sub(frame.len() + footer + log + 2).max(1);
        frame.extend(table(scene, snapshot, columns, room));
    } else {
        frame.push(vec![(
            Style::Bad,
            scene.trouble.unwrap_or("asking the server").to_owned(),
        )]);
    }
    let log: Vec<Line> = if scene.help {
        HELP.iter()
            .map(|line| vec![(Style::Plain, (*line).to_owned())])
            .collect()
    } else {
        let room = (lines / 4).max(2);
        scene
            .events
            .iter()
            .skip(scene.events.len().saturating_sub(room))
            .map(event)
            .collect()
    };
    frame.truncate(lines.saturating_sub(log.len() + 1));
    while frame.len() + log.len() + 1 < lines {
        frame.push(Vec::new());
    }
    frame.extend(log);
    frame.push(vec![
        scene
            .prompt
            .clone()
            .unwrap_or((Style::Dim, KEYS.to_owned())),
    ]);
    frame.truncate(lines);
    frame.into_iter().map(|line| fit(line, columns)).collect()
}

/// Returns the same without the lines below the table, to be printed.
pub(crate) fn page(scene: &Scene<'_>, columns: usize) -> Vec<Line> {
    let Some(snapshot) = scene.snapshot else {
        return Vec::new();
    };
    let mut page = head(scene, snapshot);
    page.extend(table(scene, snapshot, columns, usize::MAX));
    page.into_iter().map(|line| fit(line, columns)).collect()
}

fn head(scene: &Scene<'_>, snapshot: &Snapshot) -> Vec<Line> {
    let status = &snapshot.status;
    let state = match status.state {
        State::Serving => Style::Good,
        State::Starting | State::PreStop | State::Stopping | State::Draining => Style::Warn,
        State::Degraded | State::Unknown => Style::Bad,
    };
    let plain = |text: String| (Style::Plain, text);
    let first = vec![
        (Style::Bold, status.title().to_owned()),
        plain("  ".to_owned()),
        (state, status.state.to_string()),
        plain(format!(
            "  generation {}  up {}  version {}  {}",
            status.generation,
            span(status.uptime.floor()),
            status.program,
            status.listeners.join(" ")
        )),
    ];
    let all = scene.all;
    let or_none = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), span);
    let per_second = |rate: Option<f64>, write: fn(f64) -> String| {
        rate.map_or_else(|| "-".to_owned(), |rate| write(rate) + "/s")
    };
    let errors = if all.errors.is_some_and(|rate| rate > 0.0) {
        Style::Bad
    } else {
        Style::Plain
    };
    let queue = if status.queue() > 0 {
        Style::Warn
    } else {
        Style::Plain
    };
    let second = vec![
        plain("requests ".to_owned()),
        (Style::Bold, per_second(all.requests, short)),
        plain(format!(
            "  p50 {}  p99 {}  ",
            or_none(all.p50),
            or_none(all.p99)
        )),
        (errors, format!("errors {}", per_second(all.errors, short))),
        plain(format!(
            "  connections {}  in {}  out {}  ",
            per_second(all.connections, short),
            per_second(all.received, bytes),
            per_second(all.sent, bytes)
        )),
        (queue, format!("queue {}", status.queue())),
    ];
    let died: u64 = snapshot.deaths().map(|(_, count)| count).sum();
    let causes: Vec<String> = snapshot
        .deaths()
        .map(|(cause, count)| format!("{cause} {count}"))
        .collect();
    let deaths = if died == 0 {
        "deaths 0".to_owned()
    } else {
        format!("deaths {died} ({})", causes.join(", "))
    };
    let range = if status.autoscaling {
        format!(" of {}..{}", status.min_workers, status.max_workers)
    } else {
        String::new()
    };
    let third = vec![plain(format!(
        "workers {}{range}  unhealthy {}, permits {}  reloads {} ok, {} failed  {deaths}",
        status.workers,
        status.unavailable,
        status.max_unavailable,
        status.reloads.ok,
        status.reloads.failed
    ))];
    let mut head = vec![first, second, third];
    if let Some(reload) = status.reload {
        let slots = reload.slots;
        let bar = cells(slots, [reload.passed, reload.ready, reload.spawned]);
        let text = format!(
            "  reload to generation {}: spawned {}/{slots}, ready {}/{slots}, passed {}/{slots}",
            reload.generation, reload.spawned, reload.ready, reload.passed,
        );
        head.push(vec![(Style::Good, bar), plain(text)]);
    } else if let Some(reason) = snapshot.last_failure() {
        head.push(vec![(
            Style::Bad,
            format!("the last reload failed: {reason}"),
        )]);
    }
    head
}

/// Returns the heading and as many rows as fit, those around the selected one.
fn table(scene: &Scene<'_>, snapshot: &Snapshot, columns: usize, room: usize) -> Vec<Line> {
    let shown = fitting(columns);
    let mut heading = Vec::new();
    for column in &shown {
        let (name, wide) = column.heading();
        let mark = match scene.order {
            Order { column: sorted, .. } if sorted != *column => "",
            Order { reversed: true, .. } => "^",
            Order { .. } => "v",
        };
        let style = if mark.is_empty() {
            Style::Dim
        } else {
            Style::Bold
        };
        let mark = if mark.is_empty() { " " } else { mark };
        heading.push((style, format!("{}{mark}", aligned(*column, name, wide))));
    }
    let rows = rows(&snapshot.status, scene.rates, scene.order);
    let index = rows
        .iter()
        .position(|row| Some(row.slot.slot) == scene.selected)
        .unwrap_or(0);
    let first = index
        .saturating_sub(room / 2)
        .min(rows.len().saturating_sub(room));
    let hidden = (rows.len() > room)
        .then(|| format!("rows {} to {} of {}", first + 1, first + room, rows.len()));
    let above = vec![(Style::Dim, hidden.unwrap_or_default())];
    let body = rows
        .iter()
        .skip(first)
        .take(room)
        .map(|row| line(row, &shown, scene.selected));
    [above, heading].into_iter().chain(body).collect()
}

/// Returns the columns that fit, from the left.
fn fitting(columns: usize) -> Vec<Column> {
    let mut taken = 0;
    let fits = |column: &Column| {
        taken += column.heading().1 + 1;
        taken <= columns
    };
    Column::ALL.into_iter().take_while(fits).collect()
}

/// Aligns words left, numbers right.
fn aligned(column: Column, text: &str, wide: usize) -> String {
    match column {
        Column::State => format!("{text:<wide$}"),
        _ => format!("{text:>wide$}"),
    }
}

fn line(row: &Row<'_>, shown: &[Column], selected: Option<u16>) -> Line {
    let of_state = match row.state() {
        "ready" => Style::Good,
        "starting" | "draining" | "held" => Style::Warn,
        "retired" => Style::Dim,
        _ => Style::Bad,
    };
    let is_selected = selected == Some(row.slot.slot);
    let cell = |column: &Column| {
        let text = format!(
            "{} ",
            aligned(*column, &row.cell(*column), column.heading().1)
        );
        let style = match column {
            _ if is_selected => Style::Selected,
            Column::State => of_state,
            Column::Errors if row.rates.errors.is_some_and(|rate| rate > 0.0) => Style::Bad,
            Column::Queue if row.slot.queue.is_some_and(|queue| queue > 0) => Style::Warn,
            _ => Style::Plain,
        };
        (style, text)
    };
    let mut line: Line = shown.iter().map(cell).collect();
    let text = row.worker.map_or("", |worker| worker.status.as_str());
    line.push((
        if is_selected {
            Style::Selected
        } else {
            Style::Dim
        },
        text.to_owned(),
    ));
    line
}

fn event(event: &LogLine) -> Line {
    let style = match event.level.as_str() {
        "error" => Style::Bad,
        "warn" => Style::Warn,
        _ => Style::Plain,
    };
    // The time of day is enough.
    let time = event.time.get(11..19).unwrap_or(&event.time);
    vec![
        (Style::Dim, format!("{time} ")),
        (style, event.text.clone()),
    ]
}

/// Clips a line to this many columns.
fn fit(line: Line, columns: usize) -> Line {
    let mut left = columns;
    let mut fitted = Vec::new();
    for (style, text) in line {
        let text = clipped(&text, left);
        left -= width(&text);
        fitted.push((style, text));
    }
    fitted
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::status;
    use super::*;
    use crate::api::status::{Progress, SlotStatus, Status};

    fn shown(columns: usize, lines: usize, change: impl FnOnce(&mut Status)) -> Vec<String> {
        let (before, mut now) = (
            Snapshot::new(status(1000.0, [0, 0])),
            Snapshot::new(status(1002.0, [20, 4])),
        );
        let (rates, all) = now.since(&before);
        change(&mut now.status);
        let event = LogLine {
            time: "2026-11-27T12:34:56.789Z".into(),
            level: "error".into(),
            text: "worker 7 died".into(),
        };
        let scene = Scene {
            snapshot: Some(&now),
            rates: &rates,
            all: &all,
            order: Order {
                column: Column::Requests,
                reversed: false,
            },
            selected: Some(1),
            events: &VecDeque::from([event]),
            trouble: None,
            prompt: None,
            help: false,
        };
        let text = |line: Line| line.into_iter().map(|(_, text)| text).collect::<String>();
        frame(&scene, columns, lines)
            .into_iter()
            .map(text)
            .collect()
    }

    #[test]
    fn a_frame_has_the_size_of_the_screen_whatever_that_is() {
        for (columns, lines) in [(80, 24), (40, 10), (20, 6), (300, 80), (1, 1)] {
            let frame = shown(columns, lines, |_| {});
            assert_eq!(frame.len(), lines.max(6), "{columns} by {lines}");
            assert!(
                frame.iter().all(|line| width(line) <= columns.max(20)),
                "{frame:#?}"
            );
        }
    }

    #[test]
    fn it_shows_the_server_its_slots_and_its_events() {
        let frame = shown(120, 24, |_| {});
        assert!(
            frame[0].starts_with("shop  serving  generation 2  up 15m02"),
            "{}",
            frame[0]
        );
        assert!(
            frame[1].starts_with("requests 12/s  p50 500us  p99 500us  errors 0/s"),
            "{}",
            frame[1]
        );
        assert!(
            frame[2].contains("workers 2 of 1..8  unhealthy 0, permits 1")
                && frame[2].contains("deaths 1 (hang 1)"),
            "{}",
            frame[2]
        );
        assert!(
            frame.iter().any(|line| line.contains("REQ/Sv")),
            "{frame:#?}"
        );
        assert!(
            frame[frame.len() - 2] == "12:34:56 worker 7 died" && frame[23].starts_with("q quit"),
            "{frame:#?}"
        );
        let row = frame
            .iter()
            .find(|line| line.contains(" 100 "))
            .expect("slot 0");
        assert!(row.contains("ready") && row.ends_with("a [31mb"), "{row}");
    }

    #[test]
    fn a_reload_is_a_bar_and_a_thousand_slots_scroll_to_the_selected_one() {
        let reload = Progress {
            generation: 3,
            slots: 4,
            spawned: 4,
            ready: 2,
            passed: 1,
        };
        let frame = shown(100, 24, |status| status.reload = Some(reload));
        assert!(
            frame[3].starts_with(
                "[======>>>>>>------------]  reload to generation 3: spawned 4/4, ready 2/4, passed 1/4"
            ),
            "{}",
            frame[3]
        );
        let frame = shown(80, 24, |status| {
            let slot = status.slots[0].clone();
            status.slots.extend((2..1000).map(|number| SlotStatus {
                slot: number,
                ..slot.clone()
            }));
        });
        assert!(
            frame.iter().any(|line| line.contains("of 1000")),
            "{frame:#?}"
        );
    }
}
