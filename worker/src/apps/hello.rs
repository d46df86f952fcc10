//! `hello`: the default app. Everything but the date of its answers is known beforehand.

use super::headers::headers;
use crate::body::Body;
use crate::service::Service;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::rc::Rc;
use std::task::{self, Poll};

const BODY: &str = "Hello, client!";

pub(super) fn service() -> Service {
    Service::http(|context| {
        ready(Ok(Hello {
            headers: Rc::new(headers(context)),
        }))
    })
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
