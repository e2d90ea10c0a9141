//! A disk whose every block carries its address and a generation.

use super::super::hostile::instructions::{fill, first_difference};
use super::super::hostile::outcome::{Fault, Outcome, equal, holds};
use super::super::hostile::random::Random;
use super::super::hostile::target::{Target, VERSION_1};
use super::super::hostile::works::SECTOR;
use super::{BUFFERS, Load, enable, intact, mark, put, queue};
use crate::memory::{Raw, read8, read32, write8, write32};

/// Requests under way at once, each with blocks of its own: those with the same remainder.
const SLOTS: u16 = 8;
/// Blocks of each slot.
const BLOCKS: u64 = 32;
const ALL_BLOCKS: usize = 256;
const DESCRIPTORS: u16 = 3;
/// VIRTIO_BLK_F_FLUSH.
const FLUSH: u64 = 1 << 9;

/// A slot's buffers: header, status, what is written, what was read, and what must not be.
const PLACE: u64 = 0x1000;
const STATUS: u64 = 0x10;
const WRITTEN: u64 = 0x200;
const READ: u64 = 0x600;
const BEHIND: u64 = READ + SECTOR as u64;

static GENERATIONS: Raw<[u32; ALL_BLOCKS]> = Raw::new([0; ALL_BLOCKS]);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Idle,
    Write,
    Flush,
    Read,
}

/// The requests under way.
pub struct Disk {
    slots: [(Step, u64); SLOTS as usize],
    random: Random,
    flushes: bool,
}

fn generation(block: u64) -> u64 {
    GENERATIONS.address() + block * 4
}

/// A block's content: the same word all over, so that parts of two generations differ.
fn content(block: u64) -> u64 {
    block << 32 | u64::from(read32(generation(block)))
}

fn place(slot: u16) -> u64 {
    BUFFERS + u64::from(slot) * PLACE
}

impl Disk {
    /// Makes the slot's next request available, which comes after `before`.
    fn go_on(&mut self, target: &mut Target, slot: u16, before: Step) {
        let (at, index) = (place(slot), usize::from(slot));
        let (next, block) = match before {
            Step::Write if self.flushes && self.random.below(4) == 0 => (Step::Flush, self.slots[index].1),
            Step::Write | Step::Flush => (Step::Read, self.slots[index].1),
            Step::Idle | Step::Read => {
                let block = self.random.below(BLOCKS) * u64::from(SLOTS) + u64::from(slot);
                write32(generation(block), read32(generation(block)) + 1);
                fill(at + WRITTEN, u64::from(SECTOR) / 8, content(block));
                (Step::Write, block)
            }
        };
        self.slots[index] = (next, block);
        write8(at + STATUS, 0xff);
        mark(at + BEHIND);
        let (header, status) = ((at, 16, false), (at + STATUS, 1, true));
        let first = slot * DESCRIPTORS;
        match next {
            Step::Flush => {
                put(at, &[4, 0]);
                target.prepare(0, first, &[header, status]);
            }
            Step::Read => {
                fill(at + READ, u64::from(SECTOR) / 8, !0);
                put(at, &[0, block]);
                target.prepare(0, first, &[header, (at + READ, SECTOR, true), status]);
            }
            _ => {
                put(at, &[1, block]);
                target.prepare(0, first, &[header, (at + WRITTEN, SECTOR, false), status]);
            }
        }
    }

    /// Whether what the slot asked for is what the device did.
    fn verify(&self, slot: u16, length: u32) -> Outcome {
        let (at, (step, block)) = (place(slot), self.slots[usize::from(slot)]);
        equal("status of a request", read8(at + STATUS), 0u8)?;
        equal("length of a request", length, if step == Step::Read { SECTOR + 1 } else { 1 })?;
        if step == Step::Read {
            // The data that this slot wrote before, in a buffer untouched since.
            let wrong = first_difference(at + READ, at + WRITTEN, u64::from(SECTOR) / 8);
            let found = wrong.map_or(0, |word| crate::memory::read64(at + READ + word * 8));
            equal("content of a block", found, if wrong.is_some() { content(block) } else { 0 })?;
            intact(at + BEHIND)?;
        }
        Ok(())
    }

    fn under_way(&self) -> bool {
        self.slots.iter().any(|slot| slot.0 != Step::Idle)
    }
}

impl Load for Disk {
    fn start(target: &mut Target) -> Result<Self, Fault> {
        let flushes = target.offered() & FLUSH;
        target.negotiate(flushes | VERSION_1)?;
        enable(target, queue(0));
        target.ready();
        let random = Random::new(crate::second::ticks());
        let mut disk = Self { slots: [(Step::Idle, 0); SLOTS as usize], random, flushes: flushes != 0 };
        for slot in 0..SLOTS {
            disk.go_on(target, slot, Step::Idle);
        }
        target.queues[0].show();
        target.ring(0);
        Ok(disk)
    }

    fn step(&mut self, target: &mut Target, last: bool) -> Result<Option<u64>, Fault> {
        let (mut verified, mut more) = (0, false);
        while target.queues[0].unseen() > 0 {
            let used = target.queues[0].look();
            let slot = u16::try_from(used.head).unwrap_or(u16::MAX) / DESCRIPTORS;
            let known = slot < SLOTS && used.head == u32::from(slot * DESCRIPTORS);
            holds("a chain that was offered", known && self.slots[usize::from(slot)].0 != Step::Idle)?;
            self.verify(slot, used.length)?;
            let step = self.slots[usize::from(slot)].0;
            verified += u64::from(step == Step::Read);
            if last && step == Step::Read {
                self.slots[usize::from(slot)].0 = Step::Idle;
            } else {
                self.go_on(target, slot, step);
                more = true;
            }
        }
        if more {
            target.queues[0].show();
            target.ring(0);
        }
        Ok(self.under_way().then_some(verified))
    }

    /// Every block that was ever written holds its last generation.
    fn finish(&mut self, target: &mut Target) -> Outcome {
        let at = place(0);
        for block in (0..BLOCKS * u64::from(SLOTS)).filter(|&block| read32(generation(block)) > 0) {
            put(at, &[0, block]);
            fill(at + WRITTEN, u64::from(SECTOR) / 8, content(block));
            target.request(0, 0, &[(at, 16, false), (at + READ, SECTOR, true), (at + STATUS, 1, true)]);
            target.used(0)?;
            let wrong = first_difference(at + READ, at + WRITTEN, u64::from(SECTOR) / 8);
            equal("a block at the end", u64::from(wrong.is_some()) * (block + 1), 0u64)?;
        }
        Ok(())
    }

    fn is_late(&mut self, _target: &mut Target) -> Outcome {
        holds("an interrupt", false)
    }
}
