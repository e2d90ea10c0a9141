//! What the loader tells a PVH guest: `hvm_start_info`, version 0 fields only.

use crate::memory;

const MAGIC: u32 = 0x336e_c578;
const COMMAND_LINE: u64 = 24;
const ROOT_POINTER: u64 = 32;
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
}
