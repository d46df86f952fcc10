//! Each class serves, and no client is held up by another one's slow handler or silence.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
mod harness;
use harness::*;
use prefork_protocol::settings::ClassName;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn each_class_serves_and_drains() {
    for name in ClassName::ALL {
        let (worker, address) = Worker::serving("hello", class(name));
        for _ in 0..20 {
            let answer = get(address, "/");
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (200, "Hello, client!"),
                "{name}"
            );
            assert_eq!(answer.header("x-prefork-worker"), Some("7"));
            assert_eq!(answer.header("x-prefork-slot"), Some("2"));
            assert_eq!(answer.header("x-prefork-generation"), Some("3"));
            assert_eq!(
                answer.header("x-prefork-pid"),
                Some(worker.child.id().to_string().as_str())
            );
        }
        worker.finish();
    }
}

#[test]
fn many_clients_with_keep_alive_are_all_served_in_each_class() {
    for name in ClassName::ALL {
        let (worker, address) = Worker::serving("hello", class(name));
        let clients: Vec<_> = (0..16)
            .map(|_| {
                thread::spawn(move || {
                    let mut connection = client(address);
                    for _ in 0..25 {
                        let answer = connection.get("/");
                        assert_eq!(answer.status, 200);
                        if answer.closes() {
                            connection = client(address);
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        assert_eq!(worker.row().requests, 16 * 25, "{name}");
        worker.finish();
    }
}

#[test]
fn blocking_handlers_run_side_by_side_in_threads() {
    let (worker, address) = Worker::serving("block", THREADS);
    let slow: Vec<_> = (0..3)
        .map(|_| thread::spawn(move || get(address, "/?ms=1500")))
        .collect();
    until("three handlers block", || worker.row().busy == 3);
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(get(address, "/?ms=1").status, 200);
    }
    assert_eq!(
        worker.row().busy,
        3,
        "the blocking ones are still at it after {:?}",
        began.elapsed()
    );
    for slow in slow {
        assert_eq!(slow.join().unwrap().status, 200);
    }
    worker.finish();
}

#[test]
fn sync_serves_one_at_a_time() {
    let (worker, address) = Worker::serving("sleep", SYNC);
    let clients: Vec<_> = (0..4)
        .map(|_| thread::spawn(move || get(address, "/?ms=100")))
        .collect();
    let began = Instant::now();
    let mut most = 0;
    until("all are answered", || {
        most = most.max(worker.row().busy);
        worker.row().requests == 4
    });
    assert!(
        began.elapsed() >= Duration::from_millis(300),
        "{:?}",
        began.elapsed()
    );
    assert!(most <= 1, "{most} requests were active");
    for client in clients {
        assert_eq!(client.join().unwrap().status, 200);
    }
    worker.finish();
}

#[test]
fn async_serves_many_slow_requests_at_once() {
    let (worker, address) = Worker::serving("sleep", ASYNC);
    let began = Instant::now();
    let clients: Vec<_> = (0..30)
        .map(|_| thread::spawn(move || get(address, "/?ms=1000")))
        .collect();
    until("all are active", || worker.row().busy == 30);
    assert!(began.elapsed() < Duration::from_secs(10));
    for client in clients {
        assert_eq!(client.join().unwrap().status, 200);
    }
    worker.finish();
}

#[test]
fn silent_clients_hold_up_no_others() {
    for name in ClassName::ALL {
        let (worker, address) = Worker::serving("hello", class(name));
        let mut silent: Vec<_> = (0..20).map(|_| client(address)).collect();
        assert_eq!(get(address, "/").status, 200, "{name}");
        for client in &mut silent {
            assert_eq!(client.get("/").status, 200, "{name}: a silent one speaks");
        }
        drop(silent);
        worker.finish();
    }
}

#[test]
fn no_more_connections_are_accepted_than_allowed() {
    let (listener, address) = tcp();
    let class = prefork_protocol::settings::Class {
        threads: 1,
        connections: 3,
    };
    let worker = Worker::start(settings("hello", class), &[&listener]);
    let mut held: Vec<_> = (0..3).map(|_| client(address)).collect();
    for client in &mut held {
        assert_eq!(client.get("/").status, 200);
    }
    let mut fourth = client(address);
    fourth.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    thread::sleep(Duration::from_millis(200));
    assert_eq!(worker.row().connections, 3);
    drop(held.pop());
    assert_eq!(fourth.answer().unwrap().status, 200);
    drop((held, fourth));
    worker.finish();
}

#[test]
fn the_scoreboard_counts_and_beats() {
    let (worker, address) = Worker::serving("sleep", ASYNC);
    let mut connection = client(address);
    connection.get("/");
    connection.get("/");
    let row = worker.row();
    assert_eq!((row.connections, row.open, row.busy), (1, 1, 0));
    until("both are counted", || worker.row().requests == 2);
    connection.send("GET /?ms=700 HTTP/1.1\r\nHost: x\r\n\r\n");
    until("the request is active", || worker.row().busy == 1);
    let oldest = worker.row().oldest;
    assert!(oldest > 0);
    // Others come and go; the oldest stays the oldest.
    for _ in 0..5 {
        get(address, "/?ms=20");
    }
    let row = worker.row();
    assert!(
        row.busy >= 1 && row.oldest.abs_diff(oldest) <= 10,
        "{row:?}, {oldest}"
    );
    let beat = worker.row().heartbeat;
    until("the heart beats while a handler waits", || {
        worker.row().heartbeat > beat
    });
    connection.answer();
    until("no request is old any more", || worker.row().oldest == 0);
    drop(connection);
    until("it is closed", || worker.row().open == 0);
    worker.finish();
}

#[test]
fn bytes_errors_and_latencies_are_counted_to_the_last() {
    let (worker, address) = Worker::serving("test:axum", ASYNC);
    let mut connection = client(address);
    let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    connection.send(request);
    connection.answer();
    until("the answer is counted", || worker.row().bytes_out > 0);
    let one = worker.row();
    assert_eq!(
        (one.bytes_in, one.requests, one.errors),
        (request.len() as u64, 1, 0)
    );
    // The same again is as many bytes again; a panic is a 500.
    connection.send(request);
    connection.answer();
    until("both are counted", || {
        worker.row().bytes_out == 2 * one.bytes_out
    });
    assert_eq!(get(address, "/panic").status, 500);
    assert_eq!(get(address, "/nowhere").status, 404);
    assert_eq!(get(address, "/wait").status, 200);
    until("all are counted", || worker.row().requests == 5);
    let row = worker.row();
    assert_eq!(
        (row.errors, row.latency.iter().sum::<u64>()),
        (1, 5),
        "{row:?}"
    );
    // 300 ms, in the bucket up to 500 ms, or a later one on a slow machine.
    assert!(
        row.busy_us >= 300_000 && row.latency[9..].iter().sum::<u64>() >= 1,
        "{row:?}"
    );
    // Bytes that are no request count, too, and what is answered to them.
    let mut malformed = client(address);
    malformed.send("nonsense\r\n\r\n");
    assert_eq!(malformed.answer().unwrap().status, 400);
    until("these, too", || {
        worker.row().bytes_in == row.bytes_in + 12 && worker.row().bytes_out > row.bytes_out
    });
    worker.finish();
}

#[test]
fn a_raw_connection_is_a_request_and_its_bytes_are_counted_while_it_lasts() {
    let (worker, address) = Worker::serving("echo", ASYNC);
    let mut connection = connect(address);
    connection.write_all(&vec![b'x'; 20_000]).unwrap();
    connection.read_exact(&mut vec![0; 20_000]).unwrap();
    until("all is counted", || {
        (worker.row().bytes_in, worker.row().bytes_out) == (20_000, 20_000)
    });
    assert_eq!((worker.row().requests, worker.row().busy), (0, 1));
    drop(connection);
    until("it has been a request", || worker.row().requests == 1);
    worker.finish();
}

#[test]
fn the_oldest_request_moves_on_under_constant_load() {
    let (worker, address) = Worker::serving("sleep", ASYNC);
    let mut first = client(address);
    let mut second = client(address);
    first.send("GET /?ms=300 HTTP/1.1\r\nHost: x\r\n\r\n");
    until("one is active", || worker.row().busy == 1);
    let began = worker.row().oldest;
    thread::sleep(Duration::from_millis(100));
    second.send("GET /?ms=900 HTTP/1.1\r\nHost: x\r\n\r\n");
    first.answer();
    until("the second is the oldest", || {
        let row = worker.row();
        row.busy == 1 && row.oldest >= began + 80
    });
    second.answer();
    worker.finish();
}

#[test]
fn a_unix_socket_is_shared_by_two_workers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener: OwnedFd = listener.into();
    let workers: Vec<_> = (0..2)
        .map(|_| Worker::start(settings("sleep", SYNC), &[&listener]))
        .collect();
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            thread::spawn(move || {
                Client::new(UnixStream::connect(path).unwrap())
                    .get("/?ms=100")
                    .status
            })
        })
        .collect();
    for client in clients {
        assert_eq!(client.join().unwrap(), 200);
    }
    let counts: Vec<_> = workers.iter().map(|worker| worker.row().requests).collect();
    until("all are counted", || {
        workers
            .iter()
            .map(|worker| worker.row().requests)
            .sum::<u64>()
            == 8
    });
    assert!(
        counts.iter().all(|&count| count >= 2),
        "one took nearly all: {counts:?}"
    );
    for worker in workers {
        worker.finish();
    }
}

#[test]
fn several_listeners_are_all_served() {
    let (first, second) = (tcp(), tcp());
    let worker = Worker::start(settings("hello", ASYNC), &[&first.0, &second.0]);
    for _ in 0..5 {
        assert_eq!(get(first.1, "/").status, 200);
        assert_eq!(get(second.1, "/").status, 200);
    }
    worker.finish();
}

#[test]
fn a_client_that_closes_its_side_early_is_answered() {
    let (worker, address) = Worker::serving("sleep", ASYNC);
    let mut connection = client(address);
    connection.send("GET /?ms=50 HTTP/1.1\r\nHost: x\r\n\r\n");
    connection
        .stream
        .shutdown(std::net::Shutdown::Write)
        .unwrap();
    assert_eq!(connection.answer().unwrap().status, 200);
    assert!(connection.at_end());
    worker.finish();
}

#[test]
fn pipelined_requests_are_answered_in_order_and_together() {
    let (worker, address) = Worker::serving("hello", ASYNC);
    let mut connection = client(address);
    connection.send(&"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100));
    for _ in 0..100 {
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    // What follows a request that asks for closing does not destroy its answer.
    connection.send(
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    );
    assert!(connection.answer().unwrap().closes());
    assert!(connection.at_end());
    worker.finish();
}

#[test]
fn a_head_in_small_pieces_is_understood() {
    let (worker, address) = Worker::serving("test:axum", ASYNC);
    for text in [
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab",
    ] {
        let mut connection = client(address);
        for byte in text.bytes() {
            connection.stream.write_all(&[byte]).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    worker.finish();
}

#[test]
fn an_axum_router_is_a_service() {
    let (worker, address) = Worker::serving("test:axum", ASYNC);
    assert_eq!(get(address, "/").text(), "axum");
    assert_eq!(get(address, "/nowhere").status, 404);
    let mut connection = client(address);
    connection.send("POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(connection.answer().unwrap().text(), "5");
    worker.finish();
}

#[test]
fn large_answers_arrive_whole() {
    let directory = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..5_000_000_u32)
        .map(|number| (number % 251) as u8)
        .collect();
    std::fs::write(directory.path().join("large"), &content).unwrap();
    let (worker, address) =
        Worker::serving(&format!("files:{}", directory.path().display()), ASYNC);
    let mut connection = client(address);
    for _ in 0..3 {
        assert!(connection.get("/large").body == content);
    }
    connection.send("GET /large HTTP/1.0\r\n\r\n");
    thread::sleep(Duration::from_millis(50));
    assert!(connection.answer().unwrap().body == content);
    let mut rest = Vec::new();
    connection.stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    worker.finish();
}
