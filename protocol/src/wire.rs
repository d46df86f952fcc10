//! The wire format: bincode 2 in its `standard()` configuration, one message a packet.
//!
//! This is the only module that names bincode. The crate has no maintainer (RUSTSEC-2025-0141), so
//! it is pinned, kept behind these two functions, and its bytes are guarded by golden tests: a
//! maintained fork that writes the same bytes can take its place here without anything else
//! noticing.
//!
//! What is read here comes from a process that may have been taken over. bincode's own limit counts
//! memory and not bytes on the wire, does not hold for encoding, and says nothing about what is
//! left over; hence the checks around it. Message types must not contain recursive types, maps, or
//! vectors of zero-sized elements.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use thiserror::Error;

/// The longest packet that either side may send, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;

/// What decoding one packet may take up in memory, in bytes. Strings and byte vectors cost what
/// they are long.
const MEMORY: usize = 4 * MAX_PACKET;

const CONFIG: Configuration<LittleEndian, Varint, Limit<MEMORY>> =
    bincode::config::standard().with_limit();

/// Why bytes are not a message, or a message cannot become bytes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// The packet is longer than [`MAX_PACKET`].
    #[error("a packet of {0} bytes is over the limit of {MAX_PACKET}")]
    TooLong(usize),
    /// The bytes decode to no message of the expected type.
    #[error("undecodable message: {0}")]
    Malformed(String),
    /// A message was decoded, and this many bytes were left over.
    #[error("{0} bytes were left over after the message")]
    Trailing(usize),
}

/// Turns a message into the bytes of one packet.
///
/// # Errors
/// [`WireError::TooLong`] when the message needs more than [`MAX_PACKET`] bytes.
///
/// ```
/// use prefork_protocol::wire::{decode, encode};
/// let packet = encode(&("ready", 7_u16))?;
/// assert_eq!(decode::<(String, u16)>(&packet)?, ("ready".to_owned(), 7));
/// # Ok::<(), prefork_protocol::wire::WireError>(())
/// ```
pub fn encode<T: bincode::Encode>(message: &T) -> Result<Vec<u8>, WireError> {
    let packet = bincode::encode_to_vec(message, CONFIG)
        .map_err(|error| WireError::Malformed(error.to_string()))?;
    if packet.len() > MAX_PACKET {
        Err(WireError::TooLong(packet.len()))
    } else {
        Ok(packet)
    }
}

/// Reads the one message in a packet. Never panics and never allocates more than a few packets'
/// worth, whatever the bytes are.
///
/// # Errors
/// Any [`WireError`]; the packet is then to be thrown away, and its sender not to be
/// believed again.
pub fn decode<T: bincode::Decode<()>>(packet: &[u8]) -> Result<T, WireError> {
    if packet.len() > MAX_PACKET {
        return Err(WireError::TooLong(packet.len()));
    }
    let (message, used) = bincode::decode_from_slice(packet, CONFIG)
        .map_err(|error| WireError::Malformed(error.to_string()))?;
    match packet.len() - used {
        0 => Ok(message),
        left => Err(WireError::Trailing(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ToSupervisor, ToWorker};
    use proptest::prelude::*;

    #[test]
    fn a_length_that_lies_is_an_error_and_not_an_allocation() {
        // 253 announces a u64 that follows: a string of 2^60 bytes.
        let mut packet = vec![253];
        packet.extend_from_slice(&(1_u64 << 60).to_le_bytes());
        assert!(matches!(
            decode::<String>(&packet),
            Err(WireError::Malformed(_))
        ));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut packet = encode(&7_u32).expect("a number fits");
        packet.push(0);
        assert_eq!(decode::<u32>(&packet), Err(WireError::Trailing(1)));
    }

    #[test]
    fn too_long_is_refused_both_ways() {
        let long = "x".repeat(MAX_PACKET + 1);
        assert!(matches!(encode(&long), Err(WireError::TooLong(_))));
        assert!(matches!(
            decode::<String>(long.as_bytes()),
            Err(WireError::TooLong(_))
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(packet in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode::<ToWorker>(&packet);
            let _ = decode::<ToSupervisor>(&packet);
        }
    }
}
