//! The choice of a path for each part of each region, made once, as data that can be printed.
//!
//! Best first: *mapped* (no exit), *ioeventfd* (KVM signals the device process), *ioregionfd* (KVM asks it, or the VMM in
//! its stead), *message* (the VMM asks it). The MSI-X table and pending bits are the VMM's own, whatever the server
//! offers for their pages. What the user forbids (`--paths`), and what KVM could not do, leaves a range to the next path
//! that is offered for it.
//!
//! A mapped area or a doorbell may lie within an ioregionfd's sub-region, and takes what it takes. The MSI-X table, and
//! another sub-region, may not: the sub-region ends before it. What lies behind goes by message, since the protocol
//! counts offsets from the start of what KVM was told, and a server from the start of what it offered.

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use outrigger_protocol::client::{IoFd, IoFdKind, RegionInfo};
use outrigger_protocol::ioregionfd::SocketType;
use outrigger_protocol::wire;

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
    /// Every access of 1, 2, 4 or 8 bytes is a command on the server's socket.
    Ioregionfd {
        /// Who sends it.
        asked_by: AskedBy,
        /// Writes go unanswered.
        posted: bool,
    },
    /// The VMM answers.
    Msix,
    /// The VMM asks the server.
    Message,
}

/// Who sends the commands of an ioregionfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedBy {
    /// KVM, without an exit to user space.
    Kvm,
    /// The VMM, since this host's KVM does not have `KVM_CAP_IOREGIONFD`, or the user forbids its use.
    Vmm,
}

/// A sub-region for which a server takes commands.
#[derive(Clone, Debug)]
pub struct Ioregion {
    /// From the start of the region, in bytes.
    pub range: Range<u64>,
    /// What the server wants to be told with each access.
    pub user_data: u64,
    /// Writes go unanswered.
    pub posted: bool,
    /// The server's socket.
    pub fd: Arc<OwnedFd>,
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
    /// This host's KVM does not have it.
    Missing,
    /// The offer is not one that KVM could take.
    Unfit,
    /// Something that has priority is in the way.
    Overlapped,
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
#[derive(Clone, Debug)]
pub struct RegionPaths {
    /// Bytes.
    pub size: u64,
    /// Sorted by start; ioeventfds may share an address.
    pub parts: Vec<SubRange>,
    /// Without overlap among themselves. What `parts` has for a range comes first.
    pub ioregions: Vec<Ioregion>,
    /// Who sends their commands.
    pub asked_by: AskedBy,
    /// What was offered in vain.
    pub passed_over: Vec<PassedOver>,
}

impl RegionPaths {
    /// Chooses for region `index`.
    #[must_use]
    pub fn choose(description: &Description, index: usize, allowed: AllowedPaths, asked_by: AskedBy) -> Self {
        let region = &description.regions[index];
        let mut paths =
            Self { size: region.size, parts: Vec::new(), ioregions: Vec::new(), asked_by, passed_over: Vec::new() };
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
        for io_fd in &description.io_fds[index] {
            paths.choose_ioregionfd(io_fd, &msix, allowed);
        }
        paths.parts.sort_by_key(|part| part.range.start);
        paths
    }

    fn choose_ioregionfd(&mut self, io_fd: &IoFd, msix: &[Range<u64>], allowed: AllowedPaths) {
        let IoFdKind::Ioregionfd { user_data, flags } = io_fd.kind else { return };
        let mut range = io_fd.offset..io_fd.offset + io_fd.size;
        let known = flags & !(wire::IOREGION_POSTED_WRITES | wire::IOREGION_PIO) == 0;
        if self.asked_by == AskedBy::Vmm {
            let reason = if allowed.allow(PathName::Ioregionfd) { Reason::Missing } else { Reason::Forbidden };
            self.pass_over(range.clone(), PathName::Ioregionfd, reason);
            if !allowed.allow(PathName::StandIn) {
                return self.pass_over(range, PathName::StandIn, Reason::Forbidden);
            }
        }
        if range.is_empty() || !known || SocketType::of(io_fd.fd.as_fd()).is_err() {
            range.end = range.end.max(range.start + 1);
            return self.pass_over(range, PathName::Ioregionfd, Reason::Unfit);
        }
        let others = self.ioregions.iter().map(|other| &other.range).chain(msix);
        let in_the_way = others.filter(|other| other.start < range.end && range.start < other.end);
        let end = in_the_way.map(|other| other.start.max(range.start)).min().unwrap_or(range.end);
        if end < range.end {
            self.pass_over(end..range.end, PathName::Ioregionfd, Reason::Overlapped);
        }
        if range.start < end {
            let posted = flags & wire::IOREGION_POSTED_WRITES != 0;
            self.ioregions.push(Ioregion { range: range.start..end, user_data, posted, fd: io_fd.fd.clone() });
        }
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

    /// The whole region, gaps between its parts filled in, for people. A range of messages ends where the reasons for it
    /// change.
    #[must_use]
    pub fn complete(&self) -> Vec<SubRange> {
        let mut all = Vec::new();
        let mut at = 0;
        for part in &self.parts {
            if part.range.start > at {
                all.extend(self.between(at..part.range.start));
            }
            at = at.max(part.range.end);
            all.push(part.clone());
        }
        if at < self.size {
            all.extend(self.between(at..self.size));
        }
        all
    }

    fn between(&self, gap: Range<u64>) -> Vec<SubRange> {
        let ranges = self.ioregions.iter().map(|ioregion| &ioregion.range);
        let ranges = ranges.chain(self.passed_over.iter().map(|other| &other.range));
        let edges = ranges.flat_map(|range| [range.start, range.end]);
        let mut edges: Vec<_> = edges.filter(|edge| gap.contains(edge)).chain([gap.start, gap.end]).collect();
        edges.sort_unstable();
        edges.dedup();
        let path = |at| {
            let here = self.ioregions.iter().find(|ioregion| ioregion.range.contains(&at));
            here.map_or(Path::Message, |here| Path::Ioregionfd { asked_by: self.asked_by, posted: here.posted })
        };
        edges.windows(2).map(|pair| SubRange { range: pair[0]..pair[1], path: path(pair[0]) }).collect()
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
                Reason::Missing => format!("; this host's KVM has no {path}"),
                Reason::Unfit => format!("; KVM has no {path} like the one offered"),
                Reason::Overlapped => format!("; something else is in the way of {path}"),
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
            Self::Ioregionfd { asked_by, posted } => {
                f.write_str(match asked_by {
                    AskedBy::Kvm => "ioregionfd   KVM asks the device process",
                    AskedBy::Vmm => "stand-in     the VMM asks the device process as KVM would",
                })?;
                if *posted { f.write_str("; writes are posted") } else { Ok(()) }
            }
            Self::Msix => f.write_str("vmm          MSI-X table and pending bits"),
            Self::Message => f.write_str("message      the VMM asks the device process"),
        }
    }
}

#[cfg(test)]
mod tests;
