//! The path without any exit: an area of a region in the server's memory, mapped here and shown to the guest.
//!
//! The file is the server's, and what becomes of it is the server's choice. So only memory is mapped, tmpfs (a memfd
//! is that, too) and hugetlbfs, and hardware: the registers of a physical device, through a file of the kernel's VFIO. A
//! page of anything else may take as long as a disk or another process (FUSE) likes, and a vCPU that touches it waits
//! without a deadline.
//!
//! Memory can still go away: a file is made shorter, or a hole is made in it and no page is left to fill it. The guest's
//! access then fails, and KVM does not say where; [`MappedArea::check_reachable`] finds out, by calls that fail where a
//! read or write by this process would be killed. Hardware goes away, too: its memory space is disabled, or it is put to
//! sleep, by a process that does so while the BAR is decoded. No call reaches for a register without reading it, so
//! hardware is suspected last, see [`MappedArea::is_hardware_there`].

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::libc::{self, iovec, off_t};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::{FileStat, fstat};

use outrigger_protocol::client::RegionInfo;
use outrigger_protocol::foreign::{ForeignFd, NotMemory};
use outrigger_protocol::wire;

use super::peer_to_peer::Target;
use super::plan::Reason;

const PAGE: usize = 4096;
/// The most that is mapped of one region. Where KVM keeps its own page tables for the guest it takes 2 GiB of kernel memory
/// and about three seconds to show a guest 1 TiB, whether or not there is anything in it; this much takes 0.1 s.
const LARGEST: u64 = 32 << 30;
/// Pages that [`MappedArea::check_reachable`] looks at in one step.
const STEP: usize = 1 << 16;
/// Pages that are not there which it tries to reach, of each area.
const TRIES: usize = 4;

/// A mapping of one area. Nobody here reads or writes it.
#[derive(Debug)]
pub(super) struct MappedArea {
    /// Where in the region.
    pub(super) range: Range<u64>,
    pub(super) readonly: bool,
    host: NonNull<c_void>,
    length: usize,
    file: Arc<ForeignFd>,
    backing: Backing,
}

/// The thing behind a mapping.
#[derive(Debug)]
enum Backing {
    Memory {
        /// Where the area ends in the file.
        end: u64,
        /// When the file's length, or anything else about it, was last seen to change: seconds, nanoseconds.
        changed: Mutex<(i64, i64)>,
    },
    /// Registers of a physical device.
    Hardware {
        /// Where the area starts in the file.
        offset: u64,
    },
}

// SAFETY: the address is only handed to KVM and to system calls that check it, none of which care about threads.
unsafe impl Send for MappedArea {}
// SAFETY: as above; there is no interior access.
unsafe impl Sync for MappedArea {}

/// Why an area is out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// The file ends before it.
    Shortened,
    /// There is no page for a hole in the file.
    NoPage(Errno),
    /// The file changes while accesses to some area fail.
    Changing,
}

/// Whether `range` of a region can be mapped, and if it is hardware; otherwise why not.
pub(super) fn check(region: &RegionInfo, range: &Range<u64>) -> Result<bool, Reason> {
    let Some(fd) = &region.fd else { return Err(Reason::NotMemory) };
    let end = region.offset.checked_add(range.end).ok_or(Reason::BeyondFile)?;
    // How far a device's registers go only its driver knows, which checks that when they are mapped.
    let is_hardware = fd.lend_vfio_device().is_some();
    if !is_hardware && end > fd.memory().map_err(|NotMemory| Reason::NotMemory)?.length {
        return Err(Reason::BeyondFile);
    }
    if range.end - range.start > LARGEST { Err(Reason::TooLarge) } else { Ok(is_hardware) }
}

impl MappedArea {
    /// Maps `range`, which has been checked. `file` is the region's.
    pub(super) fn new(region: &RegionInfo, file: &Arc<ForeignFd>, range: Range<u64>) -> io::Result<Self> {
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let nonzero = NonZeroUsize::new(length).ok_or(Errno::EINVAL)?;
        let offset = region.offset.checked_add(range.start).ok_or(Errno::EOVERFLOW)?;
        let end = offset.checked_add(length as u64).ok_or(Errno::EOVERFLOW)?;
        let position = off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let readonly = region.flags & wire::REGION_WRITE == 0;
        let protection = if readonly { ProtFlags::PROT_READ } else { ProtFlags::PROT_READ | ProtFlags::PROT_WRITE };
        let (mappable, backing) = match file.lend_vfio_device() {
            Some(device) => (device, Backing::Hardware { offset }),
            None => {
                let (memory, _) = file.lend_memory().map_err(io::Error::other)?;
                (memory, Backing::Memory { end, changed: Mutex::new(changed(&fstat(memory)?)) })
            }
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let host = unsafe { mmap(None, nonzero, protection, MapFlags::MAP_SHARED, mappable, position) }?;
        Ok(Self { host, length, readonly, range, file: file.clone(), backing })
    }

    pub(super) fn host(&self) -> *mut u8 {
        self.host.as_ptr().cast()
    }

    pub(super) fn size(&self) -> u64 {
        self.length as u64
    }

    /// Whether the guest can reach all of the area, as far as can be told without touching each page. With `again`, the
    /// last look found nothing and yet accesses fail still: a file that has changed since is to blame.
    pub(super) fn check_reachable(&self, again: bool) -> Result<(), Unreachable> {
        let Backing::Memory { end, changed: last } = &self.backing else { return Ok(()) };
        let Ok((file, _)) = self.file.lend_memory() else { return Err(Unreachable::Shortened) };
        let stat = fstat(file).map_err(Unreachable::NoPage)?;
        if u64::try_from(stat.st_size).unwrap_or(0) < *end {
            return Err(Unreachable::Shortened);
        }
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let has_changed = std::mem::replace(&mut *last, changed(&stat)) != changed(&stat);
        if again && has_changed { Err(Unreachable::Changing) } else { self.reach_missing_pages() }
    }

    /// The area that another device's DMA may reach where the region is at `address`; none: this is no hardware.
    pub(super) fn target(&self, address: u64) -> Option<Target> {
        let Backing::Hardware { offset } = self.backing else { return None };
        let (address, size, file) = (address + self.range.start, self.size(), self.file.clone());
        (!self.readonly).then_some(Target { address, size, file, offset })
    }

    /// Whether any page of hardware is there; none: this is memory. When the kernel takes a device's registers away it
    /// takes all pages of all areas, and they come back as they are accessed. To a user who may not know (mincore(2)) all
    /// pages are there.
    pub(super) fn is_hardware_there(&self) -> Option<bool> {
        let Backing::Hardware { .. } = &self.backing else { return None };
        let mut is_found = false;
        let looked = self.look_at_pages(|_, present| {
            is_found = present.iter().any(|present| present & 1 != 0);
            Ok(!is_found)
        });
        looked.ok().map(|()| is_found)
    }

    /// Tries to reach some of the pages that are not there yet.
    fn reach_missing_pages(&self) -> Result<(), Unreachable> {
        let mut tries = 0;
        self.look_at_pages(|start, present| {
            for (page, _) in present.iter().enumerate().filter(|(_, present)| **present & 1 == 0).take(TRIES - tries) {
                self.reach(start + page * PAGE)?;
                tries += 1;
            }
            Ok(tries < TRIES)
        })
    }

    /// Shows which pages are there, some at a time and where they begin, for as long as `see` wants more.
    fn look_at_pages(&self, mut see: impl FnMut(usize, &[u8]) -> Result<bool, Unreachable>) -> Result<(), Unreachable> {
        let mut present = vec![0; STEP.min(self.length / PAGE)];
        for start in (0..self.length).step_by(STEP * PAGE) {
            let length = (self.length - start).min(STEP * PAGE);
            // SAFETY: the range is within our mapping, and `present` has a byte for each of its pages.
            let known = unsafe { libc::mincore(self.host.as_ptr().byte_add(start), length, present.as_mut_ptr()) };
            if known == 0 && !see(start, &present[..length / PAGE])? {
                break;
            }
        }
        Ok(())
    }

    /// Reads one byte as a debugger would, which is answered with an error where there is no page to be had.
    fn reach(&self, offset: usize) -> Result<(), Unreachable> {
        let mut byte = 0u8;
        let ours = iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let theirs = iovec { iov_base: self.host.as_ptr().wrapping_byte_add(offset), iov_len: 1 };
        // SAFETY: the byte is ours and outlives the call; the other address is only read, by the kernel, which checks it.
        let read = unsafe { libc::process_vm_readv(libc::getpid(), &raw const ours, 1, &raw const theirs, 1, 0) };
        match Errno::result(read) {
            // A sandbox may forbid the call; nothing is known then.
            Ok(_) | Err(Errno::EPERM | Errno::ENOSYS) => Ok(()),
            Err(errno) => Err(Unreachable::NoPage(errno)),
        }
    }
}

fn changed(stat: &FileStat) -> (i64, i64) {
    (stat.st_ctime, stat.st_ctime_nsec)
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shortened => f.write_str("its file was made shorter"),
            Self::NoPage(errno) => write!(f, "no page for it: {}", errno.desc()),
            Self::Changing => f.write_str("its file changes while accesses fail"),
        }
    }
}

impl Drop for MappedArea {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every memslot over it is gone: placements are dropped before areas.
        if let Err(errno) = unsafe { munmap(self.host, self.length) } {
            log::error!("unmapping {} bytes of a device's region: {errno}", self.length);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::fcntl::{FallocateFlags, fallocate};
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    fn region(file: impl Into<ForeignFd>, size: u64) -> RegionInfo {
        let flags = wire::REGION_READ | wire::REGION_WRITE | wire::REGION_MMAP;
        RegionInfo {
            index: 0,
            flags,
            size,
            offset: 0,
            fd: Some(file.into()),
            areas: vec![(0, size)],
            region_type: None,
        }
    }

    fn memory(size: u64) -> File {
        let file = File::from(memfd_create("area", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(size).unwrap();
        file
    }

    #[test]
    fn memory_is_mapped_and_files_on_disks_and_devices_are_not() {
        assert_eq!(check(&region(memory(0x4000), 0x4000), &(0..0x4000)), Ok(false));
        let tmpfs = tempfile::tempfile_in("/dev/shm").unwrap();
        tmpfs.set_len(0x4000).unwrap();
        assert_eq!(check(&region(tmpfs, 0x4000), &(0..0x4000)), Ok(false));
        // The test's own program lies on a disk.
        for path in ["/proc/self/exe", "/dev/null", "/dev/zero", "/proc/self/maps", "/"] {
            let file = File::open(path).unwrap();
            assert_eq!(check(&region(file, 0x1000), &(0..0x1000)), Err(Reason::NotMemory), "{path}");
        }
    }

    #[test]
    fn an_area_beyond_its_file_and_one_that_is_too_large_are_not_mapped() {
        assert_eq!(check(&region(memory(0x3fff), 0x4000), &(0..0x4000)), Err(Reason::BeyondFile));
        assert_eq!(check(&region(memory(0x3fff), 0x4000), &(0..0x3000)), Ok(false));
        assert_eq!(check(&region(memory(1 << 40), 1 << 40), &(0..1 << 40)), Err(Reason::TooLarge));
    }

    fn mapped(file: &File, size: u64) -> MappedArea {
        let region = region(file.try_clone().unwrap(), size);
        MappedArea::new(&region, &Arc::new(file.try_clone().unwrap().into()), 0..size).unwrap()
    }

    #[test]
    fn an_area_whose_file_was_made_shorter_is_found() {
        let file = memory(0x4000);
        let area = mapped(&file, 0x4000);
        assert_eq!(area.check_reachable(false), Ok(()));
        file.set_len(0x3000).unwrap();
        assert_eq!(area.check_reachable(false), Err(Unreachable::Shortened));
        // Back in time for the look, and away again: its change is seen.
        file.set_len(0x4000).unwrap();
        assert_eq!(area.check_reachable(false), Ok(()));
        std::thread::sleep(std::time::Duration::from_millis(20));
        file.set_len(0x3000).unwrap();
        file.set_len(0x4000).unwrap();
        assert_eq!(area.check_reachable(true), Err(Unreachable::Changing));
        assert_eq!(area.check_reachable(true), Ok(()));
    }

    #[test]
    fn holes_are_filled_where_there_are_pages_and_found_where_there_are_none() {
        let file = memory(0x8000);
        let area = mapped(&file, 0x8000);
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, hole, 0, 0x8000).unwrap();
        assert_eq!(area.check_reachable(false), Ok(()));
        // The answer of a full file system, or of an empty pool of huge pages.
        // SAFETY: the page is ours; nobody reads it but the kernel, for which it is out of reach from now on.
        unsafe { nix::sys::mman::mprotect(area.host.byte_add(0x7000), PAGE, ProtFlags::PROT_NONE) }.unwrap();
        assert_eq!(area.reach(0x7000), Err(Unreachable::NoPage(Errno::EFAULT)));
    }
}
