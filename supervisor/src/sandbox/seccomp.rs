//! Which system calls a worker may make: a filter that the parent compiles and the child enters as
//! its last step.
//!
//! Stock apps get a list of what the worker runtime uses; all other calls fail. Other programs get
//! a list of what no server needs, in the spirit of systemd's `@system-service`; all other calls
//! are done. The filter is in force before the program is executed, so executing is among the
//! allowed calls: Landlock says what can be executed.
//!
//! Both lists refuse `SO_DETACH_REUSEPORT_BPF` and its siblings. The kernel lets every holder of a
//! listening socket detach the program that steers its group, even if the socket is locked; only a
//! filter of system calls prevents that. Hence both refuse io_uring, too, which would do the same
//! calls past the filter.

use super::ConfinementError;
use crate::config::Seccomp;
use libc::c_long;
use prefork_os::seccomp::{Filter, is_available};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition,
    SeccompFilter, SeccompRule, sock_filter,
};
use std::collections::BTreeMap;
use std::ffi::c_int;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: seccompiler::TargetArch = seccompiler::TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: seccompiler::TargetArch = seccompiler::TargetArch::aarch64;
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: seccompiler::TargetArch = seccompiler::TargetArch::riscv64;

/// What the runtime of Rust workers uses, and its relatives that another C library or kernel would
/// choose. No sockets but those that are given, no processes, no programs.
const STOCK: &[c_long] = &[
    // Descriptors and files.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    // Sockets that are there.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    // Threads and time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    // Signals, to itself.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    // About itself.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_prctl,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_uname,
];

/// What only the oldest 64-bit architecture has.
#[cfg(target_arch = "x86_64")]
const STOCK_OLD: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const STOCK_OLD: &[c_long] = &[];

/// What no server needs.
const REFUSED: &[c_long] = &[
    // Other processes.
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    // Namespaces and mounts.
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // The machine.
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_lookup_dcookie,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    // Wide parts of the kernel that few have tried.
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_fanotify_init,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_OLD: &[c_long] = &[
    libc::SYS__sysctl,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_modify_ldt,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_OLD: &[c_long] = &[];

/// Options of SOL_SOCKET that take over, or end, the steering of a group.
const STEERING: [c_int; 3] = [
    libc::SO_ATTACH_REUSEPORT_CBPF,
    libc::SO_ATTACH_REUSEPORT_EBPF,
    SO_DETACH_REUSEPORT_BPF,
];
/// The libc crate does not know it. It is the same on every architecture that we have.
const SO_DETACH_REUSEPORT_BPF: c_int = 68;

/// Kinds of namespaces, as flags of clone(2). Time has none there.
const NAMESPACES: [c_int; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// Whose filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// A stock app's.
    Stock,
    /// Any other program's.
    Other,
}

/// Compiles a filter, unless there is to be none.
///
/// # Errors
/// The compiler's, which would be our mistake.
pub(crate) fn prepare(profile: Profile, how: Seccomp) -> Result<Option<Filter>, ConfinementError> {
    let refuse = match how {
        Seccomp::Off => return Ok(None),
        Seccomp::Log => SeccompAction::Log,
        Seccomp::Enforce => SeccompAction::Errno(libc::EPERM.unsigned_abs()),
    };
    let (rules, others, listed) = match profile {
        Profile::Stock => (stock(), refuse, SeccompAction::Allow),
        Profile::Other => (others(), SeccompAction::Allow, refuse),
    };
    let compiled = rules
        .and_then(|rules| SeccompFilter::new(rules, others, listed, ARCHITECTURE))
        .and_then(BpfProgram::try_from)
        .map_err(|error| ConfinementError::Compile(error.to_string()))?;
    let prologue = if how == Seccomp::Enforce {
        prologue()
    } else {
        Vec::new()
    };
    let program = prologue.into_iter().chain(compiled);
    let program = program.map(|instruction| libc::sock_filter {
        code: instruction.code,
        jt: instruction.jt,
        jf: instruction.jf,
        k: instruction.k,
    });
    match Filter::new(program.collect()) {
        Some(filter) => Ok(Some(filter)),
        None => Err(ConfinementError::Compile("it is too long".to_owned())),
    }
}

/// Returns whether the kernel can filter as it is asked to.
pub(crate) fn available(how: Seccomp) -> bool {
    match how {
        Seccomp::Off => true,
        Seccomp::Log => is_available(libc::SECCOMP_RET_LOG),
        Seccomp::Enforce => is_available(libc::SECCOMP_RET_ERRNO),
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Compiled<T> = Result<T, seccompiler::BackendError>;

fn stock() -> Compiled<Rules> {
    let mut rules = unconditional(STOCK.iter().chain(STOCK_OLD));
    let socket = u64::from(libc::SOL_SOCKET.unsigned_abs());
    let filters = [
        libc::SO_ATTACH_FILTER,
        libc::SO_ATTACH_BPF,
        libc::SO_DETACH_FILTER,
        libc::SO_LOCK_FILTER,
    ];
    let mut harmless = Vec::new();
    for option in STEERING.into_iter().chain(filters) {
        harmless.push(argument(2, Is::Ne, u64::from(option.unsigned_abs()))?);
    }
    let elsewhere = SeccompRule::new(vec![argument(1, Is::Ne, socket)?])?;
    rules.insert(
        libc::SYS_setsockopt,
        vec![elsewhere, SeccompRule::new(harmless)?],
    );
    // Threads of its own, and no processes. clone3 cannot be looked into; see `prologue`.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![one(0, Is::MaskedEq(thread), thread)?]);
    // Its own limits only.
    rules.insert(libc::SYS_prlimit64, vec![one(0, Is::Eq, 0)?]);
    // By descriptor, as we start it.
    rules.insert(
        libc::SYS_execveat,
        vec![one(4, Is::Eq, libc::AT_EMPTY_PATH as u64)?],
    );
    Ok(rules)
}

fn others() -> Compiled<Rules> {
    let mut rules = unconditional(REFUSED.iter().chain(REFUSED_OLD));
    let socket = u64::from(libc::SOL_SOCKET.unsigned_abs());
    let mut steering = Vec::new();
    for option in STEERING {
        let option = argument(2, Is::Eq, u64::from(option.unsigned_abs()))?;
        steering.push(SeccompRule::new(vec![
            argument(1, Is::Eq, socket)?,
            option,
        ])?);
    }
    rules.insert(libc::SYS_setsockopt, steering);
    let mut namespaces = Vec::new();
    for flag in NAMESPACES {
        let flag = u64::from(flag.unsigned_abs());
        namespaces.push(one(0, Is::MaskedEq(flag), flag)?);
    }
    rules.insert(libc::SYS_clone, namespaces);
    Ok(rules)
}

fn unconditional<'a>(calls: impl Iterator<Item = &'a c_long>) -> Rules {
    calls.map(|call| (*call, Vec::new())).collect()
}

fn argument(place: u8, is: Is, value: u64) -> Compiled<SeccompCondition> {
    // The kernel looks at the lower half of each of these arguments only.
    SeccompCondition::new(place, Length::Dword, is, value)
}

fn one(place: u8, is: Is, value: u64) -> Compiled<SeccompRule> {
    SeccompRule::new(vec![argument(place, is, value)?])
}

/// Before the compiled part: clone3 is not there, since its flags lie in memory, where no filter
/// can see them; C libraries then use clone. Nor are x86-64's second set of numbers for the same
/// calls. For other architectures nothing is said here; the compiled part kills them.
fn prologue() -> BpfProgram {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const NUMBER: u32 = 0; // Its place in struct seccomp_data.
    const X32: u32 = 0x4000_0000;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "system call numbers are small"
    )]
    const CLONE3: u32 = libc::SYS_clone3.cast_unsigned() as u32;
    let line = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        line(LOAD, 0, 0, NUMBER),
        line(EQUAL, 1, 0, CLONE3),
        line(AT_LEAST, 0, 1, X32),
        line(
            RETURN,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs(),
        ),
    ]
}
