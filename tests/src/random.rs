//! Random numbers that a seed repeats: SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A sequence.
pub struct Random(u64);

impl Random {
    /// The one that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A sequence that was never there before, and the seed that repeats it.
    pub fn fresh() -> (Self, u64) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = since.as_secs() << 20 | u64::from(since.subsec_micros());
        (Self::new(seed), seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`, which is not zero and much less than 2^64.
    pub fn below(&mut self, end: u64) -> u64 {
        self.any() % end
    }

    /// A time below `end`, in whole microseconds; none, if there is none below.
    pub fn time(&mut self, end: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(end.as_micros()).unwrap_or(u64::MAX).max(1)))
    }

    /// One of them.
    ///
    /// # Panics
    /// If there is none.
    pub fn one_of<T: Copy>(&mut self, items: &[T]) -> T {
        items[usize::try_from(self.below(items.len() as u64)).unwrap_or(0)]
    }

    /// Any order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1);
            items.swap(last, usize::try_from(other).unwrap_or(last));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_below_none() {
        assert_eq!(Random::fresh().0.time(Duration::ZERO), Duration::ZERO);
    }
}
