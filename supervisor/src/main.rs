//! The `supervisor` binary: the server with its stock apps.

fn main() -> std::process::ExitCode {
    supervisor::stock()
}
