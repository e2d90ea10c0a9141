//! How a function is reached: by its group and a container, or by its own file and an iommufd.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use log::{info, warn};
use nix::sys::stat::{SFlag, fstat};

use super::OpenError;
use super::cdev::{Cdev, OfClient};
use super::container::Container;
use super::group::Group;
use super::iommu::Iommu;
use super::kept;
use super::options::{IommuChoice, Settings};
use super::sysfs::{Function, Sysfs};

/// One of the two ways.
#[derive(Debug)]
pub(super) enum Reach {
    Container(Arc<Group>),
    Iommufd(Cdev),
}

impl Reach {
    /// Takes the way that was asked for, or the better one of those there are, and says which.
    pub(super) fn find(function: &Function, settings: &Settings, sysfs: &Sysfs) -> Result<Self, OpenError> {
        let group = function.group.ok_or(OpenError::NoIommu)?;
        let inherit = |key: &'static str, fd: Option<RawFd>| {
            fd.map(|fd| inherited(fd).ok_or(OpenError::NoDescriptor { key, fd })).transpose()
        };
        let file = inherit("fd", settings.fd)?;
        let iommufd = inherit("iommufd", settings.iommufd)?;
        let lack = function.lack_of_iommufd(iommufd.is_some());
        let address = function.address;
        let (reach, why) = match (settings.iommu, file) {
            (choice, Some(file)) => match (function.cdev_number(), settings.fd) {
                (Some(number), _) if is_device(&file, number) && choice != IommuChoice::Container => {
                    (Self::Iommufd(Cdev::inherited(file, group, iommufd)), "that is what fd= is for")
                }
                _ if choice != IommuChoice::Iommufd => {
                    (Self::Container(Arc::new(Group::inherited(file, group, sysfs)?)), "that is what fd= is for")
                }
                _ => return Err(OpenError::OtherFile),
            },
            (IommuChoice::Container, None) => {
                (Self::Container(Arc::new(Group::open(group, sysfs)?)), "as was asked for")
            }
            (IommuChoice::Iommufd, None) => match lack {
                Some(lack) => return Err(OpenError::NoIommufd { lack, key: settings.asks_for_iommufd() }),
                None => (Self::Iommufd(Cdev::open(function.cdev(), group, iommufd)?), "as was asked for"),
            },
            (IommuChoice::Auto, None) => match lack {
                Some(lack) => (Self::Container(Arc::new(Group::open(group, sysfs)?)), lack),
                None => {
                    (Self::Iommufd(Cdev::open(function.cdev(), group, iommufd)?), "the kernel and the device have it")
                }
            },
        };
        info!("{address} is reached by {}: {why}", reach.name());
        reach.check(sysfs)?;
        Ok(reach)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Container(_) => "the legacy container",
            Self::Iommufd(_) => "iommufd",
        }
    }

    /// Finds out what is wrong with the host now, before there is a client.
    fn check(&self, sysfs: &Sysfs) -> Result<(), OpenError> {
        match self {
            Self::Container(group) => Container::open(group).map(drop),
            Self::Iommufd(cdev) => cdev.check(sysfs),
        }
    }

    /// Makes ready for a client.
    pub(super) fn renew(&mut self) -> Result<(), OpenError> {
        match self {
            Self::Container(_) => Ok(()),
            Self::Iommufd(cdev) => cdev.renew(),
        }
    }

    /// The file that KVM can be told of.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        match self {
            Self::Container(group) => group.file(),
            Self::Iommufd(cdev) => cdev.file(),
        }
    }

    /// Whether the function can go on without this process: a container hands its mappings over, an iommufd does not.
    pub(super) fn outlives_process(&self) -> bool {
        matches!(self, Self::Container(_))
    }

    /// Opens the device. `is_succeeded`: with files for a successor, if there can be one.
    /// `by_client`: the client has bound the device, and maps memory for it.
    pub(super) fn open(&mut self, name: &str, is_succeeded: bool, by_client: bool) -> Result<Opened, OpenError> {
        match self {
            Self::Iommufd(cdev) if by_client => {
                Ok(Opened { file: cdev.of_client()?, iommu: Box::new(OfClient), kept: None })
            }
            Self::Container(group) => {
                let container = Container::open(group)?;
                let file = group.device(name)?;
                let kept = is_succeeded.then(|| {
                    kept::keep(group, &container, file.as_fd())
                        .inspect_err(|error| warn!("{name}: nothing can be kept for a successor: {error}"))
                });
                Ok(Opened { file, iommu: Box::new(container), kept: kept.and_then(Result::ok) })
            }
            Self::Iommufd(cdev) => {
                let (file, attached) = cdev.bind()?;
                Ok(Opened { file, iommu: Box::new(attached), kept: None })
            }
        }
    }
}

/// A device that is open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: OwnedFd,
    pub(super) iommu: Box<dyn Iommu>,
    /// For a successor; none: there is none, or it could not be kept.
    pub(super) kept: Option<Vec<OwnedFd>>,
}

/// Takes over a descriptor that was inherited.
fn inherited(fd: RawFd) -> Option<OwnedFd> {
    // 0 to 2 are this program's own.
    if fd <= 2 || !Path::new(&format!("/proc/self/fd/{fd}")).exists() {
        return None;
    }
    // SAFETY: it is open, and the user gave it to us by its number. A copy is made, as another key may name it, too.
    let given = unsafe { BorrowedFd::borrow_raw(fd) };
    given.try_clone_to_owned().ok()
}

/// Whether this is the character device of that number.
fn is_device(file: &OwnedFd, number: (u64, u64)) -> bool {
    fstat(file).is_ok_and(|stat| {
        SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR
            && (nix::sys::stat::major(stat.st_rdev), nix::sys::stat::minor(stat.st_rdev)) == number
    })
}
