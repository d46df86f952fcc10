//! The stock apps: what a supervisor serves when it is given no program.

mod echo;
mod files;
mod greeter;
mod headers;
mod hello;
mod timing;

use crate::service::Service;

/// The apps and what they do, for `--help`.
pub const NAMES: [(&str, &str); 7] = [
    (
        "hello",
        "HTTP: answers `Hello, client!`, with headers that tell worker, slot and generation",
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

/// Makes the service of a stock app.
///
/// # Errors
/// One sentence for the operator, when there is no such app or it cannot be served.
pub fn by_name(app: &str) -> Result<Service, String> {
    match app.split_once(':') {
        Some(("files", directory)) => files::service(directory),
        None => match app {
            "hello" => Ok(hello::service()),
            "sleep" => Ok(timing::service(timing::Way::Sleep)),
            "burn" => Ok(timing::service(timing::Way::Burn)),
            "block" => Ok(timing::service(timing::Way::Block)),
            "echo" => Ok(echo::service()),
            "greeter" => Ok(greeter::service()),
            "files" => Err("the app `files` needs a directory: files:DIR".to_owned()),
            _ => Err(unknown(app)),
        },
        Some(_) => Err(unknown(app)),
    }
}

/// Whether [`by_name`] would succeed.
///
/// # Errors
/// As [`by_name`].
pub fn check(app: &str) -> Result<(), String> {
    by_name(app).map(drop)
}

fn unknown(app: &str) -> String {
    let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
    format!(
        "there is no app `{app}` (choose one of {})",
        names.join(", ")
    )
}
