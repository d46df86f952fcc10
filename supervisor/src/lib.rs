//! Placeholder.

pub mod shell;
