//! Leftovers: what a dead worker has left running outside its process group.
//!
//! We are the subreaper of what workers start, so what outlives them becomes our child. It may
//! hold listening sockets and accept connections that no worker serves, so it is killed: if its
//! environment has the id of a dead worker, or, where only our workers can have left us children,
//! if it has no id at all. The children of a killed process become ours, so scans are repeated
//! until one finds nothing.
//!
//! A process with the id of a living worker belongs to that worker. Each scan is bounded. On a
//! kernel that does not list a process's children, nothing is killed.

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use prefork_core::Time;
use prefork_os::pidfd::{self, send_signal};
use prefork_protocol::WorkerId;
use prefork_protocol::environment::PREFORK_WORKER;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::Duration;

/// The most processes that are examined in one wake-up.
const MAX_EXAMINED: usize = 64;
/// The most processes that are killed in one wake-up, their descendants included.
const MAX_KILLED: usize = 256;
/// The most threads of a process whose children are listed.
const MAX_THREADS: usize = 64;
/// How much of an environment or a list of children is read, in bytes.
const MAX_READ: u64 = 4 << 20;
/// How long until the next scan after one that found something.
const RESCAN_INTERVAL: Duration = Duration::from_millis(20);

/// How long an exec may take.
const EXEC_TIME: Duration = Duration::from_millis(200);

/// The leftovers of dead workers, and the state of the scan for them.
#[derive(Debug)]
pub(crate) struct Leftovers {
    /// Whether other processes than our workers leave us their children: we are process 1, or had
    /// children before the first worker.
    foreign_orphans: bool,
    /// Children that are still to be examined.
    queue: Vec<Pid>,
    /// When to scan.
    due: Option<Time>,
    /// Processes that had no environment at the last scan: in the middle of an exec there is none.
    suspects: BTreeSet<Pid>,
    /// Processes that were killed and are not reaped yet.
    killed: BTreeSet<Pid>,
}

/// A process that was killed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Leftover {
    pub(crate) pid: Pid,
    pub(crate) name: String,
    /// The worker that it belonged to; `None` when it hid that.
    pub(crate) worker: Option<WorkerId>,
}

impl Leftovers {
    /// Finds out whether we have foreign orphans. Call it before the first child is started.
    pub(crate) fn new() -> Self {
        let alone = Pid::this() != Pid::from_raw(1) && children(Pid::this()).is_empty();
        Self::resumed(!alone)
    }

    /// Takes over from another version of the program.
    pub(crate) fn resumed(foreign_orphans: bool) -> Self {
        Self {
            foreign_orphans,
            queue: Vec::new(),
            due: None,
            suspects: BTreeSet::new(),
            killed: BTreeSet::new(),
        }
    }

    /// Whether other processes than workers leave us their children.
    pub(crate) fn has_foreign_orphans(&self) -> bool {
        self.foreign_orphans
    }

    /// Schedules a scan at once, since a worker has exited.
    pub(crate) fn scan_now(&mut self, now: Time) {
        self.due = Some(now);
        self.queue.clear();
        self.suspects.clear();
    }

    /// Returns when to scan next.
    pub(crate) fn due(&self) -> Option<Time> {
        self.due
    }

    /// Takes note that a process was reaped.
    pub(crate) fn reaped(&mut self, now: Time, pid: Pid) {
        if self.killed.remove(&pid) {
            // Its children are ours now.
            self.due = Some(now);
        }
    }

    /// Schedules another scan soon, as long as a killed process is not reaped.
    pub(crate) fn rescan_soon(&mut self, now: Time) {
        if !self.killed.is_empty() {
            self.due.get_or_insert(now + RESCAN_INTERVAL);
        }
    }

    /// Whether there is something to scan or to reap.
    pub(crate) fn is_busy(&self) -> bool {
        self.due.is_some() || !self.killed.is_empty()
    }

    /// Scans if it is time, and kills what dead workers have left. `known` are children of our own;
    /// `lives` says which ids belong to living workers.
    pub(crate) fn sweep(
        &mut self,
        now: Time,
        known: &BTreeSet<Pid>,
        lives: impl Fn(WorkerId) -> bool,
    ) -> Vec<Leftover> {
        let mut found = Vec::new();
        if self.due.take_if(|due| *due <= now).is_none() {
            return found;
        }
        if self.queue.is_empty() {
            self.queue = children(Pid::this());
            self.suspects.retain(|suspect| self.queue.contains(suspect));
        }
        for _ in 0..MAX_EXAMINED {
            let Some(pid) = self.queue.pop() else { break };
            if found.len() >= MAX_KILLED || known.contains(&pid) || self.killed.contains(&pid) {
                continue;
            }
            let suspected = self.suspects.remove(&pid);
            // It is our child, so its pid cannot be reused before we reap it.
            let Some(about) =
                About::read(pid).filter(|about| about.parent == Pid::this() && about.runs)
            else {
                continue;
            };
            let (worker, left) = match Owner::of(pid) {
                Owner::Worker(worker) => (Some(worker), !lives(worker)),
                Owner::Hidden => (None, !self.foreign_orphans),
                Owner::Empty => {
                    // It may show its id when its exec is over.
                    if !suspected {
                        self.suspects.insert(pid);
                    }
                    (None, suspected && !self.foreign_orphans)
                }
                Owner::Unreadable => (None, !self.foreign_orphans && known.is_empty()),
            };
            if left && kill(pid, Signal::SIGKILL).is_ok() {
                found.push(Leftover {
                    pid,
                    name: about.name,
                    worker,
                });
                kill_descendants(pid, worker, &mut found);
            }
        }
        // Its descendants become our children, and may not be dead yet at the next scan.
        self.killed
            .extend(found.iter().map(|leftover| leftover.pid));
        if !self.queue.is_empty() {
            self.due = Some(now);
        } else if !found.is_empty() {
            self.due = Some(now + RESCAN_INTERVAL);
        } else if !self.suspects.is_empty() {
            self.due = Some(now + EXEC_TIME);
        }
        found
    }
}

/// Kills the descendants of a killed process, before they become our children.
fn kill_descendants(parent: Pid, worker: Option<WorkerId>, found: &mut Vec<Leftover>) {
    let mut parents = vec![parent];
    while let Some(parent) = parents.pop() {
        for pid in children(parent) {
            if found.len() >= MAX_KILLED {
                return;
            }
            // Its pid may be reused by now. The pidfd is opened first and checked then, so that it
            // names the right process.
            let Ok(pidfd) = pidfd::open(pid) else {
                continue;
            };
            let Some(about) = About::read(pid) else {
                continue;
            };
            let related = about.parent == parent || about.parent == Pid::this();
            if related && about.runs && send_signal(pidfd.as_fd(), Signal::SIGKILL).is_ok() {
                found.push(Leftover {
                    pid,
                    name: about.name,
                    worker,
                });
                parents.push(pid);
            }
        }
    }
}

/// Returns the children of a process, as far as its threads are listed.
fn children(pid: Pid) -> Vec<Pid> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for task in tasks.flatten().take(MAX_THREADS) {
        let text = read(task.path().join("children").to_string_lossy().as_ref());
        let text = String::from_utf8_lossy(&text).into_owned();
        all.extend(
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .map(Pid::from_raw),
        );
    }
    all
}

/// The worker that a process belongs to, by its environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// This worker.
    Worker(WorkerId),
    /// Its environment does not say.
    Hidden,
    /// It has no environment, for now at least.
    Empty,
    /// It runs as another user, and we may not read it: it may belong to a living worker.
    Unreadable,
}

impl Owner {
    fn of(pid: Pid) -> Self {
        let environment = read(&format!("/proc/{pid}/environ"));
        let value = |variable: &[u8]| {
            let value = variable
                .strip_prefix(PREFORK_WORKER.as_bytes())?
                .strip_prefix(b"=")?;
            std::str::from_utf8(value).ok()?.parse().ok()
        };
        let worker = environment
            .split(|byte| *byte == 0)
            .find_map(value)
            .map(WorkerId);
        match worker {
            Some(worker) => Self::Worker(worker),
            // A process of our own user that makes itself unreadable hides.
            None if environment.is_empty()
                && user(pid).is_some_and(|user| user != Uid::current()) =>
            {
                Self::Unreadable
            }
            None if environment.is_empty() => Self::Empty,
            None => Self::Hidden,
        }
    }
}

/// Returns the user that a process runs as; every user may read that.
fn user(pid: Pid) -> Option<Uid> {
    let status = String::from_utf8_lossy(&read(&format!("/proc/{pid}/status"))).into_owned();
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
        .map(Uid::from_raw)
}

/// A process's name, its parent, and whether it still runs.
#[derive(Debug)]
struct About {
    name: String,
    parent: Pid,
    runs: bool,
}

impl About {
    fn read(pid: Pid) -> Option<Self> {
        let text = String::from_utf8_lossy(&read(&format!("/proc/{pid}/stat"))).into_owned();
        // The name may hold anything, but nothing after it holds a parenthesis.
        let (name, rest) = text.split_once('(')?.1.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        Some(Self {
            name: name.escape_debug().collect(),
            parent: Pid::from_raw(fields.next()?.parse().ok()?),
            runs: !matches!(state, "Z" | "X"),
        })
    }
}

fn read(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What cannot be read is empty, like the files of a process that is gone.
    let _ = File::open(path).and_then(|file| file.take(MAX_READ).read_to_end(&mut bytes));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Child, Command, Stdio};

    /// No worker of another test has these ids.
    const DEAD: WorkerId = WorkerId(u64::MAX);
    const ALIVE: WorkerId = WorkerId(u64::MAX - 1);

    fn lives(worker: WorkerId) -> bool {
        worker != DEAD
    }

    fn sleeper(id: Option<WorkerId>) -> Child {
        let mut command = Command::new("sleep");
        command.arg("100").env_remove(PREFORK_WORKER);
        if let Some(id) = id {
            command.env(PREFORK_WORKER, id.to_string());
        }
        command.spawn().expect("sleep")
    }

    fn pid(child: &Child) -> Pid {
        Pid::from_raw(i32::try_from(child.id()).expect("a pid"))
    }

    /// Waits until it has become its program, with its own environment: the name comes first, the
    /// environment along with the command line.
    fn settle(child: &Child, name: &str) -> Pid {
        let pid = pid(child);
        let became = || {
            About::read(pid).expect("it lives").name == name
                && !read(&format!("/proc/{pid}/cmdline")).is_empty()
        };
        while !became() {
            std::thread::yield_now();
        }
        pid
    }

    /// Scans these children only: others may be another test's.
    fn sweep(leftovers: &mut Leftovers, now: Time, children: &[Pid]) -> Vec<Leftover> {
        leftovers.queue = children.to_vec();
        leftovers.sweep(now, &BTreeSet::new(), lives)
    }

    #[test]
    fn what_a_dead_worker_left_is_killed_and_a_living_workers_is_not() {
        let mut sleepers = [sleeper(Some(DEAD)), sleeper(Some(ALIVE)), sleeper(None)];
        let pids: Vec<Pid> = sleepers
            .iter()
            .map(|child| settle(child, "sleep"))
            .collect();
        let listed = children(Pid::this());
        assert!(
            listed.is_empty() || pids.iter().all(|pid| listed.contains(pid)),
            "{listed:?}"
        );
        let mut shared = Leftovers::resumed(true);
        shared.scan_now(Time::default());
        let found = sweep(&mut shared, Time::default(), &pids);
        let expected = Leftover {
            pid: pids[0],
            name: "sleep".to_owned(),
            worker: Some(DEAD),
        };
        assert_eq!(found, [expected]);
        assert!(shared.is_busy());
        shared.reaped(Time::default(), pids[0]);
        assert_eq!(sweep(&mut shared, Time::default(), &pids[1..]), []);
        assert!(!shared.is_busy());

        // Without foreign orphans, a process that hides is killed too.
        let mut alone = Leftovers::resumed(false);
        alone.scan_now(Time::default());
        let found = sweep(&mut alone, Time::default(), &pids[1..]);
        assert_eq!(
            found,
            [Leftover {
                pid: pids[2],
                name: "sleep".to_owned(),
                worker: None
            }]
        );

        sleepers[1].kill().expect("it lives");
        for child in &mut sleepers {
            child.wait().expect("it is ours");
        }
    }

    #[test]
    fn a_process_in_the_middle_of_an_exec_is_not_killed_for_having_no_environment() {
        let empty = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command
                .args(["-c", script])
                .env_clear()
                .stdin(Stdio::piped());
            command.spawn().expect("sh")
        };
        let into = |id: WorkerId| {
            empty(&format!(
                "read line; exec /usr/bin/env {PREFORK_WORKER}={id} /bin/sleep 100"
            ))
        };
        // The first gets its environment between two scans, the second never does.
        let mut processes = [into(ALIVE), empty("read line"), into(DEAD)];
        let pids: Vec<Pid> = processes.iter().map(|child| settle(child, "sh")).collect();
        assert!(pids.iter().all(|pid| Owner::of(*pid) == Owner::Empty));
        let become_program = |child: &Child| {
            writeln!(child.stdin.as_ref().expect("a pipe"), "go").expect("it reads");
            settle(child, "sleep");
        };
        let start = Time::default();
        let mut shared = Leftovers::resumed(true);
        let mut alone = Leftovers::resumed(false);
        shared.scan_now(start);
        alone.scan_now(start);
        assert_eq!(sweep(&mut shared, start, &pids), []);
        assert_eq!(sweep(&mut alone, start, &pids[..2]), []);
        assert_eq!(
            alone.due(),
            Some(start + EXEC_TIME),
            "there is another scan when an exec must be over"
        );
        assert_eq!(sweep(&mut alone, start + EXEC_TIME / 2, &pids), []);
        become_program(&processes[0]);
        become_program(&processes[2]);
        let found = sweep(&mut shared, start + EXEC_TIME, &pids);
        assert_eq!(
            found,
            [Leftover {
                pid: pids[2],
                name: "sleep".to_owned(),
                worker: Some(DEAD)
            }]
        );
        let found = sweep(&mut alone, start + EXEC_TIME, &pids[..2]);
        assert_eq!(
            found,
            [Leftover {
                pid: pids[1],
                name: "sh".to_owned(),
                worker: None
            }]
        );

        processes[0].kill().expect("it lives");
        for child in &mut processes {
            child.wait().expect("it is ours");
        }
    }
}
