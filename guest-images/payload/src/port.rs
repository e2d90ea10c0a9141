//! I/O ports.

use core::arch::asm;

/// Writes one byte.
pub fn write8(port: u16, value: u8) {
    // SAFETY: a port access touches no memory of this program; what the device does in answer is what the caller wants.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

/// Writes two bytes.
pub fn write16(port: u16, value: u16) {
    // SAFETY: as for write8.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) }
}

/// Writes four bytes.
pub fn write32(port: u16, value: u32) {
    // SAFETY: as for write8.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) }
}

/// Reads one byte.
pub fn read8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as for write8.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Reads two bytes.
pub fn read16(port: u16) -> u16 {
    let value: u16;
    // SAFETY: as for write8.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Reads four bytes.
pub fn read32(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as for write8.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) }
    value
}
