//! I/O address spaces of the kernel's iommufd (Linux, Documentation/userspace-api/iommufd.rst): the memory that one physical
//! device reaches. The process of a device has one, or its client where that maps guest memory (`dma=vmm`).

mod error;
mod ioctls;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iommufd_bindings::iommufd as spec;
use nix::errno::Errno;
use vfio_bindings::bindings::vfio;

pub use error::{BindError, MapError, Step};

/// The file of iommufd.
pub const PATH: &str = "/dev/iommu";
/// Far more ranges than any host reserves.
const MOST_RANGES: usize = 4096;

/// The address space of one device, in an iommufd that has no other. When this is dropped nothing is mapped there any more,
/// whoever else holds the device's file.
#[derive(Debug)]
pub struct AddressSpace {
    iommufd: File,
    id: u32,
    usable: Vec<RangeInclusive<u64>>,
    /// The kernel may map files (`IOMMU_IOAS_MAP_FILE`, Linux 6.13).
    maps_files: AtomicBool,
}

/// Memory to be mapped.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    /// The first I/O address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// Where it is in this process.
    pub host: usize,
    /// The memfd that it is in, and where there: mapped without reference to this process, where the kernel can.
    pub file: Option<(BorrowedFd<'a>, u64)>,
    /// Whether the device may read it.
    pub readable: bool,
    /// Whether the device may write it.
    pub writable: bool,
}

/// Opens the file of iommufd.
///
/// # Errors
/// The kernel has none, or this user may not.
pub fn open() -> io::Result<OwnedFd> {
    OpenOptions::new().read(true).write(true).open(PATH).map(Into::into)
}

impl AddressSpace {
    /// Binds a device to an iommufd, by which it is opened, and attaches it to an address space of its own. `device` is the
    /// character device of VFIO's (`/dev/vfio/devices/vfioN`), of which KVM has been told before. There is one user at a time:
    /// a former one may take as long as `patience` to let go of it.
    ///
    /// # Errors
    /// The step that fails. `EINVAL` from the first: the device is open already, or this is no such file.
    pub fn of_device(iommufd: OwnedFd, device: BorrowedFd<'_>, patience: Duration) -> Result<Self, BindError> {
        let mut bind = vfio::vfio_device_bind_iommufd {
            argsz: size::<vfio::vfio_device_bind_iommufd>(),
            iommufd: iommufd.as_raw_fd(),
            ..Default::default()
        };
        let deadline = Instant::now() + patience;
        loop {
            // SAFETY: the kernel reads and writes a structure of this size.
            match unsafe { ioctls::bind(device.as_raw_fd(), &raw mut bind) } {
                Ok(_) => break,
                Err(Errno::EINVAL | Errno::EBUSY) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(errno) => return Err(Step::Bind.failed()(errno)),
            }
        }
        let mut alloc = spec::iommu_ioas_alloc { size: size::<spec::iommu_ioas_alloc>(), ..Default::default() };
        // SAFETY: as above.
        unsafe { ioctls::alloc(iommufd.as_raw_fd(), &raw mut alloc) }.map_err(Step::Alloc.failed())?;
        let (id, usable, maps_files) = (alloc.out_ioas_id, Vec::new(), AtomicBool::new(true));
        let mut space = Self { iommufd: iommufd.into(), id, usable, maps_files };
        let mut attach = vfio::vfio_device_attach_iommufd_pt {
            argsz: size::<vfio::vfio_device_attach_iommufd_pt>(),
            pt_id: id,
            ..Default::default()
        };
        // SAFETY: as above.
        unsafe { ioctls::attach(device.as_raw_fd(), &raw mut attach) }.map_err(Step::Attach.failed())?;
        // The device leaves only some of all addresses, which are known from now on.
        space.usable = space.read_usable().map_err(Step::Ranges.failed())?;
        Ok(space)
    }

    /// Takes a device out of its address space: it reaches nothing from then on.
    pub fn detach(&self, device: BorrowedFd<'_>) {
        let argsz = size::<vfio::vfio_device_detach_iommufd_pt>();
        let mut detach = vfio::vfio_device_detach_iommufd_pt { argsz, ..Default::default() };
        // SAFETY: the kernel reads a structure of this size.
        if let Err(errno) = unsafe { ioctls::detach(device.as_raw_fd(), &raw mut detach) } {
            log::error!("a device cannot be detached from its address space: {}", errno.desc());
        }
    }

    /// The addresses that can be mapped.
    #[must_use]
    pub fn usable(&self) -> &[RangeInclusive<u64>] {
        &self.usable
    }

    fn read_usable(&self) -> nix::Result<Vec<RangeInclusive<u64>>> {
        let mut ranges = vec![spec::iommu_iova_range::default(); 32];
        loop {
            let mut request = spec::iommu_ioas_iova_ranges {
                size: size::<spec::iommu_ioas_iova_ranges>(),
                ioas_id: self.id,
                num_iovas: u32::try_from(ranges.len()).map_err(|_| Errno::E2BIG)?,
                allowed_iovas: ranges.as_mut_ptr() as u64,
                ..Default::default()
            };
            // SAFETY: the kernel writes no more ranges than there is room for, and the structure.
            let done = unsafe { ioctls::iova_ranges(self.iommufd.as_raw_fd(), &raw mut request) };
            let count = request.num_iovas as usize;
            match done {
                Ok(_) => {
                    ranges.truncate(count);
                    return Ok(ranges.iter().map(|range| range.start..=range.last).collect());
                }
                Err(Errno::EMSGSIZE) if count > ranges.len() && count <= MOST_RANGES => {
                    ranges.resize(count, Default::default());
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Maps memory. The kernel pins its pages.
    ///
    /// # Errors
    /// The kernel's.
    pub fn map(&self, memory: &Memory<'_>) -> nix::Result<()> {
        if let Some((file, start)) = memory.file
            && self.maps_files.load(Ordering::Relaxed)
        {
            match self.map_file(memory, file, start) {
                Err(errno @ (Errno::ENOTTY | Errno::EOPNOTSUPP)) => {
                    log::debug!("mapped by address, as the kernel does not map the file: {}", errno.desc());
                    self.maps_files.store(false, Ordering::Relaxed);
                }
                done => return done,
            }
        }
        let mut request = spec::iommu_ioas_map {
            size: size::<spec::iommu_ioas_map>(),
            flags: flags(memory),
            ioas_id: self.id,
            user_va: memory.host as u64,
            length: memory.size,
            iova: memory.address,
            ..Default::default()
        };
        // SAFETY: the kernel reads the structure. It pins pages that are mapped for as long as the range is.
        unsafe { ioctls::map(self.iommufd.as_raw_fd(), &raw mut request) }.map(drop)
    }

    fn map_file(&self, memory: &Memory<'_>, file: BorrowedFd<'_>, start: u64) -> nix::Result<()> {
        let mut request = spec::iommu_ioas_map_file {
            size: size::<spec::iommu_ioas_map_file>(),
            flags: flags(memory),
            ioas_id: self.id,
            fd: file.as_raw_fd(),
            start,
            length: memory.size,
            iova: memory.address,
        };
        // SAFETY: the kernel reads the structure, and holds the file's pages by itself.
        unsafe { ioctls::map_file(self.iommufd.as_raw_fd(), &raw mut request) }.map(drop)
    }

    /// Unmaps exactly what was mapped.
    ///
    /// # Errors
    /// The kernel's; `ENOENT` if nothing, or something else, is mapped there.
    pub fn unmap(&self, address: u64, size: u64) -> nix::Result<()> {
        let unmapped = self.unmap_within(address, size)?;
        if unmapped == size { Ok(()) } else { Err(Errno::ENOENT) }
    }

    fn unmap_within(&self, iova: u64, length: u64) -> nix::Result<u64> {
        let mut request =
            spec::iommu_ioas_unmap { size: size::<spec::iommu_ioas_unmap>(), ioas_id: self.id, iova, length };
        // SAFETY: the kernel reads the structure, and writes a length.
        unsafe { ioctls::unmap(self.iommufd.as_raw_fd(), &raw mut request) }?;
        Ok(request.length)
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        // Everything there is. Somebody who holds the device's file keeps the iommufd alive, but not what was mapped.
        match self.unmap_within(0, u64::MAX) {
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(errno) => log::error!("memory cannot be closed to a device: {}", errno.desc()),
        }
        let mut request = spec::iommu_destroy { size: size::<spec::iommu_destroy>(), id: self.id };
        // Fails while the device is attached; then the address space, which is empty, ends with the device's file.
        // SAFETY: the kernel reads the structure.
        let _ = unsafe { ioctls::destroy(self.iommufd.as_raw_fd(), &raw mut request) };
    }
}

fn flags(memory: &Memory<'_>) -> u32 {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    spec::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA
        | flag(memory.readable, spec::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE)
        | flag(memory.writable, spec::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE)
}

fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("the kernel's structures are small")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_device_is_not_bound() {
        let null = || OwnedFd::from(OpenOptions::new().read(true).write(true).open("/dev/null").expect("it is there"));
        let device = null();
        let error = AddressSpace::of_device(null(), device.as_fd(), Duration::ZERO).expect_err("it is no device");
        assert_eq!((error.step, error.errno), (Step::Bind, Errno::ENOTTY));
        assert_eq!(error.to_string(), "VFIO_DEVICE_BIND_IOMMUFD: Not a typewriter");
    }
}
