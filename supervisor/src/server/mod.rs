//! The supervisor's loop: wait, translate, hand to the core, do what it says.
//!
//! [`Server`] owns every descriptor and process. It makes no decision that outlives a line: what to do is the
//! core's, how to do it is the leaf modules'. One thread, and nothing here waits except in [`Server::run`]; the one
//! thing that can take long is the look-up of host names in a configuration, which is bounded by the resolver.

mod actions;
mod admin;
mod logs;
mod memory;
mod operators;
mod quiesce;
mod readiness;
mod snapshot;
mod stderr;
mod takeover;
mod upgrade;
mod workers;

use super::admin::Admin;
use super::control::{Answer, ControlServer};
use super::listen::Listeners;
use crate::api::events::Journal;
use crate::api::status::LastReload;
use crate::generation::Generation;
use crate::generation::loader::Loader;
use crate::helpers::hooks::Hooks;
use crate::helpers::memory_sampler::MemorySampler;
use crate::helpers::readiness_probe::ReadinessProbes;
use crate::helpers::terminating::Terminating;
use crate::process::poll::{Interest, Poll, Token};
use crate::process::signals::Signals;
use crate::server::quiesce::Quiesce;
use crate::server::stderr::StderrForwarder;
use crate::systemd::fd_store::FdStore;
use crate::systemd::notify::{Notifier, NotifyServer};
use crate::workers::cgroup;
use crate::workers::cgroup::WorkerCgroups;
use crate::workers::exits::{ExitCounts, ExitRecord};
use crate::workers::handle::WorkerHandle;
use crate::workers::leftovers::Leftovers;
use log::{debug, error, info, warn};
use logs::Logs;
use nix::unistd::Gid;
use prefork_core::{Core, Event, Fact, Time};
use prefork_protocol::scoreboard::Totals;
use prefork_protocol::{GenerationId, Slot, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;
use upgrade::Upgrade;

/// How long to wait before systemd is told again what it would not take.
const TELL_AGAIN: Duration = Duration::from_millis(200);

/// The running server.
#[derive(Debug)]
pub(crate) struct Server {
    core: Core,
    now: Time,
    poll: Poll,
    signals: Signals,
    loader: Loader,
    name: String,
    listeners: Listeners,
    generations: BTreeMap<GenerationId, Generation>,
    accepted: GenerationId,
    hands: BTreeMap<WorkerId, WorkerHandle>,
    /// What dead workers have done, by slot.
    dead: Vec<Totals>,
    relay: StderrForwarder,
    leftovers: Leftovers,
    /// What workers have died of.
    deaths: ExitCounts,
    /// The worker that is being buried.
    record: Option<(WorkerId, ExitRecord)>,
    notify: NotifyServer,
    notify_address: OsString,
    systemd: Notifier,
    store: FdStore,
    watchdog: Option<(Duration, Time)>,
    /// The last thing that systemd would not take, and when to say it again.
    untold: Option<(Time, Fact)>,
    /// A reload that is done, and of which nobody has been told yet.
    settling: Option<Quiesce>,
    booted: bool,
    control: ControlServer,
    /// What has happened.
    journal: Journal,
    hooks: Hooks,
    gauge: MemorySampler,
    logs: Logs,
    doomed: Terminating,
    admin: Admin,
    /// What has been done since the server started.
    counts: Counts,
    /// The answer to `status`, as of this time.
    picture: Option<(Time, Vec<u8>)>,
    /// Control clients that wait for a reload's verdict.
    waiting: BTreeSet<u64>,
    last_reload: Option<LastReload>,
    /// The workers' control groups, if there are any.
    groups: Option<WorkerCgroups>,
    /// When to look again for dead children that are not ours, and for what dead workers have left.
    look_for_orphans: Option<Time>,
    rotation: Vec<Slot>,
    steering_failed: bool,
    on_terminal: bool,
    upgrade: Upgrade,
    lookouts: ReadinessProbes,
    exit: Option<u8>,
}

/// What the server has done since it started, upgrades in place included.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    /// When it started, in seconds of Unix time.
    started: u64,
    spawned: u64,
    reloads: u64,
    failed_reloads: u64,
    /// Answers to `status`.
    pictures: u64,
}

impl Counts {
    fn since(started: f64) -> Self {
        Self {
            started: started as u64,
            ..Self::default()
        }
    }
}

fn clock() -> Time {
    Time(prefork_os::monotonic())
}

/// Seconds since 1970.
fn unix_time() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

impl Server {
    /// Binds and prepares everything, and starts no worker yet.
    ///
    /// # Errors
    /// Why the server cannot start, in the words for the operator.
    pub(crate) fn new(
        loader: Loader,
        name: String,
        mut listeners: Listeners,
    ) -> Result<Self, String> {
        let failed =
            |act: &'static str| move |error: std::io::Error| format!("cannot {act}: {error}");
        let signals = Signals::install().map_err(failed("install signal handlers"))?;
        // Orphans of workers come to us, so that nobody's zombies pile up when we are PID 1's child or PID 1 itself.
        if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
            debug!("cannot adopt orphans: {error}");
        }
        let first = GenerationId(1);
        let mut generation = loader
            .load(&mut listeners, true)
            .map_err(|error| error.to_string())?;
        generation
            .listen(generation.config.slots())
            .map_err(|error| error.to_string())?;
        let notify = NotifyServer::bind(generation.meeting_place().as_deref())
            .map_err(failed("make the notification socket"))?;
        let poll = Poll::new().map_err(failed("make an epoll instance"))?;
        poll.add(&signals, Token::Signals, Interest::Read)
            .map_err(failed("watch signals"))?;
        poll.add(&notify, Token::Notify, Interest::Read)
            .map_err(failed("watch the notification socket"))?;
        for warning in &generation.config.warnings {
            warn!("{warning}");
        }
        let groups = cgroup::prepare(&generation.config).map_err(|error| error.to_string())?;
        for address in generation.sockets.describe() {
            info!("listening on {address}");
        }
        let now = clock();
        let seed = u64::from(std::process::id()) ^ u64::try_from(now.0.as_nanos()).unwrap_or(1);
        let core = Core::new(first, generation.plan(), seed);
        let systemd = Notifier::from_env().unwrap_or_else(|error| {
            warn!("not telling systemd anything: {error}");
            Notifier::default()
        });
        for remark in listeners.close_unclaimed() {
            warn!("{remark}");
        }
        let offered = std::env::var(prefork_protocol::environment::FDSTORE).ok();
        let mut store = FdStore::new(now, &systemd, offered.as_deref(), &listeners.stored_names());
        // Before the first worker: a death from now on costs no connection that waits.
        store.sync(now, &systemd, || listeners.storable_sockets());
        let watchdog = systemd.watchdog_period().map(|period| (period, now));
        Ok(Self {
            core,
            now,
            poll,
            signals,
            loader,
            name,
            listeners,
            generations: BTreeMap::from([(first, generation)]),
            accepted: first,
            hands: BTreeMap::new(),
            dead: vec![Totals::default(); usize::from(Slot::MAX)],
            relay: StderrForwarder::default(),
            leftovers: Leftovers::new(),
            deaths: ExitCounts::default(),
            record: None,
            notify_address: notify.address().to_owned(),
            notify,
            systemd,
            store,
            watchdog,
            untold: None,
            settling: None,
            booted: false,
            control: ControlServer::default(),
            journal: Journal::default(),
            hooks: Hooks::default(),
            gauge: MemorySampler::default(),
            logs: Logs::default(),
            doomed: Terminating::default(),
            admin: Admin::default(),
            counts: Counts::since(unix_time()),
            picture: None,
            waiting: BTreeSet::new(),
            last_reload: None,
            groups,
            look_for_orphans: None,
            rotation: Vec::new(),
            steering_failed: false,
            on_terminal: leave_terminal(),
            upgrade: Upgrade::new(),
            lookouts: ReadinessProbes::default(),
            exit: None,
        })
    }

    /// Opens the control socket. A server without one serves all the same.
    pub(crate) fn open_control(&mut self, path: &Path) {
        let readers = self
            .generations
            .get(&self.accepted)
            .and_then(|it| it.config.control_readers.as_ref());
        let opened = self
            .control
            .bind(path, readers.map(|group| Gid::from_raw(group.gid)));
        let opened = opened.and_then(|()| {
            let watched = self.control.watch(&self.poll);
            watched.map_err(|error| format!("cannot watch the control socket: {error}"))
        });
        match opened {
            Ok(()) => debug!("control socket at {}", path.display()),
            Err(reason) => info!("{reason}; going on without one"),
        }
    }

    /// Serves until told to stop; gives the exit status.
    pub(crate) fn run(mut self) -> u8 {
        self.feed(Event::Tick);
        let mut farewell = None;
        while self.exit.is_none() || self.clear_away(&mut farewell) {
            let timeout = self.next_deadline().map(|deadline| deadline - clock());
            let ready = match self.poll.wait(timeout) {
                Ok(ready) => ready,
                Err(error) => {
                    // It cannot happen with descriptors of our own; a loop that spins would hide it.
                    error!("cannot wait for events: {error}");
                    return 1;
                }
            };
            self.now = clock();
            let look = self.look();
            let looked = look.queues.is_some();
            self.feed(Event::Observation(look));
            if looked {
                self.condemn_the_shut();
            }
            for token in ready {
                self.serve(token);
            }
            self.settle();
            self.keep_time();
            self.tend_relay();
            self.advance_upgrade();
        }
        self.settle_now();
        self.hooks.kill();
        self.control.finish();
        if self.store.is_in_use() {
            self.listeners.leave_files();
        }
        info!("stopped");
        crate::logging::finish();
        self.exit.unwrap_or(1)
    }

    fn next_deadline(&self) -> Option<Time> {
        let alarms = self
            .hands
            .values()
            .filter_map(|hand| hand.alarm.map(|(time, _)| time));
        let control = self.control.next_deadline();
        let watchdog = self.watchdog.map(|(_, at)| at);
        let untold = self.untold.as_ref().map(|(at, _)| *at);
        alarms
            .chain(self.core.next_deadline())
            .chain(control)
            .chain(watchdog)
            .chain(self.store.due())
            .chain(untold)
            .chain(self.settling.as_ref().map(Quiesce::deadline))
            .chain(self.upgrade.deadline())
            .chain(self.relay.due())
            .chain(self.leftovers.due())
            .chain(self.hooks.deadline())
            .chain(self.gauge_due())
            .chain(self.admin_due())
            .chain(self.look_for_orphans)
            .min()
    }

    fn serve(&mut self, token: Token) {
        match token {
            Token::Signals => self.take_signals(),
            Token::Notify => self.take_notices(),
            Token::Control => self.control.accept(self.now, &self.poll),
            Token::Client(id) => {
                if let Some(request) = self.control.serve(self.now, &self.poll, id) {
                    self.answer_request(id, request);
                }
            }
            Token::Channel(worker) => self.hear(worker),
            Token::Death(worker) => self.reap(worker),
            Token::Upgrade => self.hear_check(),
            Token::ReadinessProbe(worker) => self.hear_lookout(worker),
            Token::Stderr(worker) => self.relay(worker),
            Token::StderrWriter => self.reopen_outlet(),
            Token::Admin(child) => self.reap_admin(child),
            Token::MemorySampler => self.hear_gauge(),
            Token::Hook(hook) => self.hooks.reap(&self.poll, hook),
        }
    }

    fn keep_time(&mut self) {
        let due: Vec<WorkerId> = self
            .hands
            .values()
            .filter(|hand| hand.alarm.is_some_and(|(time, _)| time <= self.now))
            .map(|hand| hand.id)
            .collect();
        for worker in due {
            if let Some(event) = self.hands.get_mut(&worker).and_then(WorkerHandle::ring) {
                self.feed(event);
            }
        }
        self.control.expire(self.now, &self.poll);
        if let Some((period, at)) = &mut self.watchdog
            && *at <= self.now
        {
            // One that is not taken is followed by another.
            let _ = self.systemd.watchdog();
            *at = self.now + *period;
        }
        if let Some((_, fact)) = self.untold.take_if(|(at, _)| *at <= self.now) {
            self.tell_systemd(&fact);
        }
        if self.look_for_orphans.is_some_and(|at| at <= self.now) {
            self.reap_orphans_now();
        }
        self.sweep_leftovers(None);
        self.tend_gauge();
        self.tend_admin();
        self.tend_logs();
        self.tend_hooks();
        self.store.sync(self.now, &self.systemd, || {
            self.listeners.storable_sockets()
        });
    }
}

/// Takes the terminal away from standard input, and tells whether there was one. A worker is in the terminal's background:
/// one that read from it would be stopped by SIGTTIN.
fn leave_terminal() -> bool {
    use std::io::IsTerminal;
    let on_terminal = std::io::stdin().is_terminal();
    if on_terminal && let Ok(nothing) = std::fs::File::open("/dev/null") {
        // Failing that, only a program that reads its standard input notices.
        let _ = nix::unistd::dup2_stdin(&nothing);
    }
    on_terminal
}
