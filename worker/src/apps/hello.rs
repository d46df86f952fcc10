//! `hello`: the default app.

use crate::{Body, Context, Service};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::rc::Rc;
use std::task::{self, Poll};

const BODY: &str = "Hello, client!";

pub(super) fn service() -> Service {
    Service::http(|context| ready(Ok(Hello { headers: Rc::new(headers(context)) })))
}

/// Everything but the date is known beforehand.
fn headers(context: Context) -> HeaderMap {
    let number = |number: u64| HeaderValue::from(number);
    HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
        (HeaderName::from_static("x-prefork-worker"), number(context.worker.0)),
        (HeaderName::from_static("x-prefork-slot"), number(context.slot.0.into())),
        (HeaderName::from_static("x-prefork-generation"), number(context.generation.0.into())),
        (HeaderName::from_static("x-prefork-pid"), number(std::process::id().into())),
    ])
}

#[derive(Clone)]
struct Hello {
    headers: Rc<HeaderMap>,
}

impl tower_service::Service<Request<Body>> for Hello {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: Request<Body>) -> Self::Future {
        let mut response = Response::new(Full::new(Bytes::from_static(BODY.as_bytes())));
        response.headers_mut().clone_from(&self.headers);
        ready(Ok(response))
    }
}
