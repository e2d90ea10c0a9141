//! The areas of a region that a client can map: those that VFIO lets be mapped, in whole pages, without the MSI-X table.

use std::ops::Range;

use outrigger_protocol::pci::BAR5_REGION;
use outrigger_protocol::wire;
use vfio_bindings::bindings::vfio as spec;
use zerocopy::FromBytes;

const PAGE: u64 = 4096;
/// Where the list of capabilities starts, and a bit that says that there is one (PCI Local Bus 3.0, section 6.1).
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const CAPABILITIES: usize = 0x34;
/// PCI Power Management.
pub(super) const CAP_POWER: u8 = 0x01;
const CAP_MSIX: u8 = 0x11;

/// Where a function's MSI-X table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MsixTable {
    pub(super) region: u32,
    pub(super) range: Range<u64>,
}

impl MsixTable {
    /// Reads it from configuration space (PCI Local Bus 3.0, section 6.8.2).
    pub(super) fn find(config: &[u8]) -> Option<Self> {
        let at = find_capability(config, CAP_MSIX)?;
        let control = u16::from_le_bytes(config.get(at + 2..at + 4)?.try_into().ok()?);
        let table = u32::from_le_bytes(config.get(at + 4..at + 8)?.try_into().ok()?);
        let start = u64::from(table & !7);
        let size = 16 * (u64::from(control & 0x7ff) + 1);
        Some(Self { region: table & 7, range: start..start + size })
    }
}

/// Where a capability is.
pub(super) fn find_capability(config: &[u8], id: u8) -> Option<usize> {
    if config.get(STATUS)? & STATUS_CAPABILITIES == 0 {
        return None;
    }
    let mut next = usize::from(config.get(CAPABILITIES)? & !3);
    // As many as have room in 256 bytes; a longer list is a loop.
    for _ in 0..48 {
        if next < 0x40 {
            return None;
        }
        match config.get(next..next + 2)? {
            [found, _] if *found == id => return Some(next),
            [_, after] => next = usize::from(after & !3),
            _ => return None,
        }
    }
    None
}

/// The areas of region `index` that a client can map, as (offset, size): none, if it is to be reached by messages.
///
/// `info` is VFIO's answer: the structure and what is chained to it.
pub(super) fn mappable(index: u32, info: &[u8], table: Option<&MsixTable>) -> Vec<(u64, u64)> {
    let Ok((region, _)) = wire::RegionInfo::read_from_prefix(info) else { return Vec::new() };
    if region.flags & wire::REGION_MMAP == 0 || index > BAR5_REGION {
        return Vec::new();
    }
    let areas = sparse_areas(info, &region).unwrap_or_else(|| vec![(0, region.size)]);
    // Nobody needs the table: a client shows its guest one of its own, and VFIO refuses to let it be written. VFIO lets its
    // pages be mapped (VFIO_REGION_INFO_CAP_MSIX_MAPPABLE) for the registers beside it where pages are larger than here.
    let table = table.filter(|table| table.region == index).map(|table| whole_pages(&table.range));
    let pieces = areas.into_iter().flat_map(|(offset, size)| {
        let area = offset.min(region.size)..offset.saturating_add(size).min(region.size);
        let hole = table.clone().unwrap_or(area.end..area.end);
        [area.start..area.end.min(hole.start), area.start.max(hole.end)..area.end]
    });
    // Less than a page shares it with somebody else's registers.
    let inner = pieces.map(|piece| piece.start.next_multiple_of(PAGE)..piece.end / PAGE * PAGE);
    inner.filter(|piece| piece.start < piece.end).map(|piece| (piece.start, piece.end - piece.start)).collect()
}

fn whole_pages(range: &Range<u64>) -> Range<u64> {
    range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE)
}

/// The areas that VFIO lists. None: it lists none, and the whole region can be mapped.
fn sparse_areas(info: &[u8], region: &wire::RegionInfo) -> Option<Vec<(u64, u64)>> {
    if region.flags & wire::REGION_CAPS == 0 {
        return None;
    }
    let mut next = region.cap_offset as usize;
    for _ in 0..info.len() / size_of::<wire::CapHeader>() {
        if next == 0 {
            return None;
        }
        let (header, rest) = wire::CapHeader::read_from_prefix(info.get(next..)?).ok()?;
        if u32::from(header.id) == spec::VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let (sparse, mut rest) = wire::SparseMmap::read_from_prefix(rest).ok()?;
            let mut areas = Vec::new();
            for _ in 0..sparse.nr_areas {
                let (area, after) = wire::SparseMmapArea::read_from_prefix(rest).ok()?;
                areas.push((area.offset, area.size));
                rest = after;
            }
            return Some(areas);
        }
        next = header.next as usize;
    }
    None
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    /// VFIO's answer about a region of this size; `areas`: with a list of them behind another capability.
    fn info(flags: u32, size: u64, areas: Option<&[(u64, u64)]>) -> Vec<u8> {
        let caps = if areas.is_some() { wire::REGION_CAPS } else { 0 };
        let region = wire::RegionInfo { flags: flags | caps, cap_offset: 32, size, ..Default::default() };
        let mut bytes = region.as_bytes().to_vec();
        if let Some(areas) = areas {
            bytes.extend(wire::CapHeader { id: 3, version: 1, next: 40 }.as_bytes());
            bytes.extend(wire::CapHeader { id: 1, version: 1, next: 0 }.as_bytes());
            bytes.extend(wire::SparseMmap { nr_areas: u32::try_from(areas.len()).unwrap(), reserved: 0 }.as_bytes());
            for &(offset, size) in areas {
                bytes.extend(wire::SparseMmapArea { offset, size }.as_bytes());
            }
        }
        bytes
    }

    fn table(region: u32, range: Range<u64>) -> Option<MsixTable> {
        Some(MsixTable { region, range })
    }

    const MAPPABLE: u32 = wire::REGION_READ | wire::REGION_WRITE | wire::REGION_MMAP;

    #[test]
    fn a_region_is_mapped_whole_unless_something_says_otherwise() {
        assert_eq!(mappable(0, &info(MAPPABLE, 0x4000, None), None), [(0, 0x4000)]);
        assert_eq!(mappable(0, &info(wire::REGION_READ, 0x4000, None), None), []);
        assert_eq!(mappable(7, &info(MAPPABLE, 0x1000, None), None), [], "configuration space");
        assert_eq!(mappable(0, &info(MAPPABLE, 0x4000, None)[..31], None), []);
    }

    #[test]
    fn the_pages_of_the_msix_table_are_left_out() {
        let whole = info(MAPPABLE, 0x4000, None);
        assert_eq!(mappable(0, &whole, table(0, 0x2000..0x2410).as_ref()), [(0, 0x2000), (0x3000, 0x1000)]);
        assert_eq!(mappable(0, &whole, table(0, 0x1ff0..0x2010).as_ref()), [(0, 0x1000), (0x3000, 0x1000)]);
        assert_eq!(mappable(0, &whole, table(0, 0..0x10).as_ref()), [(0x1000, 0x3000)]);
        assert_eq!(mappable(0, &whole, table(0, 0x3ff0..0x4000).as_ref()), [(0, 0x3000)]);
        assert_eq!(mappable(0, &whole, table(0, 0..0x4000).as_ref()), []);
        assert_eq!(mappable(0, &whole, table(0, 0x8000..0x9000).as_ref()), [(0, 0x4000)]);
        assert_eq!(mappable(1, &whole, table(0, 0x2000..0x2410).as_ref()), [(0, 0x4000)]);
    }

    #[test]
    fn areas_that_vfio_lists_are_kept_to_in_whole_pages() {
        let areas = [(0, 0x1000), (0x2000, 0x2000)];
        assert_eq!(mappable(0, &info(MAPPABLE, 0x4000, Some(&areas)), None), areas);
        let listed = info(MAPPABLE, 0x4000, Some(&areas));
        assert_eq!(mappable(0, &listed, table(0, 0x2800..0x2900).as_ref()), [(0, 0x1000), (0x3000, 0x1000)]);
        assert_eq!(mappable(0, &info(MAPPABLE, 0x4000, Some(&[(0x800, 0x1800)])), None), [(0x1000, 0x1000)]);
        assert_eq!(mappable(0, &info(MAPPABLE, 0x4000, Some(&[(0x3000, 0x9000)])), None), [(0x3000, 0x1000)]);
        assert_eq!(mappable(0, &info(MAPPABLE, 0x4000, Some(&[(u64::MAX, 2)])), None), []);
        assert_eq!(mappable(0, &info(MAPPABLE, 0x4000, Some(&[])), None), []);
    }

    #[test]
    fn less_than_a_page_goes_by_messages() {
        assert_eq!(mappable(0, &info(MAPPABLE, 0x100, None), None), []);
        assert_eq!(mappable(0, &info(MAPPABLE, 0x1800, None), None), [(0, 0x1000)]);
    }

    /// Configuration space with these capabilities, chained in order.
    fn config(capabilities: &[(u8, u8, &[u8])]) -> Vec<u8> {
        let mut config = vec![0; 256];
        config[STATUS] = STATUS_CAPABILITIES;
        let mut link = CAPABILITIES;
        for &(at, id, rest) in capabilities {
            config[link] = at;
            let at = usize::from(at);
            config[at] = id;
            config[at + 2..at + 2 + rest.len()].copy_from_slice(rest);
            link = at + 1;
        }
        config
    }

    #[test]
    fn the_msix_table_is_found_in_configuration_space() {
        let capability: &[u8] = &[0x40, 0x80, 0x04, 0x20, 0, 0, 0x04, 0x30, 0, 0];
        let space = config(&[(0x40, CAP_POWER, &[]), (0x50, CAP_MSIX, capability)]);
        assert_eq!(MsixTable::find(&space), table(4, 0x2000..0x2000 + 65 * 16));
        assert_eq!(find_capability(&space, CAP_POWER), Some(0x40));
        assert_eq!(MsixTable::find(&config(&[(0x40, CAP_POWER, &[])])), None);
        let mut without_list = space.clone();
        without_list[STATUS] = 0;
        assert_eq!(MsixTable::find(&without_list), None);
        assert_eq!(MsixTable::find(&[]), None);
        assert_eq!(MsixTable::find(&config(&[(0xfc, CAP_MSIX, &[])])), None, "cut off");
    }

    #[test]
    fn a_list_of_capabilities_that_is_a_loop_ends() {
        let mut space = config(&[(0x40, CAP_POWER, &[])]);
        space[0x41] = 0x40;
        assert_eq!(find_capability(&space, CAP_MSIX), None);
        space[0x41] = 0x10;
        assert_eq!(find_capability(&space, CAP_MSIX), None, "within the header");
    }
}
