//! A control group (cgroup v2) for each worker, where a cgroup was delegated to us.
//!
//! Killing a worker's group kills everything that the worker has started. The group carries the
//! worker's limits, so that running out of memory kills that worker and no other, and it records
//! that afterwards. Without groups everything else works the same.
//!
//! ```text
//! base             delegated to us, by systemd (Delegate=) or by the operator (--cgroups DIR)
//!  ├─ supervisor   we ourselves: a group whose children have controllers holds no process
//!  ├─ worker-1     memory.max, cpu.max, memory.oom.group
//!  └─ worker-2
//! ```
//!
//! Sources: cgroup-v2.rst of the kernel's documentation, and systemd's CGROUP_DELEGATION.md.

use crate::config::{Cgroups as Wanted, Config};
use log::{debug, info, warn};
use prefork_protocol::WorkerId;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The group of the supervisor, below the base.
const OURS: &str = "supervisor";
/// What a worker's group is called, before its id.
const WORKER: &str = "worker-";
/// The controllers that we use.
const CONTROLLERS: [&str; 2] = ["memory", "cpu"];
/// What systemd sets on a group that it has delegated; the second is for other users than root.
const DELEGATED: [&str; 2] = ["trusted.delegate", "user.delegate"];
/// How often to try to remove a group whose last process is not gone yet.
const REMOVAL_ATTEMPTS: u32 = 50;

/// The control groups of all workers.
#[derive(Debug)]
pub(crate) struct WorkerCgroups {
    base: PathBuf,
    /// Which of [`CONTROLLERS`] the workers' groups have.
    controllers: Vec<String>,
    /// WorkerCgroups of dead workers that could not be removed yet, and the number of attempts.
    unremoved: Vec<(PathBuf, u32)>,
    /// Whether a setting without effect has been logged.
    warned: bool,
}

/// What a worker's group may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Thousandths of a CPU.
    pub cpus: Option<u32>,
}

impl Limits {
    /// Returns the limits of a configuration.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            memory: config.worker_memory,
            cpus: config.worker_cpus,
        }
    }

    fn names(self) -> Vec<&'static str> {
        let memory = self.memory.map(|_| "worker-memory");
        memory
            .into_iter()
            .chain(self.cpus.map(|_| "worker-cpus"))
            .collect()
    }
}

/// Why there are no groups.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// The operator does not want any.
    #[error("they are switched off")]
    Off,
    /// The directory that the operator has named cannot be used.
    #[error("cannot use the control group {path}: {reason}", path = path.display())]
    Unusable {
        path: PathBuf,
        #[source]
        reason: Box<CgroupError>,
    },
    /// There is no such directory.
    #[error("{} (make it with mkdir, or name another)", .0.desc())]
    NoDirectory(nix::errno::Errno),
    /// The directory belongs to another file system.
    #[error("it is no cgroup v2 directory (name one below the mount point of cgroup2)")]
    NotCgroup2,
    /// This process is in no cgroup v2.
    #[error("this process is in no cgroup v2")]
    NotInCgroup2,
    /// No group was delegated.
    #[error("none was delegated to us (systemd: Delegate=yes; else name one with --cgroups)")]
    NotDelegated,
    /// A file of the kernel cannot be read.
    #[error("{path}: {error}")]
    Read {
        path: &'static str,
        #[source]
        error: io::Error,
    },
    /// The supervisor cannot get out of the way.
    #[error("cannot {act} in {base}: {error}", base = base.display())]
    Take {
        act: &'static str,
        base: PathBuf,
        #[source]
        error: io::Error,
    },
}

/// Finds and prepares the control groups that a configuration asks for, and logs what has no
/// effect.
///
/// # Errors
/// The operator names a directory that cannot be used.
pub(crate) fn prepare(config: &Config) -> Result<Option<WorkerCgroups>, CgroupError> {
    let groups = match &config.cgroups {
        Wanted::Off => Err(CgroupError::Off),
        Wanted::Path(path) => {
            let unusable = |reason| CgroupError::Unusable {
                path: path.clone(),
                reason: Box::new(reason),
            };
            check_kind(path).map_err(unusable)?;
            Ok(WorkerCgroups::take(path.clone()).map_err(unusable)?)
        }
        Wanted::Auto => delegated().and_then(WorkerCgroups::take),
    };
    let limits = Limits::of(config).names().join(" and ");
    match groups {
        Ok(groups) => {
            info!(
                "every worker gets a control group in {}",
                groups.base.display()
            );
            Ok(Some(groups))
        }
        Err(why) if limits.is_empty() => {
            debug!("no control groups for the workers: {why}");
            Ok(None)
        }
        Err(why) => {
            warn!("{limits} has no effect, as there are no control groups for the workers: {why}");
            Ok(None)
        }
    }
}

/// Checks that a path is a directory of a cgroup2 file system.
fn check_kind(path: &Path) -> Result<(), CgroupError> {
    let status = nix::sys::statfs::statfs(path).map_err(CgroupError::NoDirectory)?;
    if status.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC {
        return Ok(());
    }
    Err(CgroupError::NotCgroup2)
}

/// Returns the group that was delegated to us: ours, or the one above it (systemd's
/// `DelegateSubgroup=`, or we ourselves before an upgrade in place).
fn delegated() -> Result<PathBuf, CgroupError> {
    let own = own_group()?;
    let above = own.parent().map(Path::to_path_buf);
    let marked = |path: &PathBuf| DELEGATED.iter().any(|name| has_mark(path, name));
    let found = [Some(own), above].into_iter().flatten().find(marked);
    found.ok_or(CgroupError::NotDelegated)
}

/// Whether an extended attribute of this name is `1`.
fn has_mark(path: &Path, name: &str) -> bool {
    prefork_os::file::attribute::<8>(path, name).is_ok_and(|value| value == b"1")
}

/// Returns the directory of the group that this process is in.
fn own_group() -> Result<PathBuf, CgroupError> {
    let read = |path: &'static str| {
        fs::read_to_string(path).map_err(|error| CgroupError::Read { path, error })
    };
    let none = || CgroupError::NotInCgroup2;
    let groups = read("/proc/self/cgroup")?;
    let group = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or_else(none)?;
    let mounts = read("/proc/self/mountinfo")?;
    let (root, point) = mounts.lines().find_map(cgroup2_mount).ok_or_else(none)?;
    let below = Path::new(group).strip_prefix(&root).map_err(|_| none())?;
    Ok(point.join(below))
}

/// Returns the root and the mount point in a line of mountinfo, if it is about cgroup2.
fn cgroup2_mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (left, right) = line.split_once(" - ")?;
    if right.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = left.split(' ').skip(3);
    // A space in a path is written in octal; no mount point of cgroup2 has one.
    Some((fields.next()?.into(), fields.next()?.into()))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    use io::Write;
    // Control files are not created; without this, a mistyped one in an ordinary directory would
    // be.
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

impl WorkerCgroups {
    /// Moves this process out of the way, and hands the controllers down.
    fn take(base: PathBuf) -> Result<Self, CgroupError> {
        let failed = |act: &'static str| {
            let base = base.clone();
            move |error: io::Error| CgroupError::Take { act, base, error }
        };
        let ours = base.join(OURS);
        match fs::create_dir(&ours) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make a group")(error));
            }
            _ => {}
        }
        write(&ours.join("cgroup.procs"), "0").map_err(failed("move the supervisor to a group"))?;
        let mut groups = Self {
            controllers: Vec::new(),
            unremoved: Vec::new(),
            warned: false,
            base,
        };
        groups.hand_down();
        // An earlier supervisor may have been killed. What still runs in its workers' groups is not
        // ours to kill.
        for entry in fs::read_dir(&groups.base).into_iter().flatten().flatten() {
            if entry.file_name().as_bytes().starts_with(WORKER.as_bytes()) {
                let _ = fs::remove_dir(entry.path());
            }
        }
        Ok(groups)
    }

    /// Enables each controller by itself: one that is missing must not cost the others.
    fn hand_down(&mut self) {
        let control = self.base.join("cgroup.subtree_control");
        for controller in CONTROLLERS {
            if let Err(error) = write(&control, &format!("+{controller}")) {
                debug!("no controller {controller} for the workers: {error}");
            }
        }
        self.controllers = handed_down(&self.base);
    }

    /// Takes over the groups of the program that this one is an upgrade of.
    pub(crate) fn adopted(base: PathBuf) -> Self {
        Self {
            controllers: handed_down(&base),
            base,
            unremoved: Vec::new(),
            warned: false,
        }
    }

    /// Returns the directory of all groups.
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    fn path(&self, worker: WorkerId) -> PathBuf {
        self.base.join(format!("{WORKER}{worker}"))
    }

    /// Creates a worker's group, and opens the file to which a process writes `0` to enter it.
    /// Returns `None` when there can be none: the worker then starts without.
    pub(crate) fn open(&mut self, worker: WorkerId, limits: Limits) -> Option<File> {
        self.sweep();
        let path = self.path(worker);
        let opened = fs::create_dir(&path).and_then(|()| {
            self.limit(&path, limits);
            OpenOptions::new()
                .write(true)
                .open(path.join("cgroup.procs"))
        });
        if let Err(error) = &opened {
            self.warn_once(&format!(
                "cannot make the control group {}: {error}; going on without",
                path.display()
            ));
        }
        opened.ok()
    }

    fn limit(&mut self, path: &Path, limits: Limits) {
        if let Some(bytes) = limits.memory {
            self.set(
                "memory",
                "worker-memory",
                &path.join("memory.max"),
                &bytes.to_string(),
            );
            // The kernel kills all of it: a worker that has lost one of its processes does not
            // work.
            let _ = write(&path.join("memory.oom.group"), "1");
        }
        if let Some(thousandths) = limits.cpus {
            // Microseconds in each period of a tenth of a second.
            let quota = format!("{} 100000", u64::from(thousandths) * 100);
            self.set("cpu", "worker-cpus", &path.join("cpu.max"), &quota);
        }
    }

    fn set(&mut self, controller: &str, setting: &str, file: &Path, value: &str) {
        let done = if self.controllers.iter().any(|active| active == controller) {
            write(file, value).map_err(|error| error.to_string())
        } else {
            Err(format!(
                "the controller {controller} is not available in {}",
                self.base.display()
            ))
        };
        if let Err(reason) = done {
            self.warn_once(&format!("{setting} has no effect: {reason}"));
        }
    }

    fn warn_once(&mut self, text: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            warn!("{text}");
        }
    }

    /// Kills everything in a worker's group.
    pub(crate) fn kill(&self, worker: WorkerId) {
        // Kernels before 5.14 have no such file; the process group was killed anyway.
        let _ = write(&self.path(worker).join("cgroup.kill"), "1");
    }

    /// Kills what a dead worker has left running. Returns whether it had run out of memory.
    pub(crate) fn close(&mut self, worker: WorkerId) -> bool {
        let path = self.path(worker);
        let oom = out_of_memory(&path);
        self.kill(worker);
        self.unremoved.push((path, 0));
        self.sweep();
        oom
    }

    /// Removes the groups of dead workers. A process that was killed takes a moment to be gone.
    pub(crate) fn sweep(&mut self) {
        self.unremoved.retain_mut(|(path, tries)| {
            *tries += 1;
            let removed = match fs::remove_dir(&*path) {
                Ok(()) => true,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
            !removed && *tries < REMOVAL_ATTEMPTS
        });
    }

    /// Whether no group waits to be removed.
    pub(crate) fn is_swept(&self) -> bool {
        self.unremoved.is_empty()
    }
}

/// Returns the controllers that the groups below this one have.
fn handed_down(group: &Path) -> Vec<String> {
    let active = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
    active.split_whitespace().map(str::to_owned).collect()
}

/// Whether the kernel has killed a process of a group for want of memory.
fn out_of_memory(group: &Path) -> bool {
    let events = fs::read_to_string(group.join("memory.events")).unwrap_or_default();
    let kills = events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "));
    kills
        .and_then(|count| count.trim().parse::<u64>().ok())
        .is_some_and(|count| count > 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A directory with the files that the kernel would put there.
    fn hierarchy(controllers: &str) -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("cgroup.subtree_control"), controllers).unwrap();
        base
    }

    fn groups(base: &Path) -> WorkerCgroups {
        WorkerCgroups::adopted(base.to_path_buf())
    }

    #[test]
    fn a_mount_is_found_wherever_it_is() {
        let line = "31 26 0:27 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 \
                    rw,nsdelegate";
        assert_eq!(
            cgroup2_mount(line),
            Some(("/".into(), "/sys/fs/cgroup/unified".into()))
        );
        assert_eq!(cgroup2_mount("22 1 0:5 / /dev rw - devtmpfs udev rw"), None);
        assert_eq!(cgroup2_mount("cgroup2"), None);
    }

    #[test]
    fn an_oom_kill_is_seen_and_a_limit_that_was_only_hit_is_not() {
        let base = hierarchy("memory cpu");
        fs::write(
            base.path().join("memory.events"),
            "low 0\nhigh 3\nmax 7\noom 1\noom_kill 0\n",
        )
        .unwrap();
        assert!(!out_of_memory(base.path()));
        fs::write(
            base.path().join("memory.events"),
            "max 7\noom 1\noom_kill 2\n",
        )
        .unwrap();
        assert!(out_of_memory(base.path()));
        assert!(!out_of_memory(&base.path().join("gone")));
    }

    #[test]
    fn limits_are_written_in_the_kernels_units() {
        let base = hierarchy("cpu memory\n");
        let group = base.path().join("worker-1");
        fs::create_dir(&group).unwrap();
        for file in ["memory.max", "memory.oom.group", "cpu.max"] {
            fs::write(group.join(file), "").unwrap();
        }
        let mut groups = groups(base.path());
        groups.limit(
            &group,
            Limits {
                memory: Some(64 << 20),
                cpus: Some(1500),
            },
        );
        let read = |file| fs::read_to_string(group.join(file)).unwrap();
        assert_eq!(
            (read("memory.max"), read("memory.oom.group")),
            ("67108864".to_owned(), "1".to_owned())
        );
        assert_eq!(read("cpu.max"), "150000 100000");
        assert!(!groups.warned);
    }

    #[test]
    fn a_missing_controller_is_logged_once_and_costs_nothing_else() {
        let base = hierarchy("pids");
        let mut groups = groups(base.path());
        groups.limit(
            base.path(),
            Limits {
                memory: Some(1 << 30),
                cpus: None,
            },
        );
        assert!(groups.warned);
        assert!(
            !base.path().join("memory.max").exists(),
            "no file is made that the kernel did not make"
        );
    }

    #[test]
    fn a_group_that_cannot_be_removed_is_given_up_after_some_attempts() {
        let base = hierarchy("");
        let stuck = base.path().join("worker-9");
        fs::create_dir_all(stuck.join("child")).unwrap();
        let mut groups = groups(base.path());
        assert!(!groups.close(WorkerId(9)), "it has not run out of memory");
        for _ in 0..REMOVAL_ATTEMPTS {
            assert!(stuck.exists());
            groups.sweep();
        }
        assert!(groups.is_swept());
    }
}
