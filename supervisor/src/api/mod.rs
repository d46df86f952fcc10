//! What the server tells about itself, as data: the status document, events, and the log lines that report them.
//!
//! This folder knows no socket and no client: [`control`](crate::control) and [`admin`](crate::admin) carry what is
//! made here.

pub(crate) mod events;
pub(crate) mod report;
pub(crate) mod status;
pub(crate) mod worker_exit;
