//! Available and used rings that make no sense (virtio 1.2, 2.7.6 to 2.7.8 and 2.7.13), or that are where they should not be.

use super::arena::{WRITABLE, put16, put32, put64};
use super::outcome::{Outcome, equal, holds, pause, soon};
use super::queue::{Queue, SMALL};
use super::request::{begin, buffers, header};
use super::target::{EVENT_INDEX, QUEUE_INTERRUPT, Target};
use super::{Attack, attack};
use crate::interrupts::fired;

const INDEX: &str = "virtio 1.2, 2.7.13.3";
const HEADS: &str = "virtio 1.2, 2.7.6";
const USED_IS_THE_DEVICES: &str = "virtio 1.2, 2.7.8";
const SUPPRESSED: &str = "virtio 1.2, 2.7.7.1";
const REACHABLE: &str = "virtio 1.2, 2.1.2: DEVICE_NEEDS_RESET";
const OPEN: &str = "left open: answered one way or the other";

pub const ATTACKS: &[Attack] = &[
    attack("index-ahead-by-more-than-the-size", INDEX, |target| index(target, SMALL + 1)),
    attack("index-goes-back", INDEX, |target| index(target, 0xffff)),
    attack("index-far-away", INDEX, |target| index(target, 0x8000)),
    attack("index-goes-back-after-a-request", INDEX, |target| {
        simple(target)?;
        let main = target.main();
        target.used(main)?;
        target.queue().offered = 0;
        target.queue().show();
        target.ring(main);
        target.is_refused()
    }),
    attack("head-out-of-range", HEADS, |target| {
        begin(target)?;
        target.submit(SMALL);
        target.is_refused()
    }),
    attack("head-far-out-of-range", HEADS, |target| {
        begin(target)?;
        target.submit(0xffff);
        target.is_refused()
    }),
    attack("one-head-in-every-entry", OPEN, |target| {
        begin(target)?;
        let main = target.main();
        target.prepare(main, 0, &buffers());
        for _ in 1..SMALL {
            target.queue().enter(0);
        }
        target.queue().show();
        target.ring(main);
        target.is_answered()
    }),
    attack("index-runs-without-pause", OPEN, |target| {
        begin(target)?;
        let main = target.main();
        target.prepare(main, 0, &buffers());
        let available = target.queue().available;
        for step in 0..2000u16 {
            put16(available + 2, step);
            if step % 64 == 0 {
                target.ring(main);
            }
        }
        target.is_answered()
    }),
    attack("full-ring-of-requests", HEADS, |target| {
        begin(target)?;
        let main = target.main();
        for head in (0..SMALL - 3).step_by(3) {
            target.prepare(main, head, &buffers());
        }
        target.queue().show();
        target.ring(main);
        for _ in (0..SMALL - 3).step_by(3) {
            target.used(main)?;
        }
        Ok(())
    }),
    attack("used-index-scribbled-on", USED_IS_THE_DEVICES, |target| {
        simple(target)?;
        let main = target.main();
        target.used(main)?;
        let used = target.queue().used;
        put32(used, 0x7777_0000);
        for entry in 0..u64::from(SMALL) {
            put64(used + 4 + entry * 8, u64::MAX);
        }
        target.request(main, 0, &buffers());
        holds("the device counts for itself", soon(|| target.queue().unseen() == 1))?;
        equal("used chain", target.used(main)?.head, 0u32)
    }),
    attack("used-ring-over-the-available-ring", OPEN, |target| {
        let mut queue = Queue::small(target.main());
        queue.used = queue.available & !3;
        moved(target, queue)?;
        target.is_left_open()
    }),
    attack("used-ring-over-the-descriptors", OPEN, |target| {
        let mut queue = Queue::small(target.main());
        queue.used = queue.descriptors;
        moved(target, queue)?;
        target.is_left_open()
    }),
    attack("used-ring-over-its-own-buffers", OPEN, |target| {
        let mut queue = Queue::small(target.main());
        queue.used = WRITABLE;
        moved(target, queue)?;
        target.is_left_open()
    }),
    attack("everything-at-one-place", OPEN, |target| {
        let mut queue = Queue::small(target.main());
        (queue.available, queue.used) = (queue.descriptors, queue.descriptors);
        moved(target, queue)?;
        target.is_left_open()
    }),
    attack("used-ring-over-the-msix-table", REACHABLE, |target| {
        let [table, _] = target.msix.places();
        unreachable(target, |queue| queue.used = table)
    }),
    attack("used-ring-over-its-own-registers", REACHABLE, |target| {
        let registers = target.registers;
        unreachable(target, |queue| queue.used = registers)
    }),
    attack("used-ring-over-configuration-space", REACHABLE, |target| {
        let place = target.function.address(0);
        unreachable(target, |queue| queue.used = place)
    }),
    attack("descriptors-beyond-ram", REACHABLE, |target| {
        let end = target.end_of_ram;
        unreachable(target, |queue| queue.descriptors = end)
    }),
    attack("available-ring-beyond-ram", REACHABLE, |target| {
        let end = target.end_of_ram;
        unreachable(target, |queue| queue.available = end)
    }),
    attack("used-ring-beyond-ram", REACHABLE, |target| {
        let end = target.end_of_ram;
        unreachable(target, |queue| queue.used = end)
    }),
    attack("descriptors-across-the-end-of-ram", REACHABLE, |target| {
        let end = target.end_of_ram;
        unreachable(target, |queue| queue.descriptors = end - 16)
    }),
    attack("used-ring-across-the-end-of-ram", REACHABLE, |target| {
        let end = target.end_of_ram;
        unreachable(target, |queue| queue.used = end - 16)
    }),
    attack("all-rings-above-four-gibibytes", REACHABLE, |target| {
        unreachable(target, |queue| {
            (queue.descriptors, queue.available, queue.used) = (1 << 40, (1 << 40) + 0x1000, (1 << 40) + 0x2000);
        })
    }),
    attack("two-queues-with-one-memory", OPEN, |target| {
        let features = target.features();
        target.negotiate(features)?;
        let main = Queue::small(target.main());
        for index in 0..target.count() {
            target.configure(Queue { index, ..main });
            target.enable();
        }
        target.ready();
        target.request(main.index, 0, &buffers());
        for index in 0..target.count() {
            target.ring(index);
        }
        target.is_answered()
    }),
    attack("no-interrupts-wanted", SUPPRESSED, |target| {
        begin(target)?;
        pause();
        let (main, before) = (target.main(), fired(QUEUE_INTERRUPT));
        put16(target.queue().available, 1);
        target.request(main, 0, &buffers());
        target.used(main)?;
        pause();
        equal("interrupts", fired(QUEUE_INTERRUPT) - before, 0u32)
    }),
    attack("flags-that-do-not-exist", OPEN, |target| {
        begin(target)?;
        let main = target.main();
        put16(target.queue().available, 0xfffe);
        target.request(main, 0, &buffers());
        equal("used chain", target.used(main)?.head, 0u32)
    }),
    attack("used-event-that-makes-no-sense", OPEN, |target| {
        let features = target.features() | EVENT_INDEX;
        target.start_with(features)?;
        header();
        pause();
        let (main, before) = (target.main(), fired(QUEUE_INTERRUPT));
        for event in [0x7fff, 0x8000, 0xffff, 0, 1, 0x4242] {
            put16(target.queue().available + 4 + 2 * u64::from(SMALL), event);
            target.request(main, 0, &buffers());
            target.used(main)?;
        }
        pause();
        holds("an interrupt for each chain at most", fired(QUEUE_INTERRUPT) - before <= 6)
    }),
    attack("rings-that-are-never-rung-for", OPEN, |target| {
        begin(target)?;
        let main = target.main();
        target.prepare(main, 0, &buffers());
        target.queue().show();
        target.is_left_open()
    }),
];

fn simple(target: &mut Target) -> Outcome {
    begin(target)?;
    target.request(target.main(), 0, &buffers());
    Ok(())
}

fn index(target: &mut Target, index: u16) -> Outcome {
    begin(target)?;
    let main = target.main();
    target.prepare(main, 0, &buffers());
    target.queue().offered = index;
    target.queue().show();
    target.ring(main);
    target.is_refused()
}

/// A request in a queue whose parts are at odd places, all of which may be written.
fn moved(target: &mut Target, queue: Queue) -> Outcome {
    let features = target.features();
    target.negotiate(features)?;
    header();
    target.program(queue);
    target.enable();
    target.ready();
    target.request(queue.index, 0, &buffers());
    Ok(())
}

/// A queue of which some part cannot be reached: the driver hears of it, before or after it rings.
fn unreachable(target: &mut Target, change: impl FnOnce(&mut Queue)) -> Outcome {
    let features = target.features();
    target.negotiate(features)?;
    let mut queue = Queue::small(target.main());
    change(&mut queue);
    target.program(queue);
    target.enable();
    target.ready();
    target.ring(queue.index);
    holds("the device needs a reset", soon(|| target.needs_reset()))
}
