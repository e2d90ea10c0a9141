//! QEMU's teaching device (QEMU, docs/specs/edu.rst), given to the guest as a physical device: registers, DMA both ways, and
//! its interrupt by pin and by message.

use crate::apic;
use crate::interrupts::{FIRST_VECTOR, fired, settle, wait};
use crate::ioapic;
use crate::machine::Machine;
use crate::memory::{Raw, map, read8, read32, read64, write8, write32, write64};
use crate::pci::{BUS_MASTER, Bar, Function, MEMORY, MSI, NOTHING};
use crate::serial::line;
use crate::verdict::Verdict;

const VENDOR: u16 = 0x1234;
const DEVICE: u16 = 0x11e8;
const INTERRUPT_LINE: u16 = 0x3c;

const IDENTITY: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const INTERRUPTS: u64 = 0x24;
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;
const DMA_FROM: u64 = 0x80;
const DMA_TO: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
/// Where DMA finds the device's own memory.
pub(super) const OWN_MEMORY: u64 = 0x4_0000;
pub(super) const START: u64 = 1;
pub(super) const TO_RAM: u64 = 2;
const AND_INTERRUPT: u64 = 4;
const DMA_DONE: u32 = 0x100;

/// Offsets in the MSI capability and bits of its control (PCI Local Bus 3.0, section 6.8.1).
const CONTROL: u16 = 2;
const ENABLE: u16 = 1;
const WIDE: u16 = 1 << 7;

/// Windows in which something that must come may come, after a tenth of a second where it is DMA.
const PATIENCE: u32 = 20_000_000;
/// Windows for what must not come.
const QUIET: u32 = 50_000;
/// So often it may come all the same.
const ROUNDS_UNTIL_QUIET: u32 = 100;
const PIN_VECTOR: u8 = 4;
const MESSAGE_VECTOR: u8 = 5;
pub(super) const BYTES: u64 = 512;

pub(super) static BUFFERS: Raw<[[u8; BYTES as usize]; 2]> = Raw::new([[0; BYTES as usize]; 2]);

pub(super) struct Edu {
    function: Function,
    pub(super) bar: Bar,
    registers: u64,
}

/// By the interrupt pin, and DMA.
pub fn by_pin(machine: &Machine, verdict: &mut Verdict) {
    let Some(edu) = Edu::find(machine, verdict) else { return };
    let pin = edu.function.read8(INTERRUPT_LINE);
    ioapic::route(pin, PIN_VECTOR);
    // Each time the pin has to be unmasked by the guest's end of the interrupt, or the next one never comes.
    for value in 1..=3 {
        let before = fired(PIN_VECTOR);
        edu.raise(value);
        verdict.holds("edu-pin-interrupts", wait(PATIENCE, || fired(PIN_VECTOR) != before));
        verdict.equal("edu-pin-status", u64::from(edu.read(INTERRUPTS)), u64::from(value));
        // A level stays until it is acknowledged.
        let more = wait(PATIENCE, || fired(PIN_VECTOR).wrapping_sub(before) > 2);
        verdict.holds("edu-pin-interrupts-until-acknowledged", more);
        edu.acknowledge(value);
        verdict.holds("edu-pin-acknowledged", is_quiet(PIN_VECTOR) && edu.read(INTERRUPTS) == 0);
    }
    edu.copy_both_ways(PIN_VECTOR, verdict);
    ioapic::mask(pin);
}

/// By message, and DMA.
pub fn by_message(machine: &Machine, verdict: &mut Verdict) {
    let Some(edu) = Edu::find(machine, verdict) else { return };
    let Some(capability) = edu.function.capabilities(MSI).next() else {
        verdict.holds("edu-msi-capability", false);
        return;
    };
    let control = edu.function.read16(capability + CONTROL);
    edu.function.write32(capability + 4, 0xfee0_0000 | u32::from(apic::id()) << 12);
    let data = if control & WIDE == 0 { capability + 8 } else { capability + 12 };
    if control & WIDE != 0 {
        edu.function.write32(capability + 8, 0);
    }
    edu.function.write16(data, u16::from(FIRST_VECTOR + MESSAGE_VECTOR));
    edu.function.write16(capability + CONTROL, control | ENABLE);
    for value in 1..=3 {
        let before = fired(MESSAGE_VECTOR);
        edu.raise(value);
        verdict.holds("edu-message-interrupts", wait(PATIENCE, || fired(MESSAGE_VECTOR) != before));
        settle(QUIET);
        verdict.equal("edu-message-once", u64::from(fired(MESSAGE_VECTOR).wrapping_sub(before)), 1);
        edu.acknowledge(value);
    }
    edu.copy_both_ways(MESSAGE_VECTOR, verdict);
    edu.function.write16(capability + CONTROL, control & !ENABLE);
}

/// Copies both ways until nothing answers any more: the device's process was killed.
pub fn steady(machine: &Machine, verdict: &mut Verdict) {
    let Some(edu) = Edu::find(machine, verdict) else { return };
    // The transfers of a guest before this one end by themselves.
    verdict.holds("edu-idle", edu.is_idle());
    let (from, to) = (BUFFERS.address(), BUFFERS.address() + BYTES);
    for round in (0..=u8::MAX).cycle() {
        (0..BYTES).for_each(|at| write8(from + at, (at as u8) ^ round));
        edu.begin(from, OWN_MEMORY, START);
        let is_out = edu.is_idle();
        edu.begin(OWN_MEMORY, to, START | TO_RAM);
        let is_back = edu.is_idle();
        if edu.read(IDENTITY) == NOTHING {
            verdict.holds("edu-lost", true);
            return;
        }
        let is_equal = (0..BYTES).all(|at| read8(to + at) == (at as u8) ^ round);
        if !is_out || !is_back || !is_equal {
            verdict.holds("edu-copies", false);
            return;
        }
        if round == 0 {
            line("ready");
        }
    }
}

/// Whether no more interrupts come. One that the host has begun to raise before the device was told to stop may still come, on a busy
/// host late.
fn is_quiet(vector: u8) -> bool {
    let mut seen = fired(vector);
    (0..ROUNDS_UNTIL_QUIET).any(|_| {
        settle(QUIET);
        let before = core::mem::replace(&mut seen, fired(vector));
        before == seen
    })
}

impl Edu {
    pub(super) fn find(machine: &Machine, verdict: &mut Verdict) -> Option<Self> {
        let found = machine.function(VENDOR, DEVICE).and_then(|function| Some((function, function.bar(0)?)));
        verdict.holds("edu-found", found.is_some());
        let (function, bar) = found?;
        map(bar.address(), bar.size);
        function.command(MEMORY | BUS_MASTER, 0);
        let edu = Self { function, bar, registers: bar.address() };
        verdict.equal("edu-identity", u64::from(edu.read(IDENTITY) & 0xffff), 0x00ed);
        edu.write(LIVENESS, 0x1234_5678);
        verdict.equal("edu-answers", u64::from(edu.read(LIVENESS)), u64::from(!0x1234_5678u32));
        Some(edu)
    }

    /// Moves its registers.
    pub(super) fn move_to(&mut self, address: u64) {
        self.bar.move_to(address);
        self.registers = address;
    }

    /// Copies RAM to the device and back to another place.
    fn copy_both_ways(&self, vector: u8, verdict: &mut Verdict) {
        let (from, to) = (BUFFERS.address(), BUFFERS.address() + BYTES);
        let pattern = |at: u64| (at as u8).wrapping_mul(7) ^ vector;
        (0..BYTES).for_each(|at| {
            write8(from + at, pattern(at));
            write8(to + at, 0);
        });
        self.copy(from, OWN_MEMORY, 0, vector, verdict);
        self.copy(OWN_MEMORY, to, TO_RAM, vector, verdict);
        verdict.holds("edu-dma-copied", (0..BYTES).all(|at| read8(to + at) == pattern(at)));
    }

    fn copy(&self, from: u64, to: u64, direction: u64, vector: u8, verdict: &mut Verdict) {
        let before = fired(vector);
        self.begin(from, to, START | direction | AND_INTERRUPT);
        verdict.holds("edu-dma-interrupts", wait(PATIENCE, || fired(vector) != before));
        verdict.equal("edu-dma-status", u64::from(self.read(INTERRUPTS)), u64::from(DMA_DONE));
        verdict.equal("edu-dma-ended", read64(self.registers + DMA_COMMAND) & START, 0);
        self.acknowledge(DMA_DONE);
        verdict.holds("edu-dma-acknowledged", is_quiet(vector));
    }

    fn begin(&self, from: u64, to: u64, command: u64) {
        write64(self.registers + DMA_FROM, from);
        write64(self.registers + DMA_TO, to);
        write64(self.registers + DMA_COUNT, BYTES);
        write64(self.registers + DMA_COMMAND, command);
    }

    /// Copies, and waits until that has ended.
    pub(super) fn copies(&self, from: u64, to: u64, command: u64) -> bool {
        self.begin(from, to, command);
        self.is_idle()
    }

    /// Waits until DMA has ended, or nothing answers.
    fn is_idle(&self) -> bool {
        wait(
            PATIENCE,
            || matches!(read64(self.registers + DMA_COMMAND), command if command & START == 0 || command == u64::MAX),
        )
    }

    fn raise(&self, value: u32) {
        self.write(RAISE, value);
    }

    fn acknowledge(&self, value: u32) {
        self.write(ACKNOWLEDGE, value);
    }

    fn read(&self, register: u64) -> u32 {
        read32(self.registers + register)
    }

    fn write(&self, register: u64, value: u32) {
        write32(self.registers + register, value);
    }
}
