//! What can be seen of a process that waits for connections, from outside.
//!
//! A socket is waited on when it is watched for reading by an epoll instance of the process or one
//! of its descendants, or when one of their threads is in accept, poll or select with it. Sockets
//! are told apart by inode, so that it does not matter under which numbers a program has them. Not
//! seen: io_uring, and 32-bit programs on a 64-bit kernel, whose system calls have other numbers.
//!
//! Everything read here is bounded: processes, threads, descriptors, the length of what is polled.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::{fs, io};

/// The most processes of a worker that are looked at.
const PROCESSES: usize = 64;
/// The most threads of each.
const THREADS: usize = 256;
/// The most descriptors of each.
pub(super) const DESCRIPTORS: usize = 4096;
/// The most entries of a poll.
const POLLED: usize = 4096;

/// What one look has found.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// All sockets are waited on.
    pub(crate) waits: bool,
    /// The sockets that are.
    pub(crate) waited: BTreeSet<u64>,
    /// There is no such process any more.
    pub(crate) gone: bool,
    /// What this process may not see, if there is something.
    pub(crate) refused: Option<io::Error>,
}

/// Looks whether a process or its descendants wait for connections on all these sockets.
pub(crate) fn look(pid: u32, sockets: &BTreeSet<u64>) -> Look {
    let mut look = Look {
        gone: !lives(pid),
        ..Look::default()
    };
    let mut waited = BTreeSet::new();
    for process in family(pid) {
        if let Err(error) = look_at(process, sockets, &mut waited)
            && error.kind() == ErrorKind::PermissionDenied
        {
            look.refused = Some(error);
        }
        if sockets.is_subset(&waited) {
            look.waits = true;
            break;
        }
    }
    look.waited = waited;
    look
}

fn lives(pid: u32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit_once(')')
        .is_some_and(|(_, fields)| !fields.trim_start().starts_with(['Z', 'X']))
}

/// The process and its descendants, the nearest first.
pub(super) fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&process) = found.get(next)
        && found.len() < PROCESSES
    {
        for thread in threads(process) {
            let children = fs::read_to_string(format!("/proc/{process}/task/{thread}/children"));
            let children = children.unwrap_or_default();
            found.extend(
                children
                    .split_ascii_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
        }
        next += 1;
    }
    found.truncate(PROCESSES);
    found
}

fn threads(process: u32) -> Vec<u32> {
    numbers(&format!("/proc/{process}/task"), THREADS).unwrap_or_default()
}

/// The numbers that the entries of a directory are called by.
pub(super) fn numbers(directory: &str, most: usize) -> io::Result<Vec<u32>> {
    let entries = fs::read_dir(directory)?.take(most);
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// Adds what one process waits on.
fn look_at(process: u32, sockets: &BTreeSet<u64>, waited: &mut BTreeSet<u64>) -> io::Result<()> {
    let mut held = BTreeMap::new();
    for descriptor in numbers(&format!("/proc/{process}/fd"), DESCRIPTORS)? {
        let Ok(target) = fs::read_link(format!("/proc/{process}/fd/{descriptor}")) else {
            continue;
        };
        let Some(target) = target.to_str() else {
            continue;
        };
        if target == "anon_inode:[eventpoll]" {
            let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{descriptor}"))?;
            waited.extend(
                info.lines()
                    .filter_map(watched)
                    .filter(|inode| sockets.contains(inode)),
            );
        } else if let Some(inode) = inode_of(target).filter(|inode| sockets.contains(inode)) {
            held.insert(descriptor, inode);
        }
    }
    if held.is_empty() {
        return Ok(());
    }
    for thread in threads(process) {
        let call = match fs::read_to_string(format!("/proc/{process}/task/{thread}/syscall")) {
            Ok(call) => call,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(error),
            Err(_) => continue,
        };
        let Some(call) = Call::read(&call) else {
            continue;
        };
        match call {
            Call::Accept(descriptor) => waited.extend(held.get(&descriptor)),
            Call::Poll { entries, count } => {
                let bytes = memory(process, entries, count.min(POLLED) * 8)?;
                let polled = bytes.chunks_exact(8).filter_map(polled);
                waited.extend(polled.filter_map(|descriptor| held.get(&descriptor)));
            }
            Call::Select { set, count } => {
                let bytes = memory(process, set, count.min(DESCRIPTORS).div_ceil(64) * 8)?;
                let chosen = |descriptor: u32| {
                    let byte = bytes.get(descriptor as usize / 8).copied().unwrap_or(0);
                    (descriptor as usize) < count && byte & 1 << (descriptor % 8) != 0
                };
                waited.extend(
                    held.iter()
                        .filter(|(descriptor, _)| chosen(**descriptor))
                        .map(|(_, inode)| inode),
                );
            }
        }
    }
    Ok(())
}

/// The inode of a socket, from `socket:[12345]`.
pub(super) fn inode_of(target: &str) -> Option<u64> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The inode of a file that an epoll instance watches for reading, from a line of its fdinfo:
/// `tfd:        3 events:       19 data:                3  pos:0 ino:15e7b sdev:8`.
fn watched(line: &str) -> Option<u64> {
    const EPOLLIN: u64 = 0x1;
    let line = line.strip_prefix("tfd:")?;
    let field = |name: &str| {
        let (_, rest) = line.split_once(name)?;
        u64::from_str_radix(rest.split_ascii_whitespace().next()?, 16).ok()
    };
    let reads = field("events:")? & EPOLLIN != 0;
    field("ino:").filter(|_| reads)
}

/// The descriptor of a pollfd, if it is polled for reading.
fn polled(entry: &[u8]) -> Option<u32> {
    let (descriptor, rest) = entry.split_first_chunk::<4>()?;
    let (events, _) = rest.split_first_chunk::<2>()?;
    let reads = i16::from_ne_bytes(*events) & (libc::POLLIN | libc::POLLRDNORM) != 0;
    u32::try_from(i32::from_ne_bytes(*descriptor))
        .ok()
        .filter(|_| reads)
}

fn memory(process: u32, address: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let file = File::open(format!("/proc/{process}/mem"))?;
    // What cannot be read is gone by now, or never was there: nothing is waited on.
    let read = if address == 0 {
        0
    } else {
        file.read_at(&mut bytes, address).unwrap_or(0)
    };
    bytes.truncate(read);
    Ok(bytes)
}

/// A system call in which a thread waits.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    /// For a connection, on this descriptor.
    Accept(u32),
    /// For one of this number of descriptors; the list is at this address.
    Poll { entries: u64, count: usize },
    /// For one of the descriptors below `count` that are in the set at this address.
    Select { set: u64, count: usize },
}

impl Call {
    /// From `/proc/PID/task/TID/syscall`: the number and the arguments, or `running`.
    fn read(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let number: i64 = words.next()?.parse().ok()?;
        let mut argument = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        let (first, second) = (argument()?, argument()?);
        // The kernel takes an int of each of these.
        let int = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
        let count = |word: u64| usize::try_from(int(word)).unwrap_or(0);
        if ACCEPT.contains(&number) {
            Some(Self::Accept(int(first)))
        } else if POLL.contains(&number) {
            Some(Self::Poll {
                entries: first,
                count: count(second),
            })
        } else if SELECT.contains(&number) {
            Some(Self::Select {
                set: second,
                count: count(first),
            })
        } else {
            None
        }
    }
}

const ACCEPT: [i64; 2] = [libc::SYS_accept, libc::SYS_accept4];
// Newer machines know only the calls that can also wait for a signal.
#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
const POLL: [i64; 2] = [libc::SYS_poll, libc::SYS_ppoll];
#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
const SELECT: [i64; 2] = [libc::SYS_select, libc::SYS_pselect6];
#[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
const POLL: [i64; 1] = [libc::SYS_ppoll];
#[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
const SELECT: [i64; 1] = [libc::SYS_pselect6];

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::fs::MetadataExt;
    use std::time::{Duration, Instant};

    fn listener() -> (TcpListener, u64) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let file = File::from(OwnedFd::from(listener.try_clone().expect("a copy")));
        let inode = file.metadata().expect("fstat").ino();
        (listener, inode)
    }

    fn waits(inodes: &[u64]) -> bool {
        look(std::process::id(), &inodes.iter().copied().collect()).waits
    }

    fn comes_to_wait(inodes: &[u64]) {
        let end = Instant::now() + Duration::from_secs(20);
        while !waits(inodes) {
            assert!(Instant::now() < end, "not seen");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_socket_that_is_only_open_is_not_waited_on() {
        let (_listener, inode) = listener();
        assert!(!waits(&[inode]));
        assert!(look(u32::MAX, &BTreeSet::from([inode])).gone);
    }

    #[test]
    fn a_socket_in_an_epoll_instance_is_waited_on_if_it_is_for_reading() {
        use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
        let ((one, first), (other, second)) = (listener(), listener());
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
        epoll
            .add(&one, EpollEvent::new(EpollFlags::EPOLLIN, 0))
            .expect("added");
        epoll
            .add(&other, EpollEvent::new(EpollFlags::EPOLLOUT, 0))
            .expect("added");
        assert!(waits(&[first]) && !waits(&[second]) && !waits(&[first, second]));
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll
            .modify(&other, &mut EpollEvent::new(both, 0))
            .expect("changed");
        assert!(waits(&[first, second]), "all of them");
    }

    #[test]
    fn a_process_in_accept_poll_or_select_is_seen() {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use nix::sys::select::{FdSet, select};
        use std::os::fd::AsFd;
        type Wait = fn(&TcpListener);
        let ways: [Wait; 3] = [
            |listener| drop(listener.accept()),
            |listener| {
                let (read, _write) = nix::unistd::pipe().expect("a pipe");
                let mut both =
                    [read.as_fd(), listener.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
                poll(&mut both, PollTimeout::NONE).expect("poll");
            },
            |listener| {
                let mut set = FdSet::new();
                set.insert(listener.as_fd());
                select(None, Some(&mut set), None, None, None).expect("select");
            },
        ];
        for way in ways {
            let (listener, inode) = listener();
            assert!(listener.as_raw_fd() < 1024, "what select can take");
            let address = listener.local_addr().expect("an address");
            let waiting = std::thread::spawn(move || way(&listener));
            comes_to_wait(&[inode]);
            std::net::TcpStream::connect(address).expect("connected");
            waiting.join().expect("no panic");
            assert!(!waits(&[inode]));
        }
    }

    #[test]
    fn what_the_kernel_says_of_a_thread_is_read_or_left() {
        assert_eq!(Call::read("running\n"), None);
        assert_eq!(Call::read("-1 0x7ffe 0x7f00\n"), None);
        assert_eq!(Call::read(""), None);
        let accept = format!(
            "{} 0x3 0x0 0x0 0x80800 0x0 0x0 0x7ffd 0x7f13\n",
            libc::SYS_accept4
        );
        assert_eq!(Call::read(&accept), Some(Call::Accept(3)));
        assert_eq!(
            watched("tfd:        5 events:       19 data:  5  pos:0 ino:15e7b sdev:8"),
            Some(0x15e7b)
        );
        assert_eq!(
            watched("tfd:        5 events:       18 data:  5  pos:0 ino:15e7b sdev:8"),
            None
        );
        assert_eq!(watched("pos:\t0"), None);
    }
}
