//! Which device answers a guest access: a map from address ranges to devices. There is one [`Bus`] for memory-mapped I/O and one
//! for I/O ports. Looking up takes no lock, since every vCPU does it at each exit; editing, which happens when a BAR moves,
//! replaces the whole map.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

/// Something that answers reads and takes writes at offsets into its range. Called from any vCPU thread, concurrently.
pub trait BusDevice: Send + Sync {
    /// Fill `data` with what the guest reads `offset` bytes into the device's range. `offset + data.len()` is within the range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Take what the guest writes `offset` bytes into the device's range. `offset + data.len()` is within the range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range that cannot be added to a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or ends beyond the address space.
    #[error("no range of {size:#x} bytes can start at {base:#x}")]
    Range {
        /// First address asked for.
        base: u64,
        /// Bytes asked for.
        size: u64,
    },
    /// Another device is there already.
    #[error("{base:#x}+{size:#x} overlaps {other_base:#x}+{other_size:#x}")]
    Overlap {
        /// First address asked for.
        base: u64,
        /// Bytes asked for.
        size: u64,
        /// First address of the range in the way.
        other_base: u64,
        /// Bytes of the range in the way.
        other_size: u64,
    },
}

#[derive(Clone)]
struct Entry {
    base: u64,
    size: u64,
    device: Arc<dyn BusDevice>,
}

/// A map from address ranges to devices.
#[derive(Default)]
pub struct Bus {
    /// Sorted by base, without overlaps.
    entries: ArcSwap<Vec<Entry>>,
    /// Held while `entries` is replaced, so that no edit is lost. Readers never take it.
    edit: Mutex<()>,
}

impl Bus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Let `device` answer accesses to the `size` bytes from `base` on.
    ///
    /// # Errors
    /// If the range is empty, wraps around, or overlaps a device's that is there already.
    pub fn insert(&self, base: u64, size: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let Some(last) = size.checked_sub(1).and_then(|more| base.checked_add(more)) else {
            return Err(BusError::Range { base, size });
        };
        let _edit = self.edit.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::clone(&self.entries.load());
        let index = entries.partition_point(|entry| entry.base < base);
        let before =
            index.checked_sub(1).and_then(|before| entries.get(before)).filter(|entry| base - entry.base < entry.size);
        let after = entries.get(index).filter(|entry| entry.base <= last);
        if let Some(other) = before.or(after) {
            return Err(BusError::Overlap { base, size, other_base: other.base, other_size: other.size });
        }
        entries.insert(index, Entry { base, size, device });
        self.entries.store(Arc::new(entries));
        Ok(())
    }

    /// Let `device` answer for the range that starts at `base` in place of the device there; whether there was one. An
    /// access finds one of the two.
    pub fn replace(&self, base: u64, device: Arc<dyn BusDevice>) -> bool {
        let _edit = self.edit.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::clone(&self.entries.load());
        let Ok(index) = entries.binary_search_by_key(&base, |entry| entry.base) else { return false };
        entries[index].device = device;
        self.entries.store(Arc::new(entries));
        true
    }

    /// Remove the range that starts at `base`; whether there was one. An access that another vCPU started before may still be
    /// in the device when this returns.
    pub fn remove(&self, base: u64) -> bool {
        let _edit = self.edit.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::clone(&self.entries.load());
        let Ok(index) = entries.binary_search_by_key(&base, |entry| entry.base) else { return false };
        entries.remove(index);
        self.entries.store(Arc::new(entries));
        true
    }

    /// Read from the device at `address`. Where there is none, and where the access runs past the end of its range, every bit
    /// reads as one. Whether a device answered.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let entries = self.entries.load();
        match find(&entries, address, data.len()) {
            Some(entry) => entry.device.read(address - entry.base, data),
            None => {
                data.fill(0xFF);
                return false;
            }
        }
        true
    }

    /// Write to the device at `address`. Where there is none, and where the access runs past the end of its range, the write
    /// vanishes. Whether a device took it.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let entries = self.entries.load();
        let Some(entry) = find(&entries, address, data.len()) else { return false };
        entry.device.write(address - entry.base, data);
        true
    }
}

/// The entry that covers `length` bytes from `address` on.
fn find(entries: &[Entry], address: u64, length: usize) -> Option<&Entry> {
    let entry = &entries[entries.partition_point(|entry| entry.base <= address).checked_sub(1)?];
    let offset = address - entry.base;
    (offset < entry.size && length as u64 <= entry.size - offset).then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every read with `tag` and remembers writes.
    struct Probe {
        tag: u8,
        writes: Mutex<Vec<(u64, Vec<u8>)>>,
    }

    impl Probe {
        fn new(tag: u8) -> Arc<Self> {
            Arc::new(Self { tag, writes: Mutex::new(Vec::new()) })
        }
    }

    impl BusDevice for Probe {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.tag);
            data[0] = u8::try_from(offset).unwrap();
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.writes.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn read(bus: &Bus, address: u64) -> [u8; 2] {
        let mut data = [0x55; 2];
        bus.read(address, &mut data);
        data
    }

    #[test]
    fn accesses_reach_the_device_with_the_offset_into_its_range() {
        let (bus, low, high) = (Bus::new(), Probe::new(1), Probe::new(2));
        bus.insert(0x2000, 0x10, high.clone()).unwrap();
        bus.insert(0x1000, 0x10, low).unwrap();
        assert_eq!(read(&bus, 0x1004), [4, 1]);
        assert_eq!(read(&bus, 0x200E), [14, 2]);
        assert!(bus.write(0x2008, &[1, 2, 3, 4]));
        assert_eq!(*high.writes.lock().unwrap(), [(8, vec![1, 2, 3, 4])]);
    }

    #[test]
    fn unclaimed_reads_are_all_ones_and_unclaimed_writes_vanish() {
        let bus = Bus::new();
        assert_eq!(read(&bus, 0x1000), [0xFF; 2]);
        assert!(!bus.write(0x1000, &[0]));
        bus.insert(0x1000, 0x10, Probe::new(1)).unwrap();
        assert_eq!(read(&bus, 0xFFE), [0xFF; 2]);
        assert_eq!(read(&bus, 0x1010), [0xFF; 2]);
        assert_eq!(read(&bus, u64::MAX), [0xFF; 2]);
    }

    #[test]
    fn an_access_that_straddles_the_end_of_a_range_reaches_nobody() {
        let (bus, low, high) = (Bus::new(), Probe::new(1), Probe::new(2));
        bus.insert(0x1000, 0x10, low.clone()).unwrap();
        bus.insert(0x1010, 0x10, high.clone()).unwrap();
        assert_eq!(read(&bus, 0x100F), [0xFF; 2]);
        assert!(!bus.write(0x100F, &[1, 2]));
        assert!(low.writes.lock().unwrap().is_empty() && high.writes.lock().unwrap().is_empty());
    }

    #[test]
    fn overlapping_and_impossible_ranges_are_refused() {
        let bus = Bus::new();
        bus.insert(0x1000, 0x100, Probe::new(1)).unwrap();
        for (base, size) in [(0x1000, 0x100), (0xFFF, 2), (0x10FF, 1), (0x1080, 1), (0, u64::MAX), (0x1000, 1)] {
            let overlap = BusError::Overlap { base, size, other_base: 0x1000, other_size: 0x100 };
            assert_eq!(bus.insert(base, size, Probe::new(2)), Err(overlap));
        }
        assert_eq!(bus.insert(5, 0, Probe::new(2)), Err(BusError::Range { base: 5, size: 0 }));
        assert_eq!(bus.insert(2, u64::MAX, Probe::new(2)), Err(BusError::Range { base: 2, size: u64::MAX }));
        bus.insert(0x1100, 1, Probe::new(2)).unwrap();
        bus.insert(0xFFF, 1, Probe::new(2)).unwrap();
        bus.insert(u64::MAX, 1, Probe::new(2)).unwrap();
    }

    #[test]
    fn a_replaced_device_answers_for_the_same_range() {
        let bus = Bus::new();
        bus.insert(0x1000, 0x10, Probe::new(1)).unwrap();
        bus.insert(0x1010, 0x10, Probe::new(2)).unwrap();
        assert!(bus.replace(0x1000, Probe::new(3)) && !bus.replace(0x1001, Probe::new(4)));
        assert_eq!((read(&bus, 0x1004), read(&bus, 0x100f), read(&bus, 0x1010)), ([4, 3], [0xff; 2], [0, 2]));
    }

    #[test]
    fn a_removed_range_can_be_used_again() {
        let bus = Bus::new();
        bus.insert(0x1000, 0x10, Probe::new(1)).unwrap();
        assert!(!bus.remove(0x1001));
        assert!(bus.remove(0x1000));
        assert!(!bus.remove(0x1000));
        assert_eq!(read(&bus, 0x1000), [0xFF; 2]);
        bus.insert(0x1008, 0x10, Probe::new(3)).unwrap();
        assert_eq!(read(&bus, 0x1008), [0, 3]);
    }
}
