//! Load that classifies every failure.
//!
//! A [`Plan`] tells what to do; [`run`] does it in this thread with one epoll instance, [`start`]
//! in another one. Every request that was begun ends in exactly one class: answered, or one
//! [`Failure`]. Nothing is retried.
//!
//! Three shapes of load:
//! * [`Plan::rate`]: new connections on a schedule, whatever the server does. Latency counts from
//!   the moment a connection was *due*, so that a server that stalls cannot hide behind a client
//!   that waits for it.
//! * [`Plan::kept_alive`]: clients that keep their connections and ask again without think time. A
//!   server that closes such a connection without having announced it loses a request; one that
//!   announces it does not.
//! * [`Plan::fresh`]: clients that connect again for every request.

mod connection;
mod engine;
mod report;
#[cfg(test)]
mod tests;

pub use report::{Failure, Latency, Report};

use crate::Address;
use crate::wait::wait_until;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// When requests are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Open loop: this many new connections a second, one request on each.
    Rate(f64),
    /// Closed loop: this many clients without think time, which keep their connections.
    KeptAlive(usize),
    /// Closed loop: this many clients without think time, each with a new connection for each
    /// request.
    Fresh(usize),
}

/// What is said on a connection.
#[derive(Debug, Clone, PartialEq)]
pub enum Talk {
    /// HTTP/1.1: `GET path`, and the body to expect if it is known.
    Http {
        /// What to ask for.
        path: String,
        /// What the body must be.
        body: Option<String>,
    },
    /// Bytes that must come back as they are. Without keep-alive, the client half-closes
    /// afterwards.
    Echo(usize),
    /// Bytes that must be answered by these bytes, after which the server closes.
    Ask(String, String),
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    target: Address,
    pace: Pace,
    talk: Talk,
    mix: Option<(String, f64)>,
    lasting: Option<Duration>,
    count: Option<u64>,
    timeout: Duration,
}

impl Plan {
    fn new(target: &Address, pace: Pace) -> Self {
        let talk = Talk::Http {
            path: "/".to_owned(),
            body: None,
        };
        let timeout = Duration::from_secs(10);
        Self {
            target: target.clone(),
            pace,
            talk,
            mix: None,
            lasting: None,
            count: None,
            timeout,
        }
    }

    /// Open loop: `per_second` new connections a second.
    pub fn rate(target: &Address, per_second: f64) -> Self {
        Self::new(target, Pace::Rate(per_second))
    }

    /// Closed loop: `clients` that keep their connections.
    pub fn kept_alive(target: &Address, clients: usize) -> Self {
        Self::new(target, Pace::KeptAlive(clients))
    }

    /// Closed loop: `clients` that connect again for each request.
    pub fn fresh(target: &Address, clients: usize) -> Self {
        Self::new(target, Pace::Fresh(clients))
    }

    /// Asks by HTTP for `path`, and demands this body if one is given.
    #[must_use]
    pub fn http(mut self, path: &str, body: Option<&str>) -> Self {
        self.talk = Talk::Http {
            path: path.to_owned(),
            body: body.map(str::to_owned),
        };
        self
    }

    /// Asks for `path` instead in this share of the requests (0 to 1), chosen by chance but in each
    /// run the same. Its answers must be 200, with any body; [`Report::paths`] tells the latencies
    /// apart. Only for HTTP.
    #[must_use]
    pub fn mixed(mut self, path: &str, share: f64) -> Self {
        self.mix = Some((path.to_owned(), share));
        self
    }

    /// Says this many bytes and demands them back.
    #[must_use]
    pub fn echo(mut self, bytes: usize) -> Self {
        self.talk = Talk::Echo(bytes.max(1));
        self
    }

    /// Says `question`, demands `answer` and that the server closes.
    #[must_use]
    pub fn ask(mut self, question: &str, answer: &str) -> Self {
        self.talk = Talk::Ask(question.to_owned(), answer.to_owned());
        self
    }

    /// Begins no request after this time. Without it and without [`Plan::count`], only
    /// [`Load::finish`] ends the load.
    #[must_use]
    pub fn lasting(mut self, time: Duration) -> Self {
        self.lasting = Some(time);
        self
    }

    /// Begins this many requests.
    #[must_use]
    pub fn count(mut self, requests: u64) -> Self {
        self.count = Some(requests);
        self
    }

    /// What a connection may take to be made, and a request to be answered. Ten seconds unless told
    /// otherwise.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }
}

/// What a running load tells while it runs.
#[derive(Debug, Default)]
pub(crate) struct Live {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
}

/// A load that runs in another thread.
#[derive(Debug)]
pub struct Load {
    live: Arc<Live>,
    thread: JoinHandle<Report>,
}

impl Load {
    /// How many requests were answered so far.
    pub fn answered(&self) -> u64 {
        self.live.answered.load(Ordering::Relaxed)
    }

    /// How many requests failed so far.
    pub fn failed(&self) -> u64 {
        self.live.failed.load(Ordering::Relaxed)
    }

    /// Waits until this many more requests were answered.
    ///
    /// # Panics
    /// When they are not, within [`crate::LONG`].
    #[track_caller]
    pub fn wait_for_more(&self, requests: u64) {
        let goal = self.answered() + requests;
        wait_until(&format!("{requests} more answers"), crate::LONG, || {
            self.answered() >= goal
        });
    }

    /// Begins no more requests, waits for those begun, and reports.
    ///
    /// # Panics
    /// When the load itself panicked.
    pub fn finish(self) -> Report {
        self.live.stop.store(true, Ordering::Relaxed);
        self.wait()
    }

    /// Waits until the plan is done, and reports.
    ///
    /// # Panics
    /// When the load itself panicked.
    pub fn wait(self) -> Report {
        self.thread
            .join()
            .expect("the load's thread does not panic")
    }
}

/// Carries out a plan in this thread.
///
/// # Panics
/// When the plan has no end, or when the machine has no descriptors left for an epoll instance.
pub fn run(plan: &Plan) -> Report {
    assert!(
        plan.lasting.is_some() || plan.count.is_some(),
        "a plan for run() needs a duration or a count"
    );
    engine::Engine::new(plan, Arc::default()).run()
}

/// Carries out a plan in a thread of its own.
pub fn start(plan: Plan) -> Load {
    let live = Arc::<Live>::default();
    let shared = Arc::clone(&live);
    let thread = std::thread::spawn(move || engine::Engine::new(&plan, shared).run());
    Load { live, thread }
}
