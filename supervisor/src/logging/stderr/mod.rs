//! Standard error: our own, which must never block us, and those of the workers, which are read and passed on.
//!
//! Each worker writes into a pipe. What comes out is kept for a while (a worker's last words) and goes to our own
//! standard error in whole lines, so that lines of several workers are never torn into each other. When nobody reads
//! ours, nobody's is read either: then workers wait for it, as they would if they wrote there themselves.
//!
//! * [`outlet`] – our own standard error;
//! * [`capture`] – a worker's.

pub(crate) mod capture;
pub(crate) mod outlet;

pub(crate) use capture::Capture;
