//! A bare-metal guest that checks what a virtual machine monitor does for its guests, in milliseconds: PCI configuration space by
//! both of its paths, BARs that move, MSI-X with masks and pending bits, one virtio-blk device, power-off, reset and crash.
//!
//! It is started through PVH (`xen/include/public/arch-x86/hvm/start_info.h`), takes `checks=NAME,…` from its command line, prints
//! `ok NAME` or `FAIL NAME: got …, wanted …` on COM1 for each fact it looks at, and ends with `payload: passed` and an ACPI power-off, or
//! with `payload: failed` and a reset. Two things differ from usual bare-metal code, both for the sake of hosts whose KVM interprets
//! ring-0 code: it never executes HLT, and it keeps to instructions and amounts of work that an emulator can do.
#![no_std]
#![no_main]

mod acpi;
mod apic;
mod checks;
mod entry;
mod interrupts;
mod ioapic;
mod machine;
mod memory;
mod msix;
mod pci;
mod port;
mod power;
mod second;
mod serial;
mod start_info;
mod verdict;
mod virtio;
mod virtio_blk;
mod virtqueue;

use core::panic::PanicInfo;

use machine::Machine;
use serial::{line, text};
use start_info::StartInfo;
use verdict::Verdict;

/// Where the assembly entry arrives: long mode, the first 4 GiB mapped one to one, interrupts off, `start_info` as the loader gave it.
#[unsafe(no_mangle)]
extern "C" fn payload_main(start_info: u64) -> ! {
    serial::init();
    interrupts::init();
    let start_info = StartInfo::at(start_info);
    let machine = Machine::find(&start_info);
    let mut verdict = Verdict::default();
    checks::run(&machine, &mut verdict);
    if verdict.passed() {
        line("payload: passed");
        power::off(&machine.tables)
    }
    line("payload: failed");
    power::reset(&machine.tables)
}

/// A broken invariant of the payload itself: said, then a reset, so that the VMM's exit status differs from a power-off.
#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    text("FAIL panic");
    if let Some(place) = info.location() {
        text(" at ");
        text(place.file());
        text(":");
        serial::decimal(u64::from(place.line()));
    }
    line("");
    line("payload: failed");
    power::reset_without_tables()
}
