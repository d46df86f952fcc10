//! Identifiers of slots, workers and generations.
//!
//! Each is a type of its own, so that a slot cannot be passed where a worker is meant.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A place to be filled by a worker, with listening sockets of its own. Slots count from 0 and are
/// reused.
///
/// ```
/// # use prefork_core::Slot;
/// assert_eq!(format!("slot {}", Slot(2)), "slot 2");
/// ```
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Encode,
    Decode,
    Serialize,
    Deserialize,
)]
pub struct Slot(pub u16);

impl Slot {
    /// The most slots a server can have; the scoreboard is laid out for them.
    pub const MAX: u16 = 1024;

    /// Returns the slot as an index into a vector.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A worker process. Counts from 1 over the life of the supervisor and is never reused, unlike a
/// pid.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Encode,
    Decode,
    Serialize,
    Deserialize,
)]
pub struct WorkerId(pub u64);

/// A configuration with the program it names, offered by a start or a reload. Counts from 1; a
/// rejected reload uses up its number.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Encode,
    Decode,
    Serialize,
    Deserialize,
)]
pub struct GenerationId(pub u32);

impl GenerationId {
    /// Returns the generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

macro_rules! displays_as_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
displays_as_number!(Slot, WorkerId, GenerationId);
