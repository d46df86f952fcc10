//! The thin shell: everything that touches processes, descriptors, signals and clocks. Decisions are made elsewhere.

pub mod listen;
pub mod notify;
pub mod reap;
pub mod signals;
pub mod spawn;
pub mod systemd;
