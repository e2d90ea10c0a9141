//! The example device of the source tree with the same registers on every path (`devices/examples/paths.rs`): what is written on a
//! path is read on it, what is written on one path is read on another, and all of them move with the BAR.

use core::array::from_fn;
use core::sync::atomic::{AtomicBool, Ordering};

use super::bar::other_place;
use crate::machine::Machine;
use crate::memory::{map, read16, read32, read64, write8, write16, write32, write64};
use crate::pci::{Bar, Function, MEMORY};
use crate::processor::start_second;
use crate::serial::{line, received};
use crate::verdict::Verdict;

const VENDOR: u16 = 0x1af4;
const PATHS: u16 = 0x10f1;

/// Pages of the BAR. By message everything can be reached; these are what the device offers besides.
const MESSAGE: u64 = 0;
const STREAM: u64 = 0x1000;
const SEQPACKET: u64 = 0x2000;
const STREAM_POSTED: u64 = 0x3000;
const SEQPACKET_POSTED: u64 = 0x4000;
const DOORBELL: u64 = 0x5000;
const MAPPED: u64 = 0x6000;

/// Registers of each page: what was written last, how often, and how often this one was read. The mapped page is plain memory.
const VALUE: u64 = 0;
const WRITES: u64 = 4;
const READS: u64 = 8;

const REGISTERS: [(&str, u64); 5] = [
    ("paths-message", MESSAGE),
    ("paths-stream", STREAM),
    ("paths-seqpacket", SEQPACKET),
    ("paths-stream-posted", STREAM_POSTED),
    ("paths-seqpacket-posted", SEQPACKET_POSTED),
];
/// What keeps a value, whichever path leads to it.
const VALUES: [u64; 6] = [MESSAGE, STREAM, SEQPACKET, STREAM_POSTED, SEQPACKET_POSTED, MAPPED];

const TIMES: u32 = 50;
const RINGS: u32 = 3;
/// How often to look for what comes by another thread of the device.
const PATIENCE: u32 = 20_000;
/// As `end::PATIENCE`.
const MINUTE: u32 = 60_000_000;
const ALL_ONES: u32 = 0xffff_ffff;

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

fn find(machine: &Machine) -> Option<(Function, Bar)> {
    let function = machine.function(VENDOR, PATHS)?;
    let bar = function.bar(0)?;
    map(bar.address(), bar.size);
    function.command(MEMORY, 0);
    Some((function, bar))
}

/// How many of so many writes were read back, and counted.
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

/// Until the console says so: what is written by each path is read there, each write is done once, and each read.
pub fn steady(machine: &Machine, verdict: &mut Verdict) {
    let Some((_, bar)) = find(machine) else {
        verdict.holds("steady-device-found", false);
        return;
    };
    let page = |index: usize| bar.address() + REGISTERS[index].1;
    let before: [(u32, u32); REGISTERS.len()] =
        from_fn(|index| (read32(page(index) + WRITES), read32(page(index) + READS)));
    line("ready");
    let wrong = (1..MINUTE).take_while(|_| received().is_none()).find_map(|time| {
        let wrong = |index: &usize| {
            write32(page(*index) + VALUE, time);
            let (writes, reads) = before[*index];
            read32(page(*index) + VALUE) != time
                || read32(page(*index) + WRITES).wrapping_sub(writes) != time
                || read32(page(*index) + READS).wrapping_sub(reads) != time
        };
        (0..REGISTERS.len()).find(wrong)
    });
    let name = wrong.map_or("steady", |index| REGISTERS[index].0);
    verdict.holds(name, wrong.is_none());
}

/// The first processor reads a register; the second disables the BAR when the console says so, and enables it when it says so again.
/// An access that waits meanwhile gets its answer, those after it find nothing, and later there is everything again.
pub fn disabled(machine: &Machine, verdict: &mut Verdict) {
    let Some((function, bar)) = find(machine) else {
        verdict.holds("disabled-device-found", false);
        return;
    };
    let register = bar.address() + SEQPACKET;
    write32(register, 1);
    start_second(disable_and_enable, function.command_address());
    line("ready");
    let last = (0..MINUTE).map(|_| read32(register)).find(|&value| value != 1);
    // Until then the console is the second processor's.
    let enabled = (0..MINUTE).any(|_| ENABLED_AGAIN.load(Ordering::Acquire));
    verdict.equal("disabled", last.map_or(1, u64::from), u64::from(ALL_ONES));
    verdict.holds("disabled-enabled-again", enabled);
    verdict.equal("disabled-answers-after", u64::from(read32(register)), 1);
}

static ENABLED_AGAIN: AtomicBool = AtomicBool::new(false);

/// What the second processor does.
fn disable_and_enable(command: u64) {
    wait_for_console();
    write16(command, read16(command) & !MEMORY);
    line("disabled");
    wait_for_console();
    write16(command, read16(command) | MEMORY);
    ENABLED_AGAIN.store(true, Ordering::Release);
}

fn wait_for_console() {
    while received().is_none() {}
}

/// Reads registers that have a path of their own until the device is dead: everything reads as all ones from then on, and writes
/// vanish.
pub fn gone(machine: &Machine, verdict: &mut Verdict) {
    dies(machine, verdict);
}

/// The same, and a device that is dead stays so until the console says that it was long enough.
pub fn gone_for_good(machine: &Machine, verdict: &mut Verdict) {
    let Some(base) = dies(machine, verdict) else { return };
    line("gone");
    let mut times = (0..MINUTE).take_while(|_| received().is_none());
    verdict.holds("gone-for-good", times.all(|_| read32(base + STREAM) & read32(base + SEQPACKET) == ALL_ONES));
}

/// Where its registers were.
fn dies(machine: &Machine, verdict: &mut Verdict) -> Option<u64> {
    let Some((function, bar)) = find(machine) else {
        verdict.holds("gone-device-found", false);
        return None;
    };
    let base = bar.address();
    write32(base + SEQPACKET, 1);
    verdict.equal("gone-answers-before", u64::from(read32(base + SEQPACKET)), 1);
    line("ready");
    let read = |page: u64| read32(base + page) == ALL_ONES;
    verdict.holds("gone", (0..MINUTE).any(|_| read(SEQPACKET) || read(STREAM)));
    for page in [MESSAGE, STREAM, SEQPACKET, STREAM_POSTED, SEQPACKET_POSTED, MAPPED] {
        write32(base + page, 1);
        // The thread that takes the device away may not have come to it.
        let all_ones = (0..PATIENCE).any(|_| read32(base + page) == ALL_ONES);
        verdict.holds("gone-all-paths", all_ones);
    }
    verdict.holds("gone-configuration", (0..PATIENCE).any(|_| function.id() == ALL_ONES));
    Some(base)
}
