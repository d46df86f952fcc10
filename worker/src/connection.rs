//! A connection's socket, and the state that its three parties share.
//!
//! hyper reads and writes through [`crate::io::Io`], the handler's wrapper ([`crate::request`])
//! begins and ends requests, and the connection's task ([`crate::http_connection`]) decides when it
//! is over. Everything runs on one thread, except that a handler may move an upgraded connection
//! elsewhere; hence the mutex, which is never contended.
//!
//! **Writes are collected.** hyper's small writes gather in `write_buffer` and go to the socket
//! once, when the connection's task has been polled: sixteen pipelined responses are one system
//! call. (hyper's own `pipeline_flush` would do that too, but it loses every collected response
//! when a connection closes while unread bytes follow a request.)
//!
//! **Reading comes first.** tokio registers a connection only when there is nothing to read from
//! it. A new connection's request is mostly there already: waiting for tokio to say so would give
//! way to other tasks, one of which may block the thread for long, while a sibling would have been
//! idle. (And it saves system calls.)

use crate::clock::now_ms;
use prefork_os::tokio::LazilyWatched;
use socket2::SockRef;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

/// From this many collected bytes on, writes go to the socket immediately.
const WRITE_BUFFER_LIMIT: usize = 8 * 1024;
/// A write buffer that grew beyond this is freed when it is empty.
const MAX_IDLE_BUFFER: usize = 1024;
/// How long a closed connection is read on.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a connection is between two requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionPhase {
    /// Accepted, not a byte received.
    New,
    /// Part of a request's head has been received.
    Head,
    /// At least one request is being answered.
    Busy,
    /// The last request was answered; nothing of the next one is here.
    Idle,
}

/// What the sweep asks a connection's task to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SweepAction {
    /// Close a connection that was silent for too long, unless something has arrived after all.
    CloseIdle,
    /// Answer a head that takes too long with 408.
    TimeOutHead,
    /// HTTP/2: send GOAWAY.
    GoAway,
    /// Check whether an upgraded connection is gone.
    CheckUpgraded,
}

/// The result of a non-consuming read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peek {
    /// Bytes wait to be read.
    Bytes,
    /// Nothing, for now.
    Nothing,
    /// The client has closed, or is gone.
    Closed,
}

/// The socket and the shared state.
pub(crate) struct Connection {
    /// Watched before the second read, or when there is something to wait for.
    socket: LazilyWatched,
    /// The serving thread's runtime, wherever the connection is used.
    runtime: Handle,
    /// Nothing was read from it yet.
    unread: AtomicBool,
    /// Bytes received from the client, and sent to it.
    received: AtomicU64,
    sent: AtomicU64,
    /// How many of these were counted.
    counted: (AtomicU64, AtomicU64),
    state: Mutex<ConnectionState>,
    /// The client's address as text, and its port; looked up when first needed.
    peer: OnceLock<(String, u16)>,
    /// Its number among this worker's connections.
    serial: u64,
}

/// The last connection's number.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// The shared knowledge.
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent facts, which combine freely"
)]
pub(crate) struct ConnectionState {
    /// Where the connection is.
    pub(crate) phase: ConnectionPhase,
    /// Since when, by [`now_ms`].
    pub(crate) since: u64,
    /// Requests being answered.
    pub(crate) in_flight: u32,
    /// Requests begun.
    pub(crate) requests: u32,
    /// True until the first bytes have distinguished HTTP/1 from HTTP/2.
    pub(crate) sniffing: bool,
    /// The client speaks HTTP/2.
    pub(crate) h2: bool,
    /// When GOAWAY was sent.
    pub(crate) goaway_sent_at: Option<u64>,
    /// hyper has handed it over after `101 Switching Protocols` or CONNECT.
    pub(crate) upgraded: bool,
    /// All that hyper has received belongs to the request being answered: closing after the
    /// response cuts nothing off.
    pub(crate) input_ends_with_request: bool,
    /// The worker closes: the client may still be sending.
    pub(crate) closing: bool,
    /// hyper waits until it can write.
    pub(crate) write_blocked: bool,
    /// Bytes received and not yet given to hyper.
    pub(crate) stash: Vec<u8>,
    /// The last bytes of an unfinished head, in which its end may begin.
    pub(crate) head_tail: Vec<u8>,
    /// The action that the connection's task is to carry out.
    pub(crate) sweep_action: Option<SweepAction>,
    /// Wakes the connection's task.
    pub(crate) waker: Option<Waker>,
    write_buffer: Vec<u8>,
    write_failed: bool,
}

impl Connection {
    /// Takes over an accepted socket. To be called within the serving thread's runtime.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket: LazilyWatched::new(socket, Interest::READABLE | Interest::WRITABLE),
            runtime: Handle::current(),
            unread: AtomicBool::new(true),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            counted: Default::default(),
            peer: OnceLock::new(),
            serial: SERIAL.fetch_add(1, Relaxed) + 1,
            state: Mutex::new(ConnectionState {
                phase: ConnectionPhase::New,
                since: now_ms(),
                in_flight: 0,
                requests: 0,
                sniffing: true,
                h2: false,
                goaway_sent_at: None,
                upgraded: false,
                input_ends_with_request: false,
                closing: false,
                write_blocked: false,
                stash: Vec::new(),
                head_tail: Vec::new(),
                sweep_action: None,
                waker: None,
                write_buffer: Vec::new(),
                write_failed: false,
            }),
        }
    }

    /// Returns the registration with the event loop, made on first use.
    fn readiness(&self) -> io::Result<&AsyncFd<RawFd>> {
        self.socket.watch(&self.runtime)
    }

    /// The shared state. Never held across a call that could lock it again.
    pub(crate) fn state(&self) -> MutexGuard<'_, ConnectionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many bytes were received and sent since the last call; `None` when there were
    /// none. For the serving thread.
    pub(crate) fn take_byte_counts(&self) -> Option<(u64, u64)> {
        let (received, sent) = (self.received.load(Relaxed), self.sent.load(Relaxed));
        let was = (self.counted.0.load(Relaxed), self.counted.1.load(Relaxed));
        if was == (received, sent) {
            return None;
        }
        self.counted.0.store(received, Relaxed);
        self.counted.1.store(sent, Relaxed);
        Some((received.wrapping_sub(was.0), sent.wrapping_sub(was.1)))
    }

    /// Receives by `receive`, which returns how many bytes it got and how many it could have taken.
    /// 0 bytes mean that the client has closed its side.
    pub(crate) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        mut receive: impl FnMut(&SockRef<'_>) -> io::Result<(usize, usize)>,
    ) -> Poll<io::Result<usize>> {
        if self.unread.load(Relaxed) {
            self.unread.store(false, Relaxed);
            match receive(&self.socket()) {
                Ok((got, _)) => {
                    add(&self.received, got);
                    return Poll::Ready(Ok(got));
                }
                Err(error) if is_transient(&error) => (),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let readiness = self.readiness()?;
        loop {
            let mut guard = ready!(readiness.poll_read_ready(cx))?;
            match receive(&self.socket()) {
                Ok((got, room)) => {
                    add(&self.received, got);
                    // A short read has emptied the socket; reading again would waste a system call.
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
            add(&self.sent, sent);
            Ok(sent)
        };
        if !self.socket.is_watched() {
            match send() {
                Err(error) if is_transient(&error) => (),
                other => return Poll::Ready(other),
            }
        }
        let readiness = self.readiness()?;
        loop {
            let mut guard = ready!(readiness.poll_write_ready(cx))?;
            match send() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                other => return Poll::Ready(other),
            }
        }
    }

    /// Takes bytes for the client: a few are collected until [`Connection::poll_flush`], many go at
    /// once.
    pub(crate) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if state.write_failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.upgraded || state.write_buffer.len() + total > WRITE_BUFFER_LIMIT {
            state.write_blocked = true;
            ready!(self.poll_drain_out(cx, &mut state))?;
            if state.upgraded || total > WRITE_BUFFER_LIMIT {
                let sent = ready!(self.poll_send(cx, slices));
                state.write_blocked = false;
                return Poll::Ready(sent);
            }
            state.write_blocked = false;
        }
        for slice in slices {
            state.write_buffer.extend_from_slice(slice);
        }
        Poll::Ready(Ok(total))
    }

    /// Sends what was collected. Later writes fail after an error, too.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        self.poll_drain_out(cx, &mut state)
    }

    fn poll_drain_out(
        &self,
        cx: &mut Context<'_>,
        state: &mut ConnectionState,
    ) -> Poll<io::Result<()>> {
        while !state.write_buffer.is_empty() {
            match ready!(self.poll_send(cx, &[IoSlice::new(&state.write_buffer)])) {
                Ok(sent) if sent == state.write_buffer.len() => {
                    state.write_buffer.clear();
                    if state.write_buffer.capacity() > MAX_IDLE_BUFFER {
                        state.write_buffer = Vec::new();
                    }
                }
                Ok(sent) => drop(state.write_buffer.drain(..sent)),
                Err(error) => {
                    state.write_failed = true;
                    state.write_buffer = Vec::new();
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Returns the client's IP address as text (`unix:` for a Unix socket), and its port.
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

    /// Peeks into the socket, whatever the event loop knows by now.
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

    /// Closes the sending side. What the client still sends is accepted.
    pub(crate) fn half_close(&self) {
        let _ = self.socket().shutdown(std::net::Shutdown::Write);
    }

    /// Sends a last short text, as far as the socket takes it, without waiting.
    pub(crate) fn send_last(&self, text: &[u8]) {
        let sent = self
            .socket()
            .send_with_flags(text, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
        add(&self.sent, sent.unwrap_or(0));
    }

    /// Waits until the client has closed, and discards what it sends until then, for at most a
    /// second: closing a socket with unread bytes sends a reset, which can overtake the last
    /// response and destroy it.
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
        let _ = tokio::time::timeout(LINGER_TIMEOUT, read).await;
    }

    /// Returns the socket, for reading options and addresses.
    pub(crate) fn socket(&self) -> SockRef<'_> {
        SockRef::from(&self.socket)
    }
}

/// Adds to a sum that one task at a time adds to: the one that reads from, or writes to, the
/// connection.
fn add(sum: &AtomicU64, bytes: usize) {
    sum.store(sum.load(Relaxed).wrapping_add(bytes as u64), Relaxed);
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl ConnectionState {
    /// Begins a request: its head is complete.
    pub(crate) fn begin(&mut self) {
        self.phase = ConnectionPhase::Busy;
        self.in_flight += 1;
        self.requests = self.requests.saturating_add(1);
    }

    /// Ends a request.
    pub(crate) fn end(&mut self, now_ms: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.in_flight == 0 {
            self.phase = ConnectionPhase::Idle;
            self.since = now_ms;
        }
    }

    /// Notes that a handler has taken the connection over from hyper.
    pub(crate) fn upgrade(&mut self) {
        self.upgraded = true;
        self.phase = ConnectionPhase::Busy;
    }

    /// Returns whether all that was written has been sent.
    pub(crate) fn all_sent(&self) -> bool {
        self.write_buffer.is_empty() && !self.write_blocked
    }

    /// Returns since when no byte of a request has been received; `None` while there is one.
    pub(crate) fn silent_since(&self) -> Option<u64> {
        match self.phase {
            ConnectionPhase::New | ConnectionPhase::Idle if !self.upgraded => Some(self.since),
            _ => None,
        }
    }

    /// Has the connection's task carry out an action.
    pub(crate) fn request_action(&mut self, sweep_action: SweepAction) {
        self.sweep_action = Some(sweep_action);
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}
