//! The runtime that a Rust service links to serve under a prefork supervisor.
//!
//! A worker is one process. It inherits listening sockets, receives its settings from the
//! supervisor, reports when it is ready, counts and beats in shared memory, and drains on request.
//! Its concurrency is two numbers, threads × connections per thread: `sync` is 1 × 1, `threads` is
//! K × 1, `async` is 1 × many. Each thread has a tokio runtime of its own, created after exec, so
//! the whole tokio API works in every class.
//!
//! This crate holds the life of the process ([`run()`]), HTTP/1.1 and HTTP/2 by hyper
//! ([`Service::http`]), connections of other protocols ([`Service::raw`]), and the stock [`apps`].
//! It deliberately knows no command line, configuration, process management or logging set-up:
//! those belong to the supervisor. A service depends on the crate `prefork-server`, which
//! re-exports what services need.
//!
//! *Invariant*: nothing that a client sends ends a worker.
//!
//! Start reading at `run.rs` (the process), then `accept_loop.rs` (a serving thread),
//! `serving_thread.rs` (its capacity and timeouts), `accept/` (the queues it accepts from, and who
//! is woken), `http_connection.rs` (an HTTP connection) and `connection.rs` (the socket).
#![forbid(unsafe_code)]

mod accept;
mod accept_loop;
mod access_log;
mod answer;
pub mod apps;
mod body;
mod clock;
mod connection;
mod context;
mod control;
mod error;
mod http_connection;
mod http_service;
mod io;
mod main_thread;
mod raw;
mod request;
mod run;
mod service;
mod serving_thread;
mod slow_log;

pub use {bytes, http, http_body, tower_service};

pub use body::Body;
pub use context::Context;
pub use error::BoxError;
pub use http_service::HttpService;
pub use prefork_protocol::environment::is_worker;
pub use prefork_protocol::{GenerationId, Slot, WorkerId};
pub use raw::{DrainSignal, RawService, Stream};
pub use run::run;
pub use service::Service;
