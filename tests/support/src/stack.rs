//! What a program of some stack does under the supervisor: seven facts, measured, and a row of a
//! table about them.
//!
//! [`Stack::measure`] starts the real program four times, demands what every program must do, and
//! writes down what each one does in its own way, into `target/stacks/`, where `scripts/stacks`
//! collects it. A program that can announce closes is started a fifth time, to prove it.

use crate::load::{Failure, Plan, Report, run, start};
use crate::wait::LONG;
use crate::{Address, Server, Setup, http, ready_after, skipped, tool, wait_until};
use nix::sys::signal::Signal::{SIGHUP, SIGSTOP, SIGTERM};
use nix::sys::signal::killpg;
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long each program is told to take before it serves.
const DELAY: Duration = Duration::from_millis(500);
/// Clients at once.
const CLIENTS: usize = 8;
/// Clients that keep their connections: fewer than the threads of programs that need one for each.
const KEEPING_CLIENTS: usize = 4;
/// Workers of each server.
const WORKERS: usize = 2;
/// Reloads under load.
const RELOADS: u64 = 3;

/// The tool's path, or a visible note that the test was skipped.
pub fn needs(test: &str, name: &str) -> Option<OsString> {
    let found = tool(name);
    if found.is_none() {
        skipped(
            test,
            &format!(
                "{name} is not installed (scripts/peers or `scripts/peers stacks` installs it)"
            ),
        );
    }
    found.map(PathBuf::into_os_string)
}

/// A program and its arguments.
pub fn words<const N: usize>(program: OsString, arguments: [&str; N]) -> Vec<OsString> {
    std::iter::once(program)
        .chain(arguments.map(OsString::from))
        .collect()
}

/// Compiles one of the programs into `target/stacks`.
///
/// # Panics
/// When that fails.
pub fn compiled(mut compiler: Command, output: &str, source: &str) -> OsString {
    let directory = crate::root().join("target/stacks");
    std::fs::create_dir_all(&directory).expect("target/ can be written");
    let built = directory.join(output);
    let status = compiler
        .arg("-o")
        .arg(&built)
        .arg(crate::program(source))
        .status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "cannot compile {source}: {status:?}"
    );
    built.into_os_string()
}

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

/// What becomes of kept-alive connections when a worker is asked to exit.
#[derive(Debug, Clone)]
enum KeptAlive {
    /// Idle ones are closed; a request that crosses the close is lost.
    Closed,
    /// As `Closed`. But with `LINGER=SECONDS`, and with these options in place of the others, the
    /// program announces each close for that long first, and nothing is lost.
    ClosedUnlessAsked(Vec<OsString>),
    /// Each close is announced, so nothing is lost.
    Announced,
}

/// A program of some stack.
#[derive(Debug)]
pub struct Stack {
    name: &'static str,
    binary: &'static str,
    program: Vec<OsString>,
    arguments: Vec<OsString>,
    variables: Vec<(&'static str, OsString)>,
    body: &'static str,
    slow: &'static str,
    block: Option<&'static str>,
    speaks: Speaks,
    drops: Option<&'static str>,
    kept_alive: KeptAlive,
    in_flight: Option<PathBuf>,
    front: Option<Address>,
}

impl Stack {
    /// A stack whose program answers `body` at `/`, a second later at `/slow`, and never, nor
    /// anything else, after `/block`.
    pub fn new(name: &'static str, binary: &'static str, body: &'static str) -> Self {
        let (program, arguments) = (Vec::new(), Vec::new());
        let (slow, block) = ("/slow", Some("/block"));
        Self {
            name,
            binary,
            program,
            arguments,
            variables: Vec::new(),
            body,
            slow,
            block,
            speaks: Speaks::Nothing,
            drops: None,
            kept_alive: KeptAlive::Closed,
            in_flight: None,
            front: None,
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

    /// No handler can block the whole program: SIGSTOP does.
    #[must_use]
    pub fn never_blocks(mut self) -> Self {
        self.block = None;
        self
    }

    /// Another program writes this file while it answers slowly, and the program passes on what it
    /// answers.
    #[must_use]
    pub fn in_flight(mut self, file: PathBuf) -> Self {
        self.in_flight = Some(file);
        self
    }

    /// Clients connect there, to a server in front of it.
    #[must_use]
    pub fn behind(mut self, front: Address) -> Self {
        self.front = Some(front);
        self
    }

    fn address(&self, server: &Server) -> Address {
        self.front.clone().unwrap_or_else(|| server.address())
    }

    /// A variable that it needs.
    #[must_use]
    pub fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// Other paths than `/slow` and `/block`.
    #[must_use]
    pub fn paths(mut self, slow: &'static str, block: &'static str) -> Self {
        (self.slow, self.block) = (slow, Some(block));
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

    /// It announces each close of a kept-alive connection, so that a reload loses no request.
    #[must_use]
    pub fn announces_closes(mut self) -> Self {
        self.kept_alive = KeptAlive::Announced;
        self
    }

    /// With `LINGER=SECONDS` in its environment, and with these options of the supervisor in place
    /// of the others, it announces closes for that long after it was asked to exit, so that a
    /// reload loses no request.
    #[must_use]
    pub fn announces_closes_with<T: Into<OsString>>(
        mut self,
        words: impl IntoIterator<Item = T>,
    ) -> Self {
        self.kept_alive = KeptAlive::ClosedUnlessAsked(words.into_iter().map(Into::into).collect());
        self
    }

    fn setup(&self, ready: &str) -> Setup {
        self.setup_with(ready, &self.arguments)
    }

    fn setup_with(&self, ready: &str, options: &[OsString]) -> Setup {
        let setup = Server::setup(self.binary)
            .workers(WORKERS)
            .args(["--min-ready", "100ms"]);
        let setup = setup
            .args(options.iter().cloned())
            .program(self.program.iter().cloned());
        let in_flight = setup.path(IN_FLIGHT);
        let setup = setup.env("IN_FLIGHT", in_flight);
        let setup = self
            .variables
            .iter()
            .fold(setup, |setup, (name, value)| setup.env(name, value));
        if self.speaks == Speaks::Channel {
            setup
        } else {
            setup.args(["--ready", ready])
        }
    }

    /// Measures the seven facts and writes them down.
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
        let (refused, mut kept) = self.refuses_and_keeps(None);
        if let KeptAlive::ClosedUnlessAsked(options) = &self.kept_alive {
            let (_, mended) = self.refuses_and_keeps(Some(options));
            kept = format!("{kept}; if it announces closes, {mended}");
        }
        let row = format!(
            "| {} | {serves} | {ready} | {reloads} | {kept} | {refused} | {stops} | {hangs} |",
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
        Plan::fresh(&self.address(server), CLIENTS).http("/", Some(self.body))
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

    /// What happens at a reload of a program that cannot start, and what a good reload loses of
    /// requests on kept-alive connections. With options, the program announces closes and must lose
    /// nothing.
    fn refuses_and_keeps(&self, announcing: Option<&[OsString]>) -> (String, String) {
        let setup = self.setup_with("listen", announcing.unwrap_or(&self.arguments));
        let setup = if announcing.is_some() {
            setup.env("LINGER", LINGER.to_string())
        } else {
            setup
        };
        let setup = setup
            .args(["--start-timeout", "10s", "--graceful-timeout", "20s"])
            .patient();
        let broken = setup.path(BROKEN);
        let setup = setup.env("BROKEN", broken).config("");
        let mut server = setup.start();
        let refused = self.refuses(&server);
        let load = start(
            Plan::kept_alive(&self.address(&server), KEEPING_CLIENTS)
                .http("/", Some(self.body))
                .timeout(LONG),
        );
        load.wait_for_more(100);
        server.reload();
        load.wait_for_more(20);
        let report = load.finish();
        let flawless = announcing.is_some() || matches!(self.kept_alive, KeptAlive::Announced);
        (refused, self.judge_kept(&report, flawless))
    }

    /// A reload is refused when the program cannot start, and the old workers serve on.
    fn refuses(&self, server: &Server) -> String {
        let (before, generation) = (server.ready(), server.generation());
        let load = start(self.plan(server));
        load.wait_for_more(20);
        // A service of our own is the supervisor's program, so its configuration is all there is.
        let spoiled = if self.speaks == Speaks::Channel {
            "config.toml"
        } else {
            BROKEN
        };
        server.file(spoiled, "broken = true\n");
        let asked = Instant::now();
        server.signal(SIGHUP);
        let line = server.wait_for_log("reload failed");
        let after = asked.elapsed();
        wait_until("the old state", LONG, || server.is_settled());
        assert_eq!(
            (server.ready(), server.generation()),
            (before, generation),
            "after `{line}`"
        );
        load.wait_for_more(20);
        load.finish().assert_flawless();
        if spoiled == BROKEN {
            fs::remove_file(server.path(BROKEN)).expect("it was written");
        } else {
            server.file(spoiled, "");
        }
        let why = if line.contains("did not get ready") {
            "it did not get ready"
        } else if let Some((_, status)) = line.split_once("exited with status ") {
            let digits = status.chars().take_while(char::is_ascii_digit);
            &format!("status {}", digits.collect::<String>())
        } else {
            assert!(self.speaks == Speaks::Channel, "refused otherwise: {line}");
            "its configuration"
        };
        format!("refused after {}: {why}", seconds(after))
    }

    fn judge_kept(&self, report: &Report, flawless: bool) -> String {
        let (requests, failed) = (report.requests, report.failed());
        if flawless {
            report.assert_flawless();
        }
        // A client without think time loses one request at most to each worker that is stopped.
        let most = (KEEPING_CLIENTS * WORKERS) as u64;
        let its_own = if self.drops.is_some() {
            report.count(Failure::EofEarly)
                + report.count(Failure::ReadReset)
                + report.count(Failure::WriteReset)
        } else {
            0
        };
        assert!(
            failed == report.count(Failure::Unanswered) + its_own && failed <= most,
            "{report}"
        );
        if report.connections >= report.answered {
            return "keeps none alive".to_owned();
        }
        format!("{requests} requests, {failed} lost")
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
        let address = self.address(&server);
        let slow = self.slow;
        let request = std::thread::spawn(move || http::get(&address, slow));
        let in_flight = self
            .in_flight
            .clone()
            .unwrap_or_else(|| server.path(IN_FLIGHT));
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
        if let Some(path) = self.block {
            victim
                .write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes())
                .expect("sent");
        } else {
            // With its children, if it has some: it leads a process group.
            let group = i32::try_from(before[0].process.0).expect("a process id");
            killpg(Pid::from_raw(group), SIGSTOP).expect("it runs");
        }
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
        let stopped = if self.block.is_none() {
            " (of SIGSTOP)"
        } else {
            ""
        };
        format!(
            "by {how} after {}{stopped}",
            rest.split(';').next().unwrap_or(rest).replace('s', " s")
        )
    }
}

/// For how many seconds a program is told to announce closes.
const LINGER: u32 = 2;
/// A file whose presence makes a program fail at its start. (HAProxy reads only such names.)
const BROKEN: &str = "broken.cfg";
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
