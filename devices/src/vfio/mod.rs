//! A physical PCI function of the host, opened by VFIO (`<linux/vfio.h>`).
//!
//! The process owns the function and stands beside its data path: the client maps the function's registers from VFIO's own
//! file, the function reaches the client's memory through the IOMMU, and its interrupts go from the kernel to the client's
//! eventfds. Messages are for the rest: configuration space, I/O ports, the expansion ROM, whatever is smaller than a page.

mod address;
mod container;
mod device_file;
mod drivers;
mod function;
mod group;
mod ioctls;
mod iommu;
mod irqs;
mod options;
mod regions;
mod sysfs;

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use log::{error, warn};
use nix::errno::Errno;
use outrigger_process::options::{OptionError, named};
use outrigger_protocol::server::{Options, ServeError, Unopened, serve_unopened};

use crate::process::{Server, StartError};
use address::Address;
use container::Container;
use device_file::DeviceFile;
use group::Group;
use iommu::DeviceMemory;
use sysfs::{Function, Sysfs};

pub use drivers::Command;
pub use function::PhysicalFunction;
pub use options::HELP;

/// A physical function that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// The argument makes no sense.
    #[error("{}: {problem}", named("--vfio", argument))]
    Option {
        /// What was given.
        argument: String,
        /// The problem.
        problem: OptionError,
    },
    /// The function cannot be opened.
    #[error("{}: {source}", named("--vfio", argument))]
    Open {
        /// What was given.
        argument: String,
        /// Why.
        source: OpenError,
    },
}

/// Why a function cannot be opened, in one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Nothing at this address.
    #[error("no such PCI device; outrigger vfio list shows those there are")]
    NoDevice,
    /// A driver of the host has it.
    #[error("bound to the driver {driver}: run outrigger vfio bind {address}")]
    Bound {
        /// Which function.
        address: String,
        /// Which driver.
        driver: String,
    },
    /// No driver has it.
    #[error("bound to no driver: run outrigger vfio bind {address}")]
    Unbound {
        /// Which function.
        address: String,
    },
    /// It could reach all of the host's memory.
    #[error(
        "no IOMMU in front of it: turn it on in the firmware, and by intel_iommu=on or amd_iommu=on for the kernel"
    )]
    NoIommu,
    /// Devices that the IOMMU cannot tell from it are the host's.
    #[error("its IOMMU group cannot be given away as the host uses {others}: bind them with outrigger vfio bind, too")]
    NotViable {
        /// Their addresses and drivers.
        others: String,
    },
    /// Another process has it.
    #[error("in use by another process")]
    Busy,
    /// This user may not.
    #[error("permission denied for {}: give it to this user (chown), or run as root", path.display())]
    Permission {
        /// Which file.
        path: PathBuf,
    },
    /// A device could interrupt whoever it likes.
    #[error(
        "the host does not keep its interrupts apart (interrupt remapping); to accept that, \
         set allow_unsafe_interrupts=1 of the module vfio_iommu_type1"
    )]
    InterruptsNotIsolated,
    /// Modules are missing.
    #[error("the kernel has no VFIO: load the modules vfio-pci and vfio_iommu_type1")]
    NoContainer,
    /// Its driver does not serve groups.
    #[error("{} is missing: load the module vfio-pci, and bind the device again", path.display())]
    NoGroupFile {
        /// Which file.
        path: PathBuf,
    },
    /// A file cannot be opened for another reason.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// VFIO refuses something.
    #[error("{what}: {}", errno.desc())]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
}

impl OpenError {
    /// The errno for the client.
    fn errno(&self) -> Errno {
        match self {
            Self::NoDevice => Errno::ENODEV,
            Self::Busy => Errno::EBUSY,
            Self::Permission { .. } | Self::InterruptsNotIsolated => Errno::EPERM,
            Self::Kernel { errno, .. } => *errno,
            _ => Errno::EIO,
        }
    }
}

impl StartError for VfioError {
    fn is_lack_of_host(&self) -> bool {
        use OpenError::{InterruptsNotIsolated, Kernel, NoContainer, NoGroupFile, NoIommu, Permission};
        let Self::Open { source, .. } = self else { return false };
        matches!(
            source,
            NoIommu | Permission { .. } | InterruptsNotIsolated | NoContainer | NoGroupFile { .. } | Kernel { .. }
        )
    }
}

/// A function that is this process's and not open yet.
#[derive(Debug)]
pub struct Vfio {
    name: String,
    group: Arc<Group>,
    /// Once is enough: what a client does without has been said.
    has_warned: bool,
}

impl Vfio {
    /// Finds the function that a `--vfio` argument describes, and opens its group.
    pub fn find(argument: &str) -> Result<Self, VfioError> {
        let address =
            options::parse(argument).map_err(|problem| VfioError::Option { argument: argument.to_owned(), problem })?;
        Self::take(address, &Sysfs::default())
            .map_err(|source| VfioError::Open { argument: argument.to_owned(), source })
    }

    fn take(address: Address, sysfs: &Sysfs) -> Result<Self, OpenError> {
        let Function { driver, group, .. } = sysfs.function(address).ok_or(OpenError::NoDevice)?;
        let name = address.to_string();
        let group = group.ok_or(OpenError::NoIommu)?;
        match driver {
            None => return Err(OpenError::Unbound { address: name }),
            Some(driver) if !driver.is_vfio() => return Err(OpenError::Bound { address: name, driver: driver.0 }),
            Some(_) => {}
        }
        let group = Arc::new(Group::open(group, sysfs)?);
        // What is wrong with the host is found now, before there is a client.
        drop(Container::open(&group)?);
        Ok(Self { name, group, has_warned: false })
    }

    fn open_function(&self) -> Result<PhysicalFunction, OpenError> {
        let memory = DeviceMemory::new(Box::new(Container::open(&self.group)?));
        let (file, regions) = DeviceFile::new(self.group.device(&self.name)?)?;
        PhysicalFunction::new(file, regions, memory)
    }
}

/// When the function is dropped, it is closed, and VFIO resets it.
impl Unopened for Vfio {
    type Device = PhysicalFunction;

    fn file(&self) -> BorrowedFd<'_> {
        self.group.file()
    }

    fn open(&mut self, known_to_kvm: bool) -> Result<PhysicalFunction, Errno> {
        if !known_to_kvm && !std::mem::replace(&mut self.has_warned, true) {
            warn!(
                "{}: the client's KVM does not know of the device: memory that it accesses without the caches is cached \
                 all the same, and its interrupts are not posted",
                self.name
            );
        }
        self.open_function().map_err(|error| {
            error!("{} cannot be opened: {error}", self.name);
            error.errno()
        })
    }
}

impl Server for Vfio {
    fn serve(&mut self, stream: UnixStream, options: &Options) -> Result<(), ServeError> {
        serve_unopened(self, stream, options)
    }
}
