//! A whole server from one function: `cargo run --example hello -- --workers 4`.

use prefork::Service;
use prefork::http::Response;

fn main() -> std::process::ExitCode {
    prefork::main(Service::from_fn(async |request| {
        Ok(Response::new(format!("Hello, {}!\n", request.uri())))
    }))
}
