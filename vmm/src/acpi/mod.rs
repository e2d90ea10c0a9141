//! ACPI tables (ACPI 6.5), and the registers by which the guest powers off or resets. The tables describe the machine and
//! spare the guest the search for a PC's keyboard, clock and display.

mod dsdt;
pub(crate) mod power;
mod tables;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::machine::layout::{self, AddressRange};
use crate::machine::memory::GuestMemoryMmap;

pub use power::{KeyboardReset, PowerRegisters};

const OEM_ID: [u8; 6] = *b"OUTRIG";
const OEM_TABLE_ID: [u8; 8] = *b"OUTRIGGR";
const OEM_REVISION: u32 = 1;
/// Tables start on multiples of this.
const ALIGNMENT: u64 = 64;

/// Tables that cannot be put into guest memory.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They take more room than there is.
    #[error("the ACPI tables do not fit into {room} bytes")]
    TooLarge {
        /// Bytes there are.
        room: u64,
    },
    /// There is no memory where they should be.
    #[error("cannot write an ACPI table to guest address {address:#x}")]
    Write {
        /// Guest-physical address.
        address: u64,
        /// Why not.
        #[source]
        source: GuestMemoryError,
    },
}

/// The machine's properties for the tables; the rest is in [`layout`].
#[derive(Debug, Clone, Copy)]
pub struct Platform {
    /// vCPUs; their APIC ids count from 0.
    pub cpus: u8,
    /// The 64-bit PCI memory window.
    pub pci_memory_64: AddressRange,
}

impl Platform {
    /// Write the tables to [`layout::ACPI_TABLES`]; returns the guest-physical address of the RSDP.
    ///
    /// # Errors
    /// If they don't fit, or guest memory ends before.
    pub fn write_tables(&self, memory: &GuestMemoryMmap) -> Result<u64, AcpiError> {
        // The RSDP has to be first, where guests without a hint from the loader find it; what it points to is written before.
        let mut writer = Writer { memory, next: layout::ACPI_TABLES.start + ALIGNMENT };
        let dsdt = writer.write(&dsdt::dsdt(self.pci_memory_64))?;
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        let facs = writer.write_bytes(&tables::facs())?;
        xsdt.add_entry(writer.write(&tables::fadt(facs, dsdt))?);
        xsdt.add_entry(writer.write(&tables::madt(self.cpus))?);
        xsdt.add_entry(writer.write(&tables::mcfg())?);
        let xsdt = writer.write(&xsdt)?;
        Writer { memory, next: layout::ACPI_TABLES.start }.write(&Rsdp::new(OEM_ID, xsdt))
    }
}

/// Puts tables into guest memory one after the other.
struct Writer<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl Writer<'_> {
    fn write(&mut self, table: &dyn Aml) -> Result<u64, AcpiError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.write_bytes(&bytes)
    }

    fn write_bytes(&mut self, bytes: &[u8]) -> Result<u64, AcpiError> {
        let address = self.next;
        if !layout::ACPI_TABLES.contains(address, bytes.len() as u64) {
            return Err(AcpiError::TooLarge { room: layout::ACPI_TABLES.size() });
        }
        self.memory.write_slice(bytes, GuestAddress(address)).map_err(|source| AcpiError::Write { address, source })?;
        self.next = (address + bytes.len() as u64).next_multiple_of(ALIGNMENT);
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::GuestRam;

    fn u32_at(table: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(table[offset..offset + 4].try_into().unwrap())
    }

    fn u64_at(table: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(table[offset..offset + 8].try_into().unwrap())
    }

    fn read(ram: &GuestRam, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        ram.mmap().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The table at `address`, its checksum verified.
    fn table(ram: &GuestRam, address: u64) -> Vec<u8> {
        let length = u32_at(&read(ram, address, 8), 4);
        let table = read(ram, address, length as usize);
        assert_eq!(sum(&table), 0, "checksum of {:?}", String::from_utf8_lossy(&table[..4]));
        table
    }

    fn written(cpus: u8) -> (GuestRam, u64) {
        let ram = GuestRam::new(4 << 20, false).unwrap();
        let platform = Platform { cpus, pci_memory_64: AddressRange::new(4 << 30, 1 << 40) };
        let rsdp = platform.write_tables(ram.mmap()).unwrap();
        (ram, rsdp)
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_has_a_valid_checksum() {
        let (ram, address) = written(64);
        assert_eq!(address, 0xE_0000);
        let rsdp = read(&ram, address, 36);
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp)), (b"RSD PTR ".as_slice(), 0, 0));
        let xsdt = table(&ram, u64_at(&rsdp, 24));
        let tables: Vec<_> = (36..xsdt.len()).step_by(8).map(|offset| table(&ram, u64_at(&xsdt, offset))).collect();
        let names: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
        let dsdt = table(&ram, u64_at(&tables[0], 140));
        assert_eq!(&dsdt[..4], b"DSDT");
    }

    #[test]
    fn the_fadt_has_power_registers_and_no_legacy_devices() {
        let (ram, address) = written(1);
        let xsdt = table(&ram, u64_at(&read(&ram, address, 36), 24));
        let fadt = table(&ram, u64_at(&xsdt, 36));
        let flags = u32_at(&fadt, 112);
        // Linux uses no PIC on a hardware-reduced platform.
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 10, "RESET_REG_SUP without HW_REDUCED_ACPI");
        // VGA not present, no ASPM, no CMOS RTC; neither legacy devices nor an 8042.
        assert_eq!(fadt[109], 0b11_0100);
        assert_eq!((fadt[116], u64_at(&fadt, 120), fadt[128]), (1, 0x606, 1), "reset register");
        assert_eq!((fadt[46], u32_at(&fadt, 48)), (9, 0), "SCI, no SMI command port");
        assert_eq!((u32_at(&fadt, 56), fadt[88]), (0x600, 4), "PM1a event block");
        assert_eq!((u32_at(&fadt, 64), fadt[89]), (0x604, 2), "PM1a control block");
        let facs = read(&ram, u64_at(&fadt, 132), 8);
        assert_eq!((&facs[..4], u32_at(&facs, 4), u64_at(&fadt, 132) % 64), (b"FACS".as_slice(), 64, 0));
    }

    #[test]
    fn the_madt_lists_each_vcpu_and_the_ioapic() {
        let (ram, address) = written(3);
        let xsdt = table(&ram, u64_at(&read(&ram, address, 36), 24));
        let madt = table(&ram, u64_at(&xsdt, 44));
        assert_eq!(u32_at(&madt, 36), 0xFEE0_0000);
        assert_eq!(u32_at(&madt, 40), 1, "8259 interrupt controllers");
        let mut kinds = Vec::new();
        let mut rest = &madt[44..];
        while let [kind, length, ..] = *rest {
            if kind == 0 {
                assert_eq!(rest[2..8], [rest[2], rest[2], 1, 0, 0, 0], "enabled, uid = APIC id");
            }
            kinds.push((kind, rest[2]));
            rest = &rest[usize::from(length)..];
        }
        assert_eq!(kinds, [(0, 0), (0, 1), (0, 2), (1, 0)]);
    }

    #[test]
    fn memory_that_ends_too_early_is_an_error() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let platform = Platform { cpus: 1, pci_memory_64: AddressRange::new(4 << 30, 1 << 40) };
        assert!(matches!(platform.write_tables(&memory), Err(AcpiError::Write { .. })));
    }
}
