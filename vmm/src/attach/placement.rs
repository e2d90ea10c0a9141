//! All paths of one region at the address where the guest put it. Dropping a [`Placement`] takes every one of them away,
//! so moving a BAR is dropping one and making another.

use std::ops::Range;
use std::sync::Arc;

use super::Backplane;
use super::exits::RegionExits;
use super::ioeventfd::{Doorbell, Ioeventfd};
use super::ioregionfd::{Ioregionfd, Window};
use super::mapped::MappedArea;
use super::paths::{Path, RegionPaths};
use crate::bus::Bus;
use crate::memslots::Memslot;
use crate::pci::bar::Bar;

/// One region that can be placed.
pub(super) struct Placeable {
    pub(super) paths: RegionPaths,
    pub(super) areas: Vec<Arc<MappedArea>>,
    pub(super) exits: Arc<RegionExits>,
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

impl Placeable {
    /// Makes the region appear at `address`. What the system refuses falls back to the next path; a place that is
    /// taken by another device leaves the region unreachable, as colliding BARs are.
    pub(super) fn place(&self, backplane: &Backplane, bar: &Bar, address: u64) -> Option<Placement> {
        let io = bar.kind.is_io();
        let bus = if io { &backplane.io } else { &backplane.mmio };
        if let Err(error) = bus.insert(address, bar.size, self.exits.clone()) {
            log::warn!("the guest put a BAR where it cannot be: {error}");
            return None;
        }
        let mapped = self.areas.iter().filter(|_| !io).filter_map(|area| {
            // SAFETY: the mapping outlives the slot, which `Placement` drops first; nobody here has references into it.
            let slot =
                unsafe { backplane.memslots.map(address + area.range.start, area.host(), area.size(), area.readonly) };
            slot.inspect_err(|error| log::warn!("this part goes by message instead: {error}")).ok()
        });
        let ioeventfds = self.paths.parts.iter().filter_map(|part| {
            let Path::Ioeventfd { size, datamatch, fd } = &part.path else { return None };
            let doorbell = Doorbell { address: address + part.range.start, size: *size, datamatch: *datamatch, io };
            let registered = Ioeventfd::register(&backplane.vm, fd, doorbell);
            registered.inspect_err(|error| log::warn!("{doorbell:x?} goes by message instead: {error}")).ok()
        });
        let ioregionfds = self.exits.for_kvm().filter_map(|ioregion| {
            let Range { start, end } = ioregion.range;
            let window = Window {
                address: address + start,
                size: end - start,
                user_data: ioregion.user_data,
                posted: ioregion.posted,
                io,
            };
            let registered = Ioregionfd::register(&backplane.vm, ioregion.channel.fd(), window);
            registered.inspect_err(|error| log::warn!("{window:x?} goes by message instead: {error}")).ok()
        });
        Some(Placement {
            address,
            bus: bus.clone(),
            _memslots: mapped.collect(),
            _areas: self.areas.clone(),
            _ioeventfds: ioeventfds.collect(),
            _ioregionfds: ioregionfds.collect(),
        })
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        self.bus.remove(self.address);
    }
}
