//! Who answers a guest access to a region that has come to the VMM: the region's plan says it. The VMM itself answers for
//! the MSI-X table and pending bits, the stand-in for KVM asks where an ioregionfd was offered, and the rest becomes a
//! vfio-user message on the vCPU's own thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_protocol::ioregionfd::Size;

use super::ioregionfd::{Asked, Channel};
use super::link::Link;
use super::plan::{Ioregion, Part, Path, Plan};
use super::warnings::Warnings;
use crate::irq::msix::Msix;
use crate::machine::bus::BusDevice;

/// One region on a bus.
pub(super) struct Dispatch {
    pub(super) plan: Plan,
    /// By the index of [`Plan::ioregions`].
    channels: Vec<Arc<Channel>>,
    msix: Option<Arc<Mutex<Msix>>>,
    messages: Messages,
    counters: Counters,
}

/// One region, asked by message.
pub(super) struct Messages {
    pub(super) link: Arc<Link>,
    pub(super) region: u32,
    /// Writes are not answered. Right for memory, unless a later access on another path must not arrive first; I/O port
    /// writes are not complete without (PCI Local Bus 3.0, section 3.2.5).
    pub(super) posted: bool,
    pub(super) warnings: Arc<Warnings>,
}

/// How many accesses the VMM answered, by path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccessCounts {
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

/// An access that an ioregionfd takes.
struct Command<'a> {
    ioregion: &'a Ioregion,
    channel: &'a Channel,
    /// From the start of the sub-region.
    offset: u64,
    size: Size,
}

impl Dispatch {
    pub(super) fn new(
        plan: Plan,
        channels: Vec<Arc<Channel>>,
        msix: Option<Arc<Mutex<Msix>>>,
        messages: Messages,
    ) -> Self {
        Self { plan, channels, msix, messages, counters: Counters::default() }
    }

    /// The sub-regions that KVM is to have.
    pub(super) fn ioregions_for_kvm(&self) -> impl Iterator<Item = (&Ioregion, &Arc<Channel>)> {
        self.plan.ioregions.iter().zip(&self.channels).filter(|(_, channel)| channel.is_asked_by_kvm())
    }

    /// The connection to the device.
    pub(super) fn link(&self) -> &Link {
        &self.messages.link
    }

    pub(super) fn counts(&self) -> AccessCounts {
        let Counters { msix, stand_in, message } = &self.counters;
        let [msix, stand_in, message] = [msix, stand_in, message].map(|counter| counter.load(Ordering::Relaxed));
        AccessCounts { msix, stand_in, message }
    }

    fn msix(&self) -> Option<MutexGuard<'_, Msix>> {
        count(&self.counters.msix);
        self.msix.as_ref().map(|msix| msix.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// As in KVM: the protocol has sizes of 1, 2, 4 and 8 bytes, and an access lies in its sub-region whole.
    fn command(&self, part: &Part, offset: u64, length: usize) -> Option<Command<'_>> {
        let index = part.ioregion?;
        let (ioregion, channel) = (&self.plan.ioregions[index], &self.channels[index]);
        let end = offset.checked_add(length as u64)?;
        let size = Size::of(length)?;
        let fits = end <= ioregion.range.end;
        fits.then(|| Command { ioregion, channel, offset: offset - ioregion.range.start, size })
    }

    fn is_within(&self, offset: u64, length: usize) -> bool {
        offset.checked_add(length as u64).is_some_and(|end| end <= self.plan.size())
    }

    /// Asks the device process to read.
    fn ask(&self, part: &Part, offset: u64, data: &mut [u8]) {
        if !self.is_within(offset, data.len()) {
            return data.fill(0xff);
        }
        if let Some(Command { ioregion, channel, offset: at, size }) = self.command(part, offset, data.len()) {
            let value = match channel.read(ioregion.user_data, at, size) {
                Asked::Answered(value) => Some(value),
                Asked::Lost => Some(u64::MAX),
                Asked::PassedOnByKvm => None,
            };
            if let Some(value) = value {
                count(&self.counters.stand_in);
                return data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
            }
        }
        count(&self.counters.message);
        self.messages.read(offset, data);
    }

    /// Tells the device process what was written.
    fn tell(&self, part: &Part, offset: u64, data: &[u8]) {
        if !self.is_within(offset, data.len()) {
            return;
        }
        if let Some(Command { ioregion, channel, offset: at, size }) = self.command(part, offset, data.len()) {
            let mut value = [0; 8];
            value[..data.len()].copy_from_slice(data);
            let value = u64::from_le_bytes(value);
            match channel.write(ioregion.user_data, at, size, value, ioregion.posted) {
                Asked::Answered(()) | Asked::Lost => return count(&self.counters.stand_in),
                Asked::PassedOnByKvm => {}
            }
        }
        count(&self.counters.message);
        self.messages.write(offset, data);
    }
}

impl BusDevice for Dispatch {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // A BAR may be larger than its region.
        let Some(part) = self.plan.part(offset) else { return data.fill(0xff) };
        match part.path {
            Path::MsixTable { start } => {
                if let Some(msix) = self.msix() {
                    msix.read_table(offset - start, data);
                }
            }
            Path::MsixPba { start } => {
                if let Some(msix) = self.msix() {
                    msix.read_pba(offset - start, data);
                }
            }
            // What memory or a doorbell does not take: a write to read-only memory, a read of a doorbell.
            Path::Mapped { .. } | Path::Ioeventfd { .. } | Path::Ioregionfd | Path::Message => {
                self.ask(part, offset, data);
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(part) = self.plan.part(offset) else { return };
        match part.path {
            Path::MsixTable { start } => {
                if let Some(Err(error)) = self.msix().map(|mut msix| msix.write_table(offset - start, data)) {
                    self.messages.warnings.warn(format_args!("writing the MSI-X table: {error}"));
                }
            }
            // It cannot be written.
            Path::MsixPba { .. } => count(&self.counters.msix),
            Path::Mapped { .. } | Path::Ioeventfd { .. } | Path::Ioregionfd | Path::Message => {
                self.tell(part, offset, data);
            }
        }
    }
}

impl Messages {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Err(error) = self.link.call(|client| client.region_read(self.region, offset, data)) {
            data.fill(0xff);
            self.warnings.warn_of_refusal(&error, "read", self.region, offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let result = match self.posted {
            true => self.link.call(|client| client.region_write_posted(self.region, offset, data)),
            false => self.link.call(|client| client.region_write(self.region, offset, data)),
        };
        if let Err(error) = result {
            self.warnings.warn_of_refusal(&error, "write", self.region, offset);
        }
    }
}

#[cfg(test)]
mod tests;
