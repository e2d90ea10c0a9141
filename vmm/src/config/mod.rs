//! The checked configuration of a run: everything the rest of Outrigger needs to know about the command line.
//!
//! A [`Config`] that exists is valid in itself; [`Config::check_files`] asks the host about the files it names.
//! Values of the form `KEY=VALUE,…` are read by one parser, [`options`]; each kind of flag that takes one has a file here.

pub mod console;
pub mod device;
mod files;
pub mod memory;
pub mod paths;
mod problem;
pub mod restart;
pub mod size;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use outrigger_process::options::{self, OptionError};

pub use console::ConsoleConfig;
pub use device::{DeviceConfig, Dma, KINDS, MAX_SOCKET_PATH, ServerUser, Source};
pub use memory::MemoryConfig;
pub use paths::{AllowedPaths, PathName};
pub use problem::{Problem, UsageError};
pub use restart::{Budget, Restart};

/// Most virtual CPUs a guest can have.
pub const MAX_CPUS: u8 = 64;

/// Most PCI devices: the bus has 32 slots, and the host bridge is in the first.
pub const MAX_PCI_DEVICES: usize = 31;

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
    pub pci_devices: Vec<DeviceConfig>,
    /// How guest accesses may reach the devices.
    pub paths: AllowedPaths,
    /// Where the serial port leads.
    pub console: ConsoleConfig,
    /// Where the control socket is to be, at most [`MAX_SOCKET_PATH`](device::MAX_SOCKET_PATH) bytes.
    pub control: Option<PathBuf>,
    /// Programs below this directory may take the place of those that the devices have.
    pub programs: Option<PathBuf>,
    /// Whether the guest may run guests of its own.
    pub nested: bool,
    /// Print how each device is attached before the guest starts.
    pub show_devices: bool,
    /// Print who answered the guest's accesses to devices after it has ended.
    pub stats: bool,
}

/// Reads `--cpus`.
pub(crate) fn parse_cpus(text: &str) -> Result<u8, Problem> {
    Ok(options::number(text, 1, MAX_CPUS.into()).map(|cpus| u8::try_from(cpus).unwrap_or(MAX_CPUS))?)
}

/// Reads `--control`.
pub(crate) fn parse_control(path: &Path) -> Result<PathBuf, Problem> {
    match path.as_os_str().len() {
        0 => Err(OptionError::Empty.into()),
        length if length > MAX_SOCKET_PATH => Err(Problem::TooLong { length, limit: MAX_SOCKET_PATH }),
        _ => Ok(path.to_owned()),
    }
}

/// Reads `--cmdline`.
pub(crate) fn parse_cmdline(text: &str) -> Result<String, Problem> {
    if text.len() > MAX_CMDLINE {
        return Err(Problem::TooLong { length: text.len(), limit: MAX_CMDLINE });
    }
    Ok(text.to_owned())
}

impl Config {
    /// Whether the kernel is told to do without what a timer in the local APIC takes, so that it is left with the PIT
    /// (Linux, Documentation/admin-guide/kernel-parameters.txt).
    pub(crate) fn needs_pit(&self) -> bool {
        const WORDS: [&str; 5] = ["noapic", "nolapic", "disableapic", "nolapic_timer", "acpi=off"];
        self.cmdline.split_ascii_whitespace().any(|word| WORDS.contains(&word))
    }

    /// Checks what no single flag can know: how many devices there are, and that none is given twice.
    pub(crate) fn check_devices(devices: &[DeviceConfig]) -> Result<(), UsageError> {
        if devices.len() > MAX_PCI_DEVICES {
            let problem = Problem::TooManyDevices { count: devices.len(), limit: MAX_PCI_DEVICES };
            let flags: Vec<_> =
                KINDS.iter().map(|kind| kind.flag).chain(["device"]).map(|flag| format!("--{flag}")).collect();
            return Err(UsageError::new(flags.join(", "), problem));
        }
        // Programs refuse by themselves what two cannot share; a server would leave the second client waiting.
        let mut sockets = HashSet::new();
        for device in devices {
            if matches!(&device.source, Source::Socket { path, .. } if !sockets.insert(path)) {
                return Err(UsageError::new(&device.label, Problem::GivenTwice));
            }
        }
        Ok(())
    }
}
