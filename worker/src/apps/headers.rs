//! The headers of a stock app's response.

use crate::context::Context;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};

/// The headers of an answer in plain text: what it is, and who gave it.
pub(super) fn headers(context: Context) -> HeaderMap {
    let number = |number: u64| HeaderValue::from(number);
    HeaderMap::from_iter([
        (
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        ),
        (
            HeaderName::from_static("x-prefork-worker"),
            number(context.worker.0),
        ),
        (
            HeaderName::from_static("x-prefork-slot"),
            number(context.slot.0.into()),
        ),
        (
            HeaderName::from_static("x-prefork-generation"),
            number(context.generation.0.into()),
        ),
        (
            HeaderName::from_static("x-prefork-pid"),
            number(std::process::id().into()),
        ),
    ])
}
