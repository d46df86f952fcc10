//! The `supervisor` binary: the server with its stock apps.

fn main() -> std::process::ExitCode {
    prefork_supervisor::stock()
}
