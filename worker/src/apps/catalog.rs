//! The names of the stock apps, and why one cannot be served.

use std::io;
use thiserror::Error;

/// The apps and what they do, for `--help`.
pub const NAMES: [(&str, &str); 7] = [
    (
        "hello",
        "HTTP: answers `Hello, client!`, with headers that name worker, slot and generation",
    ),
    (
        "files:DIR",
        "HTTP: the files under DIR, with ranges, ETags and conditional requests",
    ),
    (
        "sleep",
        "HTTP: waits for `?ms=50` milliseconds without holding up the thread",
    ),
    ("burn", "HTTP: computes for `?ms=50` milliseconds"),
    ("block", "HTTP: blocks its thread for `?ms=50` milliseconds"),
    ("echo", "TCP: sends back what it gets"),
    (
        "greeter",
        "TCP: reads up to 1024 bytes, logs them, answers `Hello, client!`, closes",
    ),
];

/// Why a stock app cannot be served.
#[derive(Debug, Error)]
pub enum AppError {
    /// There is no such app.
    #[error("there is no app `{0}` (choose one of {names})", names = names())]
    Unknown(String),
    /// The app `files` was named without a directory.
    #[error("the app `files` needs a directory: files:DIR")]
    NoDirectory,
    /// The directory of the app `files` cannot be read.
    #[error(
        "cannot serve files from `{directory}`: {error} (name a directory that the worker can read)"
    )]
    Directory {
        /// The directory.
        directory: String,
        /// What the system says about it.
        #[source]
        error: io::Error,
    },
}

fn names() -> String {
    let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}
