//! From a device's description to regions that can be placed: paths are chosen, areas mapped, sockets taken.

use std::ops::Range;
use std::sync::Arc;

use super::discovery::{Description, MsixCapability};
use super::exits::{Ioregion, MsixOverlay, RegionExits};
use super::interrupts::Interrupts;
use super::ioregionfd::asked_by;
use super::link::Link;
use super::mapped::MappedArea;
use super::message::RegionMessages;
use super::paths::{Path, RegionPaths};
use super::placement::Placeable;
use super::stand_in::Ioregionfds;
use super::{AttachError, Backplane};

/// All regions of a device, by index.
pub(super) struct Regions(pub(super) Vec<Placeable>);

impl Regions {
    pub(super) fn new(
        link: &Arc<Link>,
        description: &Description,
        interrupts: &Interrupts,
        backplane: &Backplane,
    ) -> Result<Self, AttachError> {
        let asked_by = asked_by(&backplane.vm, backplane.allowed);
        let mut ioregionfds = Ioregionfds::new(&backplane.vm, link, asked_by);
        let choose = |index| RegionPaths::choose(description, index, backplane.allowed, asked_by);
        let chosen: Vec<_> = (0..description.regions.len()).map(choose).collect();
        // A later access by another socket must not overtake a write by message.
        let one_path_in_order = chosen.iter().all(|paths| paths.ioregions.is_empty());
        let mut placeables = Vec::new();
        for (index, paths) in chosen.into_iter().enumerate() {
            let region = &description.regions[index];
            let mapped = paths.parts.iter().filter(|part| matches!(part.path, Path::Mapped));
            let areas = mapped.map(|part| MappedArea::new(region, part.range.clone()).map(Arc::new));
            let areas = areas.collect::<Result<_, _>>()?;
            let overlay = description.msix.zip(interrupts.msix.clone()).map(|(capability, msix)| {
                let (table, pba) = overlay_ranges(&capability, region.index);
                MsixOverlay { msix, table, pba }
            });
            let io = description.bars.get(index).is_some_and(|bar| bar.kind.is_io());
            let messages =
                RegionMessages { link: link.clone(), region: region.index, posted: !io && one_path_in_order };
            let ioregions = paths.ioregions.iter().map(|offer| {
                let channel = ioregionfds.channel(&offer.fd).map_err(|source| {
                    AttachError::Device(format!("an ioregionfd of region {}: {source}", region.index))
                })?;
                Ok(Ioregion { range: offer.range.clone(), user_data: offer.user_data, posted: offer.posted, channel })
            });
            let ioregions = ioregions.collect::<Result<_, AttachError>>()?;
            let exits = Arc::new(RegionExits::new(region.size, overlay, ioregions, messages));
            placeables.push(Placeable { paths, areas, exits });
        }
        Ok(Self(placeables))
    }
}

fn overlay_ranges(msix: &MsixCapability, region: u32) -> (Range<u64>, Range<u64>) {
    let here = |(bar, offset): (u32, u64), size| if bar == region { offset..offset + size } else { 0..0 };
    (here(msix.table, msix.table_size()), here(msix.pba, msix.pba_size()))
}
