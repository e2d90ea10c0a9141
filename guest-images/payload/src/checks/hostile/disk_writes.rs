//! Writes, discards and write-zeroes that a disk cannot carry out, or that are laid out as no driver does it (virtio 1.2, 5.2.6).

use super::arena::{CANARY_BYTE, READABLE, put32, put64};
use super::disk_request::{
    ANY_LAYOUT, Answer, DATA, DISCARD, FAILED, FILLING, FLUSH, HEADER, OK, OPEN, OUT, SCRATCH, SENT, STATUS, UNKNOWN,
    UNSUPPORTED, WHOLE_SECTORS, WITHIN, WRITE_ZEROES, ask, begin, capacity, data, fails, fill, header, holds_filling,
    reads_pattern, request,
};
use super::outcome::{Fault, Outcome, equal, holds, soon};
use super::target::Target;
use super::works::SECTOR;
use super::{Attack, attack};
use crate::memory::read8;

/// VIRTIO_BLK_F_WRITE_ZEROES.
const CAN_ZERO: u64 = 1 << 14;
const RANGES: &str = "virtio 1.2, 5.2.6.1 and 5.2.6.2: one range, whole, within the disk";
const CANNOT_WRITE: &str = "virtio 1.2, 5.2.6.2: VIRTIO_BLK_S_IOERR";

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
