//! Which guest-physical addresses are RAM and which are not, as both boot protocols tell it (ACPI 6.5, section 15 "System Address
//! Map Interfaces", better known as e820).

use crate::machine::layout::{self, AddressRange};

/// The kind of memory at an address; the numbers are ACPI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Ram = 1,
    Reserved = 2,
    Acpi = 3,
}

/// The map for `ram_size` bytes of RAM, in ascending order.
pub(super) fn memory_map(ram_size: u64) -> Vec<(AddressRange, Kind)> {
    let [low, high] = layout::ram_ranges(ram_size);
    let map = [
        (AddressRange::new(0, layout::CONVENTIONAL_END), Kind::Ram),
        (AddressRange::new(layout::CONVENTIONAL_END, layout::ACPI_TABLES.start), Kind::Reserved),
        (layout::ACPI_TABLES, Kind::Acpi),
        (AddressRange::new(layout::ACPI_TABLES.end, layout::HIGH_MEMORY), Kind::Reserved),
        (AddressRange::new(layout::HIGH_MEMORY, low.end.max(layout::HIGH_MEMORY)), Kind::Ram),
        // Linux uses ECAM only if it is reserved here or by ACPI, and this is the one that counts early.
        (layout::ECAM, Kind::Reserved),
        (high, Kind::Ram),
    ];
    map.into_iter().filter(|(range, _)| range.size() > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_sorted_and_has_all_ram_but_the_bios_area() {
        for size in [2 << 20, 512 << 20, 3 << 30, 5_u64 << 30] {
            let map = memory_map(size);
            assert!(map.windows(2).all(|pair| pair[0].0.end <= pair[1].0.start), "{map:x?}");
            let ram: u64 = map.iter().filter(|(_, kind)| *kind == Kind::Ram).map(|(range, _)| range.size()).sum();
            assert_eq!(ram, size - (layout::HIGH_MEMORY - layout::CONVENTIONAL_END));
        }
    }
}
