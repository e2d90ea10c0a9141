//! Where a split virtqueue's parts are, and what is in them (virtio 1.2, section 2.7, "Split Virtqueues").

use outrigger_protocol::server::Memory;
use zerocopy::{FromBytes, IntoBytes};

/// The largest queue size a driver may choose, and the one that is offered.
pub const MAX_QUEUE_SIZE: u16 = 256;

pub(super) const DESCRIPTOR_LENGTH: u32 = 16;
const DESCRIPTOR_SIZE: u64 = DESCRIPTOR_LENGTH as u64;
pub(super) const DESCRIPTOR_NEXT: u16 = 1;
pub(super) const DESCRIPTOR_WRITE: u16 = 2;
pub(super) const DESCRIPTOR_INDIRECT: u16 = 4;

/// A queue that the driver may not configure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not a power of two, or out of range.
    #[error("queue size {0}: not a power of two up to {MAX_QUEUE_SIZE}")]
    Size(u16),
    /// Misaligned, or wraps around the end of the address space.
    #[error("{part} at {address:#x}: misaligned or beyond the address space")]
    Address {
        /// Which part of the queue.
        part: &'static str,
        /// Its address.
        address: u64,
    },
}

/// Where a queue is, and which of its optional features are in use; checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLayout {
    pub(super) size: u16,
    descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
    pub(super) event_idx: bool,
    pub(super) indirect: bool,
}

impl QueueLayout {
    /// A queue of `size` entries with its three parts at these addresses (virtio 1.2, section 2.7: alignment 16, 2
    /// and 4).
    pub fn new(size: u16, descriptors: u64, driver: u64, device: u64) -> Result<Self, LayoutError> {
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(LayoutError::Size(size));
        }
        let entries = u64::from(size);
        for (part, address, alignment, length) in [
            ("descriptor table", descriptors, 16, DESCRIPTOR_SIZE * entries),
            ("available ring", driver, 2, 6 + 2 * entries),
            ("used ring", device, 4, 6 + 8 * entries),
        ] {
            if address % alignment != 0 || address.checked_add(length).is_none() {
                return Err(LayoutError::Address { part, address });
            }
        }
        Ok(Self { size, descriptors, driver, device, event_idx: false, indirect: false })
    }

    /// With what was negotiated: notification suppression by index, indirect descriptors.
    pub fn with_features(self, event_idx: bool, indirect: bool) -> Self {
        Self { event_idx, indirect, ..self }
    }

    /// Whether the client has made all three parts available for DMA.
    pub fn is_reachable(&self, memory: &Memory) -> bool {
        let entries = usize::from(self.size);
        memory.is_readable(self.descriptors, 16 * entries)
            && memory.is_readable(self.driver, 6 + 2 * entries)
            && memory.is_writable(self.device, 6 + 8 * entries)
    }

    pub(super) fn descriptor(&self, index: u16) -> u64 {
        self.descriptors + DESCRIPTOR_SIZE * u64::from(index)
    }

    pub(super) fn available_index(&self) -> u64 {
        self.driver + 2
    }

    pub(super) fn available_entry(&self, index: u16) -> u64 {
        self.driver + 4 + 2 * u64::from(index & (self.size - 1))
    }

    pub(super) fn used_event(&self) -> u64 {
        self.driver + 4 + 2 * u64::from(self.size)
    }

    pub(super) fn used_index(&self) -> u64 {
        self.device + 2
    }

    pub(super) fn used_entry(&self, index: u16) -> u64 {
        self.device + 4 + 8 * u64::from(index & (self.size - 1))
    }

    pub(super) fn available_event(&self) -> u64 {
        self.device + 4 + 8 * u64::from(self.size)
    }
}

/// `struct virtq_desc`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
#[repr(C)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

/// `struct virtq_used_elem`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub(super) struct UsedElement {
    pub(super) id: u32,
    pub(super) length: u32,
}
