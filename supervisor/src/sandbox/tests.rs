//! Becoming somebody else, step by step, as the kernel tells it in `/proc`.

use super::capabilities::Held;
use super::identity::{Identity, Own, STEPS, of_workers, renounces};
use crate::config::{Account, Capabilities, Privileges};
use crate::sandbox::access_check::{can_enter, can_write, with_eyes_of};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::ffi::c_int;
use std::fs::Permissions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

const NOBODY: u32 = 65534;

fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        testkit::skipped(test, "only root can become another user");
    }
    root
}

fn nobody() -> Account {
    let (written, name) = ("nobody".to_owned(), Some("nobody".to_owned()));
    Account {
        written,
        name,
        uid: NOBODY,
        gid: Some(NOBODY),
        groups: vec![NOBODY, 12345],
        home: None,
    }
}

/// Writes `/proc/self/status` and a zero byte. Async-signal-safe.
fn tell(pipe: c_int) {
    let mut text = [0_u8; 4096];
    // SAFETY: system calls on integers and on a buffer of the length that they are told.
    unsafe {
        let file = libc::open(c"/proc/self/status".as_ptr(), libc::O_RDONLY);
        loop {
            let length = libc::read(file, text.as_mut_ptr().cast(), text.len());
            if length <= 0 {
                break;
            }
            libc::write(pipe, text.as_ptr().cast(), length as usize);
        }
        libc::close(file);
        libc::write(pipe, [0_u8].as_ptr().cast(), 1);
    }
}

/// What `/proc` says of a child before the first step and after each one, and the number of the step that failed.
fn step_by_step(identity: &Identity) -> (Vec<String>, c_int) {
    let (reader, writer) = nix::unistd::pipe().expect("a pipe");
    // SAFETY: the child makes async-signal-safe calls only.
    let child = match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            tell(writer.as_raw_fd());
            for (number, (_, step)) in (1..).zip(STEPS) {
                if step(identity).is_err() {
                    // SAFETY: it ends the child at once.
                    unsafe { libc::_exit(number) };
                }
                tell(writer.as_raw_fd());
            }
            // SAFETY: as above.
            unsafe { libc::_exit(0) }
        }
    };
    drop(writer);
    let text = std::io::read_to_string(std::fs::File::from(reader)).expect("read");
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
    line.expect("a line")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn each_step_takes_away_what_only_later_steps_do_not_need() {
    if !root("each_step_takes_away_what_only_later_steps_do_not_need") {
        return;
    }
    let own = Own::now().expect("this process");
    let kept = Capabilities::NET_BIND_SERVICE;
    let privileges = Privileges {
        user: Some(nobody()),
        keep: kept,
        ..Privileges::default()
    };
    let identity = of_workers(&own, &privileges).expect("root can do that");
    let (states, failed) = step_by_step(&identity);
    assert_eq!((states.len(), failed), (STEPS.len() + 1, 0));
    let tells = |state: usize, name: &str| field(&states[state], name);
    let (all, one, none) = (
        format!("{:016x}", own.permitted.0),
        format!("{:016x}", kept.0),
        format!("{:016x}", 0),
    );
    let bounds = tells(0, "CapBnd");
    // What is told before and after the step that changes it; it changes once.
    let changes = [
        (1, "CapInh", none.clone(), one.clone()),
        (2, "CapBnd", bounds, one.clone()),
        (3, "Groups", tells(0, "Groups"), "12345 65534".to_owned()),
        (
            4,
            "Gid",
            "0 0 0 0".to_owned(),
            "65534 65534 65534 65534".to_owned(),
        ),
        (
            5,
            "Uid",
            "0 0 0 0".to_owned(),
            "65534 65534 65534 65534".to_owned(),
        ),
        // The capabilities survive the change of the user, but are not in force.
        (6, "CapPrm", all, one.clone()),
        (6, "CapAmb", none.clone(), one.clone()),
    ];
    for (step, name, before, after) in changes {
        for state in 0..states.len() {
            let expected = if state < step { &before } else { &after };
            assert_eq!(tells(state, name), *expected, "{name} after step {state}");
        }
    }
    assert_eq!((tells(5, "CapEff"), tells(6, "CapEff")), (none, one));
}

#[test]
fn without_the_right_to_become_somebody_else_that_is_refused_before_any_fork() {
    let own = Own::nobody_special(1000);
    let privileges = Privileges {
        user: Some(nobody()),
        ..Privileges::default()
    };
    let reason = of_workers(&own, &privileges).expect_err("it cannot");
    assert!(
        reason.starts_with(
            "cannot run workers as user nobody (uid 65534): this supervisor runs as user 1000"
        ),
        "{reason}"
    );
    assert!(
        reason.contains("CAP_SETGID, CAP_SETUID") && reason.contains("start it as root"),
        "{reason}"
    );
    let privileges = Privileges {
        keep: Capabilities::NET_BIND_SERVICE,
        ..Privileges::default()
    };
    let reason = of_workers(&own, &privileges).expect_err("it has none");
    assert!(
        reason.starts_with("cannot let workers keep CAP_NET_BIND_SERVICE")
            && reason.contains("keep-cap"),
        "{reason}"
    );
}

#[test]
fn whoever_has_nothing_to_lose_asks_nothing_of_the_kernel() {
    let own = Own::nobody_special(1000);
    let identity = of_workers(&own, &Privileges::default()).expect("nothing is asked for");
    assert_eq!(identity, Identity::SAME);
    assert!(!renounces(&own, &Privileges::default()));
}

#[test]
fn a_look_with_the_eyes_of_another_user_leaves_no_trace() {
    if !root("a_look_with_the_eyes_of_another_user_leaves_no_trace") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("chmod");
    let path = folder.path().join("mine");
    std::fs::write(&path, "").expect("write");
    let own = Own::now().expect("this process");
    let privileges = Privileges {
        user: Some(nobody()),
        ..Privileges::default()
    };
    let identity = of_workers(&own, &privileges).expect("root can do that");
    let traits = || {
        let mut signal = 0;
        // SAFETY: the kernel writes one integer there; the other call takes integers only.
        let dumpable = unsafe {
            libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal, 0, 0, 0);
            libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0)
        };
        (Own::now(), Held::now(), signal, dumpable)
    };
    let before = traits();
    let seen = with_eyes_of(&own, &identity, || {
        (
            can_enter(folder.path()),
            can_write(&path),
            can_write(&folder.path().join("new")),
        )
    });
    let denied = Err(nix::errno::Errno::EACCES);
    assert_eq!(seen, Ok((Ok(()), denied, denied)));
    assert_eq!(traits(), before);
    assert_eq!(
        (can_write(&path), can_write(&folder.path().join("new"))),
        (Ok(()), Ok(()))
    );
    let caught =
        std::panic::catch_unwind(|| with_eyes_of(&own, &identity, || panic!("on purpose")));
    assert!(caught.is_err());
    assert_eq!(traits(), before);
}
