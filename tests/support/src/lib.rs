//! What the end-to-end tests, the benchmark and the chaos runs share.
//!
//! * [`Server`] starts the real binary in a directory of its own, reads its log, asks it for its
//!   status, and leaves no process behind;
//! * [`load`] drives connections at it and puts every one that was not served as promised into a
//!   class;
//! * [`http`] asks for one thing at a time; [`notify`] plays systemd's side of the notification
//!   protocol; [`systemd`] runs a program under a real one, where [`unit`](mod@unit) asks for a
//!   service;
//! * [`stack`] measures what a program of some stack does under a server;
//! * [`browser`] is a real one, for pages;
//! * [`delay`] makes the way between client and server long;
//! * [`releases`] are deployed by a symbolic link;
//! * [`process`] reads facts from `/proc`; [`wait`] waits for facts.
//!
//! It knows the supervisor only from outside: its command line, its log, its control socket and its
//! sockets. Nothing here links the code under test, so that a mistake there cannot hide behind the
//! same mistake here.
#![forbid(unsafe_code)]

pub mod address;
pub mod browser;
pub mod delay;
pub mod http;
pub mod load;
pub mod log;
pub mod notify;
pub mod process;
pub mod releases;
pub mod server;
pub mod stack;
pub mod systemd;
pub mod unit;
pub mod wait;

pub use address::Address;
pub use server::{Server, Setup, Worker, ready_after};
pub use wait::{LONG, wait_for, wait_until};

/// Says visibly that a test did not run, and why. `scripts/check` counts these lines.
pub fn skipped(test: &str, why: &str) {
    // Written past the test harness, which would swallow it for a test that passes.
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED: {test}: {why}");
}

/// A file in `tests/programs`.
pub fn program(name: &str) -> std::path::PathBuf {
    root().join("tests/programs").join(name)
}

/// The bytes of a text as hexadecimal digits, as `tests/programs/crashing.py` reads programs.
pub fn hex(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// The checkout.
///
/// # Panics
/// When this crate lies elsewhere.
pub fn root() -> std::path::PathBuf {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("this crate lies in tests/support")
        .to_path_buf()
}

/// An external tool, from `target/venv` (made by `scripts/peers`) or else from the path.
pub fn tool(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places =
        std::iter::once(root().join("target/venv/bin")).chain(std::env::split_paths(&path));
    places
        .map(|place| place.join(name))
        .find(|file| file.is_file())
}
