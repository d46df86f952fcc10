//! systemd's notification protocol, both sides: what the supervisor reports to systemd, and what
//! workers report to the supervisor in the same format.
//!
//! Each message is one datagram of `KEY=VALUE` lines. Nothing here blocks: a receiver that does not
//! read costs a message, never time.

pub(crate) mod facts;
mod notifier;
mod server;
#[cfg(test)]
mod tests;

pub(crate) use notifier::Notifier;
pub(crate) use server::{NotifyFate, NotifyServer};
pub use server::{WorkerNotice, parse};
