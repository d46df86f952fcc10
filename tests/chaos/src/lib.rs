//! The chaos suite: a server is broken, changed and stopped in every way that it must survive, in
//! an order that a seed decides, while clients ask it in every way that clients do. Every response
//! is verified byte for byte, and every request that was not answered as promised is counted by
//! kind. The run fails if there is any such request that was not in the hands of a worker when that
//! worker was killed.
//!
//! * [`client`]: the clients, one thread for all of them;
//! * [`plan`]: what is done, and when; `run` does it;
//! * `hands`: which connections a worker holds, read while it is stopped, just before it is killed;
//! * [`subject`]: the server under test as the suite sees it; [`service`]: what our own one serves;
//! * [`report`]: what was found.
//!
//! The plan and the shape of the load follow from the seed alone. What happens does not: the kernel
//! and the other processes have their own pace. A seed that fails may have to be run several times.
//!
//! What counts as a failure and what does not:
//! * A kept connection that the server closes while nothing of a request is on its way is no
//!   failure: the client sees the end and connects again. A request that was written and met by a
//!   close is one.
//! * Through a delay line, a request on a kept connection that meets the server's orderly end of
//!   that connection on its way, is counted as crossed: the end had left before the request was
//!   there. Over a short way there is no such excuse.
//! * A request that was pipelined behind an answer with `Connection: close` was withdrawn by the
//!   server, as HTTP says.
//! * A worker that is to be killed is stopped first, and what it holds is read from outside.
//!   Exactly those connections may fail. What waits in a queue is held by no worker, and must be
//!   answered.
//! * An answer after more than `--late` is told, since workers are stopped for seconds on purpose.
#![forbid(unsafe_code)]

pub mod client;
mod held;
pub mod options;
mod pattern;
pub mod plan;
mod random;
pub mod report;
mod run;
pub mod service;
pub mod subject;

pub use pattern::Pattern;
pub use run::{Event, Journal, Kill, Runner};

use client::{Clients, Load};
use options::Options;
use plan::{Plan, Step};
use report::Report;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use subject::{Prefork, Setup, Subject, peers};
use testkit::Address;
use testkit::delay::{DelayLine, NEAR_V4, NEAR_V6, Way};
use testkit::process::Process;

/// How many failures are enough.
const ENOUGH: u64 = 200;
/// How long the server may take to stop with requests in flight: its graceful time-out is 30 s.
const STOP: Duration = Duration::from_secs(45);

/// Starts the server, breaks it for as long as was asked, stops it, and prints the report. True
/// when it is flawless.
///
/// # Errors
/// When there can be no run.
pub fn run(options: &Options) -> Result<bool, String> {
    let seed = options.seed.unwrap_or_else(|| {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        u64::from(now.subsec_nanos()) ^ u64::from(std::process::id()) << 32 >> 12
    });
    eprintln!("chaos: seed {seed}");
    // Before there is any other thread or process: they must be where the line is.
    let line = options
        .delay
        .map(|ms| lay(ms, &options.sysctl))
        .transpose()?;
    let subject = start(options)?;
    let (report, log) = measure(options, seed, subject.as_ref(), line.as_ref())?;
    if options.json {
        println!("{}", report.to_json());
    } else {
        println!("{report}");
    }
    let flawless = report.is_flawless();
    let file = options.log.clone().or_else(|| {
        (!flawless)
            .then(|| std::env::temp_dir().join(format!("chaos-{seed}-{}.log", std::process::id())))
    });
    if let Some(file) = file {
        let written = std::fs::write(&file, log.join("\n") + "\n");
        written.map_err(|error| format!("cannot write {}: {error}", file.display()))?;
        eprintln!("chaos: the server's log is in {}", file.display());
    }
    if !flawless {
        eprintln!("{}", report.study());
    }
    Ok(flawless)
}

fn start(options: &Options) -> Result<Box<dyn Subject>, String> {
    let binaries: Option<PathBuf> = std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.parent()?.to_owned()));
    let near = |place: &String| match place.as_str() {
        "127.0.0.1:0" if options.delay.is_some() => format!("{NEAR_V4}:0"),
        "[::1]:0" if options.delay.is_some() => format!("[{NEAR_V6}]:0"),
        other => other.to_owned(),
    };
    let setup = Setup {
        bind: options.bind.iter().map(near).collect(),
        workers: options.workers,
        class: options.class.clone(),
        binaries: binaries.ok_or("cannot tell where this program is")?,
        words: options.word.clone(),
    };
    match &options.against {
        Some(name) => peers::start(name, &setup),
        None => Ok(Box::new(Prefork::start(&setup)?)),
    }
}

/// Moves this process into a network of its own where everything takes its time.
fn lay(ms: u64, settings: &[String]) -> Result<DelayLine, String> {
    let line =
        DelayLine::start(Way::of(Duration::from_millis(ms))).map_err(|error| error.to_string())?;
    for setting in settings {
        let (name, value) = setting
            .split_once('=')
            .ok_or_else(|| format!("--sysctl {setting}: no value"))?;
        // Only what belongs to this namespace: the rest is the whole machine's.
        let name = name
            .strip_prefix("net.")
            .ok_or_else(|| format!("--sysctl {setting}: not of net."))?;
        let file = format!("/proc/sys/net/{}", name.replace('.', "/"));
        std::fs::write(&file, value).map_err(|error| format!("cannot write {file}: {error}"))?;
    }
    Ok(line)
}

/// Where clients go: the far end of a delay line, if there is one.
fn reach(address: &Address, line: Option<&DelayLine>) -> Address {
    match (address, line) {
        (Address::Tcp(near), Some(_)) => Address::Tcp(DelayLine::far(*near, 0)),
        (address, _) => address.clone(),
    }
}

/// The run itself.
fn measure(
    options: &Options,
    seed: u64,
    subject: &dyn Subject,
    line: Option<&DelayLine>,
) -> Result<(Report, Vec<String>), String> {
    let supervisor = subject.supervisor();
    let addresses: Vec<Address> = subject
        .addresses()
        .iter()
        .map(|near| reach(near, line))
        .collect();
    let mut load = Load::mix(
        addresses.clone(),
        subject.offers(),
        &options.class,
        options.load,
    );
    load.seed = seed;
    load.round_trip = options
        .delay
        .map_or(Duration::ZERO, |ms| 2 * Duration::from_millis(ms));
    load.timeout = Duration::from_secs_f64(options.timeout);
    load.late = Duration::from_millis(options.late);
    if !options.shapes.is_empty() {
        load.streams
            .retain(|(shape, _)| options.shapes.iter().any(|word| word == shape.as_str()));
    }
    let before = (supervisor.descriptors(), supervisor.resident_kib());
    let began = SystemTime::now();
    let clients =
        client::start(load).map_err(|error| format!("cannot start the clients: {error}"))?;
    let runner = Runner::new(subject, &clients, options.workers);
    let steps = carry_out(options, seed, &clients, &runner);
    let journal = runner.into_journal();
    let mut broken = Vec::new();
    if options
        .requests
        .is_some_and(|wanted| clients.verified() < wanted)
    {
        broken.push(format!(
            "only {} requests were verified in {:?}",
            clients.verified(),
            options.limit()
        ));
    }
    clients.quiet();
    wait_for(STOP, || clients.open() == 0);
    broken.extend(invariants(subject, options.workers, before.0));
    let after = (supervisor.descriptors(), supervisor.resident_kib());
    if subject.offers().handlers {
        // A graceful stop answers what is in flight.
        clients.last(32, Duration::from_secs(1));
        wait_for(Duration::from_secs(10), || clients.sent() == 32);
        // In flight is what has arrived.
        std::thread::sleep(2 * options.delay.map_or(Duration::ZERO, Duration::from_millis));
    }
    if let Err(reason) = subject.stop(STOP) {
        broken.push(format!("the graceful stop: {reason}"));
    }
    let ledger = clients.finish();
    if let Some(counts) = line.map(DelayLine::counts) {
        eprintln!("chaos: the delay line: {counts:?}");
        if counts.dropped > 0 {
            broken.push(format!(
                "the delay line itself has dropped {} packets",
                counts.dropped
            ));
        }
    }
    let report = Report {
        subject: subject.name(),
        addresses,
        seed,
        began,
        steps,
        ledger,
        journal,
        broken,
        resources: [before, after],
    };
    Ok((report, subject.log()))
}

/// Carries out the plan until it is enough. Returns the number of steps.
fn carry_out(options: &Options, seed: u64, clients: &Clients, runner: &Runner<'_>) -> u64 {
    let mut plan = Plan::new(seed, options.workers);
    let mut steps = 0;
    // Another server's failures are counted, not studied.
    let enough_failures = if options.against.is_some() {
        u64::MAX
    } else {
        ENOUGH
    };
    loop {
        let time_is_up = clients.began().elapsed() >= options.limit();
        let enough = options
            .requests
            .is_some_and(|wanted| clients.verified() >= wanted)
            || options.steps.is_some_and(|wanted| steps >= wanted);
        if time_is_up || enough || clients.is_gone() || clients.unexplained() >= enough_failures {
            return steps;
        }
        let Some(step) = wanted(plan.step(), &options.only) else {
            continue;
        };
        steps += 1;
        if !runner.carry_out(steps, &step) {
            return steps;
        }
    }
}

/// What is left of a step when only some kinds of operations are wanted.
fn wanted(mut step: Step, only: &[String]) -> Option<Step> {
    let is_wanted =
        |kind: &str| only.is_empty() || only.iter().any(|word| kind.starts_with(word.as_str()));
    step.operations
        .retain(|(_, operation)| is_wanted(operation.kind()));
    (!step.operations.is_empty()).then_some(step)
}

/// What must be true of the server when all is calm.
fn invariants(subject: &dyn Subject, workers: usize, descriptors: usize) -> Vec<String> {
    let mut broken = Vec::new();
    let supervisor = subject.supervisor();
    if !supervisor.runs() {
        return vec![format!("the supervisor, process {}, is gone", supervisor.0)];
    }
    if !subject.is_ours() {
        let settled = wait_for(STOP, || subject.settled());
        return if settled {
            broken
        } else {
            vec!["the server has not settled".to_owned()]
        };
    }
    let children = || {
        let children = supervisor.children();
        let running: Vec<Process> = children
            .iter()
            .copied()
            .filter(|child| child.runs())
            .collect();
        (children.len(), running.len())
    };
    if !wait_for(Duration::from_secs(10), || {
        subject.settled() && children() == (workers, workers)
    }) {
        broken.push(format!(
            "of {workers} workers wanted, there are (with zombies, running) {:?}",
            children()
        ));
    }
    if !wait_for(Duration::from_secs(5), || {
        supervisor.descriptors() <= descriptors
    }) {
        broken.push(format!(
            "the supervisor had {descriptors} descriptors and has {}",
            supervisor.descriptors()
        ));
    }
    if supervisor.threads() != 1 {
        broken.push(format!(
            "the supervisor has {} threads",
            supervisor.threads()
        ));
    }
    broken
}

fn wait_for(limit: Duration, mut fact: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if fact() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::Shape;

    #[test]
    fn a_part_of_a_plan_has_no_empty_steps() {
        let mut plan = Plan::new(3, 8);
        let only = ["scale".to_owned()];
        let steps: Vec<Step> = (0..200)
            .filter_map(|_| wanted(plan.step(), &only))
            .collect();
        assert!(steps.len() > 10);
        let kinds = steps
            .iter()
            .flat_map(|step| &step.operations)
            .map(|(_, operation)| operation.kind());
        assert!(kinds.into_iter().all(|kind| kind == "scale"));
    }

    #[test]
    fn every_shape_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            Shape::ALL.iter().map(|shape| shape.as_str()).collect();
        assert_eq!(names.len(), Shape::ALL.len());
    }
}
