//! A device's own file, `/dev/vfio/devices/vfioN`, and the iommufd that it is bound to (Linux 6.6,
//! Documentation/driver-api/vfio.rst, "VFIO Device cdev").

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use outrigger_iommufd::{AddressSpace, BindError, Memory, Step};
use outrigger_protocol::server::DmaRange;

use super::OpenError;
use super::group::{Group, LETTING_GO};
use super::iommu::Iommu;
use super::sysfs::Sysfs;

/// A device's file, which can be bound to an iommufd once.
#[derive(Debug)]
pub(super) struct Cdev {
    file: File,
    /// Where it can be opened again; none: it was opened by somebody else.
    path: Option<PathBuf>,
    /// There was a client that may have bound the file.
    was_offered: bool,
    /// This process has bound the file.
    is_used: bool,
    /// An iommufd that was opened by somebody else.
    iommufd: Option<OwnedFd>,
    group: u32,
}

impl Cdev {
    /// Opens the device's file.
    pub(super) fn open(path: PathBuf, group: u32, iommufd: Option<OwnedFd>) -> Result<Self, OpenError> {
        Ok(Self { file: open_file(&path)?, path: Some(path), was_offered: false, is_used: false, iommufd, group })
    }

    /// Takes over the device's file.
    pub(super) fn inherited(file: OwnedFd, group: u32, iommufd: Option<OwnedFd>) -> Self {
        Self { file: file.into(), path: None, was_offered: false, is_used: false, iommufd, group }
    }

    /// Finds out whether the device can be had, without opening it: KVM is to know of it before.
    pub(super) fn check(&self, sysfs: &Sysfs) -> Result<(), OpenError> {
        match Group::open(self.group, sysfs) {
            // The rest shows when the device is opened: groups may be none of this user's or this kernel's.
            Ok(_) | Err(OpenError::Permission { .. } | OpenError::NoGroupFile { .. }) => {}
            Err(error) => return Err(error),
        }
        self.own_iommufd().map(drop)
    }

    /// The file that KVM can be told of.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Has a file for the next client that no client has had.
    pub(super) fn renew(&mut self) -> Result<(), OpenError> {
        if let (Some(path), true) = (&self.path, std::mem::replace(&mut self.was_offered, true)) {
            self.file = open_file(path)?;
            self.is_used = false;
        }
        Ok(())
    }

    fn own_iommufd(&self) -> Result<OwnedFd, OpenError> {
        let opened = match &self.iommufd {
            Some(inherited) => inherited.try_clone(),
            None => outrigger_iommufd::open(),
        };
        opened.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => OpenError::Permission { path: outrigger_iommufd::PATH.into() },
            _ => OpenError::Open { path: outrigger_iommufd::PATH.into(), source: error },
        })
    }

    /// Opens the device. The client of before may have to let go of it first: there is one user at a time.
    pub(super) fn bind(&mut self) -> Result<(OwnedFd, Attached), OpenError> {
        if self.path.is_none() && self.is_used {
            return Err(OpenError::Used);
        }
        let space = AddressSpace::of_device(self.own_iommufd()?, self.file.as_fd(), LETTING_GO).map_err(explain)?;
        self.is_used = true;
        let file = self.file.as_fd().try_clone_to_owned().map_err(|error| no_descriptor(&error))?;
        let device = file.try_clone().map_err(|error| no_descriptor(&error))?;
        Ok((file, Attached { device, space }))
    }

    /// The device, which the client has bound to an iommufd of its own.
    pub(super) fn of_client(&mut self) -> Result<OwnedFd, OpenError> {
        if self.path.is_none() && self.is_used {
            return Err(OpenError::Used);
        }
        self.is_used = true;
        self.file.as_fd().try_clone_to_owned().map_err(|error| no_descriptor(&error))
    }
}

/// Memory that the client maps for a device which it has bound itself: nothing of it comes to this process.
#[derive(Debug)]
pub(super) struct OfClient;

impl Iommu for OfClient {
    fn usable(&self) -> Option<&[RangeInclusive<u64>]> {
        None
    }

    fn map(&self, _: &DmaRange<'_>, _: usize) -> nix::Result<()> {
        Err(Errno::EPERM)
    }

    fn unmap(&self, _: u64, _: u64) -> nix::Result<()> {
        Err(Errno::EPERM)
    }
}

fn open_file(path: &Path) -> Result<File, OpenError> {
    OpenOptions::new().read(true).write(true).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => OpenError::Permission { path: path.into() },
        _ => OpenError::Open { path: path.into(), source: error },
    })
}

fn no_descriptor(error: &io::Error) -> OpenError {
    OpenError::Kernel { what: "having a descriptor", errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)) }
}

fn explain(error: BindError) -> OpenError {
    match (error.step, error.errno) {
        _ if error.is_in_use() => OpenError::Busy,
        (Step::Bind, Errno::EPERM) => OpenError::InterruptsNotIsolated { module: "iommufd" },
        (step, errno) => OpenError::Kernel { what: step.name(), errno },
    }
}

/// A device in its address space, until this is dropped.
#[derive(Debug)]
pub(super) struct Attached {
    device: OwnedFd,
    space: AddressSpace,
}

impl Iommu for Attached {
    fn usable(&self) -> Option<&[RangeInclusive<u64>]> {
        Some(self.space.usable())
    }

    fn map(&self, range: &DmaRange<'_>, host: usize) -> nix::Result<()> {
        let &DmaRange { address, size, readable, writable, .. } = range;
        self.space.map(&Memory { address, size, host, file: None, readable, writable })
    }

    fn unmap(&self, address: u64, size: u64) -> nix::Result<()> {
        self.space.unmap(address, size)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // A client that has left may hold the device's file.
        self.space.detach(self.device.as_fd());
    }
}
