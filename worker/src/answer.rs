//! From a request to its response: the handler, and everything that is put around it.
//!
//! Counting, the limits on bodies and time, panics, `Connection: close` while draining. It knows nothing of
//! sockets and bytes; [`crate::connection`] does.

use crate::access::Late;
use crate::body::{Body, BoxError, Reply};
use crate::link::{Link, Peek, now_ms, now_us};
use crate::thread::{Notes, Thread};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// A request in hand. Dropping it ends the request, however that comes about.
pub(crate) struct Guard {
    thread: Rc<Thread>,
    link: Arc<Link>,
    ticket: usize,
    /// When it began, by [`now_us`].
    began: u64,
    /// What it was answered with; 0 until then.
    status: u16,
    /// Bytes of its response's body by now.
    pub(crate) sent: u64,
    /// What was written down of it for the logs.
    notes: Option<Notes>,
    /// The right to run a handler, in classes that run one at a time.
    turn: Option<OwnedSemaphorePermit>,
}

impl Guard {
    /// A request begins: its head is here.
    pub(crate) fn begin(thread: Rc<Thread>, link: Arc<Link>) -> Self {
        let began = now_us();
        link.state().begin();
        let ticket = thread.request_begun(&link, began / 1000);
        Self {
            thread,
            link,
            ticket,
            began,
            status: 0,
            sent: 0,
            notes: None,
            turn: None,
        }
    }

    /// Writes down what the logs need of it, before a handler takes it away.
    pub(crate) fn describe<B>(&mut self, request: &Request<B>) {
        self.notes = self.thread.describe(&self.link, request);
    }

    /// Its handler begins.
    fn handler_begins(&self) {
        // It begins with the request, unless it has had to wait for its turn.
        let began = if self.turn.is_some() {
            now_ms()
        } else {
            self.began / 1000
        };
        self.thread.handler(self.ticket, Some(began));
    }

    /// Its handler has ended.
    fn handler_ended(&self) {
        self.thread.handler(self.ticket, None);
    }

    /// Waits until the thread may run one more handler.
    pub(crate) async fn take_turn(&mut self) {
        if let Some(gate) = &self.thread.gate {
            self.turn = gate.clone().acquire_owned().await.ok();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let now = now_us();
        let mut state = self.link.state();
        state.end(now / 1000);
        let requests = state.requests;
        drop(state);
        let took_us = now.saturating_sub(self.began);
        self.thread
            .request_ended(self.ticket, took_us, self.status >= 500);
        if let Some(notes) = self.notes.take() {
            let connection = self.link.serial();
            let late = Late {
                status: self.status,
                body: self.sent,
                took_us,
                connection,
                requests,
            };
            self.thread.tell(&self.link, notes, &late);
        }
    }
}

/// What came of a handler.
enum Outcome<B> {
    Response(Response<B>),
    Refused(StatusCode, &'static str),
}

/// Answers one request. `guard` was made when the request's head was complete.
pub(crate) async fn answer<S, B>(
    mut guard: Guard,
    service: S,
    request: Request<Incoming>,
) -> Result<Response<Reply<B>>, Infallible>
where
    S: tower_service::Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes>,
{
    guard.describe(&request);
    let h2 = guard.link.state().h2;
    if !request.body().is_end_stream() {
        // Nobody sends another request behind one with a body before that is answered (RFC 9112, 9.3.2).
        guard.link.state().exact = true;
    }
    let limit = guard.thread.settings.max_body_bytes;
    let outcome = if limit == 0
        || request
            .body()
            .size_hint()
            .upper()
            .is_some_and(|length| length <= limit)
    {
        run(&mut guard, service, request.map(Body::new)).await
    } else if request.body().size_hint().lower() > limit {
        Outcome::Refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            "The request body is too long.\n",
        )
    } else {
        let exceeded = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&exceeded);
        let outcome = run(
            &mut guard,
            service,
            request.map(|body| Body::counted(body, limit, flag)),
        )
        .await;
        match exceeded.load(Relaxed) {
            true => Outcome::Refused(
                StatusCode::PAYLOAD_TOO_LARGE,
                "The request body is too long.\n",
            ),
            false => outcome,
        }
    };
    Ok(match outcome {
        Outcome::Response(mut response) => {
            guard.status = response.status().as_u16();
            let headers = response.headers_mut();
            if !h2 && must_close(&guard) {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            if !h2 && headers.contains_key(CONNECTION) {
                guard.link.state().closing = true;
            }
            response.map(|body| Reply::handler(body, guard))
        }
        Outcome::Refused(status, text) => {
            guard.status = status.as_u16();
            let mut response = Response::builder()
                .status(status)
                .header(CONTENT_TYPE, "text/plain");
            if !h2 {
                guard.link.state().closing = true;
                response = response.header(CONNECTION, "close");
            }
            let mut response = response.body(()).unwrap_or_default();
            *response.status_mut() = status;
            response.map(|()| Reply::text(text, guard))
        }
    })
}

/// Whether the response that is about to go out is to be the connection's last.
fn must_close(guard: &Guard) -> bool {
    let thread = &guard.thread;
    let asked = thread.draining() || (thread.gate.is_some() && thread.somebody_waits());
    if !asked {
        return false;
    }
    // Requests that the client has already sent behind this one would be cut off: answer them first, for a while.
    let state = guard.link.state();
    let alone = state.exact && state.stash.is_empty();
    drop(state);
    (alone && guard.link.peek() != Peek::Bytes) || thread.drain_is_old()
}

async fn run<S, B>(guard: &mut Guard, mut service: S, request: Request<Body>) -> Outcome<B>
where
    S: tower_service::Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
{
    guard.take_turn().await;
    guard.handler_begins();
    let handler = async move {
        poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(request).await
    };
    let mut handler = pin!(handler);
    let caught = poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Ok),
            Err(_) => std::task::Poll::Ready(Err(())),
        },
    );
    let timeout = guard.thread.settings.request_timeout_ms;
    let result = match timeout {
        0 => caught.await,
        _ => match tokio::time::timeout(Duration::from_millis(timeout), caught).await {
            Ok(result) => result,
            Err(_) => {
                guard.handler_ended();
                log::warn!("a handler took longer than {timeout} ms; its client gets 503");
                return Outcome::Refused(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "The request took too long.\n",
                );
            }
        },
    };
    guard.handler_ended();
    match result {
        Ok(Ok(response)) => Outcome::Response(response),
        Ok(Err(error)) => {
            let error: BoxError = error.into();
            log::error!("a handler failed; its client gets 500: {error}");
            Outcome::Refused(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Internal server error.\n",
            )
        }
        Err(()) => {
            log::error!("a handler panicked; its client gets 500");
            Outcome::Refused(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Internal server error.\n",
            )
        }
    }
}
