//! What the child knows: the server's status, requested when a client needs it, and events as they
//! happen.
//!
//! At most one request is in progress, and its answer is fresh for a while: clients that come
//! meanwhile get the same. So the supervisor renders at most four snapshots a second, however many
//! scrapers there are.

use super::metrics::{Format, render};
use crate::api::answer::{Answer, Json};
use crate::api::request::Request;
use crate::api::status::Status;
use bytes::Bytes;
use std::cell::{OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

/// How long a snapshot is fresh.
const FRESH: Duration = Duration::from_millis(250);
/// How long a client waits for one.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// The most clients that wait for one.
const MAX_WAITING: usize = 512;
/// Events kept for clients that come later, and the most that a slow client may be behind.
const MAX_EVENTS: u16 = 200;
const MAX_BEHIND: usize = 256;

/// The status at one time, and what is rendered of it: once, however many clients ask.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) status: Status,
    prometheus: OnceCell<Bytes>,
    open_metrics: OnceCell<Bytes>,
    /// The status as the supervisor has written it, in one line.
    json: Bytes,
}

impl Snapshot {
    /// Reads the status; `None` when it is not one.
    fn read(json: &Json<Status>) -> Option<Self> {
        Some(Self {
            status: json.read().ok()?,
            prometheus: OnceCell::new(),
            open_metrics: OnceCell::new(),
            json: (json.text().to_owned() + "\n").into(),
        })
    }

    /// Returns it as metrics.
    pub(crate) fn metrics(&self, format: Format) -> Bytes {
        let page = match format {
            Format::Prometheus => &self.prometheus,
            Format::OpenMetrics => &self.open_metrics,
        };
        page.get_or_init(|| render(&self.status, format).into())
            .clone()
    }

    /// Returns it as JSON, in one line.
    pub(crate) fn json(&self) -> Bytes {
        self.json.clone()
    }
}

/// An event in JSON, with its number.
#[derive(Debug, Clone)]
pub(crate) struct NumberedEvent {
    pub(crate) seq: u64,
    pub(crate) json: Rc<str>,
}

/// The child's source of status and events.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    asks: mpsc::Sender<oneshot::Sender<Rc<Snapshot>>>,
    events: Rc<RefCell<Recent>>,
}

#[derive(Debug)]
struct Recent {
    events: VecDeque<NumberedEvent>,
    /// Numbers only: events themselves belong to one thread.
    news: broadcast::Sender<u64>,
}

/// Becomes true when the supervisor has closed the connections.
#[derive(Debug, Clone)]
pub(crate) struct Gone(watch::Receiver<bool>);

impl Gone {
    /// Waits for it.
    pub(crate) async fn wait(mut self) {
        let _ = self.0.wait_for(|gone| *gone).await;
    }
}

/// Events as they happen, for one client.
#[derive(Debug)]
pub(crate) struct Following {
    events: Rc<RefCell<Recent>>,
    news: broadcast::Receiver<u64>,
    last: u64,
}

impl Source {
    /// Starts to use the two connections.
    pub(crate) fn open(status: UnixStream, events: UnixStream) -> (Self, Gone) {
        let (asks, mut asked) = mpsc::channel(MAX_WAITING);
        let (gone, is_gone) = watch::channel(false);
        let gone = Rc::new(gone);
        let recent = Rc::new(RefCell::new(Recent {
            events: VecDeque::new(),
            news: broadcast::channel(MAX_BEHIND).0,
        }));
        let end = Rc::clone(&gone);
        tokio::task::spawn_local(async move {
            let last = serve_status(status, &mut asked).await;
            let _ = end.send(true);
            // Clients that are being served get the last status: an upgrade may take a while.
            while let Some(asks) = asked.recv().await {
                if let Some(snapshot) = &last {
                    let _ = asks.send(Rc::clone(snapshot));
                }
            }
        });
        let events_recent = Rc::clone(&recent);
        tokio::task::spawn_local(async move {
            receive_events(events, events_recent).await;
            let _ = gone.send(true);
        });
        (
            Self {
                asks,
                events: recent,
            },
            Gone(is_gone),
        )
    }

    /// Returns the status; `None` when the supervisor does not answer.
    pub(crate) async fn status(&self) -> Option<Rc<Snapshot>> {
        let (answer, snapshot) = oneshot::channel();
        self.asks.try_send(answer).ok()?;
        tokio::time::timeout(STATUS_TIMEOUT, snapshot)
            .await
            .ok()?
            .ok()
    }

    /// Follows the events after number `since`.
    pub(crate) fn follow(&self, since: u64) -> Following {
        Following {
            events: Rc::clone(&self.events),
            news: self.events.borrow().news.subscribe(),
            last: since,
        }
    }
}

impl Following {
    /// Returns the next events, as many as there are; `None` when too many were missed, or there
    /// will be no more.
    pub(crate) async fn next(&mut self) -> Option<Vec<NumberedEvent>> {
        loop {
            let new: Vec<NumberedEvent> = self
                .events
                .borrow()
                .events
                .iter()
                .filter(|event| event.seq > self.last)
                .cloned()
                .collect();
            if let Some(newest) = new.last() {
                self.last = newest.seq;
                return Some(new);
            }
            self.news.recv().await.ok()?;
        }
    }
}

/// Serves requests for the status until the connection ends; returns the last snapshot.
async fn serve_status(
    stream: UnixStream,
    asked: &mut mpsc::Receiver<oneshot::Sender<Rc<Snapshot>>>,
) -> Option<Rc<Snapshot>> {
    let mut stream = BufReader::new(stream);
    let mut last: Option<(Instant, Rc<Snapshot>)> = None;
    loop {
        let asks = tokio::select! {
            asks = asked.recv() => asks,
            // No request is open: input can only be the end.
            _ = stream.fill_buf() => None,
        };
        let Some(asks) = asks else { break };
        let is_fresh = last
            .as_ref()
            .is_some_and(|(made, _)| made.elapsed() < FRESH);
        let goes_on = is_fresh || {
            let new = ask(&mut stream).await;
            let goes_on = new.is_some();
            last = new
                .map(|snapshot| (Instant::now(), Rc::new(snapshot)))
                .or(last);
            goes_on
        };
        if let Some((_, snapshot)) = &last {
            let _ = asks.send(Rc::clone(snapshot));
            while let Ok(asks) = asked.try_recv() {
                let _ = asks.send(Rc::clone(snapshot));
            }
        }
        if !goes_on {
            break;
        }
    }
    last.map(|(_, snapshot)| snapshot)
}

/// Requests the status from the supervisor; `None` when it has closed the connection.
async fn ask(stream: &mut BufReader<UnixStream>) -> Option<Snapshot> {
    stream
        .get_mut()
        .write_all(&Request::Status {}.line())
        .await
        .ok()?;
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let answer = Answer::read(line.as_bytes()).ok()?;
    Snapshot::read(&answer.status?)
}

/// Receives events, and wakes the clients that follow, until the connection ends.
async fn receive_events(mut stream: UnixStream, recent: Rc<RefCell<Recent>>) {
    let follow = Request::Events {
        follow: true,
        since: None,
        recent: Some(MAX_EVENTS.into()),
    };
    if stream.write_all(&follow.line()).await.is_err() {
        return;
    }
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let Some(event) = event_in(&line) else {
            continue;
        };
        let mut recent = recent.borrow_mut();
        let seq = event.seq;
        if recent.events.len() >= usize::from(MAX_EVENTS) {
            recent.events.pop_front();
        }
        recent.events.push_back(event);
        // It fails when no client follows.
        let _ = recent.news.send(seq);
    }
}

fn event_in(line: &str) -> Option<NumberedEvent> {
    let answer = Answer::read(line.as_bytes()).ok()?;
    let json = answer.event?;
    Some(NumberedEvent {
        seq: json.read().ok()?.seq,
        json: json.text().into(),
    })
}
