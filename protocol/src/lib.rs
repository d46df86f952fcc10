//! The contract between a prefork supervisor and its workers.
//!
//! A supervisor and its workers are separate processes. They meet in four places, and this crate
//! owns all four:
//!
//! * the **channel** ([`channel`], [`message`], [`wire`]): a `SOCK_SEQPACKET` socketpair per worker
//!   that carries one bincode message a packet, with types that cannot be sent the wrong way;
//! * the **scoreboard** ([`scoreboard`]): shared memory in which a worker counts and beats;
//! * the **environment** ([`environment`]): the variables and descriptors that a worker inherits,
//!   systemd's own contract and a few `PREFORK_*` names beside it;
//! * the **settings** ([`settings`]) by which a Rust worker serves.
//!
//! It deliberately knows no policy (that is the supervisor's core) and no protocol that clients
//! speak (that is `prefork-worker`). It holds no thread, no event loop and no global state.
//!
//! Start reading at [`message`]; `docs/glossary.md` defines every term.
#![forbid(unsafe_code)]

pub mod access_log;
pub mod channel;
pub mod environment;
pub mod message;
pub mod scoreboard;
pub mod settings;
pub mod wire;

pub use prefork_core::{GenerationId, Slot, WorkerId};
