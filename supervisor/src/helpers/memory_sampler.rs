//! The memory sampler: a helper process that measures the workers' memory, for `--max-memory`.
//!
//! A worker's proportional set size counts what it shares with its siblings once for all of them,
//! so that eight workers of one program are not each taken for its whole size. The kernel computes
//! it in `smaps_rollup` under the lock of the worker's address space, which a worker can hold for
//! as long as it likes. So the supervisor does not ask. Every few seconds it starts a child, itself
//! in another role, which writes what it reads into a pipe, line by line, and exits. One that is
//! blocked has reported what it knew by then and is killed; the worker that blocked it comes last
//! the next time.
//!
//! An upgrade does not hand it over: the next version starts one of its own.

use super::{HelperId, HelperProcesses, Kind, StartError, role, words_of};
use crate::process::poll::Poll;
use crate::process::spawn::{Executable, ExecutableError, Order};
use crate::upgrade::environment_without;
use crate::workers::process_tree::members;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Pid;
use prefork_core::Time;
use prefork_protocol::WorkerId;
use prefork_protocol::environment::{ALL, FIRST_FD};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

/// The name of this role.
const ROLE: &str = "memory-sampler";
/// The time between the exit of one sampler and the start of the next.
const PERIOD: Duration = Duration::from_secs(5);
/// The most time that one sampler may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The sampler that runs, and when the next one starts.
#[derive(Debug, Default)]
pub(crate) struct MemorySampler {
    running: Option<Running>,
    next: Time,
    /// Workers that have blocked a sampler.
    slow: BTreeSet<WorkerId>,
    /// Problems that were reported already.
    reported: BTreeSet<Problem>,
}

#[derive(Debug)]
struct Running {
    helper: HelperId,
    answers: OwnedFd,
    workers: Vec<(WorkerId, Pid)>,
}

/// What can go wrong. Each is reported once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Problem {
    NoSampler,
    Blocked,
    Refused,
}

/// What was measured.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Samples {
    /// Bytes, by worker.
    pub(crate) memory: Vec<(WorkerId, u64)>,
    /// Why some could not be measured, if that is to be reported.
    pub(crate) problem: Option<String>,
    kind: Option<Problem>,
}

/// Why no sampler could be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot measure the workers' memory: {0}")]
pub(crate) struct SamplerError(#[from] SamplerProblem);

/// What of it failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SamplerProblem {
    #[error(transparent)]
    Program(#[from] ExecutableError),
    #[error("no pipe: {}", .0.desc())]
    Pipe(#[from] Errno),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl MemorySampler {
    /// Returns when the next sampler is to start, if none runs.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.running.is_none().then_some(self.next)
    }

    /// Starts a sampler for these workers.
    ///
    /// # Errors
    /// Why there is none, the first time only.
    pub(crate) fn start(
        &mut self,
        now: Time,
        poll: &Poll,
        processes: &mut HelperProcesses,
        name: &str,
        mut workers: Vec<(WorkerId, Pid)>,
    ) -> Result<(), SamplerError> {
        self.next = now + PERIOD;
        if workers.is_empty() {
            return Ok(());
        }
        self.slow
            .retain(|slow| workers.iter().any(|(worker, _)| worker == slow));
        workers.sort_by_key(|(worker, _)| (self.slow.contains(worker), *worker));
        match launch(now, poll, processes, name, &workers) {
            Ok((helper, answers)) => {
                self.running = Some(Running {
                    helper,
                    answers,
                    workers,
                });
                Ok(())
            }
            Err(_) if !self.reported.insert(Problem::NoSampler) => Ok(()),
            Err(problem) => Err(problem.into()),
        }
    }

    /// Collects what the sampler has written: it has exited, or it has `timed_out` and is killed.
    pub(crate) fn finish(
        &mut self,
        now: Time,
        poll: &Poll,
        processes: &mut HelperProcesses,
        timed_out: bool,
    ) -> Option<Samples> {
        let Running {
            helper,
            answers,
            workers,
        } = self.running.take()?;
        if timed_out {
            processes.terminate(poll, helper);
        }
        self.next = now + PERIOD;
        let mut text = String::new();
        // It is non-blocking: a process that was just killed may still hold the other end.
        let _ = File::from(answers).read_to_string(&mut text);
        let (mut samples, silent) = read(&text, &workers);
        if timed_out && let Some(worker) = silent {
            self.slow.insert(worker);
            if samples.kind.is_none() {
                let problem = format!("worker {worker} does not let its memory be measured");
                (samples.kind, samples.problem) = (Some(Problem::Blocked), Some(problem));
            }
        }
        if samples.kind.is_some_and(|kind| !self.reported.insert(kind)) {
            samples.problem = None;
        }
        Some(samples)
    }
}

fn launch(
    now: Time,
    poll: &Poll,
    processes: &mut HelperProcesses,
    name: &str,
    workers: &[(WorkerId, Pid)],
) -> Result<(HelperId, OwnedFd), SamplerProblem> {
    let executable = Executable::current()?;
    let list = workers
        .iter()
        .map(|(_, pid)| pid.to_string())
        .collect::<Vec<_>>()
        .join(",");
    let argv = [format!("{name}: memory sampler")];
    let argv = argv.map(|word| CString::new(word.replace('\0', "")).unwrap_or_default());
    let mut env = environment_without(&ALL);
    env.push(role(ROLE, &[list]));
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let order = Order {
        extras: &[theirs.as_fd()],
        ..Order::own(&executable, &argv, env)
    };
    let helper = processes.start(poll, Kind::MemorySampler, order, Some(now + TIMEOUT))?;
    Ok((helper, ours))
}

/// Parses the lines, `PID BYTES` or `PID REASON`. Also returns the worker that was to come next.
fn read(text: &str, workers: &[(WorkerId, Pid)]) -> (Samples, Option<WorkerId>) {
    let mut samples = Samples::default();
    let mut lines = text
        .split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'));
    for (worker, pid) in workers {
        let Some(answer) = lines.next() else {
            return (samples, Some(*worker));
        };
        let Some((_, answer)) = answer
            .split_once(' ')
            .filter(|(of, _)| *of == pid.to_string())
        else {
            return (samples, None);
        };
        match answer.parse() {
            Ok(bytes) => samples.memory.push((*worker, bytes)),
            // It is gone by now.
            Err(_) if answer == GONE => {}
            Err(_) => {
                let remedy = "run the supervisor as root, or with CAP_SYS_PTRACE";
                let problem =
                    format!("cannot measure the memory of worker {worker}: {answer} ({remedy})");
                samples.kind = Some(Problem::Refused);
                samples.problem.get_or_insert(problem);
            }
        }
    }
    (samples, None)
}

const GONE: &str = "gone";

/// Returns what to measure, if this process was started for that. To be called before anything
/// else.
pub(crate) fn task() -> Option<Task> {
    let words = words_of(ROLE)?;
    Some(Task {
        pids: words.into_iter().next().unwrap_or_default(),
    })
}

/// The processes that this one was started to measure.
#[derive(Debug)]
pub(crate) struct Task {
    pids: String,
}

impl Task {
    /// Measures, and writes the answers.
    pub(crate) fn perform(self) -> ExitCode {
        let _ = nix::sys::prctl::set_name(c"memory-sampler");
        // The process was started with the pipe as its first descriptor.
        let Ok(pipe) = prefork_os::adopt(FIRST_FD) else {
            return ExitCode::FAILURE;
        };
        let mut pipe = File::from(pipe);
        let pids = self.pids.split(',').filter_map(|pid| pid.parse().ok());
        let leaders: Vec<Pid> = pids.map(Pid::from_raw).collect();
        let members = members(&leaders);
        for leader in &leaders {
            let processes = members.get(leader).map_or(&[][..], Vec::as_slice);
            if writeln!(pipe, "{leader} {}", measure(processes)).is_err() {
                return ExitCode::FAILURE;
            }
        }
        ExitCode::SUCCESS
    }
}

/// Measures a worker, which consists of these processes, itself first; returns the answer for it.
fn measure(processes: &[Pid]) -> String {
    let mut sum: u64 = 0;
    for (index, process) in processes.iter().enumerate() {
        match std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")) {
            Ok(text) => match proportional(&text) {
                Some(bytes) => sum = sum.saturating_add(bytes),
                None if index == 0 => return GONE.to_owned(),
                None => {}
            },
            Err(error) if !is_gone(&error) => return error.to_string().replace('\n', " "),
            Err(_) if index == 0 => return GONE.to_owned(),
            // What it has started may end at any time.
            Err(_) => {}
        }
    }
    sum.to_string()
}

/// Whether the process is dead: a zombie answers ESRCH.
fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Returns the proportional set size in bytes, from the text of `smaps_rollup` (proc(5)).
fn proportional(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKERS: [(WorkerId, Pid); 3] = [
        (WorkerId(1), Pid::from_raw(11)),
        (WorkerId(2), Pid::from_raw(12)),
        (WorkerId(3), Pid::from_raw(13)),
    ];

    #[test]
    fn what_was_measured_is_read_line_by_line() {
        let (samples, silent) = read("11 4096\n12 gone\n13 8192\n", &WORKERS);
        assert_eq!(
            (samples.memory, silent),
            (vec![(WorkerId(1), 4096), (WorkerId(3), 8192)], None)
        );
        assert_eq!(samples.problem, None);
        // Half a line does not count: its writer was killed.
        let (samples, silent) = read("11 4096\n12 81", &WORKERS);
        assert_eq!(
            (samples.memory, silent),
            (vec![(WorkerId(1), 4096)], Some(WorkerId(2)))
        );
        let (samples, _) = read("11 Permission denied\n12 1\n13 1\n", &WORKERS);
        assert_eq!(samples.memory.len(), 2);
        assert!(
            samples
                .problem
                .is_some_and(|text| text.contains("worker 1: Permission denied (run"))
        );
        assert_eq!(
            read("12 1\n", &WORKERS),
            (Samples::default(), None),
            "of another process"
        );
    }

    #[test]
    fn this_process_has_a_proportional_size() {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("/proc");
        assert!(
            proportional(&text).is_some_and(|bytes| bytes > 100_000),
            "{text}"
        );
        assert_eq!(proportional("Rss: 12 kB\nPss_Anon: 4 kB\n"), None);
    }
}
