//! A physical PCI function of the host, opened by VFIO (`<linux/vfio.h>`).
//!
//! The process owns the function and stands beside its data path: the client maps the function's registers from VFIO's own
//! file, the function reaches the client's memory through the IOMMU, and its interrupts go from the kernel to the client's
//! eventfds. Messages are for the rest: configuration space, I/O ports, the expansion ROM, whatever is smaller than a page.

mod address;
mod cdev;
mod container;
mod device_file;
mod drivers;
mod function;
mod group;
mod ioctls;
mod iommu;
mod irqs;
mod journal;
mod kept;
mod options;
mod reach;
mod regions;
mod sysfs;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use log::{error, warn};
use nix::errno::Errno;
use outrigger_process::launch;
use outrigger_process::options::{OptionError, named};
use outrigger_protocol::journal::JournalFormat;
use outrigger_protocol::server::{Options, ServeError, Unopened, serve, serve_unopened};
use outrigger_protocol::wire::VfioTerms;

use crate::crew::Needs;
use crate::process::{Server, StartError};
use address::Address;
use device_file::DeviceFile;
use function::Succession;
use iommu::DeviceMemory;
use kept::Adopted;
use options::Settings;
use reach::{Opened, Reach};
use sysfs::Sysfs;

pub use drivers::Command;
pub use function::PhysicalFunction;
pub use options::HELP;

/// A physical function that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// The argument makes no sense.
    #[error("{}: {problem}", named("--vfio", argument))]
    Option {
        /// The argument as it was given.
        argument: String,
        /// The problem.
        problem: OptionError,
    },
    /// The function cannot be opened.
    #[error("{}: {source}", named("--vfio", argument))]
    Open {
        /// The argument as it was given.
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
         set allow_unsafe_interrupts=1 of the module {module}"
    )]
    InterruptsNotIsolated {
        /// The module that would allow it.
        module: &'static str,
    },
    /// iommufd is asked for.
    #[error("{key} cannot be had: {lack}; leave it out")]
    NoIommufd {
        /// The option that asks for it.
        key: &'static str,
        /// The missing part.
        lack: &'static str,
    },
    /// There is no such descriptor.
    #[error("{key}={fd}: no such descriptor is open")]
    NoDescriptor {
        /// The key that names it.
        key: &'static str,
        /// Its number.
        fd: i32,
    },
    /// A descriptor is of something else.
    #[error(
        "fd: this is neither the device's file (/dev/vfio/devices/vfioN) nor its group's (/dev/vfio/N), or not the one that iommu= needs"
    )]
    OtherFile,
    /// A client that maps memory for the device itself, and one that does not, are not the same.
    #[error("{}", if *.by_client { "the client would map memory for it, which takes dma=vmm here" } else { "with dma=vmm it is for a client that maps memory for it, as outrigger run --vfio does" })]
    OtherOwner {
        /// The client would.
        by_client: bool,
    },
    /// A device's file can be bound once, and was opened by somebody else.
    #[error("fd: the descriptor has served a client, and is good for one only")]
    Used,
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
    /// A predecessor has left something else than a function's files.
    #[error("what its predecessor has left is of no use: {what}")]
    Kept {
        /// The problem, in words.
        what: &'static str,
    },
    /// VFIO refuses something.
    #[error("{what}: {}", errno.desc())]
    Kernel {
        /// The action that failed.
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
            Self::Busy | Self::Used => Errno::EBUSY,
            Self::Permission { .. } | Self::InterruptsNotIsolated { .. } | Self::OtherOwner { .. } => Errno::EPERM,
            Self::Kernel { errno, .. } => *errno,
            _ => Errno::EIO,
        }
    }
}

impl StartError for VfioError {
    fn is_lack_of_host(&self) -> bool {
        use OpenError::{InterruptsNotIsolated, Kernel, NoContainer, NoGroupFile, NoIommu, NoIommufd, Permission};
        let Self::Open { source, .. } = self else { return false };
        matches!(
            source,
            NoIommu
                | NoIommufd { .. }
                | Permission { .. }
                | InterruptsNotIsolated { .. }
                | NoContainer
                | NoGroupFile { .. }
                | Kernel { .. }
        )
    }
}

/// A function that is this process's and not open yet.
#[derive(Debug)]
pub struct Vfio {
    name: String,
    address: Address,
    reach: Reach,
    /// The VMM has started this process for one client, and starts a successor: the function outlives this process.
    is_succeeded: bool,
    /// The files that a predecessor has left.
    adopted: Option<Adopted>,
    /// Memory is mapped for the device by the client, never by this process.
    by_client: bool,
    /// Once is enough: what a client does without has been said.
    has_warned: bool,
}

impl Vfio {
    /// Finds the function that a `--vfio` argument describes, and opens its file, or that of its group, or takes over what a
    /// predecessor has left. `is_succeeded`: this process has one client, which starts another one in its place if it ends.
    pub fn find(argument: &str, is_succeeded: bool) -> Result<Self, VfioError> {
        let settings =
            options::parse(argument).map_err(|problem| VfioError::Option { argument: argument.to_owned(), problem })?;
        // SAFETY: this is the one device of this process, and the only place that uses what was inherited for it.
        let kept = unsafe { launch::take_kept() }.map_err(|_| OpenError::Kept { what: "no open files" });
        kept.and_then(|kept| Self::take(&settings, &Sysfs::default(), kept, is_succeeded))
            .map_err(|source| VfioError::Open { argument: argument.to_owned(), source })
    }

    fn take(settings: &Settings, sysfs: &Sysfs, kept: Vec<OwnedFd>, is_succeeded: bool) -> Result<Self, OpenError> {
        let address = settings.address;
        let function = sysfs.function(address).ok_or(OpenError::NoDevice)?;
        let name = address.to_string();
        let group = function.group.ok_or(OpenError::NoIommu)?;
        match &function.driver {
            None => return Err(OpenError::Unbound { address: name }),
            Some(driver) if !driver.is_vfio() => {
                return Err(OpenError::Bound { address: name, driver: driver.0.clone() });
            }
            Some(_) => {}
        }
        let adopted = if kept.is_empty() { None } else { Some(Adopted::new(kept, group)?) };
        let reach = match &adopted {
            Some(adopted) => Reach::Container(Arc::clone(&adopted.group)),
            None => Reach::find(&function, settings, sysfs)?,
        };
        Ok(Self { name, address, reach, is_succeeded, adopted, by_client: settings.by_client, has_warned: false })
    }

    fn open_function(&mut self, by_client: bool) -> Result<PhysicalFunction, OpenError> {
        // One owner of what is mapped, and always the same.
        if by_client != self.by_client {
            return Err(OpenError::OtherOwner { by_client });
        }
        let Opened { file, iommu, kept } = self.reach.open(&self.name, self.is_succeeded, by_client)?;
        let (file, regions) = DeviceFile::new(file)?;
        let succession =
            kept.map(|files| Succession { address: self.address, files, is_successor: false, is_kept: false });
        PhysicalFunction::new(file, regions, DeviceMemory::new(iommu), succession)
    }

    /// The function as a predecessor has left it: neither reset nor otherwise changed.
    fn go_on(&self, adopted: Adopted) -> Result<PhysicalFunction, OpenError> {
        let Adopted { group, container, function } = adopted;
        let (file, regions) = DeviceFile::new(group.device(&self.name)?)?;
        drop(function);
        let memory = DeviceMemory::of_predecessor(Box::new(container));
        let (address, files) = (self.address, Vec::new());
        let succession = Succession { address, files, is_successor: true, is_kept: false };
        PhysicalFunction::new(file, regions, memory, Some(succession))
    }
}

/// When the function is dropped, it is closed, and VFIO resets it.
impl Unopened for Vfio {
    type Device = PhysicalFunction;

    fn file(&self) -> BorrowedFd<'_> {
        self.reach.file()
    }

    fn journal(&self) -> Option<JournalFormat> {
        (self.is_succeeded && self.reach.outlives_process()).then(journal::format)
    }

    fn open(&mut self, terms: VfioTerms) -> Result<PhysicalFunction, Errno> {
        if !terms.known_to_kvm && !std::mem::replace(&mut self.has_warned, true) {
            warn!(
                "{}: the client's KVM does not know of the device: memory that it accesses without the caches is cached \
                 all the same, and its interrupts are not posted",
                self.name
            );
        }
        self.open_function(terms.client_maps).map_err(|error| {
            error!("{} cannot be opened: {error}", self.name);
            error.errno()
        })
    }
}

impl Server for Vfio {
    /// KVM has its interrupts, and the client maps its registers.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn serve(&mut self, stream: UnixStream, options: &Options) -> Result<(), ServeError> {
        if let Some(adopted) = self.adopted.take() {
            let function = self.go_on(adopted).map_err(|error| {
                error!("{}: cannot go on: {error}", self.name);
                ServeError::NotOpened(error.errno())
            });
            return serve(&mut function?, stream, options);
        }
        if let Err(error) = self.reach.renew() {
            error!("{} cannot be opened: {error}", self.name);
            return Err(ServeError::NotOpened(error.errno()));
        }
        serve_unopened(self, stream, options)
    }
}
