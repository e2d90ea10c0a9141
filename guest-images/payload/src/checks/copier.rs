//! The example device of the source tree (`devices/examples/copier.rs`): registers, DMA, and INTx, which is a level.

use crate::interrupts::{fired, settle, wait};
use crate::ioapic;
use crate::machine::Machine;
use crate::memory::{Raw, map, read8, read32, read64, write8, write32, write64};
use crate::pci::{BUS_MASTER, Function, MEMORY};
use crate::serial::{decimal, line, received, text};
use crate::verdict::Verdict;

/// 1af4:10f0.
const ID: u32 = 0x10f0_1af4;
const STATUS_REGISTER: u16 = 0x06;
const INTERRUPT_STATUS: u16 = 1 << 3;
const INTX_DISABLE: u16 = 1 << 10;
const INTERRUPT_LINE: u16 = 0x3c;

const SOURCE: u64 = 0x00;
const DESTINATION: u64 = 0x08;
const START: u64 = 0x10;
const STATUS: u64 = 0x1c;
const SCRATCH: u64 = 0x20;
const DONE: u32 = 1;
const FAILED: u32 = 2;

/// Windows in which something that must come may come.
const PATIENCE: u32 = 200_000;
/// The same while processes come and go.
const LONG_PATIENCE: u32 = 60_000_000;
/// Windows for what must not come.
const QUIET: u32 = 20_000;
const VECTOR: u8 = 4;
const LENGTH: usize = 64;
const BYTES: u64 = LENGTH as u64;

static BUFFERS: Raw<[[u8; LENGTH]; 2]> = Raw::new([[0; LENGTH]; 2]);

pub fn check(machine: &Machine, verdict: &mut Verdict) {
    let Some(copier) = Copier::all(machine).next() else {
        verdict.holds("copier-found", false);
        return;
    };
    ioapic::route(copier.pin, VECTOR);
    let registers = copier.registers;
    write64(registers + SCRATCH, 0x1234_5678_9abc_def0);
    verdict.equal("copier-scratch", read64(registers + SCRATCH), 0x1234_5678_9abc_def0);
    verdict.equal("copier-scratch-byte", u64::from(read8(registers + SCRATCH + 3)), 0x9a);

    let (from, to) = (BUFFERS.address(), BUFFERS.address() + BYTES);
    (0..BYTES).for_each(|at| write8(from + at, at.to_le_bytes()[0] ^ 0x5a));
    let before = fired(VECTOR);
    copier.start(from, to, BYTES - 1);
    verdict.holds("copier-interrupt", wait(PATIENCE, || fired(VECTOR) != before));
    verdict.equal("copier-done", u64::from(read32(registers + STATUS)), u64::from(DONE));
    let copied = (0..BYTES - 1).all(|at| read8(to + at) == read8(from + at));
    verdict.holds("copier-copied", copied && read8(to + BYTES - 1) == 0);
    verdict.holds("copier-interrupts-until-lowered", wait(PATIENCE, || fired(VECTOR).wrapping_sub(before) > 2));
    verdict.holds("copier-not-quiet", !quiet());
    copier.lower();
    verdict.holds("copier-lowered", !copier.pending() && quiet());

    // A forbidden interrupt comes when it is allowed again.
    copier.function.command(INTX_DISABLE, 0);
    let before = fired(VECTOR);
    copier.start(u64::MAX - BYTES, to, BYTES);
    verdict.equal("copier-failed", u64::from(read32(registers + STATUS)), u64::from(FAILED));
    verdict.holds("copier-forbidden", copier.pending() && quiet() && fired(VECTOR) == before);
    copier.function.command(0, INTX_DISABLE);
    verdict.holds("copier-allowed-again", fires());
    copier.lower();
    verdict.holds("copier-lowered-again", !copier.pending() && quiet());
    ioapic::mask(copier.pin);
}

/// Copies blocks that differ, sees the interrupt of each, and keeps a number in a register, until a `q` comes by the console: whatever
/// happens to the process that serves the device meanwhile.
pub fn steady(machine: &Machine, verdict: &mut Verdict) {
    let Some(copier) = Copier::all(machine).next() else {
        verdict.holds("copier-found", false);
        return;
    };
    ioapic::route(copier.pin, VECTOR);
    line("ready");
    let registers = copier.registers;
    let (from, to) = (BUFFERS.address(), BUFFERS.address() + BYTES);
    let mut round = 0u64;
    while received() != Some(b'q') {
        round += 1;
        write64(registers + SCRATCH, round);
        (0..BYTES).for_each(|at| write8(from + at, (at ^ round).to_le_bytes()[0]));
        let before = fired(VECTOR);
        copier.start(from, to, BYTES);
        let interrupted = wait(LONG_PATIENCE, || fired(VECTOR) != before);
        let status = read32(registers + STATUS);
        let copied = (0..BYTES).all(|at| read8(to + at) == read8(from + at));
        copier.lower();
        if !interrupted || status != DONE || !copied || read64(registers + SCRATCH) != round {
            let found =
                [("interrupted ", interrupted.into()), (", status ", status.into()), (", copied ", copied.into())];
            for (name, value) in found.into_iter().chain([(", round ", round)]) {
                text(name);
                decimal(value);
            }
            line("");
            verdict.holds("copies", false);
            return;
        }
    }
    text("copies ");
    decimal(round);
    line("");
    verdict.holds("copies", true);
    ioapic::mask(copier.pin);
}

/// Two devices on one pin, which is raised as long as one of them raises it and is allowed to.
pub fn shared_pin(machine: &Machine, verdict: &mut Verdict) {
    let mut all = Copier::all(machine);
    let (Some(first), Some(second)) = (all.next(), all.next()) else {
        verdict.holds("shared-pin-two-devices", false);
        return;
    };
    verdict.equal("shared-pin", u64::from(first.pin), u64::from(second.pin));
    ioapic::route(first.pin, VECTOR);
    first.raise();
    verdict.holds("shared-pin-first", fires());
    second.raise();
    verdict.holds("shared-pin-both", fires());
    first.lower();
    verdict.holds("shared-pin-second", !first.pending() && second.pending() && fires());
    first.raise();
    first.function.command(INTX_DISABLE, 0);
    verdict.holds("shared-pin-first-forbidden", first.pending() && fires() && !quiet());
    second.lower();
    verdict.holds("shared-pin-second-lowered", first.pending() && quiet());
    first.function.command(0, INTX_DISABLE);
    verdict.holds("shared-pin-first-allowed", fires());
    first.lower();
    verdict.holds("shared-pin-none", quiet());
    ioapic::mask(first.pin);
}

struct Copier {
    function: Function,
    registers: u64,
    pin: u8,
}

impl Copier {
    fn all(machine: &Machine) -> impl Iterator<Item = Self> {
        machine.functions().filter(|function| function.id() == ID).filter_map(Self::new)
    }

    fn new(function: Function) -> Option<Self> {
        let bar = function.bar(0)?;
        map(bar.address(), bar.size);
        function.command(MEMORY | BUS_MASTER, 0);
        Some(Self { function, registers: bar.address(), pin: function.read8(INTERRUPT_LINE) })
    }

    fn start(&self, from: u64, to: u64, length: u64) {
        write64(self.registers + SOURCE, from);
        write64(self.registers + DESTINATION, to);
        write64(self.registers + START, length);
    }

    /// Copies nothing, which interrupts, and has done so.
    fn raise(&self) {
        self.start(BUFFERS.address(), BUFFERS.address(), 0);
        // A doorbell may be on its way until a register is read.
        read32(self.registers + STATUS);
    }

    fn lower(&self) {
        write32(self.registers + STATUS, 0);
    }

    fn pending(&self) -> bool {
        self.function.read16(STATUS_REGISTER) & INTERRUPT_STATUS != 0
    }
}

/// Whether interrupts arrive from now on, and not only one that was on its way.
fn fires() -> bool {
    let before = fired(VECTOR);
    wait(PATIENCE, || fired(VECTOR).wrapping_sub(before) > 2)
}

/// Whether no more arrive once those on their way have. Nothing but windows meanwhile: a KVM that interprets ring-0
/// code delivers interrupts late while it is kept busy.
fn quiet() -> bool {
    settle(QUIET);
    let before = fired(VECTOR);
    settle(QUIET);
    fired(VECTOR) == before
}
