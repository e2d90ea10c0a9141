//! The memory that a client lets its server reach by `VFIO_USER_DMA_READ` and `VFIO_USER_DMA_WRITE`.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::wire::{DMA_READABLE, DMA_WRITEABLE};

/// Client memory by DMA address. An address outside of it is an error, never a panic.
pub trait ClientMemory: Debug + Send + Sync {
    /// Copies from client memory.
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Errno>;
    /// Copies to client memory.
    fn write(&self, address: u64, data: &[u8]) -> Result<(), Errno>;
}

#[derive(Clone, Copy, Debug)]
struct Range {
    address: u64,
    size: u64,
    flags: u32,
}

/// The ranges that were mapped with `VFIO_USER_DMA_MAP`; nothing else is reached.
#[derive(Debug)]
pub(super) struct ExportedMemory {
    memory: Arc<dyn ClientMemory>,
    ranges: Mutex<Vec<Range>>,
    max_transfer: u64,
}

impl ExportedMemory {
    pub(super) fn new(memory: Arc<dyn ClientMemory>, max_transfer: u64) -> Self {
        Self { memory, ranges: Mutex::default(), max_transfer }
    }

    /// The largest transfer that is taken, in bytes.
    pub(super) fn max_transfer(&self) -> u64 {
        self.max_transfer
    }

    pub(super) fn export(&self, address: u64, size: u64, flags: u32) {
        self.ranges().push(Range { address, size, flags });
    }

    /// Takes back the range that was exported last with this address and size.
    pub(super) fn withdraw(&self, address: u64, size: u64) {
        let mut ranges = self.ranges();
        if let Some(last) = ranges.iter().rposition(|range| (range.address, range.size) == (address, size)) {
            ranges.remove(last);
        }
    }

    pub(super) fn count(&self) -> usize {
        self.ranges().len()
    }

    pub(super) fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.check(address, data.len(), DMA_READABLE)?;
        self.memory.read(address, data)
    }

    pub(super) fn write(&self, address: u64, data: &[u8]) -> Result<(), Errno> {
        self.check(address, data.len(), DMA_WRITEABLE)?;
        self.memory.write(address, data)
    }

    /// `EFAULT`: not all of it lies within one exported range that the server may read.
    pub(super) fn check_readable(&self, address: u64, length: usize) -> Result<(), Errno> {
        self.check(address, length, DMA_READABLE)
    }

    fn check(&self, address: u64, length: usize, flag: u32) -> Result<(), Errno> {
        let end = address.checked_add(length as u64).ok_or(Errno::EFAULT)?;
        let within = |range: &Range| {
            let range_end = range.address.saturating_add(range.size);
            range.flags & flag != 0 && address >= range.address && end <= range_end
        };
        if self.ranges().iter().any(within) { Ok(()) } else { Err(Errno::EFAULT) }
    }

    fn ranges(&self) -> MutexGuard<'_, Vec<Range>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
