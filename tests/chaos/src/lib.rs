//! The chaos suite: a server is broken, changed and stopped in every way that it must survive, in an order that a
//! seed decides, while clients ask it in every way that clients do. Every response is verified byte for byte, and every
//! request that was not answered as promised is counted by kind. The run fails if there is any such request that was
//! not in the hands of a worker when that worker was killed.

mod pattern;
#[allow(dead_code)]
mod random;
pub mod service;
pub mod subject;

pub use pattern::Pattern;
