//! Facts about processes, from `/proc`.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;

/// A process by its pid. It may be gone; then its numbers are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process(pub u32);

/// A process's family line: the fields of `/proc/PID/stat` that are used here.
struct Stat {
    state: char,
    parent: u32,
    group: u32,
    user_ticks: u64,
    system_ticks: u64,
    start: u64,
}

impl Process {
    /// Returns its number.
    ///
    /// # Panics
    /// When it is none.
    pub fn pid(self) -> Pid {
        Pid::from_raw(i32::try_from(self.0).expect("a pid"))
    }

    fn read(self, file: &str) -> Option<String> {
        fs::read(format!("/proc/{}/{file}", self.0))
            .ok()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn stat(self) -> Option<Stat> {
        let text = self.read("stat")?;
        // The name may contain anything, but nothing after it contains a parenthesis.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        let mut fields = fields.skip(8);
        let (user, system) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let start = fields.nth(6)?.parse().ok()?;
        Some(Stat {
            state,
            parent,
            group,
            user_ticks: user,
            system_ticks: system,
            start,
        })
    }

    /// A number after a name in `/proc/PID/FILE`, 0 when there is none.
    fn number(self, file: &str, name: &str) -> u64 {
        let text = self.read(file).unwrap_or_default();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    }

    /// Whether it runs, which a zombie does not.
    pub fn runs(self) -> bool {
        self.stat()
            .is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
    }

    /// Whether it is stopped by a signal.
    pub fn is_stopped(self) -> bool {
        self.stat().is_some_and(|stat| stat.state == 'T')
    }

    /// When it started, in ticks since boot: with the pid, this names one process for ever.
    pub fn started(self) -> u64 {
        self.stat().map_or(0, |stat| stat.start)
    }

    /// Resident memory in KiB.
    pub fn resident_kib(self) -> u64 {
        self.number("status", "VmRSS")
    }

    /// Proportional memory in KiB: shared pages count by share.
    pub fn proportional_kib(self) -> u64 {
        self.number("smaps_rollup", "Pss")
    }

    /// How often it gave up the CPU by itself, which is how often it woke up.
    pub fn voluntary_switches(self) -> u64 {
        self.number("status", "voluntary_ctxt_switches")
    }

    /// How many threads it has.
    pub fn threads(self) -> u64 {
        self.number("status", "Threads")
    }

    /// How many descriptors it has open.
    pub fn descriptors(self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0)).map_or(0, Iterator::count)
    }

    /// CPU time in ticks of 10 ms, user and system.
    pub fn cpu_ticks(self) -> u64 {
        self.stat()
            .map_or(0, |stat| stat.user_ticks + stat.system_ticks)
    }

    /// Its command line, words separated by spaces.
    pub fn command_line(self) -> String {
        self.read("cmdline")
            .unwrap_or_default()
            .trim_end_matches('\0')
            .replace('\0', " ")
    }

    /// The value of a variable in the environment that it was started with.
    pub fn variable(self, name: &str) -> Option<String> {
        let text = self.read("environ")?;
        text.split('\0')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
            .map(str::to_owned)
    }

    /// Its children, zombies too.
    pub fn children(self) -> Vec<Self> {
        let is_child = |process: &Self| process.stat().is_some_and(|stat| stat.parent == self.0);
        all().into_iter().filter(is_child).collect()
    }

    /// Lets a process that leads a session run before others, as far as we may, whatever else runs on
    /// the machine.
    pub fn favour(self) {
        let _ = prefork_os::process::set_nice(self.pid(), -20);
        // Sessions share the processors before the processes in them do.
        let _ = fs::write(format!("/proc/{}/autogroup", self.0), "-20");
    }

    /// Sends a signal. A process that is gone is no error.
    ///
    /// # Panics
    /// When the signal may not be sent.
    pub fn signal(self, signal: Signal) {
        let pid = self.pid();
        assert!(
            matches!(kill(pid, signal), Ok(()) | Err(Errno::ESRCH)),
            "cannot signal process {}",
            self.0
        );
    }
}

/// Every process that can be seen.
///
/// # Panics
/// When /proc is not mounted.
pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Process))
        .collect()
}

/// Every running process of a process group.
pub fn in_group(group: u32) -> Vec<Process> {
    let belongs = |process: &Process| {
        process.stat().is_some_and(|stat| stat.group == group) && process.runs()
    };
    all().into_iter().filter(belongs).collect()
}

/// Every running process that was started with this variable set to this value.
pub fn with_variable(name: &str, value: &str) -> Vec<Process> {
    let carries =
        |process: &Process| process.variable(name).as_deref() == Some(value) && process.runs();
    all().into_iter().filter(carries).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_about_this_process() {
        let me = Process(std::process::id());
        assert!(me.runs() && !me.is_stopped() && me.started() > 0);
        assert!(me.resident_kib() > 100 && me.proportional_kib() > 100 && me.threads() > 0);
        assert!(me.descriptors() >= 3 && me.command_line().contains("testkit"));
        assert!(!Process(u32::MAX).runs());
        let group = u32::try_from(nix::unistd::getpgrp().as_raw()).expect("a group");
        assert!(in_group(group).contains(&me));
    }

    #[test]
    fn children_are_found() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .env("MARK", "it")
            .spawn()
            .expect("sleep");
        let process = Process(child.id());
        assert!(Process(std::process::id()).children().contains(&process));
        crate::wait_until("the child to have its own environment", crate::LONG, || {
            with_variable("MARK", "it") == [process]
        });
        process.signal(Signal::SIGKILL);
        assert!(!child.wait().expect("a child").success());
        assert!(!process.runs());
    }
}
