//! The clients: one thread, one epoll instance, every kind of client that a server meets.
//!
//! A [`Load`] tells where to ask and how much; [`start`] begins, and [`Clients`] steers what runs.
//! Arrivals follow a schedule of their own, whatever the server does, and a request's time counts
//! from the moment when it was due. Every request that was begun ends as verified, as withdrawn
//! (the server had said beforehand that it would not answer it), or as one [`Failure`]. Nothing is
//! tried twice.

mod connection;
mod engine;
mod ledger;
mod response;
#[cfg(test)]
mod tests;

pub use connection::Name;
pub use ledger::{Failure, Incident, Ledger, Tally};

use crate::subject::Offers;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use testkit::Address;

/// A kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// A new connection for one small answer; half of them say beforehand that it is their only
    /// request.
    New,
    /// A new connection for 16 KiB there and back.
    Post,
    /// A kept connection with dozens of requests without think time, then a short rest; a tenth of
    /// the requests are 16 KiB there and back.
    Kept,
    /// A kept connection with short think times.
    Thinking,
    /// A kept connection that is idle for seconds between requests.
    Idling,
    /// Four requests on their way at once.
    Pipelined,
    /// A large answer, read slowly through a small window.
    Slow,
    /// A handler that takes its time without holding up its thread.
    Waiting,
    /// A handler that holds up its thread.
    Blocking,
    /// Many new connections at once.
    Burst,
}

impl Shape {
    /// Every shape, in the order of the report.
    pub const ALL: [Self; 10] = [
        Self::New,
        Self::Post,
        Self::Kept,
        Self::Thinking,
        Self::Idling,
        Self::Pipelined,
        Self::Slow,
        Self::Waiting,
        Self::Blocking,
        Self::Burst,
    ];

    /// Its name in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Post => "post",
            Self::Kept => "kept",
            Self::Thinking => "thinking",
            Self::Idling => "idling",
            Self::Pipelined => "pipelined",
            Self::Slow => "slow",
            Self::Waiting => "waiting",
            Self::Blocking => "blocking",
            Self::Burst => "burst",
        }
    }

    /// Whether its clients keep their connections.
    pub(crate) fn keeps(self) -> bool {
        matches!(
            self,
            Self::Kept | Self::Thinking | Self::Idling | Self::Pipelined
        )
    }
}

/// How much of a shape there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// This many requests a second, arriving independently of each other.
    Rate(f64),
    /// This many clients with a connection each.
    Pool(u32),
}

/// What to ask, where, and how much.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where the server can be reached; each connection goes to one of them by chance.
    pub addresses: Vec<Address>,
    /// What can be asked.
    pub offers: Offers,
    /// The shapes and their amounts.
    pub streams: Vec<(Shape, Pace)>,
    /// Where the numbers come from.
    pub seed: u64,
    /// What the server may take for anything.
    pub timeout: Duration,
    /// From when on an answer counts as late.
    pub late: Duration,
    /// The most connections at once; what is due beyond that is not begun.
    pub most: usize,
    /// How long a packet takes to the server and back at least, over TCP.
    pub round_trip: Duration,
}

impl Load {
    /// The full mix for a server of this class, `amount` times as much as usual.
    pub fn mix(addresses: Vec<Address>, offers: Offers, class: &str, amount: f64) -> Self {
        // A worker that serves one connection at a time is held up by slow clients, which is what
        // it is for.
        let slow = if class == "sync" { 0.1 } else { 1.0 };
        let rate = |per_second: f64| Pace::Rate(per_second * amount);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let pool = |clients: f64| Pace::Pool((clients * amount).ceil() as u32);
        let streams = vec![
            (Shape::New, rate(1000.0)),
            (Shape::Post, rate(200.0)),
            (Shape::Kept, pool(8.0)),
            (Shape::Thinking, pool(200.0)),
            (Shape::Idling, pool(100.0 * slow)),
            (Shape::Pipelined, pool(8.0)),
            (Shape::Slow, rate(4.0 * slow)),
            (Shape::Waiting, rate(20.0 * slow)),
            (Shape::Blocking, rate(5.0)),
        ];
        let mut load = Self {
            addresses,
            offers,
            streams,
            seed: 0,
            timeout: Duration::from_secs(15),
            late: Duration::from_secs(1),
            most: 4000,
            round_trip: Duration::ZERO,
        };
        load.streams.retain(|(shape, _)| offered(*shape, offers));
        load
    }
}

/// Whether a subject can be asked in this way.
fn offered(shape: Shape, offers: Offers) -> bool {
    match shape {
        Shape::Post => offers.echo,
        Shape::Waiting | Shape::Blocking => offers.handlers,
        Shape::Pipelined => offers.pipelining,
        Shape::New | Shape::Kept | Shape::Thinking | Shape::Idling | Shape::Slow | Shape::Burst => {
            true
        }
    }
}

/// What the thread of the clients is told.
enum Order {
    /// These connections are in the hands of a worker that is to be killed.
    Doom {
        names: HashSet<Name>,
        kill: usize,
        done: Sender<usize>,
    },
    /// This many new connections at once to one address.
    Burst { count: u64, address: usize },
    /// This many requests whose handlers take so long.
    Last { count: u64, takes: Duration },
    /// Begin nothing more, and let go of what is idle.
    Quiet,
    /// Quiet, and report.
    Finish,
}

/// What the thread of the clients tells while it runs.
#[derive(Debug, Default)]
struct Live {
    verified: AtomicU64,
    unexplained: AtomicU64,
    allowed: AtomicU64,
    open: AtomicU64,
    sent: AtomicU64,
}

/// Clients at work, in a thread of their own.
#[derive(Debug)]
pub struct Clients {
    orders: Sender<Order>,
    live: Arc<Live>,
    began: Instant,
    thread: JoinHandle<Ledger>,
}

/// Begins.
///
/// # Errors
/// When there can be no epoll instance.
pub fn start(load: Load) -> std::io::Result<Clients> {
    let (orders, receiver) = channel();
    let live = Arc::<Live>::default();
    let began = Instant::now();
    let engine = engine::Engine::new(load, receiver, Arc::clone(&live), began)?;
    let thread = std::thread::spawn(move || engine.run());
    Ok(Clients {
        orders,
        live,
        began,
        thread,
    })
}

impl Clients {
    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// How many answers were verified so far.
    pub fn verified(&self) -> u64 {
        self.live.verified.load(Ordering::Relaxed)
    }

    /// How many failures nothing explains, so far.
    pub fn unexplained(&self) -> u64 {
        self.live.unexplained.load(Ordering::Relaxed)
    }

    /// How many failures were in the hands of killed workers, so far.
    pub fn allowed(&self) -> u64 {
        self.live.allowed.load(Ordering::Relaxed)
    }

    /// Connections that are open.
    pub fn open(&self) -> u64 {
        self.live.open.load(Ordering::Relaxed)
    }

    /// Requests of [`Clients::last`] that were written whole so far.
    pub fn sent(&self) -> u64 {
        self.live.sent.load(Ordering::Relaxed)
    }

    /// Whether it has ended by itself, which it does only by a panic.
    pub fn is_gone(&self) -> bool {
        self.thread.is_finished()
    }

    /// Notes that the worker which holds these connections is killed now, as number `kill`. Returns
    /// how many of them are open.
    pub fn doom(&self, names: HashSet<Name>, kill: usize) -> usize {
        let (done, answer) = channel();
        self.order(Order::Doom { names, kill, done });
        answer.recv().unwrap_or(0)
    }

    /// Opens this many connections at once.
    pub fn burst(&self, count: u64, address: usize) {
        self.order(Order::Burst { count, address });
    }

    /// Begins nothing more. Idle connections are closed, requests in flight are waited for.
    pub fn quiet(&self) {
        self.order(Order::Quiet);
    }

    /// Makes this many more requests, each of which takes the server so long.
    pub fn last(&self, count: u64, takes: Duration) {
        self.order(Order::Last { count, takes });
    }

    /// Waits for what was begun, and reports.
    ///
    /// # Panics
    /// When the clients' thread panicked.
    pub fn finish(self) -> Ledger {
        self.order(Order::Finish);
        self.thread
            .join()
            .expect("the clients' thread does not panic")
    }

    fn order(&self, order: Order) {
        // A thread that is gone has panicked, which `finish` tells.
        let _ = self.orders.send(order);
    }
}
