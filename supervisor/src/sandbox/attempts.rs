//! What a confined process can still do: each attempt by a free one, too, so that the test can fail.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::{Identity, Source, Surroundings};
use crate::sandbox::rules::Kernel;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, setsockopt,
    socket, sockopt,
};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getpid};
use std::ffi::CStr;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

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

type Attempt = fn(&Targets) -> libc::c_long;

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
        |_| opened(c"/etc/passwd", libc::O_RDONLY),
        [0, libc::EACCES, libc::EACCES],
    ),
    (
        "write /dev/zero",
        |_| opened(c"/dev/zero", libc::O_WRONLY),
        [0, libc::EACCES, libc::EACCES],
    ),
    (
        "write /dev/null",
        |_| opened(c"/dev/null", libc::O_WRONLY),
        [0, 0, 0],
    ),
    (
        "read its own /proc",
        |_| opened(c"/proc/self/stat", libc::O_RDONLY),
        [0, 0, 0],
    ),
    (
        "read another's /proc",
        |_| opened(c"/proc/1/stat", libc::O_RDONLY),
        [0, libc::EACCES, libc::EACCES],
    ),
    (
        "load a library",
        |_| opened(c"/usr/lib", libc::O_RDONLY),
        [0, 0, 0],
    ),
    (
        "signal the supervisor",
        |on| kill(on.supervisor),
        [0, libc::EPERM, libc::EPERM],
    ),
    (
        "signal a sibling",
        |on| kill(on.sibling),
        [0, libc::EPERM, libc::EPERM],
    ),
    (
        "ptrace a sibling",
        |on| ptrace(on.sibling),
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
        |on| backlog_option(&on.free),
        [0, 0, 0],
    ),
    ("fork", |_| forked(0), [0, 0, libc::EPERM]),
    (
        "a user namespace",
        |_| forked(libc::CLONE_NEWUSER),
        [0, 0, libc::EPERM],
    ),
    (
        "clone3",
        |_| clone3(),
        [libc::EINVAL, libc::EINVAL, libc::ENOSYS],
    ),
    (
        "io_uring",
        |_| io_uring(),
        [libc::EFAULT, libc::EFAULT, libc::EPERM],
    ),
    (
        "execute another program",
        |_| execute(),
        [libc::ENOEXEC, libc::EACCES, libc::EPERM],
    ),
];

fn tcp_bind() -> libc::c_long {
    // SAFETY: zeros are a socket address of no family; the fields that count are set.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        if socket < 0 {
            return -1;
        }
        let mut address: libc::sockaddr_in = std::mem::zeroed();
        address.sin_family = libc::AF_INET as libc::sa_family_t;
        address.sin_addr.s_addr = u32::from_be(0x7f00_0001);
        libc::bind(
            socket,
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
        .into()
    }
}

fn unix_socket() -> libc::c_long {
    // SAFETY: integers only.
    unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).into() }
}

fn opened(path: &CStr, how: c_int) -> libc::c_long {
    // SAFETY: the path ends with a NUL.
    unsafe { libc::open(path.as_ptr(), how).into() }
}

fn kill(pid: Pid) -> libc::c_long {
    // SAFETY: integers only.
    unsafe { libc::kill(pid.as_raw(), 0).into() }
}

fn ptrace(pid: Pid) -> libc::c_long {
    // SAFETY: no data is passed; the end of the tracer is the end of the trace.
    unsafe {
        libc::syscall(
            libc::SYS_ptrace,
            libc::PTRACE_SEIZE,
            pid.as_raw(),
            0_usize,
            0_usize,
        )
    }
}

fn memory(pid: Pid) -> libc::c_long {
    let mut byte = 0_u8;
    let here = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let there = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 1,
    };
    // SAFETY: one byte may be written to `byte`.
    unsafe {
        libc::syscall(
            libc::SYS_process_vm_readv,
            pid.as_raw(),
            &raw const here,
            1_usize,
            &raw const there,
            1_usize,
            0_usize,
        )
    }
}

fn option(
    socket: &OwnedFd,
    option: c_int,
    value: *const libc::c_void,
    length: usize,
) -> libc::c_long {
    // SAFETY: the callers' values are valid for reads of the length.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            value,
            length as libc::socklen_t,
        )
        .into()
    }
}

fn attach(socket: &OwnedFd) -> libc::c_long {
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
    option(
        socket,
        libc::SO_ATTACH_REUSEPORT_CBPF,
        (&raw const program).cast(),
        size_of_val(&program),
    )
}

fn detach(socket: &OwnedFd) -> libc::c_long {
    let zero: c_int = 0;
    option(socket, 68, (&raw const zero).cast(), size_of_val(&zero))
}

fn backlog_option(socket: &OwnedFd) -> libc::c_long {
    let one: c_int = 1;
    option(
        socket,
        libc::SO_KEEPALIVE,
        (&raw const one).cast(),
        size_of_val(&one),
    )
}

fn forked(flags: c_int) -> libc::c_long {
    // SAFETY: like fork; the child leaves at once.
    unsafe {
        let child = libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags | libc::SIGCHLD),
            0_usize,
            0_usize,
            0_usize,
            0_usize,
        );
        if child == 0 {
            libc::_exit(0);
        }
        child
    }
}

fn clone3() -> libc::c_long {
    // SAFETY: a size of 0 is refused before anything is read.
    unsafe { libc::syscall(libc::SYS_clone3, 0_usize, 0_usize) }
}

fn io_uring() -> libc::c_long {
    // SAFETY: a null pointer is refused.
    unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0_usize) }
}

/// A file that may be executed by its mode, and is no program: so that nothing is executed.
static NO_PROGRAM: std::sync::OnceLock<std::ffi::CString> = std::sync::OnceLock::new();

fn execute() -> libc::c_long {
    let path = NO_PROGRAM.get().unwrap();
    // SAFETY: the path ends with a NUL, and no arguments are allowed on Linux.
    unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), 0_usize, 0_usize) }
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
    assert_eq!(attach(&one), 0, "a program");
    if locked {
        prefork_os::lock_filter(&one).unwrap();
    }
    one
}

/// A process that confines itself, tells so, and waits until its pipe is closed.
fn sibling(confinement: &Confinement) -> (Pid, std::io::PipeReader, std::io::PipeWriter) {
    let (mut told, tell) = std::io::pipe().unwrap();
    let (stay, end) = std::io::pipe().unwrap();
    // SAFETY: the child makes async-signal-safe calls only.
    let ForkResult::Parent { child } = (unsafe { fork() }).unwrap() else {
        // SAFETY: as above.
        unsafe {
            libc::close(end.as_raw_fd());
            let entered = enter(confinement).is_ok();
            libc::write(tell.as_raw_fd(), (&raw const entered).cast(), 1);
            libc::read(stay.as_raw_fd(), (&raw const entered).cast_mut().cast(), 1);
            libc::_exit(0)
        }
    };
    let mut entered = [0];
    told.read_exact(&mut entered).unwrap();
    assert_eq!(entered, [1]);
    (child, stay, end)
}

fn enter(confinement: &Confinement) -> Result<(), (Stage, c_int)> {
    confinement.surrender()?;
    confinement.confine()?;
    confinement.seal()
}

/// The errno of each attempt, in a process of its own.
fn tried(confinement: &Confinement, locked: OwnedFd, free: OwnedFd) -> Vec<c_int> {
    let (sibling, stay, end) = sibling(confinement);
    let on = Targets {
        supervisor: getpid(),
        sibling,
        locked,
        free,
    };
    let (mut told, tell) = std::io::pipe().unwrap();
    // SAFETY: the child makes async-signal-safe calls only.
    let ForkResult::Parent { child } = (unsafe { fork() }).unwrap() else {
        let to: RawFd = tell.as_raw_fd();
        let say = |errno: c_int| {
            let bytes = errno.to_ne_bytes();
            // SAFETY: valid for reads of its length.
            unsafe { libc::write(to, bytes.as_ptr().cast(), bytes.len()) };
        };
        if let Err((_, errno)) = enter(confinement) {
            say(-errno);
        } else {
            for (_, attempt, _) in ATTEMPTS {
                let failed = attempt(&on) < 0;
                say(if failed { Errno::last_raw() } else { 0 });
            }
        }
        // SAFETY: ends the child without the harness's exit handlers.
        unsafe { libc::_exit(0) }
    };
    drop(tell);
    let mut bytes = Vec::new();
    told.read_to_end(&mut bytes).unwrap();
    waitpid(child, None).unwrap();
    drop((stay, end));
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
        let made = Sandbox::prepare_for(kernel, &mut config, &program, None);
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
    let refused = on(old, &["--sandbox", "strict", "--private-tmp", "on"]).unwrap_err();
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
        Sandbox::prepare(&mut config(&args), &program, None).unwrap()
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
    let refused =
        |args: &[&str]| Sandbox::prepare_for(fine, &mut config(args), &program, None).unwrap_err();
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
    let mut foreign = config(&["--read-only", "/srv", "--", "/bin/sh", path]);
    Sandbox::prepare_for(fine, &mut foreign, &program, None).unwrap();
    assert!(
        foreign.warnings[0].contains(&format!("workers cannot open {path}")),
        "{:?}",
        foreign.warnings
    );
}
