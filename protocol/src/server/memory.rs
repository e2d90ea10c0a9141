//! Client memory as a device reaches it.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use nix::errno::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, VolatileSlice};

use super::connection::{Connection, Unreached};
use super::dirty_log::DirtyLog;
use super::mappings::Mappings;
use super::sigbus::Guard;
use crate::wire::{DMA_READABLE, DMA_WRITEABLE};

/// The client's memory available for DMA at one moment: cheap to clone, safe to share between threads.
///
/// It is a snapshot: when the client maps or unmaps a range, the device is given a new one
/// ([`super::Device::memory_changed`]). A range that came with a descriptor is mapped; any other is reached by messages
/// to the client (`VFIO_USER_DMA_READ`, `VFIO_USER_DMA_WRITE`), from any thread and also while a method of
/// [`super::Device`] runs. A message that is not answered within [`super::Options::deadline`] ends the connection.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    // First, as they must be gone before the mappings are.
    _guards: Option<Arc<[Arc<Guard>]>>,
    readable: Arc<Mappings>,
    writable: Arc<Mappings>,
    by_message: Option<Arc<ByMessage>>,
    /// Notes what is written, while the client wants that.
    log: Option<Arc<DirtyLog>>,
}

/// The ranges that are reached by messages, sorted by address and without overlap.
#[derive(Debug)]
struct ByMessage {
    ranges: Vec<MessageRange>,
    connection: Arc<Connection>,
}

/// A range that came without a descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessageRange {
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) flags: u32,
}

/// Why client memory was not reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The client has not made the range available for this kind of DMA, or (of a slice) has not let it be mapped.
    #[error("DMA address {address:#x}, {length} bytes: not mapped")]
    NotMapped {
        /// The first DMA address.
        address: u64,
        /// Bytes.
        length: usize,
        /// Where it is missing.
        source: GuestMemoryError,
    },
    /// The client refused a message.
    #[error("DMA address {address:#x}, {length} bytes: the client answers {errno}")]
    Refused {
        /// The first DMA address.
        address: u64,
        /// Bytes.
        length: usize,
        /// The client's errno; `UnknownErrno` when it gave none.
        errno: Errno,
    },
    /// The client is gone, or was cut off because it did not answer.
    #[error("DMA address {address:#x}, {length} bytes: the client is gone")]
    Disconnected {
        /// The first DMA address.
        address: u64,
        /// Bytes.
        length: usize,
    },
}

impl Memory {
    pub(super) fn new(
        readable: GuestMemoryMmap,
        writable: GuestMemoryMmap,
        ranges: Vec<MessageRange>,
        connection: &Arc<Connection>,
    ) -> Self {
        let by_message = (!ranges.is_empty()).then(|| Arc::new(ByMessage { ranges, connection: connection.clone() }));
        let [readable, writable] = [readable, writable].map(|memory| Arc::new(Mappings::new(memory)));
        Self { _guards: None, readable, writable, by_message, log: None }
    }

    /// Keeps these for as long as the mappings.
    pub(super) fn with_guards(self, guards: Vec<Arc<Guard>>) -> Self {
        Self { _guards: Some(guards.into()), ..self }
    }

    pub(super) fn with_log(self, log: Option<Arc<DirtyLog>>) -> Self {
        Self { log, ..self }
    }

    /// Says that the device has written a range by other means than [`Memory::write`], [`Memory::write_array`] and
    /// [`Memory::store_u16`]: to a slice, or by an address that it gave to the kernel. Only after the write is done, and
    /// only in a device that has [`super::Device::logs_dma`].
    #[inline]
    pub fn mark_dirty(&self, address: u64, length: usize) {
        if let Some(log) = &self.log {
            log.mark(address, length);
        }
    }

    /// Copies from client memory.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        let length = data.len();
        if let Some(slice) = self.readable.slice(address, length) {
            slice.copy_to(data);
            return Ok(());
        }
        match self.readable.memory().read_slice(data, GuestAddress(address)) {
            Ok(()) => Ok(()),
            Err(source) => self.read_by_message(address, data).unwrap_or(Err(error(address, length, source))),
        }
    }

    /// Copies a few bytes from client memory, with little ado.
    #[inline]
    pub fn read_array<const N: usize>(&self, address: u64) -> Result<[u8; N], MemoryError> {
        if let Some(bytes) = self.readable.load(address) {
            return Ok(bytes);
        }
        let mut bytes = [0; N];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies a few bytes to client memory, with little ado.
    #[inline]
    pub fn write_array<const N: usize>(&self, address: u64, bytes: [u8; N]) -> Result<(), MemoryError> {
        match self.writable.store(address, bytes) {
            Some(()) => {
                self.mark_dirty(address, N);
                Ok(())
            }
            None => self.write(address, &bytes),
        }
    }

    /// Copies to client memory.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        let length = data.len();
        if let Some(slice) = self.writable.slice(address, length) {
            slice.copy_from(data);
            self.mark_dirty(address, length);
            return Ok(());
        }
        match self.writable.memory().write_slice(data, GuestAddress(address)) {
            Ok(()) => {
                self.mark_dirty(address, length);
                Ok(())
            }
            Err(source) => {
                let written = self.write_by_message(address, data);
                // Also after an error: a part may have been written.
                self.mark_dirty(address, length);
                written.unwrap_or(Err(error(address, length, source)))
            }
        }
    }

    /// Borrows a range that the device will only read. The range must lie within one mapping, which may be read-only:
    /// storing through this slice can fault. What is reached by messages cannot be borrowed.
    #[inline]
    pub fn readable_slice(&self, address: u64, length: usize) -> Result<VolatileSlice<'_>, MemoryError> {
        match self.readable.slice(address, length) {
            Some(slice) => Ok(slice),
            None => unmapped(self.readable.memory(), address, length),
        }
    }

    /// Borrows a range that the device will write. The range must lie within one mapping. What is reached by messages
    /// cannot be borrowed.
    #[inline]
    pub fn writable_slice(&self, address: u64, length: usize) -> Result<VolatileSlice<'_>, MemoryError> {
        match self.writable.slice(address, length) {
            Some(slice) => Ok(slice),
            None => unmapped(self.writable.memory(), address, length),
        }
    }

    /// Whether a range lies within one mapping, so that it can be borrowed in each direction that it is open to.
    pub fn is_mapped(&self, address: u64, length: usize) -> bool {
        self.readable_slice(address, length).is_ok() || self.writable_slice(address, length).is_ok()
    }

    /// Whether [`Memory::read`] of this range is open to the device, mapped or by messages.
    pub fn is_readable(&self, address: u64, length: usize) -> bool {
        self.readable.memory().check_range(GuestAddress(address), length)
            || self.pieces(self.readable.memory(), DMA_READABLE, address, length).is_some()
    }

    /// Whether [`Memory::write`] of this range is open to the device, mapped or by messages.
    pub fn is_writable(&self, address: u64, length: usize) -> bool {
        self.writable.memory().check_range(GuestAddress(address), length)
            || self.pieces(self.writable.memory(), DMA_WRITEABLE, address, length).is_some()
    }

    /// Reads a little-endian 16-bit index of a virtqueue that the other side may be writing.
    pub fn load_u16(&self, address: u64, order: Ordering) -> Result<u16, MemoryError> {
        self.readable.memory().load(GuestAddress(address), order).or_else(|source| {
            let by_message = self.index_by_message(address, DMA_READABLE);
            let by_message = by_message.ok_or_else(|| error(address, 2, source))?;
            let mut bytes = [0; 2];
            by_message.connection.dma_read(address, &mut bytes).map_err(|why| unreached(address, 2, why))?;
            // Nothing that follows is read from mapped memory as of before the message.
            fence(Ordering::SeqCst);
            Ok(u16::from_le_bytes(bytes))
        })
    }

    /// Writes a little-endian 16-bit index of a virtqueue that the other side may be reading.
    pub fn store_u16(&self, address: u64, value: u16, order: Ordering) -> Result<(), MemoryError> {
        if let Err(source) = self.writable.memory().store(value, GuestAddress(address), order) {
            let by_message = self.index_by_message(address, DMA_WRITEABLE);
            let by_message = by_message.ok_or_else(|| error(address, 2, source))?;
            fence(Ordering::SeqCst);
            let stored = by_message.connection.dma_write(address, &value.to_le_bytes());
            stored.map_err(|why| unreached(address, 2, why))?;
        }
        self.mark_dirty(address, 2);
        Ok(())
    }

    /// The connection, if an index lies within one range that is reached by messages.
    fn index_by_message(&self, address: u64, flag: u32) -> Option<&ByMessage> {
        self.by_message.as_deref().filter(|by_message| by_message.remaining(address, flag).is_some_and(|n| n >= 2))
    }

    /// `None`: not all of the range is available.
    #[cold]
    fn read_by_message(&self, address: u64, data: &mut [u8]) -> Option<Result<(), MemoryError>> {
        let pieces = self.pieces(self.readable.memory(), DMA_READABLE, address, data.len())?;
        let connection = &self.by_message.as_deref()?.connection;
        let mut rest = data;
        Some(pieces.into_iter().try_for_each(|Piece { address, length, mapped }| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            if mapped {
                let read = self.readable.memory().read_slice(part, GuestAddress(address));
                return read.map_err(|source| error(address, length, source));
            }
            connection.dma_read(address, part).map_err(|why| unreached(address, length, why))
        }))
    }

    /// `None`: not all of the range is available.
    #[cold]
    fn write_by_message(&self, address: u64, data: &[u8]) -> Option<Result<(), MemoryError>> {
        let pieces = self.pieces(self.writable.memory(), DMA_WRITEABLE, address, data.len())?;
        let connection = &self.by_message.as_deref()?.connection;
        let mut rest = data;
        Some(pieces.into_iter().try_for_each(|Piece { address, length, mapped }| {
            let (part, after) = rest.split_at(length);
            rest = after;
            if mapped {
                let written = self.writable.memory().write_slice(part, GuestAddress(address));
                return written.map_err(|source| error(address, length, source));
            }
            connection.dma_write(address, part).map_err(|why| unreached(address, length, why))
        }))
    }

    /// Cuts a range at the borders of what was made available for DMA. `None`: not all of it was.
    fn pieces(&self, mapped: &GuestMemoryMmap, flag: u32, address: u64, length: usize) -> Option<Vec<Piece>> {
        let by_message = self.by_message.as_deref()?;
        let (mut address, mut left) = (address, length);
        let mut pieces = Vec::new();
        while left > 0 {
            let remaining = by_message.remaining(address, flag);
            let is_mapped = remaining.is_none();
            let remaining = remaining.or_else(|| {
                let region = mapped.find_region(GuestAddress(address))?;
                Some(vm_memory::GuestMemoryRegion::last_addr(region).0 - address + 1)
            })?;
            let length = usize::try_from(remaining).unwrap_or(usize::MAX).min(left);
            pieces.push(Piece { address, length, mapped: is_mapped });
            left -= length;
            if left > 0 {
                address = address.checked_add(length as u64)?;
            }
        }
        Some(pieces)
    }
}

/// A part of a DMA range that one mapping or one kind of message reaches.
struct Piece {
    address: u64,
    length: usize,
    mapped: bool,
}

impl ByMessage {
    /// How many bytes from `address` on belong to the same range.
    fn remaining(&self, address: u64, flag: u32) -> Option<u64> {
        let after = self.ranges.partition_point(|range| range.address <= address);
        let range = self.ranges[..after].last().filter(|range| range.flags & flag != 0)?;
        (range.address + range.size).checked_sub(address).filter(|&remaining| remaining > 0)
    }
}

/// Why a range cannot be borrowed.
#[cold]
fn unmapped(memory: &GuestMemoryMmap, address: u64, length: usize) -> Result<VolatileSlice<'_>, MemoryError> {
    memory.get_slice(GuestAddress(address), length).map_err(|source| error(address, length, source))
}

fn error(address: u64, length: usize, source: GuestMemoryError) -> MemoryError {
    MemoryError::NotMapped { address, length, source }
}

fn unreached(address: u64, length: usize, why: Unreached) -> MemoryError {
    match why {
        Unreached::Refused(errno) => MemoryError::Refused { address, length, errno },
        Unreached::Disconnected => MemoryError::Disconnected { address, length },
    }
}
