//! Every kind of hostile worker. None of them returns, and none accepts connections.

use crate::row::{CONNECTIONS, HEARTBEAT, REQUESTS, Row};
use nix::sys::signal::{Signal, raise};
use nix::sys::socket::{
    ControlMessage, MsgFlags, Shutdown, sendmsg, setsockopt, shutdown, sockopt,
};
use prefork_protocol::environment::{PREFORK_WORKER, WorkerEnvironment};
use prefork_protocol::message::{PROTOCOL, ToSupervisor};
use prefork_protocol::wire;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio, exit};
use std::thread::sleep;
use std::time::Duration;

const HELLO: ToSupervisor = ToSupervisor::Hello { protocol: PROTOCOL };
/// Often enough for every setting of the tests.
const BEAT: Duration = Duration::from_millis(50);

struct HostileWorker {
    channel: OwnedFd,
    listeners: Vec<OwnedFd>,
    row: Row,
}

/// Plays it to the process's end.
pub(crate) fn play(kind: &str) -> ! {
    let environment = WorkerEnvironment::take();
    let environment = environment.ok().flatten().unwrap_or_else(|| exit(90));
    let hostile = HostileWorker {
        channel: environment.channel.into(),
        listeners: environment
            .listeners
            .into_iter()
            .map(|inherited| inherited.socket)
            .collect(),
        row: Row::new(environment.scoreboard),
    };
    hostile.act(kind.trim())
}

impl HostileWorker {
    fn act(self, kind: &str) -> ! {
        let status = || ToSupervisor::Status {
            text: "I am fine".to_owned(),
        };
        match kind {
            // Floods.
            "floods-status" => {
                self.get_ready();
                self.say_for_ever(&encoded(&status()))
            }
            "floods-garbage" => self.say_for_ever(&[0xff; 64]),
            "floods-nothing" => self.say_for_ever(&[]),
            // Stalls.
            "says-nothing" => idle(),
            "says-hello-only" => {
                self.say(&HELLO);
                idle()
            }
            "fails-and-stays" => {
                self.say(&HELLO);
                self.say(&ToSupervisor::Failed {
                    reason: "I\nwill \u{1b}[31mnot".repeat(80),
                });
                idle()
            }
            // Out of phase.
            "ready-before-hello" => self.then(&[ToSupervisor::Ready, HELLO]),
            "ready-twice" => self.then(&[HELLO, ToSupervisor::Ready, ToSupervisor::Ready]),
            "hello-twice" => self.then(&[HELLO, HELLO]),
            "hello-when-ready" => self.then(&[HELLO, ToSupervisor::Ready, HELLO]),
            "failed-after-ready" => self.then(&[
                HELLO,
                ToSupervisor::Ready,
                ToSupervisor::Failed {
                    reason: "no".to_owned(),
                },
            ]),
            "another-protocol" => self.then(&[ToSupervisor::Hello { protocol: 9999 }]),
            "drains-for-ever" => {
                let words = [
                    HELLO,
                    ToSupervisor::Ready,
                    ToSupervisor::Draining,
                    ToSupervisor::Draining,
                ];
                self.then(&words)
            }
            // Undecodable.
            "trailing-bytes" => {
                self.get_ready();
                self.then_bytes(&[encoded(&status()), vec![0]].concat())
            }
            "oversized" => {
                self.get_ready();
                let _ = setsockopt(&self.channel, sockopt::SndBuf, &200_000);
                self.then_bytes(&vec![4; 70_000])
            }
            "empty-packet" => {
                self.get_ready();
                self.then_bytes(&[])
            }
            "long-length" => {
                self.get_ready();
                // A text of 2^64 - 1 bytes, as it claims.
                self.then_bytes(&[&[4, 253][..], &[0xff; 8]].concat())
            }
            "sends-descriptors" => {
                self.get_ready();
                loop {
                    self.send_descriptors(&encoded(&status()));
                    self.row.beat();
                    sleep(BEAT);
                }
            }
            // Its row.
            "beats-in-the-future" => {
                self.get_ready();
                self.row.put(HEARTBEAT, u64::MAX);
                idle()
            }
            "fills-its-row" => {
                self.get_ready();
                self.row.fill(0xff);
                idle()
            }
            "scribbles" => {
                self.get_ready();
                for seed in 0_u64.. {
                    self.row.scribble(seed * 977);
                    sleep(Duration::from_millis(1));
                }
                idle()
            }
            "counts-back-and-forth" => {
                if !self.row.is_sealed() {
                    exit(91);
                }
                self.get_ready();
                for turn in 0_u64.. {
                    let number = if turn % 2 == 0 { u64::MAX } else { 0 };
                    self.row.put(REQUESTS, number);
                    self.row.put(CONNECTIONS, number);
                    self.row.beat();
                    sleep(Duration::from_millis(5));
                }
                idle()
            }
            // Its channel.
            "closes-its-channel" => {
                self.get_ready();
                let Self { channel, row, .. } = self;
                drop(channel);
                beat_for_ever(&row)
            }
            "stops-writing" => {
                self.get_ready();
                let _ = shutdown(self.channel.as_raw_fd(), Shutdown::Write);
                beat_for_ever(&self.row)
            }
            "stops-reading" => {
                self.get_ready();
                let _ = shutdown(self.channel.as_raw_fd(), Shutdown::Read);
                beat_for_ever(&self.row)
            }
            "closes-everything" => {
                self.get_ready();
                drop(self);
                idle()
            }
            // Its sockets.
            "shuts-its-sockets" => {
                self.get_ready();
                for listener in &self.listeners {
                    let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
                }
                beat_for_ever(&self.row)
            }
            // Its end.
            "leaves-children" => {
                self.get_ready();
                self.leave_children();
                exit(3)
            }
            "ignores-requests" => {
                ignore_signals();
                self.get_ready();
                beat_for_ever(&self.row)
            }
            "stops-itself" => {
                self.get_ready();
                let _ = raise(Signal::SIGSTOP);
                idle()
            }
            _ => exit(92),
        }
    }

    fn bytes(&self, packet: &[u8]) {
        let _ = sendmsg::<()>(
            self.channel.as_raw_fd(),
            &[IoSlice::new(packet)],
            &[],
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
    }

    fn say(&self, message: &ToSupervisor) {
        self.bytes(&encoded(message));
    }

    fn get_ready(&self) {
        self.row.beat();
        self.say(&HELLO);
        self.say(&ToSupervisor::Ready);
    }

    /// Says so, and then looks as well as can be.
    fn then(&self, words: &[ToSupervisor]) -> ! {
        for word in words {
            self.say(word);
        }
        beat_for_ever(&self.row)
    }

    fn then_bytes(&self, packet: &[u8]) -> ! {
        self.bytes(packet);
        beat_for_ever(&self.row)
    }

    /// The channel does not block: it is full at once, and stays so.
    fn say_for_ever(&self, packet: &[u8]) -> ! {
        loop {
            self.bytes(packet);
            self.row.beat();
        }
    }

    /// As many as fit, all of them the channel itself: a cycle if the receiver keeps them.
    fn send_descriptors(&self, packet: &[u8]) {
        let descriptors = [self.channel.as_fd().as_raw_fd(); 200] as [RawFd; 200];
        let control = [ControlMessage::ScmRights(&descriptors)];
        let bytes = [IoSlice::new(packet)];
        let _ = sendmsg::<()>(
            self.channel.as_raw_fd(),
            &bytes,
            &control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
    }

    /// In a group and in a session of its own, two generations down, and without this server's
    /// variables: each with the channel as input and a listener as output.
    fn leave_children(&self) {
        let ways: [(&str, bool, bool); 4] = [
            ("exec sleep 600", true, false),
            ("exec setsid sleep 600", false, false),
            ("sleep 600 & sleep 600 & exit", false, false),
            ("setsid sleep 600 & exit", false, true),
        ];
        for (script, own_group, unmarked) in ways {
            let mut command = Command::new("sh");
            command
                .args(["-c", script])
                .stdin(copy(&self.channel))
                .stderr(Stdio::null());
            if let Some(listener) = self.listeners.first() {
                command.stdout(copy(listener));
            }
            if own_group {
                command.process_group(0);
            }
            if unmarked {
                command.env_remove(PREFORK_WORKER);
            }
            let _ = command.spawn();
        }
        // They get where they are going.
        sleep(Duration::from_millis(200));
    }
}

fn copy(descriptor: &OwnedFd) -> Stdio {
    descriptor
        .try_clone()
        .map_or_else(|_| Stdio::null(), Stdio::from)
}

fn encoded(message: &ToSupervisor) -> Vec<u8> {
    wire::encode(message).unwrap_or_default()
}

fn beat_for_ever(row: &Row) -> ! {
    loop {
        row.beat();
        sleep(BEAT);
    }
}

fn idle() -> ! {
    loop {
        sleep(Duration::from_hours(1));
    }
}

fn ignore_signals() {
    for one in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGHUP,
        Signal::SIGABRT,
    ] {
        let _ = prefork_os::signal::ignore(one);
    }
}
