//! The memory that attacks are made with: queues and buffers on known ground. Every word of it that the driver did not write holds
//! [`CANARY`]; a copy elsewhere says what the driver wrote. Where the two differ, the device has written, and that has to be where it was
//! offered a buffer or a used ring.

use super::instructions::{fill, first_difference};
use crate::memory::{read8, write8, write16, write32, write64};

/// The content of untouched memory.
pub const CANARY: u64 = 0xa5a5_a5a5_a5a5_a5a5;
/// One byte of it.
pub const CANARY_BYTE: u8 = 0xa5;

/// Free RAM, wherever the payload runs.
const BASE: u64 = 0x0200_0000;
/// The copy; never offered to a device.
const COPY: u64 = BASE + 0x10_0000;
const SIZE: u64 = 0xa000;
const WORDS: u64 = SIZE / 8;

/// Queues of [`super::queue::SMALL`] entries: 1 KiB each.
pub const QUEUES: u64 = BASE;
/// Buffers that devices read.
pub const READABLE: u64 = BASE + 0x2000;
/// Buffers that devices write, 12 KiB.
pub const WRITABLE: u64 = BASE + 0x3000;
/// A queue of 256 entries: three pages.
pub const LARGE_QUEUE: u64 = BASE + 0x6000;
/// For indirect tables.
pub const TABLES: u64 = BASE + 0x9000;

const MOST_OFFERS: usize = 64;

/// The ranges that the device may write.
pub struct Arena {
    offers: [(u64, u64); MOST_OFFERS],
    count: usize,
}

impl Arena {
    /// Fresh memory.
    pub fn new() -> Self {
        let mut arena = Self { offers: [(0, 0); MOST_OFFERS], count: 0 };
        arena.clear();
        arena
    }

    /// Canaries everywhere, and nothing offered.
    pub fn clear(&mut self) {
        self.count = 0;
        fill(BASE, WORDS, CANARY);
        fill(COPY, WORDS, CANARY);
    }

    /// The device may write these bytes from now on.
    ///
    /// # Panics
    /// When an attack has too many of these.
    pub fn offer(&mut self, address: u64, length: u64) {
        let end = address.saturating_add(length);
        let known = self.offers[..self.count].iter_mut().find(|range| range.0 <= address && address <= range.1);
        if let Some(range) = known {
            range.1 = range.1.max(end);
        } else if end > BASE && address < BASE + SIZE && length > 0 {
            self.offers[self.count] = (address, end);
            self.count += 1;
        }
    }

    /// The first byte that was changed by none of the driver's doing and is in no offer.
    pub fn violated(&self) -> Option<u64> {
        let mut word = 0;
        while let Some(next) = first_difference(BASE + word * 8, COPY + word * 8, WORDS - word) {
            word += next;
            let address = BASE + word * 8;
            if let Some(&(_, end)) = self.offers().find(|range| range.0 <= address && address + 8 <= range.1) {
                word = ((end - BASE) / 8).min(WORDS);
                continue;
            }
            let changed = (address..address + 8).filter(|&at| read8(at) != read8(at - BASE + COPY));
            let mut outside = changed.filter(|&at| !self.offers().any(|range| range.0 <= at && at < range.1));
            if let Some(at) = outside.next() {
                return Some(at);
            }
            word += 1;
        }
        None
    }

    fn offers(&self) -> impl Iterator<Item = &(u64, u64)> {
        self.offers[..self.count].iter()
    }
}

/// Whether these bytes hold canaries only.
pub fn untouched(address: u64, length: u64) -> bool {
    (address..address + length).all(|at| read8(at) == CANARY_BYTE)
}

macro_rules! put {
    ($name:ident, $write:ident, $type:ty) => {
        /// Writes as the driver does: to the arena and to its copy.
        pub fn $name(address: u64, value: $type) {
            $write(address, value);
            if (BASE..BASE + SIZE).contains(&address) {
                $write(address - BASE + COPY, value);
            }
        }
    };
}
put!(put8, write8, u8);
put!(put16, write16, u16);
put!(put32, write32, u32);
put!(put64, write64, u64);

/// The same with zeros; whole words of eight bytes.
///
/// # Panics
/// When that is not all within the arena.
pub fn put_zeros(address: u64, length: u64) {
    assert!(address >= BASE && address + length <= BASE + SIZE);
    fill(address, length / 8, 0);
    fill(address - BASE + COPY, length / 8, 0);
}
