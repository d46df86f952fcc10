//! Standard error: our own, which must never block us, and that of the workers, which is forwarded.
//!
//! Each worker writes into a pipe. What comes out is recorded for its exit report (the tail) and
//! goes to our own standard error in whole lines, so that lines of several workers are never mixed.
//! While ours is not read, no worker's is read either: workers then wait for it, as they would if
//! they wrote there themselves.
//!
//! * [`writer`] – our own standard error;
//! * [`capture`] – a worker's;
//! * [`excerpt`] – which of its last lines say why it has exited.

pub(crate) mod capture;
pub(crate) mod excerpt;
pub(crate) mod writer;

pub(crate) use capture::Capture;
