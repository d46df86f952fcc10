//! The loop of the clients: when to connect, when to ask, when to read, when to give up.

use super::connection::{Connection, State};
use super::ledger::{Failure, Incident, Ledger};
use super::response::Asked;
use super::{Live, Load, Order, Pace, Shape};
use crate::pattern::Pattern;
use crate::random::Random;
use crate::subject::{LARGE, SMALL};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// How often deadlines and orders are looked at, at least.
const TICK: Duration = Duration::from_millis(5);
/// How long a client rests after a failure, so that a dead server is not asked a million times.
const REST: Duration = Duration::from_millis(50);
/// The length of a post.
const POST: u64 = 16 * 1024;
/// The most that a slow client reads at a time, and its window.
const SIP: u64 = 64 * 1024;
/// How long timers may fire in one round, so that answers are read in between.
const ROUND: Duration = Duration::from_millis(5);

/// What is to be done at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wake {
    /// A stream's next request arrives.
    Arrive(usize),
    /// A stream's client connects again.
    Open(usize),
    /// The connection in a place, if it is still this one, asks again.
    Ask(usize, u64),
    /// It reads.
    Read(usize, u64),
}

pub(super) struct Engine {
    load: Load,
    orders: Receiver<Order>,
    live: Arc<Live>,
    random: Random,
    epoll: Epoll,
    /// Connections by place; places are used again.
    places: Vec<Option<Connection>>,
    free: Vec<usize>,
    open: usize,
    wakes: BinaryHeap<Reverse<(Instant, u64, Wake)>>,
    /// Gives each wake, connection and request its number.
    last_number: u64,
    last_id: u64,
    began: Instant,
    swept: Instant,
    /// Nothing more is begun.
    quiet: bool,
    finish: bool,
    buffer: Vec<u8>,
    ledger: Ledger,
}

impl Engine {
    pub(super) fn new(
        load: Load,
        orders: Receiver<Order>,
        live: Arc<Live>,
        began: Instant,
    ) -> std::io::Result<Self> {
        let mut engine = Self {
            random: Random::new(load.seed, 1),
            load,
            orders,
            live,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            places: Vec::new(),
            free: Vec::new(),
            open: 0,
            wakes: BinaryHeap::new(),
            last_number: 0,
            last_id: 0,
            began,
            swept: began,
            quiet: false,
            finish: false,
            buffer: vec![0; 256 * 1024],
            ledger: Ledger::default(),
        };
        for stream in 0..engine.load.streams.len() {
            match engine.load.streams[stream].1 {
                Pace::Rate(_) => engine.wake_in(Duration::ZERO, Wake::Arrive(stream)),
                Pace::Pool(clients) => {
                    for _ in 0..clients {
                        let wait = Duration::from_millis(engine.random.between(0, 200));
                        engine.wake_in(wait, Wake::Open(stream));
                    }
                }
            }
        }
        Ok(engine)
    }

    pub(super) fn run(mut self) -> Ledger {
        let mut events = [EpollEvent::empty(); 512];
        while !(self.finish && self.open == 0) {
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order);
            }
            self.fire();
            let ready = self.wait(&mut events);
            for event in &events[..ready] {
                let place = usize::try_from(event.data()).expect("a place that was given out here");
                let slow = self.places[place]
                    .as_ref()
                    .is_some_and(|c| c.shape == Shape::Slow);
                self.drive(place, if slow { 0 } else { usize::MAX });
            }
            if self.swept.elapsed() >= Duration::from_millis(100) {
                self.swept = Instant::now();
                self.expire();
            }
            self.live.open.store(self.open as u64, Ordering::Relaxed);
        }
        self.ledger.elapsed = self.began.elapsed();
        self.ledger
    }

    fn wait(&self, events: &mut [EpollEvent]) -> usize {
        let next = self.wakes.peek().map_or(TICK, |Reverse((at, ..))| {
            at.saturating_duration_since(Instant::now()).min(TICK)
        });
        if !next.is_zero() {
            // epoll_wait(2) knows no time finer than a millisecond.
            let mut fds = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
            let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(next)), None);
        }
        match self.epoll.wait(events, EpollTimeout::ZERO) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(error) => panic!("epoll_wait: {error}"),
        }
    }

    fn wake_in(&mut self, wait: Duration, wake: Wake) {
        self.wake_at(Instant::now() + wait, wake);
    }

    fn wake_at(&mut self, at: Instant, wake: Wake) {
        self.last_number += 1;
        self.wakes.push(Reverse((at, self.last_number, wake)));
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Doom { names, kill, done } => {
                let mut count = 0;
                for connection in self.places.iter_mut().flatten() {
                    if connection.name().is_some_and(|name| names.contains(&name)) {
                        connection.kill = Some(kill);
                        count += 1;
                    }
                }
                let _ = done.send(count);
            }
            Order::Burst { count, address } if !self.quiet => {
                for _ in 0..count {
                    self.begin(
                        Shape::Burst,
                        usize::MAX,
                        Some(address),
                        Instant::now(),
                        Duration::ZERO,
                    );
                }
            }
            Order::Burst { .. } => {}
            Order::Last { count, takes } => {
                for _ in 0..count {
                    self.begin(Shape::Waiting, usize::MAX, None, Instant::now(), takes);
                }
            }
            Order::Quiet => self.be_quiet(),
            Order::Finish => {
                self.be_quiet();
                self.finish = true;
            }
        }
    }

    fn be_quiet(&mut self) {
        self.quiet = true;
        for place in 0..self.places.len() {
            if self.places[place]
                .as_ref()
                .is_some_and(|connection| connection.asked.is_empty())
            {
                // Otherwise unrequested bytes would be lost unseen.
                self.drive(place, usize::MAX);
            }
        }
    }

    /// Does what is due.
    fn fire(&mut self) {
        let began = Instant::now();
        loop {
            let now = Instant::now();
            let Some(Reverse((at, _, wake))) = self.wakes.peek().copied() else {
                return;
            };
            if at > now || now > began + ROUND {
                return;
            }
            self.ledger.lag = self.ledger.lag.max(now - at);
            self.wakes.pop();
            match wake {
                Wake::Arrive(_) | Wake::Open(_) if self.quiet => {}
                Wake::Arrive(stream) => {
                    let (shape, pace) = self.load.streams[stream];
                    if let Pace::Rate(per_second) = pace {
                        let wait = self.random.waiting(1.0 / per_second);
                        self.wake_at(at + Duration::from_secs_f64(wait), Wake::Arrive(stream));
                    }
                    let takes = self.takes(shape);
                    self.begin(shape, stream, None, at, takes);
                }
                Wake::Open(stream) => {
                    let shape = self.load.streams[stream].0;
                    self.begin(shape, stream, None, now, Duration::ZERO);
                }
                Wake::Ask(place, number) => {
                    if self.is_there(place, number) && self.look(place) {
                        self.ask(place, now, Duration::ZERO);
                        self.drive(place, usize::MAX);
                    }
                }
                Wake::Read(place, number) => {
                    if self.is_there(place, number) {
                        let sip = self.random.between(SIP / 4, SIP);
                        self.drive(place, usize::try_from(sip).unwrap_or(0));
                        self.sip_later(place);
                    }
                }
            }
        }
    }

    fn is_there(&self, place: usize, number: u64) -> bool {
        self.places[place]
            .as_ref()
            .is_some_and(|connection| connection.number == number)
    }

    /// Whether a connection at rest is still open, just before it asks.
    fn look(&mut self, place: usize) -> bool {
        let Some(connection) = &mut self.places[place] else {
            return false;
        };
        if !connection.asked.is_empty() {
            return false;
        }
        match connection.drive(&mut self.buffer, usize::MAX, |_, _| {}) {
            State::Rest => true,
            state => {
                self.conclude(place, state);
                false
            }
        }
    }

    fn takes(&mut self, shape: Shape) -> Duration {
        Duration::from_millis(match shape {
            Shape::Waiting => self.random.between(50, 800),
            Shape::Blocking => self.random.between(5, 20),
            _ => 0,
        })
    }

    /// Connects and asks.
    fn begin(
        &mut self,
        shape: Shape,
        stream: usize,
        address: Option<usize>,
        due: Instant,
        takes: Duration,
    ) {
        if self.open >= self.load.most {
            self.ledger.shape(shape).unbegun += 1;
            if shape.keeps() {
                self.wake_in(REST, Wake::Open(stream));
            }
            return;
        }
        let count = self.load.addresses.len() as u64;
        let address = address
            .unwrap_or_else(|| usize::try_from(self.random.between(0, count - 1)).unwrap_or(0));
        let address = address % self.load.addresses.len();
        self.ledger.shape(shape).connections += 1;
        #[allow(clippy::cast_possible_truncation)]
        let window = (shape == Shape::Slow).then_some(SIP as usize);
        let connection = Connection::open(&self.load.addresses[address], shape, window);
        let mut connection = match connection {
            Ok(connection) => connection,
            Err((failure, detail)) => {
                self.ledger.shape(shape).begun += 1;
                return self.failed(shape, stream, address, failure, detail, None, 1);
            }
        };
        self.last_number += 1;
        (connection.number, connection.stream, connection.address) =
            (self.last_number, stream, address);
        if matches!(self.load.addresses[address], testkit::Address::Tcp(_)) {
            connection.round_trip = self.load.round_trip;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        // Edge-triggered and registered once: a connection is always driven until the kernel has no
        // more.
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        if let Err(error) = self
            .epoll
            .add(&connection.socket, EpollEvent::new(flags, place as u64))
        {
            self.free.push(place);
            return self.failed(
                shape,
                stream,
                address,
                Failure::Local,
                error.to_string(),
                None,
                0,
            );
        }
        self.places[place] = Some(connection);
        self.open += 1;
        self.ask(place, due, takes);
        self.drive(place, if shape == Shape::Slow { 0 } else { usize::MAX });
        if shape == Shape::Slow {
            self.sip_later(place);
        }
    }

    fn sip_later(&mut self, place: usize) {
        if let Some(number) = self.places[place]
            .as_ref()
            .map(|connection| connection.number)
        {
            let wait = Duration::from_millis(self.random.between(10, 80));
            self.wake_in(wait, Wake::Read(place, number));
        }
    }

    /// Writes the next request, or several.
    fn ask(&mut self, place: usize, due: Instant, takes: Duration) {
        let Some(connection) = &mut self.places[place] else {
            return;
        };
        let shape = connection.shape;
        connection.deadline = Instant::now() + self.load.timeout;
        connection.last = match shape {
            Shape::New | Shape::Burst => self.random.percent(50),
            Shape::Post | Shape::Slow | Shape::Waiting | Shape::Blocking => true,
            Shape::Kept | Shape::Thinking | Shape::Idling => self.random.percent(1),
            Shape::Pipelined => false,
        };
        let post = match shape {
            Shape::Post => true,
            Shape::Kept => self.load.offers.echo && self.random.percent(10),
            _ => false,
        };
        let close = if connection.last {
            "connection: close\r\n"
        } else {
            ""
        };
        for _ in 0..if shape == Shape::Pipelined { 4 } else { 1 } {
            self.last_id += 1;
            let id = self.last_id;
            let length = match shape {
                _ if post => POST,
                Shape::Slow => LARGE,
                _ => {
                    SMALL[usize::try_from(self.random.between(0, SMALL.len() as u64 - 1))
                        .unwrap_or(0)]
                }
            };
            let key = self.load.offers.keys.map_or(id, |keys| id % keys);
            let body = Pattern::new(key, length);
            let out = connection.out();
            let written = if post {
                let written = write!(
                    out,
                    "POST /echo HTTP/1.1\r\nhost: chaos\r\nx-chaos-request: {id}\r\n\
                     {close}content-length: {length}\r\n\r\n"
                );
                out.extend_from_slice(&body.bytes());
                written
            } else {
                let (way, ms) = match shape {
                    Shape::Waiting => ("wait", format!("?ms={}", takes.as_millis())),
                    Shape::Blocking => ("block", format!("?ms={}", takes.as_millis())),
                    _ => ("bytes", String::new()),
                };
                write!(
                    out,
                    "GET /{way}/{key}/{length}{ms} HTTP/1.1\r\nhost: chaos\r\nx-chaos-request: \
                     {id}\r\n{close}\r\n"
                )
            };
            written.expect("memory can be written to");
            connection.asked.push_back(Asked {
                id,
                body,
                due,
                takes,
            });
            self.ledger.shape(shape).begun += 1;
        }
    }

    /// Drives a connection as far as it goes.
    fn drive(&mut self, place: usize, limit: usize) {
        loop {
            // An event may be left over from a connection that ended in this round.
            let Some(connection) = &mut self.places[place] else {
                return;
            };
            let (ledger, live, late) = (&mut self.ledger, &self.live, self.load.late);
            let shape = connection.shape;
            let unsent = !connection.is_sent();
            let (answered, received) = (connection.answered, connection.received);
            let state = connection.drive(&mut self.buffer, limit, |asked, head| {
                let took = asked.due.elapsed();
                let tally = ledger.shape(shape);
                tally.verified += 1;
                tally.late += u64::from(took > late + asked.takes && shape != Shape::Slow);
                tally
                    .micros
                    .push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
                live.verified.fetch_add(1, Ordering::Relaxed);
                if !head.build.is_empty() {
                    match ledger.builds.get_mut(&head.build) {
                        Some(count) => *count += 1,
                        None => drop(ledger.builds.insert(head.build.clone(), 1)),
                    }
                }
                *ledger.pids.entry(head.pid).or_default() += 1;
            });
            if unsent
                && connection.is_sent()
                && connection.stream == usize::MAX
                && shape == Shape::Waiting
            {
                self.live.sent.fetch_add(1, Ordering::Relaxed);
            }
            // A slow client waits for the next bytes, not for the whole.
            if shape == Shape::Slow && connection.received > received {
                connection.deadline = Instant::now() + self.load.timeout;
            }
            let fresh = connection.answered > answered;
            if !matches!(state, State::Rest) {
                if fresh {
                    connection.deadline = Instant::now() + self.load.timeout;
                }
                return self.conclude(place, state);
            }
            if !shape.keeps() || self.quiet {
                // The client has what it wanted, and closes.
                return self.close(place);
            }
            if !fresh {
                return;
            }
            let think = match shape {
                Shape::Thinking => self.random.between(5, 250),
                Shape::Idling => self.random.between(1000, 8000),
                Shape::Pipelined => self.random.between(10, 50),
                Shape::Kept if self.random.percent(1) => self.random.between(50, 150),
                _ => 0,
            };
            if think > 0 {
                let number = connection.number;
                return self.wake_in(Duration::from_millis(think), Wake::Ask(place, number));
            }
            self.ask(place, Instant::now(), Duration::ZERO);
        }
    }

    /// Notes how a connection ended, if it did.
    fn conclude(&mut self, place: usize, state: State) {
        let Some(connection) = &mut self.places[place] else {
            return;
        };
        let (shape, stream, address) = (connection.shape, connection.stream, connection.address);
        if matches!(state, State::Waiting | State::Rest) {
            return;
        }
        self.ledger.shape(shape).withdrawn += connection.withdrawn;
        match state {
            State::Waiting | State::Rest | State::Over => {}
            State::EndedIdle { reset } => {
                let tally = self.ledger.shape(shape);
                tally.closed_idle += 1;
                tally.reset_idle += u64::from(reset);
            }
            State::Crossed => self.ledger.shape(shape).crossed += connection.asked.len() as u64,
            State::Failed(failure, detail) => {
                let (kill, requests) = (connection.kill, connection.asked.len() as u64);
                let requests = if failure.after_answer() { 0 } else { requests };
                let name = connection
                    .name()
                    .map_or_else(String::new, |name| format!(", from {name}"));
                let pid = match connection.pid {
                    0 => String::new(),
                    pid => format!(", last answered by {pid}"),
                };
                let detail = format!("{detail}{name}{pid}");
                self.close(place);
                return self.failed(shape, stream, address, failure, detail, kill, requests);
            }
        }
        self.close(place);
        if shape.keeps() {
            self.wake_in(Duration::ZERO, Wake::Open(stream));
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn failed(
        &mut self,
        shape: Shape,
        stream: usize,
        address: usize,
        failure: Failure,
        detail: String,
        kill: Option<usize>,
        requests: u64,
    ) {
        let at = self.began.elapsed();
        let count = if kill.is_some() {
            &self.live.allowed
        } else {
            &self.live.unexplained
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.ledger.failed(Incident {
            at,
            shape,
            address,
            failure,
            detail,
            kill,
            requests,
        });
        if shape.keeps() {
            self.wake_in(REST, Wake::Open(stream));
        }
    }

    fn close(&mut self, place: usize) {
        if self.places[place].take().is_some() {
            self.free.push(place);
            self.open -= 1;
        }
    }

    /// Gives up what has waited for too long.
    fn expire(&mut self) {
        let now = Instant::now();
        for place in 0..self.places.len() {
            let is_late = |engine: &Self| {
                engine.places[place]
                    .as_ref()
                    .is_some_and(|it| it.deadline <= now && it.waits())
            };
            if !is_late(self) {
                continue;
            }
            // We may be the one who is late: what has come by now counts.
            self.drive(place, usize::MAX);
            if is_late(self)
                && let Some(connection) = &self.places[place]
            {
                let (failure, detail) = connection.timed_out();
                self.conclude(place, State::Failed(failure, detail));
            }
        }
    }
}
