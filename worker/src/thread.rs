//! What a serving thread knows of its connections, and its sweep.
//!
//! One [`Thread`] per serving thread, used by it alone. It keeps the list of open connections, decides whether
//! there is room for one more, and looks over all of them now and then ("sweep"): timeouts, drain, the oldest
//! request for the scoreboard. One timer per thread does for ten thousand connections, and an idle thread wakes
//! once a heartbeat.
//!
//! **Room.** A thread accepts only what it can serve now, because what it has accepted dies with it and waits behind its
//! slow requests, while a sibling may be free:
//! * at most [`Class::connections`](prefork_protocol::settings::Class::connections) open ones; and
//! * at most [`WAITING`] whose first request has not begun. A connection counts as waiting until its handler starts, or
//!   for [`PATIENCE_MS`]: whoever connects and says nothing must not keep others out.
//!
//! A thread that serves one connection at a time does not count those which have been silent for
//! [`PATIENCE_MS`] (new ones and kept-alive ones), up to [`SILENT`] of them; should two wake up at the same time, their
//! handlers take turns. While others wait in the queue, its answers say `Connection: close`.

use crate::access::{Clock, Late, escaped_uri};
use crate::control::{self, Control};
use crate::link::{Link, Phase, Verdict, now_ms};
use prefork_protocol::scoreboard::Row;
use prefork_protocol::settings::WorkerSettings;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};

/// Connections accepted and not yet begun to be answered.
const WAITING: usize = 4;
/// How long a silent connection counts.
const PATIENCE_MS: u64 = 100;
/// Silent connections that a one-at-a-time thread keeps open.
const SILENT: usize = 256;
/// Notes that a thread keeps.
const SPARE: usize = 64;
/// How much of a slow request's target is told, in bytes.
const LONGEST_TARGET: usize = 500;
/// No request is in hand.
const NONE: u64 = u64::MAX;

/// A serving thread's own knowledge.
pub(crate) struct Thread {
    /// The worker's settings.
    pub(crate) settings: Arc<WorkerSettings>,
    /// One permit, in classes that run one handler at a time.
    pub(crate) gate: Option<Arc<Semaphore>>,
    /// Told whenever there may be room, or a connection is gone.
    pub(crate) changed: Notify,
    control: Arc<Control>,
    index: usize,
    links: RefCell<Vec<Option<Arc<Link>>>>,
    free: RefCell<Vec<usize>>,
    open: Cell<usize>,
    lingering: Cell<usize>,
    /// Waiting connections: address of the link, and since when.
    waiting: RefCell<Vec<(*const Link, u64)>>,
    /// When the handler of each request in hand began; [`NONE`] for free tickets, and when none runs.
    begun: RefCell<Vec<u64>>,
    /// The earliest of these, or earlier: [`handler`](Thread::handler) tells why.
    oldest: Cell<u64>,
    tickets: RefCell<Vec<usize>>,
    drained_at: Cell<Option<u64>>,
    queue_peek: RefCell<Option<Box<dyn Fn() -> bool>>>,
    clock: RefCell<Clock>,
    /// Notes that were used, and can be again.
    spare: RefCell<Vec<Notes>>,
}

/// What was written down of a request for the logs: the beginning of its line, and what a slow one was.
#[derive(Default)]
pub(crate) struct Notes {
    line: Vec<u8>,
    asked: Vec<u8>,
}

/// Whether a thread may accept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// One more.
    Yes,
    /// After so many milliseconds, unless something changes before.
    Later(u64),
    /// Not until something changes.
    No,
}

impl Thread {
    /// Who holds a [`Link`] while it is served: the list here, and its task.
    pub(crate) const HOLDERS: usize = 2;

    pub(crate) fn new(control: Arc<Control>, index: usize) -> Self {
        let settings = Arc::clone(&control.settings);
        let one = settings.class.connections <= 1;
        Self {
            gate: one.then(|| Arc::new(Semaphore::new(1))),
            settings,
            control,
            index,
            changed: Notify::new(),
            links: RefCell::default(),
            free: RefCell::default(),
            open: Cell::new(0),
            lingering: Cell::new(0),
            waiting: RefCell::default(),
            begun: RefCell::default(),
            oldest: Cell::new(NONE),
            tickets: RefCell::default(),
            drained_at: Cell::new(None),
            queue_peek: RefCell::new(None),
            clock: RefCell::default(),
            spare: RefCell::default(),
        }
    }

    /// Whether the worker drains.
    pub(crate) fn draining(&self) -> bool {
        self.control.draining.load(Relaxed)
    }

    /// The worker's phase, to be awaited.
    pub(crate) fn phase(&self) -> watch::Receiver<control::Phase> {
        self.control.phase.subscribe()
    }

    pub(crate) fn draining_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.control.draining)
    }

    /// Whether the drain has lasted so long that clients which always have another request on its way are cut.
    pub(crate) fn drain_is_old(&self) -> bool {
        self.drained_at
            .get()
            .is_some_and(|at| at + self.settings.drain_idle_ms <= now_ms())
    }

    /// Notes the drain's beginning for this thread.
    pub(crate) fn begin_drain(&self) {
        if self.drained_at.get().is_none() {
            self.drained_at.set(Some(now_ms()));
        }
    }

    /// How to look into the listeners' queues.
    pub(crate) fn set_queue_peek(&self, peek: Box<dyn Fn() -> bool>) {
        *self.queue_peek.borrow_mut() = Some(peek);
    }

    /// Whether somebody waits to be accepted.
    pub(crate) fn somebody_waits(&self) -> bool {
        self.queue_peek.borrow().as_ref().is_some_and(|peek| peek())
    }

    /// Whether there is room for one more connection.
    pub(crate) fn room(&self) -> Room {
        let now = now_ms();
        if self.gate.is_some() {
            return self.room_for_one(now);
        }
        if self.open.get() >= self.settings.class.connections as usize {
            return Room::No;
        }
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|(_, since)| since + PATIENCE_MS > now);
        match waiting.first() {
            Some((_, since)) if waiting.len() >= WAITING => Room::Later(since + PATIENCE_MS - now),
            _ => Room::Yes,
        }
    }

    fn room_for_one(&self, now: u64) -> Room {
        let mut silent = 0;
        let mut later = None;
        for link in self.links.borrow().iter().flatten() {
            match link.state().silent_since() {
                None => return Room::No,
                Some(since) if since + PATIENCE_MS <= now => silent += 1,
                Some(since) => later = later.max(Some(since + PATIENCE_MS - now)),
            }
        }
        match later {
            Some(wait) => Room::Later(wait),
            None if silent < SILENT => Room::Yes,
            None => Room::No,
        }
    }

    /// Whether every connection is gone, lingering ones too.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.get() == 0 && self.lingering.get() == 0
    }

    /// This thread's row of the scoreboard.
    fn row(&self) -> &Row {
        self.control.row(self.index)
    }

    /// Counts, except in a build that shows what counting costs.
    fn count(&self, what: impl FnOnce(&Row)) {
        if cfg!(not(feature = "uncounted")) {
            what(self.row());
        }
    }

    /// Counts the bytes that have gone through a connection since the last time.
    pub(crate) fn count_bytes(&self, link: &Link) {
        if cfg!(not(feature = "uncounted"))
            && let Some((received, sent)) = link.moved()
        {
            self.row().moved(received, sent);
        }
    }

    /// A request begins; what is returned ends it.
    pub(crate) fn request_begun(&self, link: &Arc<Link>, now_ms: u64) -> usize {
        self.count(|row| row.request_begun(now_ms));
        self.no_longer_waiting(link);
        self.tickets.borrow_mut().pop().unwrap_or_else(|| {
            let mut begun = self.begun.borrow_mut();
            begun.push(NONE);
            begun.len() - 1
        })
    }

    /// The handler of a request begins (at a time), or has ended: what remains of the request is up to its client.
    pub(crate) fn handler(&self, ticket: usize, began: Option<u64>) {
        let began = began.unwrap_or(NONE);
        let was = std::mem::replace(&mut self.begun.borrow_mut()[ticket], began);
        let oldest = self.oldest.get();
        if began < oldest {
            self.publish_oldest(began);
        } else if was == oldest && was != NONE && self.settings.request_timeout_ms > 0 {
            // Otherwise the next beat is early enough. But the supervisor kills a worker whose oldest handler is
            // overdue, and a thread that is held up by another handler does not beat.
            self.look_for_oldest();
        }
    }

    fn look_for_oldest(&self) {
        self.publish_oldest(self.begun.borrow().iter().copied().min().unwrap_or(NONE));
    }

    fn publish_oldest(&self, oldest: u64) {
        self.oldest.set(oldest);
        self.row()
            .set_oldest(if oldest == NONE { 0 } else { oldest });
    }

    /// A request has ended, after so many microseconds.
    pub(crate) fn request_ended(&self, ticket: usize, took_us: u64, failed: bool) {
        self.handler(ticket, None);
        self.count(|row| row.request_ended(took_us, failed));
        let mut tickets = self.tickets.borrow_mut();
        tickets.push(ticket);
        if self.begun.borrow().len() == tickets.len() {
            self.oldest.set(NONE);
        }
        drop(tickets);
        if self.gate.is_some() {
            self.changed.notify_one();
        }
    }

    /// Writes down what the logs need of a request; `None` when there are none.
    pub(crate) fn describe<B>(&self, link: &Link, request: &http::Request<B>) -> Option<Notes> {
        let (access, slow) = (&self.control.access, &self.control.slow);
        if access.is_none() && slow.is_none() {
            return None;
        }
        let mut notes = self.spare.borrow_mut().pop().unwrap_or_default();
        if let Some(access) = access {
            let (peer, port) = link.peer();
            access.begin(&mut notes.line, request, peer, *port);
        }
        if slow.is_some() {
            notes
                .asked
                .extend_from_slice(request.method().as_str().as_bytes());
            notes.asked.push(b' ');
            escaped_uri(&mut notes.asked, request.uri(), LONGEST_TARGET);
        }
        Some(notes)
    }

    /// A request that was written down has ended.
    pub(crate) fn tell(&self, link: &Link, mut notes: Notes, late: &Late) {
        if let Some(access) = &self.control.access {
            access.end(self.index, &notes.line, late, &self.clock);
        }
        if let Some(slow) = &self.control.slow
            && late.took_us >= slow.from_us
        {
            slow.tell(
                &notes.asked,
                late.status,
                late.took_us,
                late.body,
                &link.peer().0,
            );
        }
        notes.line.clear();
        notes.asked.clear();
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE {
            spare.push(notes);
        }
    }

    /// Hands on what was written down.
    pub(crate) fn flush_logs(&self) {
        if let Some(access) = &self.control.access {
            access.flush(self.index);
        }
        if let Some(slow) = &self.control.slow {
            slow.beat();
        }
    }

    fn no_longer_waiting(&self, link: &Arc<Link>) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.is_empty() {
            let address = Arc::as_ptr(link);
            let before = waiting.len();
            waiting.retain(|(other, _)| *other != address);
            if before >= WAITING && waiting.len() < before {
                self.changed.notify_one();
            }
        }
    }

    /// A sign of life, and the oldest handler for the scoreboard.
    pub(crate) fn beat(&self) {
        self.row().beat();
        self.look_for_oldest();
    }

    /// How long until the next sweep: never longer than a heartbeat, and short enough for the shortest timeout.
    pub(crate) fn period(&self) -> Duration {
        let settings = &self.settings;
        let heartbeat = settings.heartbeat_ms.max(10);
        if self.open.get() == 0 {
            return Duration::from_millis(heartbeat);
        }
        let drain = if self.drained_at.get().is_some() {
            settings.drain_idle_ms.max(1)
        } else {
            0
        };
        let shortest = [settings.header_timeout_ms, settings.keep_alive_ms, drain]
            .into_iter()
            .filter(|&ms| ms > 0)
            .min();
        let sweep = shortest.map_or(heartbeat, |ms| (ms / 8).max(10));
        Duration::from_millis(heartbeat.min(sweep))
    }

    /// Looks over all connections and tells those that are overdue.
    pub(crate) fn sweep(&self) {
        let now = now_ms();
        let settings = &self.settings;
        let drained_at = self.drained_at.get();
        for link in self.links.borrow().iter().flatten() {
            let mut state = link.state();
            let past = |since: u64, limit: u64| limit > 0 && since + limit <= now;
            let drained = |since: u64| {
                drained_at.is_some_and(|at| at.max(since) + settings.drain_idle_ms <= now)
            };
            if state.upgraded {
                state.order(Verdict::Look);
                drop(state);
                self.count_bytes(link);
            } else if state.h2 {
                match state.told {
                    None if drained_at.is_some() => state.order(Verdict::GoAway),
                    None if state.in_flight == 0 && past(state.since, settings.keep_alive_ms) => {
                        state.order(Verdict::GoAway);
                    }
                    Some(at)
                        if state.in_flight == 0
                            && past(at.max(state.since), settings.drain_idle_ms.max(1000)) =>
                    {
                        state.order(Verdict::Silent);
                    }
                    _ => (),
                }
            } else {
                match state.phase {
                    Phase::New
                        if past(state.since, settings.header_timeout_ms)
                            || drained(state.since) =>
                    {
                        state.order(Verdict::Silent);
                    }
                    Phase::Idle
                        if past(state.since, settings.keep_alive_ms) || drained(state.since) =>
                    {
                        state.order(Verdict::Silent);
                    }
                    Phase::Head if past(state.since, settings.header_timeout_ms) => {
                        state.order(Verdict::SlowHead);
                    }
                    _ => (),
                }
            }
        }
    }

    /// Waits until whoever took an upgraded connection over has let go of it.
    pub(crate) async fn wait_for_upgraded(&self, link: &Arc<Link>) {
        std::future::poll_fn(|cx| {
            let mut state = link.state();
            state.verdict = None;
            state.waker = Some(cx.waker().clone());
            drop(state);
            if Arc::strong_count(link) > Self::HOLDERS {
                std::task::Poll::Pending
            } else {
                std::task::Poll::Ready(())
            }
        })
        .await;
    }
}

/// A connection's place in its thread's list, given up when dropped.
pub(crate) struct Seated {
    thread: Rc<Thread>,
    place: usize,
    lingering: bool,
}

impl Seated {
    pub(crate) fn new(thread: &Rc<Thread>, link: &Arc<Link>) -> Self {
        let mut links = thread.links.borrow_mut();
        let place = thread.free.borrow_mut().pop().unwrap_or_else(|| {
            links.push(None);
            links.len() - 1
        });
        links[place] = Some(Arc::clone(link));
        thread.open.set(thread.open.get() + 1);
        thread.count(Row::connection_opened);
        thread
            .waiting
            .borrow_mut()
            .push((Arc::as_ptr(link), now_ms()));
        Self {
            thread: Rc::clone(thread),
            place,
            lingering: false,
        }
    }

    /// The connection is not in hand any more, but not closed yet either.
    pub(crate) fn leave(mut self) -> Self {
        self.vacate();
        self.lingering = true;
        self.thread.lingering.set(self.thread.lingering.get() + 1);
        self
    }

    fn vacate(&self) {
        let thread = &self.thread;
        if let Some(link) = thread.links.borrow_mut()[self.place].take() {
            thread.no_longer_waiting(&link);
            thread.count_bytes(&link);
        }
        thread.free.borrow_mut().push(self.place);
        thread.open.set(thread.open.get() - 1);
        thread.changed.notify_one();
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        if self.lingering {
            self.thread.lingering.set(self.thread.lingering.get() - 1);
            self.thread.changed.notify_one();
        } else {
            self.vacate();
        }
        self.thread.count(Row::connection_closed);
    }
}
