//! One connection's socket, and what its three parties know of each other.
//!
//! hyper reads and writes through [`crate::io::Io`], the handler's wrapper ([`crate::answer`]) begins and ends
//! requests, and the connection's task ([`crate::connection`]) decides when it is over. They meet here. Everything runs
//! on one thread, except that an upgraded connection may be taken elsewhere by its handler; hence the mutex, which
//! is never waited for.
//!
//! **Writing is collected.** hyper's small writes gather in `out` and go to the socket once, when the connection's
//! task has been polled: sixteen pipelined answers are one system call. (hyper's own `pipeline_flush` would do
//! that too, but it loses every collected answer when a connection closes while unread bytes follow a request.)
//!
//! **Reading comes first.** tokio is told of a connection only when there is nothing to read from it. A new one's
//! request is mostly there already: whoever waits for tokio to say so leaves the thread to others, one of which may block it
//! for long, while a sibling would have had time. (And it saves system calls.)

use crate::sys;
use nix::time::{ClockId, clock_gettime};
use prefork_os::monotonic_us;
use socket2::SockRef;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

/// From this many collected bytes on, writes go to the socket at once.
const COLLECT: usize = 8 * 1024;
/// A buffer of collected answers that grew beyond this is given back when it is empty.
const KEEP: usize = 1024;
/// How long a closed connection is read on.
const LINGER: Duration = Duration::from_secs(1);

/// Milliseconds of the monotonic clock at a few milliseconds' resolution, for a fifth of the price.
pub(crate) fn now_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |now| {
        u64::try_from(now.tv_sec()).unwrap_or(0) * 1000
            + u64::try_from(now.tv_nsec() / 1_000_000).unwrap_or(0)
    })
}

/// The time at which a request begins or ends, in microseconds of the same clock: one precise reading for each.
pub(crate) fn now_us() -> u64 {
    // A build that does not count needs no precision, as there was none before there was counting.
    if cfg!(feature = "uncounted") {
        now_ms() * 1000
    } else {
        monotonic_us()
    }
}

/// Where a connection is between two requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Accepted, not a byte received.
    New,
    /// Part of a request's head has been received.
    Head,
    /// At least one request is being answered.
    Busy,
    /// The last request was answered; nothing of the next one is here.
    Idle,
}

/// What the sweep wants a connection's task to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Silent for too long: leave, unless something has arrived after all.
    Silent,
    /// A head that takes too long: 408.
    SlowHead,
    /// HTTP/2: say GOAWAY.
    GoAway,
    /// Look whether an upgraded connection is gone.
    Look,
}

/// What a non-consuming look at the socket found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peek {
    /// Bytes wait to be read.
    Bytes,
    /// Nothing, for now.
    Nothing,
    /// The client has closed, or is gone.
    Closed,
}

/// The socket and the shared knowledge.
pub(crate) struct Link {
    /// Made when it is to be read for the second time, or when there is something to wait for. Dropped before the socket, whose number it watches.
    watch: OnceLock<io::Result<AsyncFd<RawFd>>>,
    socket: OwnedFd,
    /// The serving thread's, whoever has the connection by then.
    runtime: Handle,
    /// Nothing was read from it yet.
    unread: AtomicBool,
    /// Bytes received from the client, and sent to it.
    received: AtomicU64,
    sent: AtomicU64,
    /// How many of these were counted.
    counted: (AtomicU64, AtomicU64),
    state: Mutex<State>,
    /// The client's address in words, and its port; asked for when somebody wants to tell of it.
    peer: OnceLock<(String, u16)>,
    /// Its number among this worker's connections.
    serial: u64,
}

/// The last connection's number.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// The shared knowledge.
pub(crate) struct State {
    /// Where the connection is.
    pub(crate) phase: Phase,
    /// Since when, by [`now_ms`].
    pub(crate) since: u64,
    /// Requests being answered.
    pub(crate) in_flight: u32,
    /// Requests begun.
    pub(crate) requests: u32,
    /// Whether a request was ever begun.
    pub(crate) served: bool,
    /// The first bytes tell HTTP/1 from HTTP/2; until they do, this is true.
    pub(crate) sniffing: bool,
    /// The client speaks HTTP/2.
    pub(crate) h2: bool,
    /// GOAWAY was said, at this time.
    pub(crate) told: Option<u64>,
    /// hyper has let go of it after `101 Switching Protocols` or CONNECT.
    pub(crate) upgraded: bool,
    /// All that hyper has of this connection belongs to the request being answered: closing after it cuts
    /// nothing off.
    pub(crate) exact: bool,
    /// It is we who close: the client may still be sending.
    pub(crate) closing: bool,
    /// hyper waits until it can write.
    pub(crate) write_blocked: bool,
    /// Bytes received and not yet given to hyper.
    pub(crate) stash: Vec<u8>,
    /// The last bytes of an unfinished head, in which its end may begin.
    pub(crate) tail: Vec<u8>,
    /// To be carried out by the connection's task.
    pub(crate) verdict: Option<Verdict>,
    /// Wakes the connection's task.
    pub(crate) waker: Option<Waker>,
    out: Vec<u8>,
    broken: bool,
}

impl Link {
    /// Takes over an accepted socket. To be called within the serving thread's runtime.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            watch: OnceLock::new(),
            socket,
            runtime: Handle::current(),
            unread: AtomicBool::new(true),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            counted: Default::default(),
            peer: OnceLock::new(),
            serial: SERIAL.fetch_add(1, Relaxed) + 1,
            state: Mutex::new(State {
                phase: Phase::New,
                since: now_ms(),
                in_flight: 0,
                requests: 0,
                served: false,
                sniffing: true,
                h2: false,
                told: None,
                upgraded: false,
                exact: false,
                closing: false,
                write_blocked: false,
                stash: Vec::new(),
                tail: Vec::new(),
                verdict: None,
                waker: None,
                out: Vec::new(),
                broken: false,
            }),
        }
    }

    /// What to wait with.
    fn watch(&self) -> io::Result<&AsyncFd<RawFd>> {
        let watch = self.watch.get_or_init(|| {
            let _entered = self.runtime.enter();
            sys::watch(
                self.socket.as_raw_fd(),
                Interest::READABLE | Interest::WRITABLE,
            )
        });
        watch.as_ref().map_err(|error| error.kind().into())
    }

    /// The shared knowledge. Never held across a call that could ask for it again.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes were received and sent since this was asked for the last time; `None`: none. For the serving thread.
    pub(crate) fn moved(&self) -> Option<(u64, u64)> {
        let (received, sent) = (self.received.load(Relaxed), self.sent.load(Relaxed));
        let was = (self.counted.0.load(Relaxed), self.counted.1.load(Relaxed));
        if was == (received, sent) {
            return None;
        }
        self.counted.0.store(received, Relaxed);
        self.counted.1.store(sent, Relaxed);
        Some((received.wrapping_sub(was.0), sent.wrapping_sub(was.1)))
    }

    /// Receives by `receive`, which tells how many bytes it got and for how many there was room. 0 bytes mean that
    /// the client has closed its side.
    pub(crate) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        mut receive: impl FnMut(&SockRef<'_>) -> io::Result<(usize, usize)>,
    ) -> Poll<io::Result<usize>> {
        if self.unread.load(Relaxed) {
            self.unread.store(false, Relaxed);
            match receive(&self.socket()) {
                Ok((got, _)) => {
                    note(&self.received, got);
                    return Poll::Ready(Ok(got));
                }
                Err(error) if waits(&error) => (),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let watch = self.watch()?;
        loop {
            let mut guard = ready!(watch.poll_read_ready(cx))?;
            match receive(&self.socket()) {
                Ok((got, room)) => {
                    note(&self.received, got);
                    // A short read has emptied the socket; asking again would be a system call for nothing.
                    if 0 < got && got < room {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(got));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Sends what fits.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let socket = self.socket();
        let send = || {
            let sent = match slices {
                [one] => socket.send_with_flags(one, libc::MSG_NOSIGNAL),
                several => socket.send_vectored_with_flags(several, libc::MSG_NOSIGNAL),
            }?;
            note(&self.sent, sent);
            Ok(sent)
        };
        if self.watch.get().is_none() {
            match send() {
                Err(error) if waits(&error) => (),
                other => return Poll::Ready(other),
            }
        }
        let watch = self.watch()?;
        loop {
            let mut guard = ready!(watch.poll_write_ready(cx))?;
            match send() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                other => return Poll::Ready(other),
            }
        }
    }

    /// Takes bytes for the client: a few are collected until [`Link::poll_flush`], many go at once.
    pub(crate) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if state.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.upgraded || state.out.len() + total > COLLECT {
            state.write_blocked = true;
            ready!(self.poll_drain_out(cx, &mut state))?;
            if state.upgraded || total > COLLECT {
                let sent = ready!(self.poll_send(cx, slices));
                state.write_blocked = false;
                return Poll::Ready(sent);
            }
            state.write_blocked = false;
        }
        for slice in slices {
            state.out.extend_from_slice(slice);
        }
        Poll::Ready(Ok(total))
    }

    /// Sends what was collected. An error is kept for whoever writes next, too.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        self.poll_drain_out(cx, &mut state)
    }

    fn poll_drain_out(&self, cx: &mut Context<'_>, state: &mut State) -> Poll<io::Result<()>> {
        while !state.out.is_empty() {
            match ready!(self.poll_send(cx, &[IoSlice::new(&state.out)])) {
                Ok(sent) if sent == state.out.len() => {
                    state.out.clear();
                    if state.out.capacity() > KEEP {
                        state.out = Vec::new();
                    }
                }
                Ok(sent) => drop(state.out.drain(..sent)),
                Err(error) => {
                    state.broken = true;
                    state.out = Vec::new();
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The client's IP address in words (`unix:` for a Unix socket), and its port.
    pub(crate) fn peer(&self) -> &(String, u16) {
        self.peer.get_or_init(|| {
            match self
                .socket()
                .peer_addr()
                .ok()
                .and_then(|peer| peer.as_socket())
            {
                Some(peer) => (peer.ip().to_canonical().to_string(), peer.port()),
                None => ("unix:".to_owned(), 0),
            }
        })
    }

    /// Its number among this worker's connections, from 1.
    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    /// Looks into the socket without taking anything, whatever the event loop knows by now.
    pub(crate) fn peek(&self) -> Peek {
        let mut byte = [MaybeUninit::uninit(); 1];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        match self.socket().recv_with_flags(&mut byte, flags) {
            Ok(0) => Peek::Closed,
            Ok(_) => Peek::Bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Peek::Nothing,
            Err(_) => Peek::Closed,
        }
    }

    /// Tells the client that nothing more comes. What it still sends is accepted.
    pub(crate) fn half_close(&self) {
        let _ = self.socket().shutdown(std::net::Shutdown::Write);
    }

    /// Sends a last short text, as far as the socket takes it, without waiting.
    pub(crate) fn send_last(&self, text: &[u8]) {
        let sent = self
            .socket()
            .send_with_flags(text, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
        note(&self.sent, sent.unwrap_or(0));
    }

    /// Waits until the client has closed, and throws away what it sends until then. At most a second: closing
    /// a socket with unread bytes sends a reset, which can overtake the last answer and destroy it.
    pub(crate) async fn linger(&self) {
        let read = async {
            let mut waste = [MaybeUninit::uninit(); 4096];
            loop {
                let room = waste.len();
                let got = poll_fn(|cx| {
                    self.poll_receive(cx, |socket| Ok((socket.recv(&mut waste)?, room)))
                });
                if !matches!(got.await, Ok(1..)) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, read).await;
    }

    /// The descriptor, for reading options and addresses.
    pub(crate) fn socket(&self) -> SockRef<'_> {
        SockRef::from(&self.socket)
    }
}

/// Adds to a sum that one task at a time adds to: whoever reads from, or writes to, the connection.
fn note(sum: &AtomicU64, bytes: usize) {
    sum.store(sum.load(Relaxed).wrapping_add(bytes as u64), Relaxed);
}

fn waits(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl State {
    /// A request begins: its head is complete.
    pub(crate) fn begin(&mut self) {
        self.phase = Phase::Busy;
        self.in_flight += 1;
        self.requests = self.requests.saturating_add(1);
        self.served = true;
    }

    /// A request has ended, now.
    pub(crate) fn end(&mut self, now_ms: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.in_flight == 0 {
            self.phase = Phase::Idle;
            self.since = now_ms;
        }
    }

    /// Somebody else than hyper has the connection from now on.
    pub(crate) fn upgrade(&mut self) {
        self.upgraded = true;
        self.phase = Phase::Busy;
    }

    /// Whether all that was written is on its way.
    pub(crate) fn all_sent(&self) -> bool {
        self.out.is_empty() && !self.write_blocked
    }

    /// Since when not a byte of a request has been here; `None` while there is one.
    pub(crate) fn silent_since(&self) -> Option<u64> {
        match self.phase {
            Phase::New | Phase::Idle if !self.upgraded => Some(self.since),
            _ => None,
        }
    }

    /// Has the connection's task carry out a verdict.
    pub(crate) fn order(&mut self, verdict: Verdict) {
        self.verdict = Some(verdict);
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}
