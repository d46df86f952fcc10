//! The `supervisor` binary: the server with its stock apps.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    prefork_supervisor::stock()
}
