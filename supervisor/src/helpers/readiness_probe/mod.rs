//! The readiness probe: a helper process that sees when a worker begins to wait for connections,
//! for `--ready listen`.
//!
//! Reading a worker's `/proc` can block: a thread of it that holds a lock, or memory behind a file
//! system that does not answer, is enough. So the supervisor does not read it. For each worker that
//! starts it starts a child, itself in another role, which reads again and again ([`procfs`]) and
//! exits with 0 once the worker waits; the supervisor waits for that as for any other exit. A probe
//! that is blocked by its worker has seen nothing yet: the deadline of the worker's start is the
//! core's.
//!
//! An upgrade does not hand it over: the next version starts probes of its own.

mod procfs;

use super::{HelperExit, HelperId, HelperProcesses, Kind, StartError};
use crate::config::LogSettings;
use crate::logging;
use crate::process::poll::Poll;
use crate::process::reap::Death;
use crate::process::spawn::{Executable, ExecutableError, Order};
use crate::upgrade::environment_without;
use nix::errno::Errno;
use nix::unistd::Pid;
use prefork_protocol::WorkerId;
use prefork_protocol::environment::{LISTEN_PID, NOTIFY_SOCKET, WATCHDOG_PID, WATCHDOG_USEC};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::Duration;

/// The first argument of a process that plays this role.
const ROLE: &str = "--readiness-probe";
/// How often it looks at first; a worker that takes its time is looked at less often.
const PERIOD: Duration = Duration::from_millis(25);
/// The longest time between two looks.
const LONGEST_PERIOD: Duration = Duration::from_millis(200);

/// How many probes of a worker may fail. Each is followed by another one, as it says nothing about
/// the worker: it may have been killed.
const MAX_FAILURES: u32 = 10;

/// The probes of all workers that are starting.
#[derive(Debug, Default)]
pub(crate) struct ReadinessProbes {
    running: BTreeMap<WorkerId, HelperId>,
    failures: BTreeMap<WorkerId, u32>,
}

/// Why no probe could be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot probe the readiness of worker {worker}: {problem}")]
pub(crate) struct ProbeError {
    worker: WorkerId,
    problem: ProbeProblem,
}

/// What of it failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeProblem {
    #[error(transparent)]
    Program(#[from] ExecutableError),
    #[error("{}", .0.desc())]
    Socket(#[from] Errno),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl ReadinessProbes {
    /// Starts the probe of a worker, which waits on these sockets once it is ready.
    ///
    /// # Errors
    /// Why there is no probe.
    pub(crate) fn start(
        &mut self,
        poll: &Poll,
        processes: &mut HelperProcesses,
        name: &str,
        (worker, pid): (WorkerId, Pid),
        sockets: &[BorrowedFd<'_>],
        log: &LogSettings,
    ) -> Result<(), ProbeError> {
        let helper = launch(poll, processes, name, (worker, pid), sockets, log)
            .map_err(|problem| ProbeError { worker, problem })?;
        self.running.insert(worker, helper);
        Ok(())
    }

    /// Forgets a probe that has exited, and returns what it has seen.
    pub(crate) fn finish(&mut self, worker: WorkerId, exit: &HelperExit) -> ProbeResult {
        self.running.remove(&worker);
        match exit.death {
            Death::Exited(0) => ProbeResult::Ready,
            Death::Exited(1) => ProbeResult::Gone,
            ref death => {
                let failures = self.failures.entry(worker).or_default();
                *failures += 1;
                ProbeResult::Failed {
                    how: death.to_string(),
                    again: *failures < MAX_FAILURES,
                }
            }
        }
    }

    /// Stops probing a worker.
    pub(crate) fn stop(&mut self, poll: &Poll, processes: &mut HelperProcesses, worker: WorkerId) {
        self.failures.remove(&worker);
        if let Some(helper) = self.running.remove(&worker) {
            processes.terminate(poll, helper);
        }
    }
}

fn launch(
    poll: &Poll,
    processes: &mut HelperProcesses,
    name: &str,
    (worker, pid): (WorkerId, Pid),
    sockets: &[BorrowedFd<'_>],
    log: &LogSettings,
) -> Result<HelperId, ProbeProblem> {
    let executable = Executable::current()?;
    let inodes = sockets
        .iter()
        .map(|socket| nix::sys::stat::fstat(socket).map(|status| status.st_ino.to_string()));
    let inodes: Vec<String> = inodes.collect::<Result<_, _>>()?;
    let argv = [
        format!("{name}: readiness probe of worker {worker}"),
        ROLE.to_owned(),
        pid.to_string(),
        inodes.join(","),
    ];
    let argv = argv.map(|word| CString::new(word.replace('\0', "")).unwrap_or_default());
    let mut env = environment_without(&[
        NOTIFY_SOCKET,
        WATCHDOG_USEC,
        WATCHDOG_PID,
        LISTEN_PID,
        logging::FORMAT_VARIABLE,
        logging::FILE_VARIABLE,
    ]);
    let settings = logging::environment(log, false).into_iter();
    env.extend(settings.filter_map(|(key, value)| {
        CString::new([key.as_bytes(), b"=", value.as_os_str().as_bytes()].concat()).ok()
    }));
    let order = Order::own(&executable, &argv, env);
    Ok(processes.start(poll, Kind::ReadinessProbe(worker), order, None)?)
}

/// What a probe has seen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ProbeResult {
    /// The worker waits for connections on all its sockets.
    Ready,
    /// The worker is gone.
    Gone,
    /// The probe failed: how, and whether another one is to be started.
    Failed { how: String, again: bool },
}

/// Returns which process to probe, if this one was started for that. To be called before anything
/// else.
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

/// The process and sockets that this one was started to probe.
#[derive(Debug)]
pub(crate) struct Task {
    pid: String,
    sockets: String,
}

impl Task {
    /// Looks until the worker waits or is gone. The exit status is the answer.
    pub(crate) fn perform(self) -> ExitCode {
        logging::start_in_worker();
        let _ = nix::sys::prctl::set_name(c"readiness-probe");
        let pid: Option<u32> = self.pid.parse().ok();
        let sockets: Result<BTreeSet<u64>, _> = self.sockets.split(',').map(str::parse).collect();
        let (Some(pid), Ok(sockets)) = (pid, sockets) else {
            return ExitCode::from(2);
        };
        let mut period = PERIOD;
        let mut warned = false;
        loop {
            let look = procfs::look(pid, &sockets);
            if look.waits {
                return ExitCode::SUCCESS;
            }
            if look.gone {
                return ExitCode::FAILURE;
            }
            if let Some(error) = look.refused
                && !std::mem::replace(&mut warned, true)
            {
                log::warn!(
                    "cannot see what process {pid} waits for: {error} (needs the same user and \
                     kernel.yama.ptrace_scope=0, or CAP_SYS_PTRACE; until then only what it watches \
                     by epoll may be seen; --ready notify and after=TIME do not look)"
                );
            }
            std::thread::sleep(period);
            period = LONGEST_PERIOD.min(period + period / 50);
        }
    }
}
