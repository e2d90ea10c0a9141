//! Requests to the virtio block device: sector 0 holds the pattern that the test put there, sector 1 keeps what is written to it.

use crate::interrupts::{fired, wait};
use crate::machine::Machine;
use crate::memory::{read32, write32};
use crate::msix::Msix;
use crate::serial::{decimal, line, received, text};
use crate::verdict::Verdict;
use crate::virtio::{BLOCK, VENDOR};
use crate::virtio_blk::VirtioBlk;
use crate::virtqueue::{self, SECTOR};

const PATIENCE: u32 = 200_000;
const ENTRY: u16 = 0;
/// Where the disk's interrupts arrive.
pub(super) const VECTOR: u8 = 2;
const READ: u32 = 0;
const WRITE: u32 = 1;
/// Sector 0 is words of this, each plus its number; sector 1 gets their complement.
const PATTERN: u32 = 0x5eed_0000;
const WORDS: u32 = SECTOR / 4;
/// `steady` waits this long for a request, some ten seconds.
const LONG_PATIENCE: u32 = 60_000_000;
/// The sectors that `steady` writes and reads, from 1 on.
const STEADY: u32 = 63;
/// It starts the device anew after so many rounds.
const ROUNDS_PER_START: u32 = 40;

/// The disk, reset and ready, which interrupts by its first message.
pub(super) fn start(machine: &Machine, verdict: &mut Verdict) -> Option<(Msix, VirtioBlk)> {
    let Some(function) = machine.function(VENDOR, BLOCK) else {
        verdict.holds("blk-device-found", false);
        return None;
    };
    let Some(msix) = Msix::of(function) else {
        verdict.holds("blk-msix-capability", false);
        return None;
    };
    msix.control(true, false);
    msix.route(ENTRY, VECTOR);
    msix.mask(ENTRY, false);
    match VirtioBlk::start(function, ENTRY) {
        Ok(blk) => Some((msix, blk)),
        Err(refused) => {
            verdict.equal(refused.0, refused.1, 0);
            None
        }
    }
}

/// Writes sectors with their number and generation and reads them back, in another order, until a `q` comes by the console. The
/// device is reset and started again all the while, so that whatever happens to its process meets every step of that, too.
pub fn steady(machine: &Machine, verdict: &mut Verdict) {
    let mut generations = [0u32; STEADY as usize];
    let (mut round, mut starts) = (0u32, 0u32);
    let word = |sector: u32, generation: u32, at: u32| sector << 24 ^ generation << 7 ^ at;
    line("ready");
    while received() != Some(b'q') {
        let Some((msix, blk)) = start(machine, verdict) else { return };
        starts += 1;
        for _ in 0..ROUNDS_PER_START {
            round += 1;
            let written = round * 7 % STEADY;
            generations[written as usize] = round;
            fill(|at| word(written, round, at));
            if !is_done(&blk, WRITE, written) {
                return failed("write", round, verdict);
            }
            let read = round * 11 % STEADY;
            fill(|_| !0);
            if !is_done(&blk, READ, read) {
                return failed("read", round, verdict);
            }
            let generation = generations[read as usize];
            // A sector never written is zeros.
            if mismatches(|at| if generation == 0 { 0 } else { word(read, generation, at) }) != 0 {
                return failed("data", round, verdict);
            }
        }
        if !blk.reset() {
            return failed("reset", round, verdict);
        }
        msix.mask(ENTRY, true);
        msix.control(false, false);
    }
    text("rounds ");
    decimal(u64::from(round));
    text(", starts ");
    decimal(u64::from(starts));
    line("");
    verdict.holds("blk-steady", true);
}

/// Does one request of sector 1 + `sector`, and sees its interrupt.
fn is_done(blk: &VirtioBlk, kind: u32, sector: u32) -> bool {
    let before = fired(VECTOR);
    blk.request(kind, u64::from(1 + sector));
    wait(LONG_PATIENCE, || virtqueue::idle() && fired(VECTOR) != before) && virtqueue::status() == 0
}

fn failed(what: &str, round: u32, verdict: &mut Verdict) {
    text("blk-steady: round ");
    decimal(u64::from(round));
    text(", status ");
    decimal(u64::from(virtqueue::status()));
    text(", idle ");
    decimal(u64::from(virtqueue::idle()));
    text(", interrupts ");
    decimal(u64::from(fired(VECTOR)));
    line("");
    verdict.equal_parts(&["blk-steady-", what], 0, 1);
}

pub fn check(machine: &Machine, verdict: &mut Verdict) {
    let Some((msix, blk)) = start(machine, verdict) else { return };
    verdict.holds("blk-capacity", blk.capacity() >= 2);
    fill(|_| 0);
    done_by_interrupt(&blk, READ, 0, "blk-read", verdict);
    verdict.equal("blk-read-length", u64::from(virtqueue::written()), u64::from(SECTOR) + 1);
    verdict.equal("blk-read-data", mismatches(|at| PATTERN + at), 0);
    fill(|at| !(PATTERN + at));
    done_by_interrupt(&blk, WRITE, 1, "blk-write", verdict);
    fill(|_| 0);
    done_by_interrupt(&blk, READ, 1, "blk-read-back", verdict);
    verdict.equal("blk-read-back-data", mismatches(|at| !(PATTERN + at)), 0);
    let before = fired(VECTOR);
    blk.request(READ, blk.capacity());
    // With its interrupt, which would otherwise be taken for that of a request after a reset.
    wait(PATIENCE, || virtqueue::idle() && fired(VECTOR) != before);
    verdict.equal("blk-past-end-is-an-error", u64::from(virtqueue::status()), 1);
    verdict.holds("blk-resets", blk.reset());
    msix.mask(ENTRY, true);
    msix.control(false, false);
}

fn done_by_interrupt(blk: &VirtioBlk, kind: u32, sector: u64, name: &str, verdict: &mut Verdict) {
    let before = fired(VECTOR);
    blk.request(kind, sector);
    let arrived = wait(PATIENCE, || fired(VECTOR) != before);
    verdict.equal(name, u64::from(arrived) << 8 | u64::from(virtqueue::status()), 1 << 8);
}

fn fill(word: impl Fn(u32) -> u32) {
    for at in 0..WORDS {
        write32(virtqueue::sector_buffer() + u64::from(at) * 4, word(at));
    }
}

fn mismatches(word: impl Fn(u32) -> u32) -> u64 {
    (0..WORDS).filter(|&at| read32(virtqueue::sector_buffer() + u64::from(at) * 4) != word(at)).count() as u64
}
