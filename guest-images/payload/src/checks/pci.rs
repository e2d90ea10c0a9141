//! Configuration space reads the same by ECAM and by ports 0xcf8 and 0xcfc.

use crate::machine::{MOST_FUNCTIONS, Machine};
use crate::pci::{BAR0, CAPABILITIES, COMMAND, Cf8, Function, ID, MEMORY, NOTHING};
use crate::serial::{decimal, hex, line, text};
use crate::verdict::Verdict;
use crate::{memory, port};

const CLASS: u16 = 0x08;
const INTERRUPT_LINE: u16 = 0x3c;
const ABSENT_DEVICE: u8 = 30;

pub fn check(machine: &Machine, verdict: &mut Verdict) {
    verdict.holds("acpi-checksums", machine.tables.checksums);
    text("processors ");
    decimal(u64::from(machine.tables.processors));
    line("");
    if !verdict.holds("pci-ecam-table", machine.tables.ecam.is_some()) {
        return;
    }
    machine.functions().for_each(print);

    let mut by_port = [None; MOST_FUNCTIONS];
    Cf8::scan(|index, function| {
        if let Some(slot) = by_port.get_mut(index) {
            *slot = Some(function);
        }
    });
    let by_port = || by_port.iter().map_while(|function| *function);
    verdict.equal("pci-same-count", by_port().count() as u64, machine.functions().count() as u64);
    verdict.holds(
        "pci-host-bridge",
        machine.functions().next().is_some_and(|first| (first.device, first.function) == (0, 0)),
    );
    for (ecam, port) in machine.functions().zip(by_port()) {
        let same = (ecam.device, ecam.function) == (port.device, port.function);
        let registers = [ID, COMMAND, CLASS, 0x0c, BAR0, CAPABILITIES, INTERRUPT_LINE];
        let same = same && registers.iter().all(|&register| ecam.read32(register) == port.read32(register));
        verdict.holds("pci-same-registers", same);
    }
    if let Some((ecam, port)) = machine.functions().zip(by_port()).last() {
        narrow(ecam, port, verdict);
        interrupt_line(ecam, port, verdict);
    }
    absent(machine, verdict);
}

/// Bytes and words agree with the double word that holds them, by both paths.
fn narrow(ecam: Function, port: Cf8, verdict: &mut Verdict) {
    let [b0, b1, b2, b3] = ecam.read32(ID).to_le_bytes();
    let bytes = [b0, b1, b2, b3];
    verdict.holds("pci-ecam-bytes", (0u16..4).zip(bytes).all(|(at, byte)| ecam.read8(ID + at) == byte));
    verdict.holds("pci-cf8-bytes", (0u16..4).zip(bytes).all(|(at, byte)| port.read8(ID + at) == byte));
    let words = [u16::from_le_bytes([b0, b1]), u16::from_le_bytes([b2, b3])];
    verdict.holds("pci-ecam-words", ecam.read16(ID) == words[0] && ecam.read16(ID + 2) == words[1]);
    verdict.holds("pci-cf8-words", port.read16(ID) == words[0] && port.read16(ID + 2) == words[1]);
}

/// A value written by one path is read by the other.
fn interrupt_line(ecam: Function, port: Cf8, verdict: &mut Verdict) {
    let before = ecam.read16(COMMAND);
    port.write16(COMMAND, before & !MEMORY);
    verdict.equal("pci-cf8-write-seen-by-ecam", u64::from(ecam.read16(COMMAND) & MEMORY), 0);
    ecam.write16(COMMAND, before);
    verdict.equal("pci-ecam-write-seen-by-cf8", u64::from(port.read16(COMMAND)), u64::from(before));
}

/// Where no function is, reads give all ones and writes vanish.
fn absent(machine: &Machine, verdict: &mut Verdict) {
    if machine.functions().any(|function| function.device == ABSENT_DEVICE) {
        return;
    }
    let Some((base, _, _)) = machine.tables.ecam else { return };
    let config = base + (u64::from(ABSENT_DEVICE) << 15);
    memory::write32(config + u64::from(BAR0), 0);
    verdict.equal("pci-ecam-absent", u64::from(memory::read32(config + u64::from(BAR0))), u64::from(NOTHING));
    let absent = Cf8 { device: ABSENT_DEVICE, function: 0 };
    verdict.equal("pci-cf8-absent", u64::from(absent.read32(BAR0)), u64::from(NOTHING));
    Cf8::disable();
    verdict.equal("pci-cf8-disabled", u64::from(port::read32(0xcfc)), u64::from(NOTHING));
}

fn print(function: Function) {
    text("pci 00:");
    hex(u64::from(function.device), 2);
    text(".");
    decimal(u64::from(function.function));
    text(" ");
    hex(u64::from(function.read16(ID)), 4);
    text(":");
    hex(u64::from(function.read16(ID + 2)), 4);
    for bar in function.bars() {
        text(" bar");
        decimal(u64::from(bar.index));
        text(if bar.io { " port 0x" } else { " 0x" });
        hex(bar.address(), 1);
        text("+0x");
        hex(bar.size, 1);
    }
    line("");
}
