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
    directory: Option<Directory>,
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
            directory: self.directory.as_ref(),
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
fn a_directory_that_must_not_be_entered_is_named() {
    let directory = tempfile::tempdir().expect("directory");
    let closed = Directory::open(None, directory.path()).expect("it is there");
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    std::fs::set_permissions(directory.path(), permissions).expect("it is ours");
    if nix::unistd::geteuid().is_root() {
        println!("SKIPPED: root enters every directory");
        return;
    }
    let mut shell = Shell::new("exit 0");
    shell.directory = Some(closed);
    let spawned = shell.spawn();
    death(&spawned);
    let failure = spawned.exec_errors.failure().expect("a report");
    assert_eq!(
        (failure.stage, failure.errno),
        (Stage::Directory, Errno::EACCES)
    );
    let named = format!("{} for ", directory.path().display());
    assert!(failure.to_string().contains(&named), "{failure}");
}

/// Runs a program with arguments, and returns what it wrote to descriptor 3.
fn written(program: &Executable, arguments: &[&str], directory: Option<Directory>) -> String {
    let (mut reader, writer) = pipe();
    let mut shell = Shell::new("");
    shell.argv = arguments.iter().map(|argument| c(argument)).collect();
    shell.env = vec![c("PATH=/bin:/usr/bin")];
    shell.listeners.push(writer.as_fd());
    shell.directory = directory;
    let spawned = spawn(&shell.order(program)).expect("spawn");
    drop(shell);
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read");
    let failure = spawned.exec_errors.failure();
    assert_eq!(death(&spawned), Death::Exited(0), "{failure:?}");
    text
}

#[test]
fn a_script_is_run_by_its_path_from_any_directory() {
    let directory = tempfile::tempdir().expect("directory");
    write_program(
        &directory.path().join("app.sh"),
        "#!/bin/sh\necho \"$0\" \"$@\" \"$PWD\" >&3\n",
    );
    let path = Some(directory.path().as_os_str());
    let program = Executable::find("app.sh".as_ref(), path, None).expect("found");
    let usr = Directory::open(None, Path::new("/usr")).expect("a directory");
    let text = written(&program, &["name", "one", "two"], Some(usr));
    let real = directory.path().canonicalize().expect("its path");
    assert_eq!(text, format!("{}/app.sh one two /usr\n", real.display()));
}

#[test]
fn a_script_that_was_replaced_or_removed_still_runs_as_it_was() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("app.sh");
    write_program(&path, "#!/bin/sh\necho old $0 $1 >&3\n");
    let old = Executable::open(&path).expect("executable");
    let other = directory.path().join("other");
    write_program(&other, "#!/bin/sh\necho new >&3\n");
    std::fs::rename(&other, &path).expect("rename");
    assert_eq!(written(&old, &["", "x"], None), "old /dev/fd/4 x\n");
    std::fs::remove_file(&path).expect("it is there");
    assert_eq!(written(&old, &["", "x"], None), "old /dev/fd/4 x\n");
}

#[test]
fn a_script_whose_directory_was_moved_runs_by_its_new_path() {
    let directory = tempfile::tempdir().expect("directory");
    let real = directory.path().canonicalize().expect("its path");
    let (before, after) = (real.join("before"), real.join("after"));
    std::fs::create_dir(&before).expect("a directory");
    write_program(&before.join("app.sh"), "#!/bin/sh\necho $0 >&3\n");
    let program = Executable::open(before.join("app.sh")).expect("executable");
    std::fs::rename(&before, &after).expect("rename");
    assert_eq!(
        written(&program, &[""], None),
        format!("{}/app.sh\n", after.display())
    );
}

#[test]
fn the_interpreter_is_the_one_that_was_there_at_first() {
    let directory = tempfile::tempdir().expect("directory");
    let interpreter = directory.path().join("interpreter");
    // An interpreter that is a script itself, with an argument of several words.
    write_program(&interpreter, "#!/bin/sh -e\necho old \"$1\" >&3\n");
    let script = directory.path().join("app");
    let line = format!("#! {}   one two \n", interpreter.display());
    write_program(&script, &line);
    let program = Executable::open(&script).expect("executable");
    let text = "old one two\n";
    assert_eq!(written(&program, &[""], None), text);
    let other = directory.path().join("other");
    write_program(&other, "#!/bin/sh\necho new >&3\n");
    std::fs::rename(&other, &interpreter).expect("rename");
    assert_eq!(written(&program, &[""], None), text);
}

#[test]
fn a_script_without_a_usable_interpreter_is_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("script");
    let refused = |text: &str| {
        write_program(&path, text);
        let error = Executable::open(&path).expect_err("refused").to_string();
        let begin = format!(
            "{}, whose first line names its interpreter: ",
            path.display()
        );
        error.strip_prefix(&begin).map(str::to_owned).ok_or(error)
    };
    assert_eq!(
        refused("#!/no/such/interpreter\n").as_deref(),
        Ok("cannot execute /no/such/interpreter: No such file or directory (check the path)")
    );
    let itself = format!("#!{}\n", path.display());
    let text = refused(&itself).unwrap_or_default();
    assert!(text.contains("Too many"), "{text}");
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
fn names_without_links_are_found_where_a_link_leads() {
    let directory = tempfile::tempdir().expect("directory");
    let real = directory.path().canonicalize().expect("its path");
    std::fs::create_dir(real.join("r1")).expect("a directory");
    std::os::unix::fs::symlink("r1", real.join("current")).expect("a link");
    std::fs::write(real.join("r1/app.py"), "").expect("a file");
    let base = Directory::open(None, &real).expect("a directory");
    for linked in [
        real.join("current/app.py"),
        "current/app.py".into(),
        "./current/app.py".into(),
    ] {
        let found = without_links(Some(&base), &linked);
        assert_eq!(found, Some(real.join("r1/app.py")), "{linked:?}");
    }
    for plain in [
        real.join("r1/app.py"),
        "r1/app.py".into(),
        "./r1/app.py".into(),
        "app.py".into(),
    ] {
        assert_eq!(without_links(Some(&base), &plain), None, "{plain:?}");
    }
    let through = Directory::open(Some(&base), Path::new("current")).expect("a directory");
    assert_eq!(through.path(), real.join("r1"));
}

#[test]
fn lookups_name_what_is_wrong() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("plain");
    std::fs::File::create(&path)
        .and_then(|mut file| file.write_all(b"x"))
        .expect("write");
    let find = |program: &str, path: Option<&std::ffi::OsStr>| {
        let base = Directory::open(None, directory.path()).expect("a directory");
        Executable::find(program.as_ref(), path, Some(&base)).map(|found| found.path().to_owned())
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
    assert!(!current.is_script());
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
