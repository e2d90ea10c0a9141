//! The host's PCI functions as sysfs has them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::address::Address;

/// Drivers that leave their functions' memory accesses to whoever has the group (kernel, drivers/pci/pcie/portdrv.c and
/// drivers/pci/pci-stub.c, `driver_managed_dma`).
const HARMLESS: [&str; 2] = ["pcieport", "pci-stub"];
/// Class code of a bridge (PCI Code and ID Assignment 1.11, section 1.2).
const BRIDGE: u32 = 0x06;

/// Where sysfs is.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

/// The driver of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver(pub String);

/// A function that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: Address,
    /// Its directory.
    pub directory: PathBuf,
    /// Vendor and device.
    pub ids: (u32, u32),
    /// Base class, subclass, programming interface.
    pub class: u32,
    /// None: no driver has it.
    pub driver: Option<Driver>,
    /// The number of its IOMMU group: the functions that the IOMMU cannot tell from it are there, too. None: there is no
    /// IOMMU in front of it.
    pub group: Option<u32>,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at("/sys")
    }
}

impl Sysfs {
    pub(super) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A file of it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// All functions there are, by address. One that is unplugged meanwhile is left out.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn functions(&self) -> io::Result<Vec<Function>> {
        self.functions_in("bus/pci/devices")
    }

    /// The function at an address. None: nothing is there.
    pub fn function(&self, address: Address) -> Option<Function> {
        Function::read(&self.path("bus/pci/devices").join(address.to_string()))
    }

    /// Everything in an IOMMU group, by address. Bridges are there, too.
    pub fn group(&self, group: u32) -> Vec<Function> {
        self.functions_in(&format!("kernel/iommu_groups/{group}/devices")).unwrap_or_default()
    }

    fn functions_in(&self, directory: &str) -> io::Result<Vec<Function>> {
        let entries = match fs::read_dir(self.path(directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut all: Vec<_> = entries.flatten().filter_map(|entry| Function::read(&entry.path())).collect();
        all.sort_unstable_by_key(|function| function.address);
        Ok(all)
    }
}

impl Driver {
    /// Whether it gives its device to user space: vfio-pci, or a variant of it such as mlx5_vfio_pci.
    pub fn is_vfio(&self) -> bool {
        self.0.split(['-', '_']).any(|part| part == "vfio")
    }
}

impl Function {
    fn read(directory: &Path) -> Option<Self> {
        let address = directory.file_name()?.to_str()?.parse().ok()?;
        let number = |name: &str| {
            let text = fs::read_to_string(directory.join(name)).ok()?;
            u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
        };
        Some(Self {
            address,
            ids: (number("vendor")?, number("device")?),
            class: number("class")?,
            driver: name_behind(&directory.join("driver")).map(Driver),
            group: name_behind(&directory.join("iommu_group")).and_then(|group| group.parse().ok()),
            directory: directory.to_owned(),
        })
    }

    /// Whether it connects others, and cannot be given to a guest.
    pub fn is_bridge(&self) -> bool {
        self.class >> 16 == BRIDGE
    }

    /// The part that is missing for it to be reached by iommufd; none: nothing is missing.
    pub fn lack_of_iommufd(&self, is_inherited: bool) -> Option<&'static str> {
        if !is_inherited && !Path::new(outrigger_iommufd::PATH).exists() {
            Some("the kernel has no iommufd (/dev/iommu)")
        } else if self.cdev_number().is_none() {
            Some("the device has no file of its own (CONFIG_VFIO_DEVICE_CDEV, Linux 6.6)")
        } else {
            None
        }
    }

    /// The name of its own file in VFIO, if it has one. The directory is there on kernels without such files, too.
    fn cdev_entry(&self) -> Option<(PathBuf, (u64, u64))> {
        fs::read_dir(self.directory.join("vfio-dev")).ok()?.flatten().find_map(|entry| {
            let number = fs::read_to_string(entry.path().join("dev")).ok()?;
            let (major, minor) = number.trim().split_once(':')?;
            Some((entry.file_name().into(), (major.parse().ok()?, minor.parse().ok()?)))
        })
    }

    /// The number of that file.
    pub fn cdev_number(&self) -> Option<(u64, u64)> {
        self.cdev_entry().map(|(_, number)| number)
    }

    /// Where that file is.
    pub fn cdev(&self) -> PathBuf {
        let name = self.cdev_entry().map(|(name, _)| name);
        Path::new("/dev/vfio/devices").join(name.unwrap_or_default())
    }

    /// Whether it is given to user space.
    pub fn is_bound(&self) -> bool {
        self.driver.as_ref().is_some_and(Driver::is_vfio)
    }

    /// Whether its driver keeps the others in its group from being given.
    pub fn is_in_the_way(&self) -> bool {
        let is_harmless = |driver: &Driver| driver.is_vfio() || HARMLESS.contains(&driver.0.as_str());
        !self.driver.as_ref().is_none_or(is_harmless)
    }
}

/// The name at the end of a link; none: there is no link.
pub(super) fn name_behind(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Makes a directory look as if sysfs had a function there.
    pub(in super::super) fn add_function(
        root: &Path,
        address: &str,
        [vendor, device, class]: [&str; 3],
        driver: Option<&str>,
        group: Option<&str>,
    ) {
        let directory = root.join("bus/pci/devices").join(address);
        fs::create_dir_all(&directory).unwrap();
        for (name, text) in [("vendor", vendor), ("device", device), ("class", class), ("driver_override", "(null)")] {
            fs::write(directory.join(name), format!("{text}\n")).unwrap();
        }
        if let Some(driver) = driver {
            let home = root.join("bus/pci/drivers").join(driver);
            fs::create_dir_all(&home).unwrap();
            fs::write(home.join("unbind"), "").unwrap();
            symlink(&home, directory.join("driver")).unwrap();
        }
        if let Some(group) = group {
            let home = root.join("kernel/iommu_groups").join(group);
            fs::create_dir_all(home.join("devices")).unwrap();
            symlink(&home, directory.join("iommu_group")).unwrap();
            symlink(&directory, home.join("devices").join(address)).unwrap();
        }
    }

    #[test]
    fn vfio_pci_and_its_variants_are_for_user_space() {
        let is_vfio = |name: &str| Driver(name.to_owned()).is_vfio();
        assert!(is_vfio("vfio-pci") && is_vfio("mlx5_vfio_pci") && is_vfio("nvgrace-gpu-vfio-pci"));
        assert!(!is_vfio("nvme") && !is_vfio("pci-stub") && !is_vfio("novfio"));
    }

    #[test]
    fn functions_are_found_by_address_by_group_and_all_together() {
        let root = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::at(root.path());
        let ids = ["0x8086", "0x10d3", "0x020000"];
        add_function(root.path(), "0000:01:00.1", ids, None, Some("7"));
        add_function(root.path(), "0000:01:00.0", ids, Some("nvme"), Some("7"));
        add_function(root.path(), "0000:02:00.0", ids, Some("vfio-pci"), None);
        let find = |text: &str| sysfs.function(text.parse().unwrap());
        let nvme = find("01:00.0").unwrap();
        assert_eq!((nvme.ids, nvme.class), ((0x8086, 0x10d3), 0x02_0000));
        assert_eq!((nvme.driver.clone(), nvme.group), (Some(Driver("nvme".into())), Some(7)));
        assert!(nvme.is_in_the_way() && !nvme.is_bound() && !nvme.is_bridge());
        let bound = find("02:00.0").unwrap();
        assert!(bound.group.is_none() && bound.is_bound() && !bound.is_in_the_way());
        assert_eq!(find("03:00.0"), None);
        let addresses = |functions: Vec<Function>| -> Vec<_> {
            functions.iter().map(|function| function.address.to_string()).collect()
        };
        assert_eq!(addresses(sysfs.group(7)), ["0000:01:00.0", "0000:01:00.1"]);
        assert_eq!(sysfs.group(8), []);
        assert_eq!(addresses(sysfs.functions().unwrap()), ["0000:01:00.0", "0000:01:00.1", "0000:02:00.0"]);
        assert_eq!(Sysfs::at(root.path().join("nothing")).functions().unwrap(), []);
    }
}
