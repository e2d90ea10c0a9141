//! A request of a dead device process must not come late: neither a write over a newer one, nor a read into memory that is used
//! for something else by then. The test on the host kills the process while a request is under way, and says when all that
//! could come has come.

use super::blk::{self, VECTOR};
use crate::interrupts::{fired, wait};
use crate::machine::Machine;
use crate::memory::{read32, write32};
use crate::serial::{line, received};
use crate::verdict::Verdict;
use crate::virtio_blk::VirtioBlk;
use crate::virtqueue::{self, SECTOR};

/// Rounds of waiting for a request: a minute or so.
const PATIENCE: u32 = 400_000_000;
const READ: u32 = 0;
const WRITE: u32 = 1;
/// Each in a page of its own, which the host has not read before.
const WRITTEN: u64 = 600;
const READ_ONCE: u64 = 1200;
const OLDER: u32 = 0x01d0_0000;
const NEWER: u32 = 0x0e30_0000;
const OTHER: u32 = 0x07e0_0000;

/// Waits for the host before each of its four steps, and says when each is begun or done.
pub fn check(machine: &Machine, verdict: &mut Verdict) {
    let Some((_msix, blk)) = blk::start(machine, verdict) else { return };
    told_to_go_on("ready");
    fill(OLDER);
    verdict.holds("late-older-write", is_done(&blk, WRITE, WRITTEN, "writing"));
    fill(NEWER);
    verdict.holds("late-newer-write", is_done(&blk, WRITE, WRITTEN, "writing again"));
    // A late read of the older request's memory finds neither.
    fill(OTHER);
    told_to_go_on("newer is written");
    fill(0);
    verdict.holds("late-read-back", is_done(&blk, READ, WRITTEN, "reading back"));
    verdict.equal("late-write", mismatches(NEWER), 0);
    fill(OLDER);
    verdict.holds("late-read-done", is_done(&blk, READ, READ_ONCE, "reading once"));
    fill(OTHER);
    told_to_go_on("memory is used again");
    verdict.equal("late-read", mismatches(OTHER), 0);
}

fn told_to_go_on(why: &str) {
    line(why);
    while received() != Some(b'g') {}
}

/// Does one request, and sees its interrupt.
fn is_done(blk: &VirtioBlk, kind: u32, sector: u64, name: &str) -> bool {
    let before = fired(VECTOR);
    blk.request(kind, sector);
    line(name);
    wait(PATIENCE, || virtqueue::idle() && fired(VECTOR) != before) && virtqueue::status() == 0
}

fn fill(word: u32) {
    (0..SECTOR / 4).for_each(|at| write32(virtqueue::sector_buffer() + u64::from(at) * 4, word + at));
}

fn mismatches(word: u32) -> u64 {
    let is_other = |at: &u32| read32(virtqueue::sector_buffer() + u64::from(*at) * 4) != word + at;
    (0..SECTOR / 4).filter(is_other).count() as u64
}
