//! The choice of a path for each part of each region, made once, as data that can be printed.
//!
//! Best first: *mapped* (no exit), *ioeventfd* (KVM signals the device process), *message* (the VMM asks it). The MSI-X
//! table and pending bits are the VMM's own, whatever the server offers for their pages.

use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use outrigger_protocol::client::{IoFdKind, RegionInfo};

use super::discovery::{Description, MsixCapability};

const PAGE: u64 = 4096;

/// How guest accesses to a range reach the device.
#[derive(Clone, Debug)]
pub enum Path {
    /// The guest accesses the server's memory.
    Mapped,
    /// A write of this size (any, if zero) and value (any, if none) signals the eventfd; everything else goes by message.
    Ioeventfd {
        /// Bytes of the write; zero: any.
        size: u64,
        /// Value of the write.
        datamatch: Option<u64>,
        /// The server's eventfd.
        fd: Arc<OwnedFd>,
    },
    /// The VMM answers.
    Msix,
    /// The VMM asks the server.
    Message,
}

/// One part of a region.
#[derive(Clone, Debug)]
pub struct SubRange {
    /// From the start of the region, in bytes.
    pub range: Range<u64>,
    /// Its path.
    pub path: Path,
}

/// The paths of one region. Where none is listed, accesses go by message.
#[derive(Clone, Debug, Default)]
pub struct RegionPaths {
    /// Bytes.
    pub size: u64,
    /// Sorted by start; ioeventfds may share an address.
    pub parts: Vec<SubRange>,
}

impl RegionPaths {
    /// Chooses for region `index`.
    #[must_use]
    pub fn choose(description: &Description, index: usize) -> Self {
        let region = &description.regions[index];
        let msix = description.msix.map(|msix| msix_ranges(&msix, region.index)).unwrap_or_default();
        let mapped = mappable(region, &msix);
        let overlaps = |ranges: &[Range<u64>], at: u64| ranges.iter().any(|range| range.contains(&at));
        let ioeventfds = description.io_fds[index].iter().filter_map(|io_fd| {
            let IoFdKind::Ioeventfd { datamatch } = io_fd.kind else { return None };
            let fits_kvm = matches!(io_fd.size, 0 | 1 | 2 | 4 | 8) && (io_fd.size > 0 || datamatch.is_none());
            let free = !overlaps(&mapped, io_fd.offset) && !overlaps(&msix, io_fd.offset);
            let path = Path::Ioeventfd { size: io_fd.size, datamatch, fd: io_fd.fd.clone() };
            let range = io_fd.offset..io_fd.offset + io_fd.size.max(1);
            (fits_kvm && free).then_some(SubRange { range, path })
        });
        let mut parts: Vec<_> = ioeventfds.collect();
        parts.extend(mapped.iter().cloned().map(|range| SubRange { range, path: Path::Mapped }));
        parts.extend(msix.into_iter().map(|range| SubRange { range, path: Path::Msix }));
        parts.sort_by_key(|part| part.range.start);
        Self { size: region.size, parts }
    }

    /// The whole region, with what goes by message filled in, for people.
    #[must_use]
    pub fn complete(&self) -> Vec<SubRange> {
        let mut all = Vec::new();
        let mut at = 0;
        let message = |range: Range<u64>| SubRange { range, path: Path::Message };
        for part in &self.parts {
            if part.range.start > at {
                all.push(message(at..part.range.start));
            }
            at = at.max(part.range.end);
            all.push(part.clone());
        }
        if at < self.size {
            all.push(message(at..self.size));
        }
        all
    }
}

/// The VMM's own parts of a region.
fn msix_ranges(msix: &MsixCapability, region: u32) -> Vec<Range<u64>> {
    let parts = [(msix.table, msix.table_size()), (msix.pba, msix.pba_size())];
    let here = parts.into_iter().filter(|((bar, _), _)| *bar == region);
    here.map(|((_, offset), size)| offset..offset + size).collect()
}

/// What the server lets be mapped, without pages that hold something of the VMM's.
fn mappable(region: &RegionInfo, msix: &[Range<u64>]) -> Vec<Range<u64>> {
    if region.fd.is_none() {
        return Vec::new();
    }
    let areas = region.areas.iter().map(|&(offset, size)| offset..offset + size);
    // A page that reaches beyond the region would show the guest something else of the file.
    let mut areas: Vec<_> = areas.map(|area| area.start..area.end & !(PAGE - 1)).collect();
    for own in msix {
        let (start, end) = (own.start & !(PAGE - 1), own.end.next_multiple_of(PAGE));
        let without = |area: Range<u64>| [area.start..area.end.min(start), area.start.max(end)..area.end];
        areas = areas.into_iter().flat_map(without).collect();
    }
    areas.sort_by_key(|area| area.start);
    let mut disjoint: Vec<Range<u64>> = Vec::new();
    for area in areas.into_iter().filter(|area| area.start < area.end) {
        match disjoint.last_mut() {
            Some(last) if area.start <= last.end => last.end = last.end.max(area.end),
            _ => disjoint.push(area),
        }
    }
    disjoint
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapped => f.write_str("mapped       no exit"),
            Self::Ioeventfd { size, datamatch, .. } => {
                f.write_str("ioeventfd    KVM signals the device process")?;
                match size {
                    0 => f.write_str(" on a write of any size")?,
                    size => write!(f, " on a {size}-byte write")?,
                }
                datamatch.map_or(Ok(()), |value| write!(f, " of {value:#x}"))
            }
            Self::Msix => f.write_str("vmm          MSI-X table and pending bits"),
            Self::Message => f.write_str("message      the VMM asks the device process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(size: u64, areas: &[(u64, u64)]) -> RegionInfo {
        let fd = Some(std::fs::File::open("/dev/null").unwrap().into());
        RegionInfo { index: 2, flags: 0, size, offset: 0, fd, areas: areas.to_vec(), region_type: None }
    }

    #[test]
    fn pages_with_something_of_the_vmms_are_not_mapped() {
        let msix = [0x1800..0x1840, 0x3000..0x3008];
        assert_eq!(mappable(&region(0x8000, &[(0, 0x8000)]), &msix), [0..0x1000, 0x2000..0x3000, 0x4000..0x8000]);
    }

    #[test]
    fn overlapping_areas_become_one_and_partial_pages_stay_out() {
        let areas = [(0x2000, 0x2000), (0, 0x3000), (0x6000, 0x800)];
        let mapped = mappable(&region(0x6800, &areas), &[]);
        assert_eq!(mapped.iter().map(|area| (area.start, area.end)).collect::<Vec<_>>(), [(0, 0x4000)]);
        assert!(mappable(&RegionInfo { fd: None, ..region(0x1000, &[(0, 0x1000)]) }, &[]).is_empty());
    }

    #[test]
    fn the_gaps_are_messages() {
        let part = |range| SubRange { range, path: Path::Msix };
        let paths = RegionPaths { size: 0x100, parts: vec![part(0x10..0x20), part(0x40..0x100)] };
        let ranges: Vec<_> = paths.complete().into_iter().map(|part| part.range).collect();
        assert_eq!(ranges, [0..0x10, 0x10..0x20, 0x20..0x40, 0x40..0x100]);
    }
}
