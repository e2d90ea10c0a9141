//! Guest RAM: one memfd, mapped shared, so that device processes can map the same memory. The file is sealed: no
//! process that receives it can make it shorter, which would kill all others at their next access.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use outrigger_process::dump;
use vm_memory::mmap::{FromRangesError, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::machine::layout;

/// Guest memory as the `vm-memory` crate sees it.
pub type GuestMemoryMmap = vm_memory::GuestMemoryMmap<()>;

/// Size of the huge pages that `--memory SIZE,hugepages=on` asks for.
pub const HUGE_PAGE: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// Guest RAM that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Less than anything can run in, or not whole pages.
    #[error("{size} bytes of guest memory: must be a multiple of {unit} and at least {}", layout::MIN_RAM)]
    Size {
        /// Bytes asked for.
        size: u64,
        /// Page size.
        unit: u64,
    },
    /// The memory file could not be made.
    #[error("cannot {action} the file that holds {size} bytes of guest memory")]
    File {
        /// The action that failed.
        action: &'static str,
        /// Bytes asked for.
        size: u64,
        /// The system's answer.
        #[source]
        source: Errno,
    },
    /// The system has no (or too few) free huge pages.
    #[error(
        "the host has too few free huge pages: {pages} of {} KiB are needed; reserve them, for example with \
         `sysctl vm.nr_hugepages={pages}`, or leave out hugepages=on",
        HUGE_PAGE >> 10
    )]
    HugePages {
        /// How many are needed.
        pages: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file could not be mapped.
    #[error("cannot map {size} bytes of guest memory")]
    Map {
        /// Bytes asked for.
        size: u64,
        /// The system's answer.
        #[source]
        source: MmapRegionError,
    },
    /// The ranges do not make up an address space.
    #[error("guest memory does not fit into the address space")]
    Layout(#[from] FromRangesError),
}

/// One contiguous piece of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRegion {
    /// First guest-physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Where the piece starts in the memory file.
    pub file_offset: u64,
}

/// All of a guest's RAM.
#[derive(Debug)]
pub struct GuestRam {
    file: Arc<File>,
    memory: GuestMemoryMmap,
    size: u64,
}

impl GuestRam {
    /// `size` bytes of zeroed RAM, laid out as [`layout::ram_ranges`] says; in pages of 2 MiB with `huge_pages`.
    ///
    /// # Errors
    /// If `size` is not a multiple of the page size or the system does not have the memory (huge pages are reserved at once,
    /// others are taken when the guest first touches them).
    pub fn new(size: u64, huge_pages: bool) -> Result<Self, MemoryError> {
        let unit = if huge_pages { HUGE_PAGE } else { PAGE };
        if size < layout::MIN_RAM || !size.is_multiple_of(unit) {
            return Err(MemoryError::Size { size, unit });
        }
        let file = Arc::new(memory_file(size, huge_pages)?);
        let mut regions = Vec::new();
        let mut offset = 0;
        for range in layout::ram_ranges(size).into_iter().filter(|range| range.size() > 0) {
            let mapping = map(&file, offset, range.size(), huge_pages).map_err(|error| match error {
                // The user has to know how many pages all of RAM needs.
                MemoryError::HugePages { source, .. } => MemoryError::HugePages { pages: size / HUGE_PAGE, source },
                error => error,
            })?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(range.start));
            regions.push(region.ok_or(FromRangesError::InvalidGuestRegion)?);
            offset += range.size();
        }
        let memory = GuestMemoryMmap::from_regions(regions).map_err(FromRangesError::from)?;
        Ok(Self { file, memory, size })
    }

    /// The memory, for reading and writing at guest-physical addresses.
    #[must_use]
    pub fn mmap(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The memory file, to be handed to device processes.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// End of the RAM below 4 GiB, a guest-physical address.
    #[must_use]
    pub fn low_end(&self) -> u64 {
        layout::ram_ranges(self.size)[0].end
    }

    /// The pieces that RAM consists of, in ascending order.
    pub fn regions(&self) -> impl Iterator<Item = RamRegion> + use<> {
        let ranges = layout::ram_ranges(self.size).into_iter().filter(|range| range.size() > 0);
        ranges.scan(0, |offset, range| {
            let file_offset = *offset;
            *offset += range.size();
            Some(RamRegion { guest: range.start, size: range.size(), file_offset })
        })
    }

    /// Where `size` bytes of RAM from the guest-physical address `guest` on are mapped in this process; `None` unless all of
    /// them are RAM and contiguous. The guest and device processes write there at any time: never make a reference of it.
    #[must_use]
    pub fn host_address(&self, guest: u64, size: u64) -> Option<*mut u8> {
        let region = self.memory.find_region(GuestAddress(guest))?;
        let offset = guest - region.start_addr().0;
        let size = usize::try_from(size).ok()?;
        (size as u64 <= region.len() - offset)
            .then(|| region.as_ptr().wrapping_add(usize::try_from(offset).unwrap_or(0)))
    }
}

/// A sealed memfd of `size` bytes.
fn memory_file(size: u64, huge_pages: bool) -> Result<File, MemoryError> {
    let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    if huge_pages {
        flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    }
    let failed = |action| move |source| MemoryError::File { action, size, source };
    let file = memfd_create("outrigger-guest-ram", flags).map(File::from).map_err(|source| {
        if huge_pages {
            MemoryError::HugePages { pages: size / HUGE_PAGE, source: source.into() }
        } else {
            failed("create")(source)
        }
    })?;
    let length = i64::try_from(size).map_err(|_| failed("size")(Errno::EFBIG))?;
    nix::unistd::ftruncate(&file, length).map_err(failed("size"))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(failed("seal"))?;
    Ok(file)
}

/// `size` bytes from `offset` on, mapped shared.
fn map(file: &Arc<File>, offset: u64, size: u64, huge_pages: bool) -> Result<MmapRegion, MemoryError> {
    use nix::libc::{MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE};
    let length = usize::try_from(size).map_err(|_| MemoryError::Size { size, unit: PAGE })?;
    // Huge pages are reserved here, so that a lack of them shows now and not as SIGBUS in the middle of the guest's life.
    let flags = if huge_pages { MAP_SHARED } else { MAP_SHARED | MAP_NORESERVE };
    let file_offset = FileOffset::from_arc(Arc::clone(file), offset);
    let mapping =
        MmapRegion::build(Some(file_offset), length, PROT_READ | PROT_WRITE, flags).map_err(|source| match source {
            MmapRegionError::Mmap(source) if huge_pages => MemoryError::HugePages { pages: size / HUGE_PAGE, source },
            source => MemoryError::Map { size, source },
        })?;
    dump::exclude(mapping.as_ptr(), length);
    if !huge_pages {
        // SAFETY: the range is the whole of `mapping`, and this advice changes neither its content nor its validity.
        let advised = unsafe { nix::libc::madvise(mapping.as_ptr().cast(), length, nix::libc::MADV_HUGEPAGE) };
        if advised != 0 {
            log::debug!("no transparent huge pages for guest memory: {}", io::Error::last_os_error());
        }
    }
    Ok(mapping)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    const GIB: u64 = 1 << 30;

    #[test]
    fn regions_name_their_place_in_one_file() {
        let ram = GuestRam::new(4 * GIB, false).unwrap();
        let regions: Vec<_> = ram.regions().collect();
        assert_eq!(
            regions,
            [
                RamRegion { guest: 0, size: 3 * GIB, file_offset: 0 },
                RamRegion { guest: 4 * GIB, size: GIB, file_offset: 3 * GIB }
            ]
        );
        assert_eq!(ram.low_end(), 3 * GIB);
        for address in [0, 4 * GIB] {
            assert!(dump::is_excluded(ram.host_address(address, 1).unwrap()), "{address:#x} would be in a core dump");
        }
        // Data written at a guest address is found at the file offset that the region gives.
        ram.mmap().write_obj(0x1122_3344_u32, GuestAddress(4 * GIB + 0x1000)).unwrap();
        let mut word = [0; 4];
        nix::sys::uio::pread(ram.fd(), &mut word, i64::try_from(3 * GIB + 0x1000).unwrap()).unwrap();
        assert_eq!(u32::from_le_bytes(word), 0x1122_3344);
    }

    #[test]
    fn the_memory_file_cannot_be_resized_or_unsealed() {
        let ram = GuestRam::new(4 << 20, false).unwrap();
        assert_eq!(nix::unistd::ftruncate(ram.fd(), 0), Err(Errno::EPERM));
        assert_eq!(nix::unistd::ftruncate(ram.fd(), 8 << 20), Err(Errno::EPERM));
        assert_eq!(fcntl(ram.fd(), FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)), Err(Errno::EPERM));
    }

    #[test]
    fn host_addresses_exist_for_ram_only() {
        let ram = GuestRam::new(4 << 20, false).unwrap();
        let base = ram.host_address(0, 4 << 20).unwrap();
        assert_eq!(ram.host_address(0x1000, 0x1000), Some(base.wrapping_add(0x1000)));
        assert_eq!(ram.host_address(0x1000, 4 << 20), None);
        assert_eq!(ram.host_address(4 << 20, 1), None);
        assert_eq!(ram.host_address(0, u64::MAX), None);
    }

    #[test]
    fn odd_sizes_are_refused() {
        for (size, huge) in [(0, false), (4096, false), ((4 << 20) + 1, false), ((4 << 20) + 4096, true)] {
            assert!(matches!(GuestRam::new(size, huge), Err(MemoryError::Size { .. })), "{size}");
        }
    }

    #[test]
    fn missing_huge_pages_are_an_error_that_says_what_to_do() {
        // More than any machine has in huge pages.
        let error = GuestRam::new(1 << 45, true).unwrap_err();
        assert!(error.to_string().contains("vm.nr_hugepages=16777216"), "{error}");
    }
}
