//! One HTTP connection and its limits: a permit, a short head, some seconds.

use super::budget::Budget;
use super::child::Client;
use super::http::answer;
use super::source::Source;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// Concurrent connections. For one more, the one that has been idle for longest is evicted.
const MAX_CONNECTIONS: usize = 256;
/// Those of them that may follow events.
const MAX_FOLLOWERS: usize = 32;
/// How long a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last, if it does not follow events.
const LIFETIME: Duration = Duration::from_secs(30);
/// How long it has for its last answer after that.
const LAST_ANSWER: Duration = Duration::from_secs(2);
/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 8 << 10;

/// The permits of all connections of a kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limiter(Rc<Permits>);

#[derive(Debug, Default)]
struct Permits {
    connections: Cell<usize>,
    /// All that were issued, the oldest first; some have been returned.
    order: RefCell<VecDeque<Weak<Permit>>>,
    followers: Cell<usize>,
    closed: Cell<bool>,
    left: Notify,
    closing: Notify,
}

/// The permit of a connection. Dropping it returns it.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: Rc<Permits>,
    follows: Cell<bool>,
    /// A request is active.
    active: Cell<bool>,
    /// There was a request, now or earlier.
    has_asked: Notify,
    /// The connection is to be closed at once.
    pub(crate) evicted: Notify,
}

impl Limiter {
    /// Issues a permit, if one is free or can be freed.
    pub(crate) fn acquire(&self) -> Option<Rc<Permit>> {
        let Permits {
            connections,
            order,
            closed,
            ..
        } = &*self.0;
        if closed.get() || connections.get() >= MAX_CONNECTIONS && !self.evict_idle() {
            return None;
        }
        connections.set(connections.get() + 1);
        let permit = Rc::new(Permit {
            permits: Rc::clone(&self.0),
            follows: Cell::new(false),
            active: Cell::new(false),
            has_asked: Notify::new(),
            evicted: Notify::new(),
        });
        let mut order = order.borrow_mut();
        order.retain(|permit| permit.strong_count() > 0);
        order.push_back(Rc::downgrade(&permit));
        Some(permit)
    }

    /// Evicts the oldest connection without an active request; returns whether there was one.
    fn evict_idle(&self) -> bool {
        let idle = |permit: &Rc<Permit>| !permit.active.get() && !permit.follows.get();
        let mut order = self.0.order.borrow_mut();
        let index = order
            .iter()
            .position(|permit| permit.upgrade().is_some_and(|permit| idle(&permit)));
        let permit = index.and_then(|index| order.remove(index)?.upgrade());
        permit
            .inspect(|permit| permit.evicted.notify_one())
            .is_some()
    }

    /// Issues no more permits, and asks all connections to finish.
    pub(crate) fn close(&self) {
        self.0.closed.set(true);
        self.0.closing.notify_waiters();
    }

    /// Waits until all permits are returned.
    pub(crate) async fn idle(&self) {
        while self.0.connections.get() > 0 {
            self.0.left.notified().await;
        }
    }
}

impl Permit {
    /// Notes whether a request is active.
    pub(crate) fn set_active(&self, active: bool) {
        self.active.set(active);
        if active {
            self.has_asked.notify_one();
        }
    }

    /// Lets the connection follow events; false when too many do.
    pub(crate) fn follow(&self) -> bool {
        let (followers, follows) = (&self.permits.followers, &self.follows);
        if !follows.get() && followers.get() < MAX_FOLLOWERS {
            followers.set(followers.get() + 1);
            follows.set(true);
        }
        follows.get()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let permits = &self.permits;
        permits.connections.set(permits.connections.get() - 1);
        if self.follows.get() {
            permits.followers.set(permits.followers.get() - 1);
        }
        permits.left.notify_one();
    }
}

/// Serves a client for as long as its limits allow.
pub(crate) async fn serve(
    client: Box<dyn Client>,
    source: Source,
    permit: Rc<Permit>,
    budget: Budget,
) {
    let of_service = Rc::clone(&permit);
    let service = service_fn(move |request| {
        let (source, permit, budget) = (source.clone(), Rc::clone(&of_service), budget.clone());
        async move {
            // Also for pipelined requests.
            budget.spend();
            permit.set_active(true);
            let answered = answer(request, source, Rc::clone(&permit)).await;
            permit.set_active(false);
            answered
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(client), service));
    let closing = permit.permits.closing.notified();
    let life = async {
        loop {
            tokio::time::sleep(LIFETIME).await;
            if !permit.follows.get() {
                return;
            }
        }
    };
    tokio::select! {
        _ = &mut connection => return,
        () = permit.evicted.notified() => return,
        () = closing => {}
        () = life => {}
    }
    if !permit.follows.get() {
        // Its first request may be on the way, and hyper would close at once.
        tokio::select! {
            _ = &mut connection => return,
            _ = tokio::time::timeout(LAST_ANSWER, permit.has_asked.notified()) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWER, connection).await;
    }
}
