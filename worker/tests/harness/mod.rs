//! A supervisor just good enough to run one worker: sockets, channel, scoreboard, environment.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

mod probe;

use nix::unistd::Pid;
use prefork_os::testing;
use prefork_protocol::channel::{Received, SupervisorEnd, pair};
use prefork_protocol::message::{Drain, PROTOCOL, ToSupervisor, ToWorker, Welcome};
use prefork_protocol::scoreboard::{Reading, SharedRows};
use prefork_protocol::settings::{Class, ClassName, WorkerSettings};
use prefork_protocol::{GenerationId, Slot, WorkerId};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn settings(app: &str, class: Class) -> WorkerSettings {
    WorkerSettings {
        class,
        app: app.to_owned(),
        heartbeat_ms: 50,
        drain_idle_ms: 200,
        keep_alive_ms: 60_000,
        header_timeout_ms: 20_000,
        request_timeout_ms: 0,
        max_head_bytes: 16 * 1024,
        max_body_bytes: 64 * 1024,
        log_level: 5,
    }
}

pub fn class(name: ClassName) -> Class {
    Class::new(name, 4, 1000)
}

pub const ASYNC: Class = Class {
    threads: 1,
    connections: 1000,
};
pub const SYNC: Class = Class {
    threads: 1,
    connections: 1,
};
pub const THREADS: Class = Class {
    threads: 4,
    connections: 1,
};

/// The listening sockets of a worker, by whose they are.
#[derive(Default)]
pub struct Sockets<'a> {
    pub own: &'a [&'a OwnedFd],
    pub watched: &'a [&'a OwnedFd],
    pub polled: &'a [&'a OwnedFd],
    /// Nothing is to be seen in `/proc`; needs root.
    pub without_proc: bool,
}

pub struct Worker {
    pub child: Child,
    pub channel: Option<SupervisorEnd>,
    rows: SharedRows,
}

/// A listening socket on a free port.
pub fn tcp() -> (OwnedFd, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (listener.into(), address)
}

impl Worker {
    /// Starts a worker, without waiting for anything.
    pub fn spawn(settings: WorkerSettings, listeners: &[&OwnedFd]) -> Self {
        Self::spawn_with(
            settings,
            &Sockets {
                own: listeners,
                ..Sockets::default()
            },
        )
    }

    /// Starts a worker that has siblings, without waiting for anything.
    pub fn spawn_with(settings: WorkerSettings, sockets: &Sockets<'_>) -> Self {
        let Sockets {
            own: listeners,
            watched,
            polled,
            without_proc,
        } = sockets;
        let rows = SharedRows::create(settings.class.threads).unwrap();
        let (ours, theirs) = pair().unwrap();
        let theirs: OwnedFd = theirs.into();
        let welcome = Welcome {
            protocol: PROTOCOL,
            worker: WorkerId(7),
            slot: Slot(2),
            generation: GenerationId(3),
            workers: 8,
            settings,
        };
        ours.send(&ToWorker::Welcome(welcome)).unwrap();
        let memory = std::os::fd::AsFd::as_fd(&rows)
            .try_clone_to_owned()
            .unwrap();
        let mut sources: Vec<RawFd> = listeners.iter().map(|fd| fd.as_raw_fd()).collect();
        let first = 3 + sources.len();
        sources.extend([theirs.as_raw_fd(), memory.as_raw_fd()]);
        sources.extend(watched.iter().chain(*polled).map(|fd| fd.as_raw_fd()));
        let script = if *without_proc {
            concat!(
                r#"export LISTEN_PID=$$; exec unshare -m sh -c "#,
                r#"'mount -t tmpfs none /proc && exec "$@"' sh "$@""#
            )
        } else {
            r#"export LISTEN_PID=$$; exec "$@""#
        };
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "harness::probe::worker_process",
                "--nocapture",
                "--test-threads=1",
                "--quiet",
            ])
            .env("LISTEN_FDS", listeners.len().to_string())
            .env("PREFORK_CHANNEL", first.to_string())
            .env("PREFORK_SCOREBOARD", (first + 1).to_string())
            .env(
                "PREFORK_SIBLINGS",
                format!("{},{}", watched.len(), polled.len()),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        testing::pass_descriptors(&mut command, sources);
        let child = command.spawn().unwrap();
        Self {
            child,
            channel: Some(ours),
            rows,
        }
    }

    /// Starts a worker and waits until it is ready.
    pub fn start(settings: WorkerSettings, listeners: &[&OwnedFd]) -> Self {
        Self::start_with(
            settings,
            &Sockets {
                own: listeners,
                ..Sockets::default()
            },
        )
    }

    /// Starts a worker that has siblings and waits until it is ready.
    pub fn start_with(settings: WorkerSettings, sockets: &Sockets<'_>) -> Self {
        let worker = Self::spawn_with(settings, sockets);
        assert_eq!(
            worker.hear(),
            Some(ToSupervisor::Hello { protocol: PROTOCOL })
        );
        assert_eq!(worker.hear(), Some(ToSupervisor::Ready));
        worker
    }

    /// A worker on a port of its own.
    pub fn serving(app: &str, class: Class) -> (Self, SocketAddr) {
        let (listener, address) = tcp();
        (Self::start(settings(app, class), &[&listener]), address)
    }

    /// The worker's next message; `None` when it has closed the channel.
    pub fn hear(&self) -> Option<ToSupervisor> {
        let channel = self.channel.as_ref().unwrap();
        let mut heard = None;
        until("the worker says something", || {
            match channel.receive().unwrap() {
                Received::Message(message) => {
                    heard = Some(message);
                    true
                }
                Received::Nothing => false,
                Received::Closed => true,
            }
        });
        heard
    }

    pub fn drain(&self, empty_queue: bool) {
        let drain = Drain {
            deadline_ms: 30_000,
            empty_queue,
        };
        self.channel
            .as_ref()
            .unwrap()
            .send(&ToWorker::Drain(drain))
            .unwrap();
    }

    pub fn row(&self) -> Reading {
        self.rows.read()
    }

    pub fn exit(&mut self) -> ExitStatus {
        let mut status = None;
        until("the worker exits", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn signal(&self, signal: i32) {
        // The child is not reaped yet.
        testing::kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Drains and expects a clean exit.
    pub fn finish(mut self) {
        self.drain(false);
        assert_eq!(self.exit().code(), Some(0));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a fact.
pub fn until(fact: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain until {fact}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// One response: status, head, body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A client connection that reads responses one by one.
pub struct Client<S> {
    pub stream: S,
    buffer: Vec<u8>,
}

impl<S: Read + Write> Client<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        self.answer().expect("an answer")
    }

    /// The next response; `None` when the connection ends before its first byte.
    pub fn answer(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more() {
                assert!(
                    self.buffer.is_empty(),
                    "truncated head: {:?}",
                    String::from_utf8_lossy(&self.buffer)
                );
                return None;
            }
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
        let mut answer = Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head,
            body: vec![],
        };
        let length: Option<usize> = answer
            .header("content-length")
            .map(|length| length.parse().unwrap());
        match length {
            Some(length) => {
                while self.buffer.len() < length {
                    assert!(self.more(), "truncated body");
                }
                answer.body = self.buffer.drain(..length).collect();
            }
            None if answer.status == 304 => (),
            None => {
                while self.more() {}
                answer.body = std::mem::take(&mut self.buffer);
            }
        }
        Some(answer)
    }

    /// Whether the server has closed the connection, cleanly, with nothing more on it.
    pub fn at_end(&mut self) -> bool {
        self.buffer.is_empty() && !self.more()
    }

    fn more(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        let length = self
            .stream
            .read(&mut chunk)
            .unwrap_or_else(|error| panic!("read: {error}"));
        self.buffer.extend_from_slice(&chunk[..length]);
        length > 0
    }
}

pub fn client(address: SocketAddr) -> Client<TcpStream> {
    Client::new(connect(address))
}

/// One request on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Answer {
    client(address).get(path)
}
