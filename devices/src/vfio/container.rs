//! The legacy container of VFIO, `/dev/vfio/vfio`, with the second version of its first type of IOMMU (type1v2).

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use outrigger_protocol::server::DmaRange;
use outrigger_protocol::wire;
use vfio_bindings::bindings::vfio as spec;
use zerocopy::FromBytes;

use super::OpenError;
use super::group::Group;
use super::ioctls;
use super::iommu::Iommu;

const PAGE: u64 = 4096;

pub(super) const PATH: &str = "/dev/vfio/vfio";

/// A container with a group in it. The group leaves it when this is dropped.
#[derive(Debug)]
pub(super) struct Container {
    file: File,
    group: Arc<Group>,
    usable: Option<Vec<RangeInclusive<u64>>>,
}

impl Container {
    /// Opens a container, puts the group into it and turns the IOMMU on.
    pub(super) fn open(group: &Arc<Group>) -> Result<Self, OpenError> {
        let file = open_file()?;
        group.enter(&file)?;
        let mut container = Self { file, group: Arc::clone(group), usable: None };
        // SAFETY: an integer argument.
        unsafe { ioctls::set_iommu(container.fd(), int(spec::VFIO_TYPE1v2_IOMMU)) }.map_err(|errno| match errno {
            Errno::EPERM => OpenError::InterruptsNotIsolated { module: "vfio_iommu_type1" },
            errno => OpenError::Kernel { what: "turning its IOMMU on", errno },
        })?;
        container.usable = container.read_usable()?;
        Ok(container)
    }

    /// Takes over one that a predecessor has opened, with the group in it.
    pub(super) fn adopt(file: OwnedFd, group: &Arc<Group>) -> Result<Self, OpenError> {
        let mut container = Self { file: file.into(), group: Arc::clone(group), usable: None };
        container.usable = container.read_usable()?;
        Ok(container)
    }

    /// Its file, for a successor; none: this kernel does not hand mappings over (before Linux 5.12).
    pub(super) fn keep(&self) -> io::Result<Option<OwnedFd>> {
        // SAFETY: an integer argument.
        let hands_over = unsafe { ioctls::check_extension(self.fd(), int(spec::VFIO_UPDATE_VADDR)) } == Ok(1);
        hands_over.then(|| self.file.as_fd().try_clone_to_owned()).transpose()
    }

    fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    fn read_usable(&self) -> Result<Option<Vec<RangeInclusive<u64>>>, OpenError> {
        let empty = [0; size_of::<spec::vfio_iommu_type1_info>()];
        // SAFETY: the kernel writes no more than the first word says.
        let info = unsafe { ioctls::answer(&empty, |info| ioctls::iommu_info(self.fd(), info.cast())) };
        let info = info.map_err(|errno| OpenError::Kernel { what: "asking its IOMMU", errno })?;
        Ok(usable_ranges(&info))
    }
}

fn open_file() -> Result<File, OpenError> {
    let file = OpenOptions::new().read(true).write(true).open(PATH).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => OpenError::Permission { path: PATH.into() },
        // The file stands for a module that is loaded when it is opened.
        _ if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::ENOENT)) => OpenError::NoContainer,
        _ => OpenError::Open { path: PATH.into(), source: error },
    })?;
    let kernel = |errno| OpenError::Kernel { what: "asking VFIO for its version", errno };
    // SAFETY: no argument.
    let version = unsafe { ioctls::api_version(file.as_raw_fd()) }.map_err(kernel)?;
    // SAFETY: an integer argument.
    let type1 = unsafe { ioctls::check_extension(file.as_raw_fd(), int(spec::VFIO_TYPE1v2_IOMMU)) }.map_err(kernel)?;
    match version == int(spec::VFIO_API_VERSION) && type1 == 1 {
        true => Ok(file),
        false => Err(OpenError::NoContainer),
    }
}

fn int(value: u32) -> i32 {
    value.cast_signed()
}

/// The DMA addresses that can be mapped, if the kernel tells them (`VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`, since 5.4).
fn usable_ranges(info: &[u8]) -> Option<Vec<RangeInclusive<u64>>> {
    let word = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    // struct vfio_iommu_type1_info: argsz, flags, iova_pgsizes, cap_offset.
    if word(4)? & spec::VFIO_IOMMU_INFO_CAPS == 0 {
        return None;
    }
    let mut next = word(16)? as usize;
    // Each is of 8 bytes at least; a longer chain is a loop.
    for _ in 0..info.len() / 8 {
        if next == 0 {
            return None;
        }
        let (header, _) = wire::CapHeader::read_from_prefix(info.get(next..)?).ok()?;
        if u32::from(header.id) == spec::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            // struct vfio_iommu_type1_info_cap_iova_range: header, nr_iovas, reserved, and then pairs.
            let pairs = (0..word(next + 8)? as usize).map(|pair| next + 16 + 16 * pair);
            return pairs.map(|at| Some(long(at)?..=long(at + 8)?)).collect();
        }
        next = header.next as usize;
    }
    None
}

impl Iommu for Container {
    fn usable(&self) -> Option<&[RangeInclusive<u64>]> {
        self.usable.as_deref()
    }

    fn map(&self, range: &DmaRange<'_>, host: usize) -> nix::Result<()> {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let request = spec::vfio_iommu_type1_dma_map {
            argsz: argsz::<spec::vfio_iommu_type1_dma_map>(),
            flags: flag(range.readable, spec::VFIO_DMA_MAP_FLAG_READ)
                | flag(range.writable, spec::VFIO_DMA_MAP_FLAG_WRITE),
            vaddr: host as u64,
            iova: range.address,
            size: range.size,
        };
        // SAFETY: the kernel reads the structure. It pins pages that are mapped for as long as the range is.
        unsafe { ioctls::map_dma(self.fd(), &raw const request) }.map(drop)
    }

    fn unmap(&self, address: u64, size: u64) -> nix::Result<()> {
        let mut request = spec::vfio_iommu_type1_dma_unmap {
            argsz: argsz::<spec::vfio_iommu_type1_dma_unmap>(),
            iova: address,
            size,
            ..Default::default()
        };
        // SAFETY: the kernel reads the structure, and writes its size.
        unsafe { ioctls::unmap_dma(self.fd(), &raw mut request) }?;
        if request.size == size { Ok(()) } else { Err(Errno::ENOENT) }
    }

    /// By the way that the kernel has for a process which is replaced (`VFIO_DMA_MAP_FLAG_VADDR`): the pages stay pinned and
    /// mapped, and count as this process's. It succeeds for a whole mapping only.
    fn adopt(&self, address: u64, size: u64, host: usize) -> nix::Result<bool> {
        let mut give_up = spec::vfio_iommu_type1_dma_unmap {
            argsz: argsz::<spec::vfio_iommu_type1_dma_unmap>(),
            flags: spec::VFIO_DMA_UNMAP_FLAG_VADDR,
            iova: address,
            size,
            ..Default::default()
        };
        // Fails where a successor before this one has done it, and was killed then.
        // SAFETY: the kernel reads the structure, and writes its size. Nothing is unmapped for the device.
        let _ = unsafe { ioctls::unmap_dma(self.fd(), &raw mut give_up) };
        let take = spec::vfio_iommu_type1_dma_map {
            argsz: argsz::<spec::vfio_iommu_type1_dma_map>(),
            flags: spec::VFIO_DMA_MAP_FLAG_VADDR,
            vaddr: host as u64,
            iova: address,
            size,
        };
        // SAFETY: the kernel reads the structure. The pages that are pinned stay the same.
        match unsafe { ioctls::map_dma(self.fd(), &raw const take) } {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn clear(&self, addresses: RangeInclusive<u64>) -> nix::Result<()> {
        let mut request = unmap_between(addresses);
        // SAFETY: the kernel reads the structure, and writes its size.
        match unsafe { ioctls::unmap_dma(self.fd(), &raw mut request) } {
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// The request to unmap whatever there is between two addresses.
fn unmap_between(addresses: RangeInclusive<u64>) -> spec::vfio_iommu_type1_dma_unmap {
    let (first, last) = addresses.into_inner();
    let mut request =
        spec::vfio_iommu_type1_dma_unmap { argsz: argsz::<spec::vfio_iommu_type1_dma_unmap>(), ..Default::default() };
    if (first, last) == (0, u64::MAX) {
        request.flags = spec::VFIO_DMA_UNMAP_FLAG_ALL;
    } else {
        // Where a range ends with the address space, the kernel (6.1) says that all is well and unmaps nothing: the address after
        // it is 0. No IOMMU has the last page.
        let last = last.min(u64::MAX - PAGE);
        (request.iova, request.size) = (first, last - first + 1);
    }
    request
}

impl Drop for Container {
    fn drop(&mut self) {
        self.group.leave();
    }
}

fn argsz<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("VFIO's structures are small")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u32, cap_offset: u32, rest: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        [0, flags].iter().for_each(|word: &u32| bytes.extend(word.to_ne_bytes()));
        bytes.extend(0x1000u64.to_ne_bytes());
        [cap_offset, 0].iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        rest.iter().for_each(|long| bytes.extend(long.to_ne_bytes()));
        bytes
    }

    /// A capability's header: id, version 1, next.
    fn header(id: u64, next: u64) -> u64 {
        id | 1 << 16 | next << 32
    }

    #[test]
    fn usable_ranges_are_found_behind_other_capabilities() {
        let ranges = [header(3, 40), 65535, header(1, 0), 2, 0, 0xfedf_ffff, 0xfef0_0000, (1 << 48) - 1];
        let expected = Some(vec![0..=0xfedf_ffff, 0xfef0_0000..=(1 << 48) - 1]);
        assert_eq!(usable_ranges(&info(2, 24, &ranges)), expected);
        assert_eq!(usable_ranges(&info(0, 24, &ranges)), None, "no capabilities");
        assert_eq!(usable_ranges(&info(2, 0, &ranges)), None);
    }

    /// Otherwise what a predecessor has mapped above the guest's memory stays open to the device, see [`unmap_between`].
    #[test]
    fn no_request_to_unmap_ends_with_the_address_space() {
        let request = |first, last| unmap_between(first..=last);
        let parts = |request: spec::vfio_iommu_type1_dma_unmap| (request.flags, request.iova, request.size);
        assert_eq!(parts(request(0, u64::MAX)), (spec::VFIO_DMA_UNMAP_FLAG_ALL, 0, 0));
        assert_eq!(parts(request(0x1000, 0x2fff)), (0, 0x1000, 0x2000));
        let (_, first, size) = parts(request(0x1_0000_0000, u64::MAX));
        assert_eq!((first, first + size), (0x1_0000_0000, u64::MAX - 0xfff));
    }

    #[test]
    fn a_chain_that_is_cut_off_or_a_loop_ends() {
        assert_eq!(usable_ranges(&info(2, 24, &[header(3, 24), 0])), None);
        assert_eq!(usable_ranges(&info(2, 24, &[header(1, 0), 2, 0, 1])), None);
        assert_eq!(usable_ranges(&info(2, 4000, &[])), None);
        assert_eq!(usable_ranges(&info(2, 24, &[])), None);
        assert_eq!(usable_ranges(&[]), None);
    }
}
