//! The readiness probe: a helper process that sees when a worker begins to wait for connections.
//!
//! With `--ready listen` its answer makes the worker ready. With `auto` and `after=TIME` it checks
//! what was assumed: a worker that listens elsewhere is reported, and one that was seen to wait is
//! known not to be starting any more.
//!
//! Reading a worker's `/proc` can block: a thread of it that holds a lock, or memory behind a file
//! system that does not answer, is enough. So the supervisor does not read it. For each worker that
//! starts it starts a child, itself in another role, which reads again and again ([`procfs`]) and
//! exits with 0 once the worker waits; the supervisor waits for that as for any other exit. A probe
//! that is blocked by its worker has seen nothing yet: the deadline of the worker's start is the
//! core's.
//!
//! An upgrade does not hand it over: the next version starts probes of its own.

mod elsewhere;
mod procfs;

use super::{HelperExit, HelperId, HelperProcesses, Kind, StartError, role, words_of};
use crate::config::LogSettings;
use crate::logging;
use crate::process::poll::Poll;
use crate::process::reap::Death;
use crate::process::spawn::{Executable, ExecutableError, Order};
use crate::upgrade::environment_without;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Pid;
use prefork_protocol::WorkerId;
use prefork_protocol::environment::{
    FIRST_FD, LISTEN_PID, NOTIFY_SOCKET, WATCHDOG_PID, WATCHDOG_USEC,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The first argument of a process that plays this role.
const ROLE: &str = "readiness-probe";
/// How often it looks at first; a worker that takes its time is looked at less often.
const PERIOD: Duration = Duration::from_millis(25);
/// The longest time between two looks.
const LONGEST_PERIOD: Duration = Duration::from_millis(200);

/// The longest time between two looks at a worker that counts as ready already.
const LONGEST_PERIOD_OF_CHECK: Duration = Duration::from_secs(2);
/// How long a worker may listen elsewhere, or wait on some of its sockets only, before that is
/// reported.
const REPORT_AFTER: Duration = Duration::from_secs(1);
/// How long a worker that counts as ready is looked at.
const LONGEST_CHECK: Duration = Duration::from_secs(60);
/// The exit status of a probe that has written a report.
const REPORTED: u8 = 3;
/// The exit status of a probe that has seen nothing for [`LONGEST_CHECK`].
const UNSEEN: u8 = 4;
/// The longest report that is read, in bytes.
const MAX_REPORT: u64 = 4096;

/// How many probes of a worker may fail. Each is followed by another one, as it says nothing about
/// the worker: it may have been killed.
const MAX_FAILURES: u32 = 10;

/// The probes of all workers that are starting.
#[derive(Debug, Default)]
pub(crate) struct ReadinessProbes {
    running: BTreeMap<WorkerId, Running>,
    failures: BTreeMap<WorkerId, u32>,
}

#[derive(Debug)]
struct Running {
    helper: HelperId,
    report: OwnedFd,
}

/// What a probe is to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// When the worker is ready.
    Readiness,
    /// Whether a worker that counts as ready waits for connections.
    Check,
}

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Self::Readiness => "readiness",
            Self::Check => "check",
        }
    }
}

/// A worker to probe.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject {
    pub(crate) worker: WorkerId,
    pub(crate) pid: Pid,
    pub(crate) purpose: Purpose,
    /// Whether the probe ends with a report when the worker listens elsewhere.
    pub(crate) reports: bool,
}

/// What a worker was seen to do instead of waiting on all its sockets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Misdirected {
    /// Inodes of its sockets on which it does not wait.
    pub(crate) unwatched: BTreeSet<u64>,
    /// Other addresses on which it listens.
    pub(crate) elsewhere: Vec<String>,
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
        subject: Subject,
        sockets: &[BorrowedFd<'_>],
        log: &LogSettings,
    ) -> Result<(), ProbeError> {
        let worker = subject.worker;
        // A worker has one probe.
        if let Some(before) = self.running.remove(&worker) {
            processes.terminate(poll, before.helper);
        }
        let running = launch(poll, processes, name, subject, sockets, log)
            .map_err(|problem| ProbeError { worker, problem })?;
        self.running.insert(worker, running);
        Ok(())
    }

    /// Forgets a probe that has exited, and returns what it has seen.
    pub(crate) fn finish(&mut self, worker: WorkerId, exit: &HelperExit) -> ProbeResult {
        let running = self.running.remove(&worker);
        match exit.death {
            Death::Exited(0) => ProbeResult::Ready,
            Death::Exited(1) => ProbeResult::Gone,
            Death::Exited(status) if status == i32::from(REPORTED) => {
                let mut text = String::new();
                if let Some(running) = running {
                    // Untrusted as far as the worker chooses the names of its sockets.
                    let report = File::from(running.report).take(MAX_REPORT);
                    let _ = BufReader::new(report).read_to_string(&mut text);
                }
                ProbeResult::Misdirected(Misdirected::read(&text))
            }
            Death::Exited(status) if status == i32::from(UNSEEN) => ProbeResult::Unseen,
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
        if let Some(running) = self.running.remove(&worker) {
            processes.terminate(poll, running.helper);
        }
    }
}

fn launch(
    poll: &Poll,
    processes: &mut HelperProcesses,
    name: &str,
    subject: Subject,
    sockets: &[BorrowedFd<'_>],
    log: &LogSettings,
) -> Result<Running, ProbeProblem> {
    let Subject {
        worker,
        pid,
        purpose,
        reports,
    } = subject;
    let executable = Executable::current()?;
    let inodes = sockets
        .iter()
        .map(|socket| nix::sys::stat::fstat(socket).map(|status| status.st_ino.to_string()));
    let inodes: Vec<String> = inodes.collect::<Result<_, _>>()?;
    let argv = [format!("{name}: readiness probe of worker {worker}")];
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
    env.push(role(
        ROLE,
        &[
            pid.to_string(),
            inodes.join(","),
            purpose.word().to_owned(),
            if reports { "reports" } else { "silent" }.to_owned(),
        ],
    ));
    let (report, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let order = Order {
        extras: &[theirs.as_fd()],
        ..Order::own(&executable, &argv, env)
    };
    let helper = processes.start(poll, Kind::ReadinessProbe(worker), order, None)?;
    Ok(Running { helper, report })
}

impl Misdirected {
    /// Two lines: the inodes, and the addresses, each separated by tabs.
    fn write(&self) -> String {
        let inodes: Vec<String> = self.unwatched.iter().map(u64::to_string).collect();
        format!("{}\n{}\n", inodes.join("\t"), self.elsewhere.join("\t"))
    }

    fn read(text: &str) -> Self {
        let mut lines = text.lines();
        let mut words = || lines.next().unwrap_or_default().split('\t');
        let unwatched = words().filter_map(|word| word.parse().ok()).collect();
        let plain = |word: &str| word.chars().filter(|it| !it.is_control()).collect();
        let elsewhere = words().filter(|word| !word.is_empty()).map(plain).collect();
        Self {
            unwatched,
            elsewhere,
        }
    }
}

/// What a probe has seen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ProbeResult {
    /// The worker waits for connections on all its sockets.
    Ready,
    /// The worker is gone.
    Gone,
    /// The worker does something else.
    Misdirected(Misdirected),
    /// The worker, which counts as ready, was not seen to wait for a long time.
    Unseen,
    /// The probe failed: how, and whether another one is to be started.
    Failed { how: String, again: bool },
}

/// Returns which process to probe, if this one was started for that. To be called before anything
/// else.
pub(crate) fn task() -> Option<Task> {
    let mut words = words_of(ROLE)?.into_iter();
    let mut word = || words.next().unwrap_or_default();
    Some(Task {
        pid: word(),
        sockets: word(),
        checks: word() == Purpose::Check.word(),
        reports: word() == "reports",
    })
}

/// The process and sockets that this one was started to probe.
#[derive(Debug)]
pub(crate) struct Task {
    pid: String,
    sockets: String,
    checks: bool,
    reports: bool,
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
        // The process was started with the pipe as its first descriptor.
        let Ok(report) = prefork_os::adopt(FIRST_FD) else {
            return ExitCode::from(2);
        };
        let longest = if self.checks {
            LONGEST_PERIOD_OF_CHECK
        } else {
            LONGEST_PERIOD
        };
        let began = Instant::now();
        let mut misdirected_since = None;
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
            if self.checks && (look.refused.is_some() || began.elapsed() > LONGEST_CHECK) {
                return ExitCode::from(UNSEEN);
            }
            if self.reports && look.refused.is_none() {
                let misdirected = Misdirected {
                    unwatched: sockets.difference(&look.waited).copied().collect(),
                    elsewhere: elsewhere::listens(pid, &procfs::family(pid), &sockets),
                };
                let partly = !look.waited.is_empty() || !misdirected.elsewhere.is_empty();
                let since = misdirected_since.get_or_insert_with(Instant::now);
                if !partly {
                    misdirected_since = None;
                } else if since.elapsed() >= REPORT_AFTER {
                    let _ = File::from(report).write_all(misdirected.write().as_bytes());
                    return ExitCode::from(REPORTED);
                }
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
            period = longest.min(period + period / 50);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_is_written() {
        let report = Misdirected {
            unwatched: BTreeSet::from([12, 34]),
            elsewhere: vec!["127.0.0.1:8022".to_owned(), "unix:/run/x y".to_owned()],
        };
        assert_eq!(Misdirected::read(&report.write()), report);
        let none = Misdirected::default();
        assert_eq!(Misdirected::read(&none.write()), none);
        assert_eq!(Misdirected::read("x\t7\n\x1b[m\n").elsewhere, ["[m"]);
    }
}
