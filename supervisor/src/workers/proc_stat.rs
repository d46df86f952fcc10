//! A process's use of processors and memory, from `/proc`.
//!
//! Only files that do not look into the process's address space: `stat` and `statm` take no lock
//! that the process can hold. So a worker cannot stall the supervisor with what it does to its
//! memory (as it could with `smaps`).

use nix::unistd::{Pid, SysconfVar, sysconf};
use std::time::Duration;

/// Fields of `stat` between the program's name and the processor time.
const FIELDS_BEFORE_TIMES: usize = 11;

/// Returns the processor time that a process's threads have used, and the children that it has
/// waited for, with the resolution of the kernel's clock; `None` when it is gone.
pub(crate) fn cpu_time(pid: Pid) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let per_second = u32::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Duration::from_secs(ticks_of(&stat)?).checked_div(per_second)
}

/// Whether a process of this group is alive.
pub(crate) fn lives_in_group(group: Pid) -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return false;
    };
    let group = group.to_string();
    let stats = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        let pid: u32 = name.to_str()?.parse().ok()?;
        std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()
    });
    stats
        .into_iter()
        .any(|stat| living_member_of(&stat).is_some_and(|its| its == group))
}

/// Returns the process group from the text of `stat`; `None` for a zombie.
fn living_member_of(stat: &str) -> Option<&str> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    fields.nth(1).filter(|_| !matches!(state, "Z" | "X"))
}

/// Returns user and system time from the text of `stat`, its own and that of dead children: so the
/// sum over a family does not go back when one of them ends. The program's name may hold anything,
/// parentheses too.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields = rest.split_ascii_whitespace().skip(FIELDS_BEFORE_TIMES);
    let times: Vec<u64> = fields
        .take(4)
        .filter_map(|time| time.parse().ok())
        .collect();
    (times.len() == 4).then(|| {
        times
            .iter()
            .fold(0_u64, |sum, time| sum.saturating_add(*time))
    })
}

/// Returns the bytes of private memory of a process: what is resident and belongs to no file.
/// Another process like it would need as much again.
pub(crate) fn private_memory(pid: Pid) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    Some(pages_of(&statm)?.saturating_mul(page))
}

fn pages_of(statm: &str) -> Option<u64> {
    let mut fields = statm.split_ascii_whitespace().skip(1);
    let resident: u64 = fields.next()?.parse().ok()?;
    let shared: u64 = fields.next()?.parse().ok()?;
    Some(resident.saturating_sub(shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_name_does_not_move_the_fields() {
        let stat = "7 (a) 1 (b c) S 1 7 7 0 -1 4194560 103 0 0 0 12 34 5 6 20 0 1 0 8 9 10";
        assert_eq!(ticks_of(stat), Some(57));
        assert_eq!((ticks_of("7 (a) S 1 2"), ticks_of("")), (None, None));
        assert_eq!(living_member_of("7 (a) 1 (b c) S 1 5 7 0"), Some("5"));
        assert_eq!(living_member_of("7 (a) Z 1 5 7 0"), None);
        assert_eq!(
            (pages_of("900 120 20 1 0 50 0"), pages_of("900")),
            (Some(100), None)
        );
    }

    #[test]
    fn this_process_has_memory_and_uses_time() {
        let me = Pid::this();
        let before = cpu_time(me).expect("its processor time");
        let mut sum = 0_u64;
        while cpu_time(me).expect("its processor time") <= before {
            sum = (0..1_000_000).fold(sum, |sum, n| sum.wrapping_mul(31).wrapping_add(n));
        }
        assert!(private_memory(me).expect("its memory") > 100_000, "{sum}");
        assert_eq!(cpu_time(Pid::from_raw(i32::MAX)), None);
    }
}
