//! The lookout: a process that sees when a worker begins to wait for connections, for `--ready listen`.
//!
//! What `/proc` tells of a worker can block whoever asks: a thread of it that holds a lock, or memory behind a file system
//! that does not answer, is enough. So the supervisor does not ask. For each worker that starts it starts a child, itself in
//! another role, which looks again and again ([`eyes`]) and exits with 0 when it has seen what it was to see; the
//! supervisor waits for that as for any other death. A lookout that is held up by its worker is one that has seen
//! nothing yet: the deadline of the worker's start is the core's.
//!
//! It needs no place in what an upgrade hands over: the next version starts lookouts of its own for those that still
//! start, and buries the old ones as orphans.

mod procfs;

use crate::config::LogSettings;
use crate::helpers::terminating::Terminating;
use crate::logging as logfile;
use crate::process::reap::{Death, reap};
use crate::process::spawn::{Executable, Order, Spawned, spawn};
use crate::upgrade::environment_without;
use nix::unistd::Pid;
use prefork_protocol::WorkerId;
use prefork_protocol::environment::{LISTEN_PID, NOTIFY_SOCKET, WATCHDOG_PID, WATCHDOG_USEC};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::Duration;

/// The first argument of a process that plays this role.
const ROLE: &str = "--lookout";
/// How often it looks at first; a worker that takes its time is looked at less often.
const PERIOD: Duration = Duration::from_millis(25);
/// How often at least.
const LONGEST_PERIOD: Duration = Duration::from_millis(200);

/// The lookouts of all workers that start.
#[derive(Debug, Default)]
pub(crate) struct ReadinessProbes(BTreeMap<WorkerId, Spawned>);

impl ReadinessProbes {
    /// Has a worker looked at. Whoever is told of its end calls [`end`](Self::end).
    ///
    /// # Errors
    /// Why there is no lookout, in the words for the operator.
    pub(crate) fn start(
        &mut self,
        name: &str,
        worker: WorkerId,
        pid: Pid,
        sockets: &[BorrowedFd<'_>],
        log: &LogSettings,
    ) -> Result<BorrowedFd<'_>, String> {
        let failed =
            |why: &dyn std::fmt::Display| format!("cannot look out for worker {worker}: {why}");
        let executable = Executable::current().map_err(|error| failed(&error))?;
        let inodes = sockets
            .iter()
            .map(|socket| nix::sys::stat::fstat(socket).map(|status| status.st_ino));
        let inodes: Result<Vec<u64>, _> = inodes.collect();
        let inodes = inodes.map_err(|errno| failed(&errno.desc()))?;
        let list = inodes
            .iter()
            .map(u64::to_string)
            .collect::<Vec<_>>()
            .join(",");
        let argv = [
            format!("{name}: lookout for worker {worker}"),
            ROLE.to_owned(),
            pid.to_string(),
            list,
        ];
        let argv = argv.map(|word| CString::new(word.replace('\0', "")).unwrap_or_default());
        let mut env = environment_without(&[
            NOTIFY_SOCKET,
            WATCHDOG_USEC,
            WATCHDOG_PID,
            LISTEN_PID,
            logfile::FORMAT_VARIABLE,
            logfile::FILE_VARIABLE,
        ]);
        env.extend(
            logfile::environment(log, false)
                .into_iter()
                .filter_map(|(key, value)| {
                    let value: &OsStr = value.as_os_str();
                    CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).ok()
                }),
        );
        let spawned = spawn(Order::own(&executable, &argv, env)).map_err(|error| failed(&error))?;
        Ok(self
            .0
            .entry(worker)
            .insert_entry(spawned)
            .into_mut()
            .pidfd
            .as_fd())
    }

    /// A lookout has ended, or is not needed any more; tells how, if it has.
    pub(crate) fn end(&mut self, worker: WorkerId, doomed: &mut Terminating) -> Option<Ended> {
        let spawned = self.0.remove(&worker)?;
        match reap(&spawned.pidfd) {
            Ok(Some(Death::Exited(0))) => Some(Ended::Seen),
            Ok(Some(Death::Exited(1))) => Some(Ended::Gone),
            Ok(Some(death)) => Some(Ended::Failed(death.to_string())),
            Ok(None) => {
                doomed.kill(spawned);
                None
            }
            Err(error) => Some(Ended::Failed(format!("is gone, cause unknown ({error})"))),
        }
    }

    /// By whom a lookout's end is told.
    pub(crate) fn pidfd(&self, worker: WorkerId) -> Option<BorrowedFd<'_>> {
        self.0.get(&worker).map(|spawned| spawned.pidfd.as_fd())
    }

    /// Those that look.
    pub(crate) fn children(&self) -> impl Iterator<Item = &Spawned> {
        self.0.values()
    }

    /// Their processes, which are no orphans.
    pub(crate) fn pids(&self) -> impl Iterator<Item = Pid> {
        self.children().map(|spawned| spawned.pid)
    }
}

/// How a lookout ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The worker waits for connections on all its sockets.
    Seen,
    /// The worker is gone.
    Gone,
    /// Something else: what.
    Failed(String),
}

/// Whom to look at, when this process was started for that. To be asked before anything else.
pub(crate) fn task() -> Option<Task> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != ROLE {
        return None;
    }
    let mut word = || {
        words
            .next()
            .and_then(|word| word.into_string().ok())
            .unwrap_or_default()
    };
    Some(Task {
        pid: word(),
        sockets: word(),
    })
}

/// What this process was started to look at.
#[derive(Debug)]
pub(crate) struct Task {
    pid: String,
    sockets: String,
}

impl Task {
    /// Looks until it is seen, or there is nobody to look at. The exit status is the answer.
    pub(crate) fn perform(self) -> ExitCode {
        logfile::start_in_worker();
        let _ = nix::sys::prctl::set_name(c"lookout");
        let pid: Option<u32> = self.pid.parse().ok();
        let sockets: Result<BTreeSet<u64>, _> = self.sockets.split(',').map(str::parse).collect();
        let (Some(pid), Ok(sockets)) = (pid, sockets) else {
            return ExitCode::from(2);
        };
        let mut period = PERIOD;
        let mut told = false;
        loop {
            let look = procfs::look(pid, &sockets);
            if look.waits {
                return ExitCode::SUCCESS;
            }
            if look.gone {
                return ExitCode::FAILURE;
            }
            if let Some(error) = look.refused
                && !std::mem::replace(&mut told, true)
            {
                log::warn!(
                    "cannot see what process {pid} waits for: {error} (same user and kernel.yama.ptrace_scope=0, or CAP_SYS_PTRACE; \
                     until then only what it watches by epoll may be seen; --ready notify and after=TIME do not look)"
                );
            }
            std::thread::sleep(period);
            period = LONGEST_PERIOD.min(period + period / 50);
        }
    }
}
