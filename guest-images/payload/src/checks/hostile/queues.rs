//! Queues that are set up, enabled, rung for and reset as none should be (virtio 1.2, 2.6.1, 3.1.1, 4.1.4.3, 4.1.4.4 and 4.1.5.2).

use super::arena::{READABLE, WRITABLE, untouched};
use super::instructions::{load, store};
use super::outcome::{Fault, Outcome, equal, holds, pause, soon};
use super::queue::{Queue, SMALL};
use super::request::{HEADER, begin, buffers, header, serves};
use super::target::{QUEUE_INTERRUPT, RING_RESET, Target};
use super::{Attack, attack};
use crate::interrupts::fired;
use crate::memory::{read16, read64, write16, write64};
use crate::virtio::{
    COMMON_SIZE, NO_VECTOR, QUEUE_DESCRIPTORS, QUEUE_ENABLE, QUEUE_RESET, QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR,
    QUEUES,
};

const SIZE: &str = "virtio 1.2, 2.7: a power of two, no larger than offered";
const ALIGNMENT: &str = "virtio 1.2, 2.7: alignment 16, 2 and 4";
const ENABLED: &str = "virtio 1.2, 4.1.4.3.2: what is enabled stays as it is";
const NO_QUEUE: &str = "virtio 1.2, 4.1.4.3.1: zero size";
const NOT_BEFORE: &str = "virtio 1.2, 2.1.2: no buffers before DRIVER_OK";
const UNREACHABLE: &str = "virtio 1.2, 2.1.2: DEVICE_NEEDS_RESET";
const DOORBELLS: &str = "virtio 1.2, 4.1.5.2: only a queue's own number is a notification";
const RESET: &str = "virtio 1.2, 2.6.1.1";
const RESET_VECTOR: &str = "virtio 1.2, 2.6.1.1 and 4.1.5.1.2.1: a reset queue has no vector";
const READ_ONLY: &str = "virtio 1.2, 4.1.4.3: read-only for the driver";
const OPEN: &str = "left open: answered one way or the other";

pub const ATTACKS: &[Attack] = &[
    attack("size-zero", SIZE, |target| size(target, 0)),
    attack("size-three", SIZE, |target| size(target, 3)),
    attack("size-one-too-many", SIZE, |target| size(target, 257)),
    attack("size-larger-than-offered", SIZE, |target| size(target, 512)),
    attack("size-of-32768", SIZE, |target| size(target, 0x8000)),
    attack("size-of-65535", SIZE, |target| size(target, 0xffff)),
    attack("size-one", OPEN, |target| {
        let mut queue = Queue::small(target.main());
        queue.size = 1;
        let features = target.features();
        target.start_one(features, queue)?;
        header();
        target.queue().describe(0, READABLE, HEADER, 0, 0);
        target.submit(0);
        target.is_answered()
    }),
    attack("descriptors-misaligned", ALIGNMENT, |target| misplaced(target, |queue| queue.descriptors += 8)),
    attack("available-ring-misaligned", ALIGNMENT, |target| misplaced(target, |queue| queue.available += 1)),
    attack("used-ring-misaligned", ALIGNMENT, |target| misplaced(target, |queue| queue.used += 2)),
    attack("descriptors-wrap", ALIGNMENT, |target| misplaced(target, |queue| queue.descriptors = u64::MAX - 15)),
    attack("used-ring-wraps", ALIGNMENT, |target| misplaced(target, |queue| queue.used = u64::MAX - 7)),
    attack("no-address-at-all", OPEN, |target| {
        let mut queue = Queue::small(target.main());
        (queue.descriptors, queue.available, queue.used) = (0x1000, 0x1000, 0x1000);
        let features = target.features();
        target.negotiate(features)?;
        write16(target.common + QUEUE_SELECT, queue.index);
        target.enable();
        Ok(())
    }),
    attack("addresses-change-while-enabled", ENABLED, |target| {
        begin(target)?;
        let queue = *target.queue();
        write16(target.common + QUEUE_SELECT, queue.index);
        for (register, address) in (0..).zip([queue.descriptors, queue.available, queue.used]) {
            let register = target.common + QUEUE_DESCRIPTORS + register * 8;
            write64(register, WRITABLE);
            equal("address", read64(register), address)?;
        }
        serves(target)
    }),
    attack("size-changes-while-enabled", ENABLED, |target| {
        begin(target)?;
        write16(target.common + QUEUE_SELECT, target.main());
        for size in [8, 0, 3, 0xffff] {
            write16(target.common + QUEUE_SIZE, size);
            equal("size", read16(target.common + QUEUE_SIZE), SMALL)?;
        }
        serves(target)
    }),
    attack("enabled-twice", ENABLED, |target| {
        begin(target)?;
        serves(target)?;
        write16(target.common + QUEUE_SELECT, target.main());
        target.enable();
        target.enable();
        serves(target)
    }),
    attack("disabled-by-zero", ENABLED, |target| {
        begin(target)?;
        write16(target.common + QUEUE_SELECT, target.main());
        write16(target.common + QUEUE_ENABLE, 0);
        equal("enable bit", read16(target.common + QUEUE_ENABLE), 1u16)?;
        serves(target)
    }),
    attack("enabled-by-other-numbers", OPEN, |target| {
        let features = target.features();
        target.negotiate(features)?;
        for value in [2, 0x100, 0xffff] {
            let queue = Queue::small(target.main());
            target.configure(queue);
            write16(target.common + QUEUE_ENABLE, value);
        }
        target.ready();
        target.ring(target.main());
        Ok(())
    }),
    attack("one-that-does-not-exist", NO_QUEUE, |target| {
        begin(target)?;
        let first = read16(target.common + QUEUES);
        for queue in [first, first + 1, 0x7fff, 0xffff] {
            let features = target.features();
            target.negotiate(features)?;
            write16(target.common + QUEUE_SELECT, queue);
            equal("size of no queue", read16(target.common + QUEUE_SIZE), 0u16)?;
            write16(target.common + QUEUE_SIZE, SMALL);
            write64(target.common + QUEUE_DESCRIPTORS, READABLE);
            target.enable();
            write16(target.common + QUEUE_RESET, 1);
            equal("size of no queue", read16(target.common + QUEUE_SIZE), 0u16)?;
            equal("enable bit of no queue", read16(target.common + QUEUE_ENABLE), 0u16)?;
            write16(target.common + QUEUE_SELECT, 0);
            equal("enable bit of the first", read16(target.common + QUEUE_ENABLE), 0u16)?;
            equal("address of the first", read64(target.common + QUEUE_DESCRIPTORS), 0u64)?;
        }
        Ok(())
    }),
    attack("enabled-before-features-are-agreed-on", OPEN, |target| {
        target.begin()?;
        let queue = Queue::small(target.main());
        target.configure(queue);
        target.enable();
        header();
        target.request(queue.index, 0, &buffers());
        target.is_ignored()
    }),
    attack("enabled-after-driver-ok", OPEN, |target| {
        let features = target.features();
        target.negotiate(features)?;
        target.ready();
        let queue = Queue::small(target.main());
        target.configure(queue);
        target.enable();
        header();
        serves(target)
    }),
    attack("unreachable-after-driver-ok", UNREACHABLE, |target| {
        let features = target.features();
        target.negotiate(features)?;
        target.ready();
        let mut queue = Queue::small(target.main());
        queue.used = target.end_of_ram;
        target.program(queue);
        *target.queue() = Queue::small(queue.index);
        target.enable();
        target.ring(queue.index);
        target.is_refused()
    }),
    attack("misaligned-after-driver-ok", OPEN, |target| {
        let features = target.features();
        target.negotiate(features)?;
        target.ready();
        let mut queue = Queue::small(target.main());
        queue.used += 2;
        target.program(queue);
        target.enable();
        equal("enable bit", read16(target.common + QUEUE_ENABLE), 0u16)
    }),
    attack("rung-before-driver-ok", NOT_BEFORE, |target| {
        let features = target.features();
        target.negotiate(features)?;
        let queue = Queue::small(target.main());
        target.configure(queue);
        target.enable();
        header();
        target.request(queue.index, 0, &buffers());
        target.is_ignored()?;
        // The request made available meanwhile is found.
        target.ready();
        target.used(queue.index).map(drop)
    }),
    attack("rung-while-not-enabled", NOT_BEFORE, |target| {
        let features = target.features();
        target.negotiate(features)?;
        let queue = Queue::small(target.main());
        target.configure(queue);
        header();
        target.ready();
        target.request(queue.index, 0, &buffers());
        target.is_ignored()
    }),
    attack("doorbells-of-queues-that-do-not-exist", DOORBELLS, |target| {
        begin(target)?;
        let count = u64::from(read16(target.common + QUEUES));
        for queue in [count, count + 1, 64, 255] {
            store(target.doorbells + queue * target.doorbell_stride, 2, queue);
        }
        target.is_ignored()?;
        serves(target)
    }),
    attack("doorbells-of-other-widths", OPEN, |target| {
        begin(target)?;
        let doorbell = target.doorbell(target.main());
        for (offset, width) in [(0, 1), (0, 4), (0, 8), (1, 1), (1, 2), (2, 2), (3, 4), (3, 8)] {
            store(doorbell + offset, width, u64::MAX);
        }
        serves(target)
    }),
    attack("doorbells-with-other-numbers", OPEN, |target| {
        begin(target)?;
        let doorbell = target.doorbell(target.main());
        for value in [0xffff, 0x8000, 77] {
            write16(doorbell, value);
        }
        serves(target)
    }),
    attack("doorbells-that-are-read", OPEN, |target| {
        begin(target)?;
        let doorbell = target.doorbell(target.main());
        for width in [1, 2, 4, 8] {
            load(doorbell, width);
        }
        serves(target)
    }),
    attack("storm-of-notifications", OPEN, |target| {
        begin(target)?;
        pause();
        let before = fired(QUEUE_INTERRUPT);
        let doorbell = target.doorbell(target.main());
        (0..1000).for_each(|_| write16(doorbell, 0));
        target.is_ignored()?;
        equal("interrupts", fired(QUEUE_INTERRUPT) - before, 0u32)?;
        serves(target)
    }),
    attack("registers-that-cannot-be-written", READ_ONLY, |target| {
        begin(target)?;
        write16(target.common + QUEUE_SELECT, target.main());
        for register in [4, QUEUES, 21, 30, 56] {
            let before = load(target.common + register, 2);
            store(target.common + register, 2, !before);
            equal("a read-only register", load(target.common + register, 2), before)?;
        }
        serves(target)
    }),
    attack("beyond-the-structure", OPEN, |target| {
        begin(target)?;
        for offset in (COMMON_SIZE..0x100).step_by(4) {
            store(target.common + offset, 4, u64::MAX);
            equal("beyond the structure", load(target.common + offset, 4), 0u64)?;
        }
        serves(target)
    }),
    attack("reset-and-enabled-again", RESET, |target| {
        begin(target)?;
        serves(target)?;
        reset(target)?;
        let queue = Queue::small(target.main());
        target.configure(queue);
        target.enable();
        serves(target)
    }),
    attack("reset-loses-its-vector", RESET_VECTOR, |target| {
        begin(target)?;
        pause();
        let before = fired(QUEUE_INTERRUPT);
        serves(target)?;
        // On a busy host it comes late, and is not to be taken for one of a queue without a vector.
        holds("an interrupt", soon(|| fired(QUEUE_INTERRUPT) != before))?;
        reset(target)?;
        equal("vector of a reset queue", read16(target.common + QUEUE_VECTOR), NO_VECTOR)?;
        pause();
        let before = fired(QUEUE_INTERRUPT);
        let queue = Queue::small(target.main());
        queue.clear();
        write16(target.common + QUEUE_SIZE, queue.size);
        for (register, address) in (0..).zip([queue.descriptors, queue.available, queue.used]) {
            write64(target.common + QUEUE_DESCRIPTORS + register * 8, address);
        }
        *target.queue() = queue;
        target.enable();
        serves(target)?;
        pause();
        equal("interrupts without a vector", fired(QUEUE_INTERRUPT) - before, 0u32)
    }),
    attack("reset-with-a-full-queue", RESET, |target| {
        target.start_large()?;
        let queue = full_queue(target);
        reset(target)?;
        stays_quiet(target, queue)
    }),
    attack("reset-while-not-enabled", RESET, |target| {
        let features = target.features();
        target.negotiate(features)?;
        write16(target.common + QUEUE_SELECT, target.main());
        write16(target.common + QUEUE_RESET, 1);
        holds("the reset is over", soon(|| read16(target.common + QUEUE_RESET) == 0))?;
        equal("enable bit", read16(target.common + QUEUE_ENABLE), 0u16)
    }),
    attack("reset-again-and-again", RESET, |target| {
        begin(target)?;
        write16(target.common + QUEUE_SELECT, target.main());
        for _ in 0..50 {
            write16(target.common + QUEUE_RESET, 1);
        }
        holds("the reset is over", soon(|| read16(target.common + QUEUE_RESET) == 0))
    }),
    attack("reset-by-other-numbers", OPEN, |target| {
        begin(target)?;
        write16(target.common + QUEUE_SELECT, target.main());
        for value in [0, 2, 0x100, 0xffff] {
            write16(target.common + QUEUE_RESET, value);
        }
        Ok(())
    }),
    attack("reset-that-was-not-negotiated", OPEN, |target| {
        let features = target.features() & !RING_RESET;
        target.start_with(features)?;
        write16(target.common + QUEUE_SELECT, target.main());
        write16(target.common + QUEUE_RESET, 1);
        holds("the reset is over", soon(|| read16(target.common + QUEUE_RESET) == 0))
    }),
];

/// A queue of a size that cannot be is not enabled, or the device gives up.
fn size(target: &mut Target, size: u16) -> Outcome {
    let features = target.features();
    target.negotiate(features)?;
    let queue = Queue::small(target.main());
    target.configure(queue);
    write16(target.common + QUEUE_SIZE, size);
    target.enable();
    not_enabled(target)
}

fn misplaced(target: &mut Target, change: impl FnOnce(&mut Queue)) -> Outcome {
    let features = target.features();
    target.negotiate(features)?;
    let mut queue = Queue::small(target.main());
    change(&mut queue);
    target.program(queue);
    target.enable();
    not_enabled(target)
}

fn not_enabled(target: &mut Target) -> Outcome {
    let enabled = read16(target.common + QUEUE_ENABLE) == 1;
    holds("refused at once", !enabled || target.needs_reset())?;
    target.ready();
    target.ring(target.main());
    pause();
    Ok(())
}

/// Resets the queue under attack.
fn reset(target: &mut Target) -> Outcome {
    write16(target.common + QUEUE_SELECT, target.main());
    write16(target.common + QUEUE_RESET, 1);
    holds("the reset is over", soon(|| read16(target.common + QUEUE_RESET) == 0))?;
    equal("enable bit", read16(target.common + QUEUE_ENABLE), 0u16)
}

/// As many requests as the queue has room for, all of them into the same buffers; rung for, not waited for.
pub fn full_queue(target: &mut Target) -> Queue {
    header();
    let main = target.main();
    for head in (0..255).step_by(3) {
        target.prepare(
            main,
            head,
            &[(READABLE, HEADER, false), (WRITABLE, 0x2000, true), (WRITABLE + 0x2000, 1, true)],
        );
    }
    target.queue().show();
    target.ring(main);
    *target.queue()
}

/// Nothing is written to what a queue offered before a reset.
pub fn stays_quiet(target: &mut Target, queue: Queue) -> Outcome {
    target.arena.clear();
    pause();
    let unchanged = |name, address, length| {
        if untouched(address, length) { Ok(()) } else { Err(Fault { what: name, got: address, wanted: 0 }) }
    };
    unchanged("used ring after a reset", queue.used, 16)?;
    unchanged("buffers after a reset", WRITABLE, 64)
}
