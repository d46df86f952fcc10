//! Pseudo-random numbers.

/// A small generator of pseudo-random numbers (SplitMix64, Steele et al., 2014). Seeded from
/// outside, so that the core stays a function of its input.
#[derive(Debug, Clone, bincode::Encode, bincode::Decode)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    /// Returns a number from 0 to 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from(u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    }
}
