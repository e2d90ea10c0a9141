//! The ranges of client memory that are valid for DMA.

use std::ffi::c_void;
use std::fs::File;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc::off_t;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use outrigger_process::dump;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::connection::Connection;
use super::dirty_log::DirtyLog;
use super::memory::{Memory, MessageRange};
use super::sigbus::Guard;
use crate::foreign::ForeignFd;
use crate::wire;

const PAGE: u64 = 4096;

/// A range of client memory, as a device sees it that tells an IOMMU about it.
#[derive(Clone, Copy, Debug)]
pub struct DmaRange<'a> {
    /// The first DMA address.
    pub address: u64,
    /// Bytes; never zero, and the range does not wrap.
    pub size: u64,
    /// Where it is mapped in this process, for as long as the device has the range: `size` bytes, page-aligned. None: it
    /// came without a descriptor to map.
    pub host: Option<NonNull<u8>>,
    /// Whether the device may read it.
    pub readable: bool,
    /// Whether the device may write it.
    pub writable: bool,
    /// It is no memory but a BAR of another physical device ([`super::Device::reaches_bars`]). `host` is for the kernel alone:
    /// for as long as that device decodes nothing, to touch it kills this process.
    pub is_bar: bool,
    mapping: PhantomData<&'a Mapping>,
}

/// One range as the client mapped it.
#[derive(Debug)]
pub(super) struct Range {
    address: u64,
    size: u64,
    flags: u32,
    /// Absent when the client sent no descriptor: the range is then reached by messages.
    mapping: Option<Mapping>,
}

/// A range that is mapped.
#[derive(Debug)]
enum Mapping {
    Memory(MappedMemory),
    /// Of another device.
    Bar(MappedBar),
}

#[derive(Debug)]
struct MappedMemory {
    // First, as it must be gone before the mapping is.
    guard: Arc<Guard>,
    region: Arc<GuestRegionMmap>,
}

/// Nothing here reads or writes it.
#[derive(Debug)]
struct MappedBar {
    host: NonNull<c_void>,
    length: usize,
}

impl Range {
    fn memory(&self) -> Option<&MappedMemory> {
        match &self.mapping {
            Some(Mapping::Memory(memory)) => Some(memory),
            _ => None,
        }
    }

    /// For the device.
    pub(super) fn dma(&self) -> DmaRange<'_> {
        DmaRange {
            address: self.address,
            size: self.size,
            host: match &self.mapping {
                Some(Mapping::Memory(memory)) => NonNull::new(memory.region.as_ptr()),
                Some(Mapping::Bar(bar)) => Some(bar.host.cast()),
                None => None,
            },
            readable: self.flags & wire::DMA_READABLE != 0,
            writable: self.flags & wire::DMA_WRITEABLE != 0,
            is_bar: matches!(self.mapping, Some(Mapping::Bar(_))),
            mapping: PhantomData,
        }
    }
}

/// All ranges, sorted by address and without overlap.
#[derive(Debug)]
pub(super) struct DmaTable {
    ranges: Vec<Range>,
    limit: usize,
    /// Shut down when memory is lost.
    socket: RawFd,
    /// Memory was lost in a range that is no more.
    lost: bool,
    /// Notes what the device writes, while the client wants that.
    pub(super) log: Option<Arc<DirtyLog>>,
}

impl DmaTable {
    /// For the client behind `socket`, which stays open until this is dropped.
    pub(super) fn new(limit: usize, socket: RawFd) -> Self {
        Self { ranges: Vec::new(), limit, socket, lost: false, log: None }
    }

    /// Whether the client has made a file shorter that it let us map, and the device has noticed.
    pub(super) fn has_lost_memory(&self) -> bool {
        self.lost || self.ranges.iter().any(|range| range.memory().is_some_and(|memory| memory.guard.is_lost()))
    }

    /// Adds a range, if `accept` does. It may be a BAR if the device reaches those. `EINVAL`: empty, wrapping, misaligned for its descriptor, or beyond the end of the
    /// file; `EEXIST`: overlaps another one; `ENOSPC`: too many.
    pub(super) fn map(
        &mut self,
        request: &wire::DmaMap,
        fd: Option<ForeignFd>,
        reaches_bars: bool,
        accept: impl FnOnce(&DmaRange<'_>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let end = request.address.checked_add(request.size).ok_or(Errno::EINVAL)?;
        let directions = request.flags & (wire::DMA_READABLE | wire::DMA_WRITEABLE);
        let by_descriptor = request.flags & (wire::DMA_MMAP | wire::DMA_FILE_IO);
        let known = directions | by_descriptor;
        if request.size == 0 || request.flags != known || (by_descriptor != 0 && fd.is_none()) {
            return Err(Errno::EINVAL);
        }
        let position = self.ranges.partition_point(|range| range.address < request.address);
        let after_previous = self.ranges[..position].last().is_none_or(|p| p.address + p.size <= request.address);
        let before_next = self.ranges.get(position).is_none_or(|next| end <= next.address);
        if !after_previous || !before_next {
            return Err(Errno::EEXIST);
        }
        if self.ranges.len() >= self.limit {
            return Err(Errno::ENOSPC);
        }
        // A file that is only for `pread` and `pwrite` is reached by messages: those calls would wait for whatever is behind the descriptor.
        let mappable = directions != 0 && by_descriptor != wire::DMA_FILE_IO;
        let map = |fd: ForeignFd| match reaches_bars.then(|| fd.lend_vfio_device()).flatten() {
            Some(device) => MappedBar::new(request, device).map(Mapping::Bar),
            None => map_file(request, fd, self.socket).map(Mapping::Memory),
        };
        let mapping = fd.filter(|_| mappable).map(map).transpose()?;
        let &wire::DmaMap { address, size, .. } = request;
        let range = Range { address, size, flags: directions, mapping };
        accept(&range.dma())?;
        self.ranges.insert(position, range);
        Ok(())
    }

    /// Takes out the ranges that lie in the one requested; they stay mapped until what is returned is dropped. `ENOENT`:
    /// there is none, or one lies in it in part; `EINVAL`: unknown flags, or all ranges and yet an address.
    ///
    /// The specification has exactly one. QEMU takes away all that an IOMMU of its guest has mapped by asking for the whole
    /// address space, in powers of two, as the kernel's VFIO allows: what stayed would be in the way of what it maps next.
    pub(super) fn unmap(&mut self, request: &wire::DmaUnmap) -> Result<Vec<Unmapped>, Errno> {
        if request.flags == wire::DMA_UNMAP_ALL && (request.address, request.size) == (0, 0) {
            return Ok(self.unmap_all());
        }
        if request.flags != 0 {
            return Err(Errno::EINVAL);
        }
        // The last byte, as the end may be that of the address space.
        let last = request.size.checked_sub(1).and_then(|size| request.address.checked_add(size));
        let last = last.ok_or(Errno::ENOENT)?;
        let range_last = |range: &Range| range.address + (range.size - 1);
        let first = self.ranges.partition_point(|range| range_last(range) < request.address);
        let end = self.ranges.partition_point(|range| range.address <= last);
        let found = self.ranges.get(first..end).filter(|found| !found.is_empty()).ok_or(Errno::ENOENT)?;
        if found.iter().any(|range| range.address < request.address || range_last(range) > last) {
            return Err(Errno::ENOENT);
        }
        Ok(self.let_go(first..end))
    }

    /// Takes out all ranges.
    pub(super) fn unmap_all(&mut self) -> Vec<Unmapped> {
        self.let_go(0..self.ranges.len())
    }

    fn let_go(&mut self, found: std::ops::Range<usize>) -> Vec<Unmapped> {
        let mut unmapped = Vec::with_capacity(found.len());
        for range in self.ranges.drain(found) {
            if let Some(MappedMemory { guard, .. }) = range.memory() {
                self.lost |= guard.is_lost();
                guard.detach();
            }
            unmapped.push(Unmapped(range));
        }
        unmapped
    }

    /// The memory as devices see it.
    pub(super) fn memory(&self, connection: &Arc<Connection>) -> Memory {
        let with = |flag| {
            let regions = self.ranges.iter().filter(|range| range.flags & flag != 0);
            let mapped = regions.filter_map(|range| Some(range.memory()?.region.clone())).collect::<Vec<_>>();
            GuestMemoryMmap::from_arc_regions(mapped).unwrap_or_default()
        };
        let unmapped = self.ranges.iter().filter(|range| range.mapping.is_none() && range.flags != 0);
        let by_message = unmapped.map(|&Range { address, size, flags, .. }| MessageRange { address, size, flags });
        let guards = self.ranges.iter().filter_map(|range| Some(range.memory()?.guard.clone())).collect();
        Memory::new(with(wire::DMA_READABLE), with(wire::DMA_WRITEABLE), by_message.collect(), connection)
            .with_guards(guards)
            .with_log(self.log.clone())
    }
}

impl Drop for DmaTable {
    fn drop(&mut self) {
        self.ranges.iter().filter_map(Range::memory).for_each(|memory| memory.guard.detach());
    }
}

/// A range that is unmapped when this is dropped.
pub(super) struct Unmapped(Range);

impl Unmapped {
    /// For the device.
    pub(super) fn dma(&self) -> DmaRange<'_> {
        self.0.dma()
    }
}

impl Drop for Unmapped {
    fn drop(&mut self) {
        if let Some(Mapping::Memory(memory)) = self.0.mapping.take()
            && Arc::strong_count(&memory.region) > 1
        {
            log::error!("a device still uses client memory that the client took back");
        }
    }
}

/// The file offset and the size of a range, if it is whole pages.
fn whole_pages(request: &wire::DmaMap) -> Result<(u64, usize), Errno> {
    let is_whole = request.offset.is_multiple_of(PAGE) && request.size.is_multiple_of(PAGE);
    usize::try_from(request.size).ok().filter(|_| is_whole).map(|size| (request.offset, size)).ok_or(Errno::EINVAL)
}

fn protection(request: &wire::DmaMap) -> ProtFlags {
    let mut protection = ProtFlags::PROT_NONE;
    protection.set(ProtFlags::PROT_READ, request.flags & wire::DMA_READABLE != 0);
    protection.set(ProtFlags::PROT_WRITE, request.flags & wire::DMA_WRITEABLE != 0);
    protection
}

impl MappedBar {
    /// The device's driver in the kernel checks that the range is one of registers.
    fn new(request: &wire::DmaMap, device: BorrowedFd<'_>) -> Result<Self, Errno> {
        let (offset, length) = whole_pages(request)?;
        let offset = off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let nonzero = NonZeroUsize::new(length).ok_or(Errno::EINVAL)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let host = unsafe { mmap(None, nonzero, protection(request), MapFlags::MAP_SHARED, device, offset) }?;
        Ok(Self { host, length })
    }
}

impl Drop for MappedBar {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        if let Err(errno) = unsafe { munmap(self.host, self.length) } {
            log::error!("unmapping {} bytes of a device's BAR: {errno}", self.length);
        }
    }
}

fn map_file(request: &wire::DmaMap, fd: ForeignFd, socket: RawFd) -> Result<MappedMemory, Errno> {
    let (offset, size) = whole_pages(request)?;
    let memory = fd.memory().map_err(|error| {
        log::warn!("client memory is refused: {error}");
        Errno::EINVAL
    })?;
    if offset.checked_add(request.size).is_none_or(|end| end > memory.length) {
        return Err(Errno::EINVAL);
    }
    // Memory is closed without waiting.
    let file = File::from(fd.into_owned());
    let protection = protection(request).bits();
    let region = MmapRegionBuilder::new(size)
        .with_file_offset(FileOffset::new(file, offset))
        .with_mmap_prot(protection)
        .with_mmap_flags(nix::libc::MAP_SHARED | nix::libc::MAP_NORESERVE)
        .build();
    let region = region.map_err(|error| {
        log::warn!("cannot map {} bytes of client memory: {error}", request.size);
        Errno::EINVAL
    })?;
    dump::exclude(region.as_ptr(), size);
    // SAFETY: the mapping goes when the last reference to `region` does, and everybody who has one has one to the guard.
    let guard = unsafe { Guard::new(region.as_ptr(), size, protection, socket) }.map_err(|error| {
        log::warn!("cannot guard client memory: {error}");
        Errno::EINVAL
    })?;
    let region = GuestRegionMmap::new(region, GuestAddress(request.address)).map(Arc::new).ok_or(Errno::EINVAL)?;
    Ok(MappedMemory { guard: Arc::new(guard), region })
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn client_memory_is_in_no_core_dump() {
        let file: OwnedFd = memfd_create("client", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&file, 4096).unwrap();
        let request = wire::DmaMap { flags: wire::DMA_READABLE, size: PAGE, ..Default::default() };
        let memory = map_file(&request, ForeignFd::from(file), -1).unwrap();
        assert!(dump::is_excluded(memory.region.as_ptr()));
    }

    #[test]
    fn more_ranges_than_were_announced_are_refused_until_one_goes_away() {
        let mut table = DmaTable::new(2, -1);
        let map = |address| wire::DmaMap { flags: wire::DMA_READABLE, address, size: PAGE, ..Default::default() };
        table.map(&map(0), None, false, |_| Ok(())).unwrap();
        table.map(&map(2 * PAGE), None, false, |_| Ok(())).unwrap();
        assert_eq!(table.map(&map(PAGE), None, false, |_| Ok(())), Err(Errno::ENOSPC));
        assert_eq!(table.map(&map(0), None, false, |_| Ok(())), Err(Errno::EEXIST));
        drop(table.unmap(&wire::DmaUnmap { address: 0, size: PAGE, ..Default::default() }).unwrap());
        table.map(&map(PAGE), None, false, |_| Ok(())).unwrap();
    }
}
