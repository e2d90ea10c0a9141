//! The host's PCI functions as sysfs has them.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Address, VFIO_PCI, VfioError, name_behind};

/// Drivers that leave their functions' memory accesses to whoever has the group (kernel, drivers/pci/pcie/portdrv.c and
/// drivers/pci/pci-stub.c, `driver_managed_dma`).
const HARMLESS: [&str; 2] = ["pcieport", "pci-stub"];
/// Class code of a bridge (PCI Code and ID Assignment 1.11, section 1.2).
const BRIDGE: u32 = 0x06;

/// One function.
#[derive(Debug, Clone)]
pub(super) struct Function {
    pub(super) address: Address,
    pub(super) directory: PathBuf,
    /// Vendor and device.
    pub(super) ids: (u32, u32),
    /// Base class, subclass, programming interface.
    pub(super) class: u32,
    pub(super) driver: Option<String>,
    /// The functions that the IOMMU cannot tell from it are in the same group.
    pub(super) group: Option<String>,
    /// The others in the group.
    pub(super) others: Vec<Other>,
}

/// Another function in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Other {
    pub(super) address: Address,
    pub(super) driver: Option<String>,
}

impl Function {
    /// All there are, by address.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(super) fn all(sys: &Path) -> Result<Vec<Self>, VfioError> {
        let path = sys.join("bus/pci/devices");
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|problem| VfioError::File { path, problem })?,
        };
        // One that is unplugged meanwhile is left out.
        let mut all: Vec<_> = entries.flatten().filter_map(|entry| Self::read(&entry.path())).collect();
        all.sort_by(|one, other| one.address.cmp(&other.address));
        let known = all.clone();
        for function in all.iter_mut().filter(|function| function.group.is_some()) {
            let others =
                known.iter().filter(|other| other.group == function.group && other.address != function.address);
            let other = |other: &Self| Other { address: other.address.clone(), driver: other.driver.clone() };
            function.others = others.map(other).collect();
        }
        Ok(all)
    }

    fn read(directory: &Path) -> Option<Self> {
        let address = Address::parse(directory.file_name()?.to_str()?)?;
        let number = |name: &str| {
            let text = fs::read_to_string(directory.join(name)).ok()?;
            u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
        };
        Some(Self {
            ids: (number("vendor")?, number("device")?),
            class: number("class")?,
            driver: name_behind(&directory.join("driver")),
            group: name_behind(&directory.join("iommu_group")),
            others: Vec::new(),
            address,
            directory: directory.to_owned(),
        })
    }

    pub(super) fn is_bridge(&self) -> bool {
        self.class >> 16 == BRIDGE
    }

    pub(super) fn is_bound(&self) -> bool {
        self.driver.as_deref() == Some(VFIO_PCI)
    }

    /// Others in the group whose drivers keep it from being given.
    pub(super) fn in_the_way(&self) -> impl Iterator<Item = &Other> {
        self.others.iter().filter(|other| other.is_in_the_way())
    }
}

impl Other {
    fn is_in_the_way(&self) -> bool {
        // Drivers that are made of vfio-pci's core are called like it: mlx5_vfio_pci, nvgrace_gpu_vfio_pci.
        let is_harmless = |driver: &str| HARMLESS.contains(&driver) || driver.replace('_', "-").ends_with(VFIO_PCI);
        !self.driver.as_deref().is_none_or(is_harmless)
    }
}
