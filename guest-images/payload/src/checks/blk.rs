//! Requests to the virtio block device: sector 0 holds the pattern that the test put there, sector 1 keeps what is written to it.

use crate::interrupts::{fired, wait};
use crate::machine::Machine;
use crate::memory::{read32, write32};
use crate::msix::Msix;
use crate::verdict::Verdict;
use crate::virtio::{BLOCK, VENDOR};
use crate::virtio_blk::VirtioBlk;
use crate::virtqueue::{self, SECTOR};

const PATIENCE: u32 = 200_000;
const ENTRY: u16 = 0;
const VECTOR: u8 = 2;
const READ: u32 = 0;
const WRITE: u32 = 1;
/// Sector 0 is words of this, each plus its number; sector 1 gets their complement.
const PATTERN: u32 = 0x5eed_0000;
const WORDS: u32 = SECTOR / 4;

pub fn check(machine: &Machine, verdict: &mut Verdict) {
    let Some(function) = machine.function(VENDOR, BLOCK) else {
        verdict.holds("blk-device-found", false);
        return;
    };
    let Some(msix) = Msix::of(function) else {
        verdict.holds("blk-msix-capability", false);
        return;
    };
    msix.control(true, false);
    msix.route(ENTRY, VECTOR);
    msix.mask(ENTRY, false);
    let blk = match VirtioBlk::start(function, ENTRY) {
        Ok(blk) => blk,
        Err(refused) => {
            verdict.equal(refused.0, refused.1, 0);
            return;
        }
    };
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
