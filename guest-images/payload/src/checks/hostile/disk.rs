//! Requests that a disk cannot carry out, or that are laid out as no driver does it (virtio 1.2, 5.2.6), and what the device says it wrote
//! (2.7.8.2).

use super::arena::{READABLE, put32};
use super::disk_request::{
    ANY_LAYOUT, DATA, FAILED, FLUSH, GET_ID, HEADER, IN, OK, OPEN, OUT, SCRATCH, SENT, STATUS, UNKNOWN, UNSUPPORTED,
    WHOLE_SECTORS, WITHIN, ask, begin, capacity, fails, header, reads, request,
};
use super::outcome::{Outcome, equal, holds};
use super::target::{Kind, Target};
use super::works::SECTOR;
use super::{Attack, attack};
use crate::memory::read8;

const IDENTITY: &str = "virtio 1.2, 5.2.6.1 and 2.7.8.2: 20 bytes at most";

/// The serial that the test gave the disk that can be written.
const SERIAL: &[u8] = b"hostile-serial";
/// Free RAM outside of the arena.
const ELSEWHERE: u64 = 0x0280_0000;

/// On every disk.
pub const ATTACKS: &[Attack] = &[
    attack("read-beyond-the-end", WITHIN, |target| {
        begin(target)?;
        for sector in [capacity(target), capacity(target) + 1, 1 << 40] {
            fails(target, IN, sector, &[(DATA, SECTOR, true)])?;
        }
        Ok(())
    }),
    attack("read-across-the-end", WITHIN, |target| {
        begin(target)?;
        let last = capacity(target) - 1;
        fails(target, IN, last, &[(DATA, 2 * SECTOR, true)])
    }),
    attack("read-where-sectors-wrap", WITHIN, |target| {
        begin(target)?;
        for sector in [u64::MAX, 1 << 55, (1 << 55) + 1, u64::MAX - 1] {
            fails(target, IN, sector, &[(DATA, SECTOR, true)])?;
        }
        Ok(())
    }),
    attack("read-of-parts-of-sectors", WHOLE_SECTORS, |target| {
        begin(target)?;
        for length in [1, 511, 513, 1000] {
            fails(target, IN, 0, &[(DATA, length, true)])?;
        }
        Ok(())
    }),
    attack("read-of-nothing", OPEN, |target| {
        begin(target)?;
        ask(target, IN, 0, &[]).map(drop)
    }),
    attack("read-of-more-than-there-is", WITHIN, |target| {
        begin(target)?;
        for length in [0x4000_0000, 0xffff_fe00 - 0x2000] {
            fails(target, IN, 0, &[(ELSEWHERE, length, true)])?;
        }
        Ok(())
    }),
    attack("read-of-the-whole-disk", "virtio 1.2, 2.7.8.2", |target| {
        begin(target)?;
        let whole = u32::try_from(capacity(target) * 512).unwrap_or(0);
        let answer = request(target, IN, 0, &[(ELSEWHERE, whole, true)])?;
        equal("status", answer.status, OK)?;
        equal("used length", answer.length, whole + 1)
    }),
    attack("read-to-where-no-memory-is", WITHIN, |target| {
        begin(target)?;
        let end = target.end_of_ram;
        for (address, length) in
            [(end, SECTOR), (end - 256, SECTOR), (u64::MAX - 511, SECTOR), (target.registers, SECTOR)]
        {
            let answer = request(target, IN, 0, &[(address, length, true)])?;
            equal("status", answer.status, FAILED)?;
            equal("used length", answer.length, 0u32)?;
        }
        Ok(())
    }),
    attack("read-to-memory-in-part", WITHIN, |target| {
        begin(target)?;
        let end = target.end_of_ram;
        fails(target, IN, 0, &[(DATA, SECTOR, true), (end, SECTOR, true)])
    }),
    attack("types-that-do-not-exist", UNKNOWN, |target| {
        begin(target)?;
        for kind in [2, 3, 5, 6, 7, 9, 15, 77, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            let answer = ask(target, kind, 0, &[(DATA, SECTOR, true)])?;
            equal("status", answer.status, UNSUPPORTED)?;
        }
        Ok(())
    }),
    attack("types-that-were-not-offered", UNKNOWN, |target| {
        begin(target)?;
        // Lifetime, secure erase, and those of zoned disks.
        for kind in [10, 14, 16, 18, 20, 22, 24, 26] {
            let answer = ask(target, kind, 0, &[(DATA, SECTOR, true)])?;
            equal("status", answer.status, UNSUPPORTED)?;
        }
        Ok(())
    }),
    attack("header-too-short", OPEN, |target| {
        for length in [1, 8, 15] {
            begin(target)?;
            header(IN, 0);
            target.request(0, 0, &[(READABLE, length, false), (DATA, SECTOR, true), (STATUS, 1, true)]);
            target.is_answered()?;
        }
        Ok(())
    }),
    attack("no-header", OPEN, |target| {
        begin(target)?;
        target.request(0, 0, &[(DATA, SECTOR, true), (STATUS, 1, true)]);
        target.is_answered()
    }),
    attack("header-that-is-to-be-written", OPEN, |target| {
        begin(target)?;
        header(IN, 0);
        target.request(0, 0, &[(READABLE, HEADER, true), (DATA, SECTOR, true), (STATUS, 1, true)]);
        target.is_answered()
    }),
    attack("no-status-byte", OPEN, |target| {
        for kind in [IN, OUT, FLUSH, GET_ID] {
            begin(target)?;
            header(kind, SCRATCH);
            target.request(0, 0, &[(READABLE, HEADER, false), (SENT, SECTOR, false)]);
            target.is_answered()?;
        }
        Ok(())
    }),
    attack("status-that-is-to-be-read", OPEN, |target| {
        begin(target)?;
        header(FLUSH, 0);
        target.request(0, 0, &[(READABLE, HEADER, false), (STATUS, 1, false)]);
        target.is_answered()
    }),
    attack("status-where-no-memory-is", OPEN, |target| {
        for address in [target.end_of_ram, u64::MAX, target.registers] {
            begin(target)?;
            header(IN, 0);
            target.request(0, 0, &[(READABLE, HEADER, false), (DATA, SECTOR, true), (address, 1, true)]);
            target.is_answered()?;
        }
        Ok(())
    }),
    attack("header-in-pieces", ANY_LAYOUT, |target| {
        begin(target)?;
        header(IN, 0);
        let pieces = [(READABLE, 1, false), (READABLE + 1, 7, false), (READABLE + 8, 8, false)];
        reads(target, &[pieces[0], pieces[1], pieces[2], (DATA, SECTOR, true), (STATUS, 1, true)], STATUS)
    }),
    attack("data-in-odd-pieces", ANY_LAYOUT, |target| {
        begin(target)?;
        header(IN, 0);
        let pieces = [(DATA, 1, true), (DATA + 1, 3, true), (DATA + 4, 508, true)];
        reads(target, &[(READABLE, HEADER, false), pieces[0], pieces[1], pieces[2], (STATUS, 1, true)], STATUS)
    }),
    attack("data-and-status-in-one", ANY_LAYOUT, |target| {
        begin(target)?;
        header(IN, 0);
        reads(target, &[(READABLE, HEADER, false), (DATA, SECTOR + 1, true)], DATA + u64::from(SECTOR))
    }),
    attack("status-with-room-to-spare", OPEN, |target| {
        begin(target)?;
        header(IN, 0);
        target.request(0, 0, &[(READABLE, HEADER, false), (DATA, SECTOR, true), (STATUS, 16, true)]);
        target.is_answered()
    }),
    attack("reserved-field-of-the-header", "virtio 1.2, 5.2.6", |target| {
        begin(target)?;
        header(IN, 0);
        put32(READABLE + 4, u32::MAX);
        reads(target, &[(READABLE, HEADER, false), (DATA, SECTOR, true), (STATUS, 1, true)], STATUS)
    }),
    attack("data-over-its-own-header", OPEN, |target| {
        begin(target)?;
        header(IN, 0);
        target.request(0, 0, &[(READABLE, HEADER, false), (READABLE, SECTOR, true), (STATUS, 1, true)]);
        target.is_answered()
    }),
    attack("data-over-its-own-status", OPEN, |target| {
        begin(target)?;
        header(IN, 0);
        target.request(0, 0, &[(READABLE, HEADER, false), (DATA, SECTOR, true), (DATA + 7, 1, true)]);
        target.is_answered()
    }),
    attack("identity-whole", IDENTITY, |target| identity(target, 20)),
    attack("identity-in-few-bytes", IDENTITY, |target| identity(target, 5)),
    attack("identity-in-many-bytes", IDENTITY, |target| identity(target, 512)),
    attack("identity-in-no-bytes", IDENTITY, |target| identity(target, 0)),
    attack("flush-with-data", OPEN, |target| {
        begin(target)?;
        header(FLUSH, 7);
        for buffers in
            [[(READABLE, HEADER, false), (SENT, SECTOR, false)], [(READABLE, HEADER, false), (DATA, SECTOR, true)]]
        {
            target.request(0, 0, &[buffers[0], buffers[1], (STATUS, 1, true)]);
            target.used(0)?;
            holds("a status", read8(STATUS) <= UNSUPPORTED)?;
        }
        Ok(())
    }),
    attack("storm-of-bad-requests", WITHIN, |target| {
        begin(target)?;
        header(IN, u64::MAX);
        for _ in 0..40 {
            for first in [0, 3, 6, 9, 12] {
                target.prepare(0, first, &[(READABLE, HEADER, false), (DATA, SECTOR, true), (STATUS, 1, true)]);
            }
            target.queue().show();
            target.ring(0);
            for _ in 0..5 {
                equal("used length", target.used(0)?.length, 0u32)?;
            }
        }
        equal("status", read8(STATUS), FAILED)
    }),
];

fn identity(target: &mut Target, room: u32) -> Outcome {
    begin(target)?;
    let answer = ask(target, GET_ID, 0, &[(DATA, room, true)])?;
    equal("status", answer.status, OK)?;
    let whole = if target.kind == Kind::Disk { SERIAL } else { b"" };
    let serial = (0..room.min(20)).map(|at| whole.get(at as usize).copied().unwrap_or(0));
    for (at, byte) in (0..).zip(serial) {
        equal("serial", read8(DATA + at), byte)?;
    }
    Ok(())
}
