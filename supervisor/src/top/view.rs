//! What stands where on the screen.

use super::picture::{Picture, Rates};
use super::table::{Column, Order, Row, rows};
use super::words::{bytes, clipped, short, span, width};
use crate::control::client::progress::cells;
use std::collections::{BTreeMap, VecDeque};

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    Plain,
    Bold,
    Dim,
    Good,
    Warn,
    Bad,
    /// The row that is chosen.
    Chosen,
}

/// A line of the screen: pieces of text.
pub(crate) type Line = Vec<(Look, String)>;

/// What has happened, as a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Happened {
    pub(crate) time: String,
    pub(crate) level: String,
    pub(crate) text: String,
}

/// All that a frame shows.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) picture: Option<&'a Picture>,
    pub(crate) rates: &'a BTreeMap<u64, Rates>,
    pub(crate) all: &'a Rates,
    pub(crate) order: Order,
    /// The slot that is chosen, if somebody has chosen one.
    pub(crate) chosen: Option<u64>,
    pub(crate) events: &'a VecDeque<Happened>,
    /// Why there is no newer picture.
    pub(crate) trouble: Option<&'a str>,
    /// What is asked, or was answered.
    pub(crate) prompt: Option<(Look, String)>,
    pub(crate) help: bool,
}

const HELP: &[&str] = &[
    "up, down, PgUp, PgDn   choose a slot          Home  choose none",
    "<  >                   sort by the column to the left, to the right",
    "s w p g t a r 9 e b c u m o   sort by slot, worker, pid, generation, state,",
    "                       age, requests, p99, errors, busy, connections, queue,",
    "                       memory, oldest request;  i  the other way round",
    "R                      reload                 S  another number of workers",
    "x                      restart the chosen slot's worker",
    "d                      drain the chosen slot and hold it empty",
    "                       (each asks for a y before it is done)",
    "?                      this, or not           q  leave",
];
const KEYS: &str = "q leave  ? help  < > sort  R reload  S scale  x restart  d drain";

/// The frame for a screen of so many columns and lines.
pub(crate) fn frame(scene: &Scene<'_>, columns: usize, lines: usize) -> Vec<Line> {
    let (columns, lines) = (columns.max(20), lines.max(6));
    let mut frame = Vec::new();
    if let Some(picture) = scene.picture {
        frame.extend(head(scene, picture));
        frame.extend(
            scene
                .trouble
                .map(|trouble| vec![(Look::Bad, trouble.to_owned())]),
        );
        let footer = 1;
        let told = if scene.help {
            HELP.len()
        } else {
            scene.events.len().min((lines / 4).max(2))
        };
        let room = lines.saturating_sub(frame.len() + footer + told + 2).max(1);
        frame.extend(table(scene, picture, columns, room));
    } else {
        frame.push(vec![(
            Look::Bad,
            scene.trouble.unwrap_or("asking the server").to_owned(),
        )]);
    }
    let told: Vec<Line> = if scene.help {
        HELP.iter()
            .map(|line| vec![(Look::Plain, (*line).to_owned())])
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
    frame.truncate(lines.saturating_sub(told.len() + 1));
    while frame.len() + told.len() + 1 < lines {
        frame.push(Vec::new());
    }
    frame.extend(told);
    frame.push(vec![
        scene.prompt.clone().unwrap_or((Look::Dim, KEYS.to_owned())),
    ]);
    frame.truncate(lines);
    frame.into_iter().map(|line| fit(line, columns)).collect()
}

/// The same without an end below, for whoever prints it.
pub(crate) fn page(scene: &Scene<'_>, columns: usize) -> Vec<Line> {
    let Some(picture) = scene.picture else {
        return Vec::new();
    };
    let mut page = head(scene, picture);
    page.extend(table(scene, picture, columns, usize::MAX));
    page.into_iter().map(|line| fit(line, columns)).collect()
}

fn head(scene: &Scene<'_>, picture: &Picture) -> Vec<Line> {
    let state = match picture.state.as_str() {
        "serving" => Look::Good,
        "starting" | "pre-stop" | "stopping" | "draining" => Look::Warn,
        _ => Look::Bad,
    };
    let plain = |text: String| (Look::Plain, text);
    let first = vec![
        (Look::Bold, picture.name.clone()),
        plain("  ".to_owned()),
        (state, picture.state.clone()),
        plain(format!(
            "  generation {}  up {}  version {}  {}",
            picture.generation,
            span(picture.uptime.floor()),
            picture.version,
            picture.listeners.join(" ")
        )),
    ];
    let all = scene.all;
    let or_none = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), span);
    let errors = if all.errors > 0.0 {
        Look::Bad
    } else {
        Look::Plain
    };
    let queue = if picture.queue() > 0 {
        Look::Warn
    } else {
        Look::Plain
    };
    let second = vec![
        plain("requests ".to_owned()),
        (Look::Bold, format!("{}/s", short(all.requests))),
        plain(format!(
            "  p50 {}  p99 {}  ",
            or_none(all.p50),
            or_none(all.p99)
        )),
        (errors, format!("errors {}/s", short(all.errors))),
        plain(format!(
            "  connections {}/s  in {}/s  out {}/s  ",
            short(all.connections),
            bytes(all.received),
            bytes(all.sent)
        )),
        (queue, format!("queue {}", picture.queue())),
    ];
    let (least, most) = picture.range;
    let (out, permits) = picture.unavailable;
    let died: u64 = picture.deaths.iter().map(|(_, count)| count).sum();
    let causes: Vec<String> = picture
        .deaths
        .iter()
        .map(|(cause, count)| format!("{cause} {count}"))
        .collect();
    let deaths = if died == 0 {
        "deaths 0".to_owned()
    } else {
        format!("deaths {died} ({})", causes.join(", "))
    };
    let third = vec![plain(format!(
        "workers {} of {least}..{most}  not whole {out}, permits {permits}  reloads {} ok, {} failed  {deaths}",
        picture.workers, picture.reloads.0, picture.reloads.1
    ))];
    let mut head = vec![first, second, third];
    if let Some(reload) = picture.reload {
        let (bar, words) = (
            cells(reload.slots, [reload.passed, reload.ready, reload.spawned]),
            format!(
                "  reload to generation {}: spawned {}/{slots}, ready {}/{slots}, passed {}/{slots}",
                reload.generation,
                reload.spawned,
                reload.ready,
                reload.passed,
                slots = reload.slots
            ),
        );
        head.push(vec![(Look::Good, bar), plain(words)]);
    } else if let Some(reason) = &picture.last_failure {
        head.push(vec![(
            Look::Bad,
            format!("the last reload failed: {reason}"),
        )]);
    }
    head
}

/// The heading and as many rows as there is room for, those around the chosen one.
fn table(scene: &Scene<'_>, picture: &Picture, columns: usize, room: usize) -> Vec<Line> {
    let shown = fitting(columns);
    let mut heading = Vec::new();
    for column in &shown {
        let (name, wide) = column.heading();
        let mark = match scene.order {
            Order { column: sorted, .. } if sorted != *column => "",
            Order { reversed: true, .. } => "^",
            Order { .. } => "v",
        };
        let look = if mark.is_empty() {
            Look::Dim
        } else {
            Look::Bold
        };
        let mark = if mark.is_empty() { " " } else { mark };
        heading.push((look, format!("{}{mark}", aligned(*column, name, wide))));
    }
    let rows = rows(picture, scene.rates, scene.order);
    let place = rows
        .iter()
        .position(|row| Some(row.slot.slot) == scene.chosen)
        .unwrap_or(0);
    let first = place
        .saturating_sub(room / 2)
        .min(rows.len().saturating_sub(room));
    let hidden = (rows.len() > room)
        .then(|| format!("rows {} to {} of {}", first + 1, first + room, rows.len()));
    let above = vec![(Look::Dim, hidden.unwrap_or_default())];
    let body = rows
        .iter()
        .skip(first)
        .take(room)
        .map(|row| line(row, &shown, scene.chosen));
    [above, heading].into_iter().chain(body).collect()
}

/// The columns for which there is room, from the left.
fn fitting(columns: usize) -> Vec<Column> {
    let mut taken = 0;
    let fits = |column: &Column| {
        taken += column.heading().1 + 1;
        taken <= columns
    };
    Column::ALL.into_iter().take_while(fits).collect()
}

/// Words stand at the left of their column, numbers at the right.
fn aligned(column: Column, text: &str, wide: usize) -> String {
    match column {
        Column::State => format!("{text:<wide$}"),
        _ => format!("{text:>wide$}"),
    }
}

fn line(row: &Row<'_>, shown: &[Column], chosen: Option<u64>) -> Line {
    let of_state = match row.state() {
        "ready" => Look::Good,
        "starting" | "draining" | "held" => Look::Warn,
        "retired" => Look::Dim,
        _ => Look::Bad,
    };
    let is_chosen = chosen == Some(row.slot.slot);
    let cell = |column: &Column| {
        let text = format!(
            "{} ",
            aligned(*column, &row.cell(*column), column.heading().1)
        );
        let look = match column {
            _ if is_chosen => Look::Chosen,
            Column::State => of_state,
            Column::Errors if row.rates.errors > 0.0 => Look::Bad,
            Column::Queue if row.slot.queue.is_some_and(|queue| queue > 0) => Look::Warn,
            _ => Look::Plain,
        };
        (look, text)
    };
    let mut line: Line = shown.iter().map(cell).collect();
    let words = row.worker.map_or("", |worker| worker.status.as_str());
    line.push((
        if is_chosen { Look::Chosen } else { Look::Dim },
        words.to_owned(),
    ));
    line
}

fn event(happened: &Happened) -> Line {
    let look = match happened.level.as_str() {
        "error" => Look::Bad,
        "warn" => Look::Warn,
        _ => Look::Plain,
    };
    // The time of day is enough.
    let time = happened.time.get(11..19).unwrap_or(&happened.time);
    vec![
        (Look::Dim, format!("{time} ")),
        (look, happened.text.clone()),
    ]
}

/// A line of so many columns at most.
fn fit(line: Line, columns: usize) -> Line {
    let mut left = columns;
    let mut fitted = Vec::new();
    for (look, text) in line {
        let text = clipped(&text, left);
        left -= width(&text);
        fitted.push((look, text));
    }
    fitted
}

#[cfg(test)]
mod tests {
    use super::super::picture::tests::status;
    use super::*;

    fn shown(columns: usize, lines: usize, change: impl FnOnce(&mut Picture)) -> Vec<String> {
        let (before, mut now) = (
            Picture::read(&status(1000.0, [0, 0])),
            Picture::read(&status(1002.0, [20, 4])),
        );
        let (rates, all) = now.since(&before);
        change(&mut now);
        let happened = Happened {
            time: "2026-11-27T12:34:56.789Z".into(),
            level: "error".into(),
            text: "worker 7 died".into(),
        };
        let scene = Scene {
            picture: Some(&now),
            rates: &rates,
            all: &all,
            order: Order {
                column: Column::Requests,
                reversed: false,
            },
            chosen: Some(1),
            events: &VecDeque::from([happened]),
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
    fn it_tells_the_server_its_slots_and_what_has_happened() {
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
            frame[2].contains("workers 2 of 1..8  not whole 0, permits 1")
                && frame[2].contains("deaths 1 (hang 1)"),
            "{}",
            frame[2]
        );
        assert!(
            frame.iter().any(|line| line.contains("REQ/Sv")),
            "{frame:#?}"
        );
        assert!(
            frame[frame.len() - 2] == "12:34:56 worker 7 died" && frame[23].starts_with("q leave"),
            "{frame:#?}"
        );
        let row = frame
            .iter()
            .find(|line| line.contains(" 100 "))
            .expect("slot 0");
        assert!(row.contains("ready") && row.ends_with("a [31mb"), "{row}");
    }

    #[test]
    fn a_reload_is_a_bar_and_a_thousand_slots_scroll_to_the_chosen_one() {
        let reload = super::super::picture::Reload {
            generation: 3,
            slots: 4,
            spawned: 4,
            ready: 2,
            passed: 1,
        };
        let frame = shown(100, 24, |picture| picture.reload = Some(reload));
        assert!(
            frame[3].starts_with(
                "[======>>>>>>------------]  reload to generation 3: spawned 4/4, ready 2/4, passed 1/4"
            ),
            "{}",
            frame[3]
        );
        let frame = shown(80, 24, |picture| {
            let slot = picture.slots[0].clone();
            picture
                .slots
                .extend((2..1000).map(|number| super::super::picture::Slot {
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
