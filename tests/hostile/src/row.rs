//! What a hostile worker writes on its row of the scoreboard.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// The places of a row's numbers, in the order of [`prefork_protocol::scoreboard::Row`].
pub(crate) const HEARTBEAT: u64 = 0;
/// Requests answered.
pub(crate) const REQUESTS: u64 = 1;
/// Connections accepted.
pub(crate) const CONNECTIONS: u64 = 2;
/// All of a row, in bytes.
const LENGTH: usize = size_of::<prefork_protocol::scoreboard::Row>();

/// The memory file, written like any other file.
pub(crate) struct Row(File);

impl Row {
    pub(crate) fn new(file: OwnedFd) -> Self {
        Self(File::from(file))
    }

    pub(crate) fn put(&self, field: u64, number: u64) {
        let _ = self.0.write_at(&number.to_ne_bytes(), field * 8);
    }

    /// An honest heartbeat.
    pub(crate) fn beat(&self) {
        self.put(HEARTBEAT, prefork_os::monotonic_ms());
    }

    /// The same byte everywhere.
    pub(crate) fn fill(&self, byte: u8) {
        let _ = self.0.write_at(&[byte; LENGTH], 0);
    }

    /// Bytes that differ with each `seed`, everywhere.
    pub(crate) fn scribble(&self, seed: u64) {
        for field in 0..(LENGTH / 8) as u64 {
            self.put(
                field,
                (seed + field)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .rotate_left(31),
            );
        }
    }

    /// Tries to make it longer or shorter; tells whether that was refused.
    pub(crate) fn is_sealed(&self) -> bool {
        self.0.set_len(0).is_err() && self.0.set_len(1 << 30).is_err()
    }
}
