//! Base address registers at places where they collide, or lead nowhere, and accesses to what is in between (PCI 3.0, 6.2.5).

use super::arena::{WRITABLE, untouched};
use super::instructions::{load, store};
use super::outcome::{Fault, equal, holds, pause};
use super::request::{begin, buffers, serves};
use super::target::Target;
use super::{Attack, attack};
use crate::memory::{map, read32, write32};
use crate::pci::{BAR0, Bar, Function, ID, MEMORY};
use crate::virtio::FEATURE_SELECT;

const SIZES: &str = "PCI 3.0, 6.2.5.1: size and type bits";
const COLLISION: &str = "PCI 3.0, 6.2.5: what was in the way has left";
const RAM_STAYS: &str = "PCI 3.0, 6.2.5: RAM is where it was";
const OPEN: &str = "left open: a reset brings it back";

const CONFIGURATION: u64 = 0xe000_0000;
const BAR2: u16 = BAR0 + 8;

pub const ATTACKS: &[Attack] = &[
    attack("sized-while-decoding", SIZES, |target| {
        begin(target)?;
        for (register, mask) in [(BAR0, 0xffff_c004), (BAR0 + 4, u32::MAX), (BAR2, 0xffff_e000)] {
            let before = target.function.read32(register);
            target.function.write32(register, u32::MAX);
            let size = target.function.read32(register);
            target.function.write32(register, before);
            equal("size", size, mask)?;
            equal("address", target.function.read32(register), before)?;
        }
        serves(target)
    }),
    attack("low-bits-written", SIZES, |target| {
        begin(target)?;
        for register in [BAR0, BAR2] {
            let before = target.function.read32(register);
            for bits in [0xf, 0x3, 0xff0, 0x1fff] {
                target.function.write32(register, before ^ bits);
                equal("address", target.function.read32(register), before)?;
            }
        }
        serves(target)
    }),
    attack("written-by-bytes", OPEN, |target| {
        begin(target)?;
        for register in BAR0..BAR0 + 12 {
            let before = target.function.read8(register);
            target.function.write8(register, !before);
            target.function.write8(register, before);
        }
        serves(target)
    }),
    attack("upper-half-moves-alone", OPEN, |target| {
        begin(target)?;
        let before = target.function.read32(BAR0 + 4);
        for upper in [0, 0x7f, 0xffff, 0x7fff_ffff, u32::MAX] {
            target.function.write32(BAR0 + 4, upper);
            equal("upper half", target.function.read32(BAR0 + 4), upper)?;
        }
        target.function.write32(BAR0 + 4, before);
        serves(target)
    }),
    attack("on-ram", RAM_STAYS, |target| {
        begin(target)?;
        for register in [BAR0, BAR2] {
            place(target, register, WRITABLE & !0x3fff);
            write32(WRITABLE + 0x100, 0x1234_5678);
            equal("RAM", read32(WRITABLE + 0x100), 0x1234_5678u32)?;
            write32(WRITABLE + 0x100, 0xa5a5_a5a5);
            target.come_home();
        }
        holds("RAM", untouched(WRITABLE + 0x100, 8))?;
        serves(target)
    }),
    attack("on-the-payload-itself", RAM_STAYS, |target| {
        begin(target)?;
        place(target, BAR0, 0x10_0000);
        place(target, BAR2, 0x10_4000);
        target.come_home();
        serves(target)
    }),
    attack("across-the-end-of-ram", OPEN, |target| {
        begin(target)?;
        place(target, BAR0, target.end_of_ram);
        place(target, BAR2, target.end_of_ram - 0x2000);
        load(target.end_of_ram - 8, 8);
        load(target.end_of_ram, 4);
        target.come_home();
        serves(target)
    }),
    attack("on-the-io-apic", OPEN, |target| {
        begin(target)?;
        place(target, BAR0, 0xfec0_0000);
        place(target, BAR2, 0xfec0_0000);
        target.come_home();
        serves(target)
    }),
    attack("on-the-local-apics", OPEN, |target| {
        begin(target)?;
        place(target, BAR0, 0xfee0_0000);
        place(target, BAR2, 0xfee0_0000);
        target.come_home();
        serves(target)
    }),
    attack("at-zero", OPEN, |target| {
        begin(target)?;
        place(target, BAR0, 0);
        place(target, BAR2, 0);
        load(0x40, 4);
        target.come_home();
        serves(target)
    }),
    attack("at-the-end-of-addresses", OPEN, |target| {
        begin(target)?;
        for address in [!0x3fff, 1 << 63, 1 << 52, (1 << 46) - 0x4000, 0xffff_c000] {
            place(target, BAR0, address);
        }
        place(target, BAR2, 0xffff_e000);
        load(0xffff_fff8, 8);
        target.come_home();
        serves(target)
    }),
    attack("on-its-own-other-bar", COLLISION, |target| {
        begin(target)?;
        let other = u64::from(target.function.read32(BAR2)) & !0xf;
        place(target, BAR0, other & !0x3fff);
        load(other, 4);
        target.come_home();
        equal("table entry", target.msix.read(1)[0] & 0xfff0_0000, 0xfee0_0000u32)?;
        serves(target)
    }),
    attack("on-another-device-and-back", COLLISION, |target| {
        begin(target)?;
        let (other, bar) = other(target)?;
        let before = other.read32(BAR0 + u16::from(bar.index) * 4);
        place(target, BAR0, bar.address());
        target.come_home();
        equal("the other's address", other.read32(BAR0 + u16::from(bar.index) * 4), before)?;
        holds("the other answers", answers(bar.address()))?;
        serves(target)
    }),
    attack("moves-with-requests-under-way", OPEN, |target| {
        begin(target)?;
        let home = target.registers;
        for round in 1..20 {
            target.request(target.main(), 0, &buffers());
            place(target, BAR0, home + round * 0x10_0000);
            target.used(target.main())?;
            target.come_home();
        }
        serves(target)
    }),
    attack("old-place-of-a-doorbell", "PCI 3.0, 6.2.5: nothing answers where nothing is", |target| {
        begin(target)?;
        serves(target)?;
        target.is_idle()?;
        let (home, doorbell) = (target.registers, target.doorbell(target.main()));
        place(target, BAR0, home + 0x10_0000);
        target.request_unseen(&buffers());
        (0..50).for_each(|_| store(doorbell, 2, 0));
        pause();
        equal("chains used", target.queue().unseen(), 0u16)?;
        target.come_home();
        target.ring(target.main());
        target.used(target.main()).map(drop)
    }),
    attack("holes-between-structures", OPEN, |target| {
        begin(target)?;
        for offset in [0x100, 0x800, 0x1004, 0x1ff8, 0x2f00, 0x3ff8] {
            for width in [1, 2, 4, 8] {
                store(target.registers + offset, width, u64::MAX);
                equal("between structures", load(target.registers + offset, width), 0u64)?;
            }
        }
        serves(target)
    }),
    attack("across-the-end-of-a-bar", OPEN, |target| {
        begin(target)?;
        for (offset, width) in [(0x3fff, 2), (0x3ffd, 4), (0x3ffc, 8), (0x3fff, 8), (0xffc, 8), (0x1fff, 4)] {
            load(target.registers + offset, width);
            store(target.registers + offset, width, u64::MAX);
        }
        serves(target)
    }),
    attack("polled-while-it-is-nowhere", OPEN, |target| {
        begin(target)?;
        target.function.command(0, MEMORY);
        for _ in 0..500 {
            load(target.registers, 4);
        }
        target.come_home();
        serves(target)
    }),
    attack("on-another-device-that-leaves", COLLISION, |target| {
        begin(target)?;
        let (other, bar) = other(target)?;
        let (address, command) = (bar.address(), other.read16(4));
        target.function.command(0, MEMORY);
        write(target.function, BAR0, address);
        target.function.command(MEMORY, 0);
        // Now the other one goes, and the place is free for the one that lost it.
        other.command(0, MEMORY);
        let found = answers(address);
        target.come_home();
        other.write16(4, command);
        holds("the other answers again", answers(address))?;
        holds("the device answers where the other was", found)?;
        serves(target)
    }),
    attack("on-configuration-space", COLLISION, |target| {
        begin(target)?;
        let identity = target.function.id();
        for _ in 0..200 {
            place(target, BAR0, CONFIGURATION);
        }
        equal("identity", target.function.id(), identity)?;
        equal("the host bridge", read32(CONFIGURATION + u64::from(ID)) & 0xffff, 0x1b36u32)?;
        for _ in 0..200 {
            target.function.command(0, MEMORY);
            target.function.command(MEMORY, 0);
        }
        target.come_home();
        serves(target)
    }),
];

/// Puts a BAR there with decoding on all the time, one half after the other.
fn place(target: &Target, register: u16, address: u64) {
    write(target.function, register, address);
}

fn write(function: Function, register: u16, address: u64) {
    let [low, high] = [address & 0xffff_ffff, address >> 32].map(|half| u32::try_from(half).unwrap_or(0));
    function.write32(register, low);
    if register == BAR0 {
        function.write32(register + 4, high);
    }
}

/// Another function, and a memory BAR of the same kind as the target's registers are in.
fn other(target: &Target) -> Result<(Function, Bar), Fault> {
    let fault = Fault { what: "another device", got: 0, wanted: 1 };
    let (other, bar) = target.other.and_then(|other| Some((other, other.bar(0)?))).ok_or(fault)?;
    map(bar.address(), bar.size);
    other.command(MEMORY, 0);
    Ok((other, bar))
}

/// Whether virtio registers are there: one keeps what is written to it.
fn answers(registers: u64) -> bool {
    let register = registers + FEATURE_SELECT;
    [1, 0].into_iter().all(|value| {
        write32(register, value);
        read32(register) == value
    })
}
