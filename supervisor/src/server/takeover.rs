//! A state becomes a server again: the other half of [`upgrade`](super::upgrade).
//!
//! The same code checks a state, in a child that then exits, and takes it over. It [gives
//! up](give_up) at the first thing that is not as it should be, and drops nothing before that.

use super::access_logs::AccessLogs;
use super::generations::Generations;
use super::helpers::{Helpers, HelpersState};
use super::lost_sockets::LostSockets;
use super::operators::{Counts, Operators};
use super::preflight::Preflight;
use super::stderr::StderrForwarder;
use super::systemd::Systemd;
use super::upgrade::{Resumption, Upgrade};
use super::workers::Workers;
use super::{Server, Steering, clock};
use crate::api::events::Journal;
use crate::api::status::LastReload;
use crate::config::{Config, Identity, Program, Source};
use crate::control::{ControlServer, runtime_directory};
use crate::generation::loader::Loader;
use crate::generation::{AdminSockets, Generation, Origin, command};
use crate::listen::{AddressSockets, ListenSet, Listeners};
use crate::logging::access_log::AccessLog;
use crate::logging::stderr::Capture;
use crate::logging::stderr::writer::stderr_writer;
use crate::process::poll::Poll;
use crate::process::signals::Signals;
use crate::process::spawn::{Directory, Executable, Interpreter};
use crate::sandbox::{Confinement, HeldPaths, resume_open_files};
use crate::systemd::notify::NotifyServer;
use crate::upgrade::{
    AccessState, AlarmState, Bytes, Fd, GenerationState, HandleState, InterpreterState, Kind,
    LineState, PathState, PhaseState, ProgramState, RowState, State, Task, Unpacking, give_up,
};
use crate::workers::cgroup::WorkerCgroups;
use crate::workers::exits::ExitCounts;
use crate::workers::handle::{Alarm, Allowance, Line, Phase, Reported, WorkerHandle};
use crate::workers::leftovers::Leftovers;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use prefork_core::{Core, CoreState};
use prefork_protocol::channel::Channel;
use prefork_protocol::message::PROTOCOL;
use prefork_protocol::scoreboard::{Layout, SharedRows};
use prefork_protocol::{GenerationId, WorkerId};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::rc::Rc;

impl Server {
    /// Rebuilds a server from a state. What is left to be done about it is for
    /// [`resume`](Self::resume).
    pub(crate) fn take_over(task: &Task, identity: &Identity) -> (Self, Resumption) {
        let check = task.check;
        let (state, mut unpacking) = task.read();
        let rest = &mut unpacking;
        let expected = if check {
            nix::unistd::getppid()
        } else {
            Pid::this()
        };
        if i64::from(state.pid) != i64::from(expected.as_raw()) {
            give_up(&format!("the state is process {}'s", state.pid));
        }
        let now = clock();
        resume_open_files(state.open_files);
        let loader = loader(&state, identity);
        let (generations, handles) = (state.generations, state.workers);
        let mut listeners = Listeners::adopted(runtime_directory(), state.inherited, rest);
        let groups = listeners.adopt_groups(state.groups, rest);
        let held = adopt_generations(generations, state.accepted, &loader, &groups, rest);
        let read_at_start = read_at_start(state.read_at_start, &held, state.accepted);
        let (core, handles) = adopt_workers(state.core, handles, &held, rest, check);
        if !check {
            stderr_writer().resume(state.backlog);
        }
        let notify = NotifyServer::adopted(state.notify, rest);
        let control = state
            .control
            .map(|control| ControlServer::adopted(control, rest));
        let stored: Vec<_> = state
            .stored
            .into_iter()
            .map(|one| (one.name, one.inode))
            .collect();
        let systemd = if check {
            Systemd::silent(now, &stored)
        } else {
            Systemd::connect(now, &stored)
        };
        let helpers = HelpersState {
            hooks: state.hooks,
            leaving: state.leaving,
            useless: state.terminating,
        };
        let exits = state.deaths.into_iter().map(|one| (one.cause, one.count));
        let cgroups = state
            .cgroups
            .map(|base| WorkerCgroups::adopted(base.path()));
        let mut workers = Workers {
            handles,
            exits: ExitCounts::resumed(exits),
            leftovers: Leftovers::resumed(state.foreign_orphans),
            // Some may have died during the exec.
            orphans_due: Some(now),
            ..Workers::new(notify, cgroups)
        };
        for totals in &state.totals {
            if let Some(place) = workers.past_totals.get_mut(totals.slot.index()) {
                *place = totals.totals();
            }
        }
        let last_reload = state.last_reload.map(|last| LastReload {
            generation: last.generation,
            ok: last.reason.is_none(),
            reason: last.reason,
        });
        let server = Self {
            core,
            now,
            poll: Poll::new().unwrap_or_else(|error| {
                give_up(&format!("cannot make an epoll instance: {error}"))
            }),
            signals: Signals::install().unwrap_or_else(|error| {
                give_up(&format!("cannot install signal handlers: {error}"))
            }),
            name: identity.name.clone(),
            on_terminal: state.on_terminal,
            booted: state.booted,
            exit: None,
            generations: Generations {
                loader,
                listeners,
                held,
                accepted: state.accepted,
                read_at_start,
            },
            workers,
            steering: Steering {
                rotation: state.rotation,
                failed: state.steering_failed,
            },
            helpers: Helpers::adopted(helpers, now, rest, check),
            operators: Operators {
                control: control.unwrap_or_default(),
                journal: Journal::resumed(state.counts.events),
                counts: Counts::resumed(&state.counts),
                status_line: None,
                waiting: state.waiting.into_iter().collect(),
                last_reload,
            },
            systemd,
            upgrade: Upgrade::new(),
            preflight: Preflight::default(),
            stderr: StderrForwarder::default(),
            access_logs: AccessLogs::default(),
            lost_sockets: LostSockets::default(),
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

    /// Returns how the accepted generation logs.
    pub(crate) fn log_settings(&self) -> Option<&crate::config::LogSettings> {
        let accepted = self.generations.accepted();
        accepted.map(|generation| &generation.config.log)
    }
}

fn adopt_generations(
    states: Vec<GenerationState>,
    accepted: GenerationId,
    loader: &Loader,
    groups: &[Rc<AddressSockets>],
    unpacking: &mut Unpacking,
) -> BTreeMap<GenerationId, Generation> {
    let adopted = states
        .into_iter()
        .map(|state| (state.id, generation(state, loader, groups, unpacking)));
    let held: BTreeMap<GenerationId, Generation> = adopted.collect();
    if !held.contains_key(&accepted) {
        give_up(&format!(
            "generation {accepted}, which serves, is not in the state"
        ));
    }
    held
}

/// Returns the values of the options that a reload cannot change. The log starts anew with an
/// upgrade, and an older version does not tell the others.
fn read_at_start(
    before: Vec<(String, String)>,
    held: &BTreeMap<GenerationId, Generation>,
    accepted: GenerationId,
) -> BTreeMap<String, String> {
    let now = held.get(&accepted).map(|it| it.config.read_at_start());
    let mut values: BTreeMap<_, _> = now.unwrap_or_default().into_iter().collect();
    let before = before.into_iter();
    values.extend(before.filter(|(name, _)| !name.starts_with("log-")));
    values
}

/// Takes over the core and the workers, which must be the ones that the core knows.
fn adopt_workers(
    core: CoreState,
    states: Vec<HandleState>,
    generations: &BTreeMap<GenerationId, Generation>,
    unpacking: &mut Unpacking,
    check: bool,
) -> (Core, BTreeMap<WorkerId, WorkerHandle>) {
    let expected: Vec<_> = core.workers().collect();
    let core = Core::resume(core).unwrap_or_else(|reason| give_up(&reason));
    let handles: BTreeMap<WorkerId, WorkerHandle> = states
        .into_iter()
        .map(|state| (state.id, handle(state, unpacking, check)))
        .collect();
    let mut unheld = handles.values();
    if let Some(handle) = unheld.find(|it| !generations.contains_key(&it.generation)) {
        give_up(&format!(
            "worker {} is of generation {}, which is not in the state",
            handle.id, handle.generation
        ));
    }
    let found: Vec<_> = handles
        .values()
        .map(|it| (it.id, it.slot, it.generation))
        .collect();
    if found != expected {
        give_up("the workers that are known are not those that are held");
    }
    (core, handles)
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
    let directory = adopt_directory(state.directory, &config, unpacking);
    let executable = program(
        state.program,
        state.interpreters,
        directory.as_ref(),
        unpacking,
    );
    let command = if state.command.is_empty() {
        command::words(&config, &executable, directory.as_ref())
    } else {
        let words = state.command.into_iter();
        words
            .filter_map(|Bytes(word)| CString::new(word).ok())
            .collect()
    };
    if let (Program::App(app), Some(pinned)) = (&mut config.program, command.first()) {
        *app = pinned.to_string_lossy().into_owned();
    }
    let held = state
        .paths
        .into_iter()
        .map(|PathState { path, descriptor }| {
            let held = unpacking.take(descriptor, Kind::Program);
            (path.path(), held)
        });
    let held = HeldPaths::adopted(held);
    let confinement = Confinement::prepare(&config)
        .and_then(|mut confinement| {
            confinement.hold(held);
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
        directory,
        executable,
        command,
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

/// Goes on with the directory of a generation. A version that held none entered it by name.
fn adopt_directory(
    held: Option<Fd>,
    config: &Config,
    unpacking: &mut Unpacking,
) -> Option<Directory> {
    let path = config.directory.as_ref()?;
    Some(match held {
        Some(held) => Directory::adopted(unpacking.take(held, Kind::Program), path.clone()),
        None => Directory::open(None, path).unwrap_or_else(|errno| {
            give_up(&format!(
                "cannot open directory {}: {}",
                path.display(),
                errno.desc()
            ))
        }),
    })
}

/// Goes on with a program and its interpreters.
fn program(
    state: ProgramState,
    interpreters: Vec<InterpreterState>,
    directory: Option<&Directory>,
    unpacking: &mut Unpacking,
) -> Executable {
    let mut interpreter = None;
    // Each is run by the one after it.
    for InterpreterState { program, argument } in interpreters.into_iter().rev() {
        let descriptor = unpacking.take(program.descriptor, Kind::Program);
        interpreter = Some(Interpreter {
            program: Executable::adopted(descriptor, program.path.path(), interpreter),
            argument: argument.and_then(|Bytes(word)| CString::new(word).ok()),
        });
    }
    let descriptor = unpacking.take(state.descriptor, Kind::Program);
    let path = state.path.path();
    if state.script && interpreter.is_none() {
        // A version that held none had it found by name.
        interpreter = Interpreter::of_adopted(&descriptor, &path, directory)
            .unwrap_or_else(|error| give_up(&error.to_string()));
    }
    Executable::adopted(descriptor, path, interpreter)
}

fn handle(state: HandleState, unpacking: &mut Unpacking, check: bool) -> WorkerHandle {
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
            Capture::adopted(pipe, state.held, &state.stderr_tail, state.cut)
        }),
        rows: state.row.map(|state| rows(&state, unpacking)),
        status: state.status,
        problem: None,
        outlived: None,
        reported: Reported {
            requests: state.reported_requests,
            active: state.reported_active,
        },
        alarm: state.alarm.map(|(time, alarm)| match alarm {
            AlarmState::CountsAsReady => (time, Alarm::CountsAsReady),
            AlarmState::Mute => (time, Alarm::ChannelClosed),
        }),
        memory: None,
        // It gets the access log once more.
        reopen_count: 0,
        exit: None,
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
