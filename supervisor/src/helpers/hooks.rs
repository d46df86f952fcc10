//! Hooks: the program of `--on-event`, started once for each event that it wants.
//!
//! The event lies in memory that is the program's standard input, so that nobody waits for it to be read. A hook runs as
//! the workers' user, outside their sandbox, in a session of its own, with none of our descriptors. All about it is
//! bounded: so many at a time, so many that wait, so much time for each. The supervisor never waits for one while it
//! serves, and what becomes of a hook is a line in the log and no event: else one that fails would be started for that.
//!
//! An upgrade hands over those that run and the events that wait.

use crate::api::events::Event;
use crate::config::{Config, Hooks as Settings};
use crate::generation::loader::open_hook_program;
use crate::logging as logfile;
use crate::process::poll::{Interest, Poll, Token};
use crate::process::reap::{Death, reap};
use crate::process::spawn::{Order, Spawned, send_signal, spawn};
use crate::sandbox::Confinement;
use crate::upgrade::{
    ChildState, EventState, HookState, HooksState, Packing, Unpacking, environment_without,
};
use log::{debug, warn};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use prefork_core::Time;
use prefork_protocol::environment::{ALL, PREFORK_EVENT};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// How many run at a time, and how many events wait for one of them to end.
const MOST_RUNNING: usize = 4;
const MOST_WAITING: usize = 64;
/// How long one that was asked to end may take.
const GRACE: Duration = Duration::from_secs(1);

/// Whatever runs and waits.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    running: BTreeMap<u64, Running>,
    waiting: VecDeque<Waiting>,
    /// Counts those that were started.
    last: u64,
    /// Events for which there was no room, since that was last told.
    lost: u64,
}

#[derive(Debug)]
struct Running {
    spawned: Spawned,
    kind: String,
    /// When it is asked to end, then when it is killed.
    deadline: Time,
    asked: bool,
}

#[derive(Debug)]
struct Waiting {
    kind: String,
    json: Vec<u8>,
}

impl Hooks {
    /// Keeps an event for the program, if that wants it and there is room.
    pub(crate) fn offer(&mut self, settings: Option<&Settings>, level: log::Level, event: &Event) {
        if !settings.is_some_and(|settings| settings.want(event.kind, level)) {
            return;
        }
        if self.waiting.len() >= MOST_WAITING {
            self.lost += 1;
            if self.lost == 1 {
                warn!(
                    "{MOST_WAITING} events wait for the program of on-event; it misses this and further ones"
                );
            }
            return;
        }
        if let Ok(mut json) = serde_json::to_vec(event) {
            json.push(b'\n');
            self.waiting.push_back(Waiting {
                kind: event.kind.to_owned(),
                json,
            });
        }
    }

    /// Starts it for those that wait, as far as there is room.
    pub(crate) fn start_next(&mut self, now: Time, poll: &Poll, config: &Config) {
        while self.running.len() < MOST_RUNNING
            && let Some(event) = self.waiting.pop_front()
        {
            if let Err(reason) = self.start(now, poll, config, &event) {
                warn!(
                    "the program of on-event misses the event {}: {reason}",
                    event.kind
                );
            }
        }
        if self.lost > 0 && self.waiting.is_empty() {
            let lost = std::mem::take(&mut self.lost);
            warn!("the program of on-event has missed {lost} events, as others waited before them");
        }
    }

    fn start(
        &mut self,
        now: Time,
        poll: &Poll,
        config: &Config,
        event: &Waiting,
    ) -> Result<(), String> {
        let confinement = Confinement::prepare(config)?;
        let Some(executable) =
            open_hook_program(config, &confinement).map_err(|error| error.to_string())?
        else {
            return Err("there is none any more".to_owned());
        };
        let argv = [CString::new(executable.path().as_os_str().as_bytes()).unwrap_or_default()];
        let memory =
            memory(&event.json).map_err(|error| format!("cannot make memory for it: {error}"))?;
        let order = Order {
            stdin: Some(memory.as_fd()),
            death_signal: Signal::SIGTERM,
            confinement: &confinement,
            ..Order::own(&executable, &argv, environment(&confinement, &event.kind))
        };
        let spawned = spawn(order).map_err(|error| error.to_string())?;
        self.last += 1;
        let id = self.last;
        if let Err(error) = poll.add(&spawned.pidfd, Token::Hook(id), Interest::Read) {
            // Its body is an orphan's.
            let _ = send_signal(spawned.pidfd.as_fd(), Signal::SIGKILL);
            return Err(format!("cannot watch it: {error}"));
        }
        let deadline = now + config.hooks.timeout;
        self.running.insert(
            id,
            Running {
                spawned,
                kind: event.kind.clone(),
                deadline,
                asked: false,
            },
        );
        Ok(())
    }

    /// One has ended, perhaps.
    pub(crate) fn reap(&mut self, poll: &Poll, id: u64) {
        let Some(running) = self.running.get(&id) else {
            return;
        };
        // While the body is not reaped, nobody else can have the group's number: whatever it has left there goes.
        let _ = killpg(running.spawned.pid, Signal::SIGKILL);
        let death = match reap(&running.spawned.pidfd) {
            Ok(None) => return,
            Ok(Some(death)) => death,
            Err(_) => Death::Unknown,
        };
        let Some(Running {
            spawned,
            kind,
            asked,
            ..
        }) = self.running.remove(&id)
        else {
            return;
        };
        poll.remove(&spawned.pidfd);
        let (program, _) = spawned.exec_errors.about();
        match (spawned.exec_errors.failure(), death) {
            (Some(failure), _) => warn!("on-event, for the event {kind}: {failure}"),
            (None, Death::Exited(0)) => debug!("{program} is done with the event {kind}"),
            // That was told when it was asked to.
            (None, _) if asked => {}
            (None, death) => warn!("{program}, started for the event {kind}: {death}"),
        }
    }

    /// Ends those that have had their time.
    pub(crate) fn expire(&mut self, now: Time) {
        for running in self
            .running
            .values_mut()
            .filter(|running| running.deadline <= now)
        {
            let Running { kind, spawned, .. } = running;
            let (program, _) = spawned.exec_errors.about();
            let signal = if std::mem::replace(&mut running.asked, true) {
                Signal::SIGKILL
            } else {
                warn!(
                    "{program}, started for the event {kind}, takes too long: sending SIGTERM, then SIGKILL in 1 s"
                );
                Signal::SIGTERM
            };
            running.deadline = now + GRACE;
            if killpg(running.spawned.pid, signal) == Err(Errno::ESRCH) {
                // It has no session yet: it is still on its way to its program.
                let _ = send_signal(running.spawned.pidfd.as_fd(), signal);
            }
        }
    }

    /// For the next version of this program.
    pub(crate) fn state(&self, packing: &mut Packing) -> HooksState {
        let running = self.running.values().map(|running| HookState {
            child: ChildState::of(&running.spawned, packing),
            kind: running.kind.clone(),
            deadline: running.deadline,
            asked: running.asked,
        });
        let running = running.collect();
        let waiting = self.waiting.iter();
        let waiting = waiting.map(|event| EventState {
            kind: event.kind.clone(),
            json: event.json.clone(),
        });
        HooksState {
            running,
            waiting: waiting.collect(),
        }
    }

    /// Goes on where another version was.
    pub(crate) fn adopted(state: HooksState, unpacking: &mut Unpacking, check: bool) -> Self {
        let running = state.running.into_iter().map(|hook| {
            let spawned =
                hook.child
                    .adopted(unpacking, check, &format!("the hook for {}", hook.kind));
            Running {
                spawned,
                kind: hook.kind,
                deadline: hook.deadline,
                asked: hook.asked,
            }
        });
        let running: BTreeMap<u64, Running> = (1..).zip(running).collect();
        let waiting = state.waiting.into_iter().map(|event| Waiting {
            kind: event.kind,
            json: event.json,
        });
        Self {
            last: running.len() as u64,
            running,
            waiting: waiting.collect(),
            lost: 0,
        }
    }

    /// Watches all that run.
    pub(crate) fn watch_all(&self, poll: &Poll) -> std::io::Result<()> {
        self.running.iter().try_for_each(|(id, running)| {
            poll.add(&running.spawned.pidfd, Token::Hook(*id), Interest::Read)
        })
    }

    /// Nobody has more time than until then.
    pub(crate) fn hurry(&mut self, end: Time) {
        for running in self.running.values_mut() {
            running.deadline = running.deadline.min(end);
        }
    }

    /// When one has had its time, or can be started.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let now = !self.waiting.is_empty() && self.running.len() < MOST_RUNNING;
        let ends = self.running.values().map(|running| running.deadline);
        ends.chain(now.then(Time::default)).min()
    }

    /// Whether any runs or waits.
    pub(crate) fn are_busy(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty()
    }

    /// Their processes, which are no orphans.
    pub(crate) fn pids(&self) -> impl Iterator<Item = Pid> {
        self.running.values().map(|running| running.spawned.pid)
    }

    /// The server leaves: nobody is left to look after them.
    pub(crate) fn kill(&mut self) {
        for running in self.running.values() {
            let _ = killpg(running.spawned.pid, Signal::SIGKILL);
        }
    }
}

/// Memory that is read from its beginning.
fn memory(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("prefork-event", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// The supervisor's environment without what is between it and systemd or workers; the kind of the event; and what
/// belongs to the user that the hook runs as.
fn environment(confinement: &Confinement, kind: &str) -> Vec<CString> {
    let told = confinement.variables();
    let not_its: Vec<&str> = ALL
        .iter()
        .copied()
        .chain([logfile::FORMAT_VARIABLE, logfile::FILE_VARIABLE])
        .chain(told.iter().map(|(key, _)| *key))
        .collect();
    let variable = |key: &str, value: &OsStr| {
        CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).ok()
    };
    let mut environment = environment_without(&not_its);
    environment.extend(variable(PREFORK_EVENT, OsStr::new(kind)));
    environment.extend(told.iter().filter_map(|(key, value)| variable(key, value)));
    environment
}
