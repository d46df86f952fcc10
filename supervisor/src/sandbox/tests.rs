//! Which identity is prepared, and acting on files as another user.

use super::access_check::{can_enter, can_write};
use super::identity::{Own, no_new_privs, of_workers};
use crate::config::{Account, Capabilities, Privileges};
use nix::errno::Errno;
use prefork_os::capabilities::Held;
use prefork_os::fsuid::with_fsuid;
use prefork_os::identity::Identity;
use prefork_os::process::ResetByUserChange;
use std::fs::Permissions;
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

#[test]
fn without_the_right_to_become_another_user_that_is_refused_before_any_fork() {
    let own = Own::unprivileged(1000);
    let privileges = Privileges {
        user: Some(nobody()),
        ..Privileges::default()
    };
    let reason = of_workers(&own, &privileges)
        .expect_err("it cannot")
        .to_string();
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
    let reason = of_workers(&own, &privileges)
        .expect_err("it has none")
        .to_string();
    assert!(
        reason.starts_with("cannot let workers keep CAP_NET_BIND_SERVICE")
            && reason.contains("keep-cap"),
        "{reason}"
    );
}

#[test]
fn a_process_without_privileges_asks_nothing_of_the_kernel() {
    let own = Own::unprivileged(1000);
    let identity = of_workers(&own, &Privileges::default()).expect("nothing is asked for");
    assert_eq!(identity, Identity::SAME);
    assert!(!no_new_privs(&own, &Privileges::default()));
}

#[test]
fn acting_on_files_as_another_user_leaves_no_trace() {
    if !root("acting_on_files_as_another_user_leaves_no_trace") {
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
    let all_groups = || nix::unistd::getgroups();
    let traits = || (all_groups(), Held::now(), ResetByUserChange::save());
    let before = traits();
    let seen = with_fsuid(&identity, || {
        (
            can_enter(folder.path()),
            can_write(&path),
            can_write(&folder.path().join("new")),
        )
    });
    let denied = Err(Errno::EACCES);
    assert_eq!(seen, Ok((Ok(()), denied, denied)));
    assert_eq!(traits(), before);
    assert_eq!(
        (can_write(&path), can_write(&folder.path().join("new"))),
        (Ok(()), Ok(()))
    );
    let caught = std::panic::catch_unwind(|| with_fsuid(&identity, || panic!("on purpose")));
    assert!(caught.is_err());
    assert_eq!(traits(), before);
}
