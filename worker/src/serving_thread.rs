//! The connections of a serving thread: their list, the thread's capacity, and its sweep.
//!
//! One [`ServingThread`] per serving thread, used by it alone. It keeps the list of open
//! connections, decides whether there is capacity for one more, and checks all of them periodically
//! ("sweep"): timeouts, drain, the oldest request for the scoreboard. One timer per thread suffices
//! for ten thousand connections, and an idle thread wakes once a heartbeat.
//!
//! **Capacity.** A thread accepts only what it can serve now: what it has accepted dies with it and
//! waits behind its slow requests, while a sibling may be idle. It has
//! * at most [`Class::connections`](prefork_protocol::settings::Class::connections) open
//!   connections; and
//! * at most [`MAX_UNSTARTED`] whose first request has not begun. A connection counts as unstarted
//!   until its handler starts, or for [`SILENCE_GRACE_MS`]: a client that connects and stays silent
//!   must not keep others out.
//!   for [`SILENCE_GRACE_MS`]: a silent client must not keep others out.
//!
//! A thread that serves one connection at a time does not count those that have been silent for
//! [`SILENCE_GRACE_MS`] (new ones and kept-alive ones), up to [`MAX_SILENT`] of them; if two become
//! active at the same time, their handlers take turns. While others wait in the queue, its
//! responses say `Connection: close`.

use crate::access_log::{ClockText, Completion, escaped_uri};
use crate::clock::now_ms;
use crate::connection::{Connection, ConnectionPhase, SweepAction};
use crate::control::{self, Control};
use prefork_protocol::scoreboard::Row;
use prefork_protocol::settings::WorkerSettings;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};

/// The most connections that are accepted and not yet being answered.
const MAX_UNSTARTED: usize = 4;
/// How long a silent connection counts.
const SILENCE_GRACE_MS: u64 = 100;
/// The most silent connections that a one-at-a-time thread keeps open.
const MAX_SILENT: usize = 256;
/// The most unused log records that a thread keeps.
const MAX_SPARE_RECORDS: usize = 64;
/// How much of a slow request's target is logged, in bytes.
const MAX_TARGET: usize = 500;
/// The start of a handler that does not run.
const NO_REQUEST: u64 = u64::MAX;

/// A serving thread's own state.
pub(crate) struct ServingThread {
    /// The worker's settings.
    pub(crate) settings: Arc<WorkerSettings>,
    /// One permit, in classes that run one handler at a time.
    pub(crate) handler_permits: Option<Arc<Semaphore>>,
    /// Notified when there may be capacity, or a connection is gone.
    pub(crate) changed: Notify,
    control: Arc<Control>,
    index: usize,
    connections: RefCell<Vec<Option<Arc<Connection>>>>,
    free: RefCell<Vec<usize>>,
    open: Cell<usize>,
    lingering: Cell<usize>,
    /// Waiting connections: address of the connection, and since when.
    unstarted: RefCell<Vec<(*const Connection, u64)>>,
    /// When the handler of each active request began; [`NO_REQUEST`] for free tickets, and when
    /// none runs.
    handler_starts: RefCell<Vec<u64>>,
    /// The earliest of these, or earlier: see
    /// [`set_handler_start`](ServingThread::set_handler_start).
    oldest: Cell<u64>,
    tickets: RefCell<Vec<usize>>,
    drained_at: Cell<Option<u64>>,
    queue_probe: RefCell<Option<Box<dyn Fn() -> bool>>>,
    clock: RefCell<ClockText>,
    /// LogRecord that were used, and can be again.
    spare: RefCell<Vec<LogRecord>>,
}

/// What was written down of a request for the logs: the beginning of its line, and what a slow one
/// was.
#[derive(Default)]
pub(crate) struct LogRecord {
    line: Vec<u8>,
    asked: Vec<u8>,
}

/// Whether a thread may accept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Capacity {
    /// For one more connection.
    Available,
    /// In this many milliseconds, unless something changes before.
    AvailableIn(u64),
    /// None until something changes.
    Full,
}

impl ServingThread {
    /// The owners of a [`Connection`] while it is served: the list here, and its task.
    pub(crate) const HOLDERS: usize = 2;

    pub(crate) fn new(control: Arc<Control>, index: usize) -> Self {
        let settings = Arc::clone(&control.settings);
        let one = settings.class.connections <= 1;
        Self {
            handler_permits: one.then(|| Arc::new(Semaphore::new(1))),
            settings,
            control,
            index,
            changed: Notify::new(),
            connections: RefCell::default(),
            free: RefCell::default(),
            open: Cell::new(0),
            lingering: Cell::new(0),
            unstarted: RefCell::default(),
            handler_starts: RefCell::default(),
            oldest: Cell::new(NO_REQUEST),
            tickets: RefCell::default(),
            drained_at: Cell::new(None),
            queue_probe: RefCell::new(None),
            clock: RefCell::default(),
            spare: RefCell::default(),
        }
    }

    /// Returns whether the worker drains.
    pub(crate) fn draining(&self) -> bool {
        self.control.draining.load(Relaxed)
    }

    /// The worker's phase, to be awaited.
    pub(crate) fn phase(&self) -> watch::Receiver<control::WorkerPhase> {
        self.control.phase.subscribe()
    }

    pub(crate) fn draining_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.control.draining)
    }

    /// Returns whether the drain has lasted so long that clients that always have another request
    /// on its way are cut off.
    pub(crate) fn drain_idle_elapsed(&self) -> bool {
        self.drained_at
            .get()
            .is_some_and(|at| at + self.settings.drain_idle_ms <= now_ms())
    }

    /// LogRecord the drain's beginning for this thread.
    pub(crate) fn begin_drain(&self) {
        if self.drained_at.get().is_none() {
            self.drained_at.set(Some(now_ms()));
        }
    }

    /// Sets the check for connections that wait in the listeners' queues.
    pub(crate) fn set_queue_probe(&self, peek: Box<dyn Fn() -> bool>) {
        *self.queue_probe.borrow_mut() = Some(peek);
    }

    /// Returns whether a connection waits to be accepted.
    pub(crate) fn has_waiting(&self) -> bool {
        self.queue_probe
            .borrow()
            .as_ref()
            .is_some_and(|peek| peek())
    }

    /// Returns whether there is capacity for one more connection.
    pub(crate) fn capacity(&self) -> Capacity {
        let now = now_ms();
        if self.handler_permits.is_some() {
            return self.capacity_for_one(now);
        }
        if self.open.get() >= self.settings.class.connections as usize {
            return Capacity::Full;
        }
        let mut unstarted = self.unstarted.borrow_mut();
        unstarted.retain(|(_, since)| since + SILENCE_GRACE_MS > now);
        match unstarted.first() {
            Some((_, since)) if unstarted.len() >= MAX_UNSTARTED => {
                Capacity::AvailableIn(since + SILENCE_GRACE_MS - now)
            }
            _ => Capacity::Available,
        }
    }

    fn capacity_for_one(&self, now: u64) -> Capacity {
        let mut silent = 0;
        let mut later = None;
        for connection in self.connections.borrow().iter().flatten() {
            match connection.state().silent_since() {
                None => return Capacity::Full,
                Some(since) if since + SILENCE_GRACE_MS <= now => silent += 1,
                Some(since) => later = later.max(Some(since + SILENCE_GRACE_MS - now)),
            }
        }
        match later {
            Some(wait) => Capacity::AvailableIn(wait),
            None if silent < MAX_SILENT => Capacity::Available,
            None => Capacity::Full,
        }
    }

    /// Returns whether every connection is gone, lingering ones too.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.get() == 0 && self.lingering.get() == 0
    }

    /// This thread's row of the scoreboard.
    fn row(&self) -> &Row {
        self.control.row(self.index)
    }

    /// Counts, except in a build that measures what counting costs.
    fn count(&self, what: impl FnOnce(&Row)) {
        if cfg!(not(feature = "uncounted")) {
            what(self.row());
        }
    }

    /// Counts the bytes that a connection has transferred since the last call.
    pub(crate) fn count_bytes(&self, connection: &Connection) {
        if cfg!(not(feature = "uncounted"))
            && let Some((received, sent)) = connection.take_byte_counts()
        {
            self.row().add_bytes(received, sent);
        }
    }

    /// Begins a request, and returns the ticket that ends it.
    pub(crate) fn request_begun(&self, connection: &Arc<Connection>, now_ms: u64) -> usize {
        self.count(|row| row.request_begun(now_ms));
        self.mark_started(connection);
        self.tickets.borrow_mut().pop().unwrap_or_else(|| {
            let mut handler_starts = self.handler_starts.borrow_mut();
            handler_starts.push(NO_REQUEST);
            handler_starts.len() - 1
        })
    }

    /// Sets when the handler of a request began, or that it has ended: what remains of the request
    /// is up to its client.
    pub(crate) fn set_handler_start(&self, ticket: usize, began: Option<u64>) {
        let began = began.unwrap_or(NO_REQUEST);
        let was = std::mem::replace(&mut self.handler_starts.borrow_mut()[ticket], began);
        let oldest = self.oldest.get();
        if began < oldest {
            self.publish_oldest(began);
        } else if was == oldest && was != NO_REQUEST && self.settings.request_timeout_ms > 0 {
            // Otherwise the next heartbeat is early enough. But the supervisor kills a worker whose
            // oldest handler is overdue, and a thread that is held up by another handler does not
            // beat.
            self.refresh_oldest();
        }
    }

    fn refresh_oldest(&self) {
        self.publish_oldest(
            self.handler_starts
                .borrow()
                .iter()
                .copied()
                .min()
                .unwrap_or(NO_REQUEST),
        );
    }

    fn publish_oldest(&self, oldest: u64) {
        self.oldest.set(oldest);
        self.row()
            .set_oldest(if oldest == NO_REQUEST { 0 } else { oldest });
    }

    /// Ends a request that took this many microseconds.
    pub(crate) fn request_ended(&self, ticket: usize, took_us: u64, failed: bool) {
        self.set_handler_start(ticket, None);
        self.count(|row| row.request_ended(took_us, failed));
        let mut tickets = self.tickets.borrow_mut();
        tickets.push(ticket);
        if self.handler_starts.borrow().len() == tickets.len() {
            self.oldest.set(NO_REQUEST);
        }
        drop(tickets);
        if self.handler_permits.is_some() {
            self.changed.notify_one();
        }
    }

    /// Records what the logs need of a request; `None` when there are no logs.
    pub(crate) fn start_log_record<B>(
        &self,
        connection: &Connection,
        request: &http::Request<B>,
    ) -> Option<LogRecord> {
        let (access, slow) = (&self.control.access, &self.control.slow);
        if access.is_none() && slow.is_none() {
            return None;
        }
        let mut record = self.spare.borrow_mut().pop().unwrap_or_default();
        if let Some(access) = access {
            let (peer, port) = connection.peer();
            access.begin(&mut record.line, request, peer, *port);
        }
        if slow.is_some() {
            record
                .asked
                .extend_from_slice(request.method().as_str().as_bytes());
            record.asked.push(b' ');
            escaped_uri(&mut record.asked, request.uri(), MAX_TARGET);
        }
        Some(record)
    }

    /// Logs a request that has ended.
    pub(crate) fn log_request(
        &self,
        connection: &Connection,
        mut record: LogRecord,
        completion: &Completion,
    ) {
        if let Some(access) = &self.control.access {
            access.end(self.index, &record.line, completion, &self.clock);
        }
        if let Some(slow) = &self.control.slow
            && completion.took_us >= slow.from_us
        {
            slow.report(
                &record.asked,
                completion.status,
                completion.took_us,
                completion.body,
                &connection.peer().0,
            );
        }
        record.line.clear();
        record.asked.clear();
        let mut spare = self.spare.borrow_mut();
        if spare.len() < MAX_SPARE_RECORDS {
            spare.push(record);
        }
    }

    /// Passes buffered log lines on.
    pub(crate) fn flush_logs(&self) {
        if let Some(access) = &self.control.access {
            access.flush(self.index);
        }
        if let Some(slow) = &self.control.slow {
            slow.report_suppressed();
        }
    }

    fn mark_started(&self, connection: &Arc<Connection>) {
        let mut unstarted = self.unstarted.borrow_mut();
        if !unstarted.is_empty() {
            let address = Arc::as_ptr(connection);
            let before = unstarted.len();
            unstarted.retain(|(other, _)| *other != address);
            if before >= MAX_UNSTARTED && unstarted.len() < before {
                self.changed.notify_one();
            }
        }
    }

    /// Beats, and publishes the oldest handler on the scoreboard.
    pub(crate) fn beat(&self) {
        self.row().beat();
        self.refresh_oldest();
    }

    /// Returns how long until the next sweep: never longer than a heartbeat, and short enough for
    /// the shortest timeout.
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

    /// Checks all connections, and requests an action of those that are overdue.
    pub(crate) fn sweep(&self) {
        let now = now_ms();
        let settings = &self.settings;
        let drained_at = self.drained_at.get();
        for connection in self.connections.borrow().iter().flatten() {
            let mut state = connection.state();
            let past = |since: u64, limit: u64| limit > 0 && since + limit <= now;
            let drained = |since: u64| {
                drained_at.is_some_and(|at| at.max(since) + settings.drain_idle_ms <= now)
            };
            if state.upgraded {
                state.request_action(SweepAction::CheckUpgraded);
                drop(state);
                self.count_bytes(connection);
            } else if state.h2 {
                match state.goaway_sent_at {
                    None if drained_at.is_some() => state.request_action(SweepAction::GoAway),
                    None if state.in_flight == 0 && past(state.since, settings.keep_alive_ms) => {
                        state.request_action(SweepAction::GoAway);
                    }
                    Some(at)
                        if state.in_flight == 0
                            && past(at.max(state.since), settings.drain_idle_ms.max(1000)) =>
                    {
                        state.request_action(SweepAction::CloseIdle);
                    }
                    _ => (),
                }
            } else {
                match state.phase {
                    ConnectionPhase::New
                        if past(state.since, settings.header_timeout_ms)
                            || drained(state.since) =>
                    {
                        state.request_action(SweepAction::CloseIdle);
                    }
                    ConnectionPhase::Idle
                        if past(state.since, settings.keep_alive_ms) || drained(state.since) =>
                    {
                        state.request_action(SweepAction::CloseIdle);
                    }
                    ConnectionPhase::Head if past(state.since, settings.header_timeout_ms) => {
                        state.request_action(SweepAction::TimeOutHead);
                    }
                    _ => (),
                }
            }
        }
    }

    /// Waits until the handler that took an upgraded connection over has dropped it.
    pub(crate) async fn wait_for_upgraded(&self, connection: &Arc<Connection>) {
        std::future::poll_fn(|cx| {
            let mut state = connection.state();
            state.sweep_action = None;
            state.waker = Some(cx.waker().clone());
            drop(state);
            if Arc::strong_count(connection) > Self::HOLDERS {
                std::task::Poll::Pending
            } else {
                std::task::Poll::Ready(())
            }
        })
        .await;
    }
}

/// A connection's entry in its thread's list, removed on drop.
pub(crate) struct ConnectionGuard {
    thread: Rc<ServingThread>,
    index: usize,
    lingering: bool,
}

impl ConnectionGuard {
    pub(crate) fn new(thread: &Rc<ServingThread>, connection: &Arc<Connection>) -> Self {
        let mut connections = thread.connections.borrow_mut();
        let index = thread.free.borrow_mut().pop().unwrap_or_else(|| {
            connections.push(None);
            connections.len() - 1
        });
        connections[index] = Some(Arc::clone(connection));
        thread.open.set(thread.open.get() + 1);
        thread.count(Row::connection_opened);
        thread
            .unstarted
            .borrow_mut()
            .push((Arc::as_ptr(connection), now_ms()));
        Self {
            thread: Rc::clone(thread),
            index,
            lingering: false,
        }
    }

    /// Ends the connection as an active one, although it is not closed yet.
    pub(crate) fn linger(mut self) -> Self {
        self.release();
        self.lingering = true;
        self.thread.lingering.set(self.thread.lingering.get() + 1);
        self
    }

    fn release(&self) {
        let thread = &self.thread;
        if let Some(connection) = thread.connections.borrow_mut()[self.index].take() {
            thread.mark_started(&connection);
            thread.count_bytes(&connection);
        }
        thread.free.borrow_mut().push(self.index);
        thread.open.set(thread.open.get() - 1);
        thread.changed.notify_one();
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if self.lingering {
            self.thread.lingering.set(self.thread.lingering.get() - 1);
            self.thread.changed.notify_one();
        } else {
            self.release();
        }
        self.thread.count(Row::connection_closed);
    }
}
