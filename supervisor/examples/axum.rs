//! A whole server from an axum router: `cargo run --example axum -- --workers 4`.

use axum::Router;
use axum::routing::get;

fn main() -> std::process::ExitCode {
    supervisor::main(worker::Service::http(
        |context: worker::Context| async move {
            let hello = move || async move { format!("Hello from slot {}\n", context.slot) };
            Ok(Router::new().route("/", get(hello)))
        },
    ))
}
