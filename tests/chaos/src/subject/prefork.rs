//! Our own server as the subject: the service of this crate under the supervisor that it is linked
//! with.

use super::{Asked, Broken, Offers, Setup, Subject, Verdict};
use crate::service::{SPOIL, Spoil};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use testkit::log::Log;
use testkit::process::Process;
use testkit::{Address, Server};

/// How long the outcome of anything may take. A worker may be stopped for five seconds meanwhile,
/// and the supervisor for two.
const OUTCOME: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(10);

/// The two builds, by the names of their binaries.
const BUILDS: [&str; 2] = ["subject", "subject-next"];

/// A running supervisor.
#[derive(Debug)]
pub struct Prefork {
    setup: Setup,
    /// Where its binary is, which an upgrade replaces.
    home: TempDir,
    directory: PathBuf,
    control: PathBuf,
    pid: Process,
    addresses: Vec<Address>,
    log: Log,
    /// The build that lies at the binary's path.
    build: Mutex<usize>,
    /// Held by every change of the configuration until the verdict is there.
    configuration: Mutex<()>,
    server: Mutex<Option<Server>>,
}

impl Prefork {
    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// When a file cannot be written or the binaries are missing.
    ///
    /// # Panics
    /// When it does not serve in time, with its log.
    pub fn start(setup: &Setup) -> Result<Self, String> {
        let home =
            tempfile::tempdir().map_err(|error| format!("cannot make a directory: {error}"))?;
        let binary = home.path().join("subject");
        install(&setup.binaries.join(BUILDS[0]), &binary)?;
        let start = Server::setup(&binary).no_bind();
        let directory = start.path("");
        let text = configuration(setup, &directory, "");
        let server = start
            .config(&text)
            .args(setup.words.iter().map(String::as_str))
            .start();
        Ok(Self {
            setup: setup.clone(),
            home,
            control: server.control(),
            pid: server.process(),
            addresses: server.addresses(),
            log: server.log().clone(),
            directory,
            build: Mutex::new(0),
            configuration: Mutex::new(()),
            server: Mutex::new(Some(server)),
        })
    }

    fn binary(&self) -> PathBuf {
        self.home.path().join("subject")
    }

    /// Asks on the control socket and waits for the verdict.
    fn ask(&self, request: &str) -> Result<Value, String> {
        let failed = |error: std::io::Error| format!("the control socket: {error}");
        let mut stream = UnixStream::connect(&self.control).map_err(failed)?;
        stream.set_read_timeout(Some(OUTCOME)).map_err(failed)?;
        stream
            .write_all(format!("{request}\n").as_bytes())
            .map_err(failed)?;
        for line in BufReader::new(stream).lines() {
            let answer: Value =
                serde_json::from_str(&line.map_err(failed)?).map_err(|error| error.to_string())?;
            if answer.get("ok").is_some() {
                return Ok(answer);
            }
        }
        Err("the control socket closed without a verdict".to_owned())
    }

    fn status(&self) -> Result<Value, String> {
        Ok(self.ask(r#"{"command":"status"}"#)?["status"].take())
    }

    /// Asks for the status until it gives an answer.
    fn wait<T>(&self, what: &str, mut fact: impl FnMut(&Value) -> Option<T>) -> Result<T, String> {
        let end = Instant::now() + OUTCOME;
        loop {
            let status = self.status();
            if let Some(found) = status.as_ref().ok().and_then(&mut fact) {
                return Ok(found);
            }
            if Instant::now() > end {
                let status = status.map_or_else(|error| error, |status| status.to_string());
                return Err(format!("waited {OUTCOME:?} in vain for {what}: {status}"));
            }
            std::thread::sleep(POLL);
        }
    }

    fn write(&self, extra: &str) -> Result<(), String> {
        let text = configuration(&self.setup, &self.directory, extra);
        self.write_text(&text)
    }

    fn write_text(&self, text: &str) -> Result<(), String> {
        let (new, file) = (
            self.directory.join(".config.new"),
            self.directory.join("config.toml"),
        );
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, file))
            .map_err(|e| e.to_string())
    }

    fn spoil(&self, how: Broken) -> Result<(), String> {
        match how {
            Broken::Syntax => self.write_text("workers = ["),
            Broken::UnknownKey => self.write("workerz = 3\n"),
            Broken::Missing => std::fs::remove_file(self.directory.join("config.toml"))
                .map_err(|error| error.to_string()),
            Broken::Address => {
                // Of TEST-NET-1, which no machine has.
                let text = configuration(&self.setup, &self.directory, "");
                self.write_text(&text.replacen("bind = [", "bind = [\"192.0.2.1:9\", ", 1))
            }
            Broken::Program(spoil) => {
                let limits = match spoil {
                    Spoil::NeverReady => "start-timeout = \"1s\"\n",
                    Spoil::Exits | Spoil::Declines => "",
                };
                self.write(&format!(
                    "{limits}[env]\n{SPOIL} = \"{}\"\n",
                    spoil.as_str()
                ))
            }
            Broken::Killed => self.write("min-ready = \"60s\"\n"),
        }
    }

    fn reload_by_signals(&self, count: u32, alone: bool) -> Result<Verdict, String> {
        let before = self.wait("a status", |status| Some(status.clone()))?;
        let generation = before["generation"].as_u64();
        for _ in 0..count {
            self.pid.signal(Signal::SIGHUP);
            std::thread::sleep(POLL);
        }
        self.wait("a reload's outcome", |status| {
            if !status["reload"].is_null() {
                return None;
            }
            if status["generation"].as_u64() > generation {
                return Some(Verdict::Done);
            }
            let last = &status["last_reload"];
            let failed =
                last["ok"] == false && last["generation"] != before["last_reload"]["generation"];
            failed.then(|| refused(text(&last["reason"]), alone))
        })
    }

    fn reload_by_name(&self, alone: bool) -> Verdict {
        match self.ask(r#"{"command":"reload","wait":true}"#) {
            Ok(answer) if answer["ok"] == true => Verdict::Done,
            Ok(answer) => refused(text(&answer["error"]), alone),
            Err(reason) => refused(reason, alone),
        }
    }

    fn must_fail(
        &self,
        how: Broken,
        alone: bool,
        kill: &(dyn Fn(Process) + Sync),
    ) -> Result<Verdict, String> {
        let before = self.wait("a status", |status| Some(status.clone()))?;
        self.spoil(how)?;
        let answer = std::thread::scope(|scope| {
            let asking = scope.spawn(|| self.ask(r#"{"command":"reload","wait":true}"#));
            if how == Broken::Killed {
                self.kill_newcomer(&before, kill, || asking.is_finished());
            }
            asking
                .join()
                .unwrap_or_else(|_| Err("asking for a reload panicked".to_owned()))
        });
        self.write("")?;
        match answer {
            Ok(answer) if answer["ok"] == true => {
                return Err(format!(
                    "a reload with a broken {} was accepted",
                    how.as_str()
                ));
            }
            Err(reason) if alone => return Err(reason),
            Ok(_) | Err(_) => {}
        }
        if alone {
            let same = |status: &Value| {
                let same =
                    status["generation"] == before["generation"] && pids(status) == pids(&before);
                (settled(status) && same).then_some(())
            };
            self.wait("the old workers after a failed reload", same)?;
        }
        Ok(Verdict::Done)
    }

    /// Kills the first worker of a newer generation that is ready, unless the reload is over
    /// before.
    fn kill_newcomer(
        &self,
        before: &Value,
        kill: &(dyn Fn(Process) + Sync),
        over: impl Fn() -> bool,
    ) {
        let is_new = |worker: &&Value| {
            worker["state"] == "ready"
                && worker["generation"].as_u64() > before["generation"].as_u64()
        };
        while !over() {
            let status = self.status().unwrap_or_default();
            if let Some(pid) = workers(&status)
                .find(is_new)
                .and_then(|worker| worker["pid"].as_u64())
            {
                return kill(Process(u32::try_from(pid).unwrap_or(u32::MAX)));
            }
            std::thread::sleep(POLL);
        }
    }

    fn scale_to(&self, to: usize, alone: bool) -> Result<Verdict, String> {
        let open = |status: &Value| {
            status["workers"]
                .as_u64()
                .and_then(|open| usize::try_from(open).ok())
        };
        let mut now = self.wait("a status", open)?;
        let mut asked = 0;
        // One signal at a time: signals that wait are one.
        while now != to && asked < 64 {
            let signal = if now > to {
                Signal::SIGTTOU
            } else {
                Signal::SIGTTIN
            };
            self.pid.signal(signal);
            asked += 1;
            let end = Instant::now()
                + if alone {
                    OUTCOME
                } else {
                    Duration::from_secs(3)
                };
            let was = now;
            while now == was && Instant::now() < end {
                now = self.wait("a status", open)?;
            }
        }
        if now == to {
            Ok(Verdict::Done)
        } else {
            Ok(refused(format!("{now} workers instead of {to}"), alone))
        }
    }

    fn upgrade_to_other(&self, alone: bool) -> Result<Verdict, String> {
        let mut build = self.build.lock().map_err(|error| error.to_string())?;
        let before = self.wait("a status", |status| Some(pids(status)))?;
        let seen = self.log.lines().len();
        let other = (*build + 1) % BUILDS.len();
        install(&self.setup.binaries.join(BUILDS[other]), &self.binary())?;
        *build = other;
        let wanted = identity(&self.binary());
        self.pid.signal(Signal::SIGUSR2);
        let end = Instant::now() + OUTCOME;
        let verdict = loop {
            if identity(Path::new(&format!("/proc/{}/exe", self.pid.0))) == wanted {
                break Verdict::Done;
            }
            let lines = self.log.lines();
            let about = |line: &&String| {
                line.to_ascii_lowercase().contains("upgrad") || line.contains("USR2")
            };
            let no = lines.iter().skip(seen).filter(about).find_map(|line| {
                let no = ["failed", "refused", "ignoring", "cannot"]
                    .iter()
                    .any(|word| line.contains(word));
                no.then(|| refused(line.clone(), alone))
            });
            if let Some(verdict) = no {
                break verdict;
            }
            if Instant::now() > end {
                return Err("neither upgraded nor said why not".to_owned());
            }
            std::thread::sleep(POLL);
        };
        drop(build);
        if verdict == Verdict::Done && alone {
            let after = self.wait("a settled server after the upgrade", |s| {
                settled(s).then(|| pids(s))
            })?;
            if after != before {
                return Err(format!(
                    "an upgrade has restarted workers: {before:?} became {after:?}"
                ));
            }
        }
        Ok(verdict)
    }
}

impl Subject for Prefork {
    fn name(&self) -> String {
        format!(
            "prefork {} ({} workers, {})",
            env!("CARGO_PKG_VERSION"),
            self.setup.workers,
            self.setup.class
        )
    }

    fn addresses(&self) -> Vec<Address> {
        self.addresses.clone()
    }

    fn offers(&self) -> Offers {
        Offers::ALL
    }

    fn supervisor(&self) -> Process {
        self.pid
    }

    fn workers(&self) -> Result<Vec<Process>, String> {
        self.wait("a status", |status| Some(pids(status)))
    }

    fn settled(&self) -> bool {
        self.status().is_ok_and(|status| settled(&status))
    }

    fn reload(&self, asked: Asked, alone: bool) -> Verdict {
        let _held = self.configuration.lock();
        Verdict::of(match asked {
            Asked::Signal => self.reload_by_signals(1, alone),
            Asked::Signals(count) => self.reload_by_signals(count, alone),
            Asked::Control => Ok(self.reload_by_name(alone)),
        })
    }

    fn broken_reload(&self, how: Broken, alone: bool, kill: &(dyn Fn(Process) + Sync)) -> Verdict {
        let _held = self.configuration.lock();
        Verdict::of(self.must_fail(how, alone, kill))
    }

    fn scale(&self, to: usize, alone: bool) -> Verdict {
        Verdict::of(self.scale_to(to, alone))
    }

    fn upgrade(&self, alone: bool) -> Verdict {
        Verdict::of(self.upgrade_to_other(alone))
    }

    fn drain_worker(&self, worker: Process) -> Verdict {
        worker.signal(Signal::SIGTERM);
        Verdict::Done
    }

    fn stop(&self, limit: Duration) -> Result<(), String> {
        let server = self
            .server
            .lock()
            .map_err(|error| error.to_string())?
            .take();
        let mut server = server.ok_or("it was stopped before")?;
        self.pid.signal(Signal::SIGTERM);
        let end = Instant::now() + limit;
        let status = loop {
            match server.try_exit() {
                Some(status) => break status,
                None if Instant::now() > end => {
                    return Err(format!("still there {limit:?} after TERM"));
                }
                None => std::thread::sleep(POLL),
            }
        };
        let left = server.descendants();
        server.allow_survivors();
        match (status.success(), left.is_empty()) {
            (false, _) => Err(format!("it ended with {status}")),
            (_, false) => Err(format!("it left processes behind: {left:?}")),
            _ => Ok(()),
        }
    }

    fn log(&self) -> Vec<String> {
        self.log.lines()
    }
}

/// The configuration file: everything that a reload may read again.
fn configuration(setup: &Setup, directory: &Path, extra: &str) -> String {
    let place = |bind: &String| match bind.as_str() {
        "unix" => format!("unix:{}", directory.join("http.sock").display()),
        other => other.to_owned(),
    };
    let bind: Vec<String> = setup.bind.iter().map(place).collect();
    // An extra line that sets the same key replaces ours.
    let ours = [
        ("min-ready", "\"200ms\""),
        ("hang-timeout", "\"20s\""),
        ("start-timeout", "\"30s\""),
    ];
    let ours = ours.iter().filter(|(key, _)| !extra.contains(key));
    let ours: Vec<_> = ours
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect();
    let ours = ours.concat();
    format!(
        "workers = {}\nclass = \"{}\"\nbind = {bind:?}\n{ours}{extra}",
        setup.workers, setup.class
    )
}

/// Puts a copy of a binary in another's place, as an installation does: whole or not at all.
fn install(from: &Path, to: &Path) -> Result<(), String> {
    let new = to.with_extension("new");
    let copied = std::fs::copy(from, &new).and_then(|_| std::fs::rename(&new, to));
    copied.map_err(|error| {
        format!(
            "cannot copy {}: {error} (scripts/chaos builds it)",
            from.display()
        )
    })
}

/// Which file it is.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path)
        .ok()
        .map(|about| (about.dev(), about.ino()))
}

fn refused(reason: String, alone: bool) -> Verdict {
    if alone {
        Verdict::Wrong(reason)
    } else {
        Verdict::Refused(reason)
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("no reason was given").to_owned()
}

fn workers(status: &Value) -> impl Iterator<Item = &Value> {
    let slots = status["slots"].as_array().map_or(&[][..], Vec::as_slice);
    slots
        .iter()
        .flat_map(|slot| slot["workers"].as_array().map_or(&[][..], Vec::as_slice))
}

fn pids(status: &Value) -> Vec<Process> {
    let pid = |worker: &Value| {
        worker["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok())
    };
    let mut pids: Vec<Process> = workers(status).filter_map(pid).map(Process).collect();
    pids.sort_unstable();
    pids
}

/// As many workers as there are open slots, all ready and of the accepted generation, and no reload
/// under way.
fn settled(status: &Value) -> bool {
    let fits =
        |worker: &Value| worker["state"] == "ready" && worker["generation"] == status["generation"];
    let count = workers(status).filter(|worker| fits(worker)).count() as u64;
    status["state"] == "serving"
        && status["reload"].is_null()
        && status["workers"].as_u64() == Some(count)
        && workers(status).count() as u64 == count
}
