//! Four workers under load, of which the one in slot 0 becomes a hostile worker when told to.
#![allow(dead_code, reason = "not every test file uses all of it")]

use nix::sys::signal::Signal;
use std::time::Instant;
use testkit::load::{Load, Plan, Report, start};
use testkit::process::Process;
use testkit::{LONG, Server, Setup, wait_for, wait_until};

/// Resident memory that a supervisor may gain by whatever a hostile worker does, in KiB.
const GROWTH: u64 = 1024;
/// The share of a CPU that the supervisor may take while it is asked for its status all the time.
const SHARE: f64 = 0.5;

pub(crate) struct Stage {
    pub(crate) server: Server,
    load: Option<Load>,
    descriptors: usize,
    resident: u64,
    good: Vec<Process>,
    first: Process,
    began: (Instant, u64),
}

impl Stage {
    pub(crate) fn new(args: &[&str]) -> Self {
        let setup = Server::setup(env!("CARGO_BIN_EXE_hostile")).args(args.iter().copied());
        Self::of(setup)
    }

    /// Starts it, and 8 clients.
    pub(crate) fn of(setup: Setup) -> Self {
        let file = setup.path("hostile");
        let setup = setup
            .workers(4)
            .args(["--min-ready", "0s"])
            .env("HOSTILE", file);
        let server = setup.start();
        let load = start(Plan::fresh(&server.address(), 8));
        load.wait_for_more(50);
        let mut workers = server.ready();
        let first = workers.remove(0);
        Self {
            descriptors: settled_descriptors(server.process()),
            resident: server.process().resident_kib(),
            began: (Instant::now(), server.process().cpu_ticks()),
            good: workers,
            load: Some(load),
            first,
            server,
        }
    }

    pub(crate) fn load(&self) -> &Load {
        self.load.as_ref().expect("it runs until the end")
    }

    /// The supervisor has no more than before; a question about its status has one for a moment.
    pub(crate) fn assert_descriptors(&self) {
        wait_until("no more descriptors than before", LONG, || {
            self.server.process().descriptors() <= self.descriptors
        });
    }

    /// The workers in slots 1 to 3.
    pub(crate) fn siblings(&self) -> &[Process] {
        &self.good
    }

    /// The worker in slot 0 leaves; its successor is a hostile worker.
    pub(crate) fn enter(&mut self, kind: &str) {
        self.server.file("hostile", kind);
        self.first.signal(Signal::SIGTERM);
    }

    /// Successors from now on are good.
    pub(crate) fn send_no_more(&self) {
        let _ = std::fs::remove_file(self.server.path("hostile"));
    }

    /// All hostile workers so far, dead or alive.
    fn hostile_workers(&self) -> Vec<Process> {
        let text = std::fs::read_to_string(self.server.path("hostile.pids")).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.parse().ok())
            .map(Process)
            .collect()
    }

    /// The hostile worker's process, once there is one that counts as ready.
    pub(crate) fn wait_for_hostile_worker(&self) -> Process {
        wait_for("a hostile worker", LONG, || {
            let hostile = self.hostile_workers();
            let workers = self.server.workers();
            let mut there = workers
                .iter()
                .filter(|worker| worker.slot == 0 && worker.state != "starting");
            there
                .find(|worker| hostile.contains(&worker.process))
                .map(|worker| worker.process)
        })
    }

    pub(crate) fn wait_for_lines(&self, text: &str, count: usize) {
        wait_until(&format!("{count} lines with {text:?}"), LONG, || {
            let lines = self.server.log().lines();
            lines
                .iter()
                .filter(|line| line.contains("slot 0") && line.contains(text))
                .count()
                >= count
        });
    }

    /// Waits until this many workers have died of this cause.
    pub(crate) fn wait_for_deaths(&self, cause: &str, count: u64) {
        wait_until(&format!("{count} deaths by {cause}"), LONG, || {
            self.server.status()["deaths"][cause].as_u64() >= Some(count)
        });
    }

    /// The control socket answers.
    pub(crate) fn assert_answers(&self) {
        let asked = Instant::now();
        self.server.status();
        assert!(
            asked.elapsed() < LONG / 2,
            "status took {:?}",
            asked.elapsed()
        );
    }

    /// No more hostile workers: the server is healthy again.
    pub(crate) fn leave(&mut self) {
        self.send_no_more();
        let hostile = self.hostile_workers();
        for worker in self
            .server
            .workers()
            .into_iter()
            .filter(|one| hostile.contains(&one.process))
        {
            // One that was tolerated.
            worker.process.signal(Signal::SIGKILL);
        }
        wait_until("the last hostile worker's end", LONG, || {
            !self
                .server
                .workers()
                .iter()
                .any(|one| hostile.contains(&one.process))
        });
        self.server.wait_until_settled(LONG);
    }

    pub(crate) fn end_load(&mut self) {
        self.end_load_whatever().assert_flawless();
    }

    /// Ends the load, and gives what came of it.
    pub(crate) fn end_load_whatever(&mut self) -> Report {
        self.load.take().expect("it runs until the end").finish()
    }

    /// No request was refused or lost, and the supervisor is what it was.
    pub(crate) fn assert_unharmed(&mut self) {
        let (began, ticks) = self.began;
        let process = self.server.process();
        let ticks = u32::try_from(process.cpu_ticks() - ticks).expect("a few ticks");
        let spent = f64::from(ticks) / 100.0;
        let span = began.elapsed().as_secs_f64();
        self.end_load();
        let now = self.server.ready();
        if self.server.generation() == 1 {
            assert!(
                self.good.iter().all(|worker| now.contains(worker)),
                "a sibling was replaced"
            );
        }
        self.assert_descriptors();
        let grown = process.resident_kib().saturating_sub(self.resident);
        println!(
            "  the supervisor spent {spent:.2} s of CPU in {span:.2} s and grew by {grown} KiB"
        );
        assert!(
            spent < 0.2 + span * SHARE,
            "{spent:.2} s of CPU in {span:.2} s"
        );
        assert!(grown < GROWTH, "the supervisor has grown by {grown} KiB");
    }
}

/// How many it has while no status is being read.
fn settled_descriptors(process: Process) -> usize {
    let look = || {
        std::thread::sleep(std::time::Duration::from_millis(5));
        process.descriptors()
    };
    (0..10).map(|_| look()).min().expect("ten looks")
}
