//! The loader's data for a PVH guest: `hvm_start_info`, version 1.

use crate::memory;

const MAGIC: u32 = 0x336e_c578;
const COMMAND_LINE: u64 = 24;
const ROOT_POINTER: u64 = 32;
const MEMORY_MAP: u64 = 40;
const MEMORY_MAP_ENTRIES: u64 = 48;
const MEMORY_MAP_ENTRY_SIZE: u64 = 24;
const RAM: u32 = 1;
const LONGEST_COMMAND_LINE: usize = 256;

/// `hvm_start_info` in guest memory.
pub struct StartInfo(u64);

impl StartInfo {
    /// The structure at the physical address that the loader left in EBX.
    ///
    /// # Panics
    /// When its magic number is not there.
    pub fn at(address: u64) -> Self {
        assert!(memory::read32(address) == MAGIC);
        Self(address)
    }

    /// The kernel command line, without what follows its first 256 bytes.
    pub fn command_line(&self) -> &'static [u8] {
        let address = memory::read64(self.0 + COMMAND_LINE);
        if address == 0 {
            return &[];
        }
        memory::map(address, LONGEST_COMMAND_LINE as u64);
        let length = (0..LONGEST_COMMAND_LINE).find(|&at| memory::read8(address + at as u64) == 0);
        // SAFETY: the loader put the string there and nothing writes to that memory; it was mapped above.
        unsafe { core::slice::from_raw_parts(address as *const u8, length.unwrap_or(LONGEST_COMMAND_LINE)) }
    }

    /// Physical address of ACPI's root pointer.
    pub fn root_pointer(&self) -> u64 {
        memory::read64(self.0 + ROOT_POINTER)
    }

    /// Where the highest RAM below 4 GiB ends; zero: the loader gave no memory map.
    pub fn end_of_ram(&self) -> u64 {
        let map = memory::read64(self.0 + MEMORY_MAP);
        let entries = u64::from(memory::read32(self.0 + MEMORY_MAP_ENTRIES)).min(if map == 0 { 0 } else { 64 });
        let entries = (0..entries).map(|index| map + index * MEMORY_MAP_ENTRY_SIZE);
        let ram = entries.filter(|&entry| memory::read32(entry + 16) == RAM);
        let ends = ram.map(|entry| memory::read64(entry) + memory::read64(entry + 8));
        ends.filter(|&end| end <= 4 << 30).max().unwrap_or(0)
    }
}
