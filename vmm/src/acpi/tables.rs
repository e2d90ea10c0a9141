//! The tables with fixed fields: FADT, MADT and MCFG (ACPI 6.5, sections 5.2.9 and 5.2.12; PCI Firmware Specification 3.3,
//! section 4.1.2).

use acpi_tables::Aml;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;

use super::power::{PM1_CONTROL, PM1_CONTROL_SIZE, PM1_EVENT, PM1_EVENT_SIZE, RESET_REGISTER, RESET_VALUE};
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::machine::layout;

/// IAPC_BOOT_ARCH flags (ACPI 6.5, table 5.11): no VGA, no PCIe ASPM, no CMOS RTC; by their absence, no devices at ISA's legacy
/// addresses and no 8042 keyboard controller.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 4 | 1 << 5;

/// The FACS (ACPI 6.5, section 5.2.10), which a guest needs for its global lock and for waking up: nobody else takes the one,
/// and there is no sleep to wake up from.
pub(super) fn facs() -> [u8; 64] {
    let mut facs = [0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = 64;
    facs[32] = 2; // version
    facs
}

/// The FADT: a platform with the 8259s of a PC, whose FACS and DSDT are at these guest-physical addresses. It is not
/// a hardware-reduced one, for there Linux uses no PIC, and is left without interrupts by `noapic` and without a timer by
/// `nolapic`. It is always in ACPI mode, which is what no SMI command port means.
pub(super) fn fadt(facs: u64, dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_64(facs)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // Set means: no such fixed-hardware button.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(layout::POWER.start + RESET_REGISTER);
    fadt.reset_value = RESET_VALUE;
    fadt.sci_int = layout::SCI_GSI.into();
    (fadt.pm1a_evt_blk, fadt.pm1_evt_len) = (dword(layout::POWER.start + PM1_EVENT).into(), PM1_EVENT_SIZE);
    (fadt.pm1a_cnt_blk, fadt.pm1_cnt_len) = (dword(layout::POWER.start + PM1_CONTROL).into(), PM1_CONTROL_SIZE);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    fadt.finalize()
}

/// A register of one byte in I/O space.
fn port(address: u64) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address)
}

/// The MADT: `cpus` local APICs, numbered from 0, one I/O APIC for all GSIs, and a PC's two 8259s.
pub(super) fn madt(cpus: u8) -> Sdt {
    const HEADER_LENGTH: u32 = 36;
    const REVISION: u8 = 5;
    /// PCAT_COMPAT.
    const FLAGS: u32 = 1;
    let mut madt = Sdt::new(*b"APIC", HEADER_LENGTH, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append(dword(layout::LAPIC));
    madt.append(FLAGS);
    let mut controllers = Vec::new();
    for id in 0..cpus {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut controllers);
    }
    IoApic::new(0, dword(layout::IOAPIC), 0).to_aml_bytes(&mut controllers);
    madt.append_slice(&controllers);
    madt
}

/// The MCFG: ECAM of bus 0.
pub(super) fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, 0, 0);
    mcfg
}

fn dword(address: u64) -> u32 {
    u32::try_from(address).expect("our own fixed addresses are below 4 GiB")
}
