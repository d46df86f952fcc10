//! The table and the pictures.

use super::shapes::Curve;
use super::world::Outcome;
use super::{Trio, seed};
use crate::float;
use std::fmt::Write;
use std::path::Path;

/// A picture's size, and the part of it with curves.
const WIDTH: f64 = 760.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 740.0;
/// The span of one 99th percentile in the picture, in seconds.
const STRETCH: f64 = 10.0;

/// Returns one row of the table: worker-seconds and latencies of the three runs.
pub(crate) fn row(trio: &Trio) -> String {
    let of = |outcome: &Outcome| {
        let p = |share| span(outcome.percentile(share, |_| true));
        format!("{:.0} | {} | {}", outcome.worker_seconds, p(0.5), p(0.99))
    };
    format!(
        "| {} | {} | {} | {} | {:.0} % | {} |",
        trio.curve.name,
        of(&trio.two),
        of(&trio.autoscaled),
        of(&trio.sixteen),
        trio.cheaper() * 100.0,
        trio.autoscaled.spawned
    )
}

fn span(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1000.0)
    } else {
        format!("{seconds:.1} s")
    }
}

/// Writes everything into a directory.
pub(crate) fn write(directory: &Path) -> std::io::Result<()> {
    let mut table = format!(
        "seed {}\n\n| curve | 2: worker-seconds | p50 | p99 | 2..16: worker-seconds | p50 | p99 | 16: worker-seconds | p50 | p99 | \
         2..16 of 16 | started |\n| --- |{}\n",
        seed(),
        " ---: |".repeat(11)
    );
    for curve in [
        Curve::diurnal(),
        Curve::flash_crowd(),
        Curve::sawtooth(90.0),
        Curve::recorded(),
    ] {
        let trio = Trio::of(curve);
        table += &row(&trio);
        table.push('\n');
        std::fs::write(
            directory.join(format!("autoscaling-{}.svg", trio.curve.name)),
            picture(&trio),
        )?;
    }
    println!("{table}");
    Ok(())
}

/// An axis: maps a value to a position.
struct Axis {
    values: (f64, f64),
    places: (f64, f64),
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        let share = (value - self.values.0) / (self.values.1 - self.values.0);
        self.places.0 + share.clamp(0.0, 1.0) * (self.places.1 - self.places.0)
    }
}

const COLOURS: [(&str, &str); 3] = [("2", "#c0392b"), ("2..16", "#1f6fb2"), ("16", "#7f8c8d")];

fn picture(trio: &Trio) -> String {
    let length = trio.curve.length.as_secs_f64();
    let time = Axis {
        values: (0.0, length),
        places: (LEFT, RIGHT),
    };
    let count = Axis {
        values: (0.0, 18.0),
        places: (230.0, 50.0),
    };
    let latency = Axis {
        values: (-1.5, 2.0),
        places: (420.0, 270.0),
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} 460\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"460\" fill=\"white\"/>\n"
    );
    let mut text = |x: f64, y: f64, anchor: &str, words: &str| {
        let _ = writeln!(
            svg,
            "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\" fill=\"#333\">{words}</text>"
        );
    };
    text(
        LEFT,
        20.0,
        "start",
        &format!(
            "{}: work (grey area, in workers' worth) and workers",
            trio.curve.title
        ),
    );
    text(LEFT, 258.0, "start", "99th percentile of each ten seconds");
    for workers in [0, 4, 8, 12, 16] {
        text(
            LEFT - 6.0,
            count.place(f64::from(workers)) + 4.0,
            "end",
            &workers.to_string(),
        );
    }
    for (power, words) in [(-1.0, "0.1 s"), (0.0, "1 s"), (1.0, "10 s"), (2.0, "100 s")] {
        text(LEFT - 6.0, latency.place(power) + 4.0, "end", words);
    }
    let step = if length > 1000.0 { 5 } else { 1 };
    for minute in (0..=float::to_u64(length / 60.0)).step_by(step) {
        text(
            time.place(float::from_u64(minute) * 60.0),
            438.0,
            "middle",
            &minute.to_string(),
        );
    }
    text(RIGHT, 455.0, "end", "minutes");
    for (index, (name, colour)) in COLOURS.iter().enumerate() {
        let x = 540.0 + 70.0 * float::from_len(index);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"26\" width=\"16\" height=\"4\" fill=\"{colour}\"/>"
        );
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"32\" fill=\"#333\">{name}</text>",
            x + 22.0
        );
    }
    for power in [-1.0, 0.0, 1.0, 2.0] {
        rule(&mut svg, latency.place(power));
    }
    for workers in [0.0, 4.0, 8.0, 12.0, 16.0] {
        rule(&mut svg, count.place(workers));
    }
    let work: Vec<(f64, f64)> = (0..=float::to_u64(length))
        .map(|second| {
            let work = trio.curve.rate(float::from_u64(second)) * trio.curve.service.as_secs_f64();
            (time.place(float::from_u64(second)), count.place(work))
        })
        .collect();
    let mut area = format!("{:.1},{:.1} ", LEFT, count.place(0.0));
    area += &points(&work);
    let _ = writeln!(
        svg,
        "<polygon points=\"{area} {RIGHT:.1},{:.1}\" fill=\"#ddd\"/>",
        count.place(0.0)
    );
    curves(&mut svg, trio, &time, &count, &latency);
    svg + "</svg>\n"
}

/// Draws workers and latencies of the three runs.
fn curves(svg: &mut String, trio: &Trio, time: &Axis, count: &Axis, latency: &Axis) {
    let length = trio.curve.length.as_secs_f64();
    for ((_, colour), outcome) in COLOURS
        .iter()
        .zip([&trio.two, &trio.autoscaled, &trio.sixteen])
    {
        let mut steps = Vec::new();
        for (at, workers) in &outcome.workers {
            let before = steps
                .last()
                .map_or(count.place(0.0), |(_, place): &(f64, f64)| *place);
            if !steps.is_empty() {
                steps.push((time.place(*at), before));
            }
            steps.push((time.place(*at), count.place(float::from_len(*workers))));
        }
        steps.extend(steps.last().map(|(_, place)| (RIGHT, *place)));
        line(svg, colour, &steps);
        let stretches = (0..float::to_u64(length / STRETCH)).filter_map(|stretch| {
            let from = float::from_u64(stretch) * STRETCH;
            let p99 = outcome.percentile(0.99, |at| (from..from + STRETCH).contains(&at));
            (p99 > 0.0).then(|| (time.place(from + STRETCH / 2.0), latency.place(p99.log10())))
        });
        line(svg, colour, &stretches.collect::<Vec<_>>());
    }
}

fn points(points: &[(f64, f64)]) -> String {
    points
        .iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn line(svg: &mut String, colour: &str, places: &[(f64, f64)]) {
    let points = points(places);
    let _ = writeln!(
        svg,
        "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>"
    );
}

fn rule(svg: &mut String, y: f64) {
    let _ = writeln!(
        svg,
        "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#eee\"/>"
    );
}
