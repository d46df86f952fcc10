//! Chance, from a seed.

use std::time::Duration;

/// A small generator (xorshift64*, Marsaglia 2003 and Vigna 2016), so that a seed means the same
/// everywhere.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub(crate) fn below<T: TryFrom<u64>>(&mut self, bound: u64) -> T {
        let number = self.roll() % bound;
        T::try_from(number).unwrap_or_else(|_| panic!("{number} does not fit"))
    }

    pub(crate) fn percent(&mut self, share: u64) -> bool {
        self.below::<u64>(100) < share
    }

    pub(crate) fn millis(&mut self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound))
    }
}
