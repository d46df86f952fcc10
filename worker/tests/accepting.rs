//! Whose queues a worker takes connections from, and who is woken for them.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod harness;

use harness::{ASYNC, SYNC, Sockets, THREADS, Worker, client, get, settings, tcp, until};
use prefork_protocol::settings::Class;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

const ONE_BY_ONE: [Class; 3] = [SYNC, THREADS, ASYNC];

fn is_served(address: SocketAddr) {
    let answer = get(address, "/");
    assert_eq!(
        (answer.status, answer.body.as_slice()),
        (200, b"Hello, client!".as_slice())
    );
}

#[test]
fn a_sibling_serves_the_queue_of_a_stopped_worker() {
    for class in ONE_BY_ONE {
        let ((first, first_address), (second, second_address)) = (tcp(), tcp());
        let stopped = Worker::start_with(
            settings("hello", class),
            &Sockets {
                own: &[&first],
                watched: &[&second],
                ..Sockets::default()
            },
        );
        let sibling = Worker::start_with(
            settings("hello", class),
            &Sockets {
                own: &[&second],
                watched: &[&first],
                ..Sockets::default()
            },
        );
        stop(&stopped);
        for _ in 0..20 {
            is_served(first_address);
            is_served(second_address);
        }
        assert_eq!(sibling.row().requests, 40);
        stopped.signal(libc::SIGCONT);
        stopped.finish();
        sibling.finish();
    }
}

/// Stops it, and waits until every thread has: a running one could still take a connection, and
/// keep it.
fn stop(worker: &Worker) {
    worker.signal(libc::SIGSTOP);
    let stopped = |path: std::path::PathBuf| {
        std::fs::read_to_string(path.join("stat"))
            .unwrap()
            .rsplit(") ")
            .next()
            .unwrap()
            .starts_with('T')
    };
    let threads = || std::fs::read_dir(format!("/proc/{}/task", worker.child.id())).unwrap();
    until("every thread has stopped", || {
        threads().all(|thread| stopped(thread.unwrap().path()))
    });
}

#[test]
fn a_connection_behind_a_blocking_request_stays_in_the_queue() {
    let (listener, address) = tcp();
    let worker = Worker::start(settings("block", ASYNC), &[&listener]);
    stop(&worker);
    let waiting: Vec<_> = ["/?ms=2000", "/", "/", "/"]
        .map(|path| {
            let mut client = client(address);
            client.send(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
            client
        })
        .into();
    worker.signal(libc::SIGCONT);
    until("the first request is active", || worker.row().busy == 1);
    // There a sibling with time finds them.
    let queue = socket2::SockRef::from(&listener);
    assert_eq!(std::iter::from_fn(|| queue.accept().ok()).count(), 3);
    drop(waiting);
    worker.finish();
}

#[test]
fn a_connection_left_in_a_polled_queue_is_found() {
    for class in ONE_BY_ONE {
        let ((own, own_address), (polled, far_address)) = (tcp(), tcp());
        let worker = Worker::start_with(
            settings("hello", class),
            &Sockets {
                own: &[&own],
                polled: &[&polled],
                ..Sockets::default()
            },
        );
        for _ in 0..5 {
            is_served(far_address);
            is_served(own_address);
        }
        worker.finish();
    }
}

#[test]
fn a_connection_wakes_one_of_the_workers_who_could_take_it() {
    let (listener, address) = tcp();
    let others: Vec<(OwnedFd, SocketAddr)> = (0..7).map(|_| tcp()).collect();
    let others: Vec<&OwnedFd> = others.iter().map(|(socket, _)| socket).collect();
    let mut calm = settings("hello", ASYNC);
    calm.heartbeat_ms = 60_000;
    let mut workers = Vec::new();
    for other in &others {
        let sockets = Sockets {
            own: &[*other],
            watched: &[&listener],
            ..Sockets::default()
        };
        workers.push(Worker::start_with(calm.clone(), &sockets));
    }
    let before: u64 = workers.iter().map(switches).sum();
    for _ in 0..100 {
        is_served(address);
    }
    let after: u64 = workers.iter().map(switches).sum();
    // One for the connection, one for its request, one for its end; seven for the connection alone
    // if all woke up.
    assert!(
        after - before <= 350,
        "{} context switches for 100 connections",
        after - before
    );
}

/// How often the threads of a worker have gone to sleep.
fn switches(worker: &Worker) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{}/task", worker.child.id())).unwrap();
    let of_thread = |path: std::path::PathBuf| -> u64 {
        let status = std::fs::read_to_string(path.join("status")).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    threads
        .map(|thread| of_thread(thread.unwrap().path()))
        .sum()
}

#[test]
fn a_worker_that_cannot_look_into_proc_serves_all_the_same() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: a_worker_that_cannot_look_into_proc_serves_all_the_same: needs root");
        return;
    }
    for class in ONE_BY_ONE {
        let ((own, own_address), (watched, near_address)) = (tcp(), tcp());
        let worker = Worker::start_with(
            settings("hello", class),
            &Sockets {
                own: &[&own],
                watched: &[&watched],
                without_proc: true,
                ..Sockets::default()
            },
        );
        let mut kept = client(own_address);
        for _ in 0..5 {
            is_served(own_address);
            is_served(near_address);
        }
        // All of them wait at once, and none may be forgotten.
        let many: Vec<_> = (0..20).map(|_| client(own_address)).collect();
        assert!(
            many.into_iter()
                .all(|mut client| client.get("/").status == 200)
        );
        assert_eq!(kept.get("/").status, 200);
        worker.finish();
    }
}
