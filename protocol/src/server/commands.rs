//! What each command does: checked against the specification, then handed to the device.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::connection::Connection;
use super::device::Device;
use super::dma::DmaTable;
use super::features;
use super::interrupts::{Interrupts, checked_eventfd};
use super::reply::Reply;
use crate::capabilities::Capabilities;
use crate::codec::{Message, structures};
use crate::command::Command;
use crate::wire;

const IRQ_SET_DATA_MASK: u32 = wire::IRQ_SET_DATA_NONE | wire::IRQ_SET_DATA_BOOL | wire::IRQ_SET_DATA_EVENTFD;

/// One client's view of a device.
pub(super) struct Commands<'a> {
    pub(super) device: &'a mut dyn Device,
    pub(super) interrupts: &'a Arc<Interrupts>,
    pub(super) dma: DmaTable,
    pub(super) connection: &'a Arc<Connection>,
    pub(super) ours: &'a Capabilities,
    pub(super) client: &'a Capabilities,
}

impl Commands<'_> {
    /// Executes one command; what it answers is in `reply`.
    pub(super) fn execute(&mut self, message: Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let command = Command::from_number(message.header.command).ok_or(Errno::ENOTSUP)?;
        let takes_fds = matches!(command, Command::DmaMap | Command::DeviceSetIrqs);
        if !takes_fds && !message.fds.is_empty() {
            return Err(Errno::EINVAL);
        }
        match command {
            Command::RegionRead => self.region_read(&message, reply),
            Command::RegionWrite => self.region_write(&message, reply),
            Command::RegionWriteMulti if self.client.write_multiple => self.region_write_multi(&message, reply),
            Command::DmaMap => self.dma_map(message),
            Command::DmaUnmap => self.dma_unmap(&message, reply),
            Command::DeviceGetInfo => self.device_info(&message, reply),
            Command::DeviceGetRegionInfo => self.region_info(&message, reply),
            Command::DeviceGetRegionIoFds => self.region_io_fds(&message, reply),
            Command::DeviceGetIrqInfo => self.irq_info(&message, reply),
            Command::DeviceSetIrqs => self.set_irqs(message),
            Command::DeviceFeature => features::execute(self.device, &message, self.ours.max_data_xfer_size, reply),
            Command::DeviceReset if message.payload.is_empty() => {
                self.device.reset();
                Ok(())
            }
            Command::DeviceReset => Err(Errno::EINVAL),
            Command::Version => Err(Errno::EINVAL),
            Command::DmaRead
            | Command::DmaWrite
            | Command::RegionWriteMulti
            | Command::MigDataRead
            | Command::MigDataWrite => Err(Errno::ENOTSUP),
        }
    }

    fn region_read(&mut self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (access, rest) = message.parse::<wire::RegionAccess>().ok_or(Errno::EINVAL)?;
        let region = self.checked_region(&access)?;
        if !rest.is_empty() || !region.readable {
            return Err(Errno::EINVAL);
        }
        reply.push(&access);
        match reply.push_zeroed(access.count as usize) {
            [] => Ok(()),
            data => self.device.read(access.region, access.offset, data),
        }
    }

    fn region_write(&mut self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (access, data) = message.parse::<wire::RegionAccess>().ok_or(Errno::EINVAL)?;
        let region = self.checked_region(&access)?;
        if data.len() != access.count as usize || !region.writable {
            return Err(Errno::EINVAL);
        }
        if !data.is_empty() {
            self.device.write(access.region, access.offset, data)?;
        }
        reply.push(&access);
        Ok(())
    }

    fn region_write_multi(&mut self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (request, entries) = message.parse::<wire::RegionWriteMulti>().ok_or(Errno::EINVAL)?;
        let writes = || structures::<wire::RegionShortWrite>(entries);
        let whole = entries.len().is_multiple_of(size_of::<wire::RegionShortWrite>());
        if !whole || writes().len() as u64 != request.count {
            return Err(Errno::EINVAL);
        }
        // All of them before any is done.
        for wire::RegionShortWrite { offset, region, count, data } in writes() {
            let region = self.checked_region(&wire::RegionAccess { offset, region, count })?;
            if count as usize > data.len() || !region.writable {
                return Err(Errno::EINVAL);
            }
        }
        let mut completed = 0;
        for write in writes() {
            let data = &write.data[..write.count as usize];
            let done = if data.is_empty() { Ok(()) } else { self.device.write(write.region, write.offset, data) };
            match done {
                Ok(()) => completed += 1,
                Err(errno) if completed == 0 => return Err(errno),
                // The count says where it stopped.
                Err(_) => break,
            }
        }
        reply.push(&wire::RegionWriteMulti { count: completed });
        Ok(())
    }

    fn checked_region(&self, access: &wire::RegionAccess) -> Result<&super::Region, Errno> {
        let region = self.device.regions().get(access.region as usize).ok_or(Errno::EINVAL)?;
        let end = access.offset.checked_add(u64::from(access.count)).ok_or(Errno::EINVAL)?;
        let within_limit = u64::from(access.count) <= self.ours.max_data_xfer_size;
        if end > region.size || !within_limit { Err(Errno::EINVAL) } else { Ok(region) }
    }

    fn dma_map(&mut self, mut message: Message<'_>) -> Result<(), Errno> {
        let (request, rest) = message.parse::<wire::DmaMap>().ok_or(Errno::EINVAL)?;
        if !rest.is_empty() || message.fds.len() > 1 || (request.argsz as usize) < size_of::<wire::DmaMap>() {
            return Err(Errno::EINVAL);
        }
        self.dma.map(&request, message.fds.pop())?;
        self.device.memory_changed(&self.dma.memory(self.connection));
        Ok(())
    }

    fn dma_unmap(&mut self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (request, rest) = message.parse::<wire::DmaUnmap>().ok_or(Errno::EINVAL)?;
        let argsz_legal = request.argsz as usize >= size_of::<wire::DmaUnmap>();
        if !rest.is_empty() || request.flags != 0 || !argsz_legal {
            return Err(Errno::EINVAL);
        }
        let unmapped = self.dma.unmap(&request)?;
        self.device.memory_changed(&self.dma.memory(self.connection));
        drop(unmapped);
        reply.push(&request);
        Ok(())
    }

    fn device_info(&self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
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

    fn region_info(&self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (request, _) = message.parse::<wire::RegionInfo>().ok_or(Errno::EINVAL)?;
        let region = self.device.regions().get(request.index as usize).ok_or(Errno::EINVAL)?;
        let fixed = size_of::<wire::RegionInfo>();
        if (request.argsz as usize) < fixed {
            return Err(Errno::EINVAL);
        }
        // A client that takes no descriptors is offered nothing to map.
        let mapping = region.mapping.as_ref().filter(|_| self.client.max_msg_fds > 0);
        let areas = mapping.map_or(&[][..], |mapping| &mapping.areas);
        let caps = match areas.len() {
            0 => 0,
            count => {
                size_of::<wire::CapHeader>() + size_of::<wire::SparseMmap>() + count * size_of::<wire::SparseMmapArea>()
            }
        };
        let whole = size_u32(fixed + caps)?;
        let fits = request.argsz >= whole;
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        reply.push(&wire::RegionInfo {
            argsz: whole,
            flags: flag(region.readable, wire::REGION_READ)
                | flag(region.writable, wire::REGION_WRITE)
                | flag(mapping.is_some(), wire::REGION_MMAP)
                | flag(caps > 0, wire::REGION_CAPS),
            index: request.index,
            cap_offset: if caps > 0 && fits { size_u32(fixed)? } else { 0 },
            size: region.size,
            offset: mapping.map_or(0, |mapping| mapping.offset),
        });
        if !fits {
            // The client asks again with room for everything; the descriptor goes with that reply alone.
            return Ok(());
        }
        if caps > 0 {
            reply.push(&wire::CapHeader { id: wire::REGION_CAP_SPARSE_MMAP, version: 1, next: 0 });
            reply.push(&wire::SparseMmap { nr_areas: size_u32(areas.len())?, reserved: 0 });
            for &(offset, size) in areas {
                reply.push(&wire::SparseMmapArea { offset, size });
            }
        }
        match mapping {
            Some(mapping) => reply.push_fd(&mapping.fd),
            None => Ok(()),
        }
    }

    fn region_io_fds(&self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (request, _) = message.parse::<wire::RegionIoFds>().ok_or(Errno::EINVAL)?;
        let fixed = size_of::<wire::RegionIoFds>();
        let index_exists = (request.index as usize) < self.device.regions().len();
        if (request.argsz as usize) < fixed || request.flags != 0 || request.count != 0 || !index_exists {
            return Err(Errno::EINVAL);
        }
        // What does not fit into one message of this client goes by region writes instead.
        let mut io_fds = self.device.io_fds(request.index);
        io_fds.truncate(usize::try_from(self.client.max_msg_fds).unwrap_or(usize::MAX).min(crate::socket::MAX_FDS));
        let whole = size_u32(fixed + io_fds.len() * size_of::<wire::IoFd>())?;
        let fits = request.argsz >= whole;
        let count = size_u32(io_fds.len())?;
        reply.push(&wire::RegionIoFds { argsz: whole, flags: 0, index: request.index, count });
        if !fits {
            return Ok(());
        }
        for (fd_index, io_fd) in (0..).zip(&io_fds) {
            reply.push(&wire::IoFd {
                offset: io_fd.offset,
                size: io_fd.size,
                fd_index,
                kind: wire::IO_FD_IOEVENTFD,
                flags: if io_fd.datamatch.is_some() { wire::IOEVENTFD_DATAMATCH } else { 0 },
                padding: 0,
                data: io_fd.datamatch.unwrap_or(0),
            });
            reply.push_fd(io_fd.fd)?;
        }
        Ok(())
    }

    fn irq_info(&self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (request, _) = message.parse::<wire::IrqInfo>().ok_or(Errno::EINVAL)?;
        let irq = self.device.irqs().get(request.index as usize).ok_or(Errno::EINVAL)?;
        let argsz = size_u32(size_of::<wire::IrqInfo>())?;
        if request.argsz < argsz {
            return Err(Errno::EINVAL);
        }
        reply.push(&wire::IrqInfo { argsz, flags: irq.flags, index: request.index, count: irq.count });
        Ok(())
    }

    fn set_irqs(&mut self, message: Message<'_>) -> Result<(), Errno> {
        let (request, data) = message.parse::<wire::IrqSet>().ok_or(Errno::EINVAL)?;
        let irq = *self.device.irqs().get(request.index as usize).ok_or(Errno::EINVAL)?;
        let end = request.start.checked_add(request.count).ok_or(Errno::EINVAL)?;
        let data_kind = request.flags & IRQ_SET_DATA_MASK;
        let action = request.flags & !IRQ_SET_DATA_MASK;
        let data_size = if data_kind == wire::IRQ_SET_DATA_BOOL { request.count as usize } else { 0 };
        let fds_legal = message.fds.is_empty() || data_kind == wire::IRQ_SET_DATA_EVENTFD;
        let argsz_legal = request.argsz as usize >= size_of::<wire::IrqSet>();
        if end > irq.count || data.len() != data_size || !fds_legal || !argsz_legal {
            return Err(Errno::EINVAL);
        }
        if request.count == 0 {
            if (action, data_kind, request.start) != (wire::IRQ_SET_ACTION_TRIGGER, wire::IRQ_SET_DATA_NONE, 0) {
                return Err(Errno::EINVAL);
            }
            self.interrupts.disconnect(request.index);
            return Ok(());
        }
        let maskable = irq.flags & wire::IRQ_MASKABLE != 0;
        let legal = match action {
            wire::IRQ_SET_ACTION_TRIGGER => true,
            wire::IRQ_SET_ACTION_MASK | wire::IRQ_SET_ACTION_UNMASK => maskable,
            _ => false,
        };
        match data_kind {
            _ if !legal => Err(Errno::EINVAL),
            wire::IRQ_SET_DATA_EVENTFD if action == wire::IRQ_SET_ACTION_TRIGGER => self.connect(&request, message.fds),
            wire::IRQ_SET_DATA_NONE => {
                self.act(&request, action, |_| true);
                Ok(())
            }
            wire::IRQ_SET_DATA_BOOL => {
                self.act(&request, action, |i| data.get(i).is_some_and(|&chosen| chosen != 0));
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// One eventfd per vector, or none to disconnect the range.
    fn connect(&self, request: &wire::IrqSet, fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let vectors = request.start..request.start + request.count;
        if fds.is_empty() {
            vectors.for_each(|vector| self.interrupts.connect(request.index, vector, None));
            return Ok(());
        }
        if fds.len() != vectors.len() {
            return Err(Errno::EINVAL);
        }
        let eventfds = fds.into_iter().map(checked_eventfd).collect::<Result<Vec<_>, _>>()?;
        for (vector, eventfd) in vectors.zip(eventfds) {
            self.interrupts.connect(request.index, vector, Some(eventfd));
        }
        Ok(())
    }

    /// Does an action, which the interrupt type is known to support, for each vector chosen.
    fn act(&mut self, request: &wire::IrqSet, action: u32, chosen: impl Fn(usize) -> bool) {
        for (i, vector) in (request.start..request.start + request.count).enumerate() {
            if !chosen(i) {
                continue;
            }
            match action {
                wire::IRQ_SET_ACTION_MASK => self.interrupts.set_masked(request.index, vector, true),
                wire::IRQ_SET_ACTION_UNMASK => {
                    self.interrupts.set_masked(request.index, vector, false);
                    self.device.unmasked(request.index);
                }
                _ => self.interrupts.trigger(request.index, vector),
            }
        }
    }
}

fn size_u32(size: usize) -> Result<u32, Errno> {
    u32::try_from(size).map_err(|_| Errno::EOVERFLOW)
}
