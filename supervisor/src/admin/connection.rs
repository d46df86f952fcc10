//! One HTTP connection, and what it may cost: a seat, a short head, some seconds.

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

/// Connections at the same time. For whoever comes beyond, the one that has been doing nothing for longest has to go.
const SEATS: usize = 256;
/// Those of them that may be told of events.
const LISTENERS: usize = 32;
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may last, if it is not told of events.
const LIFE: Duration = Duration::from_secs(30);
/// How long it has for its last answer after that.
const LAST: Duration = Duration::from_secs(2);
/// The longest head of a request, in bytes.
const LONGEST_HEAD: usize = 8 << 10;

/// The seats of all connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seats(Rc<Taken>);

#[derive(Debug, Default)]
struct Taken {
    seats: Cell<usize>,
    /// All that were taken, the oldest first; some are free again.
    order: RefCell<VecDeque<Weak<Seat>>>,
    listeners: Cell<usize>,
    closed: Cell<bool>,
    left: Notify,
    closing: Notify,
}

/// One of them. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    taken: Rc<Taken>,
    listens: Cell<bool>,
    /// It asks for something just now.
    asks: Cell<bool>,
    /// It has asked for something, now or earlier.
    has_asked: Notify,
    /// Its client does not read what it is told.
    pub(crate) doomed: Notify,
}

impl Seats {
    /// Takes one, if there is any, or if somebody can be let go of.
    pub(crate) fn take(&self) -> Option<Rc<Seat>> {
        let Taken {
            seats,
            order,
            closed,
            ..
        } = &*self.0;
        if closed.get() || seats.get() >= SEATS && !self.let_go() {
            return None;
        }
        seats.set(seats.get() + 1);
        let seat = Rc::new(Seat {
            taken: Rc::clone(&self.0),
            listens: Cell::new(false),
            asks: Cell::new(false),
            has_asked: Notify::new(),
            doomed: Notify::new(),
        });
        let mut order = order.borrow_mut();
        order.retain(|seat| seat.strong_count() > 0);
        order.push_back(Rc::downgrade(&seat));
        Some(seat)
    }

    /// Lets go of the oldest connection that asks for nothing.
    fn let_go(&self) -> bool {
        let idle = |seat: &Rc<Seat>| !seat.asks.get() && !seat.listens.get();
        let mut order = self.0.order.borrow_mut();
        let place = order
            .iter()
            .position(|seat| seat.upgrade().is_some_and(|seat| idle(&seat)));
        let seat = place.and_then(|place| order.remove(place)?.upgrade());
        seat.inspect(|seat| seat.doomed.notify_one()).is_some()
    }

    /// Nobody gets one any more, and whoever has one is to finish.
    pub(crate) fn close(&self) {
        self.0.closed.set(true);
        self.0.closing.notify_waiters();
    }

    /// Waits until all are free.
    pub(crate) async fn empty(&self) {
        while self.0.seats.get() > 0 {
            self.0.left.notified().await;
        }
    }
}

impl Seat {
    /// Asks for something, or does not any more.
    pub(crate) fn asks(&self, asks: bool) {
        self.asks.set(asks);
        if asks {
            self.has_asked.notify_one();
        }
    }

    /// Asks for events; false when too many are told of them already.
    pub(crate) fn listen(&self) -> bool {
        let (listeners, listens) = (&self.taken.listeners, &self.listens);
        if !listens.get() && listeners.get() < LISTENERS {
            listeners.set(listeners.get() + 1);
            listens.set(true);
        }
        listens.get()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.taken.seats.set(self.taken.seats.get() - 1);
        if self.listens.get() {
            self.taken.listeners.set(self.taken.listeners.get() - 1);
        }
        self.taken.left.notify_one();
    }
}

/// Serves a client, as long as it may stay.
pub(crate) async fn serve(client: Box<dyn Client>, source: Source, seat: Rc<Seat>, budget: Budget) {
    let of_service = Rc::clone(&seat);
    let service = service_fn(move |request| {
        let (source, seat, budget) = (source.clone(), Rc::clone(&of_service), budget.clone());
        async move {
            // However many requests a client sends at once.
            budget.spend();
            seat.asks(true);
            let answered = answer(request, source, Rc::clone(&seat)).await;
            seat.asks(false);
            answered
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(LONGEST_HEAD);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(client), service));
    let closing = seat.taken.closing.notified();
    let life = async {
        loop {
            tokio::time::sleep(LIFE).await;
            if !seat.listens.get() {
                return;
            }
        }
    };
    tokio::select! {
        _ = &mut connection => return,
        () = seat.doomed.notified() => return,
        () = closing => {}
        () = life => {}
    }
    if !seat.listens.get() {
        // What it asks for first may be on its way, and hyper would close at once.
        tokio::select! {
            _ = &mut connection => return,
            _ = tokio::time::timeout(LAST, seat.has_asked.notified()) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST, connection).await;
    }
}
