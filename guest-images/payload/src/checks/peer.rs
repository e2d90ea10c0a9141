//! Peer-to-peer: QEMU's teaching device copies by DMA to and from the memory that another physical device has in a BAR (QEMU,
//! docs/specs/ivshmem-spec.rst).

use super::bar::other_place;
use super::edu::{BUFFERS, BYTES, Edu, OWN_MEMORY, START, TO_RAM};
use crate::machine::Machine;
use crate::memory::{map, read8, write8};
use crate::pci::{Bar, Function, MEMORY};
use crate::serial::line;
use crate::verdict::Verdict;

const VENDOR: u16 = 0x1af4;
const DEVICE: u16 = 0x1110;
const MEMORY_BAR: u8 = 2;
const STEADY_ROUNDS: u8 = 30;

/// The device reaches the other one's memory, wherever that is, and only where it is.
pub fn reached(machine: &Machine, verdict: &mut Verdict) {
    let Some((edu, function, bar)) = find(machine, verdict) else { return };
    let before = bar.address();
    verdict.holds("peer-written", writes(&edu, before, 1));
    verdict.holds("peer-read", reads(&edu, before, 2));
    let Some(after) = other_place(machine, &bar) else {
        verdict.holds("peer-other-place", false);
        return;
    };
    bar.move_to(after);
    verdict.holds("peer-written-at-new-place", writes(&edu, after, 3));
    verdict.holds("peer-read-at-new-place", reads(&edu, after, 4));
    fill(after, 5);
    verdict.holds("peer-not-read-at-old-place", !fetches(&edu, before, 5));
    function.command(0, MEMORY);
    verdict.holds("peer-not-read-while-not-decoded", !fetches(&edu, after, 5));
    function.command(MEMORY, 0);
    verdict.holds("peer-read-when-decoded-again", fetches(&edu, after, 5));
}

/// The device does not reach it.
pub fn out_of_reach(machine: &Machine, verdict: &mut Verdict) {
    let Some((edu, _, bar)) = find(machine, verdict) else { return };
    verdict.holds("peer-not-written", !writes(&edu, bar.address(), 1));
    verdict.holds("peer-not-read", !reads(&edu, bar.address(), 2));
}

/// The memory waits for a place that the device itself has. When it has come there it is reached once its command register is written.
pub fn waits(machine: &Machine, verdict: &mut Verdict) {
    let Some((mut edu, function, bar)) = find(machine, verdict) else { return };
    let before = edu.bar.address();
    let mut room = edu.bar;
    room.size = bar.size;
    let Some(place) = other_place(machine, &room) else {
        verdict.holds("peer-place-for-both", false);
        return;
    };
    let beside = edu.bar.size;
    fill(bar.address() + beside, 6);
    edu.move_to(place);
    bar.move_to(place);
    verdict.holds("peer-not-there-while-waiting", !has(place + beside, 6));
    verdict.holds("peer-not-read-while-waiting", !fetches(&edu, place + beside, 6));
    edu.move_to(before);
    verdict.holds("peer-there-when-place-is-free", has(place + beside, 6));
    function.command(MEMORY, 0);
    verdict.holds("peer-read-when-place-is-free", fetches(&edu, place + beside, 6));
    verdict.holds("peer-written-when-place-is-free", writes(&edu, place + beside, 7));
}

/// The device reaches it each time of some seconds.
pub fn steady(machine: &Machine, verdict: &mut Verdict) {
    let Some((edu, _, bar)) = find(machine, verdict) else { return };
    for round in 0..STEADY_ROUNDS {
        if !writes(&edu, bar.address(), round) || !reads(&edu, bar.address(), !round) {
            verdict.holds("peer-reached-each-time", false);
            return;
        }
        if round == 0 {
            line("ready");
        }
    }
    verdict.holds("peer-reached-each-time", true);
}

fn find(machine: &Machine, verdict: &mut Verdict) -> Option<(Edu, Function, Bar)> {
    let edu = Edu::find(machine, verdict)?;
    let found = machine.function(VENDOR, DEVICE).and_then(|function| Some((function, function.bar(MEMORY_BAR)?)));
    verdict.holds("peer-found", found.is_some());
    let (function, bar) = found?;
    map(bar.address(), bar.size);
    function.command(MEMORY, 0);
    Some((edu, function, bar))
}

/// Whether what the device writes to an address arrives there.
fn writes(edu: &Edu, address: u64, seed: u8) -> bool {
    fill(address, !seed);
    fill(BUFFERS.address(), seed);
    edu.copies(BUFFERS.address(), OWN_MEMORY, START)
        && edu.copies(OWN_MEMORY, address, START | TO_RAM)
        && has(address, seed)
}

/// Whether the device reads what is at an address.
fn reads(edu: &Edu, address: u64, seed: u8) -> bool {
    fill(address, seed);
    fetches(edu, address, seed)
}

/// Whether the device reads this from an address.
fn fetches(edu: &Edu, address: u64, seed: u8) -> bool {
    let buffer = BUFFERS.address();
    fill(buffer, !seed);
    edu.copies(buffer, OWN_MEMORY, START)
        && edu.copies(address, OWN_MEMORY, START)
        && edu.copies(OWN_MEMORY, buffer, START | TO_RAM)
        && has(buffer, seed)
}

fn byte(at: u64, seed: u8) -> u8 {
    (at as u8).wrapping_mul(7) ^ seed
}

fn fill(address: u64, seed: u8) {
    (0..BYTES).for_each(|at| write8(address + at, byte(at, seed)));
}

fn has(address: u64, seed: u8) -> bool {
    (0..BYTES).all(|at| read8(address + at) == byte(at, seed))
}
