//! What a program serves: [`Service`].

use crate::body::Body;
use crate::connection::Connection;
use crate::context::Context;
use crate::error::{BoxError, StartError};
use crate::http_connection::{self, Builders};
use crate::http_service::HttpService;
use crate::raw::{self, RawService};
use crate::serving_thread::{ConnectionGuard, ServingThread};
use bytes::Bytes;
use http::{Request, Response};
use std::future::{Future, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

/// What a program serves: HTTP, or a protocol of its own over plain connections.
///
/// ```
/// use std::convert::Infallible;
/// use prefork_worker::{Body, Service};
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

type Starting<'a> = Pin<Box<dyn Future<Output = Result<Rc<dyn Serve>, StartError>> + 'a>>;

/// Makes a serving thread's service.
trait Make: Send + Sync {
    fn make<'a>(&'a self, context: Context, thread: &'a Rc<ServingThread>) -> Starting<'a>;
}

/// A serving thread's service.
pub(crate) trait Serve {
    /// Serves one connection, in a task of its own.
    fn serve(&self, thread: &Rc<ServingThread>, connection: Arc<Connection>);
}

impl Service {
    /// HTTP/1.1 and HTTP/2 with prior knowledge, by any tower service, an axum `Router` for
    /// instance.
    ///
    /// `make` runs once in each serving thread, within that thread's tokio runtime. An error means
    /// that the worker cannot start, and the operator reads its text. Nothing needs to be `Send`: a
    /// service never leaves its thread. It is cloned for each request.
    pub fn http<M, F, S>(make: M) -> Self
    where
        M: Fn(Context) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, BoxError>> + 'static,
        S: HttpService,
    {
        Self(Box::new(Http { make }))
    }

    /// HTTP, by a function of a request: [`Service::http`] for services that need no set-up.
    ///
    /// A handler that fails is logged, and its client gets 500. The function is cloned for each
    /// request, so share what is large by `Arc`.
    ///
    /// ```
    /// use prefork_worker::{Body, Service};
    ///
    /// let service = Service::from_fn(async |request: http::Request<Body>| {
    ///     let body = request.into_body().bytes().await?;
    ///     Ok(http::Response::new(format!("{} bytes\n", body.len())))
    /// });
    /// ```
    pub fn from_fn<H, F, B>(handler: H) -> Self
    where
        H: Fn(Request<Body>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response<B>, BoxError>> + 'static,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + 'static,
    {
        Self::http(move |_| ready(Ok(tower::service_fn(handler.clone()))))
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
        thread: &Rc<ServingThread>,
    ) -> Result<Rc<dyn Serve>, StartError> {
        let mut starting = catch_unwind(AssertUnwindSafe(|| self.0.make(context, thread)))
            .map_err(|_| StartError::ServicePanicked)?;
        std::future::poll_fn(move |cx| {
            catch_unwind(AssertUnwindSafe(|| starting.as_mut().poll(cx)))
                .unwrap_or_else(|_| std::task::Poll::Ready(Err(StartError::ServicePanicked)))
        })
        .await
    }
}

struct Http<M> {
    make: M,
}

impl<M, F, S> Make for Http<M>
where
    M: Fn(Context) -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, BoxError>> + 'static,
    S: HttpService,
{
    fn make<'a>(&'a self, context: Context, thread: &'a Rc<ServingThread>) -> Starting<'a> {
        Box::pin(async move {
            let service = (self.make)(context).await.map_err(StartError::Service)?;
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

impl<S> Serve for HttpThread<S>
where
    S: HttpService,
{
    fn serve(&self, thread: &Rc<ServingThread>, connection: Arc<Connection>) {
        let builders = Rc::clone(&self.builders);
        // ConnectionGuard at once: the accept loop must see it before it takes another.
        let connection_guard = ConnectionGuard::new(thread, &connection);
        let service = self.service.clone();
        tokio::task::spawn_local(http_connection::serve(
            Rc::clone(thread),
            connection,
            connection_guard,
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
    fn make<'a>(&'a self, context: Context, _thread: &'a Rc<ServingThread>) -> Starting<'a> {
        Box::pin(async move {
            let service = (self.make)(context).await.map_err(StartError::Service)?;
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
    fn serve(&self, thread: &Rc<ServingThread>, connection: Arc<Connection>) {
        let connection_guard = ConnectionGuard::new(thread, &connection);
        tokio::task::spawn_local(raw::serve(
            Rc::clone(thread),
            connection,
            connection_guard,
            Rc::clone(&self.service),
        ));
    }
}
