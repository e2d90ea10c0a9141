//! Descriptor chains that no driver may make (virtio 1.2, 2.7.4 and 2.7.5), and odd ones that it may.

use super::arena::{QUEUES, READABLE, TABLES, WRITABLE, put16, put64};
use super::outcome::{Outcome, equal, holds};
use super::queue::{INDIRECT, LARGE, NEXT, SMALL, WRITES, chain, describe};
use super::request::{HEADER, begin};
use super::target::{INDIRECT_DESCRIPTORS, Kind, Target};
use super::{Attack, attack};

const NO_LOOPS: &str = "virtio 1.2, 2.7.5.2";
const NEXT_WITHIN: &str = "virtio 1.2, 2.7.5";
const LENGTH: &str = "virtio 1.2, 2.7.5: at most 2^32 bytes";
const INDIRECT_RULES: &str = "virtio 1.2, 2.7.5.3.1";
const READABLE_FIRST: &str = "virtio 1.2, 2.7.4.2";
const ANY_LAYOUT: &str = "virtio 1.2, 2.7.4.1";
const OPEN: &str = "left open: answered one way or the other";

/// Places that are no RAM: configuration space, the I/O APIC, the local APICs, where device memory begins, and nothing at all.
const NO_RAM: [u64; 5] = [0xe000_0000, 0xfec0_0000, 0xfee0_0000, 0xc000_0000, 0x7f_ffff_f000];

pub const ATTACKS: &[Attack] = &[
    attack("loop-of-one", NO_LOOPS, |target| {
        begin(target)?;
        target.queue().describe(0, READABLE, HEADER, NEXT, 0);
        refused(target)
    }),
    attack("loop-of-two", NO_LOOPS, |target| {
        begin(target)?;
        target.queue().describe(0, READABLE, HEADER, NEXT, 1);
        target.queue().describe(1, READABLE, HEADER, NEXT, 0);
        refused(target)
    }),
    attack("loop-through-the-whole-table", NO_LOOPS, |target| {
        begin(target)?;
        for index in 0..SMALL {
            target.queue().describe(index, READABLE, HEADER, NEXT, (index + 1) % SMALL);
        }
        refused(target)
    }),
    attack("loop-of-empty-descriptors", NO_LOOPS, |target| {
        begin(target)?;
        target.queue().describe(0, READABLE, 0, NEXT | WRITES, 1);
        target.queue().describe(1, READABLE, 0, NEXT | WRITES, 0);
        refused(target)
    }),
    attack("loop-in-a-large-table", NO_LOOPS, |target| {
        target.start_large()?;
        for index in 0..LARGE {
            target.queue().describe(index, READABLE, 1, NEXT, (index + 1) % LARGE);
        }
        refused(target)
    }),
    attack("next-out-of-range", NEXT_WITHIN, |target| next(target, SMALL)),
    attack("next-far-out-of-range", NEXT_WITHIN, |target| next(target, 0xffff)),
    attack("readable-after-writable", READABLE_FIRST, |target| {
        begin(target)?;
        target.request(target.main(), 0, &[(READABLE, HEADER, false), (WRITABLE, 512, true), (READABLE, 16, false)]);
        target.is_refused()
    }),
    attack("writable-before-anything", READABLE_FIRST, |target| {
        begin(target)?;
        target.request(target.main(), 0, &[(WRITABLE, 1, true), (READABLE, HEADER, false)]);
        target.is_refused()
    }),
    attack("four-gibibytes", LENGTH, |target| {
        begin(target)?;
        let whole = (READABLE, u32::MAX, false);
        target.request(target.main(), 0, &[whole, whole, whole]);
        target.is_refused()
    }),
    attack("indirect-not-negotiated", INDIRECT_RULES, |target| {
        let features = target.features() & !INDIRECT_DESCRIPTORS;
        target.start_with(features)?;
        describe(TABLES, 0, READABLE, HEADER, 0, 0);
        indirect(target, TABLES, 16, 0);
        refused(target)
    }),
    attack("indirect-in-indirect", INDIRECT_RULES, |target| {
        begin(target)?;
        describe(TABLES, 0, TABLES + 0x100, 16, INDIRECT, 0);
        describe(TABLES + 0x100, 0, READABLE, HEADER, 0, 0);
        indirect(target, TABLES, 16, 0);
        refused(target)
    }),
    attack("indirect-in-itself", INDIRECT_RULES, |target| {
        begin(target)?;
        describe(TABLES, 0, TABLES, 16, INDIRECT, 0);
        indirect(target, TABLES, 16, 0);
        refused(target)
    }),
    attack("indirect-with-next", INDIRECT_RULES, |target| {
        begin(target)?;
        describe(TABLES, 0, READABLE, HEADER, 0, 0);
        indirect(target, TABLES, 16, NEXT);
        refused(target)
    }),
    attack("indirect-of-no-length", INDIRECT_RULES, |target| indirect_length(target, 0)),
    attack("indirect-of-half-a-descriptor", INDIRECT_RULES, |target| indirect_length(target, 8)),
    attack("indirect-of-odd-length", INDIRECT_RULES, |target| indirect_length(target, 33)),
    attack("indirect-longer-than-any-queue", INDIRECT_RULES, |target| indirect_length(target, 0x1000_0000)),
    attack("indirect-of-odd-four-gibibytes", INDIRECT_RULES, |target| indirect_length(target, u32::MAX)),
    attack("indirect-longer-than-the-queue", OPEN, |target| {
        begin(target)?;
        let count = 2 * SMALL;
        for index in 0..count {
            let flags = if index + 1 == count { 0 } else { NEXT };
            describe(TABLES, index, READABLE, HEADER, flags, index + 1);
        }
        indirect(target, TABLES, u32::from(count) * 16, 0);
        target.submit(0);
        target.is_answered()
    }),
    attack("indirect-next-out-of-range", INDIRECT_RULES, |target| {
        begin(target)?;
        describe(TABLES, 0, READABLE, HEADER, NEXT, 1);
        indirect(target, TABLES, 16, 0);
        refused(target)
    }),
    attack("indirect-loop", INDIRECT_RULES, |target| {
        begin(target)?;
        describe(TABLES, 0, READABLE, HEADER, NEXT, 1);
        describe(TABLES, 1, READABLE, HEADER, NEXT, 0);
        indirect(target, TABLES, 32, 0);
        refused(target)
    }),
    attack("indirect-table-beyond-ram", INDIRECT_RULES, |target| {
        begin(target)?;
        indirect(target, target.end_of_ram, 64, 0);
        refused(target)
    }),
    attack("indirect-table-across-the-end-of-ram", INDIRECT_RULES, |target| {
        begin(target)?;
        indirect(target, target.end_of_ram - 16, 64, 0);
        refused(target)
    }),
    attack("indirect-table-in-its-own-registers", INDIRECT_RULES, |target| {
        begin(target)?;
        indirect(target, target.registers, 64, 0);
        refused(target)
    }),
    attack("indirect-table-at-the-end-of-addresses", INDIRECT_RULES, |target| {
        begin(target)?;
        indirect(target, u64::MAX - 15, 32, 0);
        refused(target)
    }),
    attack("indirect-table-anywhere", ANY_LAYOUT, |target| {
        begin(target)?;
        let table = TABLES + 1;
        describe(table, 0, READABLE, HEADER, NEXT, 2);
        describe(table, 2, WRITABLE, 1, WRITES, 7);
        target.arena.offer(WRITABLE, 1);
        indirect(target, table, 48, 0);
        target.submit(0);
        let used = target.used(target.main())?;
        equal("used chain", used.head, 0u32)?;
        holds("used length", used.length <= 1)
    }),
    attack("address-beyond-ram", OPEN, |target| unreachable(target, target.end_of_ram, 512)),
    attack("address-across-the-end-of-ram", OPEN, |target| unreachable(target, target.end_of_ram - 256, 512)),
    attack("address-wraps", OPEN, |target| unreachable(target, u64::MAX - 255, 512)),
    attack("address-at-the-end-of-addresses", OPEN, |target| unreachable(target, u64::MAX - 511, 512)),
    attack("address-in-its-own-registers", OPEN, |target| unreachable(target, target.registers, 512)),
    attack("address-in-its-own-msix-table", OPEN, |target| {
        let before = target.msix.read(1);
        let [table, _] = target.msix.places();
        unreachable(target, table, 512)?;
        equal("table entry", target.msix.read(1)[2], before[2])
    }),
    attack("address-where-no-ram-is", OPEN, |target| {
        for address in NO_RAM {
            unreachable(target, address, 512)?;
        }
        Ok(())
    }),
    attack("address-of-its-own-descriptors", OPEN, |target| {
        let own = target.queue().descriptors;
        unreachable(target, own, 512)
    }),
    attack("address-of-its-own-rings", OPEN, |target| {
        let own = target.queue().available;
        unreachable(target, own, 512)
    }),
    attack("same-buffer-many-times", OPEN, |target| {
        begin(target)?;
        let main = target.main();
        let data = (WRITABLE, 256, true);
        target.request(main, 0, &[(READABLE, HEADER, false), data, data, data, data, (WRITABLE, 1, true)]);
        target.is_answered()
    }),
    attack("empty-descriptors-in-between", OPEN, |target| {
        begin(target)?;
        let (main, empty) = (target.main(), (READABLE, 0, false));
        let (data, nothing) = ((WRITABLE, 512, true), (u64::MAX, 0, true));
        target.request(
            main,
            0,
            &[empty, (READABLE, HEADER, false), empty, nothing, data, nothing, (WRITABLE + 512, 1, true)],
        );
        target.is_answered()
    }),
    attack("nothing-but-an-empty-descriptor", OPEN, |target| {
        begin(target)?;
        target.request(target.main(), 0, &[(READABLE, 0, false)]);
        target.is_answered()
    }),
    attack("flags-that-do-not-exist", OPEN, |target| {
        begin(target)?;
        target.queue().describe(0, READABLE, HEADER, 0xfff8 | NEXT, 1);
        target.queue().describe(1, WRITABLE, 513, 0xfff8 | WRITES, 0xffff);
        target.arena.offer(WRITABLE, 513);
        target.submit(0);
        target.is_answered()
    }),
    attack("as-long-as-the-queue", ANY_LAYOUT, |target| {
        target.start_large()?;
        put64(READABLE, 0);
        put64(READABLE + 8, 0);
        // Header, 253 pieces of two bytes and one of six, status: what a disk reads; a card has no use for what it could write.
        for index in 0..LARGE {
            let (address, length, writes) = match index {
                0 => (READABLE, HEADER, 0),
                254 => (WRITABLE + 506, 6, WRITES),
                255 => (WRITABLE + 512, 1, WRITES),
                _ => (WRITABLE + u64::from(index - 1) * 2, 2, WRITES),
            };
            target.queue().describe(index, address, length, writes | if index == 255 { 0 } else { NEXT }, index + 1);
        }
        target.arena.offer(WRITABLE, 513);
        target.submit(0);
        let used = target.used(target.main())?;
        equal("used length", used.length, if target.kind == Kind::Card { 0u32 } else { 513 })
    }),
    attack("changed-while-it-is-looked-at", OPEN, |target| {
        begin(target)?;
        let main = target.main();
        let (status, queue) = (WRITABLE + 512, *target.queue());
        target.prepare(main, 0, &[(READABLE, HEADER, false), (WRITABLE, 512, true), (status, 1, true)]);
        target.queue().show();
        for round in 0..200u16 {
            put16(queue.descriptors + 14, if round % 2 == 0 { 0xffff } else { 1 });
            put64(queue.descriptors + 16, if round % 3 == 0 { u64::MAX } else { WRITABLE });
            target.ring(main);
            let queue = target.queue();
            queue.enter(0);
            queue.show();
        }
        target.is_answered()
    }),
    attack("random-tables", OPEN, |target| {
        begin(target)?;
        target.arena.offer(QUEUES, 0xa000);
        for _ in 0..8 {
            for index in 0..SMALL {
                let address = READABLE + target.random.below(0x2000);
                let address = target.random.of(&[address, address, address, u64::MAX, target.registers]);
                let length = target.random.of(&[0, 1, 12, 16, 512, 0xffff_ffff]);
                let flags = target.random.of(&[0, NEXT, NEXT, WRITES, NEXT | WRITES, INDIRECT, 0xffff]);
                let next = u16::try_from(target.random.below(20)).unwrap_or(0);
                target.queue().describe(index, address, length, flags, next);
            }
            let head = u16::try_from(target.random.below(16)).unwrap_or(0);
            target.submit(head);
            target.is_answered()?;
            target.start()?;
            target.arena.offer(QUEUES, 0xa000);
        }
        Ok(())
    }),
];

fn refused(target: &mut Target) -> Outcome {
    target.submit(0);
    target.is_refused()
}

fn next(target: &mut Target, next: u16) -> Outcome {
    begin(target)?;
    target.queue().describe(0, READABLE, HEADER, NEXT, next);
    refused(target)
}

/// Descriptor 0 refers to a table.
fn indirect(target: &mut Target, table: u64, length: u32, flags: u16) {
    target.queue().describe(0, table, length, INDIRECT | flags, 1);
    target.queue().describe(1, WRITABLE, 1, WRITES, 0);
}

fn indirect_length(target: &mut Target, length: u32) -> Outcome {
    begin(target)?;
    chain(TABLES, 0, &[(READABLE, HEADER, false), (READABLE, HEADER, false)]);
    indirect(target, TABLES, length, 0);
    refused(target)
}

/// A buffer at `address`: one that the device reads and, as far as it is a disk's, one that it writes.
fn unreachable(target: &mut Target, address: u64, length: u32) -> Outcome {
    for writes in [false, true] {
        begin(target)?;
        // A disk writes from the first buffer and reads into the second.
        put64(READABLE, u64::from(!writes));
        put64(READABLE + 8, 8);
        let main = target.main();
        target.request(main, 0, &[(READABLE, HEADER, false), (address, length, writes), (WRITABLE, 1, true)]);
        target.is_answered()?;
    }
    Ok(())
}
