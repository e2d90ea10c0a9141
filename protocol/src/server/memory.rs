//! Client memory as a device reaches it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, VolatileSlice};

/// What the client has mapped for DMA at one moment: cheap to clone, safe to share between threads.
///
/// It is a snapshot: when the client maps or unmaps a range, the device is given a new one
/// ([`super::Device::memory_changed`]).
#[derive(Clone, Debug, Default)]
pub struct Memory {
    readable: Arc<GuestMemoryMmap>,
    writable: Arc<GuestMemoryMmap>,
}

/// An address range that the client has not made available for this kind of DMA.
#[derive(Debug, thiserror::Error)]
#[error("DMA address {address:#x}, {length} bytes: not mapped")]
pub struct MemoryError {
    address: u64,
    length: usize,
    source: GuestMemoryError,
}

impl Memory {
    pub(super) fn new(readable: GuestMemoryMmap, writable: GuestMemoryMmap) -> Self {
        Self { readable: Arc::new(readable), writable: Arc::new(writable) }
    }

    /// Copies from client memory.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        let length = data.len();
        self.readable.read_slice(data, GuestAddress(address)).map_err(|source| error(address, length, source))
    }

    /// Copies to client memory.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        let length = data.len();
        self.writable.write_slice(data, GuestAddress(address)).map_err(|source| error(address, length, source))
    }

    /// Borrows a range that the device will only read. The range must lie within one mapping, which may be read-only:
    /// storing through this slice can fault.
    pub fn readable_slice(&self, address: u64, length: usize) -> Result<VolatileSlice<'_>, MemoryError> {
        self.readable.get_slice(GuestAddress(address), length).map_err(|source| error(address, length, source))
    }

    /// Borrows a range that the device will write. The range must lie within one mapping.
    pub fn writable_slice(&self, address: u64, length: usize) -> Result<VolatileSlice<'_>, MemoryError> {
        self.writable.get_slice(GuestAddress(address), length).map_err(|source| error(address, length, source))
    }

    /// Reads a little-endian 16-bit index of a virtqueue that the other side may be writing.
    pub fn load_u16(&self, address: u64, order: Ordering) -> Result<u16, MemoryError> {
        self.readable.load(GuestAddress(address), order).map_err(|source| error(address, 2, source))
    }

    /// Writes a little-endian 16-bit index of a virtqueue that the other side may be reading.
    pub fn store_u16(&self, address: u64, value: u16, order: Ordering) -> Result<(), MemoryError> {
        self.writable.store(value, GuestAddress(address), order).map_err(|source| error(address, 2, source))
    }
}

fn error(address: u64, length: usize, source: GuestMemoryError) -> MemoryError {
    MemoryError { address, length, source }
}
