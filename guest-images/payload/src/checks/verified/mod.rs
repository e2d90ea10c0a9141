//! Loads that notice when a device does anything but what it was asked to, for hosts that kill device processes meanwhile. They run until
//! the console says that it is enough, and go on only by interrupts, so that a lost one is noticed as well.

mod card;
mod disk;

use super::hostile::outcome::{Fault, Outcome, equal, holds};
use super::hostile::queue::Queue;
use super::hostile::target::{Kind, QUEUE_INTERRUPT, Target};
use crate::interrupts::{fired, window};
use crate::machine::Machine;
use crate::memory::{read8, write32, write64};
use crate::second::ticks;
use crate::serial::{decimal, hex, line, received, text};
use crate::verdict::Verdict;
use crate::virtio::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, VENDOR};

/// Entries of the queues here.
const SIZE: u16 = 32;
/// Free RAM that the arena does not use: a page for each queue, then buffers.
const QUEUES: u64 = 0x0280_0000;
const BUFFERS: u64 = QUEUES + 0x1_0000;
/// Ticks of the time-stamp counter, some twenty seconds: longer than a restart may take.
const PATIENCE: u64 = 60_000_000_000;
/// Steps between two looks at registers, and between two resets of the device.
const LOOK: u64 = 16;
const RESET: u64 = 512;

/// One kind of load, on a device that is ready.
trait Load: Sized {
    /// Resets the device and starts its queues.
    fn start(target: &mut Target) -> Result<Self, Fault>;

    /// Takes what the device has used, and asks for more, unless it is `last`. Returns how much was verified; none: nothing is under
    /// way any more.
    fn step(&mut self, target: &mut Target, last: bool) -> Result<Option<u64>, Fault>;

    /// Checks at the end of all.
    fn finish(&mut self, target: &mut Target) -> Outcome;

    /// An interrupt has not come for [`PATIENCE`]; whether that may be.
    fn is_late(&mut self, target: &mut Target) -> Outcome;
}

/// The first disk: each block of its first 256 carries its address and a generation, is written, read back and compared; eight requests
/// are under way at once.
pub fn disk(machine: &Machine, verdict: &mut Verdict) {
    run::<disk::Disk>(machine, Kind::Disk, crate::virtio::BLOCK, verdict);
}

/// The first card: asks the host for its address again and again, and compares each packet that comes.
pub fn card(machine: &Machine, verdict: &mut Verdict) {
    run::<card::Card>(machine, Kind::Card, crate::virtio::NETWORK, verdict);
}

fn run<L: Load>(machine: &Machine, kind: Kind, device: u16, verdict: &mut Verdict) {
    let found = machine.function(VENDOR, device).and_then(|function| Target::new(function, kind));
    let Some(mut target) = found else {
        verdict.holds("verified-device-found", false);
        return;
    };
    let mut done = 0;
    match verify::<L>(&mut target, &mut done) {
        Ok(()) => _ = verdict.holds("verified", true),
        Err(fault) => {
            text("FAIL verified: ");
            text(fault.what);
            text(": got ");
            hex(fault.got, 16);
            text(", wanted ");
            hex(fault.wanted, 16);
            line("");
            verdict.fail();
        }
    }
    text("verified ");
    decimal(done);
    line("");
}

fn verify<L: Load>(target: &mut Target, done: &mut u64) -> Outcome {
    let mut load = L::start(target)?;
    line("ready");
    let (mut steps, mut last, mut resets) = (0u64, false, false);
    let config = read8(target.config);
    loop {
        steps += 1;
        last |= received().is_some();
        resets |= steps.is_multiple_of(RESET);
        if steps.is_multiple_of(LOOK) {
            let running = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
            equal("status", target.status(), running)?;
            equal("vendor", target.function.id() & 0xffff, u32::from(VENDOR))?;
            equal("configuration", read8(target.config), config)?;
        }
        let before = fired(QUEUE_INTERRUPT);
        match load.step(target, last || resets)? {
            Some(verified) => *done += verified,
            None if last => return load.finish(target),
            None => {
                resets = false;
                load = L::start(target)?;
            }
        }
        if !waited(before) {
            load.is_late(target)?;
        }
    }
}

/// Whether an interrupt came after `before` were counted.
fn waited(before: u32) -> bool {
    let start = ticks();
    while fired(QUEUE_INTERRUPT) == before {
        if ticks().saturating_sub(start) > PATIENCE {
            return false;
        }
        window();
    }
    true
}

/// An empty queue in memory of its own.
fn queue(index: u16) -> Queue {
    let place = QUEUES + u64::from(index) * 0x1000;
    super::hostile::instructions::fill(place, 0x1000 / 8, 0);
    Queue { index, size: SIZE, descriptors: place, available: place + 0x400, used: place + 0x800, offered: 0, seen: 0 }
}

/// Enables `queue` on a device that has agreed on features.
fn enable(target: &mut Target, queue: Queue) {
    target.program(queue);
    target.enable();
}

/// Writes words of 64 bits.
fn put(address: u64, words: &[u64]) {
    (address..).step_by(8).zip(words).for_each(|(at, &word)| write64(at, word));
}

/// Whether the memory behind a buffer still holds what [`mark`] wrote.
fn intact(canary: u64) -> Outcome {
    holds("memory behind a buffer is untouched", crate::memory::read32(canary) == CANARY)
}

/// Marks the memory behind a buffer.
fn mark(canary: u64) {
    write32(canary, CANARY);
}

const CANARY: u32 = 0x5a5a_a5a5;
