//! KVM's knowledge of physical devices: the VFIO files behind which they are (kernel, Documentation/virt/kvm/devices/vfio.rst).
//!
//! KVM must know of a file before the device behind it is opened: a driver may use KVM then, and whether the guest's caches
//! have to be coherent with the device is decided. When the device goes, in whatever way, KVM forgets the file.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::DeviceFd;
use outrigger_iommufd::{AddressSpace, BindError, MapError, Memory};
use outrigger_protocol::foreign::ForeignFd;

use super::memory::{GuestRam, RamRegion};
use super::vm::Vm;

/// How long a user of a device before this one may take to let go of it.
const LETTING_GO: Duration = Duration::from_secs(1);

/// A file that KVM does not take.
#[derive(Debug, thiserror::Error)]
pub enum TieError {
    /// This host's KVM knows of no physical devices.
    #[error(
        "this host's KVM knows of no VFIO devices (KVM_DEV_TYPE_VFIO): is its kernel built without CONFIG_KVM_VFIO?"
    )]
    Missing(#[source] io::Error),
    /// It does not take this file.
    #[error("KVM does not take the device's file (KVM_DEV_VFIO_FILE_ADD)")]
    Refused(#[source] io::Error),
    /// There is no file.
    #[error("dma=vmm: the process has no physical device")]
    NoFile,
    /// There is no iommufd to be had.
    #[error("dma=vmm: cannot open {}", outrigger_iommufd::PATH)]
    NoIommufd(#[source] io::Error),
    /// The device cannot be bound to it.
    #[error("dma=vmm: the device's file cannot be bound to an iommufd")]
    Unbound(#[source] BindError),
    /// Memory that cannot be mapped for the device.
    #[error("dma=vmm")]
    Unmapped(#[source] MapError),
}

/// The VFIO files of a VM.
#[derive(Debug)]
pub struct VfioFiles {
    vm: Arc<Vm>,
    /// Made when it is first needed.
    device: Mutex<Option<DeviceFd>>,
}

/// A file that KVM knows of, until this is dropped.
#[derive(Debug)]
pub struct Tie {
    files: Arc<VfioFiles>,
    file: ForeignFd,
    /// Guest RAM as the device reaches it, if not its process but this one maps it (`dma=vmm`).
    space: Option<AddressSpace>,
}

impl VfioFiles {
    /// Without any file yet.
    #[must_use]
    pub fn new(vm: Arc<Vm>) -> Arc<Self> {
        Arc::new(Self { vm, device: Mutex::default() })
    }

    /// Tells KVM of `file`.
    ///
    /// # Errors
    /// See [`TieError`]. KVM checks what the file is, and takes none twice.
    pub fn tie(self: &Arc<Self>, file: ForeignFd) -> Result<Tie, TieError> {
        self.set(KVM_DEV_VFIO_FILE_ADD, &file)?;
        Ok(Tie { files: Arc::clone(self), file, space: None })
    }

    /// Adds a file or deletes it. Kernels before 6.2 have the same under the name of `KVM_DEV_VFIO_GROUP`.
    fn set(&self, attribute: u32, file: &ForeignFd) -> Result<(), TieError> {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let device = match &mut *device {
            Some(device) => device,
            none => none.insert(self.create()?),
        };
        let fd = file.lend().as_raw_fd();
        let addr = (&raw const fd) as u64;
        let attr = u64::from(attribute);
        device
            .set_device_attr(&kvm_device_attr { flags: 0, group: KVM_DEV_VFIO_FILE, attr, addr })
            .map_err(|error| TieError::Refused(error.into()))
    }

    fn create(&self) -> Result<DeviceFd, TieError> {
        let mut device = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
        self.vm.fd().create_device(&mut device).map_err(|error| TieError::Missing(error.into()))
    }
}

impl Tie {
    /// Binds the device to an iommufd of its own, and maps guest RAM for it there. Its process, which has the device's file, can
    /// attach it to nothing else that anything is mapped in.
    ///
    /// # Errors
    /// See [`TieError`].
    pub fn map(&mut self, ram: &GuestRam) -> Result<(), TieError> {
        let iommufd = outrigger_iommufd::open().map_err(TieError::NoIommufd)?;
        let space = AddressSpace::of_device(iommufd, self.file.lend(), LETTING_GO).map_err(TieError::Unbound)?;
        // From here on it is detached when this is dropped.
        let space = self.space.insert(space);
        for RamRegion { guest, size, file_offset } in ram.regions() {
            let last = guest + (size - 1);
            MapError::check_usable(space.usable(), guest, last).map_err(TieError::Unmapped)?;
            let host = ram.host_address(guest, size).expect("a region of RAM is mapped in one piece") as usize;
            let file = Some((ram.fd(), file_offset));
            let memory = Memory { address: guest, size, host, file, readable: true, writable: true };
            let mapped = space.map(&memory);
            mapped.map_err(|errno| TieError::Unmapped(MapError::of(errno, guest, last, ram.size())))?;
        }
        Ok(())
    }
}

impl Drop for Tie {
    fn drop(&mut self) {
        if let Some(space) = self.space.take() {
            // Other holders of the file keep a device that reaches nothing.
            space.detach(self.file.lend());
        }
        if let Err(error) = self.files.set(KVM_DEV_VFIO_FILE_DEL, &self.file) {
            log::error!("KVM does not forget a VFIO device's file: {error:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// KVM itself says what is none of VFIO's files, whatever a device process calls it.
    #[test]
    fn kvm_refuses_what_is_no_vfio_file() {
        let files = VfioFiles::new(Vm::new(1).unwrap());
        for _ in 0..2 {
            let refused = files.tie(File::open("/dev/null").unwrap().into()).unwrap_err();
            assert!(
                matches!(&refused, TieError::Refused(error) if error.raw_os_error() == Some(nix::libc::EINVAL)),
                "{refused:?}"
            );
        }
    }
}
