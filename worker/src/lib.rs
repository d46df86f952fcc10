//! The runtime that a Rust service links to serve under a prefork supervisor.
//!
//! A worker is one process. It inherits listening sockets, is told by the supervisor how to serve, says when it is ready,
//! counts and beats in shared memory, and drains when asked to. Its concurrency is two numbers, threads × connections
//! per thread: `sync` is 1 × 1, `threads` is K × 1, `async` is 1 × many. Each thread has a tokio runtime of its own, made
//! after exec, so the whole tokio API works in every class.
//!
//! What is here: the life of the process ([`run()`]), HTTP/1.1 and HTTP/2 by hyper ([`Service::http`]), connections of
//! other protocols ([`Service::raw`]), and the stock [`apps`]. What is deliberately not: command lines,
//! configuration, process management and logging set-up; those are the supervisor's.
//!
//! *Invariant*: nothing that a client sends ends a worker.
//!
//! Start reading at `run.rs` (the process), then `serve.rs` (a thread), `thread.rs` (when it accepts, and its timeouts),
//! `accept/` (from whose queues, and who is woken), `connection.rs` (a connection) and `link.rs` (what a connection's parties share).

mod accept;
mod access;
mod answer;
pub mod apps;
mod body;
mod connection;
mod control;
mod io;
mod link;
mod raw;
mod run;
mod serve;
mod service;
mod slow;
mod sys;
mod thread;

pub use body::{Body, BoxError};
pub use prefork_protocol::environment::is_worker;
pub use raw::{DrainSignal, RawService, Stream};
pub use run::run;
pub use service::{Context, Service};
