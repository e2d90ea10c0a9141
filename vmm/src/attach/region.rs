//! The regions of a device: each with its plan, what the plan needs (mapped areas, sockets), and all of it at the address
//! where the guest put the region. Dropping a [`Placement`] takes every path away again, so moving a BAR is dropping one
//! and making another.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use nix::errno::Errno;

use super::discovery::Description;
use super::dispatch::{Dispatch, Messages};
use super::interrupts::Interrupts;
use super::ioeventfd::{Address, Ioeventfd};
use super::ioregionfd::{Ioregionfd, Ioregionfds, Window, asked_by};
use super::link::Link;
use super::mapped::MappedArea;
use super::plan::Plan;
use super::{AttachError, Backplane};
use crate::bus::Bus;
use crate::memslots::{Memslot, MemslotError};
use crate::pci::bar::Bar;

/// One region that can be placed.
pub(super) struct Region {
    pub(super) dispatch: Arc<Dispatch>,
    /// By the index of [`Plan::areas`].
    areas: Vec<Arc<MappedArea>>,
}

/// A region at an address.
pub(super) struct Placement {
    pub(super) address: u64,
    bus: Arc<Bus>,
    // Before the areas that they show.
    _memslots: Vec<Memslot>,
    _areas: Vec<Arc<MappedArea>>,
    _ioeventfds: Vec<Ioeventfd>,
    _ioregionfds: Vec<Ioregionfd>,
}

/// The regions of a device, by index.
pub(super) fn regions(
    link: &Arc<Link>,
    description: &Description,
    interrupts: &Interrupts,
    backplane: &Backplane,
) -> Result<Vec<Region>, AttachError> {
    let asked_by = asked_by(&backplane.vm, backplane.allowed);
    let mut ioregionfds = Ioregionfds::new(&backplane.vm, link, asked_by);
    let choose = |index| Plan::choose(description, index, backplane.allowed, asked_by);
    let plans: Vec<_> = (0..description.regions.len()).map(choose).collect();
    // A later access by another socket must not overtake a write by message.
    let one_path_in_order = plans.iter().all(|plan| plan.ioregions.is_empty());
    let mut regions = Vec::new();
    for (index, plan) in plans.into_iter().enumerate() {
        let region = &description.regions[index];
        let areas = plan.areas.iter().map(|area| MappedArea::new(region, area.range.clone()).map(Arc::new));
        let areas = areas.collect::<Result<_, _>>()?;
        let channel = |ioregion: &super::plan::Ioregion| {
            let unusable = |source| AttachError::Device(format!("an ioregionfd of region {}: {source}", region.index));
            ioregionfds.channel(&ioregion.fd).map_err(unusable)
        };
        let channels = plan.ioregions.iter().map(channel).collect::<Result<_, _>>()?;
        let io = description.bars.get(index).is_some_and(|bar| bar.kind.is_io());
        let messages = Messages { link: link.clone(), region: region.index, posted: !io && one_path_in_order };
        let dispatch = Arc::new(Dispatch::new(plan, channels, interrupts.msix.clone(), messages));
        regions.push(Region { dispatch, areas });
    }
    Ok(regions)
}

impl Region {
    /// Makes the region appear at `address`. What the system refuses is noted in the plan, and falls back to the next
    /// path; a place that is taken by another device leaves the region unreachable, as colliding BARs are.
    pub(super) fn place(&self, backplane: &Backplane, bar: &Bar, address: u64) -> Option<Placement> {
        let bus = if bar.kind.is_io() { &backplane.io } else { &backplane.mmio };
        if let Err(error) = bus.insert(address, bar.size, self.dispatch.clone()) {
            log::warn!("the guest put a BAR where it cannot be: {error}");
            return None;
        }
        Some(Placement {
            address,
            bus: bus.clone(),
            _memslots: self.map(backplane, address),
            _areas: self.areas.clone(),
            _ioeventfds: self.register_doorbells(backplane, bar, address),
            _ioregionfds: self.register_ioregions(backplane, bar, address),
        })
    }

    fn map(&self, backplane: &Backplane, address: u64) -> Vec<Memslot> {
        let mut slots = Vec::new();
        for (planned, area) in self.dispatch.plan.areas.iter().zip(&self.areas) {
            let (guest, host, size) = (address + area.range.start, area.host(), area.size());
            // SAFETY: the mapping outlives the slot, which `Placement` drops first; nobody here has references into it.
            let slot = unsafe { backplane.memslots.map(guest, host, size, area.readonly) };
            let slot = slot.map_err(|error| match error {
                MemslotError::Refused { source, .. } => source,
                MemslotError::Full { .. } => Errno::ENOSPC.into(),
                MemslotError::Unaligned { .. } => Errno::EINVAL.into(),
            });
            planned.refusal.set(&slot);
            slots.extend(slot.inspect_err(|error| log_instead(planned.range.clone(), "mapped", error)));
        }
        slots
    }

    fn register_doorbells(&self, backplane: &Backplane, bar: &Bar, address: u64) -> Vec<Ioeventfd> {
        let mut registered = Vec::new();
        for doorbell in &self.dispatch.plan.doorbells {
            let at = Address { address: address + doorbell.offset, io: bar.kind.is_io() };
            let ioeventfd = Ioeventfd::register(&backplane.vm, doorbell, at);
            doorbell.refusal.set(&ioeventfd);
            registered.extend(ioeventfd.inspect_err(|error| log_instead(doorbell.range(), "signalled by KVM", error)));
        }
        registered
    }

    fn register_ioregions(&self, backplane: &Backplane, bar: &Bar, address: u64) -> Vec<Ioregionfd> {
        let mut registered = Vec::new();
        for (ioregion, channel) in self.dispatch.ioregions_for_kvm() {
            let Range { start, end } = ioregion.range;
            let window = Window {
                address: address + start,
                size: end - start,
                user_data: ioregion.user_data,
                posted: ioregion.posted,
                io: bar.kind.is_io(),
            };
            let ioregionfd = Ioregionfd::register(&backplane.vm, channel.fd(), window);
            ioregion.refusal.set(&ioregionfd);
            registered.extend(ioregionfd.inspect_err(|error| log_instead(start..end, "asked by KVM", error)));
        }
        registered
    }
}

fn log_instead(range: Range<u64>, how: &str, error: &io::Error) {
    log::warn!("{range:#x?} of a region cannot be {how} and goes by message instead: {error}");
}

impl Drop for Placement {
    fn drop(&mut self) {
        self.bus.remove(self.address);
    }
}
