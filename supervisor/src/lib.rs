//! A multi-process prefork server for Linux, as a library: a program that calls [`main`] is a whole server.
//!
//! ```no_run
//! use worker::Service;
//! # fn service() -> Service { unimplemented!() }
//! fn main() -> std::process::ExitCode {
//!     supervisor::main(service())
//! }
//! ```
//!
//! The program then has the supervisor's command line (`myapp --workers 8`, `myapp reload --wait`) and plays both
//! roles: as supervisor it starts itself again for every worker.
//!
//! * [`config`] – what was typed → what is true;
//! * [`core`] – what to do, as a pure state machine;
//! * [`shell`] – how to do it;
//! * `record` – how one version writes its state for another;
//! * `top` – the server on a terminal;
//! * `roles` – which of the roles this process plays; `client` – the other end of the control socket; `place` –
//!   where that is.

mod client;
pub mod config;
pub mod core;
mod place;
mod record;
mod roles;
pub mod shell;
mod top;

pub use roles::{main, stock};

/// The version of this program, as `--version` tells it.
pub const VERSION: &str = if cfg!(feature = "next") {
    concat!(env!("CARGO_PKG_VERSION"), "-next")
} else {
    env!("CARGO_PKG_VERSION")
};
