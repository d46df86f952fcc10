//! A multi-process prefork server for Linux, as a library: a program that calls [`main`] is a whole
//! server.
//!
//! ```no_run
//! use prefork_worker::Service;
//! # fn service() -> Service { unimplemented!() }
//! fn main() -> std::process::ExitCode {
//!     prefork_supervisor::main(service())
//! }
//! ```
//!
//! The program then has the supervisor's command line (`myapp --workers 8`, `myapp reload --wait`)
//! and plays both roles: as supervisor it starts itself again for every worker.
//!
//! One folder per subsystem:
//!
//! * `cli` – which role this process plays; `config` – what was typed → what is true;
//! * `server` – the loop, and what each action of the core (`prefork-core`) means;
//! * `generation`, `workers` – from a configuration to a worker, and what is held of it until it
//!   has exited;
//! * `process`, `sandbox` – fork and exec, and what the child gives up in between;
//! * `listen` – listening sockets and the steering of connections; `systemd` – its sockets, its
//!   notifications, its FD store;
//! * `helpers` – other processes of the server's own: readiness probe, memory sampler, hooks;
//!   `admin` – the one that serves metrics, health and the dashboard over HTTP;
//! * `api` – status and events as data; `control` – the control socket, both ends; `top` – the
//!   server on a terminal;
//! * `upgrade` – how one version of the program hands a running server over to another;
//! * `logging` – the log, and the standard error of workers, which goes through it.
//!
//! Start reading at `server`.
#![forbid(unsafe_code)]

mod admin;
mod api;
mod cli;
mod config;
mod control;
mod generation;
mod helpers;
mod listen;
mod logging;
mod process;
mod sandbox;
mod server;
mod systemd;
mod top;
mod upgrade;
mod version;
mod workers;

pub use cli::roles::{main, stock};
pub use version::VERSION;

/// What the fuzz targets and the documentation's examples reach. Not a part of the interface.
#[doc(hidden)]
pub mod internals {
    pub use crate::api::request::Request;
    pub use crate::config::{Bind, Config, Hooks, Identity, Source, Surroundings};
    pub use crate::systemd::notify::{WorkerNotice, parse};
}
