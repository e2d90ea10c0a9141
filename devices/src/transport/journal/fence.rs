//! The fence between a process and its successor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use super::memory::Words;
use crate::lock::FENCE_PATIENCE;

/// A lock on the client's journal, for a device that has no better fence: what it has the kernel do must hold this file open
/// until it is over. io_uring holds all files that are registered with it while any request is under way. So a write that a
/// dead process has begun cannot land over a later one of its successor's, nor a read in a page that the guest uses for
/// something else by then.
#[derive(Clone, Debug)]
pub struct Fence(Arc<File>);

impl Fence {
    /// Of a process that begins a journal in `words`; none in memory of its own, which has no successor.
    pub fn begin(words: &Words) -> io::Result<Option<Self>> {
        Self::lock(words, Duration::ZERO)
    }

    /// Of a successor: waits until everything is over that the predecessor has begun.
    pub fn succeed(words: &Words) -> io::Result<Option<Self>> {
        Self::lock(words, FENCE_PATIENCE)
    }

    fn lock(words: &Words, patience: Duration) -> io::Result<Option<Self>> {
        Ok(words.lock(patience)?.map(|file| Self(Arc::new(file))))
    }
}

impl AsFd for Fence {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
