//! The service of the server under test.
//!
//! | request | answer |
//! |---|---|
//! | `GET /bytes/KEY/LENGTH` | the [`Pattern`] of key and length |
//! | `GET /wait/KEY/LENGTH?ms=N` | the same after so long, in which the thread serves others |
//! | `GET /block/KEY/LENGTH?ms=N` | the same after so long, in which the thread does nothing else |
//! | `POST /echo` | the request's body |
//!
//! `x-chaos-request` comes back as it was sent; `x-chaos-pid` and `x-chaos-build` tell who
//! answered. In a worker with `CHAOS_SPOIL` in its environment, the service breaks at its start, as
//! bad programs do: see [`Spoil`].

use crate::pattern::Pattern;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use prefork::{Body, BoxError, Service};
use std::convert::Infallible;
use std::pin::Pin;
use std::process::ExitCode;
use std::task::{Context, Poll};
use std::time::Duration;

/// The header that carries a request's number there and back.
pub const REQUEST: &str = "x-chaos-request";
/// The header that names the process that answered.
pub const PID: &str = "x-chaos-pid";
/// The header that names the build that answered.
pub const BUILD: &str = "x-chaos-build";
/// The variable that makes the service break.
pub const SPOIL: &str = "CHAOS_SPOIL";

/// In which way the service breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoil {
    /// Exits before it is ready.
    Exits,
    /// Never gets ready.
    NeverReady,
    /// Says why it cannot start.
    Declines,
}

impl Spoil {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Exits, Self::NeverReady, Self::Declines];

    /// What the variable says.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exits => "exits",
            Self::NeverReady => "never-ready",
            Self::Declines => "declines",
        }
    }
}

/// The whole program of the server under test.
pub fn main(build: &'static str) -> ExitCode {
    prefork::main(Service::http(move |_| async move {
        let spoil = std::env::var(SPOIL).unwrap_or_default();
        match Spoil::ALL.into_iter().find(|way| way.as_str() == spoil) {
            None => {}
            Some(Spoil::Exits) => std::process::exit(3),
            Some(Spoil::NeverReady) => std::future::pending().await,
            Some(Spoil::Declines) => return Err(BoxError::from("this build declines to start")),
        }
        Ok(tower::service_fn(move |request| async move {
            Ok::<_, Infallible>(answer(request, build).await)
        }))
    }))
}

async fn answer(request: Request<Body>, build: &'static str) -> Response<Reply> {
    let number = request.headers().get(REQUEST).cloned();
    let reply = match *request.method() {
        Method::POST => request.into_body().bytes().await.ok().map(Reply::Whole),
        _ => pattern(request.uri()).await,
    };
    let mut response = if let Some(reply) = reply {
        Response::new(reply)
    } else {
        let mut response = Response::new(Reply::Whole(Bytes::from_static(b"no such thing\n")));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response
    };
    let length = HeaderValue::from(http_body::Body::size_hint(response.body()).lower());
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length);
    if let Some(number) = number {
        headers.insert(HeaderName::from_static(REQUEST), number);
    }
    headers.insert(
        HeaderName::from_static(PID),
        HeaderValue::from(std::process::id()),
    );
    headers.insert(
        HeaderName::from_static(BUILD),
        HeaderValue::from_static(build),
    );
    response
}

/// The body that a path asks for, after the time that its query asks for.
async fn pattern(uri: &http::Uri) -> Option<Reply> {
    let mut words = uri.path().split('/').skip(1);
    let (way, key, length) = (
        words.next()?,
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
    );
    let ms = uri
        .query()
        .and_then(|query| query.strip_prefix("ms=")?.parse().ok())
        .unwrap_or(0);
    let time = Duration::from_millis(ms);
    match way {
        "bytes" => {}
        "wait" => tokio::time::sleep(time).await,
        "block" => std::thread::sleep(time),
        _ => return None,
    }
    Some(Reply::Pattern {
        pattern: Pattern::new(key, length),
        offset: 0,
    })
}

/// A response's body.
#[derive(Debug)]
enum Reply {
    /// Sent at once.
    Whole(Bytes),
    /// Made piece by piece, as the client takes it.
    Pattern { pattern: Pattern, offset: u64 },
}

impl http_body::Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match self.get_mut() {
            Self::Whole(bytes) => std::mem::take(bytes),
            Self::Pattern { pattern, offset } => {
                let left = pattern.length - *offset;
                let mut piece = vec![0; usize::try_from(left.min(64 * 1024)).unwrap_or(0)];
                *offset += pattern.fill(*offset, &mut piece) as u64;
                Bytes::from(piece)
            }
        };
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        http_body::Body::size_hint(self).lower() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::Pattern { pattern, offset } => pattern.length - offset,
        })
    }
}
