//! The supervisor's loop: wait, translate, hand to the core, do what it says.
//!
//! [`Server`] owns every descriptor and process. It makes no decision that outlives a line: what to do is the
//! core's, how to do it is the leaf modules'. One thread, and nothing here waits except in [`Server::run`]; the one
//! thing that can take long is the look-up of host names in a configuration, which is bounded by the resolver.

mod takeover;
mod upgrade;

use super::control::{Answer, ControlServer, Request};
use super::generation::{Generation, Loader};
use super::hand::{Hand, Line};
use super::launch::{Role, launch};
use super::listen::Listeners;
use super::notify::{Notifier, NotifyServer};
use super::poll::{Interest, Poll, Token};
use super::reap::{reap, reap_orphans};
use super::signals::Signals;
use super::status::{LastReload, Status, status};
use super::store::Store;
use super::{log as logfile, report, steering};
use crate::core::{Action, Command, Core, Event, Fact, Look, RequestId, Time};
use log::{debug, error, info, warn};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use prefork::scoreboard::{Scoreboard, Totals};
use prefork::{GenerationId, Slot, WorkerId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;
use upgrade::Upgrade;

/// How long to wait before systemd is told again what it would not take.
const TELL_AGAIN: Duration = Duration::from_millis(200);
/// The most notices taken from foreign workers in one wake-up.
const NOTICES_AT_ONCE: usize = 64;

/// The running server.
#[derive(Debug)]
pub struct Server {
    core: Core,
    now: Time,
    poll: Poll,
    signals: Signals,
    loader: Loader,
    name: String,
    listeners: Listeners,
    generations: BTreeMap<GenerationId, Generation>,
    accepted: GenerationId,
    hands: BTreeMap<WorkerId, Hand>,
    scoreboard: Scoreboard,
    /// What dead workers have done, by slot.
    dead: Vec<Totals>,
    notify: NotifyServer,
    notify_address: OsString,
    systemd: Notifier,
    store: Store,
    watchdog: Option<(Duration, Time)>,
    /// The last thing that systemd would not take, and when to say it again.
    untold: Option<(Time, Fact)>,
    booted: bool,
    control: Option<ControlServer>,
    /// Control clients that wait for a reload's verdict.
    waiting: BTreeSet<u64>,
    last_reload: Option<LastReload>,
    orphans_left: bool,
    rotation: Vec<Slot>,
    steering_failed: bool,
    on_terminal: bool,
    upgrade: Upgrade,
    exit: Option<u8>,
}

fn clock() -> Time {
    Time(prefork::sys::monotonic())
}

impl Server {
    /// Binds and prepares everything, and starts no worker yet.
    ///
    /// # Errors
    /// Why the server cannot start, in the words for the operator.
    pub fn new(loader: Loader, name: String, mut listeners: Listeners) -> Result<Self, String> {
        let failed = |act: &'static str| move |error: std::io::Error| format!("cannot {act}: {error}");
        let signals = Signals::install().map_err(failed("install signal handlers"))?;
        // Orphans of workers come to us, so that nobody's zombies pile up when we are PID 1's child or PID 1 itself.
        if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
            debug!("cannot adopt orphans: {error}");
        }
        let first = GenerationId(1);
        let mut generation = loader.load(&mut listeners, true)?;
        generation.listen(generation.config.workers)?;
        let scoreboard = Scoreboard::create().map_err(failed("make the scoreboard"))?;
        let notify = NotifyServer::bind(super::control::runtime_directory().as_deref())
            .map_err(failed("make the notification socket"))?;
        let poll = Poll::new().map_err(failed("make an epoll instance"))?;
        poll.add(&signals, Token::Signals, Interest::Read).map_err(failed("watch signals"))?;
        poll.add(&notify, Token::Notify, Interest::Read).map_err(failed("watch the notification socket"))?;
        for warning in &generation.config.warnings {
            warn!("{warning}");
        }
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
        for remark in listeners.settle_kept() {
            warn!("{remark}");
        }
        let offered = std::env::var(prefork::environment::FDSTORE).ok();
        let mut store = Store::new(now, &systemd, offered.as_deref(), &listeners.kept_names());
        // Before the first worker: a death from now on costs no connection that waits.
        store.tend(now, &systemd, &listeners);
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
            scoreboard,
            dead: vec![Totals::default(); usize::from(Slot::MAX)],
            notify_address: notify.address().to_owned(),
            notify,
            systemd,
            store,
            watchdog,
            untold: None,
            booted: false,
            control: None,
            waiting: BTreeSet::new(),
            last_reload: None,
            orphans_left: false,
            rotation: Vec::new(),
            steering_failed: false,
            on_terminal: leave_terminal(),
            upgrade: Upgrade::new(),
            exit: None,
        })
    }

    /// Opens the control socket. A server without one serves all the same.
    pub fn open_control(&mut self, path: &Path) {
        let opened = ControlServer::bind(path).and_then(|control| {
            control.watch(&self.poll).map_err(|error| format!("cannot watch the control socket: {error}"))?;
            Ok(control)
        });
        match opened {
            Ok(control) => {
                debug!("control socket at {}", control.path().display());
                self.control = Some(control);
            }
            Err(reason) => info!("{reason}; going on without one"),
        }
    }

    /// Serves until told to stop; gives the exit status.
    pub fn run(mut self) -> u8 {
        self.feed(Event::Tick);
        while self.exit.is_none() {
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
            self.feed(Event::Look(look));
            for token in ready {
                self.serve(token);
            }
            self.keep_time();
            self.advance_upgrade();
        }
        if let Some(control) = &mut self.control {
            control.finish();
        }
        if self.store.keeps() {
            self.listeners.leave_files();
        }
        info!("stopped");
        self.exit.unwrap_or(1)
    }

    fn next_deadline(&self) -> Option<Time> {
        let alarms = self.hands.values().filter_map(|hand| hand.alarm.map(|(time, _)| time));
        let control = self.control.as_ref().and_then(ControlServer::next_deadline);
        let watchdog = self.watchdog.map(|(_, at)| at);
        let orphans = self.orphans_left.then(|| self.now + Duration::from_millis(100));
        let untold = self.untold.as_ref().map(|(at, _)| *at);
        alarms
            .chain(self.core.next_deadline())
            .chain(control)
            .chain(watchdog)
            .chain(self.store.due())
            .chain(untold)
            .chain(self.upgrade.deadline())
            .chain(orphans)
            .min()
    }

    /// What the scoreboard, the notices and, if it is time, the queues say of everybody.
    fn look(&self) -> Look {
        let sight =
            |hand: &Hand| (hand.id, hand.sight(self.now, &self.scoreboard.row(hand.slot, hand.seat).read()));
        let workers = self.hands.values().map(sight).collect();
        let queues = self.core.wants_queues(self.now).then(|| self.queues().into_iter().collect());
        Look { workers, queues }
    }

    /// How many connections wait for each slot that has a worker, or had one until a while ago.
    fn queues(&self) -> BTreeMap<Slot, u32> {
        let mut queues = BTreeMap::new();
        for hand in self.hands.values() {
            let sockets = self.generations.get(&hand.generation).map(|generation| &generation.sockets);
            if let Some(length) = sockets.and_then(|sockets| sockets.queue(hand.slot.0)) {
                // Two workers in a slot mostly have the same sockets.
                queues
                    .entry(hand.slot)
                    .and_modify(|most: &mut u32| *most = length.max(*most))
                    .or_insert(length);
            }
        }
        let accepted = self.generations.get(&self.accepted).filter(|accepted| accepted.serves_each_queue());
        if let Some(Generation { sockets, .. }) = accepted {
            for slot in self.core.retired() {
                if let Some(length) = sockets.queue(slot.0) {
                    queues.entry(slot).or_insert(length);
                }
            }
        }
        queues
    }

    fn serve(&mut self, token: Token) {
        match token {
            Token::Signals => self.take_signals(),
            Token::Notify => self.take_notices(),
            Token::Control => {
                if let Some(control) = &mut self.control {
                    control.accept(self.now, &self.poll);
                }
            }
            Token::Client(id) => {
                let request =
                    self.control.as_mut().and_then(|control| control.serve(self.now, &self.poll, id));
                if let Some(request) = request {
                    self.answer_request(id, request);
                }
            }
            Token::Channel(worker) => self.hear(worker),
            Token::Death(worker) => self.bury(worker),
            Token::Upgrade => self.hear_check(),
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
            if let Some(event) = self.hands.get_mut(&worker).and_then(Hand::ring) {
                self.feed(event);
            }
        }
        if let Some(control) = &mut self.control {
            control.expire(self.now, &self.poll);
        }
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
        if self.orphans_left {
            self.bury_orphans();
        }
        self.store.tend(self.now, &self.systemd, &self.listeners);
    }

    fn take_signals(&mut self) {
        let signals = self.signals.take().collect();
        self.act_on(signals);
    }

    fn act_on(&mut self, signals: Vec<Signal>) {
        let mut commands = Vec::new();
        let mut upgrade = false;
        for signal in signals {
            match signal {
                Signal::SIGINT => commands.push(Command::StopNow),
                Signal::SIGTERM | Signal::SIGQUIT => commands.push(Command::Stop),
                Signal::SIGHUP => commands.push(Command::Reload(None)),
                Signal::SIGTTIN => commands.push(Command::Resize(1)),
                Signal::SIGTTOU => commands.push(Command::Resize(-1)),
                // A terminal sends it whenever its window changes.
                Signal::SIGWINCH if self.on_terminal => {}
                Signal::SIGWINCH => commands.push(Command::DrainAll),
                Signal::SIGUSR1 => reopen_log(),
                Signal::SIGUSR2 => upgrade = true,
                Signal::SIGCHLD => self.bury_orphans(),
                _ => {}
            }
        }
        // Quick stop before stop before upgrade before reload before scale, whatever the order in which they came.
        commands.sort_by_key(|command| match command {
            Command::StopNow => 0,
            Command::Stop => 1,
            Command::Reload(_) => 2,
            Command::DrainAll => 3,
            Command::Resize(_) => 4,
        });
        for command in commands {
            let stops = matches!(command, Command::Stop | Command::StopNow);
            if !stops && std::mem::take(&mut upgrade) {
                self.ask_for_upgrade(None);
            }
            self.feed(Event::Command(command));
        }
        if upgrade {
            self.ask_for_upgrade(None);
        }
    }

    fn take_notices(&mut self) {
        let pids: BTreeMap<Pid, WorkerId> = self.hands.values().map(|hand| (hand.pid, hand.id)).collect();
        for _ in 0..NOTICES_AT_ONCE {
            let received = match self.notify.receive(|pid| pids.contains_key(&pid)) {
                Ok(Some(received)) => received,
                Ok(None) => return,
                Err(error) => return debug!("cannot read a notice: {error}"),
            };
            let Some(worker) = received.worker.and_then(|pid| pids.get(&pid)) else { continue };
            for notice in received.notices {
                let event = self.hands.get_mut(worker).and_then(|hand| hand.notice(self.now, notice));
                if let Some(event) = event {
                    self.feed(event);
                }
            }
        }
    }

    fn answer_request(&mut self, client: u64, request: Request) {
        match request {
            Request::Status => {
                let sockets = self.generations.get(&self.accepted).map(|generation| &generation.sockets);
                let status = status(
                    self.core.view(),
                    &self.hands,
                    &self.scoreboard,
                    &self.dead,
                    |slot| sockets.and_then(|sockets| sockets.queue(slot)),
                    sockets.map(|sockets| sockets.describe()).unwrap_or_default(),
                    self.last_reload.clone(),
                );
                let status = Status { last_upgrade: self.upgrade.last.clone(), ..status };
                let answer = Answer { status: serde_json::to_value(status).ok(), ..Answer::done() };
                self.answer(client, &answer);
            }
            Request::Reload { wait: true } => {
                self.waiting.insert(client);
                self.feed(Event::Command(Command::Reload(Some(RequestId(client)))));
            }
            Request::Reload { wait: false } => {
                self.answer(client, &Answer::done());
                self.feed(Event::Command(Command::Reload(None)));
            }
            Request::Upgrade { wait: true } => self.ask_for_upgrade(Some(client)),
            Request::Upgrade { wait: false } => {
                self.answer(client, &Answer::done());
                self.ask_for_upgrade(None);
            }
            Request::Stop { now } => {
                self.answer(client, &Answer::done());
                self.feed(Event::Command(if now { Command::StopNow } else { Command::Stop }));
            }
        }
    }

    fn answer(&mut self, client: u64, answer: &Answer) {
        if let Some(control) = &mut self.control {
            control.answer(self.now, &self.poll, client, answer);
        }
    }

    fn hear(&mut self, worker: WorkerId) {
        let Some(hand) = self.hands.get_mut(&worker) else { return };
        let before = matches!(hand.line, Line::Channel { .. });
        let events = hand.listen(self.now);
        if before && matches!(hand.line, Line::Closed) {
            debug!("worker {worker} has closed its channel");
        }
        for event in events {
            self.feed(event);
        }
    }

    /// A worker is dead: its last words, its cause of death, its numbers, its leftovers.
    fn bury(&mut self, worker: WorkerId) {
        self.hear(worker);
        let Some(hand) = self.hands.get(&worker) else { return };
        // While the body is not reaped, nobody else can have the group's number.
        hand.kill_group();
        let death = match reap(&hand.pidfd) {
            Ok(None) => return,
            Ok(Some(death)) => death.to_string(),
            Err(error) => format!("gone, cause unknown ({error})"),
        };
        let how = hand.exec_errors.failure().map_or(death, |failure| failure.to_string());
        let row = self.scoreboard.row(hand.slot, hand.seat);
        if let Some(totals) = self.dead.get_mut(hand.slot.index()) {
            totals.fold(&row.read());
        }
        row.clear();
        self.poll.remove(&hand.pidfd);
        if let Line::Channel { channel, .. } = &hand.line {
            self.poll.remove(channel);
        }
        self.feed(Event::Died(worker, how));
        self.hands.remove(&worker);
        self.orphans_left = true;
    }

    fn bury_orphans(&mut self) {
        let known: BTreeSet<Pid> =
            self.hands.values().map(|hand| hand.pid).chain(self.upgrade.pid()).collect();
        match reap_orphans(|pid| known.contains(&pid)) {
            Ok(orphans) => {
                for (pid, death) in orphans.reaped {
                    debug!("orphan {pid} {death}");
                }
                self.orphans_left = orphans.more;
            }
            Err(error) => {
                debug!("cannot reap orphans: {error}");
                self.orphans_left = false;
            }
        }
    }

    /// Tells the core, and does what it says, until there is nothing left to tell.
    fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.core.step(self.now, event) {
                events.extend(self.perform(action));
            }
        }
        self.steer_between_generations();
    }

    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Prepare(generation) => match self.upgrade_before(generation) {
                Some(event) => event,
                None => Some(self.prepare(generation)),
            },
            Action::Steer(rotation) => {
                self.rotation = rotation;
                self.steer();
                None
            }
            Action::Spawn { worker, slot, seat, generation } => {
                self.store.touch(self.now);
                self.spawn(worker, slot, seat, generation)
            }
            Action::Drain { worker, grace, empty_queue } => {
                // Away from it first, or somebody could still come when it has left.
                self.steer_between_generations();
                let orphaned = !self.keeps_all_addresses(worker);
                self.hands.get_mut(&worker).and_then(|hand| hand.drain(grace, empty_queue || orphaned))
            }
            Action::Abort(worker) => {
                self.hands.get(&worker)?.signal(Signal::SIGABRT);
                None
            }
            Action::Kill(worker) => {
                let hand = self.hands.get(&worker)?;
                hand.signal(Signal::SIGKILL);
                hand.kill_group();
                None
            }
            Action::Accept(generation) => {
                self.accepted = generation;
                self.steer_between_generations();
                if let Some(generation) = self.generations.get(&generation) {
                    log::set_max_level(generation.config.log.level);
                }
                None
            }
            Action::Forget(generation) => {
                self.generations.remove(&generation);
                self.steer();
                self.store.touch(self.now);
                None
            }
            Action::Report(fact) => {
                self.report(&fact);
                None
            }
            Action::Reply(RequestId(client), verdict) => {
                self.waiting.remove(&client);
                let answer = match verdict {
                    Ok(generation) => Answer { generation: Some(generation.0), ..Answer::done() },
                    Err(reason) => Answer::failed(reason),
                };
                self.answer(client, &answer);
                None
            }
            Action::Exit(status) => {
                self.exit = Some(status);
                None
            }
        }
    }

    fn prepare(&mut self, id: GenerationId) -> Event {
        let loaded = self.loader.load(&mut self.listeners, false);
        // Looking up a host name may have taken its time.
        self.now = clock();
        match loaded {
            Ok(generation) => {
                for warning in &generation.config.warnings {
                    warn!("{warning}");
                }
                let before = self.generations.get(&self.accepted).map(|old| old.sockets.describe());
                for address in generation.sockets.describe() {
                    if before.as_ref().is_none_or(|before| !before.contains(&address)) {
                        info!("listening on {address}");
                    }
                }
                let plan = generation.plan();
                self.generations.insert(id, generation);
                Event::Prepared(id, plan)
            }
            Err(reason) => Event::Refused(id, reason),
        }
    }

    /// A failure leaves connections to the kernel's own spreading, which knows of no rotation. Said once.
    fn steer(&mut self) {
        let workers = self.core.view().workers;
        if let Err(error) = steering::steer(&self.generations, self.accepted, &self.rotation, &workers)
            && !std::mem::replace(&mut self.steering_failed, true)
        {
            warn!("{error}; new connections are spread over all slots");
        }
    }

    /// While a reload adds or removes addresses, not only the rotation tells who serves them.
    fn steer_between_generations(&mut self) {
        if self.generations.len() > 1 {
            self.steer();
        }
    }

    fn spawn(&mut self, worker: WorkerId, slot: Slot, seat: u8, id: GenerationId) -> Option<Event> {
        let role =
            Role { worker, slot, seat, generation: id, name: &self.name, notify: &self.notify_address };
        let launched = match self.generations.get_mut(&id) {
            Some(generation) => launch(self.now, generation, &self.scoreboard, role),
            None => Err(format!("generation {id} is not held any more")),
        };
        let watched = launched.and_then(|hand| match self.watch(&hand) {
            Ok(()) => Ok(hand),
            Err(error) => {
                hand.kill_group();
                Err(format!("cannot watch worker {worker}: {error}"))
            }
        });
        match watched {
            Ok(hand) => {
                info!(worker = worker.0, slot = slot.0, generation = id.0, pid = hand.pid.as_raw();
                    "worker {worker} (slot {slot}, generation {id}, pid {}) starts", hand.pid);
                self.hands.insert(worker, hand);
                None
            }
            Err(reason) => Some(Event::Died(worker, reason)),
        }
    }

    fn watch(&self, hand: &Hand) -> std::io::Result<()> {
        self.poll.add(&hand.pidfd, Token::Death(hand.id), Interest::Read)?;
        match &hand.line {
            Line::Channel { channel, .. } => {
                self.poll.add(channel.as_fd(), Token::Channel(hand.id), Interest::Read)
            }
            Line::Notify { .. } | Line::Closed => Ok(()),
        }
    }

    /// Whether everything that a worker listens on is listened on by every generation: by whoever follows it, that is,
    /// be it accepted already or on trial.
    fn keeps_all_addresses(&self, worker: WorkerId) -> bool {
        let own = self.hands.get(&worker).and_then(|hand| self.generations.get(&hand.generation));
        own.is_none_or(|own| {
            let kept = |address| {
                self.generations.values().all(|other| other.sockets.addresses().any(|kept| kept == address))
            };
            own.sockets.addresses().all(kept)
        })
    }

    /// What systemd does not take at once it is told again, or a unit could hang in "reloading".
    fn tell_systemd(&mut self, fact: &Fact) {
        let told = report::tell_systemd(&self.systemd, fact, self.booted);
        self.untold = match told {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                Some((self.now + TELL_AGAIN, fact.clone()))
            }
            Err(error) => {
                debug!("cannot tell systemd: {error}");
                None
            }
            Ok(()) => self.untold.take(),
        };
    }

    fn report(&mut self, fact: &Fact) {
        let pid = report::subject(fact).and_then(|who| self.hands.get(&who.worker)).map(|hand| hand.pid);
        report::log(fact, pid);
        self.tell_systemd(fact);
        match fact {
            Fact::ServerReady(..) => self.booted = true,
            Fact::Reloaded(generation, _) => {
                self.last_reload = Some(LastReload { generation: generation.0, ok: true, reason: None });
            }
            Fact::ReloadFailed(refused, _, reason) => {
                self.last_reload =
                    Some(LastReload { generation: refused.0, ok: false, reason: Some(reason.clone()) });
            }
            _ => {}
        }
        if let Some(progress) = report::progress(fact) {
            let answer = Answer::progress(progress);
            for client in self.waiting.clone() {
                self.answer(client, &answer);
            }
        }
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

fn reopen_log() {
    match logfile::reopen() {
        Ok(true) => info!("log file reopened"),
        Ok(false) => debug!("there is no log file to reopen"),
        Err(reason) => error!("{reason}; going on with the old one"),
    }
}
