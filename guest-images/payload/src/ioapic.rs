//! The I/O APIC's redirection table, for level-triggered pins (Intel 82093AA datasheet, section 3.2.4, "IOREDTBL").

use crate::apic;
use crate::interrupts::FIRST_VECTOR;
use crate::memory::write32;

const SELECT: u64 = 0xfec0_0000;
const WINDOW: u64 = SELECT + 0x10;
const TABLE: u32 = 0x10;
const ACTIVE_LOW: u32 = 1 << 13;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

/// Points `pin` to device vector `index` of the running processor.
pub fn route(pin: u8, index: u8) {
    write(TABLE + u32::from(pin) * 2 + 1, u32::from(apic::id()) << 24);
    write(TABLE + u32::from(pin) * 2, LEVEL | ACTIVE_LOW | u32::from(FIRST_VECTOR + index));
}

/// Takes `pin` out of use.
pub fn mask(pin: u8) {
    write(TABLE + u32::from(pin) * 2, MASKED);
}

fn write(register: u32, value: u32) {
    write32(SELECT, register);
    write32(WINDOW, value);
}
