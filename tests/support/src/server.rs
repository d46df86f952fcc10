//! The real binary, started in a directory of its own, watched from outside, and gone without a
//! trace at the end.

use crate::http::{self, Response};
use crate::log::Log;
use crate::process::{self, Process};
use crate::wait::{LONG, wait_for, wait_until};
use crate::{Address, address};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Every process that a server starts inherits this variable; by it, leftovers are found.
const MARK: &str = "TESTKIT_SERVER";

/// The control socket in a server's own directory, which is also where it is by default.
const CONTROL: &str = "prefork.sock";

/// The name of a program's copy in the server's own directory.
const COPY: &str = "program";

/// Variables that would lead a server under test astray.
const INHERITED: [&str; 7] = [
    "RUNTIME_DIRECTORY",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "JOURNAL_STREAM",
];

/// How a server is to be started.
#[derive(Debug)]
pub struct Setup {
    binary: PathBuf,
    client: PathBuf,
    directory: TempDir,
    arguments: Vec<OsString>,
    program: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    wrapper: Vec<OsString>,
    input: Option<OwnedFd>,
    bound: bool,
    control: bool,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pid: Process,
    mark: String,
    binary: PathBuf,
    client: PathBuf,
    directory: TempDir,
    log: Log,
    exit: Option<ExitStatus>,
    survivors_allowed: bool,
}

/// One worker, as the status tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// The slot it fills.
    pub slot: u64,
    /// Its id.
    pub id: u64,
    /// Its process.
    pub process: Process,
    /// The generation it belongs to.
    pub generation: u64,
    /// `starting`, `ready`, `draining`, `aborting` or `killed`.
    pub state: String,
    /// Requests in its hands, as it says itself; a program that is no Rust worker says nothing.
    pub busy: u64,
}

impl Setup {
    /// Adds words to the command line.
    #[must_use]
    pub fn args<T: Into<OsString>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
        self.bound |= words.iter().any(|word| word == "--bind");
        self.arguments.extend(words);
        self
    }

    /// `--workers N`.
    #[must_use]
    pub fn workers(self, count: usize) -> Self {
        self.args(["--workers".to_owned(), count.to_string()])
    }

    /// `--bind ADDRESS`. Without any, and without [`Setup::no_bind`], it is `127.0.0.1:0`.
    #[must_use]
    pub fn bind(self, address: &str) -> Self {
        self.args(["--bind", address])
    }

    /// `--bind unix:PATH` with a path in the server's directory.
    #[must_use]
    pub fn bind_unix(self) -> Self {
        let address = format!("unix:{}", self.path("http.sock").display());
        self.bind(&address)
    }

    /// No `--bind` at all: the configuration or the environment has the addresses.
    #[must_use]
    pub fn no_bind(mut self) -> Self {
        self.bound = true;
        self
    }

    /// Writes `config.toml` and passes it by `--config`.
    #[must_use]
    pub fn config(self, text: &str) -> Self {
        self.file("config.toml", text);
        let path = self.path("config.toml");
        self.args([OsString::from("--config"), path.into()])
    }

    /// An external program and its arguments: `-- PROGRAM ARGS`.
    #[must_use]
    pub fn program<T: Into<OsString>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.program = words.into_iter().map(Into::into).collect();
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Gives clients that stay connected five seconds instead of half a one when their worker
    /// drains: one that is not scheduled for so long may ask just as its idle connection ends,
    /// which is HTTP/1.1's own race (RFC 9112, section 9.5).
    #[must_use]
    pub fn patient(self) -> Self {
        self.env("SUPERVISOR_DRAIN_IDLE", "5s")
    }

    /// Starts it through another program, which must exec its last arguments: `sh -c 'exec "$@"'
    /// sh`.
    #[must_use]
    pub fn wrapped<T: Into<OsString>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.wrapper = words.into_iter().map(Into::into).collect();
        self
    }

    /// Gives it a descriptor as standard input; a wrapper can move it elsewhere.
    #[must_use]
    pub fn input(mut self, descriptor: impl Into<OwnedFd>) -> Self {
        self.input = Some(descriptor.into());
        self
    }

    /// No `--control`: the control socket is where it is by default.
    #[must_use]
    pub fn no_control(mut self) -> Self {
        self.control = false;
        self
    }

    /// Starts a copy of the program, in the server's own directory, where [`Server::replace`] can
    /// put another one.
    ///
    /// # Panics
    /// When it cannot be copied.
    #[must_use]
    pub fn copied(mut self) -> Self {
        let copy = self.path(COPY);
        copy_program(&self.binary, &copy);
        self.binary = copy;
        self
    }

    /// A path in the server's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file into the server's own directory.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn file(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("a file in a directory of our own");
    }

    fn command(&self, mark: &str) -> Command {
        let mut words = self
            .wrapper
            .iter()
            .map(OsString::as_os_str)
            .chain([self.binary.as_os_str()]);
        let mut command = Command::new(words.next().expect("there is a binary at least"));
        command.args(words);
        if !self.bound {
            command.args(["--bind", "127.0.0.1:0"]);
        }
        if self.control {
            command.arg("--control").arg(self.path(CONTROL));
        }
        command.args(&self.arguments);
        if !self.program.is_empty() {
            command.arg("--").args(&self.program);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SUPERVISOR_") {
                command.env_remove(name);
            }
        }
        for name in INHERITED {
            command.env_remove(name);
        }
        command
            .env("XDG_RUNTIME_DIR", self.directory.path())
            .env(MARK, mark);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }

    /// Starts it and waits for nothing.
    ///
    /// # Panics
    /// When the binary cannot be started.
    #[track_caller]
    pub fn spawn(mut self) -> Server {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let mark = format!(
            "{}.{}",
            std::process::id(),
            STARTED.fetch_add(1, Ordering::Relaxed)
        );
        let (reader, writer) = std::io::pipe().expect("a pipe for the log");
        let mut command = self.command(&mark);
        if let Some(input) = self.input.take() {
            command.stdin(input);
        }
        command
            .stdout(writer.try_clone().expect("a second end for stdout"))
            .stderr(writer);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.binary.display()));
        // The command holds the pipe's writing end; the log must see its end when the server is
        // gone.
        drop(command);
        Server {
            pid: Process(child.id()),
            child,
            mark,
            binary: self.binary,
            client: self.client,
            directory: self.directory,
            log: Log::read(reader),
            exit: None,
            survivors_allowed: false,
        }
    }

    /// Starts it and waits until every slot has a ready worker.
    ///
    /// # Panics
    /// When it exits instead, or does not serve in time.
    #[track_caller]
    pub fn start(self) -> Server {
        let mut server = self.spawn();
        server.wait_until_settled(LONG);
        server
    }

    /// Runs it to its end, as for a start that must fail.
    ///
    /// # Panics
    /// When it is still there after half a minute.
    #[track_caller]
    pub fn run(self) -> (ExitStatus, Vec<String>) {
        let mut server = self.spawn();
        let status = server.wait_exit(LONG);
        (status, server.log.all(Duration::from_secs(5)))
    }
}

impl Server {
    /// Begins a setup for this binary, in a new directory.
    ///
    /// # Panics
    /// When there can be no directory.
    pub fn setup(binary: impl Into<PathBuf>) -> Setup {
        let binary = binary.into();
        Setup {
            client: binary.clone(),
            binary,
            directory: tempfile::tempdir().expect("a temporary directory"),
            arguments: Vec::new(),
            program: Vec::new(),
            variables: Vec::new(),
            wrapper: Vec::new(),
            input: None,
            bound: false,
            control: true,
        }
    }

    /// The supervisor's process.
    pub fn process(&self) -> Process {
        self.pid
    }

    /// What was logged.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Waits for a line of the log.
    ///
    /// # Panics
    /// When it does not come in time.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) -> String {
        self.log.wait_for(text, LONG)
    }

    /// A path in the server's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file into the server's own directory, replacing it in one step for its readers.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn file(&self, name: &str, text: &str) {
        let new = self.path(&format!(".{name}.new"));
        std::fs::write(&new, text).expect("a file in a directory of our own");
        std::fs::rename(&new, self.path(name)).expect("a file in a directory of our own");
    }

    /// Puts another program in the place of the [copy](Setup::copied) that was started, as an
    /// installer does.
    ///
    /// # Panics
    /// When it cannot be copied.
    pub fn replace(&self, program: &Path) {
        let new = self.path(".program.new");
        copy_program(program, &new);
        std::fs::rename(&new, &self.binary).expect("a file in a directory of our own");
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.path(CONTROL)
    }

    /// Runs `supervisor WORDS --control SOCKET`.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn command(&self, words: &[&str]) -> Output {
        let mut command = Command::new(&self.client);
        command
            .args(words)
            .arg("--control")
            .arg(self.control())
            .stdin(Stdio::null());
        command.output().expect("the binary can be run")
    }

    /// What `supervisor status --json` tells, or `None` while it tells nothing.
    pub fn try_status(&self) -> Option<Value> {
        let output = self.command(&["status", "--json"]);
        if !output.status.success() {
            return None;
        }
        serde_json::from_slice(&output.stdout).ok()
    }

    /// What `supervisor status --json` tells.
    ///
    /// # Panics
    /// When it tells nothing.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.try_status().unwrap_or_else(|| {
            let output = self.command(&["status", "--json"]);
            panic!(
                "no status: {output:?}\nlog:\n  {}",
                self.log.lines().join("\n  ")
            )
        })
    }

    /// The accepted generation.
    ///
    /// # Panics
    /// When it has no status.
    #[track_caller]
    pub fn generation(&self) -> u64 {
        self.status()["generation"]
            .as_u64()
            .expect("status has a generation")
    }

    /// `starting`, `serving`, `degraded`, `draining` or `stopping`.
    ///
    /// # Panics
    /// When it has no status.
    #[track_caller]
    pub fn state(&self) -> String {
        self.status()["state"]
            .as_str()
            .expect("status has a state")
            .to_owned()
    }

    /// All workers, in the order of their slots.
    #[track_caller]
    pub fn workers(&self) -> Vec<Worker> {
        workers_of(&self.status())
    }

    /// The processes of all ready workers, in the order of their slots.
    #[track_caller]
    pub fn ready(&self) -> Vec<Process> {
        self.workers()
            .iter()
            .filter(|worker| worker.state == "ready")
            .map(|worker| worker.process)
            .collect()
    }

    /// Requests in flight in all workers, as they report themselves.
    #[track_caller]
    pub fn busy(&self) -> u64 {
        self.workers().iter().map(|worker| worker.busy).sum()
    }

    /// Where it listens, in the order of the status.
    ///
    /// # Panics
    /// When it has no status.
    #[track_caller]
    pub fn addresses(&self) -> Vec<Address> {
        let status = self.status();
        let listeners = status["listeners"]
            .as_array()
            .expect("status has listeners");
        let address = |value: &Value| {
            value
                .as_str()
                .expect("a listener is a text")
                .parse()
                .expect("an address")
        };
        listeners.iter().map(address).collect()
    }

    /// The first address it listens at.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn address(&self) -> Address {
        self.addresses()
            .into_iter()
            .next()
            .expect("it listens somewhere")
    }

    /// Asks the first address for `path` and demands an answer.
    ///
    /// # Panics
    /// When the request fails.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        let address = self.address();
        http::get(&address, path).unwrap_or_else(|error| panic!("GET {path} at {address}: {error}"))
    }

    /// Connects to the first address.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn connect(&self) -> Box<dyn address::Stream> {
        self.address().connect().expect("it accepts connections")
    }

    /// Sends the supervisor a signal.
    pub fn signal(&self, signal: Signal) {
        self.pid.signal(signal);
    }

    /// Whether every slot has exactly one worker, ready and of the accepted generation, and no
    /// reload is under way.
    pub fn is_settled(&self) -> bool {
        self.try_status().is_some_and(|status| settled(&status))
    }

    /// Waits until it is settled.
    ///
    /// # Panics
    /// When it exits instead, or is not settled within `limit`.
    #[track_caller]
    pub fn wait_until_settled(&mut self, limit: Duration) {
        let end = std::time::Instant::now() + limit;
        wait_until("settled", limit * 2, || {
            if let Some(status) = self.try_exit() {
                panic!(
                    "the server has exited, {status}:\n  {}",
                    self.log.lines().join("\n  ")
                );
            }
            let settled = self.is_settled();
            if !settled && std::time::Instant::now() > end {
                let status = self.try_status();
                panic!(
                    "not settled within {limit:?}: {status:#?}\nlog:\n  {}",
                    self.log.lines().join("\n  ")
                );
            }
            settled
        });
    }

    /// Reloads by SIGHUP and waits until the new generation has settled.
    ///
    /// # Panics
    /// When it does not in time.
    #[track_caller]
    pub fn reload(&mut self) {
        let before = self.generation();
        self.signal(Signal::SIGHUP);
        self.wait_for_generation_after(before);
    }

    /// Waits until a generation after this one has settled.
    ///
    /// # Panics
    /// When it does not in time.
    #[track_caller]
    pub fn wait_for_generation_after(&mut self, before: u64) {
        wait_until("a new generation", LONG, || {
            self.try_status()
                .is_some_and(|status| status["generation"].as_u64().unwrap_or(0) > before)
        });
        self.wait_until_settled(LONG);
    }

    /// Waits until the ready worker of this slot is another process than `old`.
    ///
    /// # Panics
    /// When it does not come in time.
    #[track_caller]
    pub fn wait_for_replacement(&self, slot: u64, old: Process) -> Worker {
        wait_for(
            &format!("a replacement of {old:?} in slot {slot}"),
            LONG,
            || {
                let new = |worker: &Worker| {
                    worker.slot == slot && worker.state == "ready" && worker.process != old
                };
                workers_of(&self.try_status()?).into_iter().find(new)
            },
        )
    }

    /// Whether it has exited.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn try_exit(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().expect("it is our child");
        }
        self.exit
    }

    /// Waits until it has exited.
    ///
    /// # Panics
    /// When it has not within `limit`.
    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let end = std::time::Instant::now() + limit;
        wait_for("the server's exit", limit * 2, || {
            let exit = self.try_exit();
            assert!(
                exit.is_some() || std::time::Instant::now() <= end,
                "still there after {limit:?}:\n  {}",
                self.log.lines().join("\n  ")
            );
            exit
        })
    }

    /// Every process that this server started and that still runs, the supervisor itself not
    /// counted.
    pub fn descendants(&self) -> Vec<Process> {
        let mut found = process::with_variable(MARK, &self.mark);
        found.retain(|process| *process != self.pid);
        found
    }

    /// Does not complain about processes left behind, as after a supervisor that was killed with
    /// external programs.
    pub fn allow_survivors(&mut self) {
        self.survivors_allowed = true;
    }

    /// Its own directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// Waits until at least `count` workers are ready by the log, and returns how long after their
/// start each of them was, in the log's order.
///
/// # Panics
/// When there are fewer in time, or when a line is not as it should be.
#[track_caller]
pub fn ready_after(log: &Log, count: usize) -> Vec<Duration> {
    let time = |line: &str| {
        let (_, text) = line.split_once("is ready after ")?;
        let digits = text.trim_end_matches(char::is_alphabetic);
        let unit = match &text[digits.len()..] {
            "s" => 1.0,
            "ms" => 1e-3,
            unit => panic!("unit {unit} in {line}"),
        };
        Some(Duration::from_secs_f64(
            digits.parse::<f64>().expect("a number") * unit,
        ))
    };
    wait_for(&format!("{count} ready workers in the log"), LONG, || {
        let times: Vec<_> = log.lines().iter().filter_map(|line| time(line)).collect();
        (times.len() >= count).then_some(times)
    })
}

/// Copies a program. By another process: one that this process has open for writing cannot be
/// started while some other test forks, since the child has it open, too.
fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg(from)
        .arg(to)
        .status()
        .expect("cp can be run");
    assert!(
        status.success(),
        "cannot copy {} to {}",
        from.display(),
        to.display()
    );
}

/// Whether a status tells of a settled server.
fn settled(status: &Value) -> bool {
    let generation = status["generation"].as_u64();
    let Some(slots) = status["slots"].as_array() else {
        return false;
    };
    status["state"] == "serving"
        && status["reload"].is_null()
        && !slots.is_empty()
        && slots.iter().all(|slot| {
            let workers = slot["workers"].as_array().map_or(&[][..], Vec::as_slice);
            // One that is retired has had workers, and has none.
            let retired = slot["open"] == false && workers.is_empty();
            let ready =
                |one: &Value| one["state"] == "ready" && one["generation"].as_u64() == generation;
            retired || matches!(workers, [one] if ready(one))
        })
}

fn workers_of(status: &Value) -> Vec<Worker> {
    let slots = status["slots"].as_array().expect("status has slots");
    let number = |value: &Value, name: &str| {
        value[name]
            .as_u64()
            .unwrap_or_else(|| panic!("status has no number `{name}` in {value}"))
    };
    let of_slot = |slot: &Value| {
        let place = number(slot, "slot");
        let workers = slot["workers"]
            .as_array()
            .expect("a slot has workers")
            .clone();
        workers.into_iter().map(move |worker| Worker {
            slot: place,
            id: number(&worker, "worker"),
            process: Process(u32::try_from(number(&worker, "pid")).expect("a pid")),
            generation: number(&worker, "generation"),
            state: worker["state"].as_str().unwrap_or_default().to_owned(),
            busy: worker["scoreboard"]["busy"].as_u64().unwrap_or(0),
        })
    };
    slots.iter().flat_map(of_slot).collect()
}

impl Drop for Server {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        if failing {
            // Before the ending below adds its own lines.
            eprintln!(
                "--- log of the server under test\n  {}\n---",
                self.log.lines().join("\n  ")
            );
        }
        if self.try_exit().is_none() {
            // A test may have left it stopped.
            self.pid.signal(Signal::SIGCONT);
            self.pid.signal(Signal::SIGINT);
            let end = std::time::Instant::now() + Duration::from_secs(5);
            while self.try_exit().is_none() {
                if std::time::Instant::now() > end {
                    self.pid.signal(Signal::SIGKILL);
                    let _ = self.child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        // Workers may need a moment to notice; what is left after that is a leak.
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while !self.descendants().is_empty()
            && std::time::Instant::now() < end
            && !self.survivors_allowed
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = self.descendants();
        let names: Vec<_> = left
            .iter()
            .map(|process| (process.0, process.command_line()))
            .collect();
        for process in &left {
            process.signal(Signal::SIGKILL);
        }
        if !failing && !self.survivors_allowed {
            assert!(names.is_empty(), "processes were left behind: {names:?}");
        }
    }
}
