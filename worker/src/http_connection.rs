//! One HTTP connection, from its acceptance to its last byte.
//!
//! The task here drives hyper, flushes what hyper wrote, and carries out the actions that the
//! thread's sweep requests (timeouts, drain). Nothing is timed per connection: hyper's own timers
//! are off.
//!
//! *Invariant*: the worker closes a connection on its own accord only when hyper holds nothing of a
//! request and a peek into the socket finds nothing either, and then by closing the sending side
//! first and reading on for a while.

use crate::answer::answer;
use crate::clock::now_ms;
use crate::connection::{Connection, ConnectionPhase, Peek, SweepAction};
use crate::http_service::HttpService;
use crate::io::Io;
use crate::request::RequestGuard;
use crate::serving_thread::{ConnectionGuard, ServingThread};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

/// hyper's builders, made once per thread.
#[derive(Clone)]
pub(crate) struct Builders {
    h1: http1::Builder,
    h2: http2::Builder<Spawn>,
}

/// Spawns HTTP/2 streams on the serving thread.
#[derive(Clone, Copy)]
pub(crate) struct Spawn;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Spawn {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

impl Builders {
    /// Builds them from the thread's settings.
    pub(crate) fn new(thread: &ServingThread) -> Self {
        let head = thread.settings.max_head_bytes;
        let mut h1 = http1::Builder::new();
        // A client that closes its sending side after its request still gets the answer.
        h1.half_close(true).header_read_timeout(None);
        let mut h2 = http2::Builder::new(Spawn);
        if head > 0 {
            let bytes = usize::try_from(head).unwrap_or(usize::MAX);
            // The buffer also carries bodies; hyper insists on 8 KiB.
            h1.max_header_size(bytes).max_buf_size(bytes.max(64 * 1024));
            h2.max_header_list_size(head);
        }
        Self { h1, h2 }
    }
}

/// How serving ended.
enum End {
    /// Both sides are done with each other.
    Close,
    /// The worker closes, and the client may not know yet.
    Linger,
}

/// Serves one connection to its end.
pub(crate) async fn serve<S>(
    thread: Rc<ServingThread>,
    connection: Arc<Connection>,
    connection_guard: ConnectionGuard,
    builders: Rc<Builders>,
    service: S,
) where
    S: HttpService,
{
    let mut end = serve_h1(&thread, &connection, &builders.h1, &service).await;
    if end.is_none() {
        end = Some(serve_h2(&thread, &connection, &builders.h2, &service).await);
    }
    if let Some(End::Linger) = end {
        // It no longer counts as an active connection.
        let lingering = connection_guard.linger();
        connection.half_close();
        connection.linger().await;
        thread.count_bytes(&connection);
        drop(lingering);
    }
}

/// What the connection's task does next.
enum Step {
    Over(Result<(), hyper::Error>),
    SweepAction(SweepAction),
    IsH2,
}

/// Polls hyper, sends what it wrote, and checks for an action that the sweep requests.
fn step<C>(
    conn: Pin<&mut C>,
    thread: &ServingThread,
    connection: &Connection,
    cx: &mut Context<'_>,
) -> Poll<Step>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let polled = conn.poll(cx);
    // A client that is gone is noticed by hyper's next read or write.
    let flushed = connection.poll_flush(cx);
    thread.count_bytes(connection);
    if let Poll::Ready(result) = polled {
        return Poll::Ready(Step::Over(result));
    }
    let mut state = connection.state();
    if state.sniffing && state.h2 {
        return Poll::Ready(Step::IsH2);
    }
    if state.waker.is_none() {
        state.waker = Some(cx.waker().clone());
    }
    if matches!(flushed, Poll::Ready(Err(_))) {
        cx.waker().wake_by_ref();
    }
    match state.sweep_action.take() {
        Some(sweep_action) => Poll::Ready(Step::SweepAction(sweep_action)),
        None => Poll::Pending,
    }
}

/// Serves HTTP/1; `None`: the client speaks HTTP/2.
async fn serve_h1<S>(
    thread: &Rc<ServingThread>,
    connection: &Arc<Connection>,
    builder: &http1::Builder,
    service: &S,
) -> Option<End>
where
    S: HttpService,
{
    let handle = service_fn(|request| {
        let guard = RequestGuard::begin(Rc::clone(thread), Arc::clone(connection));
        answer(guard, service.clone(), request)
    });
    let io = Io::new(Arc::clone(connection), thread.draining_flag());
    let mut conn = builder.serve_connection(io, handle).with_upgrades();
    loop {
        match poll_fn(|cx| step(Pin::new(&mut conn), thread, connection, cx)).await {
            Step::IsH2 => return None,
            Step::Over(result) => {
                // hyper has dropped its side of the socket, unless a handler has taken it over.
                drop(conn);
                return Some(over(thread, connection, result).await);
            }
            Step::SweepAction(SweepAction::TimeOutHead) => {
                let mut state = connection.state();
                if state.phase != ConnectionPhase::Head || !state.all_sent() {
                    continue;
                }
                state.closing = true;
                drop(state);
                connection.send_last(
                    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\
                      content-length: 0\r\n\r\n",
                );
                return Some(End::Linger);
            }
            Step::SweepAction(SweepAction::CloseIdle) => {
                let state = connection.state();
                let silent =
                    state.silent_since().is_some() && state.all_sent() && state.stash.is_empty();
                drop(state);
                if !silent {
                    continue;
                }
                match connection.peek() {
                    // The event loop has not seen it yet; hyper will read it at once.
                    Peek::Bytes => continue,
                    Peek::Closed => return Some(End::Close),
                    Peek::Nothing => (),
                }
                let parts = conn.into_parts()?;
                if parts.read_buf.is_empty() {
                    return Some(End::Linger);
                }
                // The beginning of a request arrived in one read with the previous one. It must be
                // answered.
                let mut state = connection.state();
                state.stash = parts.read_buf.to_vec();
                state.phase = ConnectionPhase::Head;
                state.since = now_ms();
                drop(state);
                conn = builder
                    .serve_connection(parts.io, parts.service)
                    .with_upgrades();
            }
            Step::SweepAction(SweepAction::GoAway | SweepAction::CheckUpgraded) => (),
        }
    }
}

/// Decides how to end a connection that hyper has finished.
async fn over(
    thread: &Rc<ServingThread>,
    connection: &Arc<Connection>,
    result: Result<(), hyper::Error>,
) -> End {
    if let Err(error) = &result {
        log::debug!("connection ended: {error}");
    }
    // Held by the thread's list, the caller, and the handler that took the connection over.
    if result.is_ok() && Arc::strong_count(connection) > ServingThread::HOLDERS {
        connection.state().upgrade();
        thread.wait_for_upgraded(connection).await;
        return End::Close;
    }
    let ours = {
        let state = connection.state();
        // In the middle of a head: hyper has refused it, with 400 or 431.
        state.closing || state.phase == ConnectionPhase::Head || !state.stash.is_empty()
    };
    match connection.peek() {
        Peek::Bytes => End::Linger,
        Peek::Nothing if ours => End::Linger,
        Peek::Nothing | Peek::Closed => End::Close,
    }
}

async fn serve_h2<S>(
    thread: &Rc<ServingThread>,
    connection: &Arc<Connection>,
    builder: &http2::Builder<Spawn>,
    service: &S,
) -> End
where
    S: HttpService,
{
    {
        let mut state = connection.state();
        state.sniffing = false;
        state.phase = ConnectionPhase::Idle;
        state.since = now_ms();
    }
    let service = service.clone();
    let (for_thread, for_link) = (Rc::clone(thread), Arc::clone(connection));
    let handle = service_fn(move |request| {
        let guard = RequestGuard::begin(Rc::clone(&for_thread), Arc::clone(&for_link));
        answer(guard, service.clone(), request)
    });
    let io = Io::new(Arc::clone(connection), thread.draining_flag());
    let mut conn = Box::pin(builder.serve_connection(io, handle));
    loop {
        match poll_fn(|cx| step(conn.as_mut(), thread, connection, cx)).await {
            Step::Over(result) => {
                if let Err(error) = result {
                    log::debug!("connection ended: {error}");
                }
                let _ = poll_fn(|cx| connection.poll_flush(cx)).await;
                return if connection.peek() == Peek::Closed {
                    End::Close
                } else {
                    End::Linger
                };
            }
            Step::SweepAction(SweepAction::GoAway) => {
                connection.state().goaway_sent_at = Some(now_ms());
                conn.as_mut().graceful_shutdown();
            }
            // GOAWAY was sent, no stream is open, and the client stays.
            Step::SweepAction(SweepAction::CloseIdle) => {
                if connection.state().in_flight == 0 {
                    return End::Linger;
                }
            }
            Step::SweepAction(_) | Step::IsH2 => (),
        }
    }
}
