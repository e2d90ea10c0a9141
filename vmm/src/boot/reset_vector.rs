//! All there is of a BIOS: a few real-mode instructions where a PC's would start, which reset the machine. Linux jumps there
//! if it is told `reboot=b` (arch/x86/kernel/reboot.c).

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::acpi::power::{RESET_REGISTER, RESET_VALUE};
use crate::machine::layout;
use crate::machine::memory::GuestMemoryMmap;

/// Write the instructions to [`layout::RESET_VECTOR`].
pub(super) fn write(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let [low, high, ..] = (layout::POWER.start + RESET_REGISTER).to_le_bytes();
    let code = [
        0xBA,
        low,
        high, // mov dx, reset register
        0xB0,
        RESET_VALUE, // mov al, reset value
        0xEE,        // out dx, al
        0xF4,        // hlt
        0xEB,
        0xFD, // jmp to the hlt
    ];
    memory.write_slice(&code, GuestAddress(layout::RESET_VECTOR.start))
}
