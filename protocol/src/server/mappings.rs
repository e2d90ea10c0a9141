//! The mapped part of client memory, laid out for the look-ups that every request makes.
//!
//! A look-up gives a host address for a range of DMA addresses that lies within one mapping as a whole, or nothing. What
//! it does not find is for [`vm_memory`] to explain, or to reach piece by piece.

use std::ptr::NonNull;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice};

/// The mappings that are open to one direction of DMA.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    /// By address, without overlap.
    places: Box<[Place]>,
    /// Keeps them mapped.
    memory: GuestMemoryMmap,
}

/// One mapping: `length` bytes from `address` on are at `host`.
#[derive(Clone, Copy, Debug)]
struct Place {
    address: u64,
    length: u64,
    host: NonNull<u8>,
}

// SAFETY: an address, which is the same for every thread; what is there is shared with other processes anyway, and is
// accessed accordingly.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Mappings {
    /// Of all of `memory`.
    pub(super) fn new(memory: GuestMemoryMmap) -> Self {
        let place = |region: &vm_memory::GuestRegionMmap| {
            let host = NonNull::new(region.as_ptr())?;
            Some(Place { address: region.start_addr().0, length: region.len(), host })
        };
        let mut places = memory.iter().filter_map(place).collect::<Box<[_]>>();
        places.sort_unstable_by_key(|place| place.address);
        Self { places, memory }
    }

    /// The same mappings, to be searched with every detail.
    pub(super) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Where a range is, if it lies within one mapping.
    #[inline]
    fn find(&self, address: u64, length: usize) -> Option<NonNull<u8>> {
        let after = self.places.partition_point(|place| place.address <= address);
        let place = self.places.get(after.wrapping_sub(1))?;
        let offset = address - place.address;
        let room = place.length.checked_sub(offset).filter(|&room| room > 0 && length as u64 <= room)?;
        debug_assert!(offset + room == place.length, "the range is within its mapping");
        // SAFETY: the mapping is longer than `offset`.
        Some(unsafe { place.host.add(usize::try_from(offset).ok()?) })
    }

    /// Borrows a range that lies within one mapping.
    #[inline]
    pub(super) fn slice(&self, address: u64, length: usize) -> Option<VolatileSlice<'_>> {
        let host = self.find(address, length)?;
        // SAFETY: `length` bytes from `host` on belong to one mapping, which `self.memory` keeps for as long as `self` is
        // borrowed, and which is only ever accessed as memory that others may be changing.
        Some(unsafe { VolatileSlice::new(host.as_ptr(), length) })
    }

    /// Copies `N` bytes from a mapping that can be read.
    #[inline]
    pub(super) fn load<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let host = self.find(address, N)?;
        // SAFETY: `N` bytes from `host` on belong to one mapping, which is there while `self` is. Bytes are aligned
        // anywhere and may have any value; others may be changing them, so the access is volatile.
        Some(unsafe { host.cast::<[u8; N]>().read_volatile() })
    }

    /// Copies `N` bytes to a mapping that can be written.
    #[inline]
    pub(super) fn store<const N: usize>(&self, address: u64, bytes: [u8; N]) -> Option<()> {
        let host = self.find(address, N)?;
        // SAFETY: as in `load`; nobody in this process holds a reference to client memory.
        unsafe { host.cast::<[u8; N]>().write_volatile(bytes) };
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const PAGE: u64 = 4096;

    /// Two mappings side by side, a gap, and one that ends just below the end of the address space.
    fn mappings() -> Mappings {
        let ranges =
            [PAGE, 2 * PAGE, 8 * PAGE, 0u64.wrapping_sub(2 * PAGE)].map(|address| (GuestAddress(address), 4096));
        Mappings::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn a_range_is_found_if_one_mapping_has_all_of_it() {
        let mappings = mappings();
        for address in [PAGE, 2 * PAGE, 8 * PAGE, 0u64.wrapping_sub(2 * PAGE)] {
            for (offset, length) in [(0, 1), (0, 4096), (4095, 1), (4000, 96), (0, 0), (4095, 0)] {
                let slice = mappings.slice(address + offset, length).unwrap();
                assert_eq!(slice.len(), length);
                let there = mappings.memory().get_host_address(GuestAddress(address + offset)).unwrap();
                assert_eq!(slice.ptr_guard().as_ptr(), there.cast_const());
            }
            for (offset, length) in
                [(4096 + PAGE, 1), (4095, 2), (0, 4097), (1, 4096), (1, usize::MAX), (0, usize::MAX)]
            {
                assert!(
                    mappings.slice(address.wrapping_add(offset), length).is_none(),
                    "{address:#x} {offset} {length}"
                );
            }
        }
    }

    #[test]
    fn what_is_beside_the_mappings_is_not_found() {
        let mappings = mappings();
        for address in [0, PAGE - 1, 3 * PAGE, 8 * PAGE - 1, 9 * PAGE, u64::MAX - 4095, u64::MAX] {
            for length in [0, 1, 4096, usize::MAX] {
                assert!(mappings.slice(address, length).is_none(), "{address:#x} {length}");
            }
        }
        assert!(Mappings::default().slice(0, 0).is_none());
    }

    #[test]
    fn arrays_are_copied_within_one_mapping_only() {
        let mappings = mappings();
        assert_eq!(mappings.store(PAGE + 4093, [1, 2, 3]), Some(()));
        assert_eq!(mappings.load(PAGE + 4093), Some([1, 2, 3]));
        assert_eq!(mappings.memory().read_obj::<u8>(GuestAddress(PAGE + 4094)).unwrap(), 2);
        assert_eq!(mappings.store(PAGE + 4094, [1, 2, 3]), None);
        assert_eq!(mappings.load::<3>(PAGE + 4094), None);
        assert_eq!(mappings.load::<1>(u64::MAX), None);
    }
}
