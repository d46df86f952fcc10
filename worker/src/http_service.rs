//! What an HTTP service must be able to do, stated once: [`HttpService`].

use crate::body::Body;
use crate::error::BoxError;
use bytes::Bytes;
use http::{Request, Response};

/// A tower service that answers HTTP requests; an alias for the bounds that
/// [`Service::http`](crate::Service::http) needs, implemented by every service that meets them.
pub trait HttpService:
    tower_service::Service<
        Request<Body>,
        Response = Response<<Self as HttpService>::ResponseBody>,
        Error: Into<BoxError>,
        Future: 'static,
    > + Clone
    + 'static
{
    /// The body of its responses.
    type ResponseBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + 'static;
}

impl<S, B> HttpService for S
where
    S: tower_service::Service<Request<Body>, Response = Response<B>> + Clone + 'static,
    S::Error: Into<BoxError>,
    S::Future: 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + 'static,
{
    type ResponseBody = B;
}
