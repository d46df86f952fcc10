//! The state that one version of the supervisor hands to the next.
//!
//! Every struct is a [record](prefork_core::record), so that fields can be appended: the only
//! change that needs no new [`FORMAT`](super::FORMAT). A test compares every byte with those of the
//! first release. A configuration is handed over as its sources, not as its result: the other
//! version parses them itself.

use super::descriptors::{Descriptor, Fd, Kind, Packing, Unpacking};
use crate::api::request::Role;
use crate::process::spawn::{ExecErrors, Spawned};
use nix::unistd::Pid;
use prefork_core::{CoreState, Time, record};
use prefork_protocol::scoreboard::{BUCKETS, Totals};
use prefork_protocol::{GenerationId, Slot, WorkerId};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// An operating-system string: any bytes.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl<T: AsRef<OsStr>> From<T> for Bytes {
    fn from(text: T) -> Self {
        Self(text.as_ref().as_bytes().to_vec())
    }
}

impl Bytes {
    pub(crate) fn text(self) -> OsString {
        OsString::from_vec(self.0)
    }

    pub(crate) fn path(self) -> PathBuf {
        self.text().into()
    }
}

macro_rules! states {
    ($($(#[doc = $doc:literal])+ $name:ident {
        $($field:ident: $type:ty),+ $(,)?
    } $(added { $($(#[$meta:meta])* $new:ident: $new_type:ty = $default:expr),+ $(,)? })?)+) => {$(
        $(#[doc = $doc])+
        #[derive(Debug, Clone)]
        pub(crate) struct $name {
            $(pub(crate) $field: $type,)+
            $($($(#[$meta])* pub(crate) $new: $new_type,)+)?
        }
        record!($name { $($field),+ } $(added { $($(#[$meta])* $new: $default),+ })?);
    )+};
}

states! {
    /// The whole state.
    State {
        version: String,
        pid: u32,
        descriptors: Vec<Descriptor>,
        arguments: Vec<Bytes>,
        own_path: Bytes,
        inherited: Vec<InheritedState>,
        core: CoreState,
        accepted: GenerationId,
        generations: Vec<GenerationState>,
        groups: Vec<GroupState>,
        workers: Vec<HandleState>,
        totals: Vec<TotalsState>,
        deaths: Vec<DeathsState>,
        backlog: Vec<u8>,
        foreign_orphans: bool,
        notify: NotifyState,
        control: Option<ControlState>,
        waiting: Vec<u64>,
        last_reload: Option<ReloadState>,
        booted: bool,
        rotation: Vec<Slot>,
        stored: Vec<StoredState>,
        steering_failed: bool,
        on_terminal: bool,
        signals: Vec<i32>,
        upgrade: UpgradeState,
        cgroups: Option<Bytes>,
    } added {
        counts: CountsState = CountsState { started: 0, spawned: 0, reloads: 0, failed_reloads: 0, events: 0, status_requests: 0 },
        hooks: HooksState = HooksState { running: Vec::new(), waiting: Vec::new(), dropped: 0 },
        leaving: Vec<ChildState> = Vec::new(),
        terminating: Vec<ChildState> = Vec::new(),
        open_files: Option<u64> = None,
        read_at_start: Vec<(String, String)> = Vec::new(),
        #[cfg(feature = "next")]
        novelty: String = "not known to the old version".to_owned(),
    }

    /// The upgrade itself: the clients that wait for its verdict, and the reload that asked for it.
    UpgradeState { clients: Vec<u64>, reload: Option<GenerationId> }

    /// A socket that the supervisor was started with.
    InheritedState { name: String, socket: Fd }

    /// A generation: the text of its file, the CPUs that it counted, and what it has open.
    GenerationState {
        id: GenerationId,
        file: Option<String>,
        cpus: u64,
        protocol: u16,
        program: ProgramState,
        opened: u16,
        backlog: u32,
        sockets: Vec<EntryState>,
    } added {
        admin: Vec<EntryState> = Vec::new(),
        agent: Vec<EntryState> = Vec::new(),
        access: Option<AccessState> = None,
        directory: Option<Fd> = None,
        interpreters: Vec<InterpreterState> = Vec::new(),
        command: Vec<Bytes> = Vec::new(),
        paths: Vec<PathState> = Vec::new(),
    }

    /// The interpreter of a script, or of the interpreter before it, and the argument that the
    /// script's first line gives it.
    InterpreterState { program: ProgramState, argument: Option<Bytes> }

    /// A path that the sandbox names, and what it led to when the generation was loaded.
    PathState { path: Bytes, descriptor: Fd }

    /// A program.
    ProgramState { descriptor: Fd, path: Bytes, script: bool }

    /// A generation's part of an address: the number of its sockets.
    EntryState { group: u32, sockets: u32 } added { label: Option<String> = None }

    /// The sockets of an address.
    GroupState { key: KeyState, text: String, name: String, kind: KindState, lock: Option<LockState> }

    /// The sockets of a TCP address by slot, the reuseport index of each, and the steering socket.
    ReuseportGroupState {
        address: String,
        sockets: Vec<Fd>,
        indices: Vec<Option<u16>>,
        steering: Option<Fd>,
        steering_index: Option<u16>,
        count: u16,
        backlog: u32,
        adopted: bool,
        steered: Vec<u16>,
        scattered: bool,
    }

    /// A Unix socket and its file.
    FileState {
        path: Bytes,
        mode: Option<u32>,
        owner: Option<u32>,
        group: Option<u32>,
        device: u64,
        inode: u64,
        socket: Fd,
    }

    /// The lock of an address.
    LockState { path: Bytes, file: Fd }

    /// A worker.
    HandleState {
        id: WorkerId,
        slot: Slot,
        generation: GenerationId,
        pid: i32,
        pidfd: Fd,
        exec_errors: ExecErrorsState,
        protocol: u16,
        line: LineState,
        stderr: Option<StderrState>,
        row: Option<RowState>,
        status: String,
        alarm: Option<(Time, AlarmState)>,
    } added {
        reported_requests: Option<u64> = None,
        reported_active: Option<u64> = None,
        #[cfg(feature = "next")]
        novelty: Vec<u64> = vec![7],
    }

    /// A helper process: it exits by itself, or is to be reaped.
    ChildState { pid: i32, pidfd: Fd, exec_errors: ExecErrorsState }

    /// The pipe on which a child tells of a failed exec.
    ExecErrorsState { pipe: Fd, program: String, directory: String }

    /// A worker's standard error: the pipe, what was read and not forwarded, the priority of a line
    /// that was cut, and the tail.
    StderrState { pipe: Option<Fd>, held: Vec<u8>, cut: Option<Vec<u8>>, stderr_tail: Vec<u8> }

    /// The line of a Rust worker. Nothing reads `draining` any more.
    ChannelState { channel: Fd, phase: PhaseState, draining: bool }

    /// The line of an external program.
    NoticesState { stop: i32, ready: bool, greeted: bool, fed: Option<Time> }

    /// A worker's rows of the scoreboard: their memory, the size of a row in bytes, and their
    /// number.
    RowState { memory: Fd, size: u32 } added { rows: u32 = 1 }

    /// What dead workers of a slot have done.
    TotalsState { slot: Slot, requests: u64, connections: u64 } added {
        errors: u64 = 0,
        bytes_in: u64 = 0,
        bytes_out: u64 = 0,
        busy_us: u64 = 0,
        latency: Vec<u64> = Vec::new(),
    }

    /// How many workers have died of a cause.
    DeathsState { cause: String, count: u64 }

    /// What has been done since the server started.
    CountsState { started: u64, spawned: u64, reloads: u64, failed_reloads: u64, events: u64 } added { status_requests: u64 = 0 }

    /// Hooks that run, and events that wait for one.
    HooksState { running: Vec<HookState>, waiting: Vec<EventState> } added { dropped: u64 = 0 }

    /// A hook, and when it gets SIGTERM, or SIGKILL.
    HookState { child: ChildState, kind: String, deadline: Time, asked: bool }

    /// An event as a hook reads it.
    EventState { kind: String, json: Vec<u8> }

    /// The socket on which programs notify.
    NotifyState { socket: Fd, address: Bytes, file: Option<Bytes> } added {
        spare: Option<SpareState> = None,
    }

    /// The one of programs that were started while the file of the other one was gone.
    SpareState { socket: Fd, address: Bytes }

    /// The control socket.
    ControlState {
        listener: Fd,
        path: Bytes,
        device: u64,
        inode: u64,
        last: u64,
        pause: Option<Time>,
        clients: Vec<ClientState>,
    } added {
        readers: Option<u32> = None,
    }

    /// A control client.
    ClientState {
        id: u64,
        stream: Fd,
        input: Vec<u8>,
        output: Vec<u8>,
        deadline: Option<Time>,
        answered: bool,
    } added {
        role: Role = Role::Operate,
        follows: bool = false,
    }

    /// A socket that the service manager keeps a copy of: its name there, and its inode.
    StoredState { name: String, inode: u64 }

    /// How a reload ended.
    ReloadState { generation: u32, reason: Option<String> }
}

/// What makes an address the same at the next reload.
#[derive(Debug, Clone, bincode::Encode, bincode::Decode)]
pub(crate) enum KeyState {
    Tcp(String),
    Unix(Bytes),
    Fd(i32),
}

impl TotalsState {
    pub(crate) fn of(slot: Slot, totals: &Totals) -> Self {
        let Totals {
            requests,
            connections,
            errors,
            bytes_in,
            bytes_out,
            busy_us,
            latency,
        } = *totals;
        let latency = latency.to_vec();
        Self {
            slot,
            requests,
            connections,
            errors,
            bytes_in,
            bytes_out,
            busy_us,
            latency,
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        let Self {
            slot: _,
            requests,
            connections,
            errors,
            bytes_in,
            bytes_out,
            busy_us,
            ref latency,
        } = *self;
        let mut buckets = [0; BUCKETS];
        for (bucket, count) in buckets.iter_mut().zip(latency) {
            *bucket = *count;
        }
        Totals {
            requests,
            connections,
            errors,
            bytes_in,
            bytes_out,
            busy_us,
            latency: buckets,
        }
    }
}

impl ExecErrorsState {
    pub(crate) fn of(errors: &ExecErrors, packing: &mut Packing) -> Self {
        let (program, directory) = errors.about();
        let (program, directory) = (program.to_owned(), directory.to_owned());
        Self {
            pipe: packing.add(Kind::Pipe, errors),
            program,
            directory,
        }
    }

    pub(crate) fn adopted(self, unpacking: &mut Unpacking) -> ExecErrors {
        ExecErrors::adopted(
            unpacking.take(self.pipe, Kind::Pipe),
            self.program,
            self.directory,
        )
    }
}

impl ChildState {
    pub(crate) fn of(child: &Spawned, packing: &mut Packing) -> Self {
        Self {
            pid: child.pid.as_raw(),
            pidfd: packing.add(Kind::Process, &child.pidfd),
            exec_errors: ExecErrorsState::of(&child.exec_errors, packing),
        }
    }

    pub(crate) fn adopted(self, unpacking: &mut Unpacking, check: bool, what: &str) -> Spawned {
        Spawned {
            pid: Pid::from_raw(self.pid),
            pidfd: unpacking.take_process(self.pidfd, self.pid, check, &what),
            exec_errors: self.exec_errors.adopted(unpacking),
        }
    }
}

impl State {
    /// Returns the numbers of all descriptors in it.
    pub(crate) fn kept(&self) -> impl Iterator<Item = std::os::fd::RawFd> {
        self.descriptors.iter().map(|descriptor| descriptor.fd.0)
    }
}

/// An access log that is a file or a pipe; anything else is reopened. (By kinds of descriptors that
/// all versions know.)
#[derive(Debug, Clone, Copy, bincode::Encode, bincode::Decode)]
pub(crate) enum AccessState {
    File(Fd),
    Pipe(Fd),
}

/// The kinds of groups.
#[derive(Debug, Clone, bincode::Encode, bincode::Decode)]
pub(crate) enum KindState {
    ReuseportGroup(ReuseportGroupState),
    File(FileState),
    Inherited(Fd),
}

/// How a worker talks to the supervisor.
#[derive(Debug, Clone, bincode::Encode, bincode::Decode)]
pub(crate) enum LineState {
    Channel(ChannelState),
    Notices(NoticesState),
    Closed,
}

/// What a Rust worker may say.
#[derive(Debug, Clone, Copy, bincode::Encode, bincode::Decode)]
pub(crate) enum PhaseState {
    Silent,
    Greeted,
    Ready,
}

/// What to do about a worker at a time.
#[derive(Debug, Clone, Copy, bincode::Encode, bincode::Decode)]
pub(crate) enum AlarmState {
    CountsAsReady,
    Mute,
}
