//! The supervisor.
pub mod core;
