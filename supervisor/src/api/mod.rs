//! What the server says and is asked, as data: requests, answers, the status document, events, and
//! the log lines that report them.
//!
//! Everything here can be written and read again, so that both ends of the control socket share the
//! types. This folder knows no socket, no client and no server.

pub(crate) mod answer;
pub(crate) mod events;
pub(crate) mod report;
pub(crate) mod request;
pub(crate) mod status;
pub(crate) mod worker_exit;
