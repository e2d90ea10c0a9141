//! A split virtqueue as its driver writes it (virtio 1.2, 2.7), right or wrong.

use super::arena::{LARGE_QUEUE, QUEUES, put_zeros, put16, put32, put64};
use crate::memory::{read16, read32};

/// Entries of a queue, unless an attack wants another number.
pub const SMALL: u16 = 16;
/// Entries of the largest queue that the arena has room for.
pub const LARGE: u16 = 256;

/// Descriptor flags (2.7.5).
pub const NEXT: u16 = 1;
/// The device writes the buffer.
pub const WRITES: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Where a queue is, and how far driver and device have come.
#[derive(Clone, Copy)]
pub struct Queue {
    /// Its number.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
    /// The next entry that the driver makes available.
    pub offered: u16,
    /// The next entry of the used ring that the driver looks at.
    pub seen: u16,
}

/// An entry of the used ring.
#[derive(Clone, Copy)]
pub struct Used {
    /// The chain's first descriptor.
    pub head: u32,
    /// Bytes that the device says it wrote.
    pub length: u32,
}

/// One buffer of a chain: address, length, whether the device writes it.
pub type Buffer = (u64, u32, bool);

impl Queue {
    /// A small queue in the arena.
    pub fn small(index: u16) -> Self {
        let place = QUEUES + u64::from(index) * 0x400;
        Self {
            index,
            size: SMALL,
            descriptors: place,
            available: place + 0x100,
            used: place + 0x200,
            offered: 0,
            seen: 0,
        }
    }

    /// The one with 256 entries.
    pub fn large(index: u16) -> Self {
        Self {
            index,
            size: LARGE,
            descriptors: LARGE_QUEUE,
            available: LARGE_QUEUE + 0x1000,
            used: LARGE_QUEUE + 0x2000,
            offered: 0,
            seen: 0,
        }
    }

    /// Bytes of the used ring.
    pub fn used_size(&self) -> u64 {
        6 + 8 * u64::from(self.size)
    }

    /// Empty rings, and a descriptor table of zeros.
    pub fn clear(&self) {
        put_zeros(self.descriptors, u64::from(self.size) * 16);
        put32(self.available, 0);
        put32(self.used, 0);
    }

    /// Writes a descriptor.
    pub fn describe(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        describe(self.descriptors, index, address, length, flags, next);
    }

    /// Writes an entry of the available ring that is not shown yet.
    pub fn enter(&mut self, head: u16) {
        put16(self.available + 4 + u64::from(self.offered % self.size) * 2, head);
        self.offered = self.offered.wrapping_add(1);
    }

    /// Shows the device what was entered.
    pub fn show(&self) {
        // x86 keeps stores in order: the index is seen after what it stands for.
        put16(self.available + 2, self.offered);
    }

    /// How many chains the device has used that the driver has not looked at.
    pub fn unseen(&self) -> u16 {
        read16(self.used + 2).wrapping_sub(self.seen)
    }

    /// Looks at the next used chain, which is there.
    pub fn look(&mut self) -> Used {
        let entry = self.used + 4 + u64::from(self.seen % self.size) * 8;
        self.seen = self.seen.wrapping_add(1);
        Used { head: read32(entry), length: read32(entry + 4) }
    }
}

/// Writes entry `index` of a table of descriptors.
pub fn describe(table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
    let descriptor = table + u64::from(index) * 16;
    put64(descriptor, address);
    put32(descriptor + 8, length);
    put16(descriptor + 12, flags);
    put16(descriptor + 14, next);
}

/// Writes a chain of `buffers` to the entries from `first` on.
pub fn chain(table: u64, first: u16, buffers: &[Buffer]) {
    for (index, &(address, length, writes)) in (first..).zip(buffers) {
        let last = usize::from(index - first) + 1 == buffers.len();
        let flags = if writes { WRITES } else { 0 } | if last { 0 } else { NEXT };
        describe(table, index, address, length, flags, if last { 0 } else { index + 1 });
    }
}
