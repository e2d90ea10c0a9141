//! Telling a client what the device consists of (specification: "`VFIO_USER_DEVICE_GET_INFO`" and the three sections on
//! regions and interrupts after it).

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::commands::Commands;
use super::device::{IoFd, IoFdKind, Region, RegionMapping};
use super::reply::Reply;
use crate::codec::Message;
use crate::socket::MAX_FDS;
use crate::wire;

impl Commands<'_> {
    pub(super) fn device_info(&self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (request, _) = message.parse::<wire::DeviceInfo>().ok_or(Errno::EINVAL)?;
        let argsz = size_u32(size_of::<wire::DeviceInfo>())?;
        if request.argsz < argsz {
            return Err(Errno::EINVAL);
        }
        reply.push(&wire::DeviceInfo {
            argsz,
            flags: wire::DEVICE_IS_PCI | wire::DEVICE_RESET_SUPPORTED,
            num_regions: size_u32(self.device.regions().len())?,
            num_irqs: size_u32(self.device.irqs().len())?,
        });
        Ok(())
    }

    pub(super) fn region_info(&self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (request, _) = message.parse::<wire::RegionInfo>().ok_or(Errno::EINVAL)?;
        let region = self.device.regions().get(request.index as usize).ok_or(Errno::EINVAL)?;
        let fixed = size_of::<wire::RegionInfo>();
        if (request.argsz as usize) < fixed {
            return Err(Errno::EINVAL);
        }
        // A client that takes no descriptors is offered nothing to map.
        let mapping = region.mapping.as_ref().filter(|_| self.client.max_msg_fds > 0);
        let capabilities = RegionCapabilities::of(region, mapping);
        let caps = capabilities.size();
        let whole = size_u32(fixed + caps)?;
        let fits = request.argsz >= whole;
        // Where there is no room for them, no capabilities follow: QEMU takes the flag without an offset for an error.
        let caps_follow = caps > 0 && fits;
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        reply.push(&wire::RegionInfo {
            argsz: whole,
            flags: flag(region.readable, wire::REGION_READ)
                | flag(region.writable, wire::REGION_WRITE)
                | flag(mapping.is_some(), wire::REGION_MMAP)
                | flag(caps_follow, wire::REGION_CAPS),
            index: request.index,
            cap_offset: if caps_follow { size_u32(fixed)? } else { 0 },
            size: region.size,
            offset: mapping.map_or(0, |mapping| mapping.offset),
        });
        if !fits {
            // The client asks again with room for everything; the descriptor goes with that reply alone.
            return Ok(());
        }
        capabilities.push(fixed, reply)?;
        match mapping {
            Some(mapping) => reply.push_fd(&mapping.fd),
            None => Ok(()),
        }
    }

    pub(super) fn region_io_fds(&self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (request, _) = message.parse::<wire::RegionIoFds>().ok_or(Errno::EINVAL)?;
        let fixed = size_of::<wire::RegionIoFds>();
        let index_exists = (request.index as usize) < self.device.regions().len();
        if (request.argsz as usize) < fixed || request.flags != 0 || request.count != 0 || !index_exists {
            return Err(Errno::EINVAL);
        }
        let io_fds = self.device.io_fds(request.index);
        let most = usize::try_from(self.client.max_msg_fds).unwrap_or(usize::MAX).min(MAX_FDS);
        let mut fds = Vec::new();
        let entries: Vec<_> = io_fds.iter().filter_map(|io_fd| entry(io_fd, &mut fds, most)).collect();
        let whole = size_u32(fixed + size_of_val(&entries[..]))?;
        let count = size_u32(entries.len())?;
        reply.push(&wire::RegionIoFds { argsz: whole, flags: 0, index: request.index, count });
        if request.argsz < whole {
            return Ok(());
        }
        entries.iter().for_each(|entry| reply.push(entry));
        fds.into_iter().try_for_each(|fd| reply.push_fd(fd))
    }

    pub(super) fn irq_info(&self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (request, _) = message.parse::<wire::IrqInfo>().ok_or(Errno::EINVAL)?;
        let irq = self.device.irqs().get(request.index as usize).ok_or(Errno::EINVAL)?;
        let argsz = size_u32(size_of::<wire::IrqInfo>())?;
        if request.argsz < argsz {
            return Err(Errno::EINVAL);
        }
        reply.push(&wire::IrqInfo { argsz, flags: irq.flags, index: request.index, count: irq.count });
        Ok(())
    }
}

/// The variable part of a region info.
struct RegionCapabilities<'a> {
    areas: &'a [(u64, u64)],
    region_type: Option<wire::CapType>,
}

impl<'a> RegionCapabilities<'a> {
    fn of(region: &Region, mapping: Option<&'a RegionMapping>) -> Self {
        Self { areas: mapping.map_or(&[], |mapping| &mapping.areas), region_type: region.region_type }
    }

    fn sparse_size(&self) -> usize {
        match self.areas.len() {
            0 => 0,
            count => {
                size_of::<wire::CapHeader>() + size_of::<wire::SparseMmap>() + count * size_of::<wire::SparseMmapArea>()
            }
        }
    }

    fn size(&self) -> usize {
        let of_type = size_of::<wire::CapHeader>() + size_of::<wire::CapType>();
        self.sparse_size() + if self.region_type.is_some() { of_type } else { 0 }
    }

    /// Chains them, the first being `start` bytes from the region info.
    fn push(&self, start: usize, reply: &mut Reply) -> Result<(), Errno> {
        if !self.areas.is_empty() {
            let next = if self.region_type.is_some() { size_u32(start + self.sparse_size())? } else { 0 };
            reply.push(&wire::CapHeader { id: wire::REGION_CAP_SPARSE_MMAP, version: 1, next });
            reply.push(&wire::SparseMmap { nr_areas: size_u32(self.areas.len())?, reserved: 0 });
            for &(offset, size) in self.areas {
                reply.push(&wire::SparseMmapArea { offset, size });
            }
        }
        if let Some(region_type) = &self.region_type {
            reply.push(&wire::CapHeader { id: wire::REGION_CAP_TYPE, version: 1, next: 0 });
            reply.push(region_type);
        }
        Ok(())
    }
}

/// A sub-region on the wire; its descriptor is in `fds`, once, however many share it. `None`: that would be more than
/// `most` of them, and the sub-region is reached by messages instead.
fn entry<'a>(io_fd: &IoFd<'a>, fds: &mut Vec<BorrowedFd<'a>>, most: usize) -> Option<wire::IoFd> {
    let known = fds.iter().position(|fd| fd.as_raw_fd() == io_fd.fd.as_raw_fd());
    let fd_index = match known {
        Some(index) => index,
        None if fds.len() >= most => return None,
        None => {
            fds.push(io_fd.fd);
            fds.len() - 1
        }
    };
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let (kind, flags, data) = match io_fd.kind {
        IoFdKind::Ioeventfd { datamatch } => {
            let flags = flag(datamatch.is_some(), wire::IOEVENTFD_DATAMATCH) | flag(io_fd.pio, wire::IOEVENTFD_PIO);
            (wire::IO_FD_IOEVENTFD, flags, datamatch.unwrap_or(0))
        }
        IoFdKind::Ioregionfd { user_data, posted_writes } => {
            // Without a size there is nothing that an answer could be about.
            let posted = posted_writes || io_fd.size == 0;
            let flags = flag(posted, wire::IOREGION_POSTED_WRITES) | flag(io_fd.pio, wire::IOREGION_PIO);
            (wire::IO_FD_IOREGIONFD, flags, user_data)
        }
    };
    let fd_index = u32::try_from(fd_index).ok()?;
    let IoFd { offset, size, .. } = *io_fd;
    Some(wire::IoFd { offset, size, fd_index, kind, flags, padding: 0, data })
}

fn size_u32(size: usize) -> Result<u32, Errno> {
    u32::try_from(size).map_err(|_| Errno::EOVERFLOW)
}
