//! What a body must be: bytes that follow from a key and a length, and can be checked piece by
//! piece.

use crate::random::mix;

/// A body's bytes. Two bodies of different key or length differ from the first word on, so that an
/// answer which belongs to another request shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
    /// How many bytes it has.
    pub length: u64,
}

impl Pattern {
    /// The body of this key and length.
    pub fn new(key: u64, length: u64) -> Self {
        Self {
            seed: mix(key ^ mix(length)),
            length,
        }
    }

    /// Writes the bytes from `offset` on; at most to the pattern's end. Returns how many those
    /// were.
    pub fn fill(&self, offset: u64, out: &mut [u8]) -> usize {
        let mut done = 0;
        self.words(offset, out.len(), |piece| {
            out[done..done + piece.len()].copy_from_slice(piece);
            done += piece.len();
            true
        });
        done
    }

    /// Where `bytes`, which stand at `offset`, first differ.
    pub fn differs(&self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let mut done = 0;
        let mut wrong = None;
        self.words(offset, bytes.len(), |piece| {
            let here = &bytes[done..done + piece.len()];
            if here != piece {
                let at = here
                    .iter()
                    .zip(piece)
                    .position(|(a, b)| a != b)
                    .unwrap_or(0);
                wrong = Some(offset + (done + at) as u64);
                return false;
            }
            done += piece.len();
            true
        });
        wrong.or((done < bytes.len()).then_some(offset + done as u64))
    }

    /// The whole body.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(self.length).unwrap_or(usize::MAX)];
        self.fill(0, &mut out);
        out
    }

    /// Hands out the bytes from `offset` on in pieces of at most a word, until told to stop.
    fn words(&self, offset: u64, wanted: usize, mut each: impl FnMut(&[u8]) -> bool) {
        let end = self.length.min(offset + wanted as u64);
        let mut at = offset;
        while at < end {
            let word = mix(self.seed.wrapping_add(at / 8)).to_le_bytes();
            let from = at % 8;
            let to = (from + end - at).min(8);
            #[allow(clippy::cast_possible_truncation)]
            if !each(&word[from as usize..to as usize]) {
                return;
            }
            at += to - from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_can_be_checked_in_any_pieces() {
        let pattern = Pattern::new(7, 1000);
        let whole = pattern.bytes();
        assert_eq!(whole.len(), 1000);
        for size in [1, 3, 8, 13, 999, 1000] {
            for (number, piece) in whole.chunks(size).enumerate() {
                assert_eq!(pattern.differs((number * size) as u64, piece), None);
            }
        }
    }

    #[test]
    fn a_wrong_byte_a_byte_too_many_and_another_body_are_seen() {
        let pattern = Pattern::new(7, 100);
        let mut bytes = pattern.bytes();
        bytes[42] ^= 1;
        assert_eq!(pattern.differs(0, &bytes), Some(42));
        let mut longer = pattern.bytes();
        longer.push(0);
        assert_eq!(pattern.differs(0, &longer), Some(100));
        assert_eq!(Pattern::new(8, 100).differs(0, &pattern.bytes()), Some(0));
        assert!(Pattern::new(7, 200).differs(0, &pattern.bytes()).is_some());
    }
}
