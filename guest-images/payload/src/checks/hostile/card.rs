//! Packets that are none, and buffers that none fits in (virtio 1.2, 5.1.6.2 to 5.1.6.4).

use super::arena::{READABLE, WRITABLE, put8, put16, put64, untouched};
use super::outcome::{Outcome, equal, holds, perhaps, soon};
use super::queue::{Buffer, Queue};
use super::queues::stays_quiet;
use super::target::Target;
use super::works::{HEADER, PROBE, is_answer, write_probe};
use super::{Attack, attack};
use crate::memory::{read16, write16};
use crate::virtio::{QUEUE_RESET, QUEUE_SELECT};

const NOTHING_WRITTEN: &str = "virtio 1.2, 2.7.8.2: nothing was written";
const ANY_LAYOUT: &str = "virtio 1.2, 2.7.4.1: any framing";
const ONE_BUFFER: &str = "virtio 1.2, 5.1.6.4.1: num_buffers, and what is claimed";
const RESET: &str = "virtio 1.2, 2.4.1";
const OPEN: &str = "left open: a reset brings it back";

/// Features: checksums, segmentation by the host, buffers that are merged.
const CHECKSUM: u64 = 1;
const SEGMENTATION: u64 = 1 << 11 | 1 << 12 | 1 << 13;
const MERGEABLE: u64 = 1 << 15;

const RECEIVE: u16 = 0;
const SEND: u16 = 1;
/// Fields of a packet's header.
const FLAGS: u64 = 0;
const GSO_TYPE: u64 = 1;
const HEADER_LENGTH: u64 = 2;
const GSO_SIZE: u64 = 4;
const CHECKSUM_START: u64 = 6;
const CHECKSUM_OFFSET: u64 = 8;
const BUFFERS: u64 = 10;

pub const ATTACKS: &[Attack] = &[
    attack("sent-without-a-header", NOTHING_WRITTEN, |target| {
        begin(target)?;
        [1, 5, 11].into_iter().try_for_each(|length| sent(target, &[(READABLE, length, false)]))
    }),
    attack("sent-without-a-packet", NOTHING_WRITTEN, |target| {
        begin(target)?;
        [12, 13, 25].into_iter().try_for_each(|length| sent(target, &[(READABLE, length, false)]))
    }),
    attack("sent-with-nothing", NOTHING_WRITTEN, |target| {
        begin(target)?;
        sent(target, &[(READABLE, 0, false)])
    }),
    attack("sent-too-much", NOTHING_WRITTEN, |target| {
        begin(target)?;
        let page = (READABLE, 0x8000, false);
        sent(target, &[page, page, page])?;
        sent(target, &[(0, 0x0100_0000, false)])
    }),
    attack("sent-as-much-as-fits", NOTHING_WRITTEN, |target| {
        begin(target)?;
        sent(target, &[(READABLE, HEADER, false), (READABLE, 0x8000, false), (READABLE, 0x7fff, false)])?;
        sent(target, &[(READABLE, HEADER, false), (READABLE, 0x8000, false), (READABLE, 0x8000, false)])
    }),
    attack("sent-by-bytes", ANY_LAYOUT, |target| {
        target.start()?;
        let queue = Queue::large(SEND);
        replace(target, queue);
        receivers(target, 1);
        write_probe(target, READABLE);
        let queue = &mut target.queues[usize::from(SEND)];
        for byte in 0..u16::try_from(PROBE).unwrap_or(0) {
            let last = u32::from(byte) + 1 == PROBE;
            queue.describe(byte, READABLE + u64::from(byte), 1, u16::from(!last), byte + 1);
        }
        target.submit(0);
        equal("used length", target.used(SEND)?.length, 0u32)?;
        received(target)
    }),
    attack("sent-with-its-header-in-pieces", ANY_LAYOUT, |target| {
        target.start()?;
        receivers(target, 1);
        write_probe(target, READABLE);
        let frame = (READABLE + u64::from(HEADER) + 3, PROBE - HEADER - 3, false);
        sent(target, &[(READABLE, 1, false), (READABLE + 1, 6, false), (READABLE + 7, 8, false), frame])?;
        received(target)
    }),
    attack("sent-in-one-piece", ANY_LAYOUT, |target| {
        target.start()?;
        receivers(target, 1);
        write_probe(target, READABLE);
        sent(target, &[(READABLE, PROBE, false)])?;
        received(target)
    }),
    attack("sent-with-buffers-to-be-written", NOTHING_WRITTEN, |target| {
        begin(target)?;
        sent(target, &[(READABLE, PROBE, false), (WRITABLE, 64, true)])?;
        holds("what was not written", untouched(WRITABLE, 64))?;
        sent(target, &[(WRITABLE, 64, true)])
    }),
    attack("sent-from-where-no-memory-is", OPEN, |target| {
        for address in [target.end_of_ram, target.end_of_ram - 20, target.registers, u64::MAX - 63] {
            begin(target)?;
            target.request(SEND, 0, &[(READABLE, HEADER, false), (address, 64, false)]);
            target.is_answered()?;
        }
        Ok(())
    }),
    attack("segmentation-of-any-kind", NOTHING_WRITTEN, |target| {
        offloads(target)?;
        for kind in [1, 2, 3, 4, 5, 6, 0x7f, 0x80, 0x81, 0xff] {
            for size in [0, 1, 0xffff] {
                put8(READABLE + GSO_TYPE, kind);
                put16(READABLE + GSO_SIZE, size);
                sent(target, &[(READABLE, PROBE, false)])?;
            }
        }
        Ok(())
    }),
    attack("segmentation-of-much-into-little", NOTHING_WRITTEN, |target| {
        offloads(target)?;
        put8(READABLE + FLAGS, 1);
        for (kind, size) in [(1, 1), (4, 1), (5, 1), (0x81, 2)] {
            put8(READABLE + GSO_TYPE, kind);
            put16(READABLE + GSO_SIZE, size);
            put16(READABLE + HEADER_LENGTH, 54);
            sent(target, &[(READABLE, HEADER, false), (READABLE, 0x7000, false)])?;
        }
        Ok(())
    }),
    attack("header-longer-than-the-packet", NOTHING_WRITTEN, |target| {
        offloads(target)?;
        for length in [1, 43, 0x7fff, 0xffff] {
            put16(READABLE + HEADER_LENGTH, length);
            put8(READABLE + GSO_TYPE, 1);
            sent(target, &[(READABLE, PROBE, false)])?;
        }
        Ok(())
    }),
    attack("checksum-beyond-the-packet", NOTHING_WRITTEN, |target| {
        offloads(target)?;
        put8(READABLE + FLAGS, 1);
        for (start, offset) in
            [(41, 0), (42, 0), (0, 41), (0xffff, 0), (0, 0xffff), (0xffff, 0xffff), (0x8000, 0x8000), (14, 0x7ff0)]
        {
            put16(READABLE + CHECKSUM_START, start);
            put16(READABLE + CHECKSUM_OFFSET, offset);
            sent(target, &[(READABLE, PROBE, false)])?;
        }
        Ok(())
    }),
    attack("offloads-that-were-not-negotiated", NOTHING_WRITTEN, |target| {
        begin(target)?;
        put8(READABLE + FLAGS, 1);
        put8(READABLE + GSO_TYPE, 1);
        put16(READABLE + GSO_SIZE, 100);
        put16(READABLE + CHECKSUM_START, 14);
        sent(target, &[(READABLE, PROBE, false)])
    }),
    attack("flags-that-do-not-exist", NOTHING_WRITTEN, |target| {
        begin(target)?;
        for flags in [2, 4, 8, 0x80, 0xfe, 0xff] {
            put8(READABLE + FLAGS, flags);
            sent(target, &[(READABLE, PROBE, false)])?;
        }
        Ok(())
    }),
    attack("buffers-counted-when-sending", "virtio 1.2, 5.1.6.2.1: num_buffers is ignored", |target| {
        target.start()?;
        receivers(target, 1);
        write_probe(target, READABLE);
        put16(READABLE + BUFFERS, 0xffff);
        sent(target, &[(READABLE, PROBE, false)])?;
        received(target)
    }),
    attack("headers-at-random", NOTHING_WRITTEN, |target| {
        offloads(target)?;
        for _ in 0..40 {
            let (low, high) = (target.random.next(), target.random.next());
            put64(READABLE, low);
            put16(READABLE + CHECKSUM_OFFSET, u16::try_from(high & 0x3f).unwrap_or(0));
            let length = HEADER + u32::try_from(target.random.below(1600)).unwrap_or(0);
            sent(target, &[(READABLE, length, false)])?;
        }
        Ok(())
    }),
    attack("sent-by-a-pair-that-is-not-in-use", OPEN, |target| {
        begin(target)?;
        target.request(3, 0, &[(READABLE, PROBE, false)]);
        perhaps(|| target.queues[3].unseen() > 0 || target.needs_reset());
        Ok(())
    }),
    attack("sent-without-end-until-a-reset", RESET, |target| {
        target.start()?;
        let queue = Queue::large(SEND);
        replace(target, queue);
        write_probe(target, READABLE);
        for head in 0..255 {
            target.prepare(SEND, head, &[(READABLE, PROBE, false)]);
        }
        target.queue().show();
        target.ring(SEND);
        target.reset()?;
        stays_quiet(target, queue)
    }),
    attack("received-with-its-header-in-pieces", ANY_LAYOUT, |target| {
        target.start()?;
        let whole = (WRITABLE, 2048);
        give(target, 0, &[(whole.0, 4, true), (whole.0 + 4, 7, true), (whole.0 + 11, whole.1 - 11, true)]);
        probe(target)?;
        received(target)
    }),
    attack("received-by-bytes", ANY_LAYOUT, |target| {
        target.start()?;
        let queue = Queue::large(RECEIVE);
        replace(target, queue);
        // One that takes an answer, in front of it nothing: what the host sends of its own accord is longer, and dropped.
        let queue = &mut target.queues[usize::from(RECEIVE)];
        for byte in 0..60u16 {
            queue.describe(byte, WRITABLE + u64::from(byte), 1, 2 | u16::from(byte != 59), byte + 1);
        }
        queue.enter(0);
        queue.show();
        target.arena.offer(WRITABLE, 60);
        target.ring(RECEIVE);
        probe(target)?;
        received(target)
    }),
    attack("received-where-no-memory-is", OPEN, |target| {
        for address in [target.end_of_ram, target.end_of_ram - 100, target.registers, 0xfee0_0000] {
            target.start()?;
            give(target, 0, &[(address, 2048, true)]);
            received_or_not(target);
        }
        Ok(())
    }),
    attack("received-in-part-where-no-memory-is", OPEN, |target| {
        target.start()?;
        let end = target.end_of_ram;
        give(target, 0, &[(WRITABLE, 20, true), (end, 2048, true)]);
        received_or_not(target);
        Ok(())
    }),
    attack("received-in-too-little", OPEN, |target| {
        for length in [12, 20, 53] {
            target.start()?;
            for index in 0..4 {
                give(target, index, &[(WRITABLE + u64::from(index) * 64, length, true)]);
            }
            received_or_not(target);
        }
        Ok(())
    }),
    attack("received-in-less-than-a-header", OPEN, |target| {
        for length in [1, 11] {
            target.start()?;
            give(target, 0, &[(WRITABLE, length, true)]);
            received_or_not(target);
        }
        Ok(())
    }),
    attack("received-in-nothing", OPEN, |target| {
        target.start()?;
        give(target, 0, &[(WRITABLE, 0, true)]);
        received_or_not(target);
        Ok(())
    }),
    attack("received-in-buffers-to-be-read", OPEN, |target| {
        target.start()?;
        give(target, 0, &[(WRITABLE, 2048, false)]);
        received_or_not(target);
        holds("a buffer that was not to be written", untouched(WRITABLE, 64))
    }),
    attack("received-after-what-is-to-be-read", OPEN, |target| {
        target.start()?;
        give(target, 0, &[(READABLE, 64, false), (WRITABLE, 2048, true)]);
        received_or_not(target);
        Ok(())
    }),
    attack("merged-from-small-buffers", ONE_BUFFER, |target| merged(target, 16)),
    attack("merged-from-headers", ONE_BUFFER, |target| merged(target, 12)),
    attack("merged-from-too-few", OPEN, |target| {
        let features = target.features() | MERGEABLE;
        target.start_with(features)?;
        give(target, 0, &[(WRITABLE, 16, true)]);
        give(target, 1, &[(WRITABLE + 16, 16, true)]);
        received_or_not(target);
        Ok(())
    }),
    attack("merged-from-less-than-headers", OPEN, |target| {
        let features = target.features() | MERGEABLE;
        target.start_with(features)?;
        for index in 0..16 {
            give(target, index, &[(WRITABLE + u64::from(index) * 8, 8, true)]);
        }
        received_or_not(target);
        Ok(())
    }),
    attack("reset-with-an-answer-under-way", RESET, |target| {
        for _ in 0..5 {
            target.start()?;
            receivers(target, 2);
            probe(target)?;
            let queue = target.queues[usize::from(RECEIVE)];
            target.reset()?;
            stays_quiet(target, queue)?;
        }
        Ok(())
    }),
    attack("one-buffer-again-and-again", OPEN, |target| {
        target.start()?;
        give(target, 0, &[(WRITABLE, 2048, true)]);
        for _ in 0..8 {
            target.queues[0].enter(0);
        }
        target.queues[0].show();
        target.ring(RECEIVE);
        received_or_not(target);
        Ok(())
    }),
];

/// A card that works, with a packet in memory.
fn begin(target: &mut Target) -> Outcome {
    target.start()?;
    write_probe(target, READABLE);
    Ok(())
}

/// The same with everything that a host can do for a packet that is sent.
fn offloads(target: &mut Target) -> Outcome {
    let features = target.features() | target.offered() & (CHECKSUM | SEGMENTATION);
    target.start_with(features)?;
    write_probe(target, READABLE);
    Ok(())
}

/// Another queue in place of the one that is enabled.
fn replace(target: &mut Target, queue: Queue) {
    write16(target.common + QUEUE_SELECT, queue.index);
    write16(target.common + QUEUE_RESET, 1);
    soon(|| read16(target.common + QUEUE_RESET) == 0);
    target.configure(queue);
    target.enable();
}

/// A packet is taken, sent or not, and nothing is written.
fn sent(target: &mut Target, buffers: &[Buffer]) -> Outcome {
    target.request(SEND, 0, buffers);
    let used = target.used(SEND)?;
    equal("used chain", used.head, 0u32)?;
    equal("used length", used.length, 0u32)?;
    holds("the device goes on", !target.needs_reset())
}

/// Asks the host for an answer.
fn probe(target: &mut Target) -> Outcome {
    write_probe(target, READABLE);
    sent(target, &[(READABLE, PROBE, false)])
}

/// Makes a chain to receive into.
fn give(target: &mut Target, first: u16, buffers: &[Buffer]) {
    // Chains of several buffers begin where there is room for them.
    target.request(RECEIVE, first, buffers);
}

/// Buffers in which any packet has room.
fn receivers(target: &mut Target, count: u16) {
    (0..count).for_each(|index| give(target, index, &[(WRITABLE + u64::from(index) * 2048, 2048, true)]));
}

/// The answer is where the first chain begins. What the host sends of its own accord is looked over.
fn received(target: &mut Target) -> Outcome {
    for _ in 0..20 {
        let used = target.used(RECEIVE)?;
        equal("used chain", used.head, 0u32)?;
        if is_answer(WRITABLE) {
            equal("buffers of a packet", read16(WRITABLE + BUFFERS), 1u16)?;
            return equal("used length", used.length, PROBE);
        }
        let queue = &mut target.queues[usize::from(RECEIVE)];
        queue.enter(0);
        queue.show();
        target.ring(RECEIVE);
        probe(target)?;
    }
    holds("an answer from the host", false)
}

/// Asks the host for an answer; whatever a card does with buffers that are of no use.
fn received_or_not(target: &mut Target) {
    write_probe(target, READABLE);
    target.request(SEND, 0, &[(READABLE, PROBE, false)]);
    soon(|| target.queues[usize::from(SEND)].unseen() > 0 || target.needs_reset());
    perhaps(|| target.queues[usize::from(RECEIVE)].unseen() > 0 || target.needs_reset());
}

/// An answer takes several buffers, and the first of them says how many.
fn merged(target: &mut Target, length: u32) -> Outcome {
    let features = target.features() | MERGEABLE;
    target.start_with(features)?;
    let queue = Queue::large(RECEIVE);
    replace(target, queue);
    for index in 0..200u16 {
        target.prepare(RECEIVE, index, &[(WRITABLE + u64::from(index) * u64::from(length), length, true)]);
    }
    target.queues[usize::from(RECEIVE)].show();
    target.ring(RECEIVE);
    probe(target)?;
    for _ in 0..10 {
        let first = target.used(RECEIVE)?;
        let packet = WRITABLE + u64::from(first.head) * u64::from(length);
        let buffers = read16(packet + BUFFERS);
        let mut bytes = first.length;
        for more in 1..buffers {
            equal("a full buffer before the last", bytes, u32::from(more) * length)?;
            bytes += target.used(RECEIVE)?.length;
        }
        if is_answer(packet) {
            equal("buffers of a packet", u32::from(buffers), PROBE.div_ceil(length))?;
            return equal("used length", bytes, PROBE);
        }
    }
    holds("an answer from the host", false)
}
