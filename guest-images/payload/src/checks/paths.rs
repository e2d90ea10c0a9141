//! The example device with the same registers on every path (`devices/examples/paths.rs`). A value written on a path is
//! read on it, one written on one path is read on another, and all of them move with the BAR.

use super::bar::other_place;
use crate::machine::Machine;
use crate::memory::{map, read16, read32, read64, write8, write16, write32, write64};
use crate::pci::{Bar, Function, MEMORY};
use crate::verdict::Verdict;

const VENDOR: u16 = 0x1af4;
const PATHS: u16 = 0x10f1;

/// Pages of the BAR. By message everything can be reached; these are what the device offers besides.
pub const MESSAGE: u64 = 0;
pub const STREAM: u64 = 0x1000;
pub const SEQPACKET: u64 = 0x2000;
pub const STREAM_POSTED: u64 = 0x3000;
pub const SEQPACKET_POSTED: u64 = 0x4000;
pub const DOORBELL: u64 = 0x5000;
pub const MAPPED: u64 = 0x6000;
/// On the descriptors of `STREAM` and `SEQPACKET`, but with posted writes.
pub const STREAM_SECOND: u64 = 0x7000;
pub const SEQPACKET_SECOND: u64 = 0x8000;

/// Registers of each page: what was written last, and how often. The mapped page is plain memory.
pub const VALUE: u64 = 0;
pub const WRITES: u64 = 4;
/// Shared by all pages: a word, and a number that is one higher each time it is read.
pub const COMMON: u64 = 8;
pub const TICKET: u64 = 12;

pub const REGISTERS: [(&str, u64); 7] = [
    ("paths-message", MESSAGE),
    ("paths-stream", STREAM),
    ("paths-seqpacket", SEQPACKET),
    ("paths-stream-posted", STREAM_POSTED),
    ("paths-seqpacket-posted", SEQPACKET_POSTED),
    ("paths-stream-second", STREAM_SECOND),
    ("paths-seqpacket-second", SEQPACKET_SECOND),
];
/// Pages that keep a value, by any path.
pub const VALUES: [u64; 8] =
    [MESSAGE, STREAM, SEQPACKET, STREAM_POSTED, SEQPACKET_POSTED, MAPPED, STREAM_SECOND, SEQPACKET_SECOND];

const TIMES: u32 = 50;
const RINGS: u32 = 3;
/// How often to look for what comes by another thread of the device.
pub const PATIENCE: u32 = 20_000;
pub const ALL_ONES: u32 = 0xffff_ffff;

pub fn check(machine: &Machine, verdict: &mut Verdict) {
    let Some((function, bar)) = find(machine) else {
        verdict.holds("paths-found", false);
        return;
    };
    let base = bar.address();
    for (name, page) in REGISTERS {
        verdict.equal(name, u64::from(kept(base + page)), u64::from(TIMES));
        widths(base + page, verdict);
    }
    write32(base + MAPPED + VALUE, 0x0bad_cafe);
    verdict.equal("paths-mapped", u64::from(read32(base + MAPPED + VALUE)), 0x0bad_cafe);

    let before = read32(base + DOORBELL + WRITES);
    (0..RINGS).for_each(|value| write32(base + DOORBELL + VALUE, value));
    let rings = || read32(base + DOORBELL + WRITES).wrapping_sub(before);
    verdict.holds("paths-doorbell", (0..PATIENCE).any(|_| rings() == RINGS));

    order(base, verdict);
    moves(machine, function, &bar, verdict);
}

/// The device and its registers, which are accessible then.
pub fn find(machine: &Machine) -> Option<(Function, Bar)> {
    let function = machine.function(VENDOR, PATHS)?;
    let bar = function.bar(0)?;
    map(bar.address(), bar.size);
    function.command(MEMORY, 0);
    Some((function, bar))
}

/// How many of [`TIMES`] writes were read back, and counted.
fn kept(page: u64) -> u32 {
    let before = read32(page + WRITES);
    let right = (0..TIMES).filter(|value| {
        write32(page + VALUE, value ^ 0x5a5a_0000);
        read32(page + VALUE) == value ^ 0x5a5a_0000 && read32(page + WRITES).wrapping_sub(before) == value + 1
    });
    u32::try_from(right.count()).unwrap_or(0)
}

fn widths(page: u64, verdict: &mut Verdict) {
    write8(page, 0xa5);
    verdict.equal("paths-byte", u64::from(read16(page)), 0xa5);
    write16(page, 0xbeef);
    verdict.equal("paths-word", u64::from(read32(page)), 0xbeef);
    write64(page, 0x1122_3344_5566_7788);
    verdict.equal("paths-quad-word", read64(page), 0x5566_7788);
}

/// The same register by two paths. An access of eight bytes that starts three bytes before a page is one of three bytes and one
/// of five, which neither an ioregionfd nor an ioeventfd has, so they go by message.
fn order(base: u64, verdict: &mut Verdict) {
    for (name, page) in [("paths-order-stream", STREAM), ("paths-order-seqpacket", SEQPACKET)] {
        let right = (0..TIMES).filter(|&value| {
            write32(base + page, value);
            read_by_message(base + page) == value
        });
        verdict.equal(name, right.count() as u64, u64::from(TIMES));
    }
    let pages = [
        ("paths-order-message-stream", STREAM),
        ("paths-order-message-seqpacket", SEQPACKET),
        ("paths-order-message-stream-posted", STREAM_POSTED),
        ("paths-order-message-seqpacket-posted", SEQPACKET_POSTED),
    ];
    for (name, page) in pages {
        let right = (0..TIMES).filter(|&value| {
            write64(base + page - 3, u64::from(value) << 24);
            read32(base + page) == value
        });
        verdict.equal(name, right.count() as u64, u64::from(TIMES));
    }
}

fn read_by_message(register: u64) -> u32 {
    let [_, _, _, a, b, c, d, _] = read64(register - 3).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn moves(machine: &Machine, function: Function, bar: &Bar, verdict: &mut Verdict) {
    let Some(after) = other_place(machine, bar) else {
        verdict.holds("paths-other-place", false);
        return;
    };
    let before = bar.address();
    let all = |base: u64, wanted: fn(u64) -> u32| VALUES.iter().all(|page| read32(base + page) == wanted(*page));
    let put = |base: u64, other: u32| VALUES.iter().for_each(|page| write32(base + page, pattern(*page) ^ other));
    put(before, 0);
    bar.move_to(after);
    verdict.holds("paths-moved", all(after, pattern));
    verdict.holds("paths-old-place-empty", all(before, |_| ALL_ONES));
    put(before, 1);
    verdict.holds("paths-old-place-ignores-writes", all(after, pattern));
    function.command(0, MEMORY);
    verdict.holds("paths-disabled", all(after, |_| ALL_ONES));
    put(after, 1);
    function.command(MEMORY, 0);
    verdict.holds("paths-enabled-again", all(after, pattern));
    put(after, 3);
    verdict.holds("paths-writable-again", all(after, |page| pattern(page) ^ 3));
    bar.move_to(before);
    verdict.holds("paths-moved-back", all(before, |page| pattern(page) ^ 3));
}

fn pattern(page: u64) -> u32 {
    0xc0de_0000 | u32::try_from(page).unwrap_or(0)
}
