//! axum on the socket that the crate listenfd finds. SIGTERM: axum's graceful shutdown.
//!
//! Variables for tests: START_DELAY=SECONDS makes it slow to start; if BROKEN=FILE exists, it cannot
//! start; IN_FLIGHT=FILE is written when /slow is being answered; with LINGER=SECONDS, it announces
//! closes for that long before it stops.

use axum::http::header::{CONNECTION, HeaderValue};
use axum::response::Response;
use axum::{Router, middleware};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

static DRAINING: AtomicBool = AtomicBool::new(false);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn seconds(name: &str) -> Duration {
    Duration::from_secs_f64(variable(name).parse().unwrap_or(0.0))
}

async fn answer(request: axum::extract::Request) -> ([(&'static str, String); 2], &'static str) {
    match request.uri().path() {
        "/slow" => {
            std::fs::write(variable("IN_FLIGHT"), "").expect("it can be written");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        "/block" => std::thread::sleep(Duration::from_secs(3600)),
        _ => {}
    }
    let headers = [
        ("x-prefork-generation", variable("PREFORK_GENERATION")),
        ("x-prefork-pid", std::process::id().to_string()),
    ];
    (headers, "Hello from axum")
}

async fn announce(mut response: Response) -> Response {
    if DRAINING.load(Ordering::Relaxed) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

async fn asked_to_exit() {
    let mut term = signal(SignalKind::terminate()).expect("a handler");
    term.recv().await;
    let linger = seconds("LINGER");
    DRAINING.store(!linger.is_zero(), Ordering::Relaxed);
    tokio::time::sleep(linger).await;
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    assert!(!std::path::Path::new(&variable("BROKEN")).exists(), "broken");
    std::thread::sleep(seconds("START_DELAY"));
    let mut sockets = listenfd::ListenFd::from_env();
    let socket = sockets.take_tcp_listener(0).expect("a TCP socket").expect("LISTEN_FDS");
    socket.set_nonblocking(true).expect("it can be non-blocking");
    let listener = tokio::net::TcpListener::from_std(socket).expect("a runtime");
    let app = Router::new().fallback(answer).layer(middleware::map_response(announce));
    axum::serve(listener, app).with_graceful_shutdown(asked_to_exit()).await.expect("it serves");
}
