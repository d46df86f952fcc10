//! Protocols other than HTTP: a service gets the connection itself.

use crate::connection::Connection;
use crate::control::WorkerPhase;
use crate::request::RequestGuard;
use crate::serving_thread::{ConnectionGuard, ServingThread};
use std::future::Future;
use std::io::{self, IoSlice, Read as _};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// A service for connections of any protocol over TCP or Unix sockets.
///
/// ```
/// use tokio::io::AsyncWriteExt;
/// use prefork_worker::{RawService, Stream};
///
/// struct Greeter;
/// impl RawService for Greeter {
///     async fn serve(&self, mut stream: Stream) -> std::io::Result<()> {
///         stream.write_all(b"Hello\n").await?;
///         stream.finish().await;
///         Ok(())
///     }
/// }
/// # let _ = prefork_worker::Service::raw(|_| async { Ok(Greeter) });
/// ```
pub trait RawService: 'static {
    /// Serves one connection; it is closed when this returns. An error is logged at debug level and
    /// ends this connection only, and so does a panic.
    ///
    /// While the worker drains, a connection is waited for until the supervisor's deadline: see
    /// [`Stream::signal`] to leave earlier.
    fn serve(&self, stream: Stream) -> impl Future<Output = io::Result<()>>;
}

/// Resolves when the worker drains.
#[derive(Debug, Clone)]
pub struct DrainSignal(watch::Receiver<WorkerPhase>);

impl DrainSignal {
    /// Waits until the worker drains.
    pub async fn draining(mut self) {
        // An error means that the worker is at its end.
        let _ = self.0.wait_for(|phase| phase.is_drain()).await;
    }
}

/// A client's connection. Read and write it by tokio's `AsyncReadExt` and `AsyncWriteExt`; writes
/// are not buffered.
pub struct Stream {
    connection: Arc<Connection>,
    phase: watch::Receiver<WorkerPhase>,
    drain_idle: Duration,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("peer", &self.peer())
            .finish()
    }
}

impl Stream {
    /// Returns the client's address; `None` for Unix sockets.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.connection.socket().peer_addr().ok()?.as_socket()
    }

    /// Returns a handle with which to wait for the drain while the stream is being read.
    pub fn signal(&self) -> DrainSignal {
        DrainSignal(self.phase.clone())
    }

    /// Returns how long a client may still be silent while the worker drains.
    pub fn drain_idle(&self) -> Duration {
        self.drain_idle
    }

    /// Ends the connection so that the client receives what was written: closes the sending side,
    /// and reads on until the client has closed too, for at most a second. Merely dropping a stream
    /// with unread bytes resets it.
    pub async fn finish(self) {
        self.connection.half_close();
        self.connection.linger().await;
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let unfilled = buf.initialize_unfilled();
        let room = unfilled.len();
        if room == 0 {
            return Poll::Ready(Ok(()));
        }
        let got = ready!(
            self.connection
                .poll_receive(cx, |socket| Ok(((&**socket).read(unfilled)?, room)))
        )?;
        buf.advance(got);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.connection.poll_send(cx, &[IoSlice::new(bytes)])
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.half_close();
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
        self.connection.poll_send(cx, slices)
    }
}

/// Serves one raw connection.
pub(crate) async fn serve<R: RawService>(
    thread: Rc<ServingThread>,
    connection: Arc<Connection>,
    connection_guard: ConnectionGuard,
    service: Rc<R>,
) {
    connection.state().upgrade();
    let mut guard = RequestGuard::begin(Rc::clone(&thread), Arc::clone(&connection));
    guard.acquire_handler().await;
    let stream = Stream {
        connection,
        phase: thread.phase(),
        drain_idle: Duration::from_millis(thread.settings.drain_idle_ms),
    };
    if let Err(error) = service.serve(stream).await {
        log::debug!("connection ended: {error}");
    }
    drop(guard);
    drop(connection_guard);
}
