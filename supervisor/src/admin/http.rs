//! The routes: status, metrics, health, events and the dashboard.

use super::limiter::Permit;
use super::metrics::Format;
use super::source::{Following, NumberedEvent, Source};
use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The dashboard: one page that needs nothing else.
const DASHBOARD: &str = include_str!("dashboard.html");
/// The page loads nothing, and requests nothing but from this server.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
                      script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// How long a client may take to read an event.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an idle stream of events has a keep-alive comment.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Answers a request.
pub(crate) async fn answer(
    request: Request<Incoming>,
    source: Source,
    permit: Rc<Permit>,
) -> Result<Response<Body>, Infallible> {
    let head = request.method() == Method::HEAD;
    let mut response = if !head && request.method() != Method::GET {
        let mut refused = plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are served here\n",
        );
        refused
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        refused
    } else {
        match request.uri().path() {
            "/" => page(),
            "/metrics" => metrics(request.headers(), &source).await,
            "/healthz" => health(&source).await,
            "/readyz" => readiness(&source).await,
            "/status" => status(&source).await,
            "/events" if head => typed(StatusCode::OK, "text/event-stream", ""),
            "/events" => events(&request, &source, &permit),
            _ => plain(
                StatusCode::NOT_FOUND,
                "not here; there are /, /metrics, /healthz, /readyz, /status and /events\n",
            ),
        }
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    if head {
        *response.body_mut() = whole("");
    }
    Ok(response)
}

fn whole(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

fn typed(status: StatusCode, media_type: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(whole(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", text)
}

fn page() -> Response<Body> {
    let mut page = typed(StatusCode::OK, "text/html; charset=utf-8", DASHBOARD);
    page.headers_mut().insert(
        HeaderName::from_static("content-security-policy"),
        HeaderValue::from_static(POLICY),
    );
    page
}

const SILENT: &str = "the supervisor does not answer\n";
const SILENT_JSON: &str = "{\"error\":\"the supervisor does not answer\"}\n";

async fn metrics(headers: &HeaderMap, source: &Source) -> Response<Body> {
    let accept = headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .unwrap_or_default();
    let format = Format::wanted(accept);
    match source.status().await {
        Some(snapshot) => typed(
            StatusCode::OK,
            format.media_type(),
            snapshot.metrics(format),
        ),
        None => plain(StatusCode::SERVICE_UNAVAILABLE, SILENT),
    }
}

/// Liveness: the supervisor answers.
async fn health(source: &Source) -> Response<Body> {
    match source.status().await {
        Some(_) => plain(StatusCode::OK, "ok\n"),
        None => plain(StatusCode::SERVICE_UNAVAILABLE, SILENT),
    }
}

/// Readiness: whether load balancers should send clients.
async fn readiness(source: &Source) -> Response<Body> {
    match source.status().await {
        Some(snapshot) if snapshot.status.ready => plain(StatusCode::OK, "ready\n"),
        Some(snapshot) => {
            let state = snapshot.status.state;
            plain(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {state}\n"),
            )
        }
        None => plain(StatusCode::SERVICE_UNAVAILABLE, SILENT),
    }
}

async fn status(source: &Source) -> Response<Body> {
    let (code, body) = match source.status().await {
        Some(snapshot) => (StatusCode::OK, snapshot.json()),
        None => (StatusCode::SERVICE_UNAVAILABLE, SILENT_JSON.into()),
    };
    typed(code, "application/json", body)
}

/// Server-Sent Events (WHATWG HTML, section 9.2): the last ones, then each as it happens.
fn events(request: &Request<Incoming>, source: &Source, permit: &Rc<Permit>) -> Response<Body> {
    if !permit.follow() {
        return plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many clients follow the events already\n",
        );
    }
    let last = request
        .headers()
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    let asked = request
        .uri()
        .query()
        .and_then(|query| query.strip_prefix("since=")?.parse().ok());
    let following = source.follow(last.or(asked).unwrap_or(0));
    let (sender, receiver) = mpsc::channel(4);
    tokio::task::spawn_local(stream_events(following, sender, Rc::clone(permit)));
    let mut response = Response::new(Feed(receiver).boxed_unsync());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

async fn stream_events(mut following: Following, sender: mpsc::Sender<Bytes>, permit: Rc<Permit>) {
    // The first bytes come at once, so that the client knows that the stream is open.
    let mut text = "retry: 1000\n\n".to_owned();
    loop {
        match tokio::time::timeout(
            READ_TIMEOUT,
            sender.send(Bytes::from(std::mem::take(&mut text))),
        )
        .await
        {
            Ok(Ok(())) => {}
            // The client has gone.
            Ok(Err(_)) => return,
            Err(_) => return permit.evicted.notify_one(),
        }
        match tokio::time::timeout(KEEP_ALIVE, following.next()).await {
            Ok(Some(new)) => new.iter().for_each(|event| append(&mut text, event)),
            // It reconnects, and names the last event it has received.
            Ok(None) => return,
            Err(_) => text.push_str(":\n\n"),
        }
    }
}

/// Appends an event. JSON has no line ends, so it is one line of data.
fn append(text: &mut String, event: &NumberedEvent) {
    let _ = write!(text, "id: {}\ndata: {}\n\n", event.seq, event.json);
}

/// A body that is written bit by bit.
struct Feed(mpsc::Receiver<Bytes>);

impl http_body::Body for Feed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|more| more.map(|bytes| Ok(Frame::data(bytes))))
    }
}
