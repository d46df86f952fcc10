//! The worker that the tests run: the stock apps, and a few services with which to provoke trouble.

use http::{Request, Response};
use std::convert::Infallible;
use std::process::ExitCode;
use worker::{Body, Service};

fn main() -> ExitCode {
    worker::run(|settings| match settings.app.as_str() {
        "test:refuse" => Err("no such luck".to_owned()),
        "test:fail" => Ok(Service::http(|_| async { Err::<Nothing, _>("the database is away".into()) })),
        "test:panic-early" => {
            Ok(Service::http(|_| -> std::future::Ready<Result<Nothing, _>> { panic!("early") }))
        }
        "test:axum" => Ok(Service::http(|_| async { Ok(router()) })),
        app => worker::apps::by_name(app),
    })
}

type Nothing = tower::util::BoxCloneService<Request<Body>, Response<String>, Infallible>;

fn router() -> axum::Router {
    use axum::routing::{get, post};
    axum::Router::new()
        .route("/", get(|| async { "axum" }))
        .route("/panic", get(|| async { panic!("asked to") as &'static str }))
        .route("/size", post(|body: axum::body::Bytes| async move { body.len().to_string() }))
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
