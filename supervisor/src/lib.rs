//! The supervisor.
pub mod config;
pub mod core;
pub mod shell;
