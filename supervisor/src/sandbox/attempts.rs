//! What a confined process can still do: each attempt by a free one, too, so that the test can
//! fail.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::{Identity, Source, Surroundings};
use crate::sandbox::rules::Kernel;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, setsockopt,
    socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid};
use prefork_os::testing;
use std::ffi::{CStr, c_int};
use std::io::{IoSliceMut, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsRawFd, OwnedFd};

fn config(args: &[&str]) -> Config {
    let args = ["supervisor"].iter().chain(args);
    let source = Source::from_parts(
        &Identity::supervisor(),
        args,
        Vec::<(String, String)>::new(),
    )
    .unwrap()
    .source;
    source
        .load(&Surroundings {
            cpus: 2,
            inherited: &[],
            check_app: &|_| Ok(()),
        })
        .unwrap()
}

fn prepared(args: &[&str]) -> Confinement {
    let mut config = config(args);
    let mut confinement = Confinement::prepare(&config).unwrap();
    confinement
        .add_sandbox(&mut config, &Executable::open("/bin/sh").unwrap())
        .unwrap();
    confinement
}

/// What attempts are made on. All is made before the fork, since the child must not allocate.
struct Targets {
    supervisor: Pid,
    sibling: Pid,
    /// A locked and steered listener.
    locked: OwnedFd,
    /// One that is the worker's own.
    free: OwnedFd,
}

type Attempt = fn(&Targets) -> Result<(), Errno>;

/// Name, act, and its errno when free, with Landlock alone, and with both.
const ATTEMPTS: [(&str, Attempt, [c_int; 3]); 22] = [
    (
        "bind a TCP port",
        |_| tcp_bind(),
        [0, libc::EACCES, libc::EPERM],
    ),
    ("open a Unix socket", |_| unix_socket(), [0, 0, libc::EPERM]),
    (
        "read /etc/passwd",
        |_| opened(c"/etc/passwd", OFlag::O_RDONLY),
        [0, libc::EACCES, libc::EACCES],
    ),
    (
        "write /dev/zero",
        |_| opened(c"/dev/zero", OFlag::O_WRONLY),
        [0, libc::EACCES, libc::EACCES],
    ),
    (
        "write /dev/null",
        |_| opened(c"/dev/null", OFlag::O_WRONLY),
        [0, 0, 0],
    ),
    (
        "read its own /proc",
        |_| opened(c"/proc/self/stat", OFlag::O_RDONLY),
        [0, 0, 0],
    ),
    (
        "read another's /proc",
        |_| opened(c"/proc/1/stat", OFlag::O_RDONLY),
        [0, libc::EACCES, libc::EACCES],
    ),
    (
        "load a library",
        |_| opened(c"/usr/lib", OFlag::O_RDONLY),
        [0, 0, 0],
    ),
    (
        "signal the supervisor",
        |on| signal(on.supervisor),
        [0, libc::EPERM, libc::EPERM],
    ),
    (
        "signal a sibling",
        |on| signal(on.sibling),
        [0, libc::EPERM, libc::EPERM],
    ),
    (
        "ptrace a sibling",
        |on| testing::ptrace_seize(on.sibling),
        [0, libc::EPERM, libc::EPERM],
    ),
    (
        "read a sibling's memory",
        |on| memory(on.sibling),
        [libc::EFAULT, libc::EPERM, libc::EPERM],
    ),
    (
        "replace the steering program",
        |on| attach(&on.locked),
        [libc::EPERM, libc::EPERM, libc::EPERM],
    ),
    (
        "detach the steering program",
        |on| detach(&on.locked),
        [0, 0, libc::EPERM],
    ),
    (
        "replace one's own steering program",
        |on| attach(&on.free),
        [0, 0, libc::EPERM],
    ),
    (
        "detach one's own steering program",
        |on| detach(&on.free),
        [0, 0, libc::EPERM],
    ),
    (
        "set another option of a socket",
        |on| option(&on.free, libc::SO_KEEPALIVE, 1),
        [0, 0, 0],
    ),
    ("fork", |_| testing::clone_and_exit(0), [0, 0, libc::EPERM]),
    (
        "a user namespace",
        |_| testing::clone_and_exit(libc::CLONE_NEWUSER),
        [0, 0, libc::EPERM],
    ),
    (
        "clone3",
        |_| testing::clone3(),
        [libc::EINVAL, libc::EINVAL, libc::ENOSYS],
    ),
    (
        "io_uring",
        |_| testing::io_uring_setup(),
        [libc::EFAULT, libc::EFAULT, libc::EPERM],
    ),
    (
        "execute another program",
        |_| execute(),
        [libc::ENOEXEC, libc::EACCES, libc::EPERM],
    ),
];

fn tcp_bind() -> Result<(), Errno> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))
}

fn unix_socket() -> Result<(), Errno> {
    socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map(drop)
}

fn opened(path: &CStr, how: OFlag) -> Result<(), Errno> {
    nix::fcntl::open(path, how | OFlag::O_CLOEXEC, Mode::empty()).map(drop)
}

fn signal(pid: Pid) -> Result<(), Errno> {
    nix::sys::signal::kill(pid, None)
}

fn memory(pid: Pid) -> Result<(), Errno> {
    let mut byte = [0];
    let there = RemoteIoVec { base: 0, len: 1 };
    process_vm_readv(pid, &mut [IoSliceMut::new(&mut byte)], &[there]).map(drop)
}

fn option(socket: &OwnedFd, option: c_int, value: c_int) -> Result<(), Errno> {
    testing::set_socket_option(socket, option, value)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

fn attach(socket: &OwnedFd) -> Result<(), Errno> {
    let mut code = libc::sock_filter {
        code: 6,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut code,
    };
    setsockopt(socket, sockopt::AttachReusePortCbpf, &program)
}

fn detach(socket: &OwnedFd) -> Result<(), Errno> {
    option(socket, 68, 0)
}

/// A file that may be executed by its mode, and is no program: so that nothing is executed.
static NO_PROGRAM: std::sync::OnceLock<std::ffi::CString> = std::sync::OnceLock::new();

fn execute() -> Result<(), Errno> {
    let path = NO_PROGRAM.get().unwrap();
    let none: [&CStr; 0] = [];
    nix::unistd::execve(path, &none, &none).map(|never| match never {})
}

/// A listener in a group of its own, locked or not, with a steering program.
fn listener(locked: bool) -> OwnedFd {
    let one = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    setsockopt(&one, sockopt::ReusePort, &true).unwrap();
    bind(one.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    assert!(getsockname::<SockaddrIn>(one.as_raw_fd()).is_ok());
    listen(&one, Backlog::new(1).unwrap()).unwrap();
    attach(&one).unwrap();
    if locked {
        prefork_os::lock_filter(&one).unwrap();
    }
    one
}

/// Starts a process that confines itself, reports that, and waits until its pipe is closed.
fn sibling(confinement: &Confinement) -> (Pid, PipeWriter) {
    let (mut reports, mut report) = pipe().unwrap();
    let (mut stay, end) = pipe().unwrap();
    // The child must not hold the end that it waits for.
    let mut ends = vec![end];
    let child = testing::fork(|| {
        ends.clear();
        let entered = confinement.steps().enter().is_ok();
        let _ = report.write_all(&[u8::from(entered)]);
        let _ = stay.read(&mut [0]);
        0
    })
    .unwrap();
    drop(report);
    let mut entered = [0];
    reports.read_exact(&mut entered).unwrap();
    assert_eq!(entered, [1]);
    (child, ends.remove(0))
}

/// Returns the errno of each attempt, in a process of its own.
fn tried(confinement: &Confinement, locked: OwnedFd, free: OwnedFd) -> Vec<c_int> {
    let (sibling, end) = sibling(confinement);
    let on = Targets {
        supervisor: getpid(),
        sibling,
        locked,
        free,
    };
    let (mut reports, mut report) = pipe().unwrap();
    let child = testing::fork(|| {
        let mut say = |errno: c_int| report.write_all(&errno.to_ne_bytes()).is_ok();
        match confinement.steps().enter() {
            Err((_, errno)) => {
                say(-(errno as c_int));
            }
            Ok(()) => {
                for (_, attempt, _) in ATTEMPTS {
                    say(attempt(&on).map_or_else(|errno| errno as c_int, |()| 0));
                }
            }
        }
        0
    })
    .unwrap();
    drop(report);
    let mut bytes = Vec::new();
    reports.read_to_end(&mut bytes).unwrap();
    waitpid(child, None).unwrap();
    drop(end);
    waitpid(sibling, None).unwrap();
    bytes
        .chunks_exact(4)
        .map(|chunk| c_int::from_ne_bytes(chunk.try_into().unwrap()))
        .collect()
}

#[test]
fn a_stock_app_can_do_nothing_that_it_does_not_need_and_a_free_process_can() {
    if landlock::abi() < 6 {
        testkit::skipped(
            "stock sandbox",
            "this kernel's Landlock has no scopes (Linux 6.12)",
        );
        return;
    }
    let mut file = tempfile::Builder::new()
        .prefix("confine")
        .tempfile_in("/var/tmp")
        .unwrap();
    file.write_all(b"\x01").unwrap();
    nix::sys::stat::fchmod(&file, nix::sys::stat::Mode::from_bits_truncate(0o755)).unwrap();
    let path = file.into_temp_path();
    NO_PROGRAM
        .set(std::ffi::CString::new(path.to_str().unwrap()).unwrap())
        .unwrap();
    let confinements = [
        ("free", None),
        (
            "Landlock",
            Some(prepared(&["--sandbox", "strict", "--seccomp", "off"])),
        ),
        ("both", Some(prepared(&["--sandbox", "strict"]))),
    ];
    for (column, (name, confinement)) in confinements.iter().enumerate() {
        let root = nix::unistd::geteuid().is_root();
        let errnos = tried(
            confinement.as_ref().unwrap_or(&FREE),
            listener(true),
            listener(false),
        );
        assert_eq!(errnos.len(), ATTEMPTS.len(), "{name}: {errnos:?}");
        for ((attempt, _, expected), errno) in ATTEMPTS.iter().zip(errnos) {
            let told = if errno == 0 {
                "done".to_owned()
            } else {
                format!("{:?}", Errno::from_raw(errno))
            };
            println!("{name:>8}: {attempt}: {told}");
            // What only root can do tells nothing about others.
            if root || column > 0 {
                let expected = expected[column];
                assert_eq!(
                    errno,
                    expected,
                    "{name}: {attempt}: {told} instead of {:?}",
                    Errno::from_raw(expected)
                );
            }
        }
    }
}

#[test]
fn a_kernel_that_lacks_a_part_is_refused_or_told_of_once() {
    let program = Executable::open("/bin/sh").unwrap();
    let old = Kernel {
        landlock: 1,
        seccomp: false,
        private_tmp: Some(Errno::EPERM),
    };
    let on = |kernel, args: &[&str]| {
        let mut config = config(args);
        let made = Sandbox::prepare_for(
            kernel,
            &mut config,
            &program,
            None,
            &mut HeldPaths::default(),
        );
        made.map(|made| (made, config.warnings))
    };
    let asked = ["--private-tmp", "on"];
    let (made, warnings) = on(old, &asked).unwrap();
    assert!(made.landlock.is_some() && made.filter.is_none() && made.private_tmp.is_none());
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in [
        "6.2",
        "6.7",
        "6.10",
        "6.12",
        "CONFIG_SECCOMP_FILTER",
        "a private /tmp",
        "CAP_SYS_ADMIN",
    ] {
        assert!(warnings[0].contains(part), "{part}: {warnings:?}");
    }
    let refused = on(old, &["--sandbox", "strict", "--private-tmp", "on"])
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with("the sandbox cannot be strict") && refused.contains("6.12"),
        "{refused}"
    );
    assert!(
        refused.ends_with("(choose --sandbox best-effort to go on without)"),
        "{refused}"
    );
    let (made, warnings) = on(old, &["--sandbox", "off"]).unwrap();
    assert!(!made.needs_no_new_privs() && warnings.is_empty());
    let none = Kernel {
        landlock: 0,
        seccomp: true,
        private_tmp: None,
    };
    let (made, warnings) = on(none, &[]).unwrap();
    assert!(made.landlock.is_none() && made.filter.is_some());
    assert!(warnings[0].contains("Landlock (Linux 5.13"), "{warnings:?}");
}

#[test]
fn any_other_program_is_left_alone_unless_a_part_is_asked_for() {
    let program = Executable::open("/bin/sh").unwrap();
    let asks = |args: &[&str]| {
        let args: Vec<_> = args.iter().copied().chain(["--", "/bin/sh"]).collect();
        Sandbox::prepare(
            &mut config(&args),
            &program,
            None,
            &mut HeldPaths::default(),
        )
        .unwrap()
    };
    assert!(!asks(&[]).needs_no_new_privs());
    assert!(
        !asks(&["--limit", "nofile=100"]).needs_no_new_privs(),
        "a limit is no sandbox"
    );
    assert!(!asks(&["--seccomp", "off"]).needs_no_new_privs());
    assert!(asks(&["--seccomp", "log"]).filter.is_some());
    assert!(asks(&["--sandbox", "best-effort"]).filter.is_none());
    let there = landlock::abi() > 0;
    for args in [
        &["--sandbox", "best-effort"][..],
        &["--read-only", "/"],
        &["--tcp-bind", "deny"],
    ] {
        assert_eq!(asks(args).landlock.is_some(), there, "{args:?}");
    }
}

#[test]
fn what_workers_need_is_not_hidden_by_a_private_tmp_and_what_is_named_exists() {
    let program = Executable::open("/bin/sh").unwrap();
    let fine = Kernel {
        landlock: 7,
        seccomp: true,
        private_tmp: None,
    };
    let here = tempfile::tempdir_in("/tmp").unwrap();
    let path = here.path().to_str().unwrap();
    let served = format!("files:{path}");
    let refused = |args: &[&str]| {
        Sandbox::prepare_for(
            fine,
            &mut config(args),
            &program,
            None,
            &mut HeldPaths::default(),
        )
        .unwrap_err()
        .to_string()
    };
    for args in [
        ["--directory", path],
        ["--app", &served],
        ["--writable", path],
        ["--log-file", &format!("{path}/log")],
    ] {
        let message = refused(&[&["--private-tmp", "on"][..], &args].concat());
        assert!(
            message.starts_with("private-tmp: workers would not see /tmp/"),
            "{message}"
        );
    }
    assert_eq!(
        refused(&["--read-only", "/nowhere"]),
        "read-only: cannot open /nowhere: No such file or directory (check the path)"
    );
    let mut external = config(&["--read-only", "/srv", "--", "/bin/sh", path]);
    Sandbox::prepare_for(
        fine,
        &mut external,
        &program,
        None,
        &mut HeldPaths::default(),
    )
    .unwrap();
    assert!(
        external.warnings[0].contains(&format!("workers cannot open {path}")),
        "{:?}",
        external.warnings
    );
}
