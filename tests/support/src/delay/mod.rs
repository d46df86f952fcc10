//! A delay line: this machine's own TCP, over a long way.
//!
//! Many ways to lose a connection need a round trip to show: a handshake in flight, an answer still
//! on its way when its socket is closed. On loopback they last microseconds. Here every packet is
//! held for a while.
//!
//! How it works: [`DelayLine::start`] moves the calling thread into a network namespace of its own,
//! where nothing but `lo` and one TUN device exist. The device has the addresses [`NEAR_V4`] and
//! [`NEAR_V6`]; all others of its networks are *far*. What the kernel sends to a far address comes
//! out of the device. A thread holds it for the delay, swaps source and destination, and puts it
//! back in. So a client that connects to a far address reaches the server on the near one, and each
//! believes that the other is far away. Swapping leaves every checksum valid.
//!
//! Threads and processes that the calling thread makes afterwards are in the namespace too; threads
//! made before are not. Traffic from a near address to a near one goes over `lo`, without delay.
//!
//! It needs root, or user namespaces and a process with one thread; and `/dev/net/tun`.

mod device;
mod namespace;
mod packet;
mod queue;

use device::Device;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use queue::{Held, Queue};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where servers listen, over IPv4.
pub const NEAR_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Where servers listen, over IPv6.
pub const NEAR_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);

/// What the way is like. Each direction has it once, so that a round trip has it twice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Way {
    /// How long each packet is held.
    pub delay: Duration,
    /// Up to how much longer, by chance. Packets never overtake each other.
    pub jitter: Duration,
    /// How many packets of a million are lost, by chance.
    pub loss_per_million: u32,
    /// Where chance begins: the same seed makes the same decisions, packet by packet.
    pub seed: u64,
}

impl Way {
    /// A way of this delay, without jitter and loss.
    pub fn of(delay: Duration) -> Self {
        Self {
            delay,
            jitter: Duration::ZERO,
            loss_per_million: 0,
            seed: 0,
        }
    }
}

/// Why there is no delay line here.
#[derive(Debug)]
pub struct NotPossible(String);

impl fmt::Display for NotPossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no delay line here: {}", self.0)
    }
}

impl std::error::Error for NotPossible {}

/// Makes an error of the system one that names the act and its object.
fn failed(what: &str) -> impl Fn(io::Error) -> NotPossible {
    move |error| NotPossible(format!("{what}: {error}"))
}

/// What became of the packets so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Delivered after the delay.
    pub carried: u64,
    /// Bytes of those, with their headers.
    pub bytes: u64,
    /// Lost on purpose, by [`Way::loss_per_million`].
    pub lost: u64,
    /// Lost by the line itself, which must not be: the device's queue was full, or the kernel took
    /// a packet not back.
    pub dropped: u64,
    /// Not TCP, UDP or the like between two hosts: neighbour discovery and other multicast.
    pub ignored: u64,
    /// The most packets that were held at once.
    pub most_held: u64,
    /// The longest that a packet was held beyond its time, in microseconds: what the machine's load
    /// did to the delay.
    pub latest_us: u64,
}

/// The counts that the line's thread writes.
#[derive(Debug, Default)]
struct Tally {
    carried: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
    refused: AtomicU64,
    ignored: AtomicU64,
    most_held: AtomicU64,
    latest_us: AtomicU64,
}

/// A delay line in this thread's network namespace. Dropping it cuts the line; the namespace stays.
#[derive(Debug)]
pub struct DelayLine {
    tally: Arc<Tally>,
    statistics: device::Statistics,
    has_v6: bool,
    /// Its end tells the thread to leave.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// Moves this thread, and whatever it starts from now on, into a new network namespace in which
/// only `lo` is there, and up: all ports are free.
///
/// # Errors
/// When there can be none, and why.
pub fn own_network() -> Result<(), NotPossible> {
    namespace::enter()?;
    device::raise("lo")
}

impl DelayLine {
    /// Moves this thread into a network namespace of its own and lays the line there.
    ///
    /// # Errors
    /// When this machine does not allow it, with the reason. The thread may then be in a namespace
    /// without a network.
    pub fn start(way: Way) -> Result<Self, NotPossible> {
        device::check_access()?;
        namespace::enter()?;
        device::raise("lo")?;
        let device = Device::make()?;
        let has_v6 = device.has_v6();
        let statistics = Device::statistics()?;
        let (stop, stopped) =
            UnixStream::pair().map_err(failed("cannot make a pair of sockets"))?;
        let tally = Arc::new(Tally::default());
        let work = Carrier {
            device,
            queue: Queue::new(way),
            tally: Arc::clone(&tally),
            spare: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("delay line".to_owned());
        let thread = thread
            .spawn(move || work.run(&stopped))
            .map_err(failed("cannot start the line's thread"))?;
        Ok(Self {
            tally,
            statistics,
            has_v6,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Whether it carries IPv6 too, which a kernel may lack.
    pub fn has_v6(&self) -> bool {
        self.has_v6
    }

    /// The near addresses that it has.
    pub fn near(&self) -> Vec<IpAddr> {
        let v6 = self.has_v6.then_some(IpAddr::V6(NEAR_V6));
        std::iter::once(IpAddr::V4(NEAR_V4)).chain(v6).collect()
    }

    /// The far address of a server that listens on the near one, or on all. There are 256 of them;
    /// connections to different ones do not use up each other's ports.
    pub fn far(server: SocketAddr, n: u8) -> SocketAddr {
        let host = match server {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(10, 77, 1, n)),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, u16::from(n))),
        };
        SocketAddr::new(host, server.port())
    }

    /// Whether an address is a far one.
    pub fn is_far(address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4.octets()[..3] == [10, 77, 1],
            IpAddr::V6(v6) => v6.segments()[..7] == [0xfd77, 0, 0, 0, 0, 0, 1],
        }
    }

    /// What became of the packets so far.
    pub fn counts(&self) -> Counts {
        let tally = &*self.tally;
        Counts {
            carried: tally.carried.load(Relaxed),
            bytes: tally.bytes.load(Relaxed),
            lost: tally.lost.load(Relaxed),
            dropped: tally.refused.load(Relaxed) + self.statistics.dropped(),
            ignored: tally.ignored.load(Relaxed),
            most_held: tally.most_held.load(Relaxed),
            latest_us: tally.latest_us.load(Relaxed),
        }
    }
}

impl Drop for DelayLine {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(Err(error)) = self.thread.take().and_then(|thread| thread.join().ok()) {
            eprintln!("the delay line broke: {error}");
        }
    }
}

/// How many packets are taken in before those whose time has come get their turn.
const BATCH: usize = 64;

/// The line's thread.
struct Carrier {
    device: Device,
    queue: Queue,
    tally: Arc<Tally>,
    /// Buffers of packets that were delivered, for those to come.
    spare: Vec<Vec<u8>>,
}

impl Carrier {
    fn run(mut self, stopped: &UnixStream) -> io::Result<()> {
        let mut room = vec![0; 65536];
        loop {
            let mut drained = false;
            for _ in 0..BATCH {
                match self.device.read(&mut room) {
                    Ok(length) => self.take(&room[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        drained = true;
                        break;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            self.deliver();
            if drained && self.wait(stopped)? {
                return Ok(());
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let mut packet = self.spare.pop().unwrap_or_default();
        packet.clear();
        packet.extend_from_slice(bytes);
        if !packet::turn_back(&mut packet) {
            self.tally.ignored.fetch_add(1, Relaxed);
            self.spare.push(packet);
        } else if let Err(packet) = self.queue.push(Instant::now(), packet) {
            self.tally.lost.fetch_add(1, Relaxed);
            self.spare.push(packet);
        }
        self.tally
            .most_held
            .fetch_max(self.queue.len() as u64, Relaxed);
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while let Some(Held { due, packet }) = self.queue.pop(now) {
            match self.device.write(&packet) {
                Ok(_) => {
                    self.tally.carried.fetch_add(1, Relaxed);
                    self.tally.bytes.fetch_add(packet.len() as u64, Relaxed);
                }
                // The kernel has no memory for it, or finds it malformed. TCP repeats it; the
                // counters show it.
                Err(_) => {
                    self.tally.refused.fetch_add(1, Relaxed);
                }
            }
            let late = now.saturating_duration_since(due).as_micros();
            self.tally
                .latest_us
                .fetch_max(u64::try_from(late).unwrap_or(u64::MAX), Relaxed);
            self.spare.push(packet);
        }
    }

    /// Waits for a packet, for the time of the first one held, or for the end, which it tells.
    fn wait(&self, stopped: &UnixStream) -> io::Result<bool> {
        let limit = self
            .queue
            .next_due()
            .map(|due| due.saturating_duration_since(Instant::now()));
        let mut watched = [
            PollFd::new(self.device.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match ppoll(&mut watched, limit.map(TimeSpec::from), None) {
            Ok(_) => Ok(watched[1].any().unwrap_or(false)),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
