//! One queue's part of a journal.
//!
//! Two facts: which chains are in flight, which are those that were taken and that the driver cannot see in the used ring;
//! and the used index as far as the journal has followed it. The next entry of the available ring to take is not stored,
//! as it follows from both: every entry that was taken is either in the used ring or in flight.

use super::head_set::{HEAD_WORDS, HeadSet};
use super::memory::Words;

/// Words of a queue's part.
pub(super) const QUEUE_STATE_WORDS: usize = 1 + HEAD_WORDS;

/// Where one queue keeps its state.
#[derive(Clone, Debug)]
pub struct QueueJournal {
    words: Words,
    first: usize,
}

impl QueueJournal {
    /// At the words from `first` on.
    pub(super) fn new(words: Words, first: usize) -> Self {
        Self { words, first }
    }

    /// In memory of its own, for a queue that nothing succeeds.
    #[cfg(test)]
    pub fn own() -> Self {
        Self::new(Words::own(QUEUE_STATE_WORDS).unwrap(), 0)
    }

    /// The used index as far as the journal has followed it; unchecked.
    pub fn next_used(&self) -> u16 {
        let [low, high, ..] = self.words.load(self.first).to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// The chains in flight; unchecked.
    pub fn in_flight(&self) -> HeadSet {
        HeadSet(std::array::from_fn(|word| self.words.load(self.first + 1 + word)))
    }

    /// The chain `head` was taken: the last one to be added to `in_flight`.
    #[inline]
    pub fn taken(&self, head: u16, in_flight: &HeadSet) {
        let word = HeadSet::word_of(head);
        self.words.store(self.first + 1 + word, in_flight.0[word]);
    }

    /// The driver sees `next_used` as the used index: what was in flight before, and is no more.
    #[inline]
    pub fn shown(&self, before: &HeadSet, in_flight: &HeadSet, next_used: u16) {
        for (word, (before, now)) in before.0.iter().zip(in_flight.0).enumerate() {
            if *before != now {
                self.words.store(self.first + 1 + word, now);
            }
        }
        self.words.store(self.first, next_used.into());
    }

    /// Nothing taken, nothing used.
    pub fn clear(&self) {
        (0..QUEUE_STATE_WORDS).for_each(|word| self.words.store(self.first + word, 0));
    }
}
