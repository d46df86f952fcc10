//! Processes and signals: fork and exec, reaping, signal delivery, and the epoll instance that
//! waits for all of it. Nothing here knows what a worker is.

pub(crate) mod ancestry;
pub(crate) mod poll;
pub(crate) mod reap;
pub(crate) mod signals;
pub(crate) mod spawn;
