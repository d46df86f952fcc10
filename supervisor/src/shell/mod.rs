//! The thin shell: everything that touches processes, descriptors, signals and clocks. Decisions are the core's.
//!
//! * [`server`] – the loop, and what each [`Action`](crate::core::Action) means;
//! * `generation`, `launch`, `hand` – from a configuration to a worker, and what is held of it;
//! * [`spawn`], [`reap`], [`signals`], [`listen`], [`notify`], [`systemd`], [`poll`] – the system, in leaves that know no policy;
//! * `lookout` – a child that sees when a program waits for connections;
//! * `gauge` – a child that measures workers' memory;
//! * `admin` – a child that serves metrics, health and the dashboard over HTTP;
//! * `hooks` – the program that is started for events;
//! * [`handover`] – how one version of the program takes a running server over from another;
//! * `stderr` – our own standard error, which must not block us, and the workers', which goes through us;
//! * `deaths`, `leftovers` – what a worker died of, told and counted, and what it has left running;
//! * [`control`], [`status`], `report`, `events`, [`log`] – what operators ask for and are told.

mod access_log;
pub(crate) mod admin;
pub mod cgroup;
pub mod confine;
pub mod control;
mod deaths;
mod doomed;
mod events;
pub(crate) mod gauge;
pub mod generation;
mod hand;
pub mod handover;
mod hooks;
mod launch;
mod leftovers;
pub mod listen;
pub mod log;
pub(crate) mod lookout;
pub mod notify;
pub mod poll;
mod queues;
pub mod reap;
mod report;
pub mod server;
pub mod signals;
pub mod spawn;
pub mod status;
mod stderr;
mod steering;
mod store;
pub mod systemd;
mod usage;
