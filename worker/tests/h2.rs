//! HTTP/2 with prior knowledge.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
mod harness;
use bytes::Bytes;
use harness::*;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::io::{Read, Write};
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

type Sender = SendRequest<Full<Bytes>>;

async fn connect_h2(address: SocketAddr) -> (Sender, JoinHandle<Result<(), hyper::Error>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    (sender, tokio::spawn(connection))
}

async fn get_h2(sender: &mut Sender, path: &str) -> Result<(u16, Bytes), hyper::Error> {
    let request = http::Request::get(format!("http://x{path}"))
        .body(Full::default())
        .unwrap();
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("in time") });
}

#[test]
fn http2_is_recognised_and_served() {
    run(async {
        let (worker, address) = Worker::serving("test:axum", ASYNC);
        let (mut sender, connection) = connect_h2(address).await;
        for _ in 0..20 {
            assert_eq!(
                get_h2(&mut sender, "/").await.unwrap(),
                (200, Bytes::from_static(b"axum"))
            );
        }
        assert_eq!(get_h2(&mut sender, "/panic").await.unwrap().0, 500);
        let long = http::Request::post("http://x/size")
            .body(Full::from(vec![b'x'; 200_000]))
            .unwrap();
        // The refusal may overtake the body, which then ends in a reset stream.
        if let Ok(response) = sender.send_request(long).await {
            assert_eq!(response.status(), 413);
        }
        assert_eq!(get_h2(&mut sender, "/").await.unwrap().0, 200);
        drop(sender);
        connection.await.unwrap().unwrap();
        worker.finish();
    });
}

#[test]
fn streams_of_a_connection_are_served_side_by_side() {
    run(async {
        let (worker, address) = Worker::serving("sleep", ASYNC);
        let (sender, _connection) = connect_h2(address).await;
        let requests: Vec<_> = (0..50)
            .map(|_| {
                let mut sender = sender.clone();
                tokio::spawn(async move { get_h2(&mut sender, "/?ms=500").await.unwrap().0 })
            })
            .collect();
        let mut busy = false;
        while !busy {
            tokio::task::yield_now().await;
            busy = worker.row().busy == 50;
        }
        for request in requests {
            assert_eq!(request.await.unwrap(), 200);
        }
        drop(sender);
        worker.finish();
    });
}

#[test]
fn a_drain_finishes_streams_and_says_goaway() {
    run(async {
        let (mut worker, address) = Worker::serving("sleep", ASYNC);
        let (sender, connection) = connect_h2(address).await;
        let mut waiting = sender.clone();
        let request =
            tokio::spawn(async move { get_h2(&mut waiting, "/?ms=700").await.unwrap().0 });
        while worker.row().busy == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        worker.drain(false);
        assert_eq!(request.await.unwrap(), 200);
        // GOAWAY ends the connection once its last stream is done; the client has not closed it.
        connection.await.unwrap().unwrap();
        assert!(sender.is_closed());
        tokio::task::spawn_blocking(move || assert_eq!(worker.exit().code(), Some(0)))
            .await
            .unwrap();
    });
}

#[test]
fn an_idle_http2_client_is_told_to_go_away() {
    run(async {
        let (mut worker, address) = Worker::serving("hello", ASYNC);
        let (mut sender, connection) = connect_h2(address).await;
        assert_eq!(get_h2(&mut sender, "/").await.unwrap().0, 200);
        worker.drain(false);
        connection.await.unwrap().unwrap();
        tokio::task::spawn_blocking(move || assert_eq!(worker.exit().code(), Some(0)))
            .await
            .unwrap();
    });
}

#[test]
fn saturated_http2_clients_lose_nothing() {
    run(async {
        let (listener, address) = tcp();
        let mut old = Worker::start(settings("hello", ASYNC), &[&listener]);
        let stop = std::rc::Rc::new(std::cell::Cell::new(false));
        let served = std::rc::Rc::new(std::cell::Cell::new(0_u64));
        let local = tokio::task::LocalSet::new();
        let clients: Vec<_> = (0..16)
            .map(|_| {
                let (stop, served) = (stop.clone(), served.clone());
                local.spawn_local(async move {
                    let (mut sender, _) = connect_h2(address).await;
                    while !stop.get() {
                        // A client that was told to go away knows that this request was not
                        // processed.
                        if sender.is_closed() || sender.ready().await.is_err() {
                            sender = connect_h2(address).await.0;
                            continue;
                        }
                        let request = http::Request::get("http://x/")
                            .body(Full::default())
                            .unwrap();
                        match sender.try_send_request(request).await {
                            Ok(response) => {
                                assert_eq!(response.status(), 200);
                                assert_eq!(
                                    response.into_body().collect().await.unwrap().to_bytes(),
                                    "Hello, client!"
                                );
                                served.set(served.get() + 1);
                            }
                            Err(mut error) => {
                                // Handed back: not a byte of it was sent.
                                let unsent = error.take_message().is_some();
                                // Or refused by GOAWAY, which tells the client that the server has
                                // not begun it.
                                let text = format!("{:?}", error.error());
                                let refused = text.contains("GoAway(b\"\", NO_ERROR, Remote)");
                                assert!(unsent || refused, "lost: {text}");
                            }
                        }
                    }
                })
            })
            .collect();
        local
            .run_until(async {
                while served.get() < 500 {
                    tokio::task::yield_now().await;
                }
                let new = Worker::start(settings("hello", ASYNC), &[&listener]);
                old.drain(false);
                let old = tokio::task::spawn_blocking(move || {
                    assert_eq!(old.exit().code(), Some(0));
                    old
                });
                let old = old.await.unwrap();
                let at_exit = served.get();
                while served.get() < at_exit + 200 {
                    tokio::task::yield_now().await;
                }
                stop.set(true);
                for client in clients {
                    client.await.unwrap();
                }
                // Whatever a worker began to answer, its client got.
                until("the last request has ended", || new.row().busy == 0);
                let begun = old.row().requests + new.row().requests;
                assert_eq!(
                    begun,
                    served.get(),
                    "requests were begun and their answers lost"
                );
                tokio::task::spawn_blocking(move || new.finish())
                    .await
                    .unwrap();
            })
            .await;
    });
}

#[test]
fn a_preface_in_pieces_is_recognised() {
    let (worker, address) = Worker::serving("hello", ASYNC);
    let mut stream = connect(address);
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
        stream.write_all(&[*byte]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
    let mut settings = [0; 9];
    stream.read_exact(&mut settings).unwrap();
    assert_eq!(settings[3], 4, "the server's first frame is SETTINGS");
    drop(stream);
    worker.finish();
}
