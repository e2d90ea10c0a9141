//! The MSI-X table, the pending bits and the vectors that queues are given (PCI 3.0, 6.8.2; virtio 1.2, 4.1.5.1.2).

use super::arena::WRITABLE;
use super::instructions::{load, store};
use super::outcome::{Outcome, equal, holds, pause, soon};
use super::request::{begin, buffers, header, serves};
use super::target::{CONFIG_INTERRUPT, QUEUE_INTERRUPT, Target};
use super::{Attack, attack};
use crate::interrupts::fired;
use crate::memory::{read16, write16, write32};
use crate::pci::{BUS_MASTER, MSIX};
use crate::virtio::{CONFIG_VECTOR, NO_VECTOR, QUEUE_SELECT, QUEUE_VECTOR};

const NO_SUCH_VECTOR: &str = "virtio 1.2, 4.1.5.1.2.1: NO_VECTOR reads back";
const SILENT: &str = "virtio 1.2, 4.1.5.1.2.1: no interrupt without a vector";
const MASKED: &str = "PCI 3.0, 6.8.2.9 and 6.8.3.2: pending until unmasked, then once";
const PENDING_READ_ONLY: &str = "PCI 3.0, 6.8.2.10: software does not write pending bits";
const MASTER: &str = "PCI 3.0, 6.2.2: no MSI-X without bus mastering";
const OPEN: &str = "left open: a reset brings it back";

pub const ATTACKS: &[Attack] = &[
    attack("queue-vector-out-of-range", NO_SUCH_VECTOR, |target| {
        target.start()?;
        write16(target.common + QUEUE_SELECT, target.main());
        for vector in [target.msix.vectors, target.msix.vectors + 1, 0x7ff, 0x8000, 0xfffe] {
            write16(target.common + QUEUE_VECTOR, 1);
            write16(target.common + QUEUE_VECTOR, vector);
            equal("queue vector", read16(target.common + QUEUE_VECTOR), NO_VECTOR)?;
        }
        silent(target)
    }),
    attack("configuration-vector-out-of-range", NO_SUCH_VECTOR, |target| {
        target.start()?;
        for vector in [target.msix.vectors, 0x7ff, 0xfffe] {
            write16(target.common + CONFIG_VECTOR, 0);
            write16(target.common + CONFIG_VECTOR, vector);
            equal("configuration vector", read16(target.common + CONFIG_VECTOR), NO_VECTOR)?;
        }
        pause();
        let before = fired(CONFIG_INTERRUPT);
        target.submit(0xffff);
        holds("the device needs a reset", soon(|| target.needs_reset()))?;
        pause();
        equal("interrupts", fired(CONFIG_INTERRUPT) - before, 0u32)
    }),
    attack("no-vector", SILENT, |target| {
        target.start()?;
        write16(target.common + QUEUE_SELECT, target.main());
        write16(target.common + QUEUE_VECTOR, NO_VECTOR);
        silent(target)
    }),
    attack("vector-changes-in-service", OPEN, |target| {
        begin(target)?;
        for round in 0..50u16 {
            write16(target.common + QUEUE_SELECT, target.main());
            write16(target.common + QUEUE_VECTOR, if round % 3 == 0 { NO_VECTOR } else { round % 2 });
            serves(target)?;
        }
        Ok(())
    }),
    attack("masked-entry-keeps-one", MASKED, |target| {
        begin(target)?;
        pause();
        let before = fired(QUEUE_INTERRUPT);
        target.msix.mask(1, true);
        for _ in 0..3 {
            serves(target)?;
        }
        holds("pending", soon(|| target.msix.pending(1)))?;
        pause();
        equal("interrupts while masked", fired(QUEUE_INTERRUPT) - before, 0u32)?;
        target.msix.mask(1, false);
        holds("an interrupt", soon(|| fired(QUEUE_INTERRUPT) != before))?;
        pause();
        equal("interrupts when unmasked", fired(QUEUE_INTERRUPT) - before, 1u32)
    }),
    attack("masks-flip-in-service", "PCI 3.0, 6.8.3.2: none is lost", |target| {
        begin(target)?;
        for round in 0..100 {
            let before = fired(QUEUE_INTERRUPT);
            target.request(target.main(), 0, &buffers());
            for _ in 0..round % 5 {
                target.msix.mask(1, true);
                target.msix.mask(1, false);
            }
            target.used(target.main())?;
            holds("an interrupt", soon(|| fired(QUEUE_INTERRUPT) != before))?;
        }
        Ok(())
    }),
    attack("function-mask-flips-in-service", "PCI 3.0, 6.8.3.2: none is lost", |target| {
        begin(target)?;
        for _ in 0..30 {
            let before = fired(QUEUE_INTERRUPT);
            target.request(target.main(), 0, &buffers());
            target.msix.control(true, true);
            target.used(target.main())?;
            target.msix.control(true, false);
            holds("an interrupt", soon(|| fired(QUEUE_INTERRUPT) != before))?;
        }
        Ok(())
    }),
    attack("switched-on-and-off-in-service", OPEN, |target| {
        begin(target)?;
        for round in 0..30 {
            target.request(target.main(), 0, &buffers());
            target.msix.control(round % 2 == 0, false);
            target.used(target.main())?;
        }
        target.msix.control(true, false);
        let before = fired(QUEUE_INTERRUPT);
        serves(target)?;
        holds("an interrupt", soon(|| fired(QUEUE_INTERRUPT) != before))
    }),
    attack("pending-bits-are-written", PENDING_READ_ONLY, |target| {
        begin(target)?;
        pause();
        let (before, [_, pending]) = (fired(QUEUE_INTERRUPT), target.msix.places());
        target.msix.mask(1, true);
        for width in [1, 2, 4, 8] {
            store(pending, width, u64::MAX);
            equal("pending bits", load(pending, width), 0u64)?;
        }
        target.msix.mask(1, false);
        pause();
        equal("interrupts", fired(QUEUE_INTERRUPT) - before, 0u32)?;
        serves(target)
    }),
    attack("table-in-other-widths", OPEN, |target| {
        begin(target)?;
        let [table, _] = target.msix.places();
        for offset in 16..32 {
            for width in [1, 2, 4, 8] {
                store(table + offset, width, u64::MAX);
                load(table + offset, width);
            }
        }
        Ok(())
    }),
    attack("beyond-the-table", OPEN, |target| {
        begin(target)?;
        let [table, pending] = target.msix.places();
        let end = table + u64::from(target.msix.vectors) * 16;
        for at in [end - 4, end, end + 1, end + 12, table + 0xffc, pending + 8, pending + 0xffc] {
            store(at, 4, u64::MAX);
            store(at, 8, u64::MAX);
            load(at, 8);
        }
        Ok(())
    }),
    attack("message-to-ram", "PCI 3.0, 6.8.2: a message is an interrupt here, or nothing", |target| {
        begin(target)?;
        message(target, WRITABLE + 0x1000, 0x46)
    }),
    attack("message-to-odd-addresses", OPEN, |target| {
        begin(target)?;
        for address in [0xfee0_0001, 0xfee0_0003, 0xfeef_fff8, 0xfef0_0000, 0xfec0_0000, 0, u64::MAX] {
            message(target, address, 0x46)?;
        }
        Ok(())
    }),
    attack("message-to-its-own-registers", OPEN, |target| {
        begin(target)?;
        message(target, target.doorbells, 0)?;
        message(target, target.common + 20, 0)
    }),
    attack("message-to-processors-that-do-not-exist", OPEN, |target| {
        begin(target)?;
        for processor in [1, 77, 254] {
            message(target, 0xfee0_0000 | processor << 12, 0x46)?;
        }
        Ok(())
    }),
    attack("message-of-vectors-that-cannot-be", OPEN, |target| {
        begin(target)?;
        // Vectors below 16, and a delivery mode that is reserved.
        for data in [0, 1, 15, 0x346] {
            message(target, 0xfee0_0000, data)?;
        }
        Ok(())
    }),
    attack("reserved-bits-of-vector-control", OPEN, |target| {
        begin(target)?;
        let [table, _] = target.msix.places();
        write32(table + 16 + 12, 0xffff_fffe);
        let before = fired(QUEUE_INTERRUPT);
        serves(target)?;
        holds("an interrupt", soon(|| fired(QUEUE_INTERRUPT) != before))
    }),
    attack("reserved-bits-of-message-control", "PCI 3.0, 6.8.2.3: the table's size cannot be written", |target| {
        begin(target)?;
        let Some(capability) = target.function.capabilities(MSIX).next() else {
            return holds("MSI-X capability", false);
        };
        target.function.write16(capability + 2, 0xffff);
        let control = target.function.read16(capability + 2);
        equal("table size", control & 0x7ff, target.msix.vectors - 1)?;
        for register in [4, 8] {
            let before = target.function.read32(capability + register);
            target.function.write32(capability + register, !before);
            equal("place of a structure", target.function.read32(capability + register), before)?;
        }
        Ok(())
    }),
    attack("table-changes-in-service", OPEN, |target| {
        begin(target)?;
        let [table, _] = target.msix.places();
        for round in 0..50u64 {
            target.request(target.main(), 0, &buffers());
            let address = target.random.of(&[0xfee0_0000, 0xfee0_0000, WRITABLE, u64::MAX]);
            store(table + 16, 8, address);
            store(table + 24, 8, 0x46 | (round & 1) << 32);
            target.used(target.main())?;
        }
        Ok(())
    }),
    attack("no-bus-mastering", MASTER, |target| {
        begin(target)?;
        pause();
        let before = [CONFIG_INTERRUPT, QUEUE_INTERRUPT].map(fired);
        target.function.command(0, BUS_MASTER);
        let main = target.main();
        target.request(main, 0, &buffers());
        pause();
        let during = [CONFIG_INTERRUPT, QUEUE_INTERRUPT].map(fired);
        equal("interrupts for a queue", during[1] - before[1], 0u32)?;
        equal("interrupts for the configuration", during[0] - before[0], 0u32)?;
        if target.messages {
            equal("chains used without DMA", target.queue().unseen(), 0u16)?;
        }
        target.function.command(BUS_MASTER, 0);
        Ok(())
    }),
];

/// A request is served without an interrupt.
fn silent(target: &mut Target) -> Outcome {
    header();
    pause();
    let before = fired(QUEUE_INTERRUPT);
    serves(target)?;
    pause();
    equal("interrupts", fired(QUEUE_INTERRUPT) - before, 0u32)
}

/// The queue's entry says this, and a request is served.
fn message(target: &mut Target, address: u64, data: u32) -> Outcome {
    let [table, _] = target.msix.places();
    target.msix.mask(1, true);
    store(table + 16, 8, address);
    store(table + 24, 4, data.into());
    target.msix.mask(1, false);
    serves(target)
}
