//! The gauge: a process that measures workers' memory, for `--max-memory`.
//!
//! A worker's proportional set size counts what it shares with its siblings once for all of them, so that eight workers of
//! one program are not each taken for its whole size. The kernel tells it in `smaps_rollup`, for which it takes the lock of
//! the worker's address space, and a worker can keep that for as long as it likes. So the supervisor does not ask. Every few
//! seconds it starts a child, itself in another role, which writes what it reads into a pipe, line by line, and leaves. One
//! that is held up has said what it knew by then and is killed; whoever held it up comes last the next time.
//!
//! It has no place in what an upgrade hands over: the next version starts one of its own, and buries the old one as an orphan.

use crate::helpers::terminating::Terminating;
use crate::process::reap::reap;
use crate::process::spawn::{Executable, Order, Spawned, spawn};
use crate::upgrade::environment_without;
use nix::fcntl::OFlag;
use nix::unistd::Pid;
use prefork_core::Time;
use prefork_protocol::WorkerId;
use prefork_protocol::environment::{ALL, FIRST_FD};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

/// The first argument of a process that plays this role.
const ROLE: &str = "--gauge";
/// How long after one has left the next one is started.
const PERIOD: Duration = Duration::from_secs(5);
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The gauge that runs, and when the next one does.
#[derive(Debug, Default)]
pub(crate) struct MemorySampler {
    running: Option<Running>,
    next: Time,
    /// Who has held it up.
    slow: BTreeSet<WorkerId>,
    /// What the operator was told that goes wrong.
    told: BTreeSet<Trouble>,
}

#[derive(Debug)]
struct Running {
    spawned: Spawned,
    answers: OwnedFd,
    workers: Vec<(WorkerId, Pid)>,
    deadline: Time,
}

/// What can go wrong. Each is told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    NoSampler,
    HeldUp,
    Refused,
}

/// What has been measured.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    /// Bytes, by worker.
    pub(crate) memory: Vec<(WorkerId, u64)>,
    /// Why some could not be measured, if the operator is to hear of it.
    pub(crate) trouble: Option<String>,
    kind: Option<Trouble>,
}

impl MemorySampler {
    /// When something is to be done: one to be started, or to be ended.
    pub(crate) fn due(&self) -> Time {
        self.running
            .as_ref()
            .map_or(self.next, |running| running.deadline)
    }

    /// Starts one for these workers. Whoever is told of its end calls [`end`](Self::end).
    ///
    /// # Errors
    /// Why there is none, in the words for the operator; the first time only.
    pub(crate) fn start(
        &mut self,
        now: Time,
        name: &str,
        mut workers: Vec<(WorkerId, Pid)>,
    ) -> Result<Option<BorrowedFd<'_>>, String> {
        self.next = now + PERIOD;
        if workers.is_empty() {
            return Ok(None);
        }
        self.slow
            .retain(|slow| workers.iter().any(|(worker, _)| worker == slow));
        workers.sort_by_key(|(worker, _)| (self.slow.contains(worker), *worker));
        match launch(name, &workers) {
            Ok((spawned, answers)) => {
                let running = Running {
                    spawned,
                    answers,
                    workers,
                    deadline: now + PATIENCE,
                };
                Ok(Some(self.running.insert(running).spawned.pidfd.as_fd()))
            }
            Err(_) if !self.told.insert(Trouble::NoSampler) => Ok(None),
            Err(reason) => Err(format!("cannot measure the workers' memory: {reason}")),
        }
    }

    /// It has ended, or has had its time: what it has said.
    pub(crate) fn end(&mut self, now: Time, doomed: &mut Terminating) -> Option<Measured> {
        let running = self.running.as_ref()?;
        let over = running.deadline <= now;
        let alive = matches!(reap(&running.spawned.pidfd), Ok(None));
        if alive && !over {
            return None;
        }
        let Running {
            spawned,
            answers,
            workers,
            ..
        } = self.running.take()?;
        if alive {
            doomed.kill(spawned);
        }
        self.next = now + PERIOD;
        let mut text = String::new();
        // It is non-blocking: whoever was killed may not be dead yet.
        let _ = File::from(answers).read_to_string(&mut text);
        let (mut measured, silent) = read(&text, &workers);
        if over && let Some(worker) = silent {
            self.slow.insert(worker);
            if measured.kind.is_none() {
                let trouble = format!("worker {worker} does not let its memory be measured");
                (measured.kind, measured.trouble) = (Some(Trouble::HeldUp), Some(trouble));
            }
        }
        if measured.kind.is_some_and(|kind| !self.told.insert(kind)) {
            measured.trouble = None;
        }
        Some(measured)
    }

    /// By whom its end is told.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.running
            .as_ref()
            .map(|running| running.spawned.pidfd.as_fd())
    }

    /// The one that measures.
    pub(crate) fn child(&self) -> Option<&Spawned> {
        self.running.as_ref().map(|running| &running.spawned)
    }

    /// Its process, which is no orphan.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.child().map(|child| child.pid)
    }
}

fn launch(name: &str, workers: &[(WorkerId, Pid)]) -> Result<(Spawned, OwnedFd), String> {
    let executable = Executable::current().map_err(|error| error.to_string())?;
    let list = workers
        .iter()
        .map(|(_, pid)| pid.to_string())
        .collect::<Vec<_>>()
        .join(",");
    let argv = [format!("{name}: gauge"), ROLE.to_owned(), list];
    let argv = argv.map(|word| CString::new(word.replace('\0', "")).unwrap_or_default());
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .map_err(|errno| format!("no pipe: {}", errno.desc()))?;
    let order = Order::own(&executable, &argv, environment_without(&ALL));
    let spawned = spawn(Order {
        extras: &[theirs.as_fd()],
        ..order
    })
    .map_err(|error| error.to_string())?;
    Ok((spawned, ours))
}

/// What the lines say: `PID BYTES`, or `PID ` and why not. And who was to come next.
fn read(text: &str, workers: &[(WorkerId, Pid)]) -> (Measured, Option<WorkerId>) {
    let mut measured = Measured::default();
    let mut lines = text
        .split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'));
    for (worker, pid) in workers {
        let Some(answer) = lines.next() else {
            return (measured, Some(*worker));
        };
        let Some((_, answer)) = answer
            .split_once(' ')
            .filter(|(of, _)| *of == pid.to_string())
        else {
            return (measured, None);
        };
        match answer.parse() {
            Ok(bytes) => measured.memory.push((*worker, bytes)),
            // Gone meanwhile.
            Err(_) if answer == GONE => {}
            Err(_) => {
                let remedy = "run the supervisor as root, or with CAP_SYS_PTRACE";
                let trouble =
                    format!("cannot measure the memory of worker {worker}: {answer} ({remedy})");
                measured.kind = Some(Trouble::Refused);
                measured.trouble.get_or_insert(trouble);
            }
        }
    }
    (measured, None)
}

const GONE: &str = "gone";

/// Whose memory to measure, when this process was started for that. To be asked before anything else.
pub(crate) fn task() -> Option<Task> {
    let mut words = std::env::args_os().skip(1);
    (words.next()? == ROLE).then(|| Task {
        pids: words
            .next()
            .unwrap_or_default()
            .into_string()
            .unwrap_or_default(),
    })
}

/// What this process was started to measure.
#[derive(Debug)]
pub(crate) struct Task {
    pids: String,
}

impl Task {
    /// Measures, and tells.
    #[allow(unsafe_code)]
    pub(crate) fn perform(self) -> ExitCode {
        let _ = nix::sys::prctl::set_name(c"gauge");
        // SAFETY: this process was started with the pipe as its first descriptor, and nobody else here knows it.
        let Ok(pipe) = (unsafe { prefork_os::adopt(FIRST_FD) }) else {
            return ExitCode::FAILURE;
        };
        let mut pipe = File::from(pipe);
        for pid in self.pids.split(',') {
            let answer = match pid
                .parse::<u32>()
                .ok()
                .map(|pid| std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")))
            {
                Some(Ok(text)) => {
                    proportional(&text).map_or(GONE.to_owned(), |bytes| bytes.to_string())
                }
                Some(Err(error)) if is_gone(&error) => GONE.to_owned(),
                Some(Err(error)) => error.to_string().replace('\n', " "),
                None => GONE.to_owned(),
            };
            if writeln!(pipe, "{pid} {answer}").is_err() {
                return ExitCode::FAILURE;
            }
        }
        ExitCode::SUCCESS
    }
}

/// A process that is dead has no memory; ESRCH is what a body says.
fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The proportional set size, in bytes, out of the text of `smaps_rollup` (proc(5)).
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
        let (measured, silent) = read("11 4096\n12 gone\n13 8192\n", &WORKERS);
        assert_eq!(
            (measured.memory, silent),
            (vec![(WorkerId(1), 4096), (WorkerId(3), 8192)], None)
        );
        assert_eq!(measured.trouble, None);
        // Half a line is none: its writer was killed.
        let (measured, silent) = read("11 4096\n12 81", &WORKERS);
        assert_eq!(
            (measured.memory, silent),
            (vec![(WorkerId(1), 4096)], Some(WorkerId(2)))
        );
        let (measured, _) = read("11 Permission denied\n12 1\n13 1\n", &WORKERS);
        assert_eq!(measured.memory.len(), 2);
        assert!(
            measured
                .trouble
                .is_some_and(|text| text.contains("worker 1: Permission denied (run"))
        );
        assert_eq!(
            read("12 1\n", &WORKERS),
            (Measured::default(), None),
            "of somebody else"
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
