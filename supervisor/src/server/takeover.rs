//! A state becomes a server again: the other half of [`upgrade`](super::upgrade).
//!
//! The same code checks a state, in a child that then leaves, and takes it over. It [gives up](give_up) at the first thing
//! that is not as it should be, and drops nothing before that.

use super::logs::Logs;
use super::upgrade::Upgrade;
use super::{Counts, Server, clock};
use crate::admin::Admin;
use crate::api::events::Journal;
use crate::api::status::LastReload;
use crate::config::{Identity, Source};
use crate::control::{ControlServer, runtime_directory};
use crate::generation::loader::Loader;
use crate::generation::{AdminSockets, Generation, Origin};
use crate::helpers::hooks::Hooks;
use crate::helpers::memory_sampler::MemorySampler;
use crate::helpers::readiness_probe::ReadinessProbes;
use crate::helpers::terminating::Terminating;
use crate::listen::{AddressSockets, ListenSet, Listeners};
use crate::logging::access_log::AccessLog;
use crate::logging::stderr::Capture;
use crate::logging::stderr::outlet::outlet;
use crate::process::poll::{Interest, Poll, Token};
use crate::process::signals::Signals;
use crate::process::spawn::Executable;
use crate::sandbox::Confinement;
use crate::server::stderr::StderrForwarder;
use crate::systemd::fd_store::FdStore;
use crate::systemd::notify::{Notifier, NotifyServer};
use crate::upgrade::*;
use crate::workers::cgroup::WorkerCgroups;
use crate::workers::exits::ExitCounts;
use crate::workers::handle::{Alarm, Allowance, Line, Phase, WorkerHandle};
use crate::workers::leftovers::Leftovers;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use prefork_core::Core;
use prefork_protocol::channel::Channel;
use prefork_protocol::message::PROTOCOL;
use prefork_protocol::scoreboard::{Layout, SharedRows, Totals};
use prefork_protocol::{GenerationId, Slot};
use std::collections::BTreeMap;
use std::rc::Rc;

/// What a server that was taken over has still to do.
#[derive(Debug)]
pub(crate) struct Resumption {
    /// The version that it had.
    pub(crate) version: String,
    /// Who asked for the upgrade.
    pub(crate) upgrade: UpgradeState,
    /// Signals that came and were not acted upon.
    pub(crate) signals: Vec<i32>,
    /// Descriptors that this version has no use for.
    pub(crate) rest: Unpacking,
}

impl Server {
    /// Rebuilds a server from a state. What is left to be done about it is for [`resume`](Self::resume).
    pub(crate) fn take_over(task: &Task, identity: &Identity) -> (Self, Resumption) {
        let (state, mut unpacking) = task.read();
        let rest = &mut unpacking;
        let expected = if task.check {
            nix::unistd::getppid().as_raw()
        } else {
            Pid::this().as_raw()
        };
        if i64::from(state.pid) != i64::from(expected) {
            give_up(&format!("the state is process {}'s", state.pid));
        }
        let loader = loader(&state, identity);
        let mut listeners = Listeners::adopted(runtime_directory(), state.inherited, rest);
        let groups = listeners.adopt_groups(state.groups, rest);
        let generations: BTreeMap<GenerationId, Generation> = state
            .generations
            .into_iter()
            .map(|state| (state.id, generation(state, &loader, &groups, rest)))
            .collect();
        if !generations.contains_key(&state.accepted) {
            give_up(&format!(
                "generation {}, which serves, is not in the state",
                state.accepted
            ));
        }
        let expected: Vec<_> = state.core.workers().collect();
        let core = Core::resume(state.core).unwrap_or_else(|reason| give_up(&reason));
        let hands: BTreeMap<_, _> = state
            .hands
            .into_iter()
            .map(|state| (state.id, hand(state, rest, task.check)))
            .collect();
        if let Some(hand) = hands
            .values()
            .find(|hand| !generations.contains_key(&hand.generation))
        {
            give_up(&format!(
                "worker {} is of generation {}, which is not in the state",
                hand.id, hand.generation
            ));
        }
        let found: Vec<_> = hands
            .values()
            .map(|hand| (hand.id, hand.slot, hand.generation))
            .collect();
        if found != expected {
            give_up("the workers that are known are not those that are held");
        }
        let mut dead = vec![Totals::default(); usize::from(Slot::MAX)];
        for totals in &state.totals {
            if let Some(place) = dead.get_mut(totals.slot.index()) {
                *place = totals.totals();
            }
        }
        if !task.check {
            outlet().resume(state.backlog);
        }
        let notify = NotifyServer::adopted(state.notify, rest);
        let control = state
            .control
            .map(|control| ControlServer::adopted(control, rest))
            .unwrap_or_default();
        let systemd = if task.check {
            Notifier::default()
        } else {
            Notifier::from_env().unwrap_or_default()
        };
        let now = clock();
        let stored: Vec<_> = state
            .stored
            .into_iter()
            .map(|one| (one.name, one.inode))
            .collect();
        let offered = std::env::var(prefork_protocol::environment::FDSTORE).ok();
        let store = FdStore::new(now, &systemd, offered.as_deref(), &stored);
        let watchdog = systemd.watchdog_period().map(|period| (period, now));
        let poll = Poll::new()
            .unwrap_or_else(|error| give_up(&format!("cannot make an epoll instance: {error}")));
        let signals = Signals::install()
            .unwrap_or_else(|error| give_up(&format!("cannot install signal handlers: {error}")));
        let server = Self {
            core,
            now,
            poll,
            signals,
            loader,
            name: identity.name.clone(),
            listeners,
            generations,
            accepted: state.accepted,
            hands,
            dead,
            relay: StderrForwarder::default(),
            leftovers: Leftovers::resumed(state.foster),
            deaths: ExitCounts::resumed(state.deaths.into_iter().map(|one| (one.cause, one.count))),
            record: None,
            notify_address: notify.address().to_owned(),
            notify,
            systemd,
            watchdog,
            untold: None,
            settling: None,
            booted: state.booted,
            control,
            journal: Journal::resumed(state.counts.events),
            hooks: Hooks::adopted(state.hooks, rest, task.check),
            gauge: MemorySampler::default(),
            logs: Logs::default(),
            doomed: Terminating::adopted(state.doomed, rest, task.check),
            admin: Admin::adopted(state.leaving, now, rest, task.check),
            counts: Counts {
                started: state.counts.started,
                spawned: state.counts.spawned,
                reloads: state.counts.reloads,
                failed_reloads: state.counts.failed_reloads,
                pictures: state.counts.pictures,
            },
            picture: None,
            waiting: state.waiting.into_iter().collect(),
            last_reload: state.last_reload.map(|last| LastReload {
                generation: last.generation,
                ok: last.reason.is_none(),
                reason: last.reason,
            }),
            // Some may have died while nobody looked.
            look_for_orphans: Some(now),
            groups: state
                .cgroups
                .map(|base| WorkerCgroups::adopted(base.path())),
            rotation: state.rotation,
            store,
            steering_failed: state.steering_failed,
            on_terminal: state.on_terminal,
            upgrade: Upgrade::new(),
            lookouts: ReadinessProbes::default(),
            exit: None,
        };
        if let Err(error) = server.watch_all() {
            give_up(&format!("cannot watch everything: {error}"));
        }
        let (version, upgrade, signals) = (state.version, state.upgrade, state.signals);
        let resumption = Resumption {
            version,
            upgrade,
            signals,
            rest: unpacking,
        };
        (server, resumption)
    }

    fn watch_all(&self) -> std::io::Result<()> {
        self.poll
            .add(&self.signals, Token::Signals, Interest::Read)?;
        self.poll.add(&self.notify, Token::Notify, Interest::Read)?;
        self.hands.values().try_for_each(|hand| self.watch(hand))?;
        self.hooks.watch_all(&self.poll)?;
        self.admin.watch_all(&self.poll)?;
        self.control.watch_all(&self.poll)
    }

    /// How the accepted generation logs.
    pub(crate) fn log_settings(&self) -> Option<&crate::config::LogSettings> {
        self.generations
            .get(&self.accepted)
            .map(|generation| &generation.config.log)
    }
}

fn loader(state: &State, identity: &Identity) -> Loader {
    let arguments = state.arguments.iter().cloned().map(Bytes::text);
    let invocation =
        Source::from_parts(identity, arguments, std::env::vars_os()).unwrap_or_else(|error| {
            give_up(&format!(
                "the command line cannot be read by version {}: {error}",
                identity.version
            ))
        });
    Loader {
        source: invocation.source,
        own_path: state.own_path.clone().path(),
        inherited: state
            .inherited
            .iter()
            .map(|socket| socket.name.clone())
            .collect(),
    }
}

fn speaks(protocol: u16, who: &dyn std::fmt::Display) {
    if protocol != PROTOCOL {
        give_up(&format!(
            "{who} speaks protocol {protocol} to its workers, this version {PROTOCOL} (restart the server to change versions)"
        ));
    }
}

fn generation(
    state: GenerationState,
    loader: &Loader,
    groups: &[Rc<AddressSockets>],
    unpacking: &mut Unpacking,
) -> Generation {
    speaks(state.protocol, &format_args!("generation {}", state.id));
    let origin = Origin {
        file: state.file,
        cpus: usize::try_from(state.cpus).unwrap_or(1),
    };
    let mut config = loader.config_of(&origin).unwrap_or_else(|error| {
        give_up(&format!(
            "generation {} cannot be read by this version: {}",
            state.id,
            error.brief()
        ))
    });
    let ProgramState {
        descriptor,
        path,
        script,
    } = state.program;
    let executable = Executable::adopted(
        unpacking.take(descriptor, Kind::Program),
        path.path(),
        script,
    );
    let confinement = Confinement::prepare(&config)
        .and_then(|mut confinement| {
            confinement.add_sandbox(&mut config, &executable)?;
            Ok(confinement)
        })
        .unwrap_or_else(|error| give_up(&format!("generation {}: {error}", state.id)));
    let mut generation = Generation {
        config,
        sockets: ListenSet::adopted(state.backlog, &state.sockets, groups),
        admin: AdminSockets {
            http: ListenSet::adopted(state.backlog, &state.admin, groups),
            agent: ListenSet::adopted(state.backlog, &state.agent, groups),
        },
        executable,
        confinement,
        opened: state.opened,
        access: None,
        origin,
    };
    let carried = state.access.map(|access| match access {
        AccessState::File(file) => unpacking.take(file, Kind::Lock),
        AccessState::Pipe(pipe) => unpacking.take(pipe, Kind::Pipe),
    });
    generation.access = generation
        .access_target()
        .cloned()
        .map(|target| match carried {
            Some(descriptor) => AccessLog::adopted(&target, descriptor),
            None => AccessLog::open(&target).unwrap_or_else(|reason| give_up(&reason)),
        });
    generation
}

fn hand(state: HandleState, unpacking: &mut Unpacking, check: bool) -> WorkerHandle {
    speaks(state.protocol, &format_args!("worker {}", state.id));
    let pidfd = unpacking.take_process(
        state.pidfd,
        state.pid,
        check,
        &format_args!("worker {}", state.id),
    );
    let line = match state.line {
        LineState::Channel(line) => Line::Channel {
            channel: Channel::from_socket(unpacking.take(line.channel, Kind::Channel)),
            phase: match line.phase {
                PhaseState::Silent => Phase::Silent,
                PhaseState::Greeted => Phase::Greeted,
                PhaseState::Ready => Phase::Ready,
            },
            draining: line.draining,
            allowance: Allowance::default(),
        },
        LineState::Notices(line) => Line::Notify {
            stop: Signal::try_from(line.stop).unwrap_or(Signal::SIGTERM),
            ready: line.ready,
            greeted: line.greeted,
            fed: line.fed,
            allowance: Allowance::default(),
        },
        LineState::Closed => Line::Closed,
    };
    WorkerHandle {
        id: state.id,
        slot: state.slot,
        generation: state.generation,
        pid: Pid::from_raw(state.pid),
        pidfd,
        exec_errors: state.exec_errors.adopted(unpacking),
        line,
        stderr: state.stderr.map(|state| {
            let pipe = state.pipe.map(|pipe| unpacking.take(pipe, Kind::Pipe));
            Capture::adopted(pipe, state.held, &state.last_words, state.cut)
        }),
        rows: state.row.map(|state| rows(&state, unpacking)),
        status: state.status,
        alarm: state.alarm.map(|(time, alarm)| match alarm {
            AlarmState::CountsAsReady => (time, Alarm::CountsAsReady),
            AlarmState::Mute => (time, Alarm::ChannelClosed),
        }),
        // Nobody waits for that any more: a verdict is not held back over an upgrade.
        stopped_accepting: false,
        memory: None,
        // It gets the access log once more.
        reopen_count: 0,
    }
}

fn rows(state: &RowState, unpacking: &mut Unpacking) -> SharedRows {
    let memory = unpacking.take(state.memory, Kind::Memory);
    let layout = Layout {
        size: state.size,
        rows: state.rows,
    };
    SharedRows::open(memory, layout).unwrap_or_else(|error| {
        give_up(&format!(
            "cannot map a worker's rows of the scoreboard: {error}"
        ))
    })
}
