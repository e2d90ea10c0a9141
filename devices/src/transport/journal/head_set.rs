//! Sets of descriptor chains, by the index of their first descriptor.

use super::super::layout::MAX_QUEUE_SIZE;

/// Words of a set.
pub const HEAD_WORDS: usize = MAX_QUEUE_SIZE as usize / 64;

/// Some of the chains of one queue: one bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadSet(pub [u64; HEAD_WORDS]);

impl HeadSet {
    fn bit(head: u16) -> (usize, u64) {
        // A head is below the size of its queue, which is at most `MAX_QUEUE_SIZE`.
        (usize::from(head / 64) % HEAD_WORDS, 1 << (head % 64))
    }

    /// Which word the chain is in.
    pub fn word_of(head: u16) -> usize {
        Self::bit(head).0
    }

    /// Whether the chain is among them.
    #[inline]
    pub fn contains(&self, head: u16) -> bool {
        let (word, bit) = Self::bit(head);
        self.0[word] & bit != 0
    }

    /// Adds a chain.
    #[inline]
    pub fn insert(&mut self, head: u16) {
        let (word, bit) = Self::bit(head);
        self.0[word] |= bit;
    }

    /// Takes a chain out.
    #[inline]
    pub fn remove(&mut self, head: u16) {
        let (word, bit) = Self::bit(head);
        self.0[word] &= !bit;
    }

    /// Takes several chains out.
    #[inline]
    pub fn remove_all(&mut self, others: &Self) {
        self.0.iter_mut().zip(others.0).for_each(|(word, other)| *word &= !other);
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.iter().fold(0, |all, word| all | word) == 0
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        let bits: u32 = self.0.iter().map(|word| word.count_ones()).sum();
        u16::try_from(bits).expect("256 bits")
    }

    /// The first one.
    #[inline]
    pub fn first(&self) -> Option<u16> {
        let word = self.0.iter().position(|&word| word != 0)?;
        u16::try_from(64 * word + self.0[word].trailing_zeros() as usize).ok()
    }

    /// Whether all are below `size`.
    pub fn is_within(&self, size: u16) -> bool {
        (0..HEAD_WORDS).all(|word| {
            let below = usize::from(size).saturating_sub(64 * word).min(64);
            below == 64 || self.0[word] >> below == 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_come_and_go_in_every_word() {
        let mut set = HeadSet::default();
        assert_eq!((set.first(), set.count(), set.is_empty()), (None, 0, true));
        for head in [255, 64, 63, 0] {
            set.insert(head);
            assert_eq!(set.first(), Some(head));
            assert!(set.contains(head) && set.is_within(256));
        }
        assert_eq!(set.count(), 4);
        assert!(!set.is_within(255) && !set.is_within(128));
        set.remove(255);
        assert!(set.is_within(65) && !set.is_within(64) && !set.is_within(1));
    }
}
