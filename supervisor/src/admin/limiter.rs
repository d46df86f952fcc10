//! The limiter: a connection needs a permit, and an idle one loses its permit to a new one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use tokio::sync::Notify;

/// Concurrent connections. For one more, the one that has been idle for longest is evicted.
const MAX_CONNECTIONS: usize = 256;
/// Those of them that may follow events.
const MAX_FOLLOWERS: usize = 32;

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

    /// Whether the connection follows events.
    pub(crate) fn follows(&self) -> bool {
        self.follows.get()
    }

    /// Waits for its first request.
    pub(crate) async fn has_asked(&self) {
        self.has_asked.notified().await;
    }

    /// Waits until all connections are asked to finish.
    pub(crate) fn closing(&self) -> impl Future<Output = ()> + '_ {
        self.permits.closing.notified()
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
