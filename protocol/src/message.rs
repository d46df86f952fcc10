//! What a supervisor and a worker say to each other.
//!
//! ```text
//! supervisor                              worker
//!     | -- Welcome ------------------------> |   sent before the worker runs; waits in the socket
//!     | <------------------------- Hello --  |   first packet: which protocol the worker speaks
//!     | <------------------------- Ready --  |   or Failed: it cannot start, and why
//!     |            (serving)                 |
//!     | -- Drain --------------------------> |
//!     | <---------------------- Draining --  |   it has stopped accepting
//!     |                                      |   ... finishes, exits 0
//! ```
//!
//! Heartbeats and counters do not travel here: they are in the [scoreboard](crate::scoreboard), so
//! that a busy worker makes no system call for them and a flood of them cannot exist.
//!
//! **Compatibility.** Variants and fields are only ever appended, and [`PROTOCOL`] goes up when a
//! side could receive what it does not understand. ([`ToWorker::Reopen`] left it unchanged: only
//! workers that were started with an access log receive it, and a version that can write one knows
//! the message. So a server without an access log can be upgraded in place to a version that has
//! it.) The golden tests below fail when bytes of an existing message change.

use crate::settings::WorkerSettings;
use bincode::{Decode, Encode};
use prefork_core::{GenerationId, Slot, WorkerId};

/// The version of this protocol, said by both sides in their first packet.
pub const PROTOCOL: u16 = 1;

/// The longest reason or status text that a worker may send, in bytes. Longer ones are cut by the
/// sender.
pub const MAX_TEXT: usize = 1024;

/// A message from the supervisor to a worker.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum ToWorker {
    /// The first packet. It is in the socket before the worker runs.
    Welcome(Welcome),
    /// Stop accepting, finish active requests, exit.
    Drain(Drain),
    /// Write the access log to the descriptor that comes with this message from now on. Only to
    /// workers that were started with one.
    Reopen,
}

/// The identity of a worker, and how it is to serve.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Welcome {
    /// [`PROTOCOL`] of the supervisor.
    pub protocol: u16,
    /// The worker's own id.
    pub worker: WorkerId,
    /// The slot it fills.
    pub slot: Slot,
    /// The generation it belongs to.
    pub generation: GenerationId,
    /// How many workers the server runs.
    pub workers: u16,
    /// How to serve.
    pub settings: WorkerSettings,
}

/// How to drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Drain {
    /// Milliseconds until the supervisor kills the worker.
    pub deadline_ms: u64,
    /// No worker follows in this slot: accept what already waits in its own queue before leaving.
    pub empty_queue: bool,
}

/// A message from a worker to the supervisor.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum ToSupervisor {
    /// The first packet: the protocol that the worker speaks.
    Hello {
        /// [`PROTOCOL`] of the worker.
        protocol: u16,
    },
    /// It accepts connections from now on.
    Ready,
    /// It cannot start and will exit; why, for the operator.
    Failed {
        /// One sentence, at most [`MAX_TEXT`] bytes.
        reason: String,
    },
    /// It has stopped accepting, as it was asked to.
    Draining,
    /// What it is doing, as text for `supervisor status`.
    Status {
        /// One sentence, at most [`MAX_TEXT`] bytes.
        text: String,
    },
}

/// Cuts a text to [`MAX_TEXT`] bytes at a character's end.
///
/// ```
/// assert_eq!(prefork_protocol::message::clip("short"), "short");
/// ```
pub fn clip(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Class;
    use crate::wire::{decode, encode};
    use std::fmt::Debug;

    fn golden<T: Encode + Decode<()> + PartialEq + Debug>(message: &T, bytes: &[u8]) {
        assert_eq!(
            encode(message).expect("it fits"),
            bytes,
            "{message:?} is written differently now"
        );
        assert_eq!(&decode::<T>(bytes).expect("it decodes"), message);
    }

    #[test]
    fn golden_bytes_to_supervisor() {
        golden(&ToSupervisor::Hello { protocol: 1 }, &[0, 1]);
        golden(&ToSupervisor::Ready, &[1]);
        golden(
            &ToSupervisor::Failed {
                reason: "no".to_owned(),
            },
            &[2, 2, b'n', b'o'],
        );
        golden(&ToSupervisor::Draining, &[3]);
        golden(
            &ToSupervisor::Status {
                text: "x".to_owned(),
            },
            &[4, 1, b'x'],
        );
    }

    #[test]
    fn golden_bytes_to_worker() {
        golden(
            &ToWorker::Drain(Drain {
                deadline_ms: 30_000,
                empty_queue: true,
            }),
            &[1, 251, 0x30, 0x75, 1],
        );
        golden(&ToWorker::Reopen, &[2]);
        let settings = WorkerSettings {
            class: Class {
                threads: 4,
                connections: 1,
            },
            app: "hello".to_owned(),
            heartbeat_ms: 1,
            drain_idle_ms: 2,
            keep_alive_ms: 3,
            header_timeout_ms: 4,
            request_timeout_ms: 0,
            max_head_bytes: 5,
            max_body_bytes: 6,
            log_level: 3,
        };
        let welcome = Welcome {
            protocol: 1,
            worker: WorkerId(9),
            slot: Slot(2),
            generation: GenerationId(3),
            workers: 8,
            settings,
        };
        golden(
            &ToWorker::Welcome(welcome),
            &[
                0, 1, 9, 2, 3, 8, 4, 1, 5, b'h', b'e', b'l', b'l', b'o', 1, 2, 3, 4, 0, 5, 6, 3,
            ],
        );
    }

    #[test]
    fn clip_respects_characters() {
        let text = "ä".repeat(MAX_TEXT);
        assert_eq!(clip(&text).len(), MAX_TEXT);
        assert_eq!(clip(&format!("x{text}")).len(), MAX_TEXT - 1);
    }
}
