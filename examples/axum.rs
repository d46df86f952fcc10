//! A whole server from an axum router: `cargo run --example axum -- --workers 4`.

use axum::Router;
use axum::routing::get;

fn main() -> std::process::ExitCode {
    prefork::main(prefork::Service::http(
        |context: prefork::Context| async move {
            let hello = move || async move { format!("Hello from slot {}\n", context.slot) };
            Ok(Router::new().route("/", get(hello)))
        },
    ))
}
