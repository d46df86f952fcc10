//! Other servers as subjects, so that the same suite tells how they do.

mod kinds;
mod site;

use super::{Asked, Broken, Offers, Setup, Subject, Verdict};
use kinds::{KINDS, Kind, Scale, Upgrade};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use site::Site;
use std::collections::HashSet;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use testkit::Address;
use testkit::log::Log;
use testkit::process::{Process, in_group};

/// How long the outcome of anything may take. A worker may be stopped for five seconds meanwhile,
/// and hold a slow client's connection for longer.
const OUTCOME: Duration = Duration::from_mins(1);
/// After which time a reload that has not begun is asked for again.
const DEAF: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(10);

/// The names of all peers.
pub fn names() -> Vec<&'static str> {
    KINDS.iter().map(|kind| kind.name).collect()
}

/// Starts a peer and waits until it serves.
///
/// # Errors
/// When there is none of that name, when it is not installed, or when it does not serve in time.
pub fn start(name: &str, setup: &Setup) -> Result<Box<dyn Subject>, String> {
    let kind = KINDS.iter().find(|kind| kind.name == name);
    let kind =
        kind.ok_or_else(|| format!("there is no peer {name} (there are {})", names().join(", ")))?;
    let peer = Peer::start(*kind, setup).map_err(|error| format!("{name}: {error}"))?;
    Ok(Box::new(peer))
}

/// What changes while a peer runs.
#[derive(Debug)]
struct State {
    supervisor: Process,
    /// How many workers there should be.
    wanted: usize,
    /// Workers that were replaced and may still be there.
    leaving: HashSet<Process>,
}

/// A running peer.
#[derive(Debug)]
struct Peer {
    kind: Kind,
    site: Site,
    name: String,
    log: Log,
    child: Mutex<Child>,
    /// The process group that all its processes are in.
    group: u32,
    state: Mutex<State>,
    /// Held by every change until its outcome is known.
    change: Mutex<()>,
    /// What a proxy stands in front of.
    _behind: Option<Box<Self>>,
}

impl Peer {
    fn start(kind: Kind, setup: &Setup) -> Result<Self, String> {
        if setup.bind.len() > 1 && !kind.several {
            return Err("it listens on one address only".to_owned());
        }
        let site = Site::new(&setup.bind)?;
        let behind = match kind.program {
            "haproxy" => Some(Box::new(Self::behind(&site, setup)?)),
            _ => None,
        };
        let mut command = (kind.prepare)(&site, setup.workers)?;
        let name = version(kind, &command);
        let (reader, writer) =
            std::io::pipe().map_err(|error| format!("cannot make a pipe: {error}"))?;
        let second = writer
            .try_clone()
            .map_err(|error| format!("cannot make a pipe: {error}"))?;
        command
            .stdin(Stdio::null())
            .stdout(second)
            .stderr(writer)
            .process_group(0);
        command.current_dir(site.path(""));
        let child = command.spawn().map_err(|error| {
            format!("cannot start {}: {error}", command.get_program().display())
        })?;
        drop(command);
        let first = Process(child.id());
        let state = State {
            supervisor: first,
            wanted: setup.workers,
            leaving: HashSet::new(),
        };
        let mut peer = Self {
            kind,
            site,
            name,
            log: Log::read(reader),
            child: Mutex::new(child),
            group: first.0,
            state: Mutex::new(state),
            change: Mutex::new(()),
            _behind: behind,
        };
        if let Some(file) = kind.daemon {
            let daemon = peer.wait("its pid", || peer.named_in(file))?;
            // It makes a session of its own, and so a group.
            peer.group = daemon.0;
            peer.state().supervisor = daemon;
        }
        peer.wait("it to serve", || {
            (peer.settled() && peer.answers()).then_some(())
        })?;
        Ok(peer)
    }

    /// What HAProxy stands in front of: nginx with these files, which no operation touches.
    fn behind(site: &Site, setup: &Setup) -> Result<Self, String> {
        let kind = KINDS
            .iter()
            .find(|kind| kind.name == "nginx")
            .ok_or("no nginx")?;
        let setup = Setup {
            bind: vec!["unix".to_owned()],
            workers: 2,
            ..setup.clone()
        };
        let behind = Self::start(*kind, &setup)?;
        std::os::unix::fs::symlink(behind.site.path("http.sock"), site.path("behind.sock"))
            .map_err(|error| format!("cannot make a link: {error}"))?;
        Ok(behind)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it answers on every address.
    fn answers(&self) -> bool {
        self.site.addresses.iter().all(|address| {
            let Ok(mut stream) = address.connect() else {
                return false;
            };
            let asked = stream
                .write_all(b"GET /bytes/0/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let mut start = [0; 12];
            asked.and_then(|()| stream.read_exact(&mut start)).is_ok() && start.ends_with(b" 200")
        })
    }

    /// The running process that a file names.
    fn named_in(&self, file: &str) -> Option<Process> {
        let text = std::fs::read_to_string(self.site.path(file)).ok()?;
        text.trim()
            .parse()
            .ok()
            .map(Process)
            .filter(|process| process.runs())
    }

    fn wait<T>(&self, what: &str, mut fact: impl FnMut() -> Option<T>) -> Result<T, String> {
        let end = Instant::now() + OUTCOME;
        loop {
            if let Some(found) = fact() {
                return Ok(found);
            }
            // A process that has exited stays visible until it is waited for.
            let _ = self
                .child
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .try_wait();
            if Instant::now() > end
                || (in_group(self.group).is_empty() && self.kind.daemon.is_none())
            {
                let log = self.log.lines();
                let log = log[log.len().saturating_sub(20)..].join("\n  ");
                return Err(format!(
                    "waited in vain for {what}; the last lines of its log:\n  {log}"
                ));
            }
            std::thread::sleep(POLL);
        }
    }

    /// The processes that serve under this supervisor, without those that are leaving.
    fn serving(&self, supervisor: Process) -> Vec<Process> {
        let leaving = self.state().leaving.clone();
        let children = supervisor.children().into_iter();
        let mut found: Vec<Process> = children
            .filter(|child| child.runs() && !leaving.contains(child) && (self.kind.worker)(*child))
            .collect();
        found.sort_unstable_by_key(|process| (process.started(), process.0));
        if self.kind.one {
            found.drain(..found.len().saturating_sub(1));
        }
        found
    }

    fn try_reload(&self) -> Result<Verdict, String> {
        let (supervisor, wanted) = {
            let state = self.state();
            (state.supervisor, state.wanted)
        };
        let old: HashSet<Process> = self.serving(supervisor).into_iter().collect();
        supervisor.signal(self.kind.reload);
        let mut asked = Instant::now();
        self.wait("new workers in place of all old ones", || {
            self.ask_again(supervisor, &mut asked);
            let children = self.serving(supervisor);
            let fresh = children.iter().filter(|child| !old.contains(child)).count();
            // Those that serve and are to leave do so when all new ones are there, or one by one.
            let left = children.iter().filter(|child| old.contains(child)).count();
            (fresh == self.processes(wanted) && (left == 0 || !self.kind.one)).then_some(())
        })?;
        self.state().leaving.extend(old);
        self.forget();
        Ok(Verdict::Done)
    }

    /// HAProxy's master has no ear for a short while after it has started again; then the reload is
    /// asked for again.
    fn ask_again(&self, supervisor: Process, asked: &mut Instant) {
        if self.kind.one && asked.elapsed() > DEAF {
            supervisor.signal(self.kind.reload);
            *asked = Instant::now();
        }
    }

    /// A pid may come again; who is gone is not leaving any more.
    fn forget(&self) {
        self.state().leaving.retain(|process| process.runs());
    }

    fn try_scale(&self, to: usize) -> Result<Verdict, String> {
        if self.kind.scale == Scale::Never {
            return Ok(Verdict::Unsupported("no scaling".to_owned()));
        }
        let (supervisor, from) = {
            let mut state = self.state();
            (state.supervisor, std::mem::replace(&mut state.wanted, to))
        };
        if self.kind.scale == Scale::Reload {
            (self.kind.prepare)(&self.site, to)?;
            return self.try_reload();
        }
        if let Scale::Signal(signal) = self.kind.scale {
            (self.kind.prepare)(&self.site, to)?;
            supervisor.signal(signal);
        } else {
            let signal = if to > from {
                Signal::SIGTTIN
            } else {
                Signal::SIGTTOU
            };
            for _ in 0..to.abs_diff(from) {
                supervisor.signal(signal);
                // The same signal twice at once is one signal.
                std::thread::sleep(5 * POLL);
            }
        }
        self.wait("the number of workers", || {
            (self.serving(supervisor).len() == to).then_some(())
        })?;
        Ok(Verdict::Done)
    }

    fn try_upgrade(&self) -> Result<Verdict, String> {
        let (old, wanted) = {
            let state = self.state();
            (state.supervisor, state.wanted)
        };
        let Upgrade::Second {
            second,
            only,
            workers_first,
            leave,
        } = self.kind.upgrade
        else {
            if self.kind.upgrade == Upgrade::Never {
                return Ok(Verdict::Unsupported("no upgrade".to_owned()));
            }
            (self.kind.prepare)(&self.site, wanted)?;
            return self.try_reload();
        };
        if self.kind.daemon.is_some() {
            (self.kind.prepare)(&self.site, wanted)?;
        }
        old.signal(Signal::SIGUSR2);
        let new = self.wait("a second supervisor", || {
            self.named_in(second).filter(|new| *new != old)
        })?;
        self.wait("its workers", || {
            (self.serving(new).len() == wanted).then_some(())
        })?;
        if let Some(signal) = workers_first {
            old.signal(signal);
            self.wait("the old workers to leave", || {
                self.serving(old).is_empty().then_some(())
            })?;
        }
        self.state().supervisor = new;
        old.signal(leave);
        // Until the new one knows that it is alone, it would refuse the next upgrade.
        self.wait("the old supervisor to leave", || {
            (!old.runs()).then_some(())
        })?;
        self.wait("the new supervisor to be the only one", || {
            self.named_in(only).filter(|pid| *pid == new)
        })?;
        Ok(Verdict::Done)
    }

    /// Breaks the configuration, asks for a reload, and looks whether everything stays as it was.
    fn try_break(&self, how: Broken) -> Result<Verdict, String> {
        let Some(file) = self.kind.file.filter(|_| (self.kind.breaks)(how)) else {
            return Ok(Verdict::Unsupported("no such broken reload".to_owned()));
        };
        let (supervisor, wanted) = {
            let state = self.state();
            (state.supervisor, state.wanted)
        };
        let text =
            std::fs::read_to_string(self.site.path(file)).map_err(|error| error.to_string())?;
        let nginx = self.kind.program == "nginx";
        let broken = match how {
            Broken::Syntax => format!("{text}\n}}}} {{\n"),
            Broken::UnknownKey => format!("workerz 3;\n{text}"),
            // Of TEST-NET-1, which no machine should have.
            Broken::Address if nginx => text.replacen("listen ", "listen 192.0.2.1:9; listen ", 1),
            Broken::Address => text.replacen("    bind ", "    bind 192.0.2.1:9\n    bind ", 1),
            Broken::Missing | Broken::Program(_) | Broken::Killed => String::new(),
        };
        match how {
            Broken::Missing => {
                std::fs::remove_file(self.site.path(file)).map_err(|error| error.to_string())?;
            }
            _ => self.site.write(file, broken)?,
        }
        let before = self.serving(supervisor);
        let complaint = if nginx { "[emerg]" } else { "[ALERT]" };
        let complaints = self.log.count(complaint);
        supervisor.signal(self.kind.reload);
        let mut asked = Instant::now();
        let outcome = self.wait("a complaint", || {
            self.ask_again(supervisor, &mut asked);
            (self.log.count(complaint) > complaints).then_some(())
        });
        (self.kind.prepare)(&self.site, wanted)?;
        outcome?;
        let after = self.serving(supervisor);
        if before != after {
            return Err(format!(
                "a broken reload has changed workers: {before:?} became {after:?}"
            ));
        }
        Ok(Verdict::Done)
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subject for Peer {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn addresses(&self) -> Vec<Address> {
        self.site.addresses.clone()
    }

    fn offers(&self) -> Offers {
        self.kind.offers
    }

    fn supervisor(&self) -> Process {
        self.state().supervisor
    }

    fn workers(&self) -> Result<Vec<Process>, String> {
        Ok(self.serving(self.supervisor()))
    }

    fn settled(&self) -> bool {
        let (supervisor, wanted) = {
            let state = self.state();
            (state.supervisor, state.wanted)
        };
        let started = self
            .kind
            .starting
            .is_none_or(|(begun, done)| self.log.count(begun) == self.log.count(done));
        started && self.serving(supervisor).len() == self.processes(wanted)
    }

    fn is_ours(&self) -> bool {
        false
    }

    fn processes(&self, workers: usize) -> usize {
        if self.kind.one { 1 } else { workers }
    }

    fn heals(&self) -> bool {
        self.kind.heals
    }

    fn reload(&self, _asked: Asked, _alone: bool) -> Verdict {
        let _held = self.alone();
        Verdict::of(self.try_reload())
    }

    fn broken_reload(
        &self,
        how: Broken,
        _alone: bool,
        _kill: &(dyn Fn(Process) + Sync),
    ) -> Verdict {
        let _held = self.alone();
        Verdict::of(self.try_break(how))
    }

    fn scale(&self, to: usize, _alone: bool) -> Verdict {
        let _held = self.alone();
        Verdict::of(self.try_scale(to))
    }

    fn upgrade(&self, _alone: bool) -> Verdict {
        let _held = self.alone();
        Verdict::of(self.try_upgrade())
    }

    fn drain_worker(&self, worker: Process) -> Verdict {
        let Some(signal) = self.kind.drain else {
            return Verdict::Unsupported("no draining of one worker".to_owned());
        };
        worker.signal(signal);
        Verdict::Done
    }

    fn stop(&self, limit: Duration) -> Result<(), String> {
        let supervisor = self.supervisor();
        supervisor.signal(self.kind.stop);
        let mut asked = Instant::now();
        let end = asked + limit;
        loop {
            // Some lose a signal that comes while they start a worker or execute themselves again.
            if asked.elapsed() > DEAF {
                supervisor.signal(self.kind.stop);
                asked = Instant::now();
            }
            let _ = self
                .child
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .try_wait();
            let left = in_group(self.group);
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!(
                    "still there {limit:?} after {}: {left:?}",
                    self.kind.stop
                ));
            }
            std::thread::sleep(POLL);
        }
    }

    fn log(&self) -> Vec<String> {
        self.log.lines()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let (Ok(group), false) = (i32::try_from(self.group), in_group(self.group).is_empty()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self
            .child
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .wait();
    }
}

/// A peer's name with its version.
fn version(kind: Kind, start: &Command) -> String {
    // uvicorn and others know their version where the start's environment is.
    let mut command = Command::new(start.get_program());
    command.envs(
        start
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let output = command.arg(kind.version).output();
    let text = output
        .map(|output| [output.stdout, output.stderr].concat())
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let is_number = |word: &&str| word.contains('.') && word.chars().any(|c| c.is_ascii_digit());
    let number = text
        .split([' ', '/', '\n', ')', '('])
        .find(is_number)
        .unwrap_or("of unknown version");
    format!("{} {number}", kind.name)
}
