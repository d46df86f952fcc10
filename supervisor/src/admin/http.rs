//! What is served where.

use super::connection::Seat;
use super::metrics::Format;
use super::source::{Following, Source, Told};
use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::json;
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
/// Whatever the page does, it does by itself, and asks nobody but us.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// How long a listener may take to read an event.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often whoever listens is told that we are here.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Answers a request.
pub(crate) async fn answer(
    request: Request<Incoming>,
    source: Source,
    seat: Rc<Seat>,
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
            "/events" => events(&request, &source, &seat),
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

async fn metrics(headers: &HeaderMap, source: &Source) -> Response<Body> {
    let accept = headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .unwrap_or_default();
    let format = Format::wanted(accept);
    match source.status().await {
        Some(picture) => typed(StatusCode::OK, format.media_type(), picture.metrics(format)),
        None => plain(StatusCode::SERVICE_UNAVAILABLE, SILENT),
    }
}

/// Whether the server lives: its supervisor answers.
async fn health(source: &Source) -> Response<Body> {
    match source.status().await {
        Some(_) => plain(StatusCode::OK, "ok\n"),
        None => plain(StatusCode::SERVICE_UNAVAILABLE, SILENT),
    }
}

/// Whether it should be sent clients.
async fn readiness(source: &Source) -> Response<Body> {
    match source.status().await {
        Some(picture) if picture.status["ready"] == true => plain(StatusCode::OK, "ready\n"),
        Some(picture) => {
            let state = picture.status["state"].as_str().unwrap_or("unknown");
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
        Some(picture) => (StatusCode::OK, picture.json()),
        None => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{}\n", json!({ "error": SILENT.trim_end() })).into(),
        ),
    };
    typed(code, "application/json", body)
}

/// Server-Sent Events (WHATWG HTML, section 9.2): the last ones, then each as it happens.
fn events(request: &Request<Incoming>, source: &Source, seat: &Rc<Seat>) -> Response<Body> {
    if !seat.listen() {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "too many listen already\n");
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
    tokio::task::spawn_local(tell(following, sender, Rc::clone(seat)));
    let mut response = Response::new(Feed(receiver).boxed_unsync());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

async fn tell(mut following: Following, sender: mpsc::Sender<Bytes>, seat: Rc<Seat>) {
    // Something at once, so that the client knows that it listens.
    let mut text = "retry: 1000\n\n".to_owned();
    loop {
        match tokio::time::timeout(
            PATIENCE,
            sender.send(Bytes::from(std::mem::take(&mut text))),
        )
        .await
        {
            Ok(Ok(())) => {}
            // It has gone.
            Ok(Err(_)) => return,
            Err(_) => return seat.doomed.notify_one(),
        }
        match tokio::time::timeout(SIGN_OF_LIFE, following.next()).await {
            Ok(Some(new)) => new.iter().for_each(|told| append(&mut text, told)),
            // It comes back and says what it has heard last.
            Ok(None) => return,
            Err(_) => text.push_str(":\n\n"),
        }
    }
}

/// JSON has no line ends, so that an event is one line of data.
fn append(text: &mut String, told: &Told) {
    let _ = write!(text, "id: {}\ndata: {}\n\n", told.seq, told.json);
}

/// A body that is written as it goes.
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
