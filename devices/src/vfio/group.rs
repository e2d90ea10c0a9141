//! An IOMMU group as VFIO has it: all devices that the IOMMU cannot tell apart, given to one user at a time.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use vfio_bindings::bindings::vfio as spec;

use super::OpenError;
use super::ioctls;
use super::sysfs::{Function, Sysfs};

/// How long a client that has left may take to let go of the device's file.
pub(super) const LETTING_GO: Duration = Duration::from_secs(1);

/// An open group.
#[derive(Debug)]
pub(super) struct Group {
    file: File,
}

impl Group {
    /// Opens `/dev/vfio/N`, and makes sure that the whole group is for user space.
    pub(super) fn open(number: u32, sysfs: &Sysfs) -> Result<Self, OpenError> {
        let path = Path::new("/dev/vfio").join(number.to_string());
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => OpenError::Permission { path: path.clone() },
            io::ErrorKind::NotFound => OpenError::NoGroupFile { path: path.clone() },
            _ if error.raw_os_error() == Some(libc::EBUSY) => OpenError::Busy,
            _ => OpenError::Open { path: path.clone(), source: error },
        })?;
        Self::of(file, number, sysfs)
    }

    /// Takes over the group's file, which was opened by somebody else.
    pub(super) fn inherited(file: OwnedFd, number: u32, sysfs: &Sysfs) -> Result<Self, OpenError> {
        Self::of(file.into(), number, sysfs).map_err(|error| match error {
            OpenError::Kernel { .. } => OpenError::OtherFile,
            error => error,
        })
    }

    fn of(file: File, number: u32, sysfs: &Sysfs) -> Result<Self, OpenError> {
        let mut status = spec::vfio_group_status { argsz: 8, flags: 0 };
        // SAFETY: the kernel fills in a structure of this size.
        unsafe { ioctls::group_status(file.as_raw_fd(), &raw mut status) }
            .map_err(|errno| OpenError::Kernel { what: "asking for the state of its group", errno })?;
        if status.flags & spec::VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(OpenError::NotViable { others: in_the_way(&sysfs.group(number)) });
        }
        Ok(Self { file })
    }

    /// Takes over the file of one that a predecessor has opened.
    pub(super) fn adopt(file: OwnedFd) -> Self {
        Self { file: file.into() }
    }

    /// The file that KVM can be told of.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Puts the group into a container. A former user's device may have to be closed first: the group cannot leave its
    /// container while anybody has the device's file open, or mapped.
    pub(super) fn enter(&self, container: &File) -> Result<(), OpenError> {
        let number = container.as_raw_fd();
        let deadline = Instant::now() + LETTING_GO;
        loop {
            // SAFETY: the kernel reads an integer.
            match unsafe { ioctls::set_container(self.file.as_raw_fd(), &raw const number) } {
                Ok(_) => return Ok(()),
                // It is in a container still.
                Err(Errno::EINVAL) if Instant::now() < deadline => {
                    if !self.leave() {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
                Err(Errno::EINVAL | Errno::EBUSY) => return Err(OpenError::Busy),
                Err(errno) => return Err(OpenError::Kernel { what: "putting its group into a container", errno }),
            }
        }
    }

    /// Takes the group out of its container. False: a device of it is still open.
    pub(super) fn leave(&self) -> bool {
        // SAFETY: no argument.
        unsafe { ioctls::unset_container(self.file.as_raw_fd()) }.is_ok()
    }

    /// Opens a device of the group, which is in a container.
    pub(super) fn device(&self, name: &str) -> Result<OwnedFd, OpenError> {
        let what = "opening the device";
        let name = CString::new(name).map_err(|_| OpenError::Kernel { what, errno: Errno::EINVAL })?;
        // SAFETY: the kernel reads a string that ends in a zero.
        let fd = unsafe { ioctls::device_fd(self.file.as_raw_fd(), name.as_ptr()) };
        let fd = fd.map_err(|errno| match errno {
            Errno::EBUSY => OpenError::Busy,
            errno => OpenError::Kernel { what, errno },
        })?;
        // SAFETY: the kernel has just made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(fd)
    }
}

/// The functions of a group whose drivers keep it from user space, and those drivers.
fn in_the_way(functions: &[Function]) -> String {
    let of_host = functions.iter().filter(|function| function.is_in_the_way()).map(|function| match &function.driver {
        Some(driver) => format!("{} ({})", function.address, driver.0),
        None => function.address.to_string(),
    });
    of_host.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::Driver;
    use super::*;

    #[test]
    fn the_drivers_in_the_way_are_named() {
        let function = |name: &str, driver: Option<&str>| Function {
            address: name.parse().unwrap(),
            directory: name.into(),
            ids: (0, 0),
            class: 0,
            driver: driver.map(|driver| Driver(driver.to_owned())),
            group: Some(1),
        };
        let group = [
            function("0000:00:01.0", Some("pcieport")),
            function("0000:01:00.0", Some("vfio-pci")),
            function("0000:01:00.1", Some("snd_hda_intel")),
            function("0000:01:00.2", None),
            function("0000:01:00.3", Some("xhci_hcd")),
        ];
        assert_eq!(in_the_way(&group), "0000:01:00.1 (snd_hda_intel), 0000:01:00.3 (xhci_hcd)");
    }
}
