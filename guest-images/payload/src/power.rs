//! Ways for a guest to end: ACPI power-off, reset, and a triple fault.

use core::arch::asm;

use crate::acpi::{Register, Tables};
use crate::{memory, port, serial};

/// SLP_TYP for S5 in the sleep control register. Bits 2 to 4, with SLP_EN in bit 5 (ACPI 6.5, 4.8.3.7).
const SLEEP_TYPE_S5: u8 = 5;
const SLEEP_ENABLE: u8 = 1 << 5;
/// SLP_EN of PM1 control, with SLP_TYP 0: what QEMU's q35 calls S5. Used where QEMU runs the payload.
const PM1_SLEEP: u16 = 1 << 13;

/// Powers off by whichever register the tables name.
pub fn off(tables: &Tables) -> ! {
    if let Some(register) = tables.sleep_control {
        write8(register, SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE);
    } else if let Some(port) = tables.pm1a_control.and_then(|register| u16::try_from(register.address).ok()) {
        port::write16(port, PM1_SLEEP);
    }
    stuck("still running after ACPI power-off")
}

/// Resets by the register that the tables name.
pub fn reset(tables: &Tables) -> ! {
    if let Some((register, value)) = tables.reset {
        write8(register, value);
    }
    reset_without_tables()
}

/// Resets by the port every PC has (0xcf9), then by the keyboard controller's.
pub fn reset_without_tables() -> ! {
    port::write8(0xcf9, 6);
    port::write8(0x64, 0xfe);
    stuck("still running after a reset")
}

/// Shuts the processor down: an exception that no descriptor can take.
pub fn crash() -> ! {
    let no_descriptors = [0u64; 2];
    // SAFETY: nothing runs afterwards; the invalid opcode has no handler, nor has the double fault that follows.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &no_descriptors, options(noreturn)) }
}

fn write8(register: Register, value: u8) {
    match u16::try_from(register.address) {
        Ok(port) if register.port => port::write8(port, value),
        _ => {
            memory::map(register.address, 1);
            memory::write8(register.address, value);
        }
    }
}

fn stuck(why: &str) -> ! {
    serial::text("FAIL power: ");
    serial::line(why);
    loop {
        core::hint::spin_loop();
    }
}
