//! The work of each command: checked against the specification, then handed to the device.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use super::connection::Connection;
use super::device::Device;
use super::dma::DmaTable;
use super::interrupts::{Interrupts, checked_eventfd};
use super::journal::Journal;
use super::migration;
use super::reply::Reply;
use crate::capabilities::Capabilities;
use crate::codec::{Message, structures};
use crate::command::Command;
use crate::foreign::ForeignFd;
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
    pub(super) journal: Journal,
}

impl Commands<'_> {
    /// Executes one command; what it answers is in `reply`.
    pub(super) fn execute(&mut self, message: Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let command = Command::from_number(message.header.command).ok_or(Errno::ENOTSUP)?;
        let takes_fds = matches!(command, Command::DmaMap | Command::DeviceSetIrqs | Command::JournalOffer);
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
            Command::DeviceFeature => self.feature(&message, reply),
            Command::DeviceReset if message.payload.is_empty() => {
                self.device.reset();
                self.device.finish_reset()
            }
            Command::DeviceReset => Err(Errno::EINVAL),
            Command::Version => Err(Errno::EINVAL),
            Command::MigDataRead => migration::read_data(self.device, &message, self.ours.max_data_xfer_size, reply),
            Command::MigDataWrite => migration::write_data(self.device, &message, self.ours.max_data_xfer_size),
            Command::JournalOffer => self.journal_offer(message, reply),
            Command::JournalTake => self.journal_take(&message),
            Command::VfioFile | Command::VfioOpen if self.ours.outrigger_vfio.is_some() => Err(Errno::EINVAL),
            Command::VfioFile | Command::VfioOpen => Err(Errno::ENOTSUP),
            Command::DmaRead | Command::DmaWrite | Command::RegionWriteMulti => Err(Errno::ENOTSUP),
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
        let reaches_bars = self.device.reaches_bars();
        self.dma.map(&request, message.fds.pop(), reaches_bars, |range| self.device.map(range))?;
        self.device.memory_changed(&self.dma.memory(self.connection));
        Ok(())
    }

    fn dma_unmap(&mut self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (request, rest) = message.parse::<wire::DmaUnmap>().ok_or(Errno::EINVAL)?;
        let argsz_legal = request.argsz as usize >= size_of::<wire::DmaUnmap>();
        if !rest.is_empty() || !argsz_legal {
            return Err(Errno::EINVAL);
        }
        let unmapped = self.dma.unmap(&request)?;
        self.device.memory_changed(&self.dma.memory(self.connection));
        unmapped.iter().for_each(|range| self.device.unmap(&range.dma()));
        drop(unmapped);
        reply.push(&request);
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
            self.device.connect(request.index, 0, &vec![None; irq.count as usize])?;
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
            wire::IRQ_SET_DATA_EVENTFD if action == wire::IRQ_SET_ACTION_TRIGGER => {
                let connects = !message.fds.is_empty();
                self.connect(&request, message.fds)?;
                // A level that rose while nothing was connected would otherwise never be noticed.
                if connects && maskable {
                    self.device.unmasked(request.index);
                }
                Ok(())
            }
            wire::IRQ_SET_DATA_EVENTFD if action == wire::IRQ_SET_ACTION_UNMASK => {
                let eventfds = checked_eventfds(&request, message.fds)?;
                self.device.connect_unmask(request.index, request.start, &borrowed(&eventfds))
            }
            wire::IRQ_SET_DATA_NONE => self.act(&request, action, |_| true),
            wire::IRQ_SET_DATA_BOOL => self.act(&request, action, |i| data.get(i).is_some_and(|&chosen| chosen != 0)),
            _ => Err(Errno::EINVAL),
        }
    }

    /// One eventfd per vector, or none to disconnect the range.
    fn connect(&mut self, request: &wire::IrqSet, fds: Vec<ForeignFd>) -> Result<(), Errno> {
        let eventfds = checked_eventfds(request, fds)?;
        self.device.connect(request.index, request.start, &borrowed(&eventfds))?;
        for (vector, eventfd) in (request.start..).zip(eventfds) {
            self.interrupts.connect(request.index, vector, eventfd);
        }
        Ok(())
    }

    /// Does an action, which the interrupt type is known to support, for each vector chosen.
    fn act(&mut self, request: &wire::IrqSet, action: u32, chosen: impl Fn(usize) -> bool) -> Result<(), Errno> {
        for (i, vector) in (request.start..request.start + request.count).enumerate() {
            if !chosen(i) {
                continue;
            }
            match action {
                wire::IRQ_SET_ACTION_MASK => {
                    self.device.mask(request.index, vector, true)?;
                    self.interrupts.set_masked(request.index, vector, true);
                }
                wire::IRQ_SET_ACTION_UNMASK => {
                    self.device.mask(request.index, vector, false)?;
                    self.interrupts.set_masked(request.index, vector, false);
                    self.device.unmasked(request.index);
                }
                _ => self.interrupts.trigger(request.index, vector),
            }
        }
        Ok(())
    }
}

/// An eventfd for each vector of the request; no descriptors at all: none for any.
fn checked_eventfds(request: &wire::IrqSet, fds: Vec<ForeignFd>) -> Result<Vec<Option<EventFd>>, Errno> {
    match fds.len() {
        0 => Ok((0..request.count).map(|_| None).collect()),
        count if count == request.count as usize => fds.into_iter().map(|fd| checked_eventfd(fd).map(Some)).collect(),
        _ => Err(Errno::EINVAL),
    }
}

fn borrowed(eventfds: &[Option<EventFd>]) -> Vec<Option<BorrowedFd<'_>>> {
    eventfds.iter().map(|eventfd| eventfd.as_ref().map(AsFd::as_fd)).collect()
}
