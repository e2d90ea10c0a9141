//! ACPI tables, as far as the payload needs them (ACPI 6.5, section 5.2): where ECAM is, how many processors there are, and the
//! registers for power-off and reset.

use crate::memory::{map, read8, read16, read32, read64};

const REVISION: u64 = 15;
const RSDT: u64 = 16;
const XSDT: u64 = 24;
const HEADER: u64 = 36;
const HARDWARE_REDUCED: u32 = 1 << 20;
const RESET_SUPPORTED: u32 = 1 << 10;
const LARGEST_TABLE: u64 = 64 << 10;

/// One processor entry in the MADT.
const LOCAL_APIC: u8 = 0;
const LOCAL_X2APIC: u8 = 9;

/// An I/O port or memory register (generic address structure, 5.2.3.2).
#[derive(Clone, Copy)]
pub struct Register {
    /// Whether the address is an I/O port.
    pub port: bool,
    /// Port number or physical address.
    pub address: u64,
}

/// Facts found in the tables.
#[derive(Default)]
pub struct Tables {
    /// Physical address of ECAM for segment 0 and its first and last bus (PCI Firmware 3.3, 4.1.2).
    pub ecam: Option<(u64, u8, u8)>,
    /// Processors that the MADT calls enabled.
    pub processors: u32,
    /// Sleep control register of hardware-reduced ACPI (4.8.3.7).
    pub sleep_control: Option<Register>,
    /// PM1a control register of other machines (4.8.3.2.1).
    pub pm1a_control: Option<Register>,
    /// Reset register and the value to write (4.8.3.6).
    pub reset: Option<(Register, u8)>,
    /// Whether every table's bytes add up to 0.
    pub checksums: bool,
}

/// Walks from the root pointer through the XSDT.
pub fn walk(root_pointer: u64) -> Tables {
    let mut tables = Tables { checksums: true, ..Tables::default() };
    // QEMU's firmware still gives a revision 0 root pointer, which has 32-bit addresses only.
    let wide = read8(root_pointer + REVISION) >= 2;
    let (list, entry_size) =
        if wide { (read64(root_pointer + XSDT), 8) } else { (u64::from(read32(root_pointer + RSDT)), 4) };
    tables.checksums &= sums_to_zero(root_pointer, if wide { 36 } else { 20 });
    let end = list + table_length(list);
    let mut entry = list + HEADER;
    while entry < end {
        let table = if wide { read64(entry) } else { u64::from(read32(entry)) };
        let length = table_length(table);
        match &read32(table).to_le_bytes() {
            b"MCFG" if length >= HEADER + 24 => {
                let first = table + HEADER + 8;
                tables.ecam = Some((read64(first), read8(first + 10), read8(first + 11)));
                tables.checksums &= sums_to_zero(table, length);
            }
            b"FACP" => {
                fixed_table(table, length, &mut tables);
                tables.checksums &= sums_to_zero(table, length);
            }
            b"APIC" => {
                tables.processors = processors(table, length);
                tables.checksums &= sums_to_zero(table, length);
            }
            _ => {}
        }
        entry += entry_size;
    }
    tables
}

fn table_length(table: u64) -> u64 {
    map(table, 8);
    let length = u64::from(read32(table + 4)).min(LARGEST_TABLE);
    map(table, length);
    length
}

fn fixed_table(table: u64, length: u64, tables: &mut Tables) {
    let flags = read32(table + 112);
    if flags & RESET_SUPPORTED != 0 && length >= 129 {
        tables.reset = register(table + 116).map(|register| (register, read8(table + 128)));
    }
    if flags & HARDWARE_REDUCED == 0 {
        tables.pm1a_control = Some(Register { port: true, address: u64::from(read32(table + 64)) });
    } else if length >= 256 {
        tables.sleep_control = register(table + 244);
    }
}

fn register(at: u64) -> Option<Register> {
    let address = read64(at + 4);
    (address != 0).then(|| Register { port: read8(at) == 1, address })
}

fn processors(table: u64, length: u64) -> u32 {
    let mut at = table + HEADER + 8;
    let mut count = 0;
    while at + 2 <= table + length {
        match read8(at) {
            LOCAL_APIC => count += read32(at + 4) & 1,
            LOCAL_X2APIC => count += read32(at + 8) & 1,
            _ => {}
        }
        at += u64::from(read8(at + 1)).max(2);
    }
    count
}

fn sums_to_zero(table: u64, length: u64) -> bool {
    let sum = (0..length / 2).fold(0u8, |sum, at| {
        let [low, high] = read16(table + at * 2).to_le_bytes();
        sum.wrapping_add(low).wrapping_add(high)
    });
    let last = if length % 2 == 1 { read8(table + length - 1) } else { 0 };
    sum.wrapping_add(last) == 0
}
