//! `outrigger vfio`: which of the host's PCI functions can be given to a guest, and the change of their drivers.
//!
//! Everything is read from sysfs and written to it; nothing is remembered. A function is bound to vfio-pci by its own
//! `driver_override`, so no other function of the same kind is touched, and unbinding takes back just that.

mod change;
mod functions;
mod table;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use outrigger_process::options::one_line;

use self::functions::Function;
use crate::control::outcome::{STATUS_FAILED, STATUS_HOST, STATUS_USAGE};

/// The driver that gives a function to VFIO.
const VFIO_PCI: &str = "vfio-pci";

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Show the functions.
    List,
    /// Take a function from its driver and give it to vfio-pci.
    Bind(Address),
    /// Take a function from vfio-pci and let the kernel choose its driver.
    Unbind(Address),
}

/// Where a function is: `0000:01:00.0`, the name of its directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(String);

/// The files that tell of the host's hardware.
#[derive(Debug)]
pub struct Host {
    sys: PathBuf,
    dev: PathBuf,
    proc: PathBuf,
}

/// Why a function cannot be changed, or none be shown.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
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
        /// What of it.
        what: String,
        /// What to do about it.
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
        /// What could not be read or written.
        path: PathBuf,
        /// The system's answer.
        problem: io::Error,
    },
}

impl VfioError {
    /// The exit status that says whose fault it is.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::NoDevice(_)
            | Self::Bridge(_)
            | Self::HostUses { .. }
            | Self::OtherDriver { .. }
            | Self::InUse { .. } => STATUS_USAGE,
            Self::NoIommu(_) | Self::NoDriver | Self::File { .. } => STATUS_HOST,
            Self::NotTaken(_) => STATUS_FAILED,
        }
    }

    /// The error in one line.
    #[must_use]
    pub fn line(&self) -> String {
        one_line(&self.to_string())
    }
}

impl Address {
    /// Reads `0000:01:00.0`, or `01:00.0` as lspci writes it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let full = if text.matches(':').count() == 1 { format!("0000:{text}") } else { text.to_owned() };
        let (place, function) = full.split_once('.')?;
        let hex = |text: &str, digits| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let fields: Vec<&str> = place.split(':').collect();
        let [domain, bus, device] = fields[..] else { return None };
        let is_place = (hex(domain, 4) || hex(domain, 8)) && hex(bus, 2) && hex(device, 2);
        let is_function = function.len() == 1 && function.bytes().all(|byte| (b'0'..b'8').contains(&byte));
        (is_place && is_function).then(|| Self(full.to_ascii_lowercase()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Default for Host {
    fn default() -> Self {
        Self { sys: "/sys".into(), dev: "/dev".into(), proc: "/proc".into() }
    }
}

impl Host {
    /// Does what is asked, and returns what is to be shown.
    ///
    /// # Errors
    /// See [`VfioError`].
    pub fn run(&self, command: &Command) -> Result<String, VfioError> {
        match command {
            Command::List => Ok(table::text(&self.functions()?)),
            Command::Bind(address) => self.bind(&self.function(address)?),
            Command::Unbind(address) => self.unbind(&self.function(address)?),
        }
    }

    fn functions(&self) -> Result<Vec<Function>, VfioError> {
        Function::all(&self.sys)
    }

    fn function(&self, address: &Address) -> Result<Function, VfioError> {
        let mut all = self.functions()?;
        let place = all.iter().position(|function| function.address == *address);
        place.map(|place| all.swap_remove(place)).ok_or_else(|| VfioError::NoDevice(address.clone()))
    }
}

/// The name at the end of a link; none: there is no link.
fn name_behind(link: &Path) -> Option<String> {
    let target = std::fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests;
