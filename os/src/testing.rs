//! What only tests need: forks, attempts at what a sandbox must refuse, network devices.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{ForkResult, Pid};
use std::ffi::{c_char, c_int, c_long, c_short};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

/// Forks this process, has the child call a function, and ends it with the status returned, or 101
/// when it panics. No destructor and no exit handler runs there.
///
/// # Errors
/// Those of fork(2).
pub fn fork(act: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    // SAFETY: glibc lets the child allocate. What another thread was about to change when this one
    // forked is behind a lock that stays locked in the child, so that it is never seen half
    // changed.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let status = catch_unwind(AssertUnwindSafe(act)).unwrap_or(101);
            // SAFETY: _exit takes an integer, and ends the process.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Sends any signal, also those that nix has no name for.
///
/// # Errors
/// Those of kill(2).
pub fn kill(pid: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill takes integers and touches no memory.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// Has a command's child get copies of descriptors under the numbers from 3 on, and die with this
/// process.
pub fn pass_descriptors(command: &mut Command, descriptors: Vec<RawFd>) {
    let mut high = vec![-1; descriptors.len()];
    let place = move || {
        for (copy, number) in high.iter_mut().zip(&descriptors) {
            // SAFETY: fcntl takes integers here, and touches no memory.
            *copy = Errno::result(unsafe { libc::fcntl(*number, libc::F_DUPFD_CLOEXEC, 100) })?;
        }
        for (number, copy) in (3..).zip(&high) {
            // SAFETY: dup2 takes integers. The numbers are the program's; until it is executed,
            // only the standard library's pipe is used here, which it moves away from its own
            // numbers.
            Errno::result(unsafe { libc::dup2(*copy, number) })?;
        }
        // SAFETY: prctl takes integers here, and touches no memory.
        Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        Ok(())
    };
    // SAFETY: only async-signal-safe calls, on memory that was allocated before.
    unsafe { command.pre_exec(place) };
}

/// Returns how many bytes wait in a pipe.
///
/// # Errors
/// Those of ioctl(2).
pub fn bytes_waiting(pipe: impl AsFd) -> io::Result<usize> {
    let mut count: c_int = 0;
    request(&pipe, libc::FIONREAD, &mut count)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Sets an option of a socket (of `SOL_SOCKET`) whose value is an int.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_socket_option(socket: impl AsFd, option: c_int, value: c_int) -> io::Result<()> {
    crate::socket::set_option(socket.as_fd(), libc::SOL_SOCKET, option, value)
}

/// Returns how many packets a socket threw away.
///
/// # Errors
/// Those of getsockopt(2).
pub fn dropped_packets(socket: impl AsFd) -> io::Result<u32> {
    // Its last field is the one that matters: SK_MEMINFO_DROPS.
    let mut values = [0_u32; 9];
    let mut length = libc::socklen_t::try_from(size_of_val(&values)).unwrap_or(0);
    // SAFETY: `values` is valid for writes of `length` bytes.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(done)?;
    Ok(values[8])
}

/// Attaches to a process as its tracer, until this process ends.
///
/// # Errors
/// Those of ptrace(2).
pub fn ptrace_seize(pid: Pid) -> Result<(), Errno> {
    let (pid, none) = (pid.as_raw(), 0_usize);
    // SAFETY: PTRACE_SEIZE takes integers and touches no memory.
    result(unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_SEIZE, pid, none, none) })
}

/// Makes a process by clone(2), with flags beyond those of fork(2), that exits at once.
///
/// # Errors
/// Those of clone(2).
pub fn clone_and_exit(flags: c_int) -> Result<(), Errno> {
    let flags = c_long::from(flags & !(libc::CLONE_VM | libc::CLONE_THREAD) | libc::SIGCHLD);
    let none = 0_usize;
    // SAFETY: without CLONE_VM it is like fork; the child exits at once.
    unsafe {
        let child = libc::syscall(libc::SYS_clone, flags, none, none, none, none);
        if child == 0 {
            libc::_exit(0);
        }
        result(child)
    }
}

/// Asks for clone3(2) in vain.
///
/// # Errors
/// `EINVAL` where the call is allowed.
pub fn clone3() -> Result<(), Errno> {
    // SAFETY: a size of 0 is refused before anything is read.
    result(unsafe { libc::syscall(libc::SYS_clone3, 0_usize, 0_usize) })
}

/// Asks for io_uring(7) in vain.
///
/// # Errors
/// `EFAULT` where the call is allowed.
pub fn io_uring_setup() -> Result<(), Errno> {
    // SAFETY: a null pointer is refused.
    result(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0_usize) })
}

fn result(returned: c_long) -> Result<(), Errno> {
    Errno::result(returned).map(drop)
}

/// A network interface of this thread's network namespace, by name.
#[derive(Debug)]
pub struct Interface {
    name: [c_char; libc::IFNAMSIZ],
    control: OwnedFd,
}

impl Interface {
    /// Refers to an interface, which need not exist yet.
    ///
    /// # Errors
    /// When there can be no socket.
    pub fn named(name: &str) -> io::Result<Self> {
        let mut named = [0; libc::IFNAMSIZ];
        let bytes = name.bytes().take(libc::IFNAMSIZ - 1);
        for (to, from) in named.iter_mut().zip(bytes) {
            *to = from.cast_signed() as c_char;
        }
        Ok(Self {
            name: named,
            control: control(AddressFamily::Inet)?,
        })
    }

    /// Makes it: a TUN device whose packets are read from and written to `/dev/net/tun`, opened
    /// here.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn make_tun(&self, file: &File) -> io::Result<()> {
        self.ask(
            file,
            libc::TUNSETIFF,
            libc::__c_anonymous_ifr_ifru {
                ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL) as c_short,
            },
        )?;
        Ok(())
    }

    /// Gives it an address and the length of its network's prefix.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn set_v4(&self, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
        for (what, address) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
            // SAFETY: sockaddr consists of integers, for which all-zero bytes are valid.
            let mut general: libc::sockaddr = unsafe { std::mem::zeroed() };
            general.sa_family = libc::AF_INET as libc::sa_family_t;
            // After the family come two bytes of port, then the address in network order.
            for (to, from) in general.sa_data[2..].iter_mut().zip(address.octets()) {
                *to = from.cast_signed() as c_char;
            }
            let value = libc::__c_anonymous_ifr_ifru { ifru_addr: general };
            self.ask(&self.control, what, value)?;
        }
        Ok(())
    }

    /// Gives it an IPv6 address of a network of 64 bits.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn add_v6(&self, address: Ipv6Addr) -> io::Result<()> {
        let mut wanted = libc::in6_ifreq {
            ifr6_addr: libc::in6_addr {
                s6_addr: address.octets(),
            },
            ifr6_prefixlen: 64,
            ifr6_ifindex: self.index()?,
        };
        request(
            &control(AddressFamily::Inet6)?,
            libc::SIOCSIFADDR,
            &mut wanted,
        )
    }

    /// Raises it.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn raise(&self) -> io::Result<()> {
        let value = libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_UP | libc::IFF_RUNNING) as c_short,
        };
        self.ask(&self.control, libc::SIOCSIFFLAGS, value)?;
        Ok(())
    }

    /// Returns its index.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn index(&self) -> io::Result<c_int> {
        let value = libc::__c_anonymous_ifr_ifru { ifru_ifindex: 0 };
        let answer = self.ask(&self.control, libc::SIOCGIFINDEX, value)?;
        // SAFETY: SIOCGIFINDEX succeeded, so that the kernel wrote this field.
        Ok(unsafe { answer.ifr_ifru.ifru_ifindex })
    }

    fn ask(
        &self,
        file: &impl AsFd,
        what: libc::Ioctl,
        value: libc::__c_anonymous_ifr_ifru,
    ) -> io::Result<libc::ifreq> {
        let mut wanted = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: value,
        };
        request(file, what, &mut wanted)?;
        Ok(wanted)
    }
}

fn control(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket(
        family,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

/// Calls ioctl(2) with a request that reads and writes what is passed here: an int for FIONREAD, an
/// ifreq for TUNSETIFF and on IPv4 sockets, an in6_ifreq on IPv6 sockets.
fn request<T>(file: &impl AsFd, what: libc::Ioctl, value: &mut T) -> io::Result<()> {
    // SAFETY: every caller in this module passes what its request takes, alive and writable.
    match unsafe { libc::ioctl(file.as_fd().as_raw_fd(), what, std::ptr::from_mut(value)) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
