//! The environment of a worker: systemd's contract for any program, and a little more for programs
//! that link `prefork-worker`.
//!
//! * `LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`: listening sockets: descriptors from 3 on, for
//!   whom, their names (sd_listen_fds(3))
//! * `NOTIFY_SOCKET`: where to send `READY=1`, `STATUS=`, `WATCHDOG=1`, `STOPPING=1` (sd_notify(3))
//! * `WATCHDOG_USEC`, `WATCHDOG_PID`: say `WATCHDOG=1` at least this often (optional)
//!   (sd_watchdog_enabled(3))
//! * `PREFORK_WORKER`: the worker's id; whatever carries it is killed when that worker is dead
//! * `PREFORK_SLOT`, `PREFORK_GENERATION`, `PREFORK_WORKERS`: which slot, which generation, how
//!   many workers (of a range, the most)
//! * `PREFORK_CHANNEL`, `PREFORK_SCOREBOARD`: descriptors of the channel and the scoreboard, for
//!   Rust workers only
//! * `PREFORK_ACCEPT`: `own`, `steal` or `shared`: whose queues to take connections from, for Rust
//!   workers only
//! * `PREFORK_SIBLINGS`: `N,M`: how many sockets of other slots to watch, and to poll; their
//!   descriptors follow the scoreboard's
//! * `PREFORK_EVENT`: the kind of the event that a program of `--on-event` is started for; workers
//!   have none
//! * `PREFORK_ACCESS_LOG`, `PREFORK_ACCESS_FORMAT`: the descriptor of the access log, and the
//!   format of its lines, for Rust workers only
//! * `PREFORK_SLOW_LOG`: milliseconds from which on a request is slow, for Rust workers only
//! * `PREFORK_CORE_DUMPS`: `on`, `abort` or `off`: when to leave a core dump, and so whether other
//!   processes may inspect it, for Rust workers only

use crate::access_log::{Format, FormatError};
use crate::channel::{Channel, WorkerEnd};
use crate::settings::{Accept, SettingError};
use prefork_os::adopt;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::str::FromStr;
use thiserror::Error;

/// The number of inherited listening sockets.
pub const LISTEN_FDS: &str = "LISTEN_FDS";
/// The pid that they are meant for.
pub const LISTEN_PID: &str = "LISTEN_PID";
/// Their names, separated by colons.
pub const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
/// The address of the notification socket.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// How many descriptors systemd keeps for a service at most.
pub const FDSTORE: &str = "FDSTORE";
/// The watchdog's period in microseconds.
pub const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
/// The pid that the watchdog watches.
pub const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// The worker's id; by it, what the worker leaves behind is found.
pub const PREFORK_WORKER: &str = "PREFORK_WORKER";
/// The worker's slot.
pub const PREFORK_SLOT: &str = "PREFORK_SLOT";
/// The worker's generation.
pub const PREFORK_GENERATION: &str = "PREFORK_GENERATION";
/// How many workers the server runs.
pub const PREFORK_WORKERS: &str = "PREFORK_WORKERS";
/// The descriptor of the worker's end of the channel.
pub const PREFORK_CHANNEL: &str = "PREFORK_CHANNEL";
/// The descriptor of the scoreboard.
pub const PREFORK_SCOREBOARD: &str = "PREFORK_SCOREBOARD";

/// Whose queues the worker takes connections from.
pub const PREFORK_ACCEPT: &str = "PREFORK_ACCEPT";
/// How many sockets of other slots follow the scoreboard: watched ones, and polled ones.
pub const PREFORK_SIBLINGS: &str = "PREFORK_SIBLINGS";
/// When to leave a core dump.
pub const PREFORK_CORE_DUMPS: &str = "PREFORK_CORE_DUMPS";

/// The descriptor of the access log.
pub const PREFORK_ACCESS_LOG: &str = "PREFORK_ACCESS_LOG";
/// How the lines of the access log look.
pub const PREFORK_ACCESS_FORMAT: &str = "PREFORK_ACCESS_FORMAT";
/// From how many milliseconds on a request is slow.
pub const PREFORK_SLOW_LOG: &str = "PREFORK_SLOW_LOG";

/// The kind of the event that a hook is started for.
pub const PREFORK_EVENT: &str = "PREFORK_EVENT";

/// What a helper of the supervisor is started for: its role, and what belongs to it. Its command line
/// is its title alone.
pub const PREFORK_HELPER: &str = "PREFORK_HELPER";

/// Every variable of the contract. A supervisor removes them from what it inherited before it sets
/// its own.
pub const ALL: [&str; 21] = [
    LISTEN_FDS,
    LISTEN_PID,
    LISTEN_FDNAMES,
    NOTIFY_SOCKET,
    FDSTORE,
    WATCHDOG_USEC,
    WATCHDOG_PID,
    PREFORK_WORKER,
    PREFORK_SLOT,
    PREFORK_GENERATION,
    PREFORK_WORKERS,
    PREFORK_CHANNEL,
    PREFORK_SCOREBOARD,
    PREFORK_ACCEPT,
    PREFORK_SIBLINGS,
    PREFORK_ACCESS_LOG,
    PREFORK_ACCESS_FORMAT,
    PREFORK_SLOW_LOG,
    PREFORK_CORE_DUMPS,
    PREFORK_EVENT,
    PREFORK_HELPER,
];

/// The first inherited descriptor, by systemd's convention.
pub const FIRST_FD: RawFd = prefork_os::spawn::FIRST_FD;

/// A listening socket that was inherited, with the name it was given.
#[derive(Debug)]
pub struct Inherited {
    /// Its name; `unknown` when it has none.
    pub name: String,
    /// The socket, closed on exec.
    pub socket: OwnedFd,
}

/// What a Rust worker inherits.
#[derive(Debug)]
pub struct WorkerEnvironment {
    /// The channel to the supervisor.
    pub channel: WorkerEnd,
    /// The scoreboard's memory.
    pub scoreboard: OwnedFd,
    /// Listening sockets, the worker's own slot's.
    pub listeners: Vec<Inherited>,
    /// Whose queues to take connections from.
    pub accept: Accept,
    /// Sockets of the next slots around the ring, nearest first: watched like the worker's own.
    pub watched: Vec<OwnedFd>,
    /// Sockets of the slots beyond: polled at each heartbeat, as connections may be left in them.
    pub polled: Vec<OwnedFd>,
    /// Where a line for each request goes, and how it looks.
    pub access: Option<(OwnedFd, Format)>,
    /// From how many milliseconds on a request is slow.
    pub slow_ms: Option<u64>,
}

/// Which variable of the environment is wrong, and how.
#[derive(Debug, Error)]
pub enum EnvironmentError {
    /// There is a channel and no scoreboard.
    #[error("{PREFORK_SCOREBOARD}: is not set, although {PREFORK_CHANNEL} is")]
    NoScoreboard,
    /// A variable names a descriptor that this process does not have.
    #[error("{variable}: descriptor {fd}: {error}")]
    Descriptor {
        /// The variable.
        variable: &'static str,
        /// The descriptor it names.
        fd: RawFd,
        /// What the system says about it.
        #[source]
        error: io::Error,
    },
    /// A variable is to be a number and is none.
    #[error("{variable}: `{text}` is no number")]
    NotANumber {
        /// The variable.
        variable: &'static str,
        /// Its value.
        text: String,
    },
    /// The counts of sibling sockets cannot be read.
    #[error("{PREFORK_SIBLINGS}: `{0}` is no pair of counts")]
    Siblings(String),
    /// There is no such way to accept.
    #[error("{PREFORK_ACCEPT}: {0}")]
    Accept(#[from] SettingError),
    /// The lines of the access log cannot be written like this.
    #[error("{PREFORK_ACCESS_FORMAT}: {0}")]
    AccessFormat(#[from] FormatError),
}

/// Whether this process was started as a Rust worker by a supervisor.
pub fn is_worker() -> bool {
    std::env::var_os(PREFORK_CHANNEL).is_some()
}

/// Takes the listening sockets that systemd (or a supervisor) handed to this process; none when
/// there are none.
///
/// # Errors
/// When the variables contradict each other or name descriptors that are not open, or were taken.
pub fn take_listeners() -> Result<Vec<Inherited>, EnvironmentError> {
    let Some(pid) = number::<u32>(LISTEN_PID)? else {
        return Ok(Vec::new());
    };
    if pid != std::process::id() {
        return Ok(Vec::new());
    }
    let count = number::<RawFd>(LISTEN_FDS)?.unwrap_or(0);
    let names = std::env::var(LISTEN_FDNAMES).unwrap_or_default();
    let mut names = names.split(':').filter(|name| !name.is_empty());
    (FIRST_FD..FIRST_FD.saturating_add(count.max(0)))
        .map(|fd| {
            let socket = adopt(fd).map_err(|error| EnvironmentError::Descriptor {
                variable: LISTEN_FDS,
                fd,
                error,
            })?;
            Ok(Inherited {
                name: names.next().unwrap_or("unknown").to_owned(),
                socket,
            })
        })
        .collect()
}

impl WorkerEnvironment {
    /// Takes what the supervisor left in the environment, or `None` when this process is no Rust
    /// worker.
    ///
    /// # Errors
    /// When the variables contradict each other or name descriptors that are not open, or were
    /// taken.
    pub fn take() -> Result<Option<Self>, EnvironmentError> {
        let Some(channel) = number::<RawFd>(PREFORK_CHANNEL)? else {
            return Ok(None);
        };
        let scoreboard =
            number::<RawFd>(PREFORK_SCOREBOARD)?.ok_or(EnvironmentError::NoScoreboard)?;
        let accept = parsed(PREFORK_ACCEPT)?.unwrap_or_default();
        let Siblings { watched, polled } = parsed(PREFORK_SIBLINGS)?.unwrap_or_default();
        let take = |variable: &'static str, fd: RawFd| {
            adopt(fd).map_err(|error| EnvironmentError::Descriptor {
                variable,
                fd,
                error,
            })
        };
        let mut siblings = (scoreboard + 1..)
            .take(watched + polled)
            .map(|fd| take(PREFORK_SIBLINGS, fd))
            .collect::<Result<Vec<_>, _>>()?;
        let access = match (
            number::<RawFd>(PREFORK_ACCESS_LOG)?,
            parsed(PREFORK_ACCESS_FORMAT)?,
        ) {
            (Some(fd), Some(format)) => Some((take(PREFORK_ACCESS_LOG, fd)?, format)),
            _ => None,
        };
        Ok(Some(Self {
            access,
            slow_ms: number(PREFORK_SLOW_LOG)?,
            listeners: take_listeners()?,
            channel: Channel::from_socket(take(PREFORK_CHANNEL, channel)?),
            scoreboard: take(PREFORK_SCOREBOARD, scoreboard)?,
            accept,
            polled: siblings.split_off(watched),
            watched: siblings,
        }))
    }
}

/// The value of [`PREFORK_SIBLINGS`].
#[derive(Default)]
struct Siblings {
    watched: usize,
    polled: usize,
}

impl FromStr for Siblings {
    type Err = EnvironmentError;

    fn from_str(text: &str) -> Result<Self, EnvironmentError> {
        let counts = text.split_once(',').and_then(|(watched, polled)| {
            Some(Self {
                watched: watched.parse::<u16>().ok()?.into(),
                polled: polled.parse::<u16>().ok()?.into(),
            })
        });
        counts.ok_or_else(|| EnvironmentError::Siblings(text.to_owned()))
    }
}

/// The number in a variable; `None` when it is not set.
fn number<T: FromStr>(variable: &'static str) -> Result<Option<T>, EnvironmentError> {
    let Ok(text) = std::env::var(variable) else {
        return Ok(None);
    };
    match text.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(EnvironmentError::NotANumber { variable, text }),
    }
}

/// The value of a variable; `None` when it is not set.
fn parsed<T: FromStr>(variable: &'static str) -> Result<Option<T>, EnvironmentError>
where
    EnvironmentError: From<T::Err>,
{
    let Ok(text) = std::env::var(variable) else {
        return Ok(None);
    };
    Ok(Some(text.parse()?))
}
