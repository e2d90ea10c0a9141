//! The example device of the source tree (`devices/examples/copier.rs`): registers, DMA, and INTx, which is a level.

use crate::interrupts::{fired, wait};
use crate::ioapic;
use crate::machine::Machine;
use crate::memory::{Raw, map, read8, read32, read64, write8, write32, write64};
use crate::pci::{BUS_MASTER, Function, MEMORY};
use crate::verdict::Verdict;

const VENDOR: u16 = 0x1af4;
const DEVICE: u16 = 0x10f0;
const STATUS_REGISTER: u16 = 0x06;
const INTERRUPT_STATUS: u16 = 1 << 3;
const INTX_DISABLE: u16 = 1 << 10;
const INTERRUPT_LINE: u16 = 0x3c;

const SOURCE: u64 = 0x00;
const DESTINATION: u64 = 0x08;
const LENGTH: u64 = 0x10;
const START: u64 = 0x18;
const STATUS: u64 = 0x1c;
const SCRATCH: u64 = 0x20;
const DONE: u32 = 1;
const FAILED: u32 = 2;

/// Windows in which something that must come may come; what must not come gets fewer.
const PATIENCE: u32 = 200_000;
const QUIET: u32 = 2_000;
const VECTOR: u8 = 4;
const BYTES: u64 = 64;

static BUFFERS: Raw<[[u8; BYTES as usize]; 2]> = Raw::new([[0; BYTES as usize]; 2]);

pub fn check(machine: &Machine, verdict: &mut Verdict) {
    let found = machine.function(VENDOR, DEVICE).and_then(|function| Some((function, function.bar(0)?)));
    let Some((function, bar)) = found else {
        verdict.holds("copier-found", false);
        return;
    };
    let registers = bar.address();
    map(registers, bar.size);
    function.command(MEMORY | BUS_MASTER, 0);
    let pin = function.read8(INTERRUPT_LINE);
    ioapic::route(pin, VECTOR);

    write64(registers + SCRATCH, 0x1234_5678_9abc_def0);
    verdict.equal("copier-scratch", read64(registers + SCRATCH), 0x1234_5678_9abc_def0);
    verdict.equal("copier-scratch-byte", u64::from(read8(registers + SCRATCH + 3)), 0x9a);

    let (from, to) = (BUFFERS.address(), BUFFERS.address() + BYTES);
    (0..BYTES).for_each(|at| write8(from + at, at.to_le_bytes()[0] ^ 0x5a));
    let before = fired(VECTOR);
    start(registers, from, to, BYTES - 1);
    verdict.holds("copier-interrupt", wait(PATIENCE, || fired(VECTOR) != before));
    verdict.equal("copier-done", u64::from(read32(registers + STATUS)), u64::from(DONE));
    let copied = (0..BYTES - 1).all(|at| read8(to + at) == read8(from + at));
    verdict.holds("copier-copied", copied && read8(to + BYTES - 1) == 0);
    verdict.holds("copier-interrupts-until-lowered", wait(PATIENCE, || fired(VECTOR).wrapping_sub(before) > 2));
    lower(function, registers, "copier-lowered", verdict);

    // What is forbidden meanwhile comes when it is allowed again.
    function.command(INTX_DISABLE, 0);
    let before = fired(VECTOR);
    start(registers, u64::MAX - BYTES, to, BYTES);
    wait(QUIET, || false);
    verdict.equal("copier-forbidden", u64::from(fired(VECTOR)), u64::from(before));
    verdict.holds("copier-pending", pending(function));
    verdict.equal("copier-failed", u64::from(read32(registers + STATUS)), u64::from(FAILED));
    function.command(0, INTX_DISABLE);
    verdict.holds("copier-allowed-again", wait(PATIENCE, || fired(VECTOR) != before));
    lower(function, registers, "copier-lowered-again", verdict);
    ioapic::mask(pin);
}

fn start(registers: u64, from: u64, to: u64, length: u64) {
    write64(registers + SOURCE, from);
    write64(registers + DESTINATION, to);
    write64(registers + LENGTH, length);
    write32(registers + START, 1);
}

/// Lowers the pin; what was on its way may still arrive, and nothing after it.
fn lower(function: Function, registers: u64, name: &str, verdict: &mut Verdict) {
    write32(registers + STATUS, 0);
    let gone = !pending(function);
    wait(QUIET, || false);
    let after = fired(VECTOR);
    wait(QUIET, || false);
    verdict.holds(name, gone && fired(VECTOR) == after);
}

fn pending(function: Function) -> bool {
    function.read16(STATUS_REGISTER) & INTERRUPT_STATUS != 0
}
