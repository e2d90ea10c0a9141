//! Replies that describe a device, checked before anyone believes them.

use std::sync::Arc;

use zerocopy::FromBytes;

use super::region_capabilities::{PAGE, RegionCapabilities};
use crate::codec::Message;
use crate::foreign::ForeignFd;
use crate::pci::MAX_VECTORS;
use crate::wire;

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
    /// The file to map, when `flags` has `REGION_MMAP`.
    pub fd: Option<ForeignFd>,
    /// The mappable areas as (offset in the region, size), by offset: within the region, page-aligned, without overlap.
    /// Empty without `fd`. Whether the file is memory, and as long as this needs, is for the caller to check
    /// ([`ForeignFd::lend_memory`]).
    pub areas: Vec<(u64, u64)>,
    /// The type of a region beyond the standard ones (`VFIO_REGION_TYPE_*` of `<linux/vfio.h>`).
    pub region_type: Option<wire::CapType>,
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
    /// The descriptor for KVM; sub-regions may share one.
    pub fd: Arc<ForeignFd>,
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
    let RegionCapabilities { sparse, region_type } = match info.flags & wire::REGION_CAPS {
        0 => RegionCapabilities::default(),
        _ => RegionCapabilities::parse(message.payload, info.cap_offset, info.size)?,
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
    let wire::RegionInfo { flags, size, offset, .. } = info;
    Ok(Sized::Whole(RegionInfo { index, flags, size, offset, fd, areas, region_type }))
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
    let fds: Vec<Arc<ForeignFd>> = message.fds.into_iter().map(Arc::new).collect();
    let parsed =
        entries.chunks_exact(stride).take(count).filter_map(|entry| sub_region(entry, &fds, region_size).transpose());
    Ok(Sized::Whole(parsed.collect::<Result<_, _>>()?))
}

/// `None`: of a type that is not in the text, such as libvfio-user's shadow ioeventfds: accesses go by messages then.
fn sub_region(entry: &[u8], fds: &[Arc<ForeignFd>], region_size: u64) -> Result<Option<IoFd>, &'static str> {
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
        wire::IO_FD_IOREGIONFD if entry.size == 0 && entry.flags & wire::IOREGION_POSTED_WRITES == 0 => {
            return Err("a sub-region of no size wants its writes answered");
        }
        wire::IO_FD_IOREGIONFD => IoFdKind::Ioregionfd { user_data: entry.data, flags: entry.flags },
        _ => return Ok(None),
    };
    Ok(Some(IoFd { offset: entry.offset, size: entry.size, kind, fd }))
}
