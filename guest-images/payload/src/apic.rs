//! The local APIC of the boot processor, in x2APIC mode where the processor has it (Intel SDM volume 3, chapter 11).

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::{memory, port};

const APIC_BASE: u32 = 0x1b;
const ENABLED: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;
const CPUID_X2APIC: u32 = 1 << 21;
const MMIO: u64 = 0xfee0_0000;
const MSR: u32 = 0x800;
const ID: u32 = 0x2;
const END_OF_INTERRUPT: u32 = 0xb;
const SPURIOUS: u32 = 0xf;
const COMMAND: u32 = 0x30;
const COMMAND_DESTINATION: u32 = 0x31;
const INIT: u32 = 5 << 8 | ASSERT;
const START_UP: u32 = 6 << 8 | ASSERT;
const ASSERT: u32 = 1 << 14;
const SOFTWARE_ENABLE: u32 = 1 << 8;

static IN_X2APIC_MODE: AtomicBool = AtomicBool::new(false);

/// Spurious interrupts arrive here.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// Enables it, and masks the two 8259s where there are any.
pub fn enable() {
    port::write8(0x21, 0xff);
    port::write8(0xa1, 0xff);
    write_msr(APIC_BASE, read_msr(APIC_BASE) | ENABLED);
    if __cpuid(1).ecx & CPUID_X2APIC != 0 {
        write_msr(APIC_BASE, read_msr(APIC_BASE) | X2APIC);
        IN_X2APIC_MODE.store(true, Ordering::Relaxed);
    }
    write(SPURIOUS, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
}

/// The running processor's number in MSI addresses. 8 bits: the payload runs on the first one.
pub fn id() -> u8 {
    let id = if x2apic() { read_msr(MSR + ID) & 0xff } else { u64::from(memory::read32(MMIO + 0x20) >> 24) };
    id.to_le_bytes()[0]
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// Has another processor forget everything and wait for [`start`] (section 11.6.1, "Interrupt Command Register").
pub fn stop(id: u8) {
    command(id, INIT);
}

/// Starts a processor that was stopped, or never ran, in real mode at `page` times 4 KiB.
pub fn start(id: u8, page: u8) {
    command(id, START_UP | u32::from(page));
}

/// Interrupts the running processor with `vector`, in its turn.
pub fn interrupt_self(vector: u8) {
    command(id(), ASSERT | u32::from(vector));
}

fn command(id: u8, command: u32) {
    if x2apic() {
        write_msr(MSR + COMMAND, u64::from(id) << 32 | u64::from(command));
    } else {
        write(COMMAND_DESTINATION, u32::from(id) << 24);
        write(COMMAND, command);
    }
}

fn x2apic() -> bool {
    IN_X2APIC_MODE.load(Ordering::Relaxed)
}

fn write(register: u32, value: u32) {
    if x2apic() {
        write_msr(MSR + register, u64::from(value));
    } else {
        memory::write32(MMIO + u64::from(register) * 16, value);
    }
}

fn read_msr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: only the APIC's registers are read, which exist where they are used.
    unsafe {
        asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    }
    u64::from(high) << 32 | u64::from(low)
}

fn write_msr(number: u32, value: u64) {
    let [low, high] = [value & 0xffff_ffff, value >> 32];
    // SAFETY: only the APIC's registers are written; they change how interrupts arrive, nothing in memory.
    unsafe { asm!("wrmsr", in("ecx") number, in("rax") low, in("rdx") high, options(nomem, nostack, preserves_flags)) }
}
