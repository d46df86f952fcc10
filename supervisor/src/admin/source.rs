//! What the child is told: the server's status, when somebody asks for it, and events, as they happen.
//!
//! At most one request is under way, and what it gives is good for a while: whoever asks meanwhile gets the same. So the
//! supervisor makes four pictures a second at most, however many scrapers there are.

use super::metrics::{Format, render};
use crate::control::Request;
use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;
use std::cell::{OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

/// How long a picture is good for.
const FRESH: Duration = Duration::from_millis(250);
/// How long whoever asks waits for one.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many wait for one at most.
const MOST_WAITING: usize = 512;
/// How many events are kept for whoever comes late, and how many may wait for one that is slow.
const KEPT: usize = 200;
const BEHIND: usize = 256;

/// The status at one time, and what was made of it for whoever has asked. It is made once, however many ask.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) status: Value,
    prometheus: OnceCell<Bytes>,
    open_metrics: OnceCell<Bytes>,
    json: OnceCell<Bytes>,
}

impl Picture {
    fn new(status: Value) -> Self {
        let (prometheus, open_metrics, json) = Default::default();
        Self {
            status,
            prometheus,
            open_metrics,
            json,
        }
    }

    /// As metrics.
    pub(crate) fn metrics(&self, format: Format) -> Bytes {
        let page = match format {
            Format::Prometheus => &self.prometheus,
            Format::OpenMetrics => &self.open_metrics,
        };
        page.get_or_init(|| render(&self.status, format).into())
            .clone()
    }

    /// As JSON, in one line.
    pub(crate) fn json(&self) -> Bytes {
        self.json
            .get_or_init(|| (self.status.to_string() + "\n").into())
            .clone()
    }
}

/// An event in JSON, with its number.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) seq: u64,
    pub(crate) json: Rc<str>,
}

/// Where the child knows everything from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    asks: mpsc::Sender<oneshot::Sender<Rc<Picture>>>,
    events: Rc<RefCell<Recent>>,
}

#[derive(Debug)]
struct Recent {
    kept: VecDeque<Told>,
    /// Numbers only: events themselves belong to one thread.
    news: broadcast::Sender<u64>,
}

/// Becomes true when the supervisor has let go.
#[derive(Debug, Clone)]
pub(crate) struct Gone(watch::Receiver<bool>);

impl Gone {
    /// Waits for it.
    pub(crate) async fn wait(mut self) {
        let _ = self.0.wait_for(|gone| *gone).await;
    }
}

/// Events as they happen, for one listener.
pub(crate) struct Following {
    events: Rc<RefCell<Recent>>,
    news: broadcast::Receiver<u64>,
    last: u64,
}

impl Source {
    /// Begins to listen on the two connections.
    pub(crate) fn open(status: UnixStream, events: UnixStream) -> (Self, Gone) {
        let (asks, mut asked) = mpsc::channel(MOST_WAITING);
        let (gone, is_gone) = watch::channel(false);
        let gone = Rc::new(gone);
        let recent = Rc::new(RefCell::new(Recent {
            kept: VecDeque::new(),
            news: broadcast::channel(BEHIND).0,
        }));
        let end = Rc::clone(&gone);
        tokio::task::spawn_local(async move {
            let last = paint(status, &mut asked).await;
            let _ = end.send(true);
            // Who is in hand is told how it was: an upgrade may go on for a while.
            while let Some(asks) = asked.recv().await {
                if let Some(picture) = &last {
                    let _ = asks.send(Rc::clone(picture));
                }
            }
        });
        let told = Rc::clone(&recent);
        tokio::task::spawn_local(async move {
            listen(events, told).await;
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

    /// How the server is; `None` when it does not answer.
    pub(crate) async fn status(&self) -> Option<Rc<Picture>> {
        let (answer, picture) = oneshot::channel();
        self.asks.try_send(answer).ok()?;
        tokio::time::timeout(PATIENCE, picture).await.ok()?.ok()
    }

    /// The last events after number `since`, and all that follow.
    pub(crate) fn follow(&self, since: u64) -> Following {
        Following {
            events: Rc::clone(&self.events),
            news: self.events.borrow().news.subscribe(),
            last: since,
        }
    }
}

impl Following {
    /// The next events, as many as there are; `None` when too many were missed, or there will be no more.
    pub(crate) async fn next(&mut self) -> Option<Vec<Told>> {
        loop {
            let new: Vec<Told> = self
                .events
                .borrow()
                .kept
                .iter()
                .filter(|told| told.seq > self.last)
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

/// Answers whoever asks for the status, until the connection ends; returns the last picture.
async fn paint(
    stream: UnixStream,
    asked: &mut mpsc::Receiver<oneshot::Sender<Rc<Picture>>>,
) -> Option<Rc<Picture>> {
    let mut stream = BufReader::new(stream);
    let mut last: Option<(Instant, Rc<Picture>)> = None;
    loop {
        let asks = tokio::select! {
            asks = asked.recv() => asks,
            // Nobody has asked: that can only be the end.
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
                .map(|picture| (Instant::now(), Rc::new(picture)))
                .or(last);
            goes_on
        };
        if let Some((_, picture)) = &last {
            let _ = asks.send(Rc::clone(picture));
            while let Ok(asks) = asked.try_recv() {
                let _ = asks.send(Rc::clone(picture));
            }
        }
        if !goes_on {
            break;
        }
    }
    last.map(|(_, picture)| picture)
}

/// Asks the supervisor; `None` when it has let go.
async fn ask(stream: &mut BufReader<UnixStream>) -> Option<Picture> {
    stream
        .get_mut()
        .write_all(&request(&Request::Status))
        .await
        .ok()?;
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    status_in(&line).map(Picture::new)
}

fn status_in(line: &str) -> Option<Value> {
    let mut answer: Value = serde_json::from_str(line).ok()?;
    answer.get_mut("status").map(Value::take)
}

/// Keeps events, and tells that there are new ones, until the connection ends.
async fn listen(mut stream: UnixStream, recent: Rc<RefCell<Recent>>) {
    let follow = Request::Events {
        follow: true,
        since: None,
        recent: Some(KEPT as u32),
    };
    if stream.write_all(&request(&follow)).await.is_err() {
        return;
    }
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let Some(told) = event_in(&line) else {
            continue;
        };
        let mut recent = recent.borrow_mut();
        let seq = told.seq;
        if recent.kept.len() >= KEPT {
            recent.kept.pop_front();
        }
        recent.kept.push_back(told);
        // Nobody may be listening.
        let _ = recent.news.send(seq);
    }
}

fn event_in(line: &str) -> Option<Told> {
    #[derive(serde::Deserialize)]
    struct Line<'a> {
        #[serde(borrow)]
        event: &'a RawValue,
    }
    #[derive(serde::Deserialize)]
    struct Number {
        seq: u64,
    }
    let Line { event } = serde_json::from_str(line).ok()?;
    let Number { seq } = serde_json::from_str(event.get()).ok()?;
    Some(Told {
        seq,
        json: event.get().into(),
    })
}

fn request(request: &Request) -> Vec<u8> {
    let mut line = serde_json::to_vec(request).unwrap_or_default();
    line.push(b'\n');
    line
}
