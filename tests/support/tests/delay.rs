//! The delay line, with real sockets.

use nix::sys::socket::{Backlog, listen as listen_again};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use testkit::delay::{DelayLine, NEAR_V4, Way};
use testkit::load::{Plan, run};
use testkit::{Address, LONG, skipped};

const DELAY: Duration = Duration::from_millis(50);

/// Starts a line, or tells visibly why the test does not run.
fn line(test: &str, way: Way) -> Option<DelayLine> {
    DelayLine::start(way)
        .map_err(|why| skipped(test, &why.to_string()))
        .ok()
}

/// A server that lasts as long as the test's process: each connection gets a thread that runs
/// `serve`.
fn listen(
    near: IpAddr,
    serve: impl Fn(&TcpStream) -> io::Result<()> + Copy + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind((near, 0)).expect("a near address is this thread's");
    // The standard library's queue of 128 is too short here: the kernel would reset connections.
    listen_again(&listener, Backlog::new(1024).expect("a length")).expect("listens");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(&stream));
        }
    });
    address
}

fn echo(stream: &TcpStream) -> io::Result<()> {
    io::copy(&mut &*stream, &mut &*stream)?;
    stream.shutdown(Shutdown::Write)
}

/// Bytes that do not repeat.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let step = |word: &mut u64| {
        *word = word
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        Some((*word >> 56) as u8)
    };
    std::iter::repeat(())
        .scan(seed, |word, ()| step(word))
        .take(length)
        .collect()
}

fn connect(server: SocketAddr, n: u8) -> TcpStream {
    let stream = TcpStream::connect_timeout(&DelayLine::far(server, n), LONG).expect("connected");
    stream.set_read_timeout(Some(LONG)).expect("a time");
    stream
}

#[test]
fn handshake_answer_and_end_each_take_their_time() {
    let Some(line) = line(
        "handshake_answer_and_end_each_take_their_time",
        Way::of(DELAY),
    ) else {
        return;
    };
    assert!(
        line.has_v6() || !std::fs::exists("/proc/net/if_inet6").expect("/proc"),
        "no IPv6 on the line"
    );
    for near in line.near() {
        let server = listen(near, echo);
        let start = Instant::now();
        let mut stream = connect(server, 7);
        assert!(
            start.elapsed() >= 2 * DELAY,
            "{near}: connected after {:?}",
            start.elapsed()
        );
        assert_eq!(
            stream.peer_addr().expect("connected"),
            DelayLine::far(server, 7)
        );
        assert!(DelayLine::is_far(DelayLine::far(server, 7).ip()) && !DelayLine::is_far(near));
        let asked = Instant::now();
        stream.write_all(b"x").expect("written");
        stream.read_exact(&mut [0]).expect("answered");
        assert!(
            asked.elapsed() >= 2 * DELAY,
            "{near}: answered after {:?}",
            asked.elapsed()
        );
        let closed = Instant::now();
        stream.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(stream.read(&mut [0]).expect("an end"), 0);
        assert!(
            closed.elapsed() >= 2 * DELAY,
            "{near}: ended after {:?}",
            closed.elapsed()
        );
    }
    assert_eq!((line.counts().dropped, line.counts().lost), (0, 0));
}

#[test]
fn a_refusal_takes_its_time_too() {
    let Some(_line) = line("a_refusal_takes_its_time_too", Way::of(DELAY)) else {
        return;
    };
    let listener = TcpListener::bind((NEAR_V4, 0)).expect("bound");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let start = Instant::now();
    let refused = TcpStream::connect(DelayLine::far(address, 0)).expect_err("no process listens");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert!(start.elapsed() >= 2 * DELAY);
}

/// Sends this many bytes each way at once, over IPv4 and IPv6.
fn exchange(line: &DelayLine, length: usize) {
    for near in line.near() {
        let server = listen(near, move |mut stream: &TcpStream| {
            let mut out = stream.try_clone()?;
            let writer = thread::spawn(move || out.write_all(&pattern(2, length)));
            let mut got = Vec::new();
            stream.read_to_end(&mut got)?;
            writer.join().expect("no panic")?;
            stream.write_all(if got == pattern(1, length) {
                b"same"
            } else {
                b"else"
            })
        });
        let mut stream = connect(server, 0);
        let mut out = stream.try_clone().expect("a descriptor");
        let writer = thread::spawn(move || {
            out.write_all(&pattern(1, length))
                .and_then(|()| out.shutdown(Shutdown::Write))
        });
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("read");
        writer.join().expect("no panic").expect("written");
        assert_eq!(
            got.split_off(length),
            b"same",
            "{near}: the client's bytes differ"
        );
        assert!(
            got == pattern(2, length),
            "{near}: the server's bytes differ"
        );
    }
}

#[test]
fn bytes_cross_the_line_intact_both_ways() {
    let Some(line) = line("bytes_cross_the_line_intact_both_ways", Way::of(DELAY)) else {
        return;
    };
    exchange(&line, 1 << 20);
    let counts = line.counts();
    assert_eq!(counts.lost, 0, "{counts:?}");
    // The kernel's queue may run over when the line gets no processor for a while.
    assert!(counts.dropped * 100 <= counts.carried, "{counts:?}");
    assert!(counts.bytes > 2 << 20, "{counts:?}");
}

#[test]
fn a_lossy_line_with_jitter_loses_packets_and_no_bytes() {
    let way = Way {
        loss_per_million: 20_000,
        jitter: DELAY / 10,
        seed: 3,
        ..Way::of(DELAY / 10)
    };
    let Some(line) = line("a_lossy_line_with_jitter_loses_packets_and_no_bytes", way) else {
        return;
    };
    exchange(&line, 1 << 18);
    let counts = line.counts();
    assert!(counts.lost > 0 && counts.dropped == 0, "{counts:?}");
}

#[test]
fn two_hundred_connections_at_once_lose_nothing() {
    let Some(line) = line(
        "two_hundred_connections_at_once_lose_nothing",
        Way::of(DELAY),
    ) else {
        return;
    };
    for near in line.near() {
        let server = listen(near, echo);
        let clients: Vec<_> = (0..200_u8)
            .map(|n| {
                thread::spawn(move || {
                    let mut stream = connect(server, n);
                    let sent = pattern(u64::from(n), 4096);
                    stream
                        .write_all(&sent)
                        .and_then(|()| stream.shutdown(Shutdown::Write))
                        .expect("written");
                    let mut got = Vec::new();
                    stream.read_to_end(&mut got).expect("read");
                    assert!(got == sent, "client {n} got other bytes");
                })
            })
            .collect();
        for client in clients {
            client.join().expect("served");
        }
    }
    let counts = line.counts();
    assert_eq!((counts.dropped, counts.lost), (0, 0), "{counts:?}");
    assert!(counts.carried >= 200 * 7, "{counts:?}");
}

#[test]
fn a_thousand_new_connections_a_second_lose_nothing() {
    let Some(line) = line(
        "a_thousand_new_connections_a_second_lose_nothing",
        Way::of(DELAY),
    ) else {
        return;
    };
    let server = listen(IpAddr::V4(NEAR_V4), echo);
    let target = Address::Tcp(DelayLine::far(server, 0));
    // 2.5 KiB each way on each connection: 20 Mbit/s of them, both ways together 40.
    let start = Instant::now();
    let report = run(&Plan::rate(&target, 1_000.0).echo(2560).count(2_000));
    let (counts, time) = (line.counts(), start.elapsed().as_secs_f64());
    println!(
        "{:.0} connections/s, {:.1} Mbit/s, {counts:?}",
        2_000.0 / time,
        f64::from(u32::try_from(counts.bytes).expect("a few MiB")) * 8e-6 / time
    );
    assert_eq!(report.answered, 2_000, "{report}");
    assert_eq!((counts.dropped, counts.lost), (0, 0), "{counts:?}");
}

#[test]
fn the_line_is_where_its_thread_is_and_nowhere_else() {
    let (ask, asked) = mpsc::channel::<()>();
    let devices = || std::fs::read_to_string("/proc/thread-self/net/dev").expect("/proc");
    let before = thread::spawn(move || {
        asked.recv().expect("asked");
        devices()
    });
    let Some(_line) = line(
        "the_line_is_where_its_thread_is_and_nowhere_else",
        Way::of(DELAY),
    ) else {
        return;
    };
    let server = listen(IpAddr::V4(Ipv4Addr::UNSPECIFIED), echo);
    ask.send(()).expect("the thread waits");
    assert!(
        !before.join().expect("no panic").contains("delay:"),
        "it leaks to another thread"
    );
    assert!(
        thread::spawn(devices)
            .join()
            .expect("no panic")
            .contains("delay:")
    );
    let child = std::process::Command::new("cat")
        .arg("/proc/self/net/dev")
        .output()
        .expect("cat runs");
    assert!(
        String::from_utf8_lossy(&child.stdout).contains("delay:"),
        "children are elsewhere"
    );
    connect(server, 0);
}

#[test]
fn a_line_that_is_dropped_carries_nothing_more() {
    let Some(line) = line(
        "a_line_that_is_dropped_carries_nothing_more",
        Way::of(DELAY),
    ) else {
        return;
    };
    let server = listen(IpAddr::V4(NEAR_V4), echo);
    connect(server, 0);
    drop(line);
    let error = TcpStream::connect_timeout(&DelayLine::far(server, 0), DELAY).expect_err("no way");
    assert_ne!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
}
