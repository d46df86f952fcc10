//! One HTTP connection and its limits: a permit, a short head, some seconds.

use super::budget::Budget;
use super::http::answer;
use super::limiter::Permit;
use super::source::Source;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// How long a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last, if it does not follow events.
const LIFETIME: Duration = Duration::from_secs(30);
/// How long it has for its last answer after that.
const LAST_ANSWER: Duration = Duration::from_secs(2);
/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 8 << 10;

/// A connection of a client, of either kind of socket.
pub(crate) trait Client: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Client for T {}

/// Serves a client for as long as its limits allow.
pub(crate) async fn serve(
    client: Box<dyn Client>,
    source: Source,
    permit: Rc<Permit>,
    budget: Budget,
) {
    let of_service = Rc::clone(&permit);
    let service = service_fn(move |request| {
        let (source, permit, budget) = (source.clone(), Rc::clone(&of_service), budget.clone());
        async move {
            // Also for pipelined requests.
            budget.spend();
            permit.set_active(true);
            let answered = answer(request, source, Rc::clone(&permit)).await;
            permit.set_active(false);
            answered
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(client), service));
    let closing = permit.closing();
    let life = async {
        loop {
            tokio::time::sleep(LIFETIME).await;
            if !permit.follows() {
                return;
            }
        }
    };
    tokio::select! {
        _ = &mut connection => return,
        () = permit.evicted.notified() => return,
        () = closing => {}
        () = life => {}
    }
    if !permit.follows() {
        // Its first request may be on the way, and hyper would close at once.
        tokio::select! {
            _ = &mut connection => return,
            _ = tokio::time::timeout(LAST_ANSWER, permit.has_asked()) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWER, connection).await;
    }
}
