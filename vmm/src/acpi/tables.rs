//! The tables with fixed fields: FADT, MADT and MCFG (ACPI 6.5, sections 5.2.9 and 5.2.12; PCI Firmware Specification 3.3,
//! section 4.1.2).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;

use super::power::{RESET_REGISTER, RESET_VALUE, SLEEP_CONTROL_REGISTER, SLEEP_STATUS_REGISTER};
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;

/// IAPC_BOOT_ARCH flags (ACPI 6.5, table 5.11): no VGA, no PCIe ASPM, no CMOS RTC; by their absence, no devices at ISA's legacy
/// addresses and no 8042 keyboard controller.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 4 | 1 << 5;

/// The FADT: a hardware-reduced platform whose DSDT is at the guest-physical address `dsdt`.
pub(super) fn fadt(dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // Set means: no such fixed-hardware button.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(layout::POWER.start + RESET_REGISTER);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(layout::POWER.start + SLEEP_CONTROL_REGISTER);
    fadt.sleep_status_reg = port(layout::POWER.start + SLEEP_STATUS_REGISTER);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    fadt.finalize()
}

/// A register of one byte in I/O space.
fn port(address: u64) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address)
}

/// The MADT: `cpus` local APICs, numbered from 0, and one I/O APIC for all GSIs.
pub(super) fn madt(cpus: u8) -> MADT {
    let address = u32::try_from(layout::LAPIC).expect("below 4 GiB");
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(address));
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    let address = u32::try_from(layout::IOAPIC).expect("below 4 GiB");
    madt.add_structure(IoApic::new(0, address, 0));
    madt
}

/// The MCFG: ECAM of bus 0.
pub(super) fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, 0, 0);
    mcfg
}
