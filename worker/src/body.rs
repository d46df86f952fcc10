//! Bodies: what a handler gets, and what hyper gets from it.

use crate::error::BoxError;
use crate::request::RequestGuard;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

/// A request's body. It ends with an error when it is longer than `max_body_bytes`; the client then
/// gets 413, whatever the handler answers.
pub struct Body(Kind);

enum Kind {
    /// hyper itself holds the client to the announced length, which was found short enough.
    Announced(Incoming),
    Counted {
        body: Limited<Incoming>,
        exceeded: Arc<AtomicBool>,
    },
}

impl Body {
    pub(crate) fn new(body: Incoming) -> Self {
        Self(Kind::Announced(body))
    }

    pub(crate) fn counted(body: Incoming, limit: u64, exceeded: Arc<AtomicBool>) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self(Kind::Counted {
            body: Limited::new(body, limit),
            exceeded,
        })
    }

    /// Reads it to its end.
    ///
    /// # Errors
    /// When the client goes away, breaks the protocol, or sends more than it may.
    pub async fn bytes(self) -> Result<Bytes, BoxError> {
        Ok(self.collect().await?.to_bytes())
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Body")
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Announced(body) => Pin::new(body).poll_frame(cx).map_err(BoxError::from),
            Kind::Counted { body, exceeded } => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                if matches!(&frame, Some(Err(error)) if error.is::<LengthLimitError>()) {
                    exceeded.store(true, Relaxed);
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Announced(body) => body.is_end_stream(),
            Kind::Counted { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Announced(body) => body.size_hint(),
            Kind::Counted { body, .. } => body.size_hint(),
        }
    }
}

pin_project! {
    /// A response's body. The request ends when it has been sent or dropped.
    pub(crate) struct ResponseBody<B> {
        #[pin]
        content: Content<B>,
        guard: RequestGuard,
    }
}

pin_project! {
    #[project = ContentKind]
    enum Content<B> {
        Handler { #[pin] body: B },
        Text { text: Option<Bytes> },
    }
}

impl<B> ResponseBody<B> {
    /// What the handler made.
    pub(crate) fn handler(body: B, guard: RequestGuard) -> Self {
        Self {
            content: Content::Handler { body },
            guard,
        }
    }

    /// A short text of ours.
    pub(crate) fn text(text: &'static str, guard: RequestGuard) -> Self {
        Self {
            content: Content::Text {
                text: Some(Bytes::from_static(text.as_bytes())),
            },
            guard,
        }
    }
}

impl<B> http_body::Body for ResponseBody<B>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        let polled = match this.content.project() {
            // A panic in here must cost this connection only.
            ContentKind::Handler { body } => {
                match catch_unwind(AssertUnwindSafe(|| body.poll_frame(cx))) {
                    Ok(frame) => frame.map_err(Into::into),
                    Err(_) => Poll::Ready(Some(Err("the response body panicked".into()))),
                }
            }
            ContentKind::Text { text } => {
                Poll::Ready(text.take().map(|text| Ok(Frame::data(text))))
            }
        };
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            this.guard.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Handler { body } => body.is_end_stream(),
            Content::Text { text } => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Handler { body } => body.size_hint(),
            Content::Text { text } => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
        }
    }
}
