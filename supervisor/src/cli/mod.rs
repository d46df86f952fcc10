//! The program's entry points: which role this process plays, and what a command line asks for.

mod check;
pub(crate) mod own_path;
pub(crate) mod roles;
