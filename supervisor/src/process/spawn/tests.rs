use super::executable::ExecutableError;
use super::*;
use crate::process::reap::{Death, Orphans, reap, reap_orphans};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::kill;
use prefork_os::testing;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn c(text: &str) -> CString {
    CString::new(text).expect("no NUL")
}

fn wait_readable(fd: impl AsFd) {
    let mut waited = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut waited, PollTimeout::from(20_000_u16)).expect("poll");
    assert_eq!(ready, 1, "nothing within 20 s");
}

fn death(spawned: &Spawned) -> Death {
    wait_readable(&spawned.pidfd);
    reap(&spawned.pidfd).expect("waitid").expect("it is dead")
}

fn pipe() -> (std::fs::File, OwnedFd) {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("pipe");
    (reader.into(), writer)
}

struct Shell<'a> {
    argv: Vec<CString>,
    env: Vec<CString>,
    listeners: Vec<BorrowedFd<'a>>,
    extras: Vec<BorrowedFd<'a>>,
    directory: Option<CString>,
}

impl Shell<'_> {
    fn new(script: &str) -> Self {
        let argv = vec![c("sh"), c("-c"), c(script)];
        Self {
            argv,
            env: Vec::new(),
            listeners: Vec::new(),
            extras: Vec::new(),
            directory: None,
        }
    }

    fn order<'b>(&'b self, executable: &'b Executable) -> Order<'b> {
        Order {
            listeners: &self.listeners,
            extras: &self.extras,
            directory: self.directory.as_deref(),
            ..Order::own(executable, &self.argv, self.env.clone())
        }
    }

    fn spawn(&self) -> Spawned {
        let shell = Executable::open("/bin/sh").expect("a shell");
        spawn(&self.order(&shell)).expect("spawn")
    }
}

/// Runs a script that writes to descriptor 3, and returns what it wrote and how it ended.
fn output(script: &str, env: &[&str]) -> (String, Death) {
    let (mut reader, writer) = pipe();
    let mut shell = Shell::new(script);
    shell.env = env.iter().map(|variable| c(variable)).collect();
    shell.listeners.push(writer.as_fd());
    let spawned = shell.spawn();
    drop(shell);
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read");
    let death = death(&spawned);
    assert_eq!(spawned.exec_errors.failure(), None);
    (text, death)
}

#[test]
fn a_worker_runs_in_its_own_process_group_and_its_status_comes_back() {
    let (text, death) = output(
        "read a b c d pgrp rest < /proc/$$/stat; echo $$ $pgrp >&3; exit 7",
        &["PATH=/bin:/usr/bin"],
    );
    let (pid, group) = text.trim().split_once(' ').expect("two numbers");
    assert_eq!(pid, group);
    assert_eq!(death, Death::Exited(7));
}

#[test]
fn pids_that_only_the_child_knows_stand_in_its_environment_without_leading_zeros() {
    let env = ["LISTEN_PID=1", "A=b", "WATCHDOG_PID=", "LISTEN_PIDS=kept"];
    let (text, _) = output(
        "echo $$ $LISTEN_PID $A $WATCHDOG_PID $LISTEN_PIDS >&3",
        &env,
    );
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[1..], [words[0], "b", words[0], "kept"]);
}

#[test]
fn descriptors_stand_in_order_and_nothing_else_is_open() {
    // Enough pipes that some sources have numbers below those where others belong, in any order.
    let mut pipes: Vec<_> = (0..40).map(|_| pipe()).collect();
    pipes.reverse();
    let (mut listing, writer) = pipe();
    // One that exec alone would not close.
    let leak = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_DUPFD(200)).expect("dup");
    let mut shell = Shell::new(
        "for n in 3 4 5 6 7 8 9; do eval \"echo $n >&$n\"; done; n=10; \
         while [ $n -lt 43 ]; do /bin/sh -c \"echo $n\" > /proc/self/fd/$n; n=$((n+1)); done; \
         set -- /proc/$$/fd/*; for fd; do [ -L $fd ] && echo ${fd##*/} > /proc/$$/fd/43; done; exit 0",
    );
    shell.env = vec![c("PATH=/bin:/usr/bin")];
    shell.listeners = pipes.iter().map(|(_, writer)| writer.as_fd()).collect();
    shell.extras = vec![writer.as_fd()];
    let spawned = shell.spawn();
    drop(shell);
    drop(writer);
    nix::unistd::close(leak).expect("close");
    let mut open = String::new();
    listing.read_to_string(&mut open).expect("read");
    assert_eq!(death(&spawned), Death::Exited(0));
    for (number, (reader, writer)) in (3..).zip(&mut pipes) {
        wait_readable(&*reader);
        let mut text = [0; 8];
        let length = reader.read(&mut text).expect("read");
        assert_eq!(
            text[..length],
            *format!("{number}\n").as_bytes(),
            "{writer:?}"
        );
    }
    let mut numbers: Vec<u32> = open
        .lines()
        .map(|line| line.parse().expect("number"))
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..=43).collect::<Vec<_>>());
}

#[test]
fn signals_are_reset_in_the_child() {
    // The test harness ignores SIGPIPE, as every Rust program; a worker must not.
    let (text, _) = output(
        "while read line; do echo \"$line\"; done < /proc/self/status >&3",
        &[],
    );
    let value = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .expect("a line");
        line.split_whitespace().nth(1).map(str::to_owned)
    };
    for field in ["SigBlk:", "SigIgn:", "SigPnd:"] {
        assert_eq!(value(field).as_deref(), Some("0000000000000000"), "{field}");
    }
}

#[test]
fn a_working_exec_ends_the_pipe_without_a_report() {
    let mut shell = Shell::new("read line <&3");
    let (ours, theirs) = pipe();
    shell.listeners.push(ours.as_fd());
    let spawned = shell.spawn();
    wait_readable(&spawned.exec_errors);
    assert_eq!(spawned.exec_errors.failure(), None);
    assert_eq!(reap(&spawned.pidfd).expect("waitid"), None, "it lives");
    kill(spawned.pid, Signal::SIGKILL).expect("kill");
    assert_eq!(death(&spawned).to_string(), "killed by SIGKILL");
    // Not before: it would read the end and leave by itself.
    drop(theirs);
}

#[test]
fn a_failed_exec_comes_back_with_program_errno_and_remedy() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("garbage");
    write_program(&path, "no program");
    let executable = Executable::open(&path).expect("it is executable");
    let spawned = spawn(&Shell::new("").order(&executable)).expect("spawn");
    assert_eq!(death(&spawned), Death::Exited(127));
    let failure = spawned.exec_errors.failure().expect("a report");
    assert_eq!(
        (failure.stage, failure.errno),
        (Stage::Exec, Errno::ENOEXEC)
    );
    let text = failure.to_string();
    assert!(
        text.starts_with(&format!(
            "cannot execute {}: Exec format error (",
            path.display()
        )),
        "{text}"
    );
    assert_eq!(spawned.exec_errors.failure(), None, "told once");
}

#[test]
fn a_missing_directory_and_a_missing_interpreter_are_named() {
    let directory = tempfile::tempdir().expect("directory");
    let mut shell = Shell::new("exit 0");
    shell.directory = Some(c(directory.path().join("none").to_str().expect("UTF-8")));
    let spawned = shell.spawn();
    death(&spawned);
    let failure = spawned.exec_errors.failure().expect("a report");
    assert_eq!(
        (failure.stage, failure.errno),
        (Stage::Directory, Errno::ENOENT)
    );
    assert!(
        failure
            .to_string()
            .contains("/none for /bin/sh: No such file"),
        "{failure}"
    );

    let path = directory.path().join("script");
    write_program(&path, "#!/no/such/interpreter\n");
    let script = Executable::open(&path).expect("executable");
    let spawned = spawn(&Shell::new("").order(&script)).expect("spawn");
    death(&spawned);
    let failure = spawned.exec_errors.failure().expect("a report");
    assert!(
        failure
            .to_string()
            .contains("interpreter in its first line"),
        "{failure}"
    );
}

#[test]
fn scripts_run_by_path_from_any_directory() {
    let directory = tempfile::tempdir().expect("directory");
    write_program(
        &directory.path().join("app.sh"),
        "#!/bin/sh\necho \"$0\" \"$PWD\" >&3\n",
    );
    let program = Executable::find(
        "app.sh".as_ref(),
        Some(directory.path().as_os_str()),
        Path::new("/"),
    )
    .expect("found");
    let (mut reader, writer) = pipe();
    let mut shell = Shell::new("");
    shell.listeners.push(writer.as_fd());
    shell.directory = Some(c("/usr"));
    let spawned = spawn(&shell.order(&program)).expect("spawn");
    drop(shell);
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read");
    assert_eq!(
        death(&spawned),
        Death::Exited(0),
        "{:?}",
        spawned.exec_errors.failure()
    );
    assert_eq!(
        text,
        format!("{}/app.sh /usr\n", directory.path().display())
    );
}

#[test]
fn a_replaced_program_still_starts_as_it_was() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("program");
    let copied = std::process::Command::new("cp")
        .arg("/bin/sh")
        .arg(&path)
        .status()
        .expect("cp");
    assert!(copied.success());
    let old = Executable::open(&path).expect("executable");
    let other = directory.path().join("other");
    write_program(&other, "garbage");
    std::fs::rename(&other, &path).expect("rename");
    let spawned = spawn(&Shell::new("exit 5").order(&old)).expect("spawn");
    assert_eq!(
        death(&spawned),
        Death::Exited(5),
        "{:?}",
        spawned.exec_errors.failure()
    );
}

#[test]
fn lookups_name_what_is_wrong() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("plain");
    std::fs::File::create(&path)
        .and_then(|mut file| file.write_all(b"x"))
        .expect("write");
    let find = |program: &str, path: Option<&std::ffi::OsStr>| {
        Executable::find(program.as_ref(), path, directory.path())
            .map(|found| found.path().to_owned())
    };
    assert_eq!(find("sh", None).map(|path| path.ends_with("sh")), Ok(true));
    let text = |result: Result<_, ExecutableError>| {
        result
            .map_err(|error| error.to_string())
            .expect_err("refused")
    };
    assert!(
        text(find("./none", None)).contains("none: No such file or directory (check the path)")
    );
    assert!(
        text(find("none-such", Some("/bin".as_ref())))
            .starts_with("cannot find program none-such in /bin (")
    );
    assert!(text(find("", None)).starts_with("cannot find program"));
    assert!(
        text(find("plain", Some("".as_ref())))
            .contains("plain: Permission denied (make it executable")
    );
    assert!(text(find("./", None)).contains("not a regular file"));
    let odd = std::ffi::OsStr::from_bytes(b"/a\0b");
    assert!(Executable::open(odd).is_err());
    let current = Executable::current().expect("this test");
    assert_eq!(current.path(), std::env::current_exe().expect("known"));
    assert_eq!(current.script(), None);
}

#[test]
fn a_signal_before_exec_acts_as_if_it_came_after() {
    for _ in 0..20 {
        let spawned = Shell::new("while :; do :; done").spawn();
        kill(spawned.pid, Signal::SIGTERM).expect("kill");
        let death = death(&spawned);
        assert_eq!(
            death,
            Death::Signaled {
                signal: libc::SIGTERM,
                core: false
            }
        );
    }
}

#[test]
fn a_supervisors_death_takes_its_workers_along() {
    // A fork of this test plays the supervisor. Its end is seen through the pipe that only the
    // worker holds.
    let (mut reader, writer) = pipe();
    let mut shell = Shell::new("echo up >&3; while :; do :; done");
    shell.listeners.push(writer.as_fd());
    let executable = Executable::open("/bin/sh").expect("a shell");
    let order = shell.order(&executable);
    let child = testing::fork(|| {
        let _worker = spawn(&order);
        loop {
            nix::unistd::pause();
        }
    })
    .expect("fork");
    drop(shell);
    drop(writer);
    let mut text = [0; 3];
    reader.read_exact(&mut text).expect("the worker is up");
    kill(child, Signal::SIGKILL).expect("kill");
    wait_readable(&reader);
    assert_eq!(
        reader.read(&mut text).expect("read"),
        0,
        "all writers are gone"
    );
    nix::sys::wait::waitpid(child, None).expect("reaped");
}

#[test]
fn every_kind_of_death_is_told() {
    let death_by = |signal: i32| {
        let spawned = Shell::new("while :; do :; done").spawn();
        testing::kill(spawned.pid, signal).expect("it is not reaped yet");
        let told = death(&spawned);
        assert_eq!(
            reap(&spawned.pidfd).expect("waitid"),
            Some(Death::Unknown),
            "its status was taken"
        );
        told
    };
    let Death::Signaled {
        signal: libc::SIGABRT,
        ..
    } = death_by(libc::SIGABRT)
    else {
        panic!("ABRT")
    };
    assert_eq!(
        death_by(libc::SIGKILL),
        Death::Signaled {
            signal: libc::SIGKILL,
            core: false
        }
    );
    for signal in 34..=64 {
        assert_eq!(
            death_by(signal).to_string(),
            format!("killed by signal {signal}")
        );
    }
    assert_eq!(
        Death::Signaled {
            signal: 6,
            core: true
        }
        .to_string(),
        "killed by SIGABRT (core dumped)"
    );
    assert_eq!(Death::Exited(3).to_string(), "exited with status 3");
}

#[test]
fn orphans_are_reaped_and_known_children_keep_their_status() {
    // In a process of its own, whose only children are the test's: the harness has others.
    let child = testing::fork(|| reaps().map_or_else(|line| line, |()| 0)).expect("fork");
    let status = nix::sys::wait::waitpid(child, None).expect("reaped");
    assert_eq!(
        status,
        nix::sys::wait::WaitStatus::Exited(child, 0),
        "the status is the line that failed"
    );
}

/// The line that failed, as an exit status, is all that a forked test can safely tell.
fn reaps() -> Result<(), i32> {
    let fact = |fact: bool, line: u32| {
        if fact {
            Ok(())
        } else {
            Err(i32::try_from(line % 250).unwrap_or(1) + 1)
        }
    };
    nix::sys::prctl::set_child_subreaper(true).map_err(|_| 1)?;
    fact(
        reap_orphans(|_| false).is_ok_and(|orphans| orphans == Orphans::default()),
        line!(),
    )?;
    // A worker that leaves 70 dead grandchildren behind, then dies itself.
    let (mut reader, writer) = pipe();
    let mut shell =
        Shell::new("n=0; while [ $n -lt 70 ]; do (sh -c 'exit 4' &) ; n=$((n+1)); done; exit 9");
    shell.env = vec![c("PATH=/bin:/usr/bin")];
    shell.listeners.push(writer.as_fd());
    let worker = shell.spawn();
    drop(shell);
    drop(writer);
    fact(
        reader.read(&mut [0]).is_ok_and(|length| length == 0),
        line!(),
    )?;
    wait_readable(&worker.pidfd);
    let (mut reaped, mut hidden) = (0, false);
    while reaped < 70 {
        let orphans = reap_orphans(|pid| pid == worker.pid).map_err(|_| 2)?;
        fact(
            orphans
                .reaped
                .iter()
                .all(|(pid, death)| *pid != worker.pid && *death == Death::Exited(4)),
            line!(),
        )?;
        fact(
            orphans.reaped.len() <= crate::process::reap::ORPHANS_AT_ONCE,
            line!(),
        )?;
        reaped += orphans.reaped.len();
        if orphans.hidden && orphans.reaped.is_empty() && !hidden {
            hidden = true;
            let told = reap(&worker.pidfd).map_err(|_| 3)?;
            fact(told == Some(Death::Exited(9)), line!())?;
        }
    }
    if !hidden {
        fact(
            reap(&worker.pidfd).is_ok_and(|told| told == Some(Death::Exited(9))),
            line!(),
        )?;
    }
    fact(
        reap_orphans(|_| true).is_ok_and(|orphans| orphans == Orphans::default()),
        line!(),
    )
}

/// Makes an executable file without ever having it open for writing here: a fork of another test
/// could keep it so, and an exec of such a file fails.
fn write_program(path: &Path, text: &str) {
    let status = std::process::Command::new("/bin/sh")
        .args([
            "-c",
            "printf '%s' \"$2\" > \"$1\" && chmod 755 \"$1\"",
            "sh",
        ])
        .arg(path)
        .arg(text)
        .status()
        .expect("sh");
    assert!(status.success());
}
