//! Starting, failing to start, and leaving.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
mod harness;
use harness::*;
use nix::sys::socket::{MsgFlags, send};
use prefork_protocol::message::ToSupervisor;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

fn fails(app: &str, reason: &str) {
    let (listener, _) = tcp();
    let mut worker = Worker::spawn(settings(app, THREADS), &[&listener]);
    assert!(matches!(worker.hear(), Some(ToSupervisor::Hello { .. })));
    match worker.hear() {
        Some(ToSupervisor::Failed { reason: told }) => assert!(told.contains(reason), "{told}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(worker.exit().code(), Some(1));
}

#[test]
fn a_worker_that_cannot_start_says_why() {
    fails("test:refuse", "no such luck");
    fails("test:fail", "the database is away");
    fails("test:panic-early", "panicked");
    fails("nosuchapp", "there is no app `nosuchapp`");
    fails("files:/nonexistent", "/nonexistent");
}

#[test]
fn a_worker_leaves_soon_after_its_supervisor_is_gone() {
    let (mut worker, address) = Worker::serving("block", THREADS);
    let mut connection = client(address);
    connection.send("GET /?ms=30000 HTTP/1.1\r\nHost: x\r\n\r\n");
    until("it is active", || worker.row().busy == 1);
    let began = Instant::now();
    drop(worker.channel.take());
    worker.exit();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn an_idle_worker_leaves_at_once_when_its_supervisor_is_gone() {
    let (mut worker, _) = Worker::serving("hello", ASYNC);
    drop(worker.channel.take());
    assert_eq!(worker.exit().code(), Some(0));
}

#[test]
fn signals_drain() {
    for signal in [libc::SIGTERM, libc::SIGQUIT, libc::SIGINT] {
        let (mut worker, address) = Worker::serving("sleep", ASYNC);
        let mut connection = client(address);
        connection.send("GET /?ms=300 HTTP/1.1\r\nHost: x\r\n\r\n");
        until("it is active", || worker.row().busy == 1);
        worker.signal(signal);
        assert!(connection.answer().unwrap().closes());
        drop(connection);
        assert_eq!(worker.exit().code(), Some(0));
    }
}

#[test]
fn nonsense_from_the_supervisor_ends_the_worker() {
    let (mut worker, _) = Worker::serving("hello", ASYNC);
    let fd = worker.channel.as_ref().unwrap().as_fd().as_raw_fd();
    send(fd, b"\xffnonsense", MsgFlags::empty()).unwrap();
    assert_eq!(worker.exit().code(), Some(1));
}

#[test]
fn a_worker_is_idle_when_it_has_nothing_to_do() {
    let (listener, address) = tcp();
    let mut settings = settings("hello", ASYNC);
    settings.heartbeat_ms = 500;
    let worker = Worker::start(settings, &[&listener]);
    let mut connection = client(address);
    connection.get("/");
    let switches = || {
        let mut total = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", worker.child.id())).unwrap() {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let line = status
                .lines()
                .find(|line| line.starts_with("voluntary_ctxt"))
                .unwrap();
            total += line
                .split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap();
        }
        total
    };
    let before = switches();
    std::thread::sleep(Duration::from_secs(2));
    let woke = switches() - before;
    // At most five heartbeats fall into the time, and tokio's timer wheel wakes up to twice for
    // each (once to move the timer to a finer level). The rest is for what was still going on at
    // the start.
    assert!(
        woke <= 12,
        "{woke} wake-ups in two seconds with a heartbeat of 500 ms"
    );
    drop(connection);
    worker.finish();
}
