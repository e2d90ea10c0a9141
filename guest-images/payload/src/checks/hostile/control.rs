//! Commands to a network card that it does not know, or that are not whole (virtio 1.2, 5.1.6.5).

use super::arena::{CANARY_BYTE, READABLE, WRITABLE, put8, put64, untouched};
use super::outcome::{Outcome, equal, holds, perhaps};
use super::queue::{Buffer, Queue};
use super::target::Target;
use super::{Attack, attack};
use crate::memory::read8;

const ANSWER: &str = "virtio 1.2, 5.1.6.5: the first byte is the answer, and one is claimed";
const UNKNOWN: &str = "virtio 1.2, 5.1.6.5: VIRTIO_NET_ERR for what is not known";
const NOT_OFFERED: &str = "virtio 1.2, 5.1.6.5: VIRTIO_NET_ERR for what was not offered";
const PAIRS: &str = "virtio 1.2, 5.1.6.5.5: from 1 to max_virtqueue_pairs";
const ANY_LAYOUT: &str = "virtio 1.2, 2.7.4.1: any framing";
const OPEN: &str = "left open: a reset brings it back";

const OK: u8 = 0;
const ERROR: u8 = 1;

/// Classes.
const RECEIVE: u8 = 0;
const ADDRESS: u8 = 1;
const VLAN: u8 = 2;
const ANNOUNCE: u8 = 3;
const MULTIQUEUE: u8 = 4;
const OFFLOADS: u8 = 5;

/// VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ.
const CONTROL: u64 = 1 << 17;
const MANY_PAIRS: u64 = 1 << 22;

const ACK: u64 = WRITABLE;

pub const ATTACKS: &[Attack] = &[
    attack("classes-that-do-not-exist", UNKNOWN, |target| {
        target.start()?;
        [6, 7, 0x42, 0x80, 0xff].into_iter().try_for_each(|class| answers(target, &[class, 0, 1, 0], ERROR))
    }),
    attack("receive-commands-that-do-not-exist", UNKNOWN, |target| {
        target.start()?;
        [6, 7, 0x77, 0xff].into_iter().try_for_each(|command| answers(target, &[RECEIVE, command, 1], ERROR))
    }),
    attack("receive-commands-that-were-not-offered", NOT_OFFERED, |target| {
        target.start()?;
        (2..6).try_for_each(|command| answers(target, &[RECEIVE, command, 1], ERROR))
    }),
    attack("receive-commands", "virtio 1.2, 5.1.6.5.1", |target| {
        target.start()?;
        for (command, value) in [(0, 1), (0, 0), (1, 1), (1, 0)] {
            answers(target, &[RECEIVE, command, value], OK)?;
        }
        Ok(())
    }),
    attack("address-commands-that-do-not-exist", UNKNOWN, |target| {
        target.start()?;
        [2, 3, 0xff].into_iter().try_for_each(|command| answers(target, &[ADDRESS, command, 0, 0, 0, 0], ERROR))
    }),
    attack("address-that-was-not-offered", NOT_OFFERED, |target| {
        target.start()?;
        answers(target, &[ADDRESS, 1, 2, 0, 0, 0, 0, 1], ERROR)
    }),
    attack("classes-that-were-not-offered", NOT_OFFERED, |target| {
        target.start()?;
        for (class, command) in [(VLAN, 0), (VLAN, 1), (ANNOUNCE, 0), (OFFLOADS, 0), (MULTIQUEUE, 1), (MULTIQUEUE, 2)] {
            answers(target, &[class, command, 0, 0, 0, 0, 0, 0, 0, 0], ERROR)?;
        }
        Ok(())
    }),
    attack("address-table-of-any-length", OPEN, |target| {
        target.start()?;
        for count in [0, 1, 0x7fff_ffff, u32::MAX] {
            let [a, b, c, d] = count.to_le_bytes();
            write(&[ADDRESS, 0, a, b, c, d, 2, 0, 0, 0]);
            answered(target, &[(READABLE, 10, false), (ACK, 1, true)])?;
        }
        Ok(())
    }),
    attack("no-command", UNKNOWN, |target| {
        target.start()?;
        answers(target, &[], ERROR)
    }),
    attack("half-a-command", UNKNOWN, |target| {
        target.start()?;
        [RECEIVE, MULTIQUEUE, 0xff].into_iter().try_for_each(|class| answers(target, &[class], ERROR))
    }),
    attack("receive-command-without-its-value", OPEN, |target| {
        target.start()?;
        write(&[RECEIVE, 0]);
        answered(target, &[(READABLE, 2, false), (ACK, 1, true)])
    }),
    attack("longer-than-any-command", OPEN, |target| {
        target.start()?;
        write(&[RECEIVE, 0, 1]);
        answered(target, &[(READABLE, 0x1000, false), (ACK, 1, true)])?;
        answered(target, &[(0, 0x0100_0000, false), (ACK, 1, true)])
    }),
    attack("no-room-for-an-answer", OPEN, |target| {
        target.start()?;
        write(&[RECEIVE, 0, 0]);
        let queue = control(target);
        target.request(queue, 0, &[(READABLE, 3, false)]);
        perhaps(|| target.queues[usize::from(queue)].unseen() > 0 || target.needs_reset());
        Ok(())
    }),
    attack("much-room-for-an-answer", ANSWER, |target| {
        target.start()?;
        write(&[RECEIVE, 0, 0]);
        answered(target, &[(READABLE, 3, false), (ACK, 64, true)])?;
        equal("answer", read8(ACK), OK)?;
        holds("what follows the answer", untouched(ACK + 1, 63))
    }),
    attack("answer-in-pieces", ANSWER, |target| {
        target.start()?;
        write(&[0xff, 0, 0]);
        answered(target, &[(READABLE, 3, false), (ACK, 1, true), (ACK + 8, 4, true), (ACK + 16, 1, true)])?;
        equal("answer", read8(ACK), ERROR)?;
        holds("what follows the answer", untouched(ACK + 8, 16))
    }),
    attack("answer-where-no-memory-is", OPEN, |target| {
        for address in [target.end_of_ram, u64::MAX, target.registers] {
            target.start()?;
            write(&[RECEIVE, 0, 0]);
            let queue = control(target);
            target.request(queue, 0, &[(READABLE, 3, false), (address, 1, true)]);
            perhaps(|| target.queues[usize::from(queue)].unseen() > 0 || target.needs_reset());
        }
        Ok(())
    }),
    attack("answer-before-the-command", "virtio 1.2, 2.7.4.2", |target| {
        target.start()?;
        write(&[RECEIVE, 0, 0]);
        let queue = control(target);
        target.request(queue, 0, &[(ACK, 1, true), (READABLE, 3, false)]);
        target.is_refused()
    }),
    attack("command-where-no-memory-is", OPEN, |target| {
        target.start()?;
        let (queue, end) = (control(target), target.end_of_ram);
        target.request(queue, 0, &[(end, 3, false), (ACK, 1, true)]);
        perhaps(|| target.queues[usize::from(queue)].unseen() > 0 || target.needs_reset());
        Ok(())
    }),
    attack("command-by-bytes", ANY_LAYOUT, |target| {
        target.start()?;
        write(&[MULTIQUEUE, 0, 1, 0]);
        let byte = |at| (READABLE + at, 1, false);
        answered(target, &[byte(0), byte(1), byte(2), byte(3), (ACK, 1, true)])?;
        equal("answer", read8(ACK), OK)
    }),
    attack("no-pairs", PAIRS, |target| {
        target.start()?;
        pairs(target, 0, ERROR)
    }),
    attack("too-many-pairs", PAIRS, |target| {
        target.start()?;
        [3, 4, 0x100, 0x8000, 0xffff].into_iter().try_for_each(|count| pairs(target, count, ERROR))
    }),
    attack("half-a-number-of-pairs", PAIRS, |target| {
        target.start()?;
        answers(target, &[MULTIQUEUE, 0], ERROR)?;
        answers(target, &[MULTIQUEUE, 0, 1], ERROR)
    }),
    attack("pairs-come-and-go", PAIRS, |target| {
        target.start()?;
        (0..20).try_for_each(|round| pairs(target, 1 + round % 2, OK))
    }),
    attack("pairs-that-were-not-negotiated", PAIRS, |target| {
        let features = target.features() & !MANY_PAIRS;
        target.start_with(features)?;
        write(&[MULTIQUEUE, 0, 2, 0]);
        target.request(2, 0, &[(READABLE, 4, false), (ACK, 1, true)]);
        equal("used length", target.used(2)?.length, 1u32)?;
        equal("answer", read8(ACK), ERROR)
    }),
    attack("pairs-with-buffers-in-all-queues", OPEN, |target| {
        target.start()?;
        for queue in [0, 2] {
            target.request(queue, 0, &[(WRITABLE + 0x1000 + u64::from(queue) * 0x400, 0x800, true)]);
        }
        (0..10).try_for_each(|round| pairs(target, 1 + round % 2, OK))
    }),
    attack("commands-without-end", UNKNOWN, |target| {
        target.start()?;
        let queue = control(target);
        write(&[0xff, 0, 0]);
        for _ in 0..20 {
            for first in (0..16).step_by(2) {
                target.prepare(queue, first, &[(READABLE, 3, false), (ACK + u64::from(first), 1, true)]);
            }
            target.queues[usize::from(queue)].show();
            target.ring(queue);
            for first in (0..16).step_by(2) {
                equal("used length", target.used(queue)?.length, 1u32)?;
                equal("answer", read8(ACK + first), ERROR)?;
            }
        }
        Ok(())
    }),
    attack("queue-that-was-not-negotiated", OPEN, |target| {
        let features = target.features() & !(CONTROL | MANY_PAIRS | 1 << 18);
        target.start_with(features)?;
        write(&[RECEIVE, 0, 0]);
        for queue in 2..target.count() {
            target.request(queue, 0, &[(READABLE, 3, false), (ACK, 1, true)]);
        }
        perhaps(|| target.needs_reset());
        Ok(())
    }),
    attack("queue-of-one-entry", OPEN, |target| {
        let features = target.features();
        let mut queue = Queue::small(control(target));
        queue.size = 1;
        target.start_one(features, queue)?;
        write(&[RECEIVE, 0, 0]);
        target.request(queue.index, 0, &[(READABLE, 3, false)]);
        perhaps(|| target.needs_reset());
        Ok(())
    }),
];

/// The control queue's number where several pairs are negotiated.
fn control(target: &Target) -> u16 {
    target.count() - 1
}

/// Writes a command to memory.
fn write(bytes: &[u8]) {
    put64(READABLE, 0);
    (READABLE..).zip(bytes).for_each(|(at, &byte)| put8(at, byte));
}

/// A command comes back with one byte written.
fn answered(target: &mut Target, buffers: &[Buffer]) -> Outcome {
    let queue = control(target);
    put8(ACK, CANARY_BYTE);
    target.request(queue, 0, buffers);
    let used = target.used(queue)?;
    equal("used chain", used.head, 0u32)?;
    equal("used length", used.length, 1u32)?;
    holds("an answer", read8(ACK) <= ERROR)?;
    holds("the device goes on", !target.needs_reset())
}

/// A command gets this answer.
fn answers(target: &mut Target, command: &[u8], wanted: u8) -> Outcome {
    write(command);
    let length = u32::try_from(command.len()).unwrap_or(0);
    answered(target, &[(READABLE, length, false), (ACK, 1, true)])?;
    equal("answer", read8(ACK), wanted)
}

fn pairs(target: &mut Target, count: u16, wanted: u8) -> Outcome {
    let [low, high] = count.to_le_bytes();
    answers(target, &[MULTIQUEUE, 0, low, high], wanted)
}
