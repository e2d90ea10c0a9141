//! The plan of a region: one sorted list of parts without gaps, each with the path that it takes and why it takes no
//! better one. An access is dispatched by it, KVM is given what it says, what KVM refuses is written back into it, and
//! `--show-devices` prints it.
//!
//! How a path is chosen for each part: [`choose`].

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use outrigger_protocol::foreign::ForeignFd;

use super::discovery::Description;
use crate::config::{AllowedPaths, PathName};
use choose::Draft;

mod choose;

/// How accesses to one region reach the device.
#[derive(Debug)]
pub struct Plan {
    /// Sorted, from 0 to the region's size, without gaps or overlap.
    pub parts: Vec<Part>,
    /// The areas to be mapped, without overlap.
    pub areas: Vec<Area>,
    /// Sorted by offset; several may share one.
    pub doorbells: Vec<Doorbell>,
    /// Without overlap among themselves.
    pub ioregions: Vec<Ioregion>,
    /// The sender of the ioregionfds' commands.
    pub asked_by: AskedBy,
}

/// One part of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// From the start of the region, in bytes.
    pub range: Range<u64>,
    /// Its path.
    pub path: Path,
    /// Which of [`Plan::ioregions`] it lies in. Accesses that `path` leaves to the VMM are for that one.
    pub ioregion: Option<usize>,
    /// The paths that are offered for it and that it does not take.
    pub passed_over: Vec<(PathName, Reason)>,
}

/// How guest accesses to a part reach the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The VMM answers from the MSI-X table, which begins at `start` of the region.
    MsixTable {
        /// In bytes.
        start: u64,
    },
    /// The VMM answers from the MSI-X pending bits, which begin at `start` of the region.
    MsixPba {
        /// In bytes.
        start: u64,
    },
    /// The guest accesses the server's memory.
    Mapped {
        /// Which of [`Plan::areas`].
        area: usize,
    },
    /// KVM signals the device process when the guest writes.
    Ioeventfd {
        /// The first of [`Plan::doorbells`] at this place.
        first: usize,
        /// How many there are.
        count: usize,
    },
    /// An access of 1, 2, 4 or 8 bytes is a command on the server's socket.
    Ioregionfd,
    /// The VMM asks the server.
    Message,
}

/// An area that the guest is to see the server's memory in.
#[derive(Debug)]
pub struct Area {
    /// From the start of the region, whole pages.
    pub range: Range<u64>,
    /// It is the registers of a physical device.
    pub is_hardware: bool,
    /// The refusal of KVM or the system, if any.
    pub refusal: Refusal,
}

/// A place where KVM is to signal the server.
#[derive(Debug)]
pub struct Doorbell {
    /// From the start of the region, in bytes.
    pub offset: u64,
    /// Bytes of the write; zero: any.
    pub size: u64,
    /// Value of the write, if only one signals.
    pub datamatch: Option<u64>,
    /// The server's eventfd.
    pub fd: Arc<ForeignFd>,
    /// KVM's refusal, if any.
    pub refusal: Refusal,
}

/// A sub-region for which a server takes commands.
#[derive(Debug)]
pub struct Ioregion {
    /// From the start of the region, in bytes.
    pub range: Range<u64>,
    /// The value that the server wants with each access.
    pub user_data: u64,
    /// Writes go unanswered.
    pub posted: bool,
    /// The server's socket.
    pub fd: Arc<ForeignFd>,
    /// KVM's refusal, if any.
    pub refusal: Refusal,
}

/// The sender of an ioregionfd's commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedBy {
    /// KVM, without an exit to user space.
    Kvm,
    /// The VMM, since this host's KVM does not have `KVM_CAP_IOREGIONFD`, or the user forbids its use.
    Vmm,
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
    /// The file to be mapped is neither memory nor a physical device: its pages may take as long as a disk or another process likes.
    NotMemory,
    /// The file to be mapped ends before the area does.
    BeyondFile,
    /// Mapping so much takes too long.
    TooLarge,
    /// Giving KVM so many takes too long.
    TooMany,
}

impl Part {
    /// Whether it is shown and kept in one piece. Other parts end where an offer does.
    fn is_whole(&self) -> bool {
        !matches!(self.path, Path::Ioregionfd | Path::Message)
    }
}

impl Reason {
    fn explain(self, path: PathName) -> String {
        match self {
            Self::Forbidden => format!("; {path} is forbidden by --paths"),
            Self::Missing => format!("; this host's KVM has no {path}"),
            Self::Unfit => format!("; KVM has no {path} like the one offered"),
            Self::Overlapped => format!("; something else is in the way of {path}"),
            Self::NotMemory => {
                format!("; the file for {path} is not memory (memfd, tmpfs, hugetlbfs), nor a VFIO device")
            }
            Self::BeyondFile => format!("; the file for {path} ends before"),
            Self::TooMany => format!("; there are too many for {path} before it"),
            Self::TooLarge => format!("; this is too large for {path}"),
        }
    }
}

/// KVM's answer when a part was last given to it. Written when a BAR is placed, read by any vCPU.
#[derive(Debug, Default)]
pub struct Refusal(AtomicI32);

impl Refusal {
    /// Remembers the outcome of a registration.
    pub fn set<T>(&self, outcome: &io::Result<T>) {
        let errno = outcome.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(nix::libc::EIO));
        self.0.store(errno, Ordering::Relaxed);
    }

    /// Why the part goes another way, if it does.
    #[must_use]
    pub fn get(&self) -> Option<io::Error> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&errno| errno != 0).map(io::Error::from_raw_os_error)
    }
}

impl Plan {
    /// Chooses for region `index`.
    #[must_use]
    pub fn choose(description: &Description, index: usize, allowed: AllowedPaths, asked_by: AskedBy) -> Self {
        Draft::new(description, index, allowed, asked_by).finish(description.regions[index].size, asked_by)
    }

    /// The part that an access at `offset` belongs to; none beyond the end of the region.
    #[must_use]
    pub fn part(&self, offset: u64) -> Option<&Part> {
        let after = self.parts.partition_point(|part| part.range.start <= offset);
        self.parts[..after].last().filter(|part| offset < part.range.end)
    }

    /// Bytes of the region.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.range.end)
    }

    /// Every part and its path, one line each, for people.
    #[must_use]
    pub fn lines(&self) -> Vec<(Range<u64>, String)> {
        let mut lines: Vec<(Range<u64>, String)> = Vec::new();
        let mut last = None;
        for part in &self.parts {
            let texts = self.explain(part);
            match lines.last_mut() {
                Some((range, text)) if last == Some(part.path) && part.is_whole() && texts == [text.as_str()] => {
                    range.end = part.range.end;
                }
                _ => lines.extend(texts.into_iter().map(|text| (part.range.clone(), text))),
            }
            last = Some(part.path);
        }
        lines
    }

    /// Why something that is offered to be mapped is not, if that is not the user's wish.
    #[must_use]
    pub fn not_mapped(&self) -> Option<String> {
        let mut reasons = self.parts.iter().flat_map(|part| &part.passed_over);
        let mapped = reasons.find(|(path, reason)| *path == PathName::Mapped && *reason != Reason::Forbidden);
        mapped.map(|(path, reason)| reason.explain(*path))
    }

    /// The path of a part and the reasons: a line for each doorbell, otherwise one.
    fn explain(&self, part: &Part) -> Vec<String> {
        let mut reasons = String::new();
        for (path, reason) in &part.passed_over {
            reasons.push_str(&reason.explain(*path));
        }
        let refused = |path: PathName, error: io::Error| {
            let instead = self.without_exits_to_kvm(part);
            vec![format!("{instead}; the system refuses {path} here: {error}{reasons}")]
        };
        let text = match part.path {
            Path::MsixTable { .. } | Path::MsixPba { .. } => "vmm          MSI-X table and pending bits".to_owned(),
            Path::Mapped { area } => match self.areas[area].refusal.get() {
                Some(error) => return refused(PathName::Mapped, error),
                None if self.areas[area].is_hardware => "mapped       no exit; the hardware itself".to_owned(),
                None => "mapped       no exit".to_owned(),
            },
            Path::Ioeventfd { first, count } => {
                let line = |doorbell: &Doorbell| match doorbell.refusal.get() {
                    Some(error) => refused(PathName::Ioeventfd, error).remove(0),
                    None => format!("{doorbell}{reasons}"),
                };
                return self.doorbells[first..first + count].iter().map(line).collect();
            }
            Path::Ioregionfd | Path::Message => self.without_exits_to_kvm(part),
        };
        let nothing_else =
            if part.path == Path::Message && reasons.is_empty() { ", which offers no other path" } else { "" };
        vec![format!("{text}{nothing_else}{reasons}")]
    }

    /// The path of accesses that neither memory nor a doorbell takes.
    fn without_exits_to_kvm(&self, part: &Part) -> String {
        const MESSAGE: &str = "message      the VMM asks the device process";
        let Some(ioregion) = part.ioregion.map(|index| &self.ioregions[index]) else { return MESSAGE.to_owned() };
        if let Some(error) = ioregion.refusal.get() {
            return format!("{MESSAGE}; the system refuses {} here: {error}", PathName::Ioregionfd);
        }
        let text = match self.asked_by {
            AskedBy::Kvm => "ioregionfd   KVM asks the device process",
            AskedBy::Vmm => "stand-in     the VMM asks the device process as KVM would",
        };
        format!("{text}{}", if ioregion.posted { "; writes are posted" } else { "" })
    }
}

impl fmt::Display for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ioeventfd    KVM signals the device process")?;
        match self.size {
            0 => f.write_str(" on a write of any size")?,
            size => write!(f, " on a {size}-byte write")?,
        }
        self.datamatch.map_or(Ok(()), |value| write!(f, " of {value:#x}"))
    }
}

impl Doorbell {
    /// The bytes that a write must touch.
    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.size.max(1)
    }
}

#[cfg(test)]
mod tests;
