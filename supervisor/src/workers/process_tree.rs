//! The processes that a worker consists of: itself, and what it has started.
//!
//! A program that forks workers of its own, as gunicorn and Puma do, has most of its memory and its
//! processor time in them.

use crate::process::ancestry::{Relations, relations};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};

/// The most descendants that are counted: one worker must not keep the supervisor reading.
const MAX_DESCENDANTS: usize = 256;
/// The most ancestors of a process that are searched for its worker.
const MAX_ANCESTORS: usize = 32;

/// Returns a process and its descendants, as far as their parents live. It reads no file that one
/// of them can block.
pub(crate) fn with_descendants(leader: Pid) -> Vec<Pid> {
    let mut found = vec![leader];
    let mut next = 0;
    while let Some(process) = found.get(next) {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else {
            next += 1;
            continue;
        };
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children"));
            let children = children.unwrap_or_default();
            found.extend(
                children
                    .split_ascii_whitespace()
                    .filter_map(|pid| pid.parse().ok())
                    .map(Pid::from_raw),
            );
            if found.len() > MAX_DESCENDANTS {
                found.truncate(MAX_DESCENDANTS);
                return found;
            }
        }
        next += 1;
    }
    found
}

/// Returns the processes of each of these workers, itself first: its session, its process group,
/// and its descendants. It reads about every process there is, and is for a helper.
pub(crate) fn members(leaders: &[Pid]) -> BTreeMap<Pid, Vec<Pid>> {
    let mut members: BTreeMap<Pid, Vec<Pid>> = leaders
        .iter()
        .map(|leader| (*leader, vec![*leader]))
        .collect();
    let all: BTreeMap<Pid, Relations> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter_map(|process| Some((process, relations(process)?)))
        .collect();
    let known: BTreeSet<Pid> = leaders.iter().copied().collect();
    for process in all.keys().filter(|process| !known.contains(process)) {
        if let Some(leader) = leader_of(*process, &all, &known) {
            members.entry(leader).or_default().push(*process);
        }
    }
    members
}

/// Returns the worker that a process belongs to.
fn leader_of(process: Pid, all: &BTreeMap<Pid, Relations>, leaders: &BTreeSet<Pid>) -> Option<Pid> {
    let mut process = process;
    for _ in 0..MAX_ANCESTORS {
        let Relations {
            parent,
            group,
            session,
        } = *all.get(&process)?;
        if let Some(leader) = [process, session, group]
            .iter()
            .find(|pid| leaders.contains(pid))
        {
            return Some(*leader);
        }
        process = parent;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// Starts a shell with a child, in a session of its own.
    fn family() -> (Child, String) {
        let mut command = Command::new("setsid");
        command
            .args(["sh", "-c", "sleep 600 & echo $!; wait"])
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("setsid");
        let mut line = String::new();
        let out = child.stdout.take().expect("a pipe");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("a line");
        (child, line.trim().to_owned())
    }

    #[test]
    fn a_family_is_found_from_the_leader_and_among_all_processes() {
        let (mut leader, child) = family();
        let pid = |number: i32| Pid::from_raw(number);
        let head = pid(i32::try_from(leader.id()).expect("a pid"));
        let child = pid(child.parse().expect("a pid"));
        let descendants = with_descendants(head);
        let found = members(&[head]);
        // By its session, after its parent has gone.
        let _ = (leader.kill(), leader.wait());
        let orphaned = members(&[head]);
        let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
        assert_eq!(descendants, [head, child]);
        assert_eq!(found[&head], [head, child]);
        assert_eq!(orphaned[&head], [head, child]);
    }
}
