//! Configuration space: read-only bits, odd accesses, the command register, function-level reset, and virtio's window into the BARs (PCI 3.0,
//! 6.1 and 6.2; PCI Express 5.0, 6.6.2; virtio 1.2, 4.1.4.9).

use super::instructions::{load, store};
use super::outcome::{Fault, Outcome, equal, holds, pause, soon};
use super::queues::{full_queue, stays_quiet};
use super::request::{begin, buffers, serves};
use super::target::{Target, VERSION_1};
use super::{Attack, attack};
use crate::memory::{read8, read32, write32};
use crate::pci::{BAR0, BUS_MASTER, CAPABILITIES, COMMAND, Cf8, ID, IO, MEMORY, NOTHING};
use crate::port;
use crate::virtio::{FEATURE_SELECT, STATUS, Structure, WINDOW};

const READ_ONLY: &str = "PCI 3.0, 6.1 and 6.2: read-only bits";
const UNIMPLEMENTED: &str = "PCI 3.0, 6.2.5: what is not implemented reads as zero";
const ABSENT: &str = "PCI 3.0, 6.1: ones where no function is";
const DISABLED: &str = "PCI 3.0, 6.2.2: no answer while decoding is off";
const FUNCTION_RESET: &str = "PCI Express 5.0, 6.6.2";
const WINDOW_RULES: &str = "virtio 1.2, 4.1.4.9.1";
const OPEN: &str = "left open: a reset brings it back";

/// Identifier of the PCI Express capability, its device control register, and the bit there that resets.
const EXPRESS: u8 = 0x10;
const DEVICE_CONTROL: u16 = 8;
const INITIATE_RESET: u16 = 1 << 15;
const STATUS_REGISTER: u16 = 0x06;
const ROM: u16 = 0x30;
/// Registers of the window's capability, from its start.
const WINDOW_BAR: u16 = 4;
const WINDOW_OFFSET: u16 = 8;
const WINDOW_LENGTH: u16 = 12;
const WINDOW_DATA: u16 = 16;

pub const ATTACKS: &[Attack] = &[
    attack("read-only-registers", READ_ONLY, |target| {
        begin(target)?;
        // Identity, class, header type, subsystem, capability pointer, interrupt pin.
        for (register, mask) in
            [(0, u32::MAX), (8, u32::MAX), (0xc, 0x00ff_0000), (0x2c, u32::MAX), (0x34, 0xff), (0x3c, 0xff00)]
        {
            let before = target.function.read32(register);
            for value in [0, u32::MAX, 0x5555_5555] {
                target.function.write32(register, value);
                equal("a read-only register", target.function.read32(register) & mask, before & mask)?;
            }
            target.function.write32(register, before);
        }
        serves(target)
    }),
    attack("capability-headers", READ_ONLY, |target| {
        begin(target)?;
        let mut at = u16::from(target.function.read8(CAPABILITIES));
        for _ in 0..16 {
            if at == 0 {
                break;
            }
            let before = target.function.read16(at);
            target.function.write16(at, !before);
            equal("a capability's header", target.function.read16(at), before)?;
            at = before >> 8;
        }
        serves(target)
    }),
    attack("registers-that-are-not-implemented", UNIMPLEMENTED, |target| {
        begin(target)?;
        for register in [BAR0 + 12, BAR0 + 16, BAR0 + 20, ROM, 0x28, 0x38] {
            target.function.write32(register, u32::MAX);
            equal("a register that is not there", target.function.read32(register), 0u32)?;
        }
        serves(target)
    }),
    attack("status-bits-cleared", OPEN, |target| {
        begin(target)?;
        let before = target.function.read16(STATUS_REGISTER);
        target.function.write16(STATUS_REGISTER, 0xffff);
        equal("capabilities bit", target.function.read16(STATUS_REGISTER) & 0x10, before & 0x10)?;
        serves(target)
    }),
    attack("command-of-ones", READ_ONLY, |target| {
        begin(target)?;
        target.function.write16(COMMAND, 0xffff);
        equal("reserved command bits", target.function.read16(COMMAND) & 0xf800, 0u16)?;
        serves(target)?;
        target.function.write16(COMMAND, 0);
        target.function.write16(COMMAND, MEMORY | BUS_MASTER | IO);
        serves(target)
    }),
    attack("every-register-of-ones", OPEN, |target| {
        begin(target)?;
        for register in (0x40..0x100).step_by(4) {
            target.function.write32(register, u32::MAX);
            target.function.read32(register);
        }
        for register in (0x100..0x1000).step_by(64) {
            target.function.write32(register, u32::MAX);
            target.function.read32(register);
        }
        Ok(())
    }),
    attack("extended-space-is-empty", UNIMPLEMENTED, |target| {
        begin(target)?;
        target.function.write32(0x100, u32::MAX);
        equal("first extended capability", target.function.read32(0x100), 0u32)?;
        target.function.write32(0xffc, u32::MAX);
        equal("last register", target.function.read32(0xffc), 0u32)
    }),
    attack("accesses-of-odd-widths-and-places", OPEN, |target| {
        begin(target)?;
        for register in [0u16, 1, 3, 5, 7, 0x3e, 0x7d, 0xff, 0xfff - 8] {
            for width in [2, 4, 8] {
                load(target.function.address(register), width);
            }
        }
        for register in [1u16, 3, 0x35, 0x3d, 0x101] {
            for width in [2, 4, 8] {
                store(target.function.address(register), width, u64::MAX);
            }
        }
        Ok(())
    }),
    attack("across-the-end-of-a-function", OPEN, |target| {
        begin(target)?;
        for width in [2, 4, 8] {
            load(target.function.address(0) + 0xfff, width);
        }
        serves(target)
    }),
    attack("functions-that-do-not-exist", ABSENT, |target| {
        begin(target)?;
        for function in [1, 2, 7] {
            let place = target.function.address(0) + function * 0x1000;
            write32(place + 4, u32::MAX);
            equal("no function", read32(place), NOTHING)?;
        }
        let last = target.function.address(0) & !0xf_ffff | 0xf_f000;
        write32(last, 0);
        equal("the last function of the bus", read32(last), NOTHING)?;
        serves(target)
    }),
    attack("ports-at-odd-places", OPEN, |target| {
        begin(target)?;
        let device = target.function.device;
        // Not 0xcf9, which resets the machine.
        [0xcfa, 0xcfb].into_iter().for_each(|port| port::write8(port, 0xff));
        for offset in [1, 2, 3] {
            port::write32(0xcf8, 0x8000_0000 | u32::from(device) << 11);
            port::read32(0xcfc + offset);
            port::read16(0xcfc + offset);
            port::write16(0xcfc + offset, 0xffff);
        }
        equal("identity by ports", Cf8 { device, function: 0 }.read32(ID), target.function.id())?;
        Cf8::disable();
        serves(target)
    }),
    attack("ports-to-buses-that-do-not-exist", ABSENT, |target| {
        begin(target)?;
        let device = u32::from(target.function.device) << 11;
        for bus in [1, 0x7f, 0xff] {
            port::write32(0xcf8, 0x8000_0000 | bus << 16 | device);
            equal("no bus", port::read32(0xcfc), NOTHING)?;
            port::write32(0xcfc, 0);
        }
        Cf8::disable();
        serves(target)
    }),
    attack("decoding-off", DISABLED, |target| {
        begin(target)?;
        serves(target)?;
        target.is_idle()?;
        target.function.command(0, MEMORY);
        equal("a register", read32(target.common + FEATURE_SELECT), u32::MAX)?;
        write32(target.common + FEATURE_SELECT, 1);
        store(target.common + STATUS, 1, 0);
        target.request_unseen(&buffers());
        store(target.doorbells + u64::from(target.main()) * target.doorbell_stride, 2, 0);
        pause();
        equal("chains used", target.queue().unseen(), 0u16)?;
        target.function.command(MEMORY, 0);
        equal("what was written meanwhile", read32(target.common + FEATURE_SELECT) & 0xfffe, 0u32)?;
        holds("the device goes on", target.status() & 4 != 0)?;
        target.ring(target.main());
        target.used(target.main()).map(drop)
    }),
    attack("decoding-flips-in-service", OPEN, |target| {
        begin(target)?;
        for _ in 0..100 {
            target.request(target.main(), 0, &buffers());
            target.function.command(0, MEMORY);
            target.function.command(MEMORY, 0);
            target.used(target.main())?;
        }
        Ok(())
    }),
    attack("bus-mastering-flips-in-service", OPEN, |target| {
        begin(target)?;
        for _ in 0..20 {
            target.prepare(target.main(), 0, &buffers());
            target.function.command(0, BUS_MASTER);
            target.queue().show();
            target.ring(target.main());
            target.function.command(BUS_MASTER, 0);
            let answered = soon(|| target.queue().unseen() > 0 || target.needs_reset());
            holds("an answer", answered)?;
            if target.needs_reset() {
                return Ok(());
            }
            target.queue().look();
        }
        Ok(())
    }),
    attack("function-reset-with-a-full-queue", FUNCTION_RESET, |target| {
        target.start_large()?;
        let queue = full_queue(target);
        function_reset(target);
        equal("command after a reset", target.function.read16(COMMAND) & (MEMORY | BUS_MASTER), 0u16)?;
        stays_quiet(target, queue)?;
        target.come_home();
        equal("status after a reset", target.status(), 0u8)
    }),
    attack("function-reset-again-and-again", FUNCTION_RESET, |target| {
        begin(target)?;
        (0..10).for_each(|_| function_reset(target));
        target.come_home();
        equal("status after a reset", target.status(), 0u8)
    }),
    attack("window-reads-a-register", WINDOW_RULES, |target| {
        begin(target)?;
        let window = window(target, 0, target.common - target.registers + STATUS, 1)?;
        equal("status by the window", target.function.read8(window + WINDOW_DATA), target.status())
    }),
    attack("window-written-in-part", WINDOW_RULES, |target| {
        begin(target)?;
        let window = window(target, 0, target.common - target.registers + STATUS, 1)?;
        let before = target.function.read8(window + WINDOW_DATA);
        for lane in [1, 2, 3] {
            target.function.write8(window + WINDOW_DATA + lane, 0);
        }
        target.function.write16(window + WINDOW_DATA + 2, 0);
        equal("status", target.status(), before)?;
        serves(target)
    }),
    attack("window-of-a-bar-that-does-not-exist", WINDOW_RULES, |target| {
        for bar in [1, 3, 4, 5, 6, 7, 0x80, 0xff] {
            harmless(target, bar, 0, 4)?;
        }
        Ok(())
    }),
    attack("window-beyond-the-bar", WINDOW_RULES, |target| {
        for offset in [0x4000, 0x3ffe, 0x10_0000, 0x8000_0000, u64::from(u32::MAX), u64::from(u32::MAX) - 3] {
            harmless(target, 0, offset, 4)?;
        }
        Ok(())
    }),
    attack("window-of-lengths-that-do-not-exist", WINDOW_RULES, |target| {
        let status = target.common - target.registers + STATUS;
        for length in [0, 3, 5, 8, 0x100, u32::MAX] {
            harmless(target, 0, status & !3, length)?;
        }
        Ok(())
    }),
    attack("window-misaligned", WINDOW_RULES, |target| {
        for (offset, length) in [(1, 2), (1, 4), (2, 4), (3, 2)] {
            harmless(target, 0, offset, length)?;
        }
        Ok(())
    }),
    attack("window-into-the-msix-table", OPEN, |target| {
        begin(target)?;
        let before = target.msix.read(1);
        let window = window(target, target.msix.table_place.0, target.msix.table_place.1 + 16, 4)?;
        target.function.write32(window + WINDOW_DATA, u32::MAX);
        target.function.read32(window + WINDOW_DATA);
        serves(target)?;
        equal("table entry", target.msix.read(1)[2], before[2])
    }),
    attack("window-at-random", OPEN, |target| {
        begin(target)?;
        for _ in 0..50 {
            let bar = target.random.of(&[0, 0, 0, 2, 1, 0xff]);
            let offset = target.random.of(&[0x14, 0x16, 0x1c, 0x3000, 0x2000, 0x1000, 0xffff_ffff]);
            let length = target.random.of(&[1, 2, 4, 4, 3]);
            let window = window(target, bar, offset, length)?;
            let value = target.random.next().to_le_bytes();
            target.function.write32(window + WINDOW_DATA, u32::from_le_bytes([value[0] & 3, value[1] & 1, 0, 0]));
            target.function.read32(window + WINDOW_DATA);
        }
        Ok(())
    }),
    attack("window-resets-the-device", WINDOW_RULES, |target| {
        begin(target)?;
        let window = window(target, 0, target.common - target.registers + STATUS, 1)?;
        target.function.write32(window + WINDOW_DATA, 0);
        equal("status", if soon(|| target.status() == 0) { 0 } else { target.status() }, 0u8)
    }),
];

fn function_reset(target: &Target) {
    if let Some(express) = target.function.capabilities(EXPRESS).next() {
        target.function.write16(express + DEVICE_CONTROL, INITIATE_RESET);
    }
}

/// Points the window there; the offset of its capability.
fn window(target: &Target, bar: u8, offset: u64, length: u32) -> Result<u16, Fault> {
    let missing = Fault { what: "a window", got: 0, wanted: 1 };
    let at = Structure::find(target.function, WINDOW).ok_or(missing)?.capability;
    target.function.write8(at + WINDOW_BAR, bar);
    target.function.write32(at + WINDOW_OFFSET, u32::try_from(offset & 0xffff_ffff).unwrap_or(0));
    target.function.write32(at + WINDOW_LENGTH, length);
    Ok(at)
}

/// A window that leads nowhere leaves the device as it is.
fn harmless(target: &mut Target, bar: u8, offset: u64, length: u32) -> Outcome {
    begin(target)?;
    let window = window(target, bar, offset, length)?;
    let (before, features) = (target.status(), target.offered() & VERSION_1);
    target.function.read32(window + WINDOW_DATA);
    target.function.write32(window + WINDOW_DATA, 0);
    target.function.read32(window + WINDOW_DATA);
    equal("status", target.status(), before)?;
    equal("features", target.offered() & VERSION_1, features)?;
    equal("interrupt status", read8(target.isr), 0u8)
}
