//! A multi-process prefork server for Linux, as a library: a program that calls [`main`] is a whole
//! server.
//!
//! ```no_run
//! use prefork::Service;
//! use prefork::http::Response;
//!
//! fn main() -> std::process::ExitCode {
//!     prefork::main(Service::from_fn(async |request| {
//!         Ok(Response::new(format!("Hello, {}!\n", request.uri())))
//!     }))
//! }
//! ```
//!
//! This is the one crate that a Rust service depends on. The program then has the supervisor's
//! command line (`myapp --workers 8`, `myapp reload --wait`) and plays both roles: as the
//! supervisor it executes itself again for every worker.
//!
//! - [`Service::from_fn`] serves HTTP by a function, [`Service::http`] by any tower service, an
//!   axum `Router` for instance, and [`Service::raw`] any other protocol over plain connections.
//! - [`Context`] says which worker a service is made for; [`Body`] is the body of a request.
//! - The crates that appear in this interface are re-exported: [`bytes`], [`http`], [`http_body`]
//!   and [`tower_service`].
//!
//! It holds no code of its own: the supervisor is `prefork-supervisor`, and the runtime that serves
//! connections is `prefork-worker`.

#![forbid(unsafe_code)]

pub use prefork_supervisor::{VERSION, main};
pub use prefork_worker::{
    Body, BoxError, Context, DrainSignal, GenerationId, HttpService, RawService, Service, Slot,
    Stream, WorkerId, bytes, http, http_body, is_worker, tower_service,
};
