//! systemd's interfaces without its library: notifications in both directions, the FD store, and
//! the journal as standard error. Socket activation is a matter of [`listen`](crate::listen).

pub(crate) mod fd_store;
pub(crate) mod journal;
pub(crate) mod notify;
