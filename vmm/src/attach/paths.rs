//! The choice of a path for each part of each region, made once, as data that can be printed.
//!
//! Best first: *mapped* (no exit), *ioeventfd* (KVM signals the device process), *message* (the VMM asks it). The MSI-X
//! table and pending bits are the VMM's own, whatever the server offers for their pages. What the user forbids
//! (`--paths`), and what KVM could not do, leaves a range to the next path that is offered for it.

use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use outrigger_protocol::client::{IoFdKind, RegionInfo};

use super::discovery::{Description, MsixCapability};
use crate::config::{AllowedPaths, PathName};

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

/// Why a range does not take a path that is offered for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The user forbids it.
    Forbidden,
    /// The offer is not one that KVM could take.
    Unfit,
}

/// A path that is offered for a range, and that the range does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// From the start of the region, in bytes.
    pub range: Range<u64>,
    /// What is offered.
    pub path: PathName,
    /// Why not.
    pub reason: Reason,
}

/// The paths of one region. Where none is listed, accesses go by message.
#[derive(Clone, Debug, Default)]
pub struct RegionPaths {
    /// Bytes.
    pub size: u64,
    /// Sorted by start; ioeventfds may share an address.
    pub parts: Vec<SubRange>,
    /// What was offered in vain.
    pub passed_over: Vec<PassedOver>,
}

impl RegionPaths {
    /// Chooses for region `index`.
    #[must_use]
    pub fn choose(description: &Description, index: usize, allowed: AllowedPaths) -> Self {
        let region = &description.regions[index];
        let mut paths = Self { size: region.size, ..Self::default() };
        let msix = description.msix.map(|msix| msix_ranges(&msix, region.index)).unwrap_or_default();
        for range in &msix {
            paths.take(range.clone(), Path::Msix);
        }
        let io = description.bars.get(index).is_some_and(|bar| bar.kind.is_io());
        for range in mappable(region, &msix).into_iter().filter(|_| !io) {
            match allowed.allow(PathName::Mapped) {
                true => paths.take(range, Path::Mapped),
                false => paths.pass_over(range, PathName::Mapped, Reason::Forbidden),
            }
        }
        for io_fd in &description.io_fds[index] {
            let IoFdKind::Ioeventfd { datamatch } = io_fd.kind else { continue };
            let range = io_fd.offset..io_fd.offset + io_fd.size.max(1);
            let fits_kvm = matches!(io_fd.size, 0 | 1 | 2 | 4 | 8) && (io_fd.size > 0 || datamatch.is_none());
            if !allowed.allow(PathName::Ioeventfd) {
                paths.pass_over(range, PathName::Ioeventfd, Reason::Forbidden);
            } else if !fits_kvm {
                paths.pass_over(range, PathName::Ioeventfd, Reason::Unfit);
            } else if !paths.has_better_than_ioeventfd(range.start) {
                let path = Path::Ioeventfd { size: io_fd.size, datamatch, fd: io_fd.fd.clone() };
                paths.take(range, path);
            }
        }
        paths.parts.sort_by_key(|part| part.range.start);
        paths
    }

    fn take(&mut self, range: Range<u64>, path: Path) {
        self.parts.push(SubRange { range, path });
    }

    fn pass_over(&mut self, range: Range<u64>, path: PathName, reason: Reason) {
        self.passed_over.push(PassedOver { range, path, reason });
    }

    fn has_better_than_ioeventfd(&self, at: u64) -> bool {
        self.parts.iter().any(|part| matches!(part.path, Path::Mapped | Path::Msix) && part.range.contains(&at))
    }

    /// The whole region, with what goes by message filled in, for people. A range of messages ends where the reasons for
    /// it change.
    #[must_use]
    pub fn complete(&self) -> Vec<SubRange> {
        let mut all = Vec::new();
        let mut at = 0;
        for part in &self.parts {
            if part.range.start > at {
                all.extend(self.messages(at..part.range.start));
            }
            at = at.max(part.range.end);
            all.push(part.clone());
        }
        if at < self.size {
            all.extend(self.messages(at..self.size));
        }
        all
    }

    fn messages(&self, gap: Range<u64>) -> Vec<SubRange> {
        let edges = self.passed_over.iter().flat_map(|other| [other.range.start, other.range.end]);
        let mut edges: Vec<_> = edges.filter(|edge| gap.contains(edge)).chain([gap.start, gap.end]).collect();
        edges.sort_unstable();
        edges.dedup();
        edges.windows(2).map(|pair| SubRange { range: pair[0]..pair[1], path: Path::Message }).collect()
    }

    /// Which path a part takes and why, for people.
    #[must_use]
    pub fn explain(&self, part: &SubRange) -> String {
        let mut text = part.path.to_string();
        let mut told = Vec::new();
        let here = |other: &&PassedOver| other.range.start < part.range.end && part.range.start < other.range.end;
        for PassedOver { path, reason, .. } in self.passed_over.iter().filter(here) {
            if told.contains(&(*path, *reason)) {
                continue;
            }
            told.push((*path, *reason));
            text.push_str(&match reason {
                Reason::Forbidden => format!("; {path} is forbidden by --paths"),
                Reason::Unfit => format!("; KVM has no {path} like the one offered"),
            });
        }
        if told.is_empty() && matches!(part.path, Path::Message) {
            text.push_str(", which offers no other path");
        }
        text
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
        let parts = vec![part(0x10..0x20), part(0x40..0x100)];
        let paths = RegionPaths { size: 0x100, parts, passed_over: Vec::new() };
        let ranges: Vec<_> = paths.complete().into_iter().map(|part| part.range).collect();
        assert_eq!(ranges, [0..0x10, 0x10..0x20, 0x20..0x40, 0x40..0x100]);
    }
}
