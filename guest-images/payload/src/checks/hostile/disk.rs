//! Requests that a disk cannot carry out, or that are laid out as no driver does it (virtio 1.2, 5.2.6), and what the device says it wrote
//! (2.7.8.2).

use super::arena::{CANARY_BYTE, READABLE, WRITABLE, put8, put32, put64};
use super::outcome::{Fault, Outcome, equal, holds, soon};
use super::queue::{Buffer, chain};
use super::target::{Kind, Target};
use super::works::SECTOR;
use super::{Attack, attack};
use crate::memory::{read8, read32, read64};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// VIRTIO_BLK_F_WRITE_ZEROES.
const CAN_ZERO: u64 = 1 << 14;

const WITHIN: &str = "virtio 1.2, 5.2.6.1 and 2.7.8.2: within the disk; no more is claimed than was written";
const WHOLE_SECTORS: &str = "virtio 1.2, 5.2.6.1: whole sectors";
const UNKNOWN: &str = "virtio 1.2, 5.2.6.2: VIRTIO_BLK_S_UNSUPP";
const ANY_LAYOUT: &str = "virtio 1.2, 2.7.4.1: any framing";
const IDENTITY: &str = "virtio 1.2, 5.2.6.1 and 2.7.8.2: 20 bytes at most";
const RANGES: &str = "virtio 1.2, 5.2.6.1 and 5.2.6.2: one range, whole, within the disk";
const CANNOT_WRITE: &str = "virtio 1.2, 5.2.6.2: VIRTIO_BLK_S_IOERR";
const OPEN: &str = "left open: answered one way or the other";

const HEADER: u32 = 16;
/// What is read, and the status after it.
const DATA: u64 = WRITABLE;
const STATUS: u64 = WRITABLE + 0x2ff0;
/// What is written.
const SENT: u64 = READABLE + 0x200;
/// Sectors that the test expects to change, and what they are filled with.
const SCRATCH: u64 = 8;
const FILLING: u32 = 0x3c3c_3c3c;
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

/// On disks that can be written.
pub const WRITES: &[Attack] = &[
    attack("beyond-the-end", WITHIN, |target| {
        begin(target)?;
        let end = capacity(target);
        for (sector, length) in [(end, SECTOR), (end - 1, 2 * SECTOR), (1 << 40, SECTOR)] {
            fails(target, OUT, sector, &[(SENT, length, false)])?;
        }
        holds_filling(target, end - 1, 0)
    }),
    attack("where-sectors-wrap", WITHIN, |target| {
        begin(target)?;
        for sector in [u64::MAX, 1 << 55, (1 << 55) + 1, u64::MAX - 1] {
            fails(target, OUT, sector, &[(SENT, 2 * SECTOR, false)])?;
        }
        Ok(())
    }),
    attack("of-parts-of-sectors", WHOLE_SECTORS, |target| {
        begin(target)?;
        fill(target, SCRATCH, 1, 0)?;
        for length in [1, 100, 511, 513] {
            fails(target, OUT, SCRATCH, &[(SENT, length, false)])?;
        }
        holds_filling(target, SCRATCH, 0)
    }),
    attack("of-nothing", OPEN, |target| {
        begin(target)?;
        ask(target, OUT, SCRATCH, &[]).map(drop)
    }),
    attack("of-what-is-to-be-written", OPEN, |target| {
        begin(target)?;
        fill(target, SCRATCH, 1, 0)?;
        ask(target, OUT, SCRATCH, &[(DATA, SECTOR, true)])?;
        holds_filling(target, SCRATCH, 0)
    }),
    attack("from-where-no-memory-is", WITHIN, |target| {
        begin(target)?;
        fill(target, SCRATCH, 2, 0)?;
        for address in [target.end_of_ram, target.end_of_ram - 256, u64::MAX - 511, target.registers] {
            fails(target, OUT, SCRATCH, &[(address, SECTOR, false)])?;
        }
        let end = target.end_of_ram;
        fails(target, OUT, SCRATCH, &[(SENT, SECTOR, false), (end, SECTOR, false)])?;
        holds_filling(target, SCRATCH + 1, 0)
    }),
    attack("next-to-other-sectors", WITHIN, |target| {
        begin(target)?;
        fill(target, SCRATCH, 3, 0)?;
        fill(target, SCRATCH + 1, 1, FILLING)?;
        holds_filling(target, SCRATCH, 0)?;
        holds_filling(target, SCRATCH + 1, FILLING)?;
        holds_filling(target, SCRATCH + 2, 0)
    }),
    attack("in-odd-pieces", ANY_LAYOUT, |target| {
        begin(target)?;
        fill(target, SCRATCH, 1, 0)?;
        data(FILLING);
        header(OUT, SCRATCH);
        let pieces = [(SENT, 1, false), (SENT + 1, 510, false), (SENT + 511, 1, false)];
        target.request(0, 0, &[(READABLE, HEADER, false), pieces[0], pieces[1], pieces[2], (STATUS, 1, true)]);
        equal("used length", target.used(0)?.length, 1u32)?;
        equal("status", read8(STATUS), OK)?;
        holds_filling(target, SCRATCH, FILLING)
    }),
    attack("zeroes-next-to-other-sectors", RANGES, |target| {
        for flags in [0, 1] {
            begin(target)?;
            fill(target, SCRATCH, 3, FILLING)?;
            let can = target.offered() & CAN_ZERO != 0;
            let status = range(target, WRITE_ZEROES, SCRATCH + 1, 1, flags)?.status;
            equal("status", status, if can { OK } else { UNSUPPORTED })?;
            holds_filling(target, SCRATCH, FILLING)?;
            holds_filling(target, SCRATCH + 1, if can { 0 } else { FILLING })?;
            holds_filling(target, SCRATCH + 2, FILLING)?;
        }
        Ok(())
    }),
    attack("discard-with-flags", UNKNOWN, |target| flags(target, DISCARD, &[1, 2, 3, 0x8000_0000, u32::MAX])),
    attack("zeroes-with-flags", UNKNOWN, |target| flags(target, WRITE_ZEROES, &[2, 3, 0x8000_0000, u32::MAX])),
    attack("discard-beyond-the-end", RANGES, |target| out_of_range(target, DISCARD)),
    attack("zeroes-beyond-the-end", RANGES, |target| out_of_range(target, WRITE_ZEROES)),
    attack("discard-of-two-ranges", RANGES, |target| ranges(target, DISCARD)),
    attack("zeroes-of-two-ranges", RANGES, |target| ranges(target, WRITE_ZEROES)),
    attack("discard-of-parts-of-a-range", RANGES, |target| parts(target, DISCARD)),
    attack("zeroes-of-parts-of-a-range", RANGES, |target| parts(target, WRITE_ZEROES)),
];

/// On disks that cannot be written.
pub const READ_ONLY: &[Attack] = &[
    attack("written", CANNOT_WRITE, |target| {
        begin(target)?;
        for sector in [SCRATCH, 0, capacity(target)] {
            fails(target, OUT, sector, &[(SENT, SECTOR, false)])?;
        }
        holds_filling(target, SCRATCH, 0)
    }),
    attack("discarded", CANNOT_WRITE, |target| {
        begin(target)?;
        for kind in [DISCARD, WRITE_ZEROES] {
            let status = range(target, kind, 0, 1, 0)?.status;
            holds("an error", status == FAILED || status == UNSUPPORTED)?;
        }
        reads_pattern(target)
    }),
    attack("flushed", OPEN, |target| {
        begin(target)?;
        ask(target, FLUSH, 0, &[]).map(drop)
    }),
    attack("told-that-it-can-be-written", "virtio 1.2, 2.5.1: features are the device's", |target| {
        let features = target.features() & !(1 << 5);
        target.start_with(features)?;
        data(FILLING);
        let status = ask(target, OUT, SCRATCH, &[(SENT, SECTOR, false)])?.status;
        equal("status", status, FAILED)
    }),
];

/// How a request ended.
struct Answer {
    status: u8,
    length: u32,
}

fn begin(target: &mut Target) -> Outcome {
    target.start()?;
    data(FILLING);
    Ok(())
}

fn capacity(target: &Target) -> u64 {
    read64(target.config)
}

fn header(kind: u32, sector: u64) {
    put32(READABLE, kind);
    put32(READABLE + 4, 0);
    put64(READABLE + 8, sector);
}

/// Two sectors of this are what is written.
fn data(word: u32) {
    for at in (0..1024).step_by(8) {
        put64(SENT + at, u64::from(word) << 32 | u64::from(word));
    }
}

/// A request with a header before `data` and a status after it.
fn request(target: &mut Target, kind: u32, sector: u64, data: &[Buffer]) -> Result<Answer, Fault> {
    header(kind, sector);
    put8(STATUS, CANARY_BYTE);
    let mut buffers = [(READABLE, HEADER, false); 6];
    let count = data.len() + 2;
    buffers[1..count - 1].copy_from_slice(data);
    buffers[count - 1] = (STATUS, 1, true);
    for &(address, length, _) in buffers[..count].iter().filter(|buffer| buffer.2) {
        target.arena.offer(address, length.into());
    }
    let queue = target.queue();
    chain(queue.descriptors, 0, &buffers[..count]);
    queue.enter(0);
    queue.show();
    target.ring(0);
    let used = target.used(0)?;
    equal("used chain", used.head, 0u32)?;
    Ok(Answer { status: read8(STATUS), length: used.length })
}

/// The same; and what the device says it wrote, it wrote.
fn ask(target: &mut Target, kind: u32, sector: u64, data: &[Buffer]) -> Result<Answer, Fault> {
    for &(address, length, _) in
        data.iter().filter(|buffer| buffer.2 && buffer.0 < target.end_of_ram && buffer.1 <= 1024)
    {
        (address..address + u64::from(length)).for_each(|at| put8(at, CANARY_BYTE));
    }
    let answer = request(target, kind, sector, data)?;
    holds("a status", answer.status <= UNSUPPORTED)?;
    let mut claimed = u64::from(answer.length);
    let written = data.iter().filter(|buffer| buffer.2).map(|buffer| (buffer.0, u64::from(buffer.1)));
    for (address, length) in written {
        let here = claimed.min(length);
        let in_ram = address < target.end_of_ram && length <= 0x10_0000;
        holds("what is claimed to be written", here == 0 || in_ram)?;
        holds("what is claimed to be written", (address..address + here).all(|at| read8(at) != CANARY_BYTE))?;
        claimed -= here;
    }
    holds("no more is claimed than there is", claimed <= 1)?;
    Ok(answer)
}

/// The request fails, and claims nothing that it did not do.
fn fails(target: &mut Target, kind: u32, sector: u64, data: &[Buffer]) -> Outcome {
    equal("status", ask(target, kind, sector, data)?.status, FAILED)
}

/// A chain that reads sector 0 to [`DATA`].
fn reads(target: &mut Target, buffers: &[Buffer], status: u64) -> Outcome {
    target.request(0, 0, buffers);
    equal("used length", target.used(0)?.length, SECTOR + 1)?;
    equal("status", read8(status), OK)?;
    equal("first word", read32(DATA), 0x5eed_0000u32)?;
    equal("last word", read32(DATA + 508), 0x5eed_007fu32)
}

fn reads_pattern(target: &mut Target) -> Outcome {
    header(IN, 0);
    reads(target, &[(READABLE, HEADER, false), (DATA, SECTOR, true), (STATUS, 1, true)], STATUS)
}

/// Fills sectors with a word.
fn fill(target: &mut Target, sector: u64, count: u64, word: u32) -> Outcome {
    data(word);
    for sector in sector..sector + count {
        let answer = ask(target, OUT, sector, &[(SENT, SECTOR, false)])?;
        equal("status of a write", answer.status, OK)?;
        equal("used length of a write", answer.length, 1u32)?;
    }
    Ok(())
}

/// A sector is full of this word.
fn holds_filling(target: &mut Target, sector: u64, word: u32) -> Outcome {
    equal("status of a read", ask(target, IN, sector, &[(DATA, SECTOR, true)])?.status, OK)?;
    for at in [0, 4, 252, 504, 508] {
        equal("content of a sector", read32(DATA + at), word)?;
    }
    Ok(())
}

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

/// A discard, or what is like it, of one range.
fn range(target: &mut Target, kind: u32, sector: u64, sectors: u32, flags: u32) -> Result<Answer, Fault> {
    put64(SENT, sector);
    put32(SENT + 8, sectors);
    put32(SENT + 12, flags);
    ask(target, kind, 0, &[(SENT, 16, false)])
}

fn flags(target: &mut Target, kind: u32, wrong: &[u32]) -> Outcome {
    begin(target)?;
    fill(target, SCRATCH, 1, FILLING)?;
    for &flags in wrong {
        equal("status", range(target, kind, SCRATCH, 1, flags)?.status, UNSUPPORTED)?;
    }
    holds_filling(target, SCRATCH, FILLING)
}

fn out_of_range(target: &mut Target, kind: u32) -> Outcome {
    begin(target)?;
    let end = capacity(target);
    let wrong =
        [(end, 1), (end - 1, 2), (u64::MAX, 1), (1 << 55, 1), (0, u32::MAX), (0, 0x40_0001), (end - 1, 0x40_0000)];
    for (sector, sectors) in wrong {
        holds("an error", range(target, kind, sector, sectors, 0)?.status != OK)?;
    }
    holds_filling(target, end - 1, 0)?;
    reads_pattern(target)
}

/// Two ranges where one is what was announced.
fn ranges(target: &mut Target, kind: u32) -> Outcome {
    begin(target)?;
    fill(target, SCRATCH, 2, FILLING)?;
    for (at, sector) in [(0, SCRATCH), (16, SCRATCH + 1)] {
        put64(SENT + at, sector);
        put64(SENT + at + 8, 1);
    }
    holds("an error", ask(target, kind, 0, &[(SENT, 32, false)])?.status != OK)?;
    holds_filling(target, SCRATCH, FILLING)
}

/// Ranges of other lengths than a range has, or in a buffer that is to be written.
fn parts(target: &mut Target, kind: u32) -> Outcome {
    begin(target)?;
    fill(target, SCRATCH, 1, FILLING)?;
    put64(SENT, SCRATCH);
    put64(SENT + 8, 1);
    for length in [1, 8, 15, 17, 24] {
        holds("an error", ask(target, kind, 0, &[(SENT, length, false)])?.status != OK)?;
    }
    ask(target, kind, 0, &[])?;
    request(target, kind, 0, &[(SENT, 16, true)])?;
    holds("an answer", soon(|| read8(STATUS) != CANARY_BYTE))?;
    holds_filling(target, SCRATCH, FILLING)
}
