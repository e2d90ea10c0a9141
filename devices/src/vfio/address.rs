//! Where a PCI function of the host is: its address, and what sysfs says about it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The address of a PCI function: domain, bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be the address of a PCI function, as 0000:01:00.0 (outrigger vfio list shows them)")]
pub struct NotAnAddress;

impl FromStr for Address {
    type Err = NotAnAddress;

    /// With the domain or without: then it is domain 0, as lspci has it.
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let hex = |text: &str, lengths: std::ops::RangeInclusive<usize>| {
            let legal = lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            u32::from_str_radix(text, 16).ok().filter(|_| legal).ok_or(NotAnAddress)
        };
        let below = |number: u32, end: u8| u8::try_from(number).ok().filter(|&n| n < end).ok_or(NotAnAddress);
        let (rest, function) = text.split_once('.').ok_or(NotAnAddress)?;
        let (rest, device) = rest.rsplit_once(':').ok_or(NotAnAddress)?;
        let (domain, bus) = rest.split_once(':').unwrap_or(("0", rest));
        Ok(Self {
            // A domain of an emulated bus, such as those of VMD, has five digits or more.
            domain: hex(domain, 1..=8)?,
            bus: u8::try_from(hex(bus, 2..=2)?).map_err(|_| NotAnAddress)?,
            device: below(hex(device, 2..=2)?, 32)?,
            function: below(hex(function, 1..=1)?, 8)?,
        })
    }
}

/// As the kernel writes it.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// The driver of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver(pub String);

impl Driver {
    /// Whether it gives its device to user space: vfio-pci, or a variant of it such as mlx5_vfio_pci.
    pub fn is_vfio(&self) -> bool {
        self.0.split(['-', '_']).any(|part| part == "vfio")
    }
}

/// A function that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name in sysfs, which is its address.
    pub name: String,
    /// None: no driver has it.
    pub driver: Option<Driver>,
    /// The number of its IOMMU group. None: there is no IOMMU in front of it.
    pub group: Option<u32>,
}

/// The PCI functions that sysfs shows.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self { root: "/sys".into() }
    }
}

impl Sysfs {
    /// What is at an address. None: nothing.
    pub fn function(&self, address: Address) -> Option<Function> {
        self.named(&address.to_string())
    }

    /// Everything in an IOMMU group, by name. Bridges are there, too.
    pub fn group(&self, group: u32) -> Vec<Function> {
        let devices = fs::read_dir(self.root.join(format!("kernel/iommu_groups/{group}/devices")));
        let names = devices.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut functions: Vec<Function> = names.filter_map(|name| self.named(&name)).collect();
        functions.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        functions
    }

    fn named(&self, name: &str) -> Option<Function> {
        let directory = self.root.join("bus/pci/devices").join(name);
        let last_part = |link: &str| {
            let target: PathBuf = fs::read_link(directory.join(link)).ok()?;
            Some(target.file_name()?.to_str()?.to_owned())
        };
        Path::is_dir(&directory).then(|| Function {
            name: name.to_owned(),
            driver: last_part("driver").map(Driver),
            group: last_part("iommu_group").and_then(|group| group.parse().ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        for (text, canonical) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("01:00.0", "0000:01:00.0"),
            ("ABCD:fF:1f.7", "abcd:ff:1f.7"),
            ("10000:e1:00.0", "10000:e1:00.0"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn anything_else_is_no_address() {
        for text in [
            "",
            "0000",
            "01:00",
            "01.0",
            "0000:01:00",
            "0000:01:20.0",
            "0000:01:00.8",
            "0000:1:00.0",
            "0000:01:0.0",
            "0000:01:00.00",
            "0000:101:00.0",
            "123456789:01:00.0",
            ":01:00.0",
            "0000:01:00.",
            "+000:01:00.0",
            "0000:+1:00.0",
            "0000:01:00.0 ",
            "../../../etc",
            "0000:0000:01:00.0",
        ] {
            assert_eq!(text.parse::<Address>(), Err(NotAnAddress), "{text:?}");
        }
    }

    #[test]
    fn vfio_pci_and_its_variants_are_for_user_space() {
        let is_vfio = |name: &str| Driver(name.to_owned()).is_vfio();
        assert!(is_vfio("vfio-pci") && is_vfio("mlx5_vfio_pci") && is_vfio("nvgrace-gpu-vfio-pci"));
        assert!(!is_vfio("nvme") && !is_vfio("pci-stub") && !is_vfio("novfio"));
    }

    #[test]
    fn sysfs_tells_driver_and_group() {
        let root = tempfile::tempdir().unwrap();
        let sysfs = Sysfs { root: root.path().to_owned() };
        let function = |name: &str, driver: Option<&str>, group: Option<&str>| {
            let directory = root.path().join("bus/pci/devices").join(name);
            fs::create_dir_all(&directory).unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../../bus/pci/drivers/{driver}"), directory.join("driver")).unwrap();
            }
            if let Some(group) = group {
                let members = root.path().join(format!("kernel/iommu_groups/{group}/devices"));
                fs::create_dir_all(&members).unwrap();
                symlink(format!("../../kernel/iommu_groups/{group}"), directory.join("iommu_group")).unwrap();
                symlink(&directory, members.join(name)).unwrap();
            }
        };
        function("0000:01:00.1", None, Some("7"));
        function("0000:01:00.0", Some("nvme"), Some("7"));
        function("0000:02:00.0", Some("vfio-pci"), None);
        let find = |text: &str| sysfs.function(text.parse().unwrap());
        let nvme = find("01:00.0").unwrap();
        assert_eq!((nvme.driver, nvme.group), (Some(Driver("nvme".into())), Some(7)));
        assert_eq!(find("02:00.0").unwrap().group, None);
        assert_eq!(find("03:00.0"), None);
        let group: Vec<_> = sysfs.group(7).into_iter().map(|function| (function.name, function.driver)).collect();
        let expected =
            [("0000:01:00.0".to_owned(), Some(Driver("nvme".to_owned()))), ("0000:01:00.1".to_owned(), None)];
        assert_eq!(group, expected);
        assert_eq!(sysfs.group(8), []);
    }
}
