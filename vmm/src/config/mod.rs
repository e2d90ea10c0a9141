//! What the user asked for, checked: everything the rest of Outrigger needs to know about the command line.
//!
//! A [`Config`] that exists is valid in itself; [`Config::check_files`] asks the host about the files it names.
//! Values of the form `KEY=VALUE,…` are read by one parser, [`options`]; each flag that takes one has a file here.

pub mod console;
pub mod device;
pub mod disk;
mod dma;
mod files;
pub mod memory;
pub mod net;
mod options;
pub mod paths;
mod problem;
pub mod size;

use std::path::PathBuf;

pub use console::ConsoleConfig;
pub use device::SocketConfig;
pub use disk::DiskConfig;
pub use dma::Dma;
pub use memory::MemoryConfig;
pub use net::{MacAddress, NetConfig};
pub use paths::{AllowedPaths, PathName};
pub use problem::{Problem, UsageError, one_line};

/// Most virtual CPUs a guest can have.
pub const MAX_CPUS: u8 = 64;

/// Most PCI devices: the bus has 32 slots, and the host bridge is in the first.
pub const MAX_PCI_DEVICES: usize = 31;

/// Most queues (or pairs of queues, for a network card) a device can be given.
pub const MAX_QUEUES: u16 = 64;

/// Longest kernel command line in bytes: Linux's `COMMAND_LINE_SIZE` on x86, less the terminating zero.
pub const MAX_CMDLINE: usize = 2047;

/// Kernel command line where `--cmdline` gives none: console on the serial port, and a panic ends the guest by a reboot
/// instead of leaving it hanging.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1";

/// A guest to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// bzImage or ELF vmlinux.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line, at most [`MAX_CMDLINE`] bytes, without zeros.
    pub cmdline: String,
    /// Virtual CPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// Guest RAM.
    pub memory: MemoryConfig,
    /// PCI devices in the order of the command line, which is the order of their slots from 1 up; at most
    /// [`MAX_PCI_DEVICES`].
    pub pci_devices: Vec<PciDeviceConfig>,
    /// How guest accesses may reach the devices.
    pub paths: AllowedPaths,
    /// Where the serial port leads.
    pub console: ConsoleConfig,
    /// Print how each device is attached before the guest starts.
    pub show_devices: bool,
    /// Print who answered the guest's accesses to devices after it has ended.
    pub stats: bool,
}

/// One PCI device: who serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PciDeviceConfig {
    /// An `outrigger-blk` that Outrigger starts.
    Disk(DiskConfig),
    /// An `outrigger-net` that Outrigger starts.
    Net(NetConfig),
    /// Any vfio-user server that already listens.
    Socket(SocketConfig),
}

impl std::fmt::Display for PciDeviceConfig {
    /// The flag that describes the device, short enough to name it in a message: `--disk path=root.img`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PciDeviceConfig::Disk(disk) => write!(f, "--disk path={}", disk.path.display()),
            PciDeviceConfig::Net(net) => write!(f, "--net tap={}", net.tap),
            PciDeviceConfig::Socket(socket) => write!(f, "--device socket={}", socket.path.display()),
        }
    }
}

impl PciDeviceConfig {
    /// How its process reaches guest RAM.
    #[must_use]
    pub fn dma(&self) -> Dma {
        match self {
            PciDeviceConfig::Disk(disk) => disk.dma,
            PciDeviceConfig::Net(net) => net.dma,
            PciDeviceConfig::Socket(socket) => socket.dma,
        }
    }
}

/// Reads `--cpus`.
pub(crate) fn parse_cpus(text: &str) -> Result<u8, Problem> {
    options::number(text, 1, MAX_CPUS.into()).map(|cpus| u8::try_from(cpus).unwrap_or(MAX_CPUS))
}

/// Reads `--cmdline`.
pub(crate) fn parse_cmdline(text: &str) -> Result<String, Problem> {
    if text.len() > MAX_CMDLINE {
        return Err(Problem::TooLong { length: text.len(), limit: MAX_CMDLINE });
    }
    Ok(text.to_owned())
}

impl Config {
    /// Checks what no single flag can know: how many devices there are, and that none is given twice.
    pub(crate) fn check_devices(devices: &[PciDeviceConfig]) -> Result<(), UsageError> {
        if devices.len() > MAX_PCI_DEVICES {
            let problem = Problem::TooManyDevices { count: devices.len(), limit: MAX_PCI_DEVICES };
            return Err(UsageError::new("--disk, --net, --device", problem));
        }
        for (index, device) in devices.iter().enumerate() {
            // Two disks may share a read-only file; the lock that outrigger-blk takes refuses the other cases.
            let exclusive = !matches!(device, PciDeviceConfig::Disk(_));
            if exclusive && devices.iter().take(index).any(|earlier| earlier.to_string() == device.to_string()) {
                return Err(UsageError::new(device, Problem::GivenTwice));
            }
        }
        Ok(())
    }
}
