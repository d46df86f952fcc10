//! What hyper reads from and writes to: a [`Connection`] with two additions.
//!
//! * The first bytes distinguish HTTP/2 with prior knowledge from HTTP/1. Nothing is read ahead for
//!   that and no buffer is kept: an ordinary connection costs one comparison.
//!   kept: on an ordinary connection it costs one comparison.
//! * Reads track whether closing after a response would cut off another request. While draining,
//!   hyper receives one request at a time, even when the client sends several at once. While
//!   draining, a request is handed to hyper alone, even when the client sends several at once.

use crate::clock::now_ms;
use crate::connection::{Connection, ConnectionPhase};
use hyper::rt::{Read, ReadBufCursor, Write};
use memchr::memmem;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

/// No method of HTTP/1 begins like the preface of HTTP/2, `PRI * HTTP/2.0`.
const PREFACE: &[u8] = b"PRI ";
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// hyper's side of a connection.
pub(crate) struct Io {
    connection: Arc<Connection>,
    draining: Arc<AtomicBool>,
}

impl Io {
    /// Reads and writes through `connection`; `draining` is the worker's flag.
    pub(crate) fn new(connection: Arc<Connection>, draining: Arc<AtomicBool>) -> Self {
        Self {
            connection,
            draining,
        }
    }

    /// Gives hyper bytes that were received earlier; returns whether there were any.
    fn take_stashed(&self, cursor: &mut ReadBufCursor<'_>) -> bool {
        let mut state = self.connection.state();
        if state.stash.is_empty() || state.sniffing {
            return false;
        }
        let mut length = state.stash.len().min(cursor.remaining());
        let in_head = matches!(
            state.phase,
            ConnectionPhase::New | ConnectionPhase::Head | ConnectionPhase::Idle
        ) && !state.h2;
        if in_head && !state.upgraded {
            if state.phase != ConnectionPhase::Head {
                state.phase = ConnectionPhase::Head;
                state.since = now_ms();
            }
            let kept = state.head_tail.len();
            let mut seen = std::mem::take(&mut state.head_tail);
            seen.extend_from_slice(&state.stash[..length]);
            if let Some(at) = memmem::find(&seen, END_OF_HEAD) {
                length = at + END_OF_HEAD.len() - kept;
                state.input_ends_with_request = true;
            } else {
                state.head_tail = seen.split_off(seen.len().saturating_sub(END_OF_HEAD.len() - 1));
            }
        }
        cursor.put_slice(&state.stash[..length]);
        if length == state.stash.len() {
            state.stash = Vec::new();
        } else {
            state.stash.drain(..length);
        }
        true
    }
}

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.connection.state().h2 && self.connection.state().sniffing {
            // Detected below; these bytes are for the HTTP/2 connection that takes over.
            return Poll::Pending;
        }
        if self.take_stashed(&mut cursor) {
            return Poll::Ready(Ok(()));
        }
        if cursor.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut undecided = false;
            let got = ready!(self.connection.poll_receive(cx, |socket| {
                let room = cursor.remaining();
                let got =
                    prefork_os::hyper::receive(socket.as_fd(), &mut cursor, |bytes| {
                        match self.account(bytes) {
                            Keep::Yes => true,
                            Keep::Stashed => {
                                undecided = true;
                                false
                            }
                        }
                    })?;
                Ok((got, room))
            }))?;
            if got == 0 {
                // What was held back as a possible preface is all there will be.
                let mut state = self.connection.state();
                state.sniffing = false;
                drop(state);
                let _ = self.take_stashed(&mut cursor);
                return Poll::Ready(Ok(()));
            }
            if !undecided {
                return Poll::Ready(Ok(()));
            }
            let state = self.connection.state();
            if state.sniffing && state.h2 {
                return Poll::Pending;
            }
            let waiting = state.sniffing;
            drop(state);
            if !waiting && self.take_stashed(&mut cursor) {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// What happens to received bytes.
enum Keep {
    /// hyper has them.
    Yes,
    /// They were put into the stash.
    Stashed,
}

impl Io {
    /// Inspects what was just received, and decides whether hyper may have it as it is.
    fn account(&self, bytes: &[u8]) -> Keep {
        if bytes.is_empty() {
            return Keep::Yes;
        }
        let mut state = self.connection.state();
        if state.upgraded || (state.h2 && !state.sniffing) {
            return Keep::Yes;
        }
        let fresh = matches!(state.phase, ConnectionPhase::New | ConnectionPhase::Idle);
        if fresh {
            state.phase = ConnectionPhase::Head;
            state.since = now_ms();
            state.head_tail.clear();
        }
        if state.sniffing {
            let start = if state.stash.is_empty() {
                bytes
            } else {
                &state.stash
            };
            if bytes[0] == PREFACE[0] || start[0] == PREFACE[0] {
                state.stash.extend_from_slice(bytes);
                let length = state.stash.len().min(PREFACE.len());
                if state.stash[..length] == PREFACE[..length] {
                    state.h2 = length == PREFACE.len();
                    return Keep::Stashed;
                }
                state.sniffing = false;
                return Keep::Stashed;
            }
            state.sniffing = false;
        }
        if state.phase == ConnectionPhase::Busy {
            return Keep::Yes;
        }
        if self.draining.load(Relaxed) {
            state.stash.extend_from_slice(bytes);
            return Keep::Stashed;
        }
        state.input_ends_with_request = fresh
            && memmem::find(bytes, END_OF_HEAD)
                .is_some_and(|at| at + END_OF_HEAD.len() == bytes.len());
        Keep::Yes
    }
}

impl Write for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.connection.poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task flushes after polling hyper. An upgraded connection has no such
        // task.
        if self.connection.state().upgraded {
            self.connection.poll_flush(cx)
        } else {
            Poll::Ready(Ok(()))
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let blocked = self.connection.poll_flush(cx);
        self.connection.state().write_blocked = blocked.is_pending();
        ready!(blocked)?;
        // The connection's task decides how to close, except that an upgraded connection has none.
        if self.connection.state().upgraded {
            self.connection.half_close();
        }
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.connection.poll_write(cx, slices)
    }
}
