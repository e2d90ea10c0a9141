//! Replies that describe a device, checked before anyone believes them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use zerocopy::FromBytes;

use crate::codec::{Message, structures};
use crate::pci::MAX_VECTORS;
use crate::wire;

const PAGE: u64 = 4096;
/// No region needs more; a chain that is longer is a loop.
const MAX_CAPABILITIES: usize = 16;

/// One region of a device.
#[derive(Debug)]
pub struct RegionInfo {
    /// Which.
    pub index: u32,
    /// `wire::REGION_*`.
    pub flags: u32,
    /// Bytes; zero: the region does not exist.
    pub size: u64,
    /// Where the region starts in `fd`, in bytes.
    pub offset: u64,
    /// What to map, when `flags` has `REGION_MMAP`.
    pub fd: Option<OwnedFd>,
    /// The mappable areas as (offset in the region, size), by offset: within the region, page-aligned, without overlap.
    /// Empty without `fd`. Whether the file is as long as this needs is for whoever maps it to check.
    pub areas: Vec<(u64, u64)>,
}

/// One interrupt type of a device.
#[derive(Clone, Copy, Debug)]
pub struct IrqInfo {
    /// `wire::IRQ_*`.
    pub flags: u32,
    /// How many vectors: at most 2,048.
    pub count: u32,
}

/// How a sub-region is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFdKind {
    /// Writes (of this value only, if one is given) signal an eventfd.
    Ioeventfd {
        /// The value.
        datamatch: Option<u64>,
    },
    /// Accesses are handed over as ioregionfd commands that carry this value.
    Ioregionfd {
        /// Passed back to the server with each access.
        user_data: u64,
        /// `KVM_IOREGION_*`.
        flags: u32,
    },
}

/// A sub-region that KVM can serve without the client.
#[derive(Clone, Debug)]
pub struct IoFd {
    /// From the start of the region, in bytes.
    pub offset: u64,
    /// Bytes; zero: any access size.
    pub size: u64,
    /// How.
    pub kind: IoFdKind,
    /// What to give to KVM; sub-regions may share one.
    pub fd: Arc<OwnedFd>,
}

/// A reply that says how much room the whole would need.
pub(super) enum Sized<T> {
    Whole(T),
    Needs(u32),
}

pub(super) fn region_info(mut message: Message<'_>, index: u32, argsz: u32) -> Result<Sized<RegionInfo>, &'static str> {
    let (info, _) = message.parse::<wire::RegionInfo>().ok_or("region info is too short")?;
    if info.index != index {
        return Err("region info is for another region");
    }
    if info.argsz > argsz {
        return Ok(Sized::Needs(info.argsz));
    }
    if message.fds.len() > 1 {
        return Err("region info comes with more than one fd");
    }
    let sparse = match info.flags & wire::REGION_CAPS {
        0 => None,
        _ => sparse_areas(message.payload, info.cap_offset, info.size)?,
    };
    let mappable = info.flags & wire::REGION_MMAP != 0;
    let fd = message.fds.pop().filter(|_| mappable);
    let areas = match (&fd, sparse) {
        (None, _) => Vec::new(),
        (Some(_), Some(areas)) => areas,
        (Some(_), None) if info.size < PAGE => Vec::new(),
        (Some(_), None) => vec![(0, info.size - info.size % PAGE)],
    };
    let file_end = info.offset.checked_add(info.size).and_then(|end| i64::try_from(end).ok());
    if !areas.is_empty() && (file_end.is_none() || !info.offset.is_multiple_of(PAGE)) {
        return Err("the offset of a mappable region is misaligned or beyond any file");
    }
    Ok(Sized::Whole(RegionInfo { index, flags: info.flags, size: info.size, offset: info.offset, fd, areas }))
}

/// Walks the capabilities; `None`: none of them lists areas.
fn sparse_areas(payload: &[u8], cap_offset: u32, region_size: u64) -> Result<Option<Vec<(u64, u64)>>, &'static str> {
    let mut next = cap_offset as usize;
    for _ in 0..MAX_CAPABILITIES {
        if next == 0 {
            return Ok(None);
        }
        if next < size_of::<wire::RegionInfo>() {
            return Err("a region capability lies within the region info");
        }
        let bytes = payload.get(next..).ok_or("a region capability lies beyond the message")?;
        let (header, bytes) = wire::CapHeader::read_from_prefix(bytes).map_err(|_| "a region capability is cut off")?;
        next = header.next as usize;
        if header.id != wire::REGION_CAP_SPARSE_MMAP {
            continue;
        }
        let (sparse, bytes) =
            wire::SparseMmap::read_from_prefix(bytes).map_err(|_| "a sparse-mmap capability is cut off")?;
        let length = (sparse.nr_areas as usize).checked_mul(size_of::<wire::SparseMmapArea>());
        let areas = length.and_then(|length| bytes.get(..length));
        let areas = areas.ok_or("a sparse-mmap capability has fewer areas than it says")?;
        let areas: Vec<wire::SparseMmapArea> = structures(areas).collect();
        let legal = |area: &wire::SparseMmapArea| {
            area.offset.checked_add(area.size).is_some_and(|end| end <= region_size)
                && area.offset.is_multiple_of(PAGE)
                && area.size.is_multiple_of(PAGE)
        };
        if !areas.iter().all(legal) {
            return Err("a sparse-mmap area is misaligned or beyond its region");
        }
        let areas = areas.iter().filter(|area| area.size > 0).map(|area| (area.offset, area.size));
        let mut areas: Vec<(u64, u64)> = areas.collect();
        areas.sort_unstable();
        if areas.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            return Err("sparse-mmap areas overlap");
        }
        return Ok(Some(areas));
    }
    Err("the region capabilities form a loop")
}

pub(super) fn irq_info(message: &Message<'_>, index: u32) -> Result<IrqInfo, &'static str> {
    let (info, _) = message.parse::<wire::IrqInfo>().ok_or("interrupt info is too short")?;
    if info.index != index {
        return Err("interrupt info is for another type");
    }
    if info.count > MAX_VECTORS {
        return Err("interrupt info counts more vectors than a device can have");
    }
    Ok(IrqInfo { flags: info.flags, count: info.count })
}

pub(super) fn io_fds(
    message: Message<'_>,
    index: u32,
    region_size: u64,
    argsz: u32,
) -> Result<Sized<Vec<IoFd>>, &'static str> {
    let (reply, entries) = message.parse::<wire::RegionIoFds>().ok_or("region io fds are too short")?;
    if reply.index != index {
        return Err("region io fds are for another region");
    }
    if reply.argsz > argsz {
        return Ok(Sized::Needs(reply.argsz));
    }
    let count = reply.count as usize;
    if count == 0 {
        return Ok(Sized::Whole(Vec::new()));
    }
    // The text subtracts 32 from argsz, but the structure before the array has 16 bytes, also in libvfio-user.
    let array = (reply.argsz as usize).saturating_sub(size_of::<wire::RegionIoFds>());
    let entries = entries.get(..array).ok_or("region io fds is shorter than it says")?;
    let stride = array / count;
    if stride < size_of::<wire::IoFd>() {
        return Err("region io fds has fewer sub-regions than it says");
    }
    let fds: Vec<Arc<OwnedFd>> = message.fds.into_iter().map(Arc::new).collect();
    let parsed = entries.chunks_exact(stride).take(count).map(|entry| {
        let (entry, _) = wire::IoFd::read_from_prefix(entry).map_err(|_| "a sub-region is cut off")?;
        let within = entry.offset.checked_add(entry.size).is_some_and(|end| end <= region_size);
        if !within || entry.offset >= region_size {
            return Err("a sub-region is beyond its region");
        }
        let fd = fds.get(entry.fd_index as usize).ok_or("a sub-region names an fd that did not come")?.clone();
        let kind = match entry.kind {
            wire::IO_FD_IOEVENTFD => {
                IoFdKind::Ioeventfd { datamatch: (entry.flags & wire::IOEVENTFD_DATAMATCH != 0).then_some(entry.data) }
            }
            wire::IO_FD_IOREGIONFD => IoFdKind::Ioregionfd { user_data: entry.data, flags: entry.flags },
            _ => return Err("a sub-region is of an unknown type"),
        };
        Ok(IoFd { offset: entry.offset, size: entry.size, kind, fd })
    });
    Ok(Sized::Whole(parsed.collect::<Result<_, _>>()?))
}
