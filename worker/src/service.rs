//! What a program serves: [`Service`].

use crate::body::{Body, BoxError};
use crate::connection::{self, Builders};
use crate::link::Link;
use crate::raw::{self, RawService};
use crate::thread::{Seated, Thread};
use bytes::Bytes;
use prefork_protocol::{GenerationId, Slot, WorkerId};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

/// Which worker this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The slot it fills.
    pub slot: Slot,
    /// The generation it belongs to.
    pub generation: GenerationId,
    /// Its own id, never reused.
    pub worker: WorkerId,
    /// How many workers the server runs.
    pub workers: u16,
}

/// What a program serves: HTTP, or a protocol of its own over plain connections.
///
/// ```
/// use std::convert::Infallible;
/// use worker::{Body, Service};
///
/// let service = Service::http(|context: prefork_worker::Context| async move {
///     Ok(tower::service_fn(move |_: http::Request<Body>| async move {
///         Ok::<_, Infallible>(http::Response::new(format!("Hello from slot {}", context.slot)))
///     }))
/// });
/// ```
pub struct Service(Box<dyn Make>);

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Service")
    }
}

type Starting<'a> = Pin<Box<dyn Future<Output = Result<Rc<dyn Serve>, String>> + 'a>>;

/// Makes a serving thread's service.
trait Make: Send + Sync {
    fn make<'a>(&'a self, context: Context, thread: &'a Rc<Thread>) -> Starting<'a>;
}

/// A serving thread's service.
pub(crate) trait Serve {
    /// Serves one connection, in a task of its own.
    fn serve(&self, thread: &Rc<Thread>, link: Arc<Link>);
}

impl Service {
    /// HTTP/1.1 and HTTP/2 with prior knowledge, by any tower service, an axum `Router` for instance.
    ///
    /// `make` runs once in each serving thread, within that thread's tokio runtime. An error means that the worker cannot
    /// start; its text is shown to the operator. Nothing needs to be `Send`: a service never leaves its thread. It is
    /// cloned for each request.
    pub fn http<M, F, S, B>(make: M) -> Self
    where
        M: Fn(Context) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, BoxError>> + 'static,
        S: tower_service::Service<http::Request<Body>, Response = http::Response<B>>
            + Clone
            + 'static,
        S::Future: 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + 'static,
        B::Error: Into<BoxError>,
    {
        Self(Box::new(Http { make }))
    }

    /// Any other protocol. `make` as in [`Service::http`].
    pub fn raw<M, F, R>(make: M) -> Self
    where
        M: Fn(Context) -> F + Send + Sync + 'static,
        F: Future<Output = Result<R, BoxError>> + 'static,
        R: RawService,
    {
        Self(Box::new(Raw { make }))
    }

    /// Makes a thread's service; a panic in there is a reason like any other.
    pub(crate) async fn start(
        &self,
        context: Context,
        thread: &Rc<Thread>,
    ) -> Result<Rc<dyn Serve>, String> {
        let panicked = || "the service panicked while it was made".to_owned();
        let mut starting = catch_unwind(AssertUnwindSafe(|| self.0.make(context, thread)))
            .map_err(|_| panicked())?;
        std::future::poll_fn(move |cx| {
            catch_unwind(AssertUnwindSafe(|| starting.as_mut().poll(cx)))
                .unwrap_or_else(|_| std::task::Poll::Ready(Err(panicked())))
        })
        .await
    }
}

struct Http<M> {
    make: M,
}

impl<M, F, S, B> Make for Http<M>
where
    M: Fn(Context) -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, BoxError>> + 'static,
    S: tower_service::Service<http::Request<Body>, Response = http::Response<B>> + Clone + 'static,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    fn make<'a>(&'a self, context: Context, thread: &'a Rc<Thread>) -> Starting<'a> {
        Box::pin(async move {
            let service = (self.make)(context)
                .await
                .map_err(|error| error.to_string())?;
            let served: Rc<dyn Serve> = Rc::new(HttpThread {
                service,
                builders: Rc::new(Builders::new(thread)),
            });
            Ok(served)
        })
    }
}

struct HttpThread<S> {
    service: S,
    builders: Rc<Builders>,
}

impl<S, B> Serve for HttpThread<S>
where
    S: tower_service::Service<http::Request<Body>, Response = http::Response<B>> + Clone + 'static,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    fn serve(&self, thread: &Rc<Thread>, link: Arc<Link>) {
        let builders = Rc::clone(&self.builders);
        // Seated at once: the accept loop must see it before it takes another.
        let seat = Seated::new(thread, &link);
        let service = self.service.clone();
        tokio::task::spawn_local(connection::serve(
            Rc::clone(thread),
            link,
            seat,
            builders,
            service,
        ));
    }
}

struct Raw<M> {
    make: M,
}

impl<M, F, R> Make for Raw<M>
where
    M: Fn(Context) -> F + Send + Sync + 'static,
    F: Future<Output = Result<R, BoxError>> + 'static,
    R: RawService,
{
    fn make<'a>(&'a self, context: Context, _thread: &'a Rc<Thread>) -> Starting<'a> {
        Box::pin(async move {
            let service = (self.make)(context)
                .await
                .map_err(|error| error.to_string())?;
            let served: Rc<dyn Serve> = Rc::new(RawThread {
                service: Rc::new(service),
            });
            Ok(served)
        })
    }
}

struct RawThread<R> {
    service: Rc<R>,
}

impl<R: RawService> Serve for RawThread<R> {
    fn serve(&self, thread: &Rc<Thread>, link: Arc<Link>) {
        let seat = Seated::new(thread, &link);
        tokio::task::spawn_local(raw::serve(
            Rc::clone(thread),
            link,
            seat,
            Rc::clone(&self.service),
        ));
    }
}
