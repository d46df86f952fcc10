//! A server under test, as the suite sees it: addresses, processes, and what can be asked of it.
//!
//! The suite does what it can from outside (signals to workers, load, facts from `/proc`) and asks
//! the subject for the rest. What a server cannot do stays [`Verdict::Unsupported`], which the
//! report lists and does not count as a failure.

pub mod peers;
mod prefork;

pub use prefork::Prefork;

use crate::service::Spoil;
use std::path::PathBuf;
use std::time::Duration;
use testkit::Address;
use testkit::process::Process;

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It did what was asked.
    Done,
    /// It said no, with this reason, and changed nothing.
    Refused(String),
    /// It cannot do that.
    Unsupported(String),
    /// It did something else than what was asked. The run has failed.
    Wrong(String),
}

impl Verdict {
    /// From a result: an error is [`Verdict::Wrong`].
    pub fn of(result: Result<Self, String>) -> Self {
        result.unwrap_or_else(Self::Wrong)
    }

    /// Its name in the report.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused(_) => "refused",
            Self::Unsupported(_) => "skipped",
            Self::Wrong(_) => "WRONG",
        }
    }
}

/// How a reload is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// By a signal.
    Signal,
    /// By several signals, one right after the other.
    Signals(u32),
    /// By name, with a verdict.
    Control,
}

/// What is wrong with a reload that must fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The configuration cannot be read.
    Syntax,
    /// The configuration sets something that does not exist.
    UnknownKey,
    /// The configuration is gone.
    Missing,
    /// It wants an address that this machine does not have.
    Address,
    /// The program breaks.
    Program(Spoil),
    /// A new worker is killed when it serves already, and before it is trusted. It is the suite
    /// that kills it, since what a program holds when it exits by itself is unknown.
    Killed,
}

impl Broken {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Syntax,
        Self::UnknownKey,
        Self::Missing,
        Self::Address,
        Self::Program(Spoil::Exits),
        Self::Program(Spoil::NeverReady),
        Self::Program(Spoil::Declines),
        Self::Killed,
    ];

    /// Its name in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::UnknownKey => "unknown-key",
            Self::Missing => "missing-file",
            Self::Address => "address",
            Self::Program(spoil) => spoil.as_str(),
            Self::Killed => "killed-in-min-ready",
        }
    }
}

/// What clients may ask for. The answers are checked byte for byte in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offers {
    /// `POST /echo`.
    pub echo: bool,
    /// `/wait` and `/block`.
    pub handlers: bool,
    /// Keys of `/bytes` are below this; a server of files has only this many. `None`: any key, each
    /// used once.
    pub keys: Option<u64>,
    /// Several requests on their way at once on a connection.
    pub pipelining: bool,
}

impl Offers {
    /// All of it.
    pub const ALL: Self = Self {
        echo: true,
        handlers: true,
        keys: None,
        pipelining: true,
    };
}

/// The lengths of small bodies; with `keys`, these are the files that there must be (and one of
/// [`LARGE`]).
pub const SMALL: [u64; 6] = [1, 17, 256, 1000, 1500, 4096];
/// The length of a body for slow readers.
pub const LARGE: u64 = 1 << 20;

/// What a subject needs to know to start.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Where to listen: `HOST:0` where a free port is to be found, `unix` for a socket in the
    /// subject's directory.
    pub bind: Vec<String>,
    /// How many workers.
    pub workers: usize,
    /// The class of the workers, for subjects that have classes.
    pub class: String,
    /// Where this run's binaries are: the subject's two builds.
    pub binaries: PathBuf,
    /// Further words for the subject's command line.
    pub words: Vec<String>,
}

/// A running server.
pub trait Subject: Send + Sync {
    /// What it is, with its version.
    fn name(&self) -> String;

    /// Where it listens, in the order of [`Setup::bind`].
    fn addresses(&self) -> Vec<Address>;

    /// What clients may ask for.
    fn offers(&self) -> Offers;

    /// The process that the operator knows.
    fn supervisor(&self) -> Process;

    /// The processes that serve.
    ///
    /// # Errors
    /// When the server does not tell.
    fn workers(&self) -> Result<Vec<Process>, String>;

    /// Whether everything asked for is done: as many workers as wanted, all ready, nothing under
    /// way.
    fn settled(&self) -> bool;

    /// Whether it promises what is ours to promise beyond serving: how many processes, threads and
    /// descriptors it has.
    fn is_ours(&self) -> bool {
        true
    }

    /// How many processes serve when there are this many workers; others may have threads instead.
    fn processes(&self, workers: usize) -> usize {
        workers
    }

    /// Whether a worker that dies is replaced.
    fn heals(&self) -> bool {
        true
    }

    /// Replaces all workers. With `alone` nothing else is under way, and only success is right;
    /// else a reason to refuse is right too. This and what follows returns when the outcome is
    /// known, which may be before old workers have left.
    fn reload(&self, _asked: Asked, _alone: bool) -> Verdict {
        Verdict::Unsupported("no reload".to_owned())
    }

    /// Asks for a reload that must fail and change nothing; [`Verdict::Done`] when it did so.
    /// `kill` kills a worker such that what it holds is accounted for; for [`Broken::Killed`].
    fn broken_reload(
        &self,
        _how: Broken,
        _alone: bool,
        _kill: &(dyn Fn(Process) + Sync),
    ) -> Verdict {
        Verdict::Unsupported("no such broken reload".to_owned())
    }

    /// Changes the number of workers to `to`.
    fn scale(&self, _to: usize, _alone: bool) -> Verdict {
        Verdict::Unsupported("no scaling".to_owned())
    }

    /// Replaces the program of the supervisor itself by another build.
    fn upgrade(&self, _alone: bool) -> Verdict {
        Verdict::Unsupported("no upgrade".to_owned())
    }

    /// Asks one worker to leave after what it has in flight; another one takes its place.
    fn drain_worker(&self, _worker: Process) -> Verdict {
        Verdict::Unsupported("no draining of one worker".to_owned())
    }

    /// Asks for a graceful stop and waits for the end.
    ///
    /// # Errors
    /// When it does not end in time, ends with a failure, or leaves processes behind.
    fn stop(&self, limit: Duration) -> Result<(), String>;

    /// What it has logged, each line with the time since the subject's start if it is known.
    fn log(&self) -> Vec<String>;
}
