//! The DSDT: devices that a guest cannot discover by itself, in AML: the PCI host bridge with its windows and interrupt wiring,
//! the serial port, and the soft-off state.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If, Interrupt,
    Memory32Fixed, Method, Name, ONE, Or, Package, PackageBuilder, Path, ResourceTemplate, Return, Scope, Uuid, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::power::SLEEP_TYPE_S5;
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::machine::layout::{self, AddressRange};

/// Length of a table that has nothing but its header.
const HEADER_LENGTH: u32 = 36;
/// From revision 2 on, integers have 64 bits.
const REVISION: u8 = 2;

/// "PCI Host Bridge Device" (PCI Firmware Specification 3.3, section 4.5.1 "_OSC Interface for PCI Host Bridge Devices").
const OSC_UUID: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
/// _OSC's answer in the first dword: the UUID is not known.
const OSC_UNRECOGNIZED_UUID: u8 = 1 << 2;
/// Features that the guest may control natively: PCIe hot plug, PME, AER, the PCIe capability structure, LTR. Not SHPC,
/// which needs hardware that isn't there.
const OSC_CONTROL: u8 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5;

/// The whole table. `pci_memory_64` is the 64-bit PCI memory window.
pub(super) fn dsdt(pci_memory_64: AddressRange) -> Sdt {
    let mut aml = Vec::new();
    let sleep_type = Package::new(vec![&SLEEP_TYPE_S5, &SLEEP_TYPE_S5]);
    Name::new("_S5_".into(), &sleep_type).to_aml_bytes(&mut aml);
    let (bridge, board, serial) = (HostBridge { pci_memory_64 }, Motherboard, SerialPort);
    Scope::new("_SB_".into(), vec![&bridge, &board, &serial]).to_aml_bytes(&mut aml);

    let mut table = Sdt::new(*b"DSDT", HEADER_LENGTH, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&aml);
    table
}

/// `\_SB.PCI0`.
struct HostBridge {
    pci_memory_64: AddressRange,
}

impl Aml for HostBridge {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
        let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
        let uid = Name::new("_UID".into(), &ZERO);
        let segment = Name::new("_SEG".into(), &ZERO);
        let bus = Name::new("_BBN".into(), &ZERO);

        // Not cacheable rather than prefetchable: guests put any BAR there, and into a prefetchable window only such BARs.
        let plain = AddressSpaceCacheable::NotCacheable;
        let memory_32 = AddressSpace::new_memory(
            plain,
            true,
            dword(layout::PCI_MEMORY_32.start),
            dword(layout::PCI_MEMORY_32.last()),
            None,
        );
        let memory_64 =
            AddressSpace::new_memory(plain, true, self.pci_memory_64.start, self.pci_memory_64.last(), None);
        let resources = ResourceTemplate::new(vec![
            &AddressSpace::new_bus_number(0_u16, 0_u16),
            &PortsDescriptor(layout::PCI_CONFIG_PORTS),
            &AddressSpace::new_io(word(layout::PCI_IO.start), word(layout::PCI_IO.last()), None),
            &memory_32,
            &memory_64,
        ])
        .to_name("_CRS");
        let routing = Name::new("_PRT".into(), &interrupt_routing());
        Device::new("PCI0".into(), vec![&hid, &cid, &uid, &segment, &bus, &resources, &routing, &Osc])
            .to_aml_bytes(sink);
    }
}

/// `_PRT`: for each pin of each device, the GSI it is wired to. PCI's interrupts are level-triggered and active low.
fn interrupt_routing() -> PackageBuilder {
    let mut routing = PackageBuilder::new();
    for device in 0..layout::PCI_DEVICES {
        for pin in 0..4_u8 {
            let all_functions = u32::from(device) << 16 | 0xFFFF;
            let gsi = layout::intx_gsi(device, pin);
            routing.add_element(&Package::new(vec![&all_functions, &pin, &ZERO, &gsi]));
        }
    }
    routing
}

/// `_OSC`: grants the guest what it asks for of [`OSC_CONTROL`], so that it uses extended configuration space and MSI.
struct Osc;

impl Aml for Osc {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (uuid, buffer) = (Arg(0), Arg(3));
        let (status, control) = (Path::new("CDW1"), Path::new("CDW3"));
        let status_field = CreateDWordField::new(&status, &buffer, &ZERO);
        let control_field = CreateDWordField::new(&control, &buffer, &8_u8);
        let known_uuid = Uuid::new(OSC_UUID);
        let is_known = Equal::new(&uuid, &known_uuid);
        let grant = And::new(&control, &control, &OSC_CONTROL);
        let refuse = Or::new(&status, &status, &OSC_UNRECOGNIZED_UUID);
        let known = If::new(&is_known, vec![&control_field, &grant]);
        let unknown = Else::new(vec![&refuse]);
        let answer = Return::new(&buffer);
        Method::new("_OSC".into(), 4, true, vec![&status_field, &known, &unknown, &answer]).to_aml_bytes(sink);
    }
}

/// `\_SB.MBRD`: addresses that are taken, so that guests trust the MCFG's and put nothing else there.
struct Motherboard;

impl Aml for Motherboard {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
        let uid = Name::new("_UID".into(), &ZERO);
        let ecam = Memory32Fixed::new(true, dword(layout::ECAM.start), dword(layout::ECAM.size()));
        let resources = ResourceTemplate::new(vec![&ecam, &PortsDescriptor(layout::POWER)]).to_name("_CRS");
        Device::new("MBRD".into(), vec![&hid, &uid, &resources]).to_aml_bytes(sink);
    }
}

/// `\_SB.COM1`.
struct SerialPort;

impl Aml for SerialPort {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
        let uid = Name::new("_UID".into(), &ONE);
        let (consumer, edge, active_low, shared) = (true, true, false, false);
        let interrupt = Interrupt::new(consumer, edge, active_low, shared, layout::COM1_GSI);
        let resources = ResourceTemplate::new(vec![&PortsDescriptor(layout::COM1), &interrupt]).to_name("_CRS");
        Device::new("COM1".into(), vec![&hid, &uid, &resources]).to_aml_bytes(sink);
    }
}

/// Fixed I/O ports.
struct PortsDescriptor(AddressRange);

impl Aml for PortsDescriptor {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (base, length) = (word(self.0.start), u8::try_from(self.0.size()).expect("our own fixed ports are few"));
        IO::new(base, base, 1, length).to_aml_bytes(sink);
    }
}

/// `Name (NAME, value)`, read left to right.
trait ToName {
    fn to_name(&self, name: &str) -> Name;
}

impl<T: Aml> ToName for T {
    fn to_name(&self, name: &str) -> Name {
        Name::new(name.into(), self)
    }
}

fn word(value: u64) -> u16 {
    u16::try_from(value).expect("our own I/O ports have 16 bits")
}

fn dword(value: u64) -> u32 {
    u32::try_from(value).expect("our own fixed windows are below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_stays_within_its_place() {
        // Half of the room for all tables; what grows later should be noticed.
        assert!(dsdt(AddressRange::new(4 << 30, 1 << 46)).len() < 8192);
    }

    #[test]
    fn every_pin_of_every_device_is_routed() {
        let mut aml = Vec::new();
        interrupt_routing().to_aml_bytes(&mut aml);
        assert_eq!(aml[0], 0x12, "PackageOp");
        // PkgLength is two bytes here; then the number of elements.
        assert_eq!(aml[3], 128);
        let mut last = Vec::new();
        Package::new(vec![&0x1F_FFFF_u32, &3_u8, &ZERO, &18_u8]).to_aml_bytes(&mut last);
        assert!(aml.ends_with(&last));
    }
}
