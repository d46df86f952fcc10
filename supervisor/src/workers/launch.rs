//! Starting one worker: which descriptors, which environment, which welcome.

use super::cgroup::{Limits, WorkerCgroups};
use super::placeholders::Placeholders;
use crate::config::{Config, WorkerStderr};
use crate::generation::Generation;
use crate::listen::ListenError;
use crate::logging;
use crate::logging::stderr::Capture;
use crate::logging::stderr::capture::stream;
use crate::process::spawn::{Order, SpawnError, spawn};
use crate::systemd::journal::{JOURNAL_STREAM, stderr_is_journal};
use crate::workers::handle::{Alarm, Allowance, Line, Phase, Reported, WorkerHandle};
use crate::workers::sockets::WorkerSockets;
use log::debug;
use nix::sys::signal::Signal;
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::Uid;
use prefork_core::Time;
use prefork_protocol::channel::{ChannelError, WorkerEnd};
use prefork_protocol::environment::FIRST_FD;
use prefork_protocol::message::{PROTOCOL, ToWorker, Welcome};
use prefork_protocol::scoreboard::SharedRows;
use prefork_protocol::{GenerationId, Slot, WorkerId, channel, environment as contract};
use std::ffi::{CString, NulError, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// The variable that names the working directory.
const PWD: &str = "PWD";

/// The file system of pipes without a name.
const PIPEFS: FsType = FsType(0x5049_5045);

/// The identity of a worker that is to be started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Role<'a> {
    pub(crate) worker: WorkerId,
    pub(crate) slot: Slot,
    pub(crate) generation: GenerationId,
    /// What its process title begins with.
    pub(crate) name: &'a str,
    /// Where external programs send their notices.
    pub(crate) notify: &'a OsStr,
}

/// Why a worker was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// The sockets of its generation cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// There can be no channel.
    #[error("cannot make the channel of a worker: {0}")]
    Channel(#[source] io::Error),
    /// The channel does not take the welcome.
    #[error("cannot make the channel of a worker: {0}")]
    Welcome(#[source] ChannelError),
    /// There can be no memory for its rows.
    #[error("cannot make a worker's rows of the scoreboard: {0}")]
    Scoreboard(#[source] io::Error),
    /// There can be no pipe for its standard error.
    #[error("cannot make a pipe for a worker's standard error: {0}")]
    Stderr(#[source] io::Error),
    /// There is no port for `{port}`.
    #[error("cannot find a free port for {{port}} in a worker's arguments or variables: {0}")]
    Port(#[source] io::Error),
    /// Something that is passed to exec contains a NUL byte.
    #[error("a NUL byte in the name of a worker or its environment: {0}")]
    Nul(#[from] NulError),
    /// There is no process.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

/// Starts a worker of a generation.
///
/// # Errors
/// Why there is no worker.
pub(crate) fn launch(
    now: Time,
    generation: &mut Generation,
    groups: Option<&mut WorkerCgroups>,
    role: Role<'_>,
) -> Result<WorkerHandle, LaunchError> {
    // All the generation's slots at once: steering, not listen(2), decides who gets connections.
    generation.listen(generation.config.slots().max(role.slot.0 + 1))?;

    let (line, theirs) = line(generation, role)?;
    let rows = theirs
        .as_ref()
        .map(|_| SharedRows::create(generation.config.class().threads))
        .transpose();
    let rows = rows.map_err(LaunchError::Scoreboard)?;
    let sockets = WorkerSockets::of(generation, role.slot);
    let listeners: Vec<BorrowedFd<'_>> = sockets.own.iter().map(|(_, socket)| *socket).collect();
    let siblings = sockets.watched.iter().chain(&sockets.polled).copied();
    let access = generation.access.iter().map(AsFd::as_fd);
    let extras: Vec<BorrowedFd<'_>> = theirs
        .iter()
        .map(AsFd::as_fd)
        .chain(rows.iter().map(AsFd::as_fd))
        .chain(siblings)
        .chain(access)
        .collect();

    let title = format!(
        "{}: worker {} gen {}",
        role.name, role.worker, role.generation
    );
    let placeholders = Placeholders::new(role.worker.0, role.slot.0, role.generation.0);
    let argv = match &generation.command[..] {
        [] => vec![CString::new(title)?],
        _ if generation.has_channel() => vec![CString::new(title)?],
        [program, arguments @ ..] => {
            let fill = |word: &CString| {
                let filled = placeholders
                    .fill(word.as_bytes())
                    .map_err(LaunchError::Port)?;
                Ok(CString::new(filled)?)
            };
            let arguments = arguments.iter().map(fill);
            let program = Ok(program.clone());
            [program]
                .into_iter()
                .chain(arguments)
                .collect::<Result<_, LaunchError>>()?
        }
    };
    let group = groups.and_then(|groups| groups.open(role.worker, Limits::of(&generation.config)));
    let (capture, stderr) = match generation.config.worker_stderr {
        WorkerStderr::Inherit => (None, None),
        WorkerStderr::Capture => {
            let (ours, theirs) = Capture::open().map_err(LaunchError::Stderr)?;
            (Some(ours), Some(theirs))
        }
    };
    give_streams(&generation.config, stderr.as_ref());
    let order = Order {
        executable: &generation.executable,
        argv: &argv,
        env: environment(generation, role, &sockets, stderr.as_ref(), &placeholders)?,
        listeners: &listeners,
        extras: &extras,
        kept: &[],
        stdin: None,
        stderr: stderr.as_ref().map(AsFd::as_fd),
        directory: generation.directory.as_ref(),
        // A Rust worker finishes what it can within a second of the supervisor's death.
        death_signal: if theirs.is_some() {
            Signal::SIGTERM
        } else {
            Signal::SIGKILL
        },
        cgroup: group.as_ref().map(AsFd::as_fd),
        confinement: &generation.confinement,
    };
    let spawned = spawn(&order)?;
    let alarm = match line {
        Line::Notify { .. } => generation
            .config
            .ready
            .silence()
            .map(|silence| (now + silence, Alarm::CountsAsReady)),
        Line::Channel { .. } | Line::Closed => None,
    };
    // `theirs` is dropped here: the supervisor must not hold the worker's end, or EOF never
    // arrives.
    Ok(WorkerHandle {
        id: role.worker,
        slot: role.slot,
        generation: role.generation,
        pid: spawned.pid,
        pidfd: spawned.pidfd,
        exec_errors: spawned.exec_errors,
        line,
        rows,
        stderr: capture,
        status: String::new(),
        problem: None,
        outlived: None,
        reported: Reported::default(),
        alarm,
        memory: None,
        reopen_count: generation.access.as_ref().map_or(0, |log| log.reopen_count),
        exit: None,
    })
}

/// Makes the worker's user the owner of the pipes that are its standard output and error, as
/// container runtimes do. Programs open `/dev/stdout` and `/dev/stderr`, which the owner alone may.
fn give_streams(config: &Config, stderr: Option<&OwnedFd>) {
    let Some(user) = &config.privileges.user else {
        return;
    };
    let give = |stream: BorrowedFd<'_>| {
        // A named pipe, a terminal or a file keeps its owner: others see it, too.
        let anonymous = fstatfs(stream).is_ok_and(|about| about.filesystem_type() == PIPEFS);
        if anonymous && fstat(stream).is_ok_and(|status| status.st_uid != user.uid) {
            let owner = Some(Uid::from_raw(user.uid));
            if let Err(error) = nix::unistd::fchown(stream, owner, None) {
                debug!("cannot make {user} the owner of a worker's standard streams: {error}");
            }
        }
    };
    give(io::stdout().as_fd());
    match stderr {
        Some(pipe) => give(pipe.as_fd()),
        None => give(io::stderr().as_fd()),
    }
}

/// Makes the worker's line: a channel in which its welcome waits, or the notification socket.
fn line(generation: &Generation, role: Role<'_>) -> Result<(Line, Option<WorkerEnd>), LaunchError> {
    if !generation.has_channel() {
        let stop = generation.config.stop_signal;
        let allowance = Allowance::default();
        return Ok((
            Line::Notify {
                stop,
                ready: false,
                greeted: false,
                fed: None,
                allowance,
            },
            None,
        ));
    }
    let (ours, theirs) = channel::pair().map_err(LaunchError::Channel)?;
    let welcome = Welcome {
        protocol: PROTOCOL,
        worker: role.worker,
        slot: role.slot,
        generation: role.generation,
        workers: generation.config.slots(),
        settings: generation.config.worker_settings(),
    };
    ours.send(&ToWorker::Welcome(welcome))
        .map_err(LaunchError::Welcome)?;
    let line = Line::Channel {
        channel: ours,
        phase: Phase::Silent,
        allowance: Allowance::default(),
    };
    Ok((line, Some(theirs)))
}

/// Returns a worker's environment: the supervisor's own without what was meant for it alone, the
/// configured variables, and the worker contract.
fn environment(
    generation: &Generation,
    role: Role<'_>,
    sockets: &WorkerSockets<'_>,
    stderr: Option<&OwnedFd>,
    placeholders: &Placeholders,
) -> Result<Vec<CString>, LaunchError> {
    let config = &generation.config;
    let names: Vec<&str> = sockets.own.iter().map(|(name, _)| name.as_str()).collect();
    let mut set: Vec<(&str, OsString)> = vec![
        (contract::LISTEN_FDS, names.len().to_string().into()),
        // The child writes its own pid here.
        (contract::LISTEN_PID, OsString::new()),
        (contract::LISTEN_FDNAMES, names.join(":").into()),
        (contract::PREFORK_WORKER, role.worker.to_string().into()),
        (contract::PREFORK_SLOT, role.slot.to_string().into()),
        (
            contract::PREFORK_GENERATION,
            role.generation.to_string().into(),
        ),
        (contract::PREFORK_WORKERS, config.slots().to_string().into()),
    ];
    if generation.has_channel() {
        let first_extra = usize::try_from(FIRST_FD).unwrap_or(3) + names.len();
        set.push((contract::PREFORK_CHANNEL, first_extra.to_string().into()));
        set.push((
            contract::PREFORK_SCOREBOARD,
            (first_extra + 1).to_string().into(),
        ));
        set.push((contract::PREFORK_ACCEPT, config.accept.as_str().into()));
        set.push((contract::PREFORK_SIBLINGS, sockets.siblings().into()));
        if generation.access.is_some() {
            let number = first_extra + 2 + sockets.watched.len() + sockets.polled.len();
            set.push((contract::PREFORK_ACCESS_LOG, number.to_string().into()));
            set.push((
                contract::PREFORK_ACCESS_FORMAT,
                config.access_log_format.to_string().into(),
            ));
        }
        if let Some(slow) = config.slow_log {
            set.push((
                contract::PREFORK_SLOW_LOG,
                slow.as_millis().to_string().into(),
            ));
        }
        set.extend(
            logging::environment(&config.log, stderr.is_some())
                .into_iter()
                .map(|(key, value)| (key, value.into())),
        );
        set.push((
            contract::PREFORK_CORE_DUMPS,
            config.privileges.core_dumps.as_str().into(),
        ));
    } else {
        set.push((contract::NOTIFY_SOCKET, role.notify.to_owned()));
        if let Some(timeout) = config.worker_watchdog() {
            set.push((
                contract::WATCHDOG_USEC,
                timeout.as_micros().to_string().into(),
            ));
            set.push((contract::WATCHDOG_PID, OsString::new()));
        }
    }
    // Where our standard error is the journal, a worker's ends there too, with its priorities.
    if let Some(pipe) = stderr.filter(|_| stderr_is_journal()) {
        set.extend(stream(pipe).map(|stream| (JOURNAL_STREAM, stream.into())));
    }
    for (key, value) in &config.env {
        let value = placeholders.fill(value.as_bytes());
        let value = OsString::from_vec(value.map_err(LaunchError::Port)?);
        set.push((key.as_str(), value));
    }
    Ok(common_environment(generation, set)?)
}

/// Returns the environment of whatever runs in the workers' place: the supervisor's own without
/// what was meant for it alone, the configured variables, and `set`.
pub(crate) fn common_environment<'a>(
    generation: &'a Generation,
    mut set: Vec<(&'a str, OsString)>,
) -> Result<Vec<CString>, NulError> {
    let config = &generation.config;
    // The supervisor's own would name another directory, or another release.
    if let Some(directory) = &generation.directory
        && !config.env.contains_key(PWD)
    {
        set.push((PWD, directory.path().into()));
    }
    let confined = generation
        .confinement
        .variables()
        .iter()
        .filter(|(key, _)| !config.env.contains_key(*key));
    set.extend(confined.cloned());
    for (key, value) in &config.env {
        // A worker's are there already, with its own numbers in them.
        if !set.iter().any(|(name, _)| name == key) {
            set.push((key.as_str(), value.into()));
        }
    }
    let ours = |key: &OsStr| {
        contract::ALL
            .iter()
            .chain(&[logging::FORMAT_VARIABLE, logging::FILE_VARIABLE])
            .any(|name| key == *name)
            || set.iter().any(|(name, _)| key == *name)
    };
    let inherited = std::env::vars_os().filter(|(key, _)| !ours(key));
    let all = inherited.chain(
        set.iter()
            .map(|(key, value)| (OsString::from(key), value.clone())),
    );
    all.map(|(mut key, value)| {
        key.push("=");
        key.push(value);
        CString::new(key.into_vec())
    })
    .collect()
}
