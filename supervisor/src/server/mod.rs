//! The supervisor's loop: wait, translate, pass to the core, perform its actions.
//!
//! [`Server`] owns every descriptor and process, in groups: [`Generations`], [`Workers`],
//! [`Helpers`], [`Operators`], [`Systemd`], [`Steering`]. Each group has one deadline and is tended
//! once a round. The server makes no decision that outlives a line: what to do is the core's, how
//! to do it is the leaf modules'. One thread, and nothing here waits except in [`Server::run`]; the
//! one thing that can take long is the look-up of host names in a configuration, which the resolver
//! bounds.

mod access_logs;
mod actions;
mod blocking;
mod generations;
mod helpers;
mod lost_sockets;
mod operators;
pub(crate) mod preflight;
mod snapshot;
mod stderr;
mod systemd;
mod takeover;
mod upgrade;
mod workers;

use crate::control::OpenError;
use crate::generation::LoadError;
use crate::generation::loader::Loader;
use crate::listen::ListenError;
use crate::listen::Listeners;
use crate::logging::stderr::writer::stderr_writer;
use crate::process::poll::{Interest, Poll, Token};
use crate::process::signals::Signals;
use crate::systemd::notify::NotifyServer;
use crate::workers::cgroup::{self, CgroupError};
use access_logs::AccessLogs;
use generations::Generations;
use helpers::Helpers;
use log::{debug, error, info, warn};
use lost_sockets::LostSockets;
use nix::unistd::Gid;
use operators::Operators;
use preflight::Preflight;
use prefork_core::{Core, Event, Time};
use prefork_protocol::{GenerationId, Slot};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use stderr::StderrForwarder;
use systemd::Systemd;
use upgrade::Upgrade;
use workers::Workers;

/// The running server.
#[derive(Debug)]
pub(crate) struct Server {
    core: Core,
    now: Time,
    poll: Poll,
    signals: Signals,
    name: String,
    on_terminal: bool,
    /// All slots have been filled once.
    booted: bool,
    /// The exit status, once the core has given one.
    exit: Option<u8>,
    generations: Generations,
    workers: Workers,
    steering: Steering,
    helpers: Helpers,
    operators: Operators,
    systemd: Systemd,
    upgrade: Upgrade,
    preflight: Preflight,
    stderr: StderrForwarder,
    access_logs: AccessLogs,
    lost_sockets: LostSockets,
}

/// Where new connections are steered to.
#[derive(Debug, Default)]
struct Steering {
    rotation: Vec<Slot>,
    /// It failed, which was reported.
    failed: bool,
}

fn clock() -> Time {
    Time(prefork_os::monotonic())
}

/// Returns the time since 1970.
fn unix_time() -> Duration {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default()
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The kernel refuses what the loop is made of.
    #[error("cannot {act}: {error}")]
    System {
        act: &'static str,
        error: std::io::Error,
    },
    /// The configuration cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A socket cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The workers cannot have control groups.
    #[error(transparent)]
    Cgroups(#[from] CgroupError),
}

impl Server {
    /// Binds and prepares everything, and starts no worker yet.
    ///
    /// # Errors
    /// Why the server cannot start.
    pub(crate) fn new(
        loader: Loader,
        name: String,
        mut listeners: Listeners,
    ) -> Result<Self, StartError> {
        let failed = |act| move |error| StartError::System { act, error };
        let signals = Signals::install().map_err(failed("install signal handlers"))?;
        // Orphans of workers come to us, so that zombies do not pile up with a PID 1 that ignores
        // them.
        if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
            debug!("cannot adopt orphans: {error}");
        }
        let first = GenerationId(1);
        let mut generation = loader.load(&mut listeners, true)?;
        generation.listen(generation.config.slots())?;
        let notify = NotifyServer::bind(generation.socket_directory().as_deref())
            .map_err(failed("make the notification socket"))?;
        let poll = Poll::new().map_err(failed("make an epoll instance"))?;
        for warning in &generation.config.warnings {
            warn!("{warning}");
        }
        let cgroups = cgroup::prepare(&generation.config)?;
        for address in generation.sockets.describe() {
            info!("listening on {address}");
        }
        let now = clock();
        let seed = u64::from(std::process::id()) ^ u64::try_from(now.0.as_nanos()).unwrap_or(1);
        let core = if generation.config.preflight.is_some() {
            Core::preparing(first, generation.plan(), seed)
        } else {
            Core::new(first, generation.plan(), seed)
        };
        let read_at_start = generation.config.read_at_start().into_iter().collect();
        for remark in listeners.close_unclaimed() {
            warn!("{remark}");
        }
        let mut systemd = Systemd::connect(now, &listeners.stored_names());
        // Before the first worker: a death from now on costs no connection that waits.
        systemd.tend(now, false, &listeners);
        let server = Self {
            core,
            now,
            poll,
            signals,
            name,
            on_terminal: leave_terminal(),
            booted: false,
            exit: None,
            generations: Generations {
                loader,
                listeners,
                held: BTreeMap::from([(first, generation)]),
                accepted: first,
                read_at_start,
            },
            workers: Workers::new(notify, cgroups),
            steering: Steering::default(),
            helpers: Helpers::default(),
            operators: Operators::new(unix_time()),
            systemd,
            upgrade: Upgrade::new(),
            preflight: Preflight::default(),
            stderr: StderrForwarder::default(),
            access_logs: AccessLogs::default(),
            lost_sockets: LostSockets::default(),
        };
        server
            .watch_all()
            .map_err(failed("watch signals and notifications"))?;
        Ok(server)
    }

    /// Watches everything that the server holds already.
    fn watch_all(&self) -> std::io::Result<()> {
        self.poll
            .add(&self.signals, Token::Signals, Interest::Read)?;
        self.workers.notify.watch(&self.poll)?;
        let mut handles = self.workers.handles.values();
        handles.try_for_each(|handle| self.watch(handle))?;
        self.helpers.processes.watch_all(&self.poll)?;
        self.operators.control.watch_all(&self.poll)
    }

    /// Opens the control socket.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn open_control(&mut self, path: &Path) -> Result<(), OpenError> {
        let readers = self.generations.accepted();
        let readers = readers.and_then(|it| it.config.control_readers.as_ref());
        let readers = readers.map(|group| Gid::from_raw(group.gid));
        let control = &mut self.operators.control;
        control.bind(path, readers)?;
        control.watch(&self.poll).map_err(OpenError::Watch)?;
        debug!("control socket at {}", path.display());
        Ok(())
    }

    /// Serves until the core says that the server stops; returns the exit status.
    pub(crate) fn run(mut self) -> u8 {
        self.feed(Event::Tick);
        if let Some(first) = self
            .core
            .being_prepared()
            .filter(|id| self.generations.get(*id).is_some())
            && let Some(event) = self.begin_preflight(first, None)
        {
            self.feed(event);
        }
        let mut farewell = None;
        while self.exit.is_none() || self.clear_away(&mut farewell) {
            let timeout = self.next_deadline().map(|deadline| deadline - clock());
            let ready = match self.poll.wait(timeout) {
                Ok(ready) => ready,
                Err(error) => {
                    // It cannot happen with descriptors of our own; a loop that spins would hide
                    // it.
                    error!("cannot wait for events: {error}");
                    return 1;
                }
            };
            self.now = clock();
            self.restore_sockets();
            let look = self.look();
            let looked = look.queues.is_some();
            self.feed(Event::Observation(look));
            if looked {
                self.terminate_the_shut_down();
            }
            for token in ready {
                self.dispatch(token);
            }
            self.tend();
        }
        self.helpers.hooks.kill(&self.helpers.processes);
        self.end_preflight();
        self.operators.control.finish();
        if self.systemd.store.is_in_use() {
            self.generations.listeners.leave_files();
        }
        info!("stopped");
        crate::logging::finish();
        self.exit.unwrap_or(1)
    }

    fn next_deadline(&self) -> Option<Time> {
        [
            self.core.next_deadline(),
            self.workers.deadline(),
            self.helpers_deadline(),
            self.operators.deadline(),
            self.systemd.deadline(),
            self.stderr.deadline(),
            self.access_logs.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn dispatch(&mut self, token: Token) {
        match token {
            Token::Signals => self.take_signals(),
            Token::Notify => self.take_notices(),
            Token::Control => self.operators.control.accept(self.now, &self.poll),
            Token::Client(id) => {
                let request = self.operators.control.serve(self.now, &self.poll, id);
                if let Some(request) = request {
                    self.answer_request(id, request);
                }
            }
            Token::Channel(worker) => self.hear(worker),
            Token::Death(worker) => self.worker_exited(worker),
            Token::Helper(helper) => self.helper_exited(helper),
            Token::Stderr(worker) => self.forward_stderr(worker),
            Token::Preflight => self.hear_preflight(),
            Token::StderrWriter => stderr_writer().unblock(),
        }
    }

    /// Does what is due, at the end of every round.
    fn tend(&mut self) {
        self.tend_workers();
        self.operators.control.expire(self.now, &self.poll);
        self.tend_helpers();
        self.tend_preflight();
        self.tend_access_logs();
        self.tend_log();
        let listeners = &self.generations.listeners;
        self.systemd.tend(self.now, self.booted, listeners);
        self.tend_stderr();
        self.advance_upgrade();
    }
}

/// Detaches standard input from the terminal, and returns whether there was one. A worker is in the
/// terminal's background: one that read from it would be stopped by SIGTTIN.
fn leave_terminal() -> bool {
    use std::io::IsTerminal;
    let on_terminal = std::io::stdin().is_terminal();
    if on_terminal && let Ok(nothing) = std::fs::File::open("/dev/null") {
        // If it fails, only a program that reads its standard input notices.
        let _ = nix::unistd::dup2_stdin(&nothing);
    }
    on_terminal
}
