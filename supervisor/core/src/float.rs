//! Conversions between integers and floating point, for loads and shares, which are approximate.

/// Converts a number; beyond 2^53 to the nearest one that a float can hold.
#[expect(clippy::cast_precision_loss, reason = "a load is approximate")]
pub(crate) fn from_u64(number: u64) -> f64 {
    number as f64
}

/// Drops the fraction. A number out of range becomes the nearest in range, NaN becomes 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, as it should"
)]
pub(crate) fn to_u64(number: f64) -> u64 {
    number as u64
}

/// Converts a length.
#[cfg(test)]
pub(crate) fn from_len(length: usize) -> f64 {
    from_u64(u64::try_from(length).unwrap_or(u64::MAX))
}

/// Drops the fraction of an index.
#[cfg(test)]
pub(crate) fn to_index(number: f64) -> usize {
    usize::try_from(to_u64(number)).unwrap_or(usize::MAX)
}
