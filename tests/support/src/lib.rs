//! What the end-to-end tests, the benchmark and the chaos runs share.
//!
//! * [`Server`] starts the real binary in a directory of its own, reads its log, asks it for its status, and leaves no
//!   process behind;
//! * [`load`] drives connections at it and puts every one that was not served as promised into a class;
//! * [`http`] asks for one thing at a time; [`notify`] plays systemd's side of the notification protocol;
//! * [`process`] reads facts from `/proc`; [`wait`] waits for facts.
//!
//! It knows the supervisor only from outside: its command line, its log, its control socket and its sockets. Nothing
//! here links the code under test, so that a mistake there cannot hide behind the same mistake here.

pub mod address;
pub mod http;
pub mod load;
pub mod log;
pub mod notify;
pub mod process;
pub mod server;
pub mod wait;

pub use address::Address;
pub use server::{Server, Setup, Worker};
pub use wait::{LONG, wait_for, wait_until};

/// Says visibly that a test did not run, and why. `scripts/check` counts these lines.
pub fn skipped(test: &str, why: &str) {
    // Written past the test harness, which would swallow it for a test that passes.
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED: {test}: {why}");
}
