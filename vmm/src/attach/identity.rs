//! The properties that a guest's driver relies on once it has seen a device, and that a successor must therefore have in
//! common with its predecessor.

use super::discovery::{Description, MsiCapability, MsixCapability};
use crate::pci::bar::Bars;
use crate::pci::capabilities::{self, id, read_u16, read_u32};
use crate::pci::register;

/// PCI Local Bus 3.0, figure 6-1: subsystem vendor and device id.
const SUBSYSTEM: u16 = 0x2c;
const CLASS_AND_REVISION: u16 = 0x08;
/// virtio 1.2, section 4.1.4: `cfg_type` of a vendor-specific capability, and the one whose fields a driver writes.
const VIRTIO_VENDOR: u16 = 0x1af4;
const CFG_TYPE: u16 = 3;
const CFG_TYPE_PCI: u8 = 5;
/// Bytes of that one that no driver writes.
const CFG_TYPE_PCI_FIXED: usize = 4;

/// A device as the guest knows it.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    ids: u32,
    class_and_revision: u32,
    subsystem: u32,
    header_type: u8,
    config_size: usize,
    /// Id and place of each standard capability.
    capabilities: Vec<(u8, u16)>,
    /// The content of those that a vendor defines; for virtio, where its registers are.
    vendor_specific: Vec<Vec<u8>>,
    bars: Bars,
    sizes: Vec<u64>,
    intx: bool,
    msi: Option<MsiCapability>,
    msix: Option<MsixCapability>,
    flr: Option<(u16, u8)>,
    resettable: bool,
}

impl Identity {
    /// That of a device whose BARs are where its server has put them, nowhere.
    #[must_use]
    pub fn of(description: &Description) -> Self {
        let config = &description.config;
        let capabilities = capabilities::standard(config);
        let vendors = capabilities.iter().filter(|(id, _)| *id == id::VENDOR_SPECIFIC);
        let vendor_specific = vendors.map(|(_, offset)| vendor_specific(config, *offset).to_vec()).collect();
        Self {
            ids: read_u32(config, 0),
            class_and_revision: read_u32(config, CLASS_AND_REVISION),
            subsystem: read_u32(config, SUBSYSTEM),
            header_type: config[usize::from(register::HEADER_TYPE)],
            config_size: config.len(),
            capabilities,
            vendor_specific,
            bars: description.bars.clone(),
            sizes: description.regions.iter().map(|region| region.size).collect(),
            intx: description.intx,
            msi: description.msi,
            msix: description.msix,
            flr: description.flr,
            resettable: description.resettable,
        }
    }

    /// The difference that makes `other` another device; none: a driver can go on with it.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<String> {
        let ids = |ids: u32| format!("{:04x}:{:04x}", ids & 0xffff, ids >> 16);
        if self.ids != other.ids {
            return Some(format!("it is a {}, the guest knows a {}", ids(other.ids), ids(self.ids)));
        }
        let others = [
            (self.class_and_revision == other.class_and_revision, "class or revision"),
            (self.subsystem == other.subsystem, "subsystem"),
            (self.header_type == other.header_type && self.config_size == other.config_size, "configuration space"),
            (self.bars == other.bars && self.sizes == other.sizes, "BARs"),
            (self.capabilities == other.capabilities, "capabilities"),
            (self.vendor_specific == other.vendor_specific, "vendor-specific capabilities"),
            (self.intx == other.intx && self.msi == other.msi && self.msix == other.msix, "interrupts"),
            (self.flr == other.flr && self.resettable == other.resettable, "ways to be reset"),
        ];
        let (_, what) = others.into_iter().find(|(same, _)| !same)?;
        Some(format!("its {what} differ from what the guest has seen"))
    }
}

fn vendor_specific(config: &[u8], offset: u16) -> &[u8] {
    let at = usize::from(offset);
    let length = usize::from(config.get(at + 2).copied().unwrap_or(0));
    let bytes = config.get(at..).unwrap_or(&[]);
    let is_written_by_drivers = read_u16(config, 0) == VIRTIO_VENDOR
        && bytes.get(usize::from(CFG_TYPE)).is_some_and(|&cfg_type| cfg_type == CFG_TYPE_PCI);
    let length = if is_written_by_drivers { CFG_TYPE_PCI_FIXED } else { length };
    &bytes[..length.min(bytes.len())]
}

#[cfg(test)]
mod tests {
    use super::super::testing::description;
    use super::*;
    use crate::pci::bar::Kind;

    /// A virtio disk with two capabilities, one of which a driver writes to.
    fn disk() -> Description {
        let mut description = description();
        description.config[..4].copy_from_slice(&0x1042_1af4u32.to_le_bytes());
        description.config[usize::from(register::STATUS)] = 1 << 4;
        description.config[usize::from(register::CAPABILITIES)] = 0x40;
        description.config[0x40..0x50].copy_from_slice(&[9, 0x50, 16, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0x38, 0, 0, 0]);
        description.config[0x50..0x54].copy_from_slice(&[9, 0, 20, 5]);
        description.regions[4].size = 0x4000;
        description.bars.add(4, Kind::Memory64 { prefetchable: false }, 0x4000).unwrap();
        description
    }

    #[test]
    fn what_a_driver_writes_makes_no_other_device() {
        let mut used = disk();
        used.config[usize::from(register::COMMAND)] = 6;
        used.config[0x54..0x64].fill(0x5a);
        assert_eq!(Identity::of(&disk()).difference(&Identity::of(&used)), None);
    }

    #[test]
    fn what_a_driver_relies_on_is_told_apart() {
        type Change = fn(&mut Description);
        let table: [(Change, &str); 7] = [
            (|other| other.config[2] = 0x41, "it is a 1af4:1041, the guest knows a 1af4:1042"),
            (|other| other.config[8] = 1, "class"),
            (|other| other.config[0x4c] = 0x34, "vendor-specific"),
            (|other| other.config[0x41] = 0, "capabilities"),
            (|other| other.regions[4].size = 0x2000, "BARs"),
            (|other| other.intx = true, "interrupts"),
            (|other| other.config.truncate(128), "configuration space"),
        ];
        for (change, expected) in table {
            let mut other = disk();
            change(&mut other);
            let difference = Identity::of(&disk()).difference(&Identity::of(&other)).expect(expected);
            assert!(difference.contains(expected), "{difference}");
        }
    }
}
