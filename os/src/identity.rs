//! Users, groups and capabilities: how a process becomes another user, and in which order.
//!
//! The order matters, since each step takes away what an earlier one needs: groups need
//! `CAP_SETGID` and the bounding set `CAP_SETPCAP`, which go with the user; a capability becomes
//! ambient only when it is permitted and inheritable. [`STEPS`] is that order. Every step is
//! async-signal-safe and allocates nothing.

use crate::capabilities::{self, Held};
use crate::spawn::Stage;
use nix::errno::Errno;

/// The number of `CAP_SETUID`.
const CAP_SETUID: u32 = 7;

/// What a process becomes. Capabilities are bits by the kernel's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its supplementary groups; `None`: they are right already.
    pub groups: Option<Vec<u32>>,
    /// Its group, unless that is right already.
    pub gid: Option<u32>,
    /// Its user, unless that is right already.
    pub uid: Option<u32>,
    /// The capabilities that it keeps; `None`: nothing is changed about them.
    pub keep: Option<u64>,
    /// What is taken out of the bounding set.
    pub unbound: u64,
}

/// One step of [`STEPS`].
pub type Step = fn(&Identity) -> Result<(), Errno>;

/// The steps from one identity to another, in the order in which they are possible.
pub const STEPS: [(Stage, Step); 6] = [
    (Stage::Capabilities, Identity::make_inheritable),
    (Stage::Capabilities, Identity::shrink_bounding_set),
    (Stage::Groups, Identity::set_groups),
    (Stage::Identity, Identity::set_group),
    (Stage::Identity, Identity::set_user),
    (Stage::Capabilities, Identity::keep_only),
];

impl Identity {
    /// Changes nothing.
    pub const SAME: Self = Self {
        groups: None,
        gid: None,
        uid: None,
        keep: None,
        unbound: 0,
    };

    /// Takes all steps, in the calling thread. Async-signal-safe.
    ///
    /// # Errors
    /// The step that failed, and how. The identity is between two then: the process must not go on.
    pub fn assume(&self) -> Result<(), (Stage, Errno)> {
        for (stage, step) in STEPS {
            step(self).map_err(|errno| (stage, errno))?;
        }
        Ok(())
    }

    /// What is to survive can be inherited; what is permitted is in force. Before the bounding set
    /// shrinks: what is not in it cannot become inheritable.
    fn make_inheritable(&self) -> Result<(), Errno> {
        let Some(keep) = self.keep else { return Ok(()) };
        let permitted = Held::now()?.permitted;
        Held {
            permitted,
            effective: permitted,
            inheritable: keep,
        }
        .assume()
    }

    fn shrink_bounding_set(&self) -> Result<(), Errno> {
        capabilities::drop_from_bounding(self.unbound)
    }

    /// The calls go to the kernel directly: the C library's own would want to tell other threads,
    /// and take locks.
    fn set_groups(&self) -> Result<(), Errno> {
        match &self.groups {
            Some(groups) => set_groups(groups),
            None => Ok(()),
        }
    }

    fn set_group(&self) -> Result<(), Errno> {
        let Some(gid) = self.gid else { return Ok(()) };
        // SAFETY: setresgid takes integers and touches no memory.
        Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
        Ok(())
    }

    fn set_user(&self) -> Result<(), Errno> {
        let Some(uid) = self.uid else { return Ok(()) };
        capabilities::keep_over_user_change(true)?;
        set_users(uid, uid, uid)?;
        capabilities::keep_over_user_change(false)
    }

    /// The end: these capabilities and no others, and they survive executing a program.
    fn keep_only(&self) -> Result<(), Errno> {
        let Some(keep) = self.keep else { return Ok(()) };
        Held {
            permitted: keep,
            effective: keep,
            inheritable: keep,
        }
        .assume()?;
        capabilities::set_ambient(keep)?;
        match self.uid {
            // There is no way back, or something is wrong with this kernel.
            Some(uid) if uid != 0 && keep & 1 << CAP_SETUID == 0 => match set_users(uid, 0, uid) {
                Ok(()) => Err(Errno::ENOTRECOVERABLE),
                Err(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

fn set_users(real: u32, effective: u32, saved: u32) -> Result<(), Errno> {
    // SAFETY: setresuid takes integers and touches no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, real, effective, saved) }).map(drop)
}

/// Sets the supplementary groups of the calling thread. Async-signal-safe.
pub(crate) fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many numbers as the slice has.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fork;
    use nix::sys::wait::{WaitStatus, waitpid};
    use std::fs::File;
    use std::io::{Read, Write, pipe};

    const NOBODY: u32 = 65534;
    const NET_BIND_SERVICE: u64 = 1 << 10;

    /// Returns what `/proc` says of a child before the first step and after each one, and the
    /// number of the step that failed.
    fn step_by_step(identity: &Identity) -> (Vec<String>, i32) {
        let (reader, mut writer) = pipe().expect("a pipe");
        let child = fork(|| {
            let mut report = || {
                let mut text = [0; 4096];
                let mut file = File::open("/proc/self/status").expect("its status");
                loop {
                    match file.read(&mut text).expect("read") {
                        0 => break,
                        length => writer.write_all(&text[..length]).expect("written"),
                    }
                }
                writer.write_all(&[0]).expect("written");
            };
            report();
            for (number, (_, step)) in (1..).zip(STEPS) {
                if step(identity).is_err() {
                    return number;
                }
                report();
            }
            0
        })
        .expect("fork");
        drop(writer);
        let text = std::io::read_to_string(reader).expect("read");
        let WaitStatus::Exited(_, code) = waitpid(child, None).expect("wait") else {
            panic!("it was killed")
        };
        (
            text.split_terminator('\0').map(str::to_owned).collect(),
            code,
        )
    }

    fn field(status: &str, name: &str) -> String {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let words: Vec<_> = line.expect("a line").split_whitespace().collect();
        words.join(" ")
    }

    #[test]
    fn each_step_takes_away_what_only_later_steps_do_not_need() {
        if !nix::unistd::geteuid().is_root() {
            testkit::skipped(
                "each_step_takes_away_what_only_later_steps_do_not_need",
                "only root can become another user",
            );
            return;
        }
        let identity = Identity {
            groups: Some(vec![12345, NOBODY]),
            gid: Some(NOBODY),
            uid: Some(NOBODY),
            keep: Some(NET_BIND_SERVICE),
            unbound: capabilities::bounding() & !NET_BIND_SERVICE,
        };
        let (states, failed) = step_by_step(&identity);
        assert_eq!((states.len(), failed), (STEPS.len() + 1, 0));
        let value = |state: usize, name: &str| field(&states[state], name);
        let set = |set: u64| format!("{set:016x}");
        let all = Held::now().expect("this process").permitted;
        let (all, one, none) = (set(all), set(NET_BIND_SERVICE), set(0));
        let (root, nobody) = ("0 0 0 0", "65534 65534 65534 65534");
        // The values before and after the step that changes it; it changes once.
        let changes = [
            (1, "CapInh", none.clone(), one.clone()),
            (2, "CapBnd", value(0, "CapBnd"), one.clone()),
            (3, "Groups", value(0, "Groups"), "12345 65534".to_owned()),
            (4, "Gid", root.to_owned(), nobody.to_owned()),
            (5, "Uid", root.to_owned(), nobody.to_owned()),
            // The capabilities survive the change of the user, but are not in force.
            (6, "CapPrm", all, one.clone()),
            (6, "CapAmb", none.clone(), one.clone()),
        ];
        for (step, name, before, after) in changes {
            for state in 0..states.len() {
                let expected = if state < step { &before } else { &after };
                assert_eq!(value(state, name), *expected, "{name} after step {state}");
            }
        }
        assert_eq!((value(5, "CapEff"), value(6, "CapEff")), (none, one));
    }
}
