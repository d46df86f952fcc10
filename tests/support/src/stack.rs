//! What a program of some stack does under the supervisor: five facts, measured, and a row of a
//! table about them.
//!
//! [`Stack::measure`] starts the real program three times, demands what every program must do, and
//! writes down what each one does in its own way, into `target/stacks/`, where `scripts/stacks`
//! collects it.

use crate::load::{Failure, Plan, Report, run, start};
use crate::wait::LONG;
use crate::{Server, Setup, http, ready_after, wait_until};
use nix::sys::signal::Signal::SIGTERM;
use std::ffi::OsString;
use std::fs;
use std::time::{Duration, Instant};

/// How long each program is told to take before it serves.
const DELAY: Duration = Duration::from_millis(500);
/// Clients at once.
const CLIENTS: usize = 8;
/// Reloads under load.
const RELOADS: u64 = 3;

/// What a program does by itself when it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// It says `READY=1` when it serves.
    InTime,
    /// It says `READY=1` before it serves.
    Early,
    /// Nothing: it counts as ready after a while.
    Nothing,
    /// It links the `prefork` crate, and uses its channel.
    Channel,
}

/// A program of some stack.
#[derive(Debug)]
pub struct Stack {
    name: &'static str,
    binary: &'static str,
    program: Vec<OsString>,
    arguments: Vec<OsString>,
    body: &'static str,
    slow: &'static str,
    block: &'static str,
    speaks: Speaks,
    drops: Option<&'static str>,
}

impl Stack {
    /// A stack whose program answers `body` at `/`, a second later at `/slow`, and never, nor
    /// anything else, after `/block`.
    pub fn new(name: &'static str, binary: &'static str, body: &'static str) -> Self {
        let (program, arguments) = (Vec::new(), Vec::new());
        let (slow, block) = ("/slow", "/block");
        Self {
            name,
            binary,
            program,
            arguments,
            body,
            slow,
            block,
            speaks: Speaks::Nothing,
            drops: None,
        }
    }

    /// The program and its arguments.
    #[must_use]
    pub fn program<T: Into<OsString>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.program = words.into_iter().map(Into::into).collect();
        self
    }

    /// Options of the supervisor that it needs.
    #[must_use]
    pub fn options<T: Into<OsString>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.arguments = words.into_iter().map(Into::into).collect();
        self
    }

    /// Other paths than `/slow` and `/block`.
    #[must_use]
    pub fn paths(mut self, slow: &'static str, block: &'static str) -> Self {
        (self.slow, self.block) = (slow, block);
        self
    }

    /// What it says when it is ready.
    #[must_use]
    pub fn speaks(mut self, speaks: Speaks) -> Self {
        self.speaks = speaks;
        self
    }

    /// At a graceful stop, it drops connections that it has accepted, in this way. Of those, each
    /// client may lose one a reload.
    #[must_use]
    pub fn drops(mut self, how: &'static str) -> Self {
        self.drops = Some(how);
        self
    }

    fn setup(&self, ready: &str) -> Setup {
        let setup = Server::setup(self.binary)
            .workers(2)
            .args(["--min-ready", "100ms"]);
        let setup = setup
            .args(self.arguments.iter().cloned())
            .program(self.program.iter().cloned());
        let in_flight = setup.path(IN_FLIGHT);
        let setup = setup.env("IN_FLIGHT", in_flight);
        if self.speaks == Speaks::Channel {
            setup
        } else {
            setup.args(["--ready", ready])
        }
    }

    /// Measures the five facts and writes them down.
    ///
    /// # Panics
    /// When the program does not do what every program must.
    #[track_caller]
    pub fn measure(&self) {
        let (serves, own) = self.serves();
        let (seen, reloads, stops) = self.reloads_and_stops();
        let ready = match seen {
            Some(seen) => format!("{own}; seen after {}", seconds(seen)),
            None => own,
        };
        let hangs = self.hangs();
        let row = format!(
            "| {} | {serves} | {ready} | {reloads} | {stops} | {hangs} |",
            self.name
        );
        println!("STACK {row}");
        let directory = crate::root().join("target/stacks");
        fs::create_dir_all(&directory).expect("target/ can be written");
        let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == ' ';
        let file = self
            .name
            .chars()
            .filter(|letter| plain(*letter))
            .collect::<String>()
            .replace(' ', "-");
        fs::write(directory.join(file + ".row"), row + "\n").expect("target/ can be written");
    }

    fn plan(&self, server: &Server) -> Plan {
        Plan::fresh(&server.address(), CLIENTS).http("/", Some(self.body))
    }

    /// Serves, and when it is ready by its own means.
    fn serves(&self) -> (String, String) {
        let setup = self.setup(if self.speaks == Speaks::InTime {
            "notify"
        } else {
            "auto"
        });
        // Far too early, or a slow machine's own delay would look like patience.
        let delay = if self.speaks == Speaks::Early {
            6 * DELAY
        } else {
            DELAY
        };
        let server = setup
            .env("START_DELAY", delay.as_secs_f64().to_string())
            .start();
        let report = run(&self.plan(&server).count(200));
        report.assert_flawless();
        let after = earliest(&server);
        let own = match self.speaks {
            Speaks::InTime => {
                assert!(
                    after >= DELAY,
                    "READY=1 {after:?} after a start that takes {DELAY:?}"
                );
                format!("READY=1 after {}", seconds(after))
            }
            Speaks::Early => {
                assert!(after < delay, "it has learned to speak in time: {after:?}");
                format!(
                    "READY=1 too early, after {} of {}",
                    seconds(after),
                    seconds(delay)
                )
            }
            Speaks::Nothing => {
                assert!(after >= Duration::from_secs(1), "{after:?}");
                "says nothing".to_owned()
            }
            Speaks::Channel => format!("by its channel after {}", seconds(after)),
        };
        (format!("{} requests", report.answered), own)
    }

    /// When it is seen to be ready, what is lost in reloads, and how it stops.
    fn reloads_and_stops(&self) -> (Option<Duration>, String, String) {
        let setup = self.setup("listen").args(["--graceful-timeout", "20s"]);
        let mut server = setup
            .env("START_DELAY", DELAY.as_secs_f64().to_string())
            .start();
        let load = start(self.plan(&server));
        for _ in 0..RELOADS {
            load.wait_for_more(20);
            server.reload();
        }
        load.wait_for_more(20);
        let report = load.finish();
        let seen = (self.speaks != Speaks::Channel).then(|| earliest(&server));
        assert!(
            seen.is_none_or(|seen| seen >= DELAY),
            "seen {seen:?} after a start that takes {DELAY:?}"
        );
        let reloads = self.judge(&report);
        (seen, reloads, self.stops(server))
    }

    fn judge(&self, report: &Report) -> String {
        let requests = report.requests;
        let Some(how) = self.drops else {
            report.assert_flawless();
            return format!("{RELOADS} reloads, {requests} requests, 0 lost");
        };
        // What it had not accepted is its successor's, and must not be lost.
        let its_own = report.count(Failure::EofEarly)
            + report.count(Failure::ReadReset)
            + report.count(Failure::WriteReset);
        assert!(
            report.failed() == its_own && its_own <= RELOADS * CLIENTS as u64,
            "{report}"
        );
        let why = if its_own == 0 {
            String::new()
        } else {
            format!(": {how}")
        };
        format!("{RELOADS} reloads, {requests} requests, {its_own} lost{why}")
    }

    /// A request in flight is answered although the server was told to stop, and all workers leave
    /// in time.
    fn stops(&self, mut server: Server) -> String {
        let address = server.address();
        let slow = self.slow;
        let request = std::thread::spawn(move || http::get(&address, slow));
        let in_flight = server.path(IN_FLIGHT);
        wait_until("the request to be in flight", LONG, || match self.speaks {
            Speaks::Channel => server.busy() == 1,
            _ => in_flight.exists(),
        });
        let asked = Instant::now();
        server.signal(SIGTERM);
        let status = server.wait_exit(LONG);
        let gone = asked.elapsed();
        let response = request
            .join()
            .expect("no panic")
            .expect("the request in flight is answered");
        assert!(
            response.status == 200 && status.success(),
            "{response:?}, {status}"
        );
        assert_eq!(
            server.log().count("did not finish draining"),
            0,
            "it leaves by itself"
        );
        format!("answers, leaves after {}", seconds(gone))
    }

    /// A handler that blocks the whole program is noticed, and the program replaced.
    fn hangs(&self) -> String {
        let server = self.setup("listen").args(["--hang-timeout", "1s"]).start();
        let before = server.workers();
        let mut victim = server.connect();
        victim
            .write_all(format!("GET {} HTTP/1.1\r\nHost: test\r\n\r\n", self.block).as_bytes())
            .expect("sent");
        let load = start(self.plan(&server).timeout(2 * LONG));
        let line = server.wait_for_log("sending SIGABRT");
        let number = line
            .split_once("(slot ")
            .and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
        let slot: u64 = number.unwrap_or_else(|| panic!("no slot in {line}"));
        let old = before
            .iter()
            .find(|worker| worker.slot == slot)
            .expect("it was ready")
            .process;
        server.wait_for_replacement(slot, old);
        wait_until("the hung worker's end", LONG, || !old.runs());
        load.wait_for_more(20);
        load.finish();
        let how = if line.contains("missed its heartbeat") {
            "its heartbeat"
        } else {
            "its queue"
        };
        let (_, rest) = line.split_once(" for ").expect("it is said for how long");
        format!(
            "by {how} after {}",
            rest.split(';').next().unwrap_or(rest).replace('s', " s")
        )
    }
}

/// What a program writes while it answers slowly.
const IN_FLIGHT: &str = "in-flight";

/// When the first worker was ready, counted from its start.
fn earliest(server: &Server) -> Duration {
    ready_after(server.log(), 1)
        .into_iter()
        .min()
        .expect("a worker was ready")
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
