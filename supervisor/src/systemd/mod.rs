//! systemd's interfaces, spoken without its library: socket activation, notifications in both directions, and the FD
//! store.

pub(crate) mod fd_store;
pub(crate) mod journal;
pub(crate) mod notify;
