//! A multi-process prefork server for Linux, as a library: a program that calls [`main`] is a whole server.
//!
//! ```no_run
//! use prefork::Service;
//! # fn service() -> Service { unimplemented!() }
//! fn main() -> std::process::ExitCode {
//!     prefork::main(service())
//! }
//! ```
//!
//! The program then has the supervisor's command line (`myapp --workers 8`, `myapp reload --wait`) and plays both
//! roles: as the supervisor it starts itself again for every worker.
//!
//! This is the one crate that a Rust service depends on. It holds no code of its own: the server is in
//! `prefork-supervisor`, the runtime that serves connections in `prefork-worker`.

pub use prefork_supervisor::{VERSION, main};
pub use prefork_worker::{
    Body, BoxError, Context, DrainSignal, RawService, Service, Stream, is_worker,
};
