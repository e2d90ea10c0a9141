//! `outrigger-vfio list|bind|unbind`: which of the host's PCI functions can be given to a guest, and the change of their
//! drivers. `outrigger vfio` is the same.
//!
//! Everything is read from sysfs and written to it; nothing is remembered. A function is bound to vfio-pci by its own
//! `driver_override`, so no other function of the same kind is touched, and unbinding takes back just that.

mod change;
mod table;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use outrigger_process::launch::{EXIT_HOST, EXIT_USAGE};
use outrigger_process::options::one_line;

use super::address::Address;
use super::sysfs::Sysfs;

/// The driver that gives a function to VFIO.
const VFIO_PCI: &str = "vfio-pci";

/// A command on the host's devices.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Show the host's PCI devices, their drivers, and whether a guest can have them
    List,
    /// Take a device from its driver and give it to vfio-pci
    Bind {
        /// The device's place, as 'list' shows it: 0000:01:00.0
        address: Address,
    },
    /// Take a device from vfio-pci; the kernel gives it to the driver that it had
    Unbind {
        /// The device's place, as 'list' shows it: 0000:01:00.0
        address: Address,
    },
}

/// The files that tell of the host's hardware.
#[derive(Debug)]
struct Host {
    sysfs: Sysfs,
    dev: PathBuf,
    proc: PathBuf,
}

/// Why a function cannot be changed, or none be shown.
#[derive(Debug, thiserror::Error)]
enum DriverError {
    /// There is none.
    #[error("{0}: there is no such PCI device; 'outrigger vfio list' shows those there are")]
    NoDevice(Address),
    /// Nothing keeps it from memory that is not its guest's.
    #[error(
        "{0}: this host has no IOMMU for it; switch it on in the firmware (VT-d, AMD-Vi) and, on Intel, boot with \
         intel_iommu=on"
    )]
    NoIommu(Address),
    /// It connects others.
    #[error("{0}: is a bridge, which cannot be given to a guest")]
    Bridge(Address),
    /// vfio-pci is not there.
    #[error("the kernel's driver vfio-pci is not loaded; load it: modprobe vfio-pci")]
    NoDriver,
    /// The host works with it.
    #[error("{address}: the host uses {what}; {remedy}")]
    HostUses {
        /// The function.
        address: Address,
        /// The part in use.
        what: String,
        /// The remedy.
        remedy: &'static str,
    },
    /// A guest works with it.
    #[error("{address}: is in use by VFIO; end the run that has it ({})", path.display())]
    InUse {
        /// The function.
        address: Address,
        /// The group's file.
        path: PathBuf,
    },
    /// Another driver has it.
    #[error("{address}: is not bound to vfio-pci but to {driver}; there is nothing to undo")]
    OtherDriver {
        /// The function.
        address: Address,
        /// Its driver.
        driver: String,
    },
    /// vfio-pci does not take it.
    #[error("{0}: vfio-pci does not take it (see dmesg); it is as it was before")]
    NotTaken(Address),
    /// The system refuses.
    #[error("{}: {}{}", path.display(), problem, if problem.kind() == io::ErrorKind::PermissionDenied { "; run as root" } else { "" })]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        problem: io::Error,
    },
}

impl DriverError {
    /// The exit status that says whose fault it is.
    fn status(&self) -> ExitCode {
        match self {
            Self::NoDevice(_)
            | Self::Bridge(_)
            | Self::HostUses { .. }
            | Self::OtherDriver { .. }
            | Self::InUse { .. } => EXIT_USAGE.into(),
            Self::NoIommu(_) | Self::NoDriver | Self::File { .. } => EXIT_HOST.into(),
            Self::NotTaken(_) => ExitCode::FAILURE,
        }
    }
}

impl Command {
    /// Does it, and tells what came of it: a text on standard output, or one line on standard error.
    pub fn run(&self, program: &str) -> ExitCode {
        match Host::default().run(self) {
            Ok(text) => {
                // Nobody is left to tell when standard output is closed.
                let _ = io::stdout().write_all(text.as_bytes());
                ExitCode::SUCCESS
            }
            Err(error) => {
                let _ = writeln!(io::stderr(), "{program}: {}", one_line(&error.to_string()));
                error.status()
            }
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self { sysfs: Sysfs::default(), dev: "/dev".into(), proc: "/proc".into() }
    }
}

impl Host {
    /// Does what is asked, and returns what is to be shown.
    fn run(&self, command: &Command) -> Result<String, DriverError> {
        let function = |address: Address| self.sysfs.function(address).ok_or(DriverError::NoDevice(address));
        match *command {
            Command::List => {
                let path = self.sysfs.path("bus/pci/devices");
                Ok(table::text(&self.sysfs.functions().map_err(|problem| DriverError::File { path, problem })?))
            }
            Command::Bind { address } => self.bind(&function(address)?),
            Command::Unbind { address } => self.unbind(&function(address)?),
        }
    }
}

#[cfg(test)]
mod tests;
