//! The page tables that a 64-bit kernel starts on: the first 4 GiB, mapped to themselves in pages of 2 MiB.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::machine::layout;
use crate::machine::memory::GuestMemoryMmap;

const ENTRIES: u64 = 512;
const TABLE: u64 = ENTRIES * 8;
const DIRECTORIES: u64 = 4;
const LARGE_PAGE: u64 = 2 << 20;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;

/// Write the tables to [`layout::BOOT_PAGE_TABLES`], which is what CR3 has to be.
pub(super) fn write(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    const { assert!((2 + DIRECTORIES) * TABLE == layout::BOOT_PAGE_TABLES_SIZE) };
    let root = layout::BOOT_PAGE_TABLES;
    let pointers = root + TABLE;
    let directories = pointers + TABLE;
    let mut bytes = vec![0; usize::try_from(layout::BOOT_PAGE_TABLES_SIZE).unwrap_or_default()];
    let entries = std::iter::once((root, pointers | PRESENT | WRITABLE))
        .chain((0..DIRECTORIES).map(|index| (pointers + index * 8, (directories + index * TABLE) | PRESENT | WRITABLE)))
        .chain(
            (0..DIRECTORIES * ENTRIES)
                .map(|page| (directories + page * 8, (page * LARGE_PAGE) | PRESENT | WRITABLE | LARGE)),
        );
    for (address, entry) in entries {
        let offset = usize::try_from(address - root).unwrap_or_default();
        bytes[offset..offset + 8].copy_from_slice(&entry.to_le_bytes());
    }
    memory.write_slice(&bytes, GuestAddress(root))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walk the tables as the processor does.
    fn translate(memory: &GuestMemoryMmap, address: u64) -> u64 {
        let entry = |table: u64, shift: u32| -> u64 {
            let entry: u64 = memory.read_obj(GuestAddress(table + (address >> shift & 511) * 8)).unwrap();
            assert_eq!(entry & 3, 3, "present and writable");
            entry
        };
        let pointers = entry(layout::BOOT_PAGE_TABLES, 39) & !0xFFF;
        let directory = entry(pointers, 30) & !0xFFF;
        let page = entry(directory, 21);
        assert_eq!(page & LARGE, LARGE);
        (page & !(LARGE_PAGE - 1)) | address & (LARGE_PAGE - 1)
    }

    #[test]
    fn four_gib_are_mapped_to_themselves() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&memory).unwrap();
        for address in [0, 0x7000, 0x1F_FFFF, 0x20_0000, 0x3FFF_FFFF, 0x4000_0000, 0xC123_4567, 0xFFFF_FFFF] {
            assert_eq!(translate(&memory, address), address);
        }
    }
}
