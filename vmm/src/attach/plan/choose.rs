//! The choice of a path for each part of a region.
//!
//! Best first: *mapped* (no exit), *ioeventfd* (KVM signals the device process), *ioregionfd* (KVM asks it, or the VMM as
//! its stand-in), *message* (the VMM asks it). The MSI-X table and pending bits are the VMM's own, whatever the server
//! offers for their pages. What the user forbids (`--paths`), and what KVM could not do, leaves a range to the next path
//! that is offered for it.
//!
//! A mapped area or a doorbell may lie within an ioregionfd's sub-region, and takes what it takes. The MSI-X table, and
//! another sub-region, may not: the sub-region ends before it. What lies behind goes by message, since the protocol
//! counts offsets from the start of what KVM was told, and a server from the start of what it offered.

use std::ops::Range;

use outrigger_protocol::client::{IoFd, IoFdKind, RegionInfo};
use outrigger_protocol::ioregionfd::SocketType;
use outrigger_protocol::wire;

use super::{Area, AskedBy, Doorbell, Ioregion, Part, Path, Plan, Reason, Refusal};
use crate::attach::discovery::{Description, MsixCapability};
use crate::attach::mapped::check;
use crate::config::{AllowedPaths, PathName};

const PAGE: u64 = 4096;
/// The most areas of one region that are mapped. KVM takes or gives up each within 40 µs on an idle host and 5 ms on a busy
/// one, while the vCPU that enables or disables the BAR waits, and cannot be stopped.
const MOST_AREAS: usize = 64;
/// The most doorbells, and the most ioregionfds, of one region. A device has a few for each of its queues.
const MOST_REGISTERED: usize = 256;
/// Bytes of the widest write that signals.
const WIDEST: u64 = 8;

/// A plan in the making: what was accepted, and what was passed over.
pub(super) struct Draft {
    table: Range<u64>,
    pba: Range<u64>,
    areas: Vec<Area>,
    doorbells: Vec<Doorbell>,
    ioregions: Vec<Ioregion>,
    passed_over: Vec<(Range<u64>, PathName, Reason)>,
}

impl Draft {
    pub(super) fn new(description: &Description, index: usize, allowed: AllowedPaths, asked_by: AskedBy) -> Self {
        let region = &description.regions[index];
        let (table, pba) = description.msix.map_or((0..0, 0..0), |msix| msix_ranges(&msix, region.index));
        let own = [table.clone(), pba.clone()];
        let (areas, doorbells, ioregions) = (Vec::new(), Vec::new(), Vec::new());
        let mut draft = Self { table, pba, areas, doorbells, ioregions, passed_over: Vec::new() };
        let io = description.bars.get(index).is_some_and(|bar| bar.kind.is_io());
        for range in mappable(region, &own).into_iter().filter(|_| !io) {
            let usable = match draft.areas.len() < MOST_AREAS {
                _ if !allowed.allow(PathName::Mapped) => Err(Reason::Forbidden),
                true => check(region, &range),
                false => Err(Reason::TooMany),
            };
            match usable {
                Ok(is_hardware) => draft.areas.push(Area { range, is_hardware, refusal: Refusal::default() }),
                Err(reason) => draft.pass_over(range, PathName::Mapped, reason),
            }
        }
        for io_fd in &description.io_fds[index] {
            if let IoFdKind::Ioeventfd { datamatch } = io_fd.kind {
                draft.add_doorbell(io_fd, datamatch, allowed);
            }
        }
        for io_fd in &description.io_fds[index] {
            if let IoFdKind::Ioregionfd { user_data, flags } = io_fd.kind {
                draft.add_ioregion(io_fd, (user_data, flags), allowed, asked_by);
            }
        }
        draft.doorbells.sort_by_key(|doorbell| doorbell.offset);
        draft.ioregions.sort_by_key(|ioregion| ioregion.range.start);
        draft
    }

    fn add_doorbell(&mut self, io_fd: &IoFd, datamatch: Option<u64>, allowed: AllowedPaths) {
        let IoFd { offset, size, .. } = *io_fd;
        let fits_kvm = matches!(size, 0 | 1 | 2 | 4 | 8) && (size > 0 || datamatch.is_none());
        let is_better_served =
            self.mapped_at(offset).is_some() || self.table.contains(&offset) || self.pba.contains(&offset);
        if !allowed.allow(PathName::Ioeventfd) {
            self.pass_over(offset..offset + size.max(1), PathName::Ioeventfd, Reason::Forbidden);
        } else if !fits_kvm {
            self.pass_over(offset..offset + size.max(1), PathName::Ioeventfd, Reason::Unfit);
        } else if self.doorbells.len() == MOST_REGISTERED {
            self.pass_over(offset..offset + size.max(1), PathName::Ioeventfd, Reason::TooMany);
        } else if !is_better_served {
            let (fd, refusal) = (io_fd.fd.clone(), Refusal::default());
            self.doorbells.push(Doorbell { offset, size, datamatch, fd, refusal });
        }
    }

    fn add_ioregion(&mut self, io_fd: &IoFd, (user_data, flags): (u64, u32), allowed: AllowedPaths, asked_by: AskedBy) {
        let mut range = io_fd.offset..io_fd.offset + io_fd.size;
        let known = flags & !(wire::IOREGION_POSTED_WRITES | wire::IOREGION_PIO) == 0;
        if asked_by == AskedBy::Vmm {
            let reason = if allowed.allow(PathName::Ioregionfd) { Reason::Missing } else { Reason::Forbidden };
            self.pass_over(range.clone(), PathName::Ioregionfd, reason);
            if !allowed.allow(PathName::StandIn) {
                return self.pass_over(range, PathName::StandIn, Reason::Forbidden);
            }
        }
        if range.is_empty() || !known || SocketType::of(io_fd.fd.lend()).is_err() {
            range.end = range.end.max(range.start + 1);
            return self.pass_over(range, PathName::Ioregionfd, Reason::Unfit);
        }
        if self.ioregions.len() == MOST_REGISTERED {
            return self.pass_over(range, PathName::Ioregionfd, Reason::TooMany);
        }
        let others = self.ioregions.iter().map(|other| &other.range).chain([&self.table, &self.pba]);
        let in_the_way = others.filter(|other| other.start < range.end && range.start < other.end);
        let end = in_the_way.map(|other| other.start.max(range.start)).min().unwrap_or(range.end);
        if end < range.end {
            self.pass_over(end..range.end, PathName::Ioregionfd, Reason::Overlapped);
        }
        if range.start < end {
            let posted = flags & wire::IOREGION_POSTED_WRITES != 0;
            let (range, fd, refusal) = (range.start..end, io_fd.fd.clone(), Refusal::default());
            self.ioregions.push(Ioregion { range, user_data, posted, fd, refusal });
        }
    }

    fn pass_over(&mut self, range: Range<u64>, path: PathName, reason: Reason) {
        self.passed_over.push((range, path, reason));
    }

    pub(super) fn finish(self, size: u64, asked_by: AskedBy) -> Plan {
        let mut parts: Vec<Part> = Vec::new();
        for pair in self.edges(size).windows(2) {
            let part = self.part(pair[0]..pair[1]);
            match parts.last_mut() {
                Some(last) if part.is_whole() && part.is_like(last) => last.range.end = part.range.end,
                _ => parts.push(part),
            }
        }
        let Self { areas, doorbells, ioregions, .. } = self;
        Plan { parts, areas, doorbells, ioregions, asked_by }
    }

    /// Where anything begins or ends, the region included.
    fn edges(&self, size: u64) -> Vec<u64> {
        let ranges = [self.table.clone(), self.pba.clone()].into_iter();
        let ranges = ranges.chain(self.areas.iter().map(|area| area.range.clone()));
        let ranges = ranges.chain(self.doorbells.iter().map(Doorbell::range));
        let ranges = ranges.chain(self.ioregions.iter().map(|ioregion| ioregion.range.clone()));
        let ranges = ranges.chain(self.passed_over.iter().map(|(range, ..)| range.clone()));
        let mut edges: Vec<u64> =
            ranges.flat_map(|range| [range.start, range.end]).filter(|&edge| edge < size).collect();
        edges.extend([0, size]);
        edges.sort_unstable();
        edges.dedup();
        edges
    }

    /// `range` has no edge within.
    fn part(&self, range: Range<u64>) -> Part {
        let at = range.start;
        let after = self.ioregions.partition_point(|ioregion| ioregion.range.start <= at);
        let ioregion = after.checked_sub(1).filter(|&index| self.ioregions[index].range.contains(&at));
        let path = if self.table.contains(&at) {
            Path::MsixTable { start: self.table.start }
        } else if self.pba.contains(&at) {
            Path::MsixPba { start: self.pba.start }
        } else if let Some(area) = self.mapped_at(at) {
            Path::Mapped { area }
        } else if let Some((first, count)) = self.doorbells_at(at) {
            Path::Ioeventfd { first, count }
        } else if ioregion.is_some() {
            Path::Ioregionfd
        } else {
            Path::Message
        };
        let mut passed_over = Vec::new();
        for (_, path, reason) in self.passed_over.iter().filter(|(range, ..)| range.contains(&at)) {
            if !passed_over.contains(&(*path, *reason)) {
                passed_over.push((*path, *reason));
            }
        }
        Part { range, path, ioregion, passed_over }
    }

    fn mapped_at(&self, at: u64) -> Option<usize> {
        let after = self.areas.partition_point(|area| area.range.start <= at);
        after.checked_sub(1).filter(|&index| self.areas[index].range.contains(&at))
    }

    /// The doorbells at the last place before `at` that has one which reaches it: (first, count).
    fn doorbells_at(&self, at: u64) -> Option<(usize, usize)> {
        let after = self.doorbells.partition_point(|doorbell| doorbell.offset <= at);
        let near = |doorbell: &&Doorbell| doorbell.offset + WIDEST > at;
        let last =
            self.doorbells[..after].iter().rev().take_while(near).find(|doorbell| doorbell.range().contains(&at))?;
        let first = self.doorbells.partition_point(|doorbell| doorbell.offset < last.offset);
        let end = self.doorbells.partition_point(|doorbell| doorbell.offset <= last.offset);
        Some((first, end - first))
    }
}

impl Part {
    /// Whether two parts differ in nothing but their range.
    fn is_like(&self, other: &Self) -> bool {
        self.path == other.path && self.ioregion == other.ioregion && self.passed_over == other.passed_over
    }
}

/// The table and the pending bits in a region; empty where they are in another.
fn msix_ranges(msix: &MsixCapability, region: u32) -> (Range<u64>, Range<u64>) {
    let here = |(bar, offset): (u32, u64), size| if bar == region { offset..offset + size } else { 0..0 };
    (here(msix.table, msix.table_size()), here(msix.pba, msix.pba_size()))
}

/// The areas that the server lets be mapped, without pages that hold something of the VMM's.
pub(super) fn mappable(region: &RegionInfo, own: &[Range<u64>]) -> Vec<Range<u64>> {
    if region.fd.is_none() {
        return Vec::new();
    }
    let areas = region.areas.iter().map(|&(offset, size)| offset..offset + size);
    // A page that reaches beyond the region would show the guest something else of the file.
    let mut areas: Vec<_> = areas.map(|area| area.start..area.end & !(PAGE - 1)).collect();
    for own in own.iter().filter(|own| !own.is_empty()) {
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
