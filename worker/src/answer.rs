//! From a request to its response: the handler and what surrounds it.
//!
//! It enforces the limits on bodies and time, catches panics, and sets `Connection: close` while
//! draining. It knows nothing of sockets and bytes; [`crate::http_connection`] does.

use crate::body::{Body, ResponseBody};
use crate::connection::Peek;
use crate::error::BoxError;
use crate::request::RequestGuard;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// How a handler ended.
enum Outcome<B> {
    Response(Response<B>),
    Refused(StatusCode, &'static str),
}

/// Answers one request. `guard` was made when the request's head was complete.
pub(crate) async fn answer<S, B>(
    mut guard: RequestGuard,
    service: S,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody<B>>, Infallible>
where
    S: tower_service::Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes>,
{
    guard.start_log_record(&request);
    let h2 = guard.connection.state().h2;
    if !request.body().is_end_stream() {
        // No client sends another request behind one with a body before that is answered (RFC 9112,
        // 9.3.2).
        guard.connection.state().input_ends_with_request = true;
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
        if exceeded.load(Relaxed) {
            Outcome::Refused(
                StatusCode::PAYLOAD_TOO_LARGE,
                "The request body is too long.\n",
            )
        } else {
            outcome
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
                guard.connection.state().closing = true;
            }
            response.map(|body| ResponseBody::handler(body, guard))
        }
        Outcome::Refused(status, text) => {
            guard.status = status.as_u16();
            let mut response = Response::builder()
                .status(status)
                .header(CONTENT_TYPE, "text/plain");
            if !h2 {
                guard.connection.state().closing = true;
                response = response.header(CONNECTION, "close");
            }
            let mut response = response.body(()).unwrap_or_default();
            *response.status_mut() = status;
            response.map(|()| ResponseBody::text(text, guard))
        }
    })
}

/// Returns whether the response that is about to be sent must be the connection's last.
fn must_close(guard: &RequestGuard) -> bool {
    let thread = &guard.thread;
    let asked = thread.draining() || (thread.handler_permits.is_some() && thread.has_waiting());
    if !asked {
        return false;
    }
    // Closing would cut off requests that the client has already sent behind this one: answer them
    // first, for a while.
    let state = guard.connection.state();
    let alone = state.input_ends_with_request && state.stash.is_empty();
    drop(state);
    (alone && guard.connection.peek() != Peek::Bytes) || thread.drain_idle_elapsed()
}

async fn run<S, B>(guard: &mut RequestGuard, mut service: S, request: Request<Body>) -> Outcome<B>
where
    S: tower_service::Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
{
    guard.acquire_handler().await;
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
    let result = if timeout == 0 {
        caught.await
    } else {
        let limit = Duration::from_millis(timeout);
        let Ok(result) = tokio::time::timeout(limit, caught).await else {
            guard.handler_ended();
            log::warn!("a handler took longer than {timeout} ms; its client gets 503");
            return Outcome::Refused(
                StatusCode::SERVICE_UNAVAILABLE,
                "The request took too long.\n",
            );
        };
        result
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
