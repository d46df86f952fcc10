//! System calls, each behind a function that is safe to call: the only crate of the workspace in
//! which `unsafe` is allowed, so that everything that the compiler cannot check is read here.
//!
//! A module per topic. What a call is good for, in which order calls are made and what an operator
//! is told when one fails is decided by the crates that use this one.
//!
//! * [`descriptor`], [`socket`], [`packet`], [`memory`] – descriptors and what is behind them;
//! * [`spawn`] – fork and exec, and every step that a child takes in between, as data: its
//!   [`confinement`] is made of an [`identity`], [`capabilities`], a [`landlock`] ruleset, a
//!   [`seccomp`] filter and a [`private_tmp`];
//! * [`exec`], [`environment`], [`process`], [`fsuid`] – what this process does to itself;
//! * [`pidfd`], [`wait`], [`signal`] – other processes, and what comes from them;
//! * [`clock`], [`mod@file`], [`terminal`].
//!
//! *Invariant*: between fork and exec a child allocates nothing, takes no lock and makes
//! async-signal-safe calls only. Functions that may run there say so.
//!
//! *Invariant*: every descriptor that the server opens is closed on exec. [`adopt`] relies on it.
#![allow(unsafe_code)]
// System calls take lengths of kernel structures, flags and descriptor numbers as integers of many
// types. All of them are small.
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]

mod accept;
pub mod capabilities;
pub mod clock;
pub mod confinement;
pub mod descriptor;
pub mod environment;
pub mod exec;
pub mod file;
pub mod fsuid;
#[cfg(feature = "hyper")]
pub mod hyper;
pub mod identity;
pub mod landlock;
pub mod memory;
pub mod packet;
pub mod pidfd;
pub mod private_tmp;
pub mod process;
pub mod seccomp;
pub mod signal;
pub mod socket;
pub mod spawn;
pub mod terminal;
#[doc(hidden)]
pub mod testing;
#[cfg(feature = "tokio")]
pub mod tokio;
pub mod wait;

pub use accept::accept;
pub use clock::{monotonic, monotonic_ms, monotonic_us};
pub use descriptor::{adopt, is_nonblocking, set_blocking, set_nonblocking};
pub use memory::{AnyBytes, SharedMemory, sealed_memory};
pub use packet::{Sent, receive_packet, receive_with_descriptor, receive_with_sender};
pub use socket::{ListenQueue, ignore_travelled_packets, listen_queue, lock_filter, peer_groups};
