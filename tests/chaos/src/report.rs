//! What a run found, for people and as JSON.

use crate::client::{Incident, Ledger, Shape};
use crate::run::{Event, Journal, Kill};
use crate::subject::Verdict;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};
use testkit::Address;

/// A whole run.
#[derive(Debug)]
pub struct Report {
    /// The subject's name.
    pub subject: String,
    /// Where it was asked.
    pub addresses: Vec<Address>,
    /// The seed.
    pub seed: u64,
    /// When the load began.
    pub began: SystemTime,
    /// How many steps of the plan were carried out.
    pub steps: u64,
    /// What the clients found.
    pub ledger: Ledger,
    /// What was done.
    pub journal: Journal,
    /// What must be true of the server and is not.
    pub broken: Vec<String>,
    /// Descriptors and memory of the supervisor at the beginning and at the end.
    pub resources: [(usize, u64); 2],
}

impl Report {
    /// Whether nothing failed that may not fail.
    pub fn is_flawless(&self) -> bool {
        self.ledger.unexplained() == 0
            && self.broken.is_empty()
            && self.wrong().next().is_none()
            && self.ledger.sum(|tally| tally.verified) > 0
    }

    fn wrong(&self) -> impl Iterator<Item = &Event> {
        self.journal
            .events
            .iter()
            .filter(|event| matches!(event.verdict, Verdict::Wrong(_)))
    }

    fn of_kill(&self, kill: usize) -> impl Iterator<Item = &Incident> {
        self.ledger
            .incidents
            .iter()
            .filter(move |incident| incident.kill == Some(kill))
    }

    /// Operations by kind, each with its verdicts by name.
    fn operations(&self) -> BTreeMap<&str, BTreeMap<&str, u64>> {
        let mut kinds: BTreeMap<_, BTreeMap<_, u64>> = BTreeMap::new();
        for event in &self.journal.events {
            *kinds
                .entry(event.kind)
                .or_default()
                .entry(event.verdict.as_str())
                .or_default() += 1;
        }
        kinds
    }

    /// As one JSON object.
    pub fn to_json(&self) -> Value {
        let kills: Vec<Value> = self
            .journal
            .kills
            .iter()
            .enumerate()
            .map(|kill| self.kill_json(kill))
            .collect();
        let incidents: Vec<String> = self
            .unexplained()
            .take(100)
            .map(|incident| self.incident(incident))
            .collect();
        let wrong: Vec<String> = self.wrong().map(event).collect();
        json!({
            "subject": self.subject,
            "seed": self.seed,
            "flawless": self.is_flawless(),
            "seconds": self.ledger.elapsed.as_secs_f64(),
            "steps": self.steps,
            "requests": self.ledger.to_json(),
            "operations": self.operations(),
            "kills": kills,
            "incidents": incidents,
            "wrong": wrong,
            "broken": self.broken,
            "descriptors": [self.resources[0].0, self.resources[1].0],
            "resident_kib": [self.resources[0].1, self.resources[1].1],
        })
    }

    fn kill_json(&self, (number, kill): (usize, &Kill)) -> Value {
        let lost: Vec<String> = self
            .of_kill(number)
            .map(|incident| self.incident(incident))
            .collect();
        json!({
            "at": kill.at.as_secs_f64(), "pid": kill.process.0, "signal": kill.signal,
            "held": kill.held, "open": kill.open, "lost": lost,
        })
    }

    fn unexplained(&self) -> impl Iterator<Item = &Incident> {
        self.ledger
            .incidents
            .iter()
            .filter(|incident| incident.kill.is_none())
    }

    fn incident(&self, incident: &Incident) -> String {
        let Incident {
            at,
            shape,
            address,
            failure,
            detail,
            ..
        } = incident;
        let address = self
            .addresses
            .get(*address)
            .map_or_else(String::new, ToString::to_string);
        format!(
            "{:8.3} s  {} at {address}: {}: {detail}",
            at.as_secs_f64(),
            shape.as_str(),
            failure.as_str()
        )
    }

    /// What is needed to study a failure: the first ones, what was done around them, how to do it
    /// again.
    pub fn study(&self) -> String {
        let mut text = String::new();
        let mut say = |line: String| text.push_str(&(line + "\n"));
        for incident in self.unexplained().take(30) {
            say(self.incident(incident));
        }
        let wrong = self.wrong().map(|event| event.at);
        let first = self
            .unexplained()
            .map(|incident| incident.at)
            .chain(wrong)
            .min();
        let end = self.ledger.elapsed;
        let (from, to) = match first {
            Some(at) => (
                at.saturating_sub(Duration::from_secs(15)),
                at + Duration::from_secs(5),
            ),
            None => (end.saturating_sub(Duration::from_secs(20)), end),
        };
        say(format!(
            "what was done from {:.0} to {:.0} s:",
            from.as_secs_f64(),
            to.as_secs_f64()
        ));
        let mut events: Vec<&Event> = self.journal.events.iter().collect();
        events.sort_by_key(|event| event.at);
        for it in events
            .iter()
            .filter(|event| event.at + event.took >= from && event.at <= to)
        {
            say(event(it));
        }
        for kill in self
            .journal
            .kills
            .iter()
            .filter(|kill| kill.at >= from && kill.at <= to)
        {
            say(format!(
                "{:8.3} s  {} to worker {}, which held {} connections",
                kill.at.as_secs_f64(),
                kill.signal,
                kill.process.0,
                kill.held
            ));
        }
        say(format!(
            "the load began at {}; the same plan again: --seed {}",
            clock(self.began),
            self.seed
        ));
        text
    }
}

/// The time of day, as the server's log has it.
fn clock(time: SystemTime) -> String {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!(
        "{hour:02}:{minute:02}:{second:02}.{:03} UTC",
        since.subsec_millis()
    )
}

fn event(event: &Event) -> String {
    let reason = match &event.verdict {
        Verdict::Done => String::new(),
        Verdict::Refused(reason) | Verdict::Unsupported(reason) | Verdict::Wrong(reason) => {
            format!(" ({reason})")
        }
    };
    let Event {
        at,
        took,
        step,
        what,
        verdict,
        ..
    } = event;
    let (at, took) = (at.as_secs_f64(), took.as_secs_f64());
    format!(
        "{at:8.3} s  step {step}: {what}: {}{reason} after {took:.3} s",
        verdict.as_str()
    )
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ledger = &self.ledger;
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        writeln!(f, "{} at {}", self.subject, addresses.join(", "))?;
        writeln!(
            f,
            "seed {}, {} steps in {:.1} s",
            self.seed,
            self.steps,
            ledger.elapsed.as_secs_f64()
        )?;
        writeln!(
            f,
            "\n{:<10} {:>9} {:>9} {:>7} {:>7} {:>9} {:>6} {:>11} {:>11} {:>8} {:>8} {:>8}",
            "requests",
            "begun",
            "verified",
            "failed",
            "allowed",
            "withdrawn",
            "late",
            "connections",
            "closed idle",
            "p50 ms",
            "p99 ms",
            "max ms"
        )?;
        for shape in Shape::ALL {
            let Some(tally) = ledger.shapes.get(&shape) else {
                continue;
            };
            writeln!(
                f,
                "{:<10} {:>9} {:>9} {:>7} {:>7} {:>9} {:>6} {:>11} {:>11} {:>8.2} {:>8.1} {:>8.0}",
                shape.as_str(),
                tally.begun,
                tally.verified,
                tally.failed - tally.allowed,
                tally.allowed,
                tally.withdrawn,
                tally.late,
                tally.connections,
                tally.closed_idle,
                tally.latency(0.5),
                tally.latency(0.99),
                tally.latency(1.0)
            )?;
        }
        let sum = |of: fn(&crate::client::Tally) -> u64| ledger.sum(of);
        writeln!(
            f,
            "{:<10} {:>9} {:>9} {:>7} {:>7} {:>9} {:>6} {:>11} {:>11}",
            "all",
            sum(|t| t.begun),
            sum(|t| t.verified),
            sum(|t| t.failed - t.allowed),
            sum(|t| t.allowed),
            sum(|t| t.withdrawn),
            sum(|t| t.late),
            sum(|t| t.connections),
            sum(|t| t.closed_idle)
        )?;
        let crossed = sum(|t| t.crossed);
        if crossed > 0 {
            writeln!(
                f,
                "requests that crossed the end of an idle connection on their way: {crossed}"
            )?;
        }
        writeln!(
            f,
            "the clients themselves were at most {:.0} ms late",
            ledger.lag.as_secs_f64() * 1000.0
        )?;
        let unbegun = sum(|t| t.unbegun);
        if unbegun > 0 {
            writeln!(
                f,
                "not begun, since the client had its hands full: {unbegun}"
            )?;
        }
        writeln!(
            f,
            "\n{:<16} {:>5} {:>8} {:>8} {:>6}",
            "operations", "done", "refused", "skipped", "WRONG"
        )?;
        for (kind, verdicts) in self.operations() {
            let of = |name| verdicts.get(name).copied().unwrap_or(0);
            let (done, refused, skipped, wrong) =
                (of("done"), of("refused"), of("skipped"), of("WRONG"));
            writeln!(
                f,
                "{kind:<16} {done:>5} {refused:>8} {skipped:>8} {wrong:>6}"
            )?;
        }
        for (kind, reason) in self.skipped() {
            writeln!(f, "skipped: {kind}: not supported: {reason}")?;
        }
        if !self.journal.kills.is_empty() {
            writeln!(
                f,
                "\nallowed, since they were in the hands of a killed worker:"
            )?;
        }
        for (number, kill) in self.journal.kills.iter().enumerate() {
            let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
            for incident in self.of_kill(number) {
                *kinds.entry(incident.failure.as_str()).or_default() += incident.requests.max(1);
            }
            let kinds: Vec<String> = kinds
                .iter()
                .map(|(kind, count)| format!("{count} {kind}"))
                .collect();
            let lost = if kinds.is_empty() {
                "nothing".to_owned()
            } else {
                kinds.join(", ")
            };
            writeln!(
                f,
                "{:8.1} s  {} to worker {}, which held {} connections; lost: {lost}",
                kill.at.as_secs_f64(),
                kill.signal,
                kill.process.0,
                kill.held
            )?;
        }
        let [(before, kib), (after, kib_after)] = self.resources;
        writeln!(
            f,
            "\nsupervisor: {before} descriptors, then {after}; {kib} KiB, then {kib_after}"
        )?;
        for event in self.wrong() {
            writeln!(f, "WRONG: {}", self::event(event))?;
        }
        for line in &self.broken {
            writeln!(f, "WRONG: {line}")?;
        }
        for (failure, count) in &ledger.failures {
            writeln!(f, "FAILED: {} {count}", failure.as_str())?;
        }
        let verdict = if self.is_flawless() {
            "flawless"
        } else {
            "FAILED"
        };
        write!(
            f,
            "{verdict}: {} verified, {} failed, {} allowed",
            sum(|t| t.verified),
            ledger.unexplained(),
            sum(|t| t.allowed)
        )
    }
}

impl Report {
    fn skipped(&self) -> BTreeMap<&str, &str> {
        let reason = |event: &'_ Event| match &event.verdict {
            Verdict::Unsupported(_) => Some(event.kind),
            _ => None,
        };
        let mut found = BTreeMap::new();
        for event in &self.journal.events {
            if let (Some(kind), Verdict::Unsupported(why)) = (reason(event), &event.verdict) {
                found.insert(kind, why.as_str());
            }
        }
        found
    }
}
