//! The regions of a device: each with its plan, what the plan needs (mapped areas, sockets), and all of it at the address
//! where the guest put the region. Dropping a [`Placement`] takes every path away again, so moving a BAR is dropping one
//! and making another. When another process is to serve the device, [`Placement::suspend`] takes the paths away, so that
//! accesses come to the VMM and wait there, and [`Placement::hand_over`] puts the successor's region in the same place.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use outrigger_protocol::client::RegionInfo;

use super::address_map::AddressMap;
use super::discovery::Description;
use super::dispatch::{Dispatch, Messages, Served};
use super::ioeventfd::{Address, Ioeventfd};
use super::ioregionfd::{Ioregionfd, Ioregionfds, Window, asked_by};
use super::link::Link;
use super::mapped::{MappedArea, Unreachable};
use super::peer_to_peer::Target;
use super::plan::{Area, Ioregion, Plan};
use super::warnings::Warnings;
use super::{AttachError, Backplane};
use crate::irq::msix::Msix;
use crate::machine::bus::{Bus, BusError};
use crate::machine::memslots::{Memslot, MemslotError};
use crate::pci::bar::Bar;

/// One region that can be placed.
pub(super) struct Region {
    pub(super) dispatch: Arc<Dispatch>,
    /// By the index of [`Plan::areas`]; none where the system refused.
    areas: Vec<Option<Arc<MappedArea>>>,
    warnings: Arc<Warnings>,
}

/// A region at an address.
pub(super) struct Placement {
    address: u64,
    bus: Arc<Bus>,
    /// None: every access comes to the VMM.
    paths: Option<Paths>,
}

/// The paths by which accesses to a placed region get along without the VMM.
struct Paths {
    // Before the areas that they show.
    _memslots: Vec<Memslot>,
    _areas: Vec<Option<Arc<MappedArea>>>,
    _ioeventfds: Vec<Ioeventfd>,
    _ioregionfds: Vec<Ioregionfd>,
}

/// The regions of a device, by index.
pub(super) fn regions(
    link: &Arc<Link>,
    description: &Description,
    msix: Option<&Arc<Mutex<Msix>>>,
    served: &Served,
    backplane: &Backplane,
    warnings: &Arc<Warnings>,
) -> Result<Vec<Arc<Region>>, AttachError> {
    let vm = &backplane.addresses.vm;
    let asked_by = asked_by(vm, backplane.allowed);
    let mut ioregionfds = Ioregionfds::new(vm, link, asked_by);
    let choose = |index| Plan::choose(description, index, backplane.allowed, asked_by);
    let plans: Vec<_> = (0..description.regions.len()).map(choose).collect();
    // A later access by another socket must not overtake a write by message.
    let one_path_in_order = plans.iter().all(|plan| plan.ioregions.is_empty());
    let mut regions = Vec::new();
    for (index, plan) in plans.into_iter().enumerate() {
        let region = &description.regions[index];
        if let Some(reason) = plan.not_mapped() {
            warnings.warn(format_args!("a part of region {index} that could be mapped goes by message{reason}"));
        }
        let areas = map_areas(region, &plan, warnings);
        let channel = |ioregion: &Ioregion| {
            let unusable = |source| AttachError::Device(format!("an ioregionfd of region {}: {source}", region.index));
            ioregionfds.channel(&ioregion.fd).map_err(unusable)
        };
        let channels = plan.ioregions.iter().map(channel).collect::<Result<_, _>>()?;
        let io = description.bars.get(index).is_some_and(|bar| bar.kind.is_io());
        let (link, warnings) = (link.clone(), warnings.clone());
        let posted = !io && one_path_in_order && !served.can_be_succeeded;
        let messages = Messages { link, region: region.index, posted, warnings: warnings.clone() };
        let dispatch = Arc::new(Dispatch::new(plan, channels, msix.cloned(), messages, served.clone()));
        regions.push(Arc::new(Region { dispatch, areas, warnings }));
    }
    Ok(regions)
}

fn map_areas(region: &RegionInfo, plan: &Plan, warnings: &Warnings) -> Vec<Option<Arc<MappedArea>>> {
    let file = region.fd.as_ref().and_then(|fd| fd.duplicate().ok()).map(Arc::new);
    let map = |planned: &Area| {
        let file = file.as_ref().ok_or_else(|| io::Error::from(Errno::EMFILE));
        let area = file.and_then(|file| MappedArea::new(region, file, planned.range.clone()));
        planned.refusal.set(&area);
        let area = area.inspect_err(|error| {
            warnings.warn(format_args!("{:#x?} of region {} cannot be mapped: {error}", planned.range, region.index));
        });
        area.ok().map(Arc::new)
    };
    plan.areas.iter().map(map).collect()
}

impl Region {
    /// The connection to the device.
    pub(super) fn link(&self) -> &Link {
        self.dispatch.link()
    }

    /// Whether the guest can reach all memory that it sees here, see [`MappedArea::check_reachable`].
    pub(super) fn check_reachable(&self, again: bool) -> Result<(), Unreachable> {
        self.areas.iter().flatten().try_for_each(|area| area.check_reachable(again))
    }

    /// Whether any hardware that the guest sees here is there; none: it sees none here.
    pub(super) fn is_hardware_there(&self) -> Option<bool> {
        self.areas.iter().flatten().filter_map(|area| area.is_hardware_there()).reduce(|one, other| one || other)
    }

    /// The areas that other devices' DMA may reach where the region is at `address`.
    pub(super) fn targets(&self, address: u64) -> impl Iterator<Item = Target> {
        self.areas.iter().flatten().filter_map(move |area| area.target(address))
    }

    /// Makes the region appear at `address`. What the system refuses is noted in the plan, and falls back to the next
    /// path. While the link is lost there is no path but the VMM's.
    ///
    /// # Errors
    /// If another device has the place. The region is nowhere then.
    pub(super) fn place(&self, map: &AddressMap, bar: &Bar, address: u64) -> Result<Placement, BusError> {
        let bus = if bar.kind.is_io() { &map.io } else { &map.mmio };
        bus.insert(address, bar.size, self.dispatch.clone())?;
        let paths = self.link().lost().is_none().then(|| self.paths(map, bar, address));
        Ok(Placement { address, bus: bus.clone(), paths })
    }

    fn paths(&self, map: &AddressMap, bar: &Bar, address: u64) -> Paths {
        Paths {
            _memslots: self.map(map, address),
            _areas: self.areas.clone(),
            _ioeventfds: self.register_doorbells(map, bar, address),
            _ioregionfds: self.register_ioregions(map, bar, address),
        }
    }

    /// Says that a BAR is nowhere.
    pub(super) fn warn_of_collision(&self, error: &BusError) {
        self.warnings
            .warn(format_args!("a BAR is where another device is, and nowhere until that one leaves: {error}"));
    }

    fn map(&self, map: &AddressMap, address: u64) -> Vec<Memslot> {
        let mut slots = Vec::new();
        for (planned, area) in self.dispatch.plan.areas.iter().zip(&self.areas) {
            let Some(area) = area else { continue };
            let (guest, host, size) = (address + area.range.start, area.host(), area.size());
            // SAFETY: the mapping outlives the slot, which `Placement` drops first; nobody here has references into it.
            let slot = unsafe { map.memslots.map(guest, host, size, area.readonly) };
            let slot = slot.map_err(|error| match error {
                MemslotError::Refused { source, .. } => source,
                MemslotError::Full { .. } => Errno::ENOSPC.into(),
                MemslotError::Unaligned { .. } => Errno::EINVAL.into(),
            });
            planned.refusal.set(&slot);
            slots.extend(slot.inspect_err(|error| self.warn_of_refusal(planned.range.clone(), "mapped", error)));
        }
        slots
    }

    fn register_doorbells(&self, map: &AddressMap, bar: &Bar, address: u64) -> Vec<Ioeventfd> {
        let mut registered = Vec::new();
        for doorbell in &self.dispatch.plan.doorbells {
            let at = Address { address: address + doorbell.offset, io: bar.kind.is_io() };
            let ioeventfd = Ioeventfd::register(&map.vm, doorbell, at);
            doorbell.refusal.set(&ioeventfd);
            registered.extend(
                ioeventfd.inspect_err(|error| self.warn_of_refusal(doorbell.range(), "signalled by KVM", error)),
            );
        }
        registered
    }

    fn register_ioregions(&self, map: &AddressMap, bar: &Bar, address: u64) -> Vec<Ioregionfd> {
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
            let ioregionfd = Ioregionfd::register(&map.vm, channel.fd(), window);
            ioregion.refusal.set(&ioregionfd);
            registered.extend(ioregionfd.inspect_err(|error| self.warn_of_refusal(start..end, "asked by KVM", error)));
        }
        registered
    }

    fn warn_of_refusal(&self, range: Range<u64>, how: &str, error: &io::Error) {
        self.warnings.warn(format_args!("{range:#x?} of a region cannot be {how} and goes by message: {error}"));
    }
}

impl Placement {
    /// Lets every access come to the VMM from now on; false: that was so already.
    pub(super) fn suspend(&mut self) -> bool {
        self.paths.take().is_some()
    }

    /// Puts `region`, which a successor serves, where its predecessor was. The place is never empty.
    pub(super) fn hand_over(&mut self, region: &Region, map: &AddressMap, bar: &Bar) {
        self.paths = None;
        self.bus.replace(self.address, region.dispatch.clone());
        self.paths = Some(region.paths(map, bar, self.address));
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        self.bus.remove(self.address);
    }
}
