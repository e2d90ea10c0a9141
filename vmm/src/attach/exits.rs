//! Who answers when a guest access to a region has come to the VMM: the VMM itself for the MSI-X table and pending bits,
//! the stand-in where an ioregionfd was offered, and messages for the rest.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_protocol::ioregionfd::Size;

use super::message::RegionMessages;
use super::stand_in::Channel;
use crate::bus::BusDevice;
use crate::irq::msix::Msix;

/// One region on a bus.
pub(super) struct RegionExits {
    /// The region's own size; the BAR may be larger.
    size: u64,
    msix: Option<MsixOverlay>,
    /// Sorted by start, without overlap.
    ioregions: Vec<Ioregion>,
    messages: RegionMessages,
    served: Counters,
}

/// The parts of a region that the VMM answers itself.
#[derive(Clone)]
pub(super) struct MsixOverlay {
    pub(super) msix: Arc<Mutex<Msix>>,
    /// Where the table is in this region; empty if elsewhere.
    pub(super) table: Range<u64>,
    /// Where the pending bit array is in this region; empty if elsewhere.
    pub(super) pba: Range<u64>,
}

/// A sub-region with an ioregionfd.
pub(super) struct Ioregion {
    pub(super) range: Range<u64>,
    pub(super) user_data: u64,
    /// Writes go unanswered.
    pub(super) posted: bool,
    pub(super) channel: Arc<Channel>,
}

/// How many accesses the VMM answered, by path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// The MSI-X table and pending bits.
    pub msix: u64,
    /// In KVM's stead.
    pub stand_in: u64,
    /// By message.
    pub message: u64,
}

#[derive(Default)]
struct Counters {
    msix: AtomicU64,
    stand_in: AtomicU64,
    message: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl RegionExits {
    pub(super) fn new(
        size: u64,
        msix: Option<MsixOverlay>,
        mut ioregions: Vec<Ioregion>,
        messages: RegionMessages,
    ) -> Self {
        let msix = msix.filter(|overlay| !overlay.table.is_empty() || !overlay.pba.is_empty());
        ioregions.sort_by_key(|ioregion| ioregion.range.start);
        Self { size, msix, ioregions, messages, served: Counters::default() }
    }

    /// The sub-regions that KVM is to have.
    pub(super) fn for_kvm(&self) -> impl Iterator<Item = &Ioregion> {
        self.ioregions.iter().filter(|ioregion| ioregion.channel.is_in_kvm())
    }

    pub(super) fn served(&self) -> Served {
        let [msix, stand_in, message] = [&self.served.msix, &self.served.stand_in, &self.served.message]
            .map(|counter| counter.load(Ordering::Relaxed));
        Served { msix, stand_in, message }
    }

    fn within(&self, offset: u64, length: usize) -> bool {
        offset.checked_add(length as u64).is_some_and(|end| end <= self.size)
    }

    /// As in KVM: the protocol has sizes of 1, 2, 4 and 8 bytes, and an access lies in its sub-region whole.
    fn ioregion(&self, offset: u64, length: usize) -> Option<(&Ioregion, u64, Size)> {
        let after = self.ioregions.partition_point(|ioregion| ioregion.range.start <= offset);
        let ioregion = &self.ioregions[after.checked_sub(1)?];
        let end = offset.checked_add(length as u64)?;
        let size = Size::of(length)?;
        (end <= ioregion.range.end).then_some((ioregion, offset - ioregion.range.start, size))
    }
}

impl BusDevice for RegionExits {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(overlay) = &self.msix {
            let msix = || {
                count(&self.served.msix);
                overlay.msix.lock().unwrap_or_else(PoisonError::into_inner)
            };
            if overlay.table.contains(&offset) {
                return msix().read_table(offset - overlay.table.start, data);
            }
            if overlay.pba.contains(&offset) {
                return msix().read_pba(offset - overlay.pba.start, data);
            }
        }
        if !self.within(offset, data.len()) {
            return data.fill(0xff);
        }
        if let Some((ioregion, at, size)) = self.ioregion(offset, data.len()) {
            let answer = ioregion.channel.read(ioregion.user_data, at, size);
            if !matches!(answer, Ok(None)) {
                count(&self.served.stand_in);
                let value = answer.ok().flatten().unwrap_or(u64::MAX);
                return data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
            }
        }
        count(&self.served.message);
        self.messages.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(overlay) = &self.msix {
            if overlay.table.contains(&offset) {
                count(&self.served.msix);
                let mut msix = overlay.msix.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = msix.write_table(offset - overlay.table.start, data) {
                    log::error!("writing the MSI-X table: {error}");
                }
                return;
            }
            if overlay.pba.contains(&offset) {
                return count(&self.served.msix);
            }
        }
        if !self.within(offset, data.len()) {
            return;
        }
        if let Some((ioregion, at, size)) = self.ioregion(offset, data.len()) {
            let mut value = [0; 8];
            value[..data.len()].copy_from_slice(data);
            let value = u64::from_le_bytes(value);
            let taken = ioregion.channel.write(ioregion.user_data, at, size, value, ioregion.posted);
            if !matches!(taken, Ok(false)) {
                return count(&self.served.stand_in);
            }
        }
        count(&self.served.message);
        self.messages.write(offset, data);
    }
}

#[cfg(test)]
mod tests;
