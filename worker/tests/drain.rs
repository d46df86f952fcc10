//! A drain loses no request, whatever the clients are doing at that moment.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
mod harness;
use harness::*;
use prefork_protocol::message::ToSupervisor;
use prefork_protocol::settings::ClassName;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread;
use std::time::{Duration, Instant};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn an_idle_connection_gets_one_more_answer() {
    let (mut worker, address) = Worker::serving("hello", ASYNC);
    let mut connection = client(address);
    assert!(!connection.get("/").closes());
    worker.drain(false);
    assert_eq!(worker.hear(), Some(ToSupervisor::Draining));
    let last = connection.get("/");
    assert_eq!(last.status, 200);
    assert!(last.closes());
    assert!(connection.at_end());
    drop(connection);
    assert_eq!(worker.exit().code(), Some(0));
}

#[test]
fn a_silent_connection_is_closed_cleanly_after_a_while() {
    let (mut worker, address) = Worker::serving("hello", ASYNC);
    let mut connection = client(address);
    connection.get("/");
    let mut fresh = client(address);
    until("both are accepted", || worker.row().open == 2);
    let began = Instant::now();
    worker.drain(false);
    assert!(connection.at_end());
    assert!(
        began.elapsed() >= Duration::from_millis(190),
        "{:?}",
        began.elapsed()
    );
    assert!(fresh.at_end());
    drop((connection, fresh));
    assert_eq!(worker.exit().code(), Some(0));
}

#[test]
fn a_request_in_hand_is_finished_and_says_close() {
    for name in ClassName::ALL {
        for app in ["sleep", "block"] {
            let (mut worker, address) = Worker::serving(app, class(name));
            let mut connection = client(address);
            connection.send("GET /?ms=400 HTTP/1.1\r\nHost: x\r\n\r\n");
            until("it is active", || worker.row().busy == 1);
            worker.drain(false);
            let answer = connection.answer().unwrap();
            assert_eq!(answer.status, 200);
            assert!(answer.closes(), "{name} {app}");
            assert!(connection.at_end());
            drop(connection);
            assert_eq!(worker.exit().code(), Some(0));
        }
    }
}

#[test]
fn draining_is_said_although_a_handler_blocks() {
    let (mut worker, address) = Worker::serving("block", THREADS);
    let mut connection = client(address);
    connection.send("GET /?ms=3000 HTTP/1.1\r\nHost: x\r\n\r\n");
    until("it is active", || worker.row().busy == 1);
    let began = Instant::now();
    worker.drain(false);
    assert_eq!(worker.hear(), Some(ToSupervisor::Draining));
    assert!(began.elapsed() < Duration::from_millis(2500));
    assert_eq!(connection.answer().unwrap().status, 200);
    drop(connection);
    assert_eq!(worker.exit().code(), Some(0));
}

#[test]
fn a_request_that_has_begun_to_arrive_is_answered() {
    let (mut worker, address) = Worker::serving("hello", ASYNC);
    let mut connection = client(address);
    connection.get("/");
    connection.send("GET / HTTP/1.1\r\nHo");
    let mut second = client(address);
    // A whole request and half of the next one in a single read.
    second.send(&format!("{GET}GET / HT"));
    second.answer();
    worker.drain(false);
    thread::sleep(Duration::from_millis(500));
    connection.send("st: x\r\n\r\n");
    assert!(connection.answer().unwrap().closes());
    second.send("TP/1.1\r\nHost: x\r\n\r\n");
    assert!(second.answer().unwrap().closes());
    assert!(connection.at_end() && second.at_end());
    drop((connection, second));
    assert_eq!(worker.exit().code(), Some(0));
}

#[test]
fn pipelined_requests_are_all_answered() {
    for app in ["/", "/wait"] {
        let (mut worker, address) = Worker::serving("test:axum", ASYNC);
        let mut connection = client(address);
        connection.get("/");
        let request = format!("GET {app} HTTP/1.1\r\nHost: x\r\n\r\n");
        if app == "/wait" {
            connection.send(&request.repeat(3));
            until("the first is active", || worker.row().busy == 1);
            worker.drain(false);
        } else {
            worker.drain(false);
            assert_eq!(worker.hear(), Some(ToSupervisor::Draining));
            connection.send(&request.repeat(3));
        }
        let mut closed = false;
        for number in 0..3 {
            // What was sent long ago is owed an answer only for as long as a drain waits for idle
            // clients.
            match connection.answer() {
                Some(answer) => closed = answer.closes(),
                None => assert!(number > 0 && closed && app == "/wait", "{number} {app}"),
            }
        }
        assert!(closed || connection.at_end());
        drop(connection);
        assert_eq!(worker.exit().code(), Some(0));
    }
}

/// What clients without think time see when their worker drains and another takes over.
fn saturated(name: ClassName, clients: usize, depth: usize, rounds: usize) {
    for _ in 0..rounds {
        let (listener, address) = tcp();
        let mut old = Worker::start(settings("hello", class(name)), &[&listener]);
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..clients)
            .map(|_| {
                let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
                thread::spawn(move || {
                    let mut lost = 0;
                    let mut connection = client(address);
                    while !stop.load(Relaxed) {
                        connection.send(&GET.repeat(depth));
                        let mut closed = false;
                        for _ in 0..depth {
                            match connection.answer() {
                                Some(answer) => {
                                    assert_eq!(answer.status, 200);
                                    served.fetch_add(1, Relaxed);
                                    closed = answer.closes();
                                }
                                None => lost += 1,
                            }
                        }
                        if closed {
                            assert!(connection.at_end());
                            connection = client(address);
                        }
                    }
                    lost
                })
            })
            .collect();
        until("there is load", || served.load(Relaxed) > 500);
        let new = Worker::start(settings("hello", class(name)), &[&listener]);
        old.drain(false);
        assert_eq!(old.exit().code(), Some(0));
        let at_exit = served.load(Relaxed);
        until("the new worker serves", || {
            served.load(Relaxed) > at_exit + 200
        });
        stop.store(true, Relaxed);
        let lost: usize = clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum();
        assert_eq!(lost, 0, "{name}: requests were sent and not answered");
        new.finish();
    }
}

#[test]
fn saturated_clients_lose_nothing_async() {
    saturated(ClassName::Async, 64, 1, 3);
}

#[test]
fn saturated_clients_lose_nothing_threads() {
    saturated(ClassName::Threads, 64, 1, 2);
}

#[test]
fn saturated_clients_lose_nothing_sync() {
    saturated(ClassName::Sync, 64, 1, 2);
}

#[test]
fn saturated_pipelining_clients_lose_nothing() {
    saturated(ClassName::Async, 16, 4, 3);
}

#[test]
fn the_queue_is_served_when_no_worker_follows() {
    for name in ClassName::ALL {
        let (listener, address) = tcp();
        let mut worker = Worker::start(settings("block", class(name)), &[&listener]);
        let holders: Vec<_> = (0..4).map(|_| client(address)).collect();
        let mut clients: Vec<_> = (0..20).map(|_| client(address)).collect();
        for client in &mut clients {
            client.send("GET /?ms=20 HTTP/1.1\r\nHost: x\r\n\r\n");
        }
        worker.drain(true);
        for client in &mut clients {
            assert_eq!(client.answer().expect("an answer").status, 200, "{name}");
        }
        drop((holders, clients));
        assert_eq!(worker.exit().code(), Some(0));
    }
}

#[test]
fn without_being_told_the_queue_is_left_to_the_next_worker() {
    let (listener, address) = tcp();
    let mut worker = Worker::start(settings("hello", ASYNC), &[&listener]);
    worker.drain(false);
    assert_eq!(worker.hear(), Some(ToSupervisor::Draining));
    let mut early = client(address);
    early.send(GET);
    assert_eq!(worker.exit().code(), Some(0));
    let next = Worker::start(settings("hello", ASYNC), &[&listener]);
    assert_eq!(early.answer().unwrap().status, 200);
    next.finish();
}
