//! Numbers that look random and follow from a seed.

/// Mixes a number so that neighbours have nothing in common (the finisher of SplitMix64).
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A source of numbers (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// A source of its own for each purpose of a run, so that one purpose's needs do not shift
    /// another's numbers.
    pub(crate) fn new(seed: u64, purpose: u64) -> Self {
        Self(mix(seed ^ mix(purpose)))
    }

    pub(crate) fn next(&mut self) -> u64 {
        let number = mix(self.0);
        self.0 = self.0.wrapping_add(STEP);
        number
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    /// Whether something happens that happens so often in a hundred.
    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }

    /// A waiting time whose average is `mean`, as between independent arrivals.
    pub(crate) fn waiting(&mut self, mean: f64) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let share = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        -mean * (1.0 - share).ln()
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.between(0, last as u64);
            items.swap(last, usize::try_from(other).unwrap_or(0));
        }
    }
}
