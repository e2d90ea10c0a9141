//! A driver's use of a device that works: the request that has to succeed after each attack.

use super::arena::{READABLE, WRITABLE, put8, put32, put64, untouched};
use super::outcome::{Outcome, equal, holds, soon};
use super::target::{Kind, QUEUE_INTERRUPT, Target};
use crate::interrupts::fired;
use crate::memory::{read8, read16, read32};

/// Sector 0 is words of this, each plus its number; the test wrote it there.
const PATTERN: u32 = 0x5eed_0000;
/// Bytes of a sector.
pub const SECTOR: u32 = 512;
/// Bytes in front of a packet (virtio 1.2, 5.1.6, `struct virtio_net_hdr`).
pub const HEADER: u32 = 12;
/// Bytes of a packet that asks for an address, header included.
pub const PROBE: u32 = HEADER + 42;
/// The address that the test gave the host (RFC 5737, TEST-NET-2).
const HOST: [u8; 4] = [198, 51, 100, 1];
/// Receive buffers that are offered, and where.
const RECEIVERS: u16 = 4;
const RECEIVER: u32 = 2048;
/// Packets that the host may send of its own accord meanwhile.
const MOST_STRANGERS: u32 = 200;

/// Resets the device, and has it do what it is for.
pub fn works(target: &mut Target) -> Outcome {
    target.start()?;
    holds("no reset is needed", !target.needs_reset())?;
    match target.kind {
        Kind::Disk | Kind::ReadOnlyDisk => reads(target),
        Kind::Card => {
            commands(target)?;
            sends_and_receives(target)
        }
    }
}

/// A disk reads its first sector.
fn reads(target: &mut Target) -> Outcome {
    let status = WRITABLE + u64::from(SECTOR);
    put64(READABLE, 0);
    put64(READABLE + 8, 0);
    let before = fired(QUEUE_INTERRUPT);
    target.request(0, 0, &[(READABLE, 16, false), (WRITABLE, SECTOR, true), (status, 1, true)]);
    let used = target.used(0)?;
    equal("used chain", used.head, 0u32)?;
    equal("used length", used.length, SECTOR + 1)?;
    equal("status of a read", read8(status), 0u8)?;
    for word in [0, 1, 127] {
        equal("what was read", read32(WRITABLE + u64::from(word) * 4), PATTERN + word)?;
    }
    holds("an interrupt", soon(|| fired(QUEUE_INTERRUPT) != before))
}

/// A card obeys a command that it knows: promiscuous mode off (5.1.6.5.1).
fn commands(target: &mut Target) -> Outcome {
    let ack = WRITABLE;
    put32(READABLE, 0);
    let queue = target.count() - 1;
    target.request(queue, 0, &[(READABLE, 2, false), (READABLE + 2, 1, false), (ack, 1, true)]);
    let used = target.used(queue)?;
    equal("used length of a command", used.length, 1u32)?;
    equal("answer to a command", read8(ack), 0u8)
}

/// A card asks for the host's address, and gets the answer.
fn sends_and_receives(target: &mut Target) -> Outcome {
    let buffer = |index: u16| WRITABLE + 0x100 + u64::from(index) * u64::from(RECEIVER);
    for index in 0..RECEIVERS {
        target.request(0, index, &[(buffer(index), RECEIVER, true)]);
    }
    write_probe(target, READABLE);
    target.request(1, 0, &[(READABLE, HEADER, false), (READABLE + u64::from(HEADER), PROBE - HEADER, false)]);
    let used = target.used(1)?;
    equal("used length of a packet that was sent", used.length, 0u32)?;
    for _ in 0..MOST_STRANGERS {
        let used = target.used(0)?;
        let index = u16::try_from(used.head).unwrap_or(u16::MAX);
        holds("a receive buffer", index < RECEIVERS)?;
        let packet = buffer(index);
        holds("length of a packet", (HEADER + 14..=RECEIVER).contains(&used.length))?;
        if is_answer(packet) {
            return equal("buffers of a packet", read16(packet + 10), 1u16);
        }
        holds("beyond a packet", used.length > RECEIVER - 8 || untouched(packet + u64::from(RECEIVER) - 8, 8))?;
        target.request(0, index, &[(packet, RECEIVER, true)]);
    }
    holds("an answer from the host", false)
}

/// Writes a header and a probe for the host's address (RFC 5227, 2.1.1) to `at`.
pub fn write_probe(target: &Target, at: u64) {
    let own: [u8; 6] = core::array::from_fn(|byte| read8(target.config + byte as u64));
    put64(at, 0);
    put32(at + 8, 0);
    let mut frame = at + u64::from(HEADER);
    let mut append = |bytes: &[u8]| {
        for &byte in bytes {
            put8(frame, byte);
            frame += 1;
        }
    };
    append(&[0xff; 6]);
    append(&own);
    append(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    append(&own);
    append(&[0; 10]);
    append(&HOST);
}

/// Whether the packet at this address is the host's answer to [`write_probe`].
pub fn is_answer(packet: u64) -> bool {
    let frame = packet + u64::from(HEADER);
    let reply = [(12, 8), (13, 6), (20, 0), (21, 2), (28, HOST[0]), (29, HOST[1]), (30, HOST[2]), (31, HOST[3])];
    reply.into_iter().all(|(at, byte)| read8(frame + at) == byte)
}
