//! The worker that the tests run: the stock apps, and a few services with which to provoke trouble.

use http::{Request, Response};
use prefork_worker::{Body, Service};
use std::convert::Infallible;

/// Not a test of its own: each test program is also the worker that its tests start.
#[test]
fn worker_process() {
    if !prefork_worker::is_worker() {
        return;
    }
    log::set_logger(&Stderr).unwrap();
    let code =
        prefork_worker::run::<prefork_worker::BoxError>(|settings| match settings.app.as_str() {
            "test:refuse" => Err("no such luck".into()),
            "test:fail" => Ok(Service::http(|_| async {
                Err::<Nothing, _>("the database is away".into())
            })),
            "test:panic-early" => Ok(Service::http(
                |_| -> std::future::Ready<Result<Nothing, _>> { panic!("early") },
            )),
            "test:axum" => Ok(Service::http(|_| async { Ok(router()) })),
            app => Ok(prefork_worker::apps::by_name(app)?),
        });
    std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
}

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("worker") && std::env::var_os("WORKER_TEST_LOG").is_some() {
            eprintln!("{} {}", record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

type Nothing = tower::util::BoxCloneService<Request<Body>, Response<String>, Infallible>;

fn router() -> axum::Router {
    use axum::routing::{get, post};
    axum::Router::new()
        .route("/", get(|| async { "axum" }))
        .route(
            "/panic",
            get(|| async { panic!("asked to") as &'static str }),
        )
        .route(
            "/size",
            post(|body: axum::body::Bytes| async move { body.len().to_string() }),
        )
        .route("/ignore", post(|| async { "ignored" }))
        .route(
            "/sleep",
            get(|| async {
                tokio::time::sleep(std::time::Duration::from_secs(10)).await;
                "late"
            }),
        )
        .route(
            "/wait",
            get(|| async {
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                "waited"
            }),
        )
}
