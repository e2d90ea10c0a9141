//! The memory of a journal.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outrigger_protocol::journal::JournalMemory;

use crate::lock::{Others, lock};

/// Words that only ever are loaded and stored whole. Clones refer to the same memory.
#[derive(Clone, Debug)]
pub struct Words(JournalMemory);

impl Words {
    /// Memory of this process alone, all zero.
    ///
    /// # Errors
    /// There is none left.
    pub fn own(count: usize) -> io::Result<Self> {
        JournalMemory::private(count * size_of::<u64>()).map(Self)
    }

    /// Locks a client's memory, as [`super::Fence`] says; none: this is memory of this process alone.
    pub(super) fn lock(&self, patience: Duration) -> io::Result<Option<File>> {
        let file = self.0.file()?;
        if let Some(file) = &file {
            lock(file, Others::Wait, patience)?;
        }
        Ok(file)
    }

    fn get(&self, index: usize) -> Option<&AtomicU64> {
        self.0.words().get(index)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.words().len()
    }

    /// A word; zero beyond the end.
    #[inline]
    pub fn load(&self, index: usize) -> u64 {
        self.get(index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Stores a word, after everything that was stored before; nothing beyond the end.
    #[inline]
    pub fn store(&self, index: usize, value: u64) {
        #[cfg(test)]
        super::kill_points::about_to_store();
        if let Some(word) = self.get(index) {
            word.store(value, Ordering::Release);
        }
    }
}

impl From<JournalMemory> for Words {
    fn from(memory: JournalMemory) -> Self {
        Self(memory)
    }
}
