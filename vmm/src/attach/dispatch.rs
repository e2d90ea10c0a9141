//! Dispatch of the guest accesses that come to the VMM, by the plan of their region. The VMM itself answers for the MSI-X
//! table and pending bits, the stand-in for KVM asks where an ioregionfd was offered, and the rest becomes a
//! vfio-user message on the vCPU's own thread.
//!
//! An access whose link is lost before the answer is done again by the process that serves the device next, see
//! [`Generations`]. If there is none, it reads as all-ones, or vanishes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_protocol::ioregionfd::Size;

use super::generations::Generations;
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
    served: Served,
    counters: Counters,
}

/// By whom a device is served, among those that have served it and will.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) generations: Arc<Generations>,
    pub(super) generation: u64,
    /// A process that ends may have a successor: what it was sent and did not read must be known.
    pub(super) can_be_succeeded: bool,
}

/// The link was lost before the answer.
#[derive(Debug)]
struct Unanswered;

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

impl AccessCounts {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            msix: self.msix + other.msix,
            stand_in: self.stand_in + other.stand_in,
            message: self.message + other.message,
        }
    }
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
        served: Served,
    ) -> Self {
        Self { plan, channels, msix, messages, served, counters: Counters::default() }
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

    /// The region's dispatch in the generation after this one, as soon as it is known.
    fn successor(&self) -> Option<Arc<Dispatch>> {
        let Served { generations, generation, .. } = &self.served;
        generations.dispatch_after(*generation, self.messages.region)
    }

    /// Asks the device process to read.
    fn ask(&self, part: &Part, offset: u64, data: &mut [u8]) -> Result<(), Unanswered> {
        if !self.is_within(offset, data.len()) {
            data.fill(0xff);
            return Ok(());
        }
        if let Some(Command { ioregion, channel, offset: at, size }) = self.command(part, offset, data.len()) {
            let value = match channel.read(ioregion.user_data, at, size) {
                Asked::Answered(value) => Some(value),
                Asked::Lost => return Err(Unanswered),
                Asked::PassedOnByKvm => None,
            };
            if let Some(value) = value {
                count(&self.counters.stand_in);
                data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
                return Ok(());
            }
        }
        count(&self.counters.message);
        self.messages.read(offset, data)
    }

    /// Tells the device process what was written.
    fn tell(&self, part: &Part, offset: u64, data: &[u8]) -> Result<(), Unanswered> {
        if !self.is_within(offset, data.len()) {
            return Ok(());
        }
        if let Some(Command { ioregion, channel, offset: at, size }) = self.command(part, offset, data.len()) {
            let mut value = [0; 8];
            value[..data.len()].copy_from_slice(data);
            let value = u64::from_le_bytes(value);
            match channel.write(ioregion.user_data, at, size, value, ioregion.posted) {
                Asked::Answered(()) => {
                    count(&self.counters.stand_in);
                    return Ok(());
                }
                Asked::Lost => return Err(Unanswered),
                Asked::PassedOnByKvm => {}
            }
        }
        count(&self.counters.message);
        self.messages.write(offset, data)
    }

    fn read_once(&self, offset: u64, data: &mut [u8]) -> Result<(), Unanswered> {
        // A BAR may be larger than its region.
        let Some(part) = self.plan.part(offset) else {
            data.fill(0xff);
            return Ok(());
        };
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
            // Accesses that memory or a doorbell does not take: a write to read-only memory, a read of a doorbell.
            Path::Mapped { .. } | Path::Ioeventfd { .. } | Path::Ioregionfd | Path::Message => {
                return self.ask(part, offset, data);
            }
        }
        Ok(())
    }

    fn write_once(&self, offset: u64, data: &[u8]) -> Result<(), Unanswered> {
        let Some(part) = self.plan.part(offset) else { return Ok(()) };
        match part.path {
            Path::MsixTable { start } => {
                if let Some(Err(error)) = self.msix().map(|mut msix| msix.write_table(offset - start, data)) {
                    self.messages.warnings.warn(format_args!("writing the MSI-X table: {error}"));
                }
            }
            // It cannot be written.
            Path::MsixPba { .. } => count(&self.counters.msix),
            Path::Mapped { .. } | Path::Ioeventfd { .. } | Path::Ioregionfd | Path::Message => {
                return self.tell(part, offset, data);
            }
        }
        Ok(())
    }
}

impl BusDevice for Dispatch {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut result = self.read_once(offset, data);
        let mut serves = None;
        while result.is_err() {
            serves = serves.as_deref().unwrap_or(self).successor();
            let Some(dispatch) = &serves else { return data.fill(0xff) };
            result = dispatch.read_once(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut result = self.write_once(offset, data);
        let mut serves = None;
        while result.is_err() {
            serves = serves.as_deref().unwrap_or(self).successor();
            let Some(dispatch) = &serves else { return };
            result = dispatch.write_once(offset, data);
        }
    }
}

impl Messages {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Unanswered> {
        match self.link.call(|client| client.region_read(self.region, offset, data)) {
            Err(error) if error.is_fatal() => Err(Unanswered),
            Err(error) => {
                data.fill(0xff);
                self.warnings.warn_of_refusal(&error, "read", self.region, offset);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Unanswered> {
        let result = match self.posted {
            true => self.link.post(|client| client.region_write_posted(self.region, offset, data)),
            false => self.link.call(|client| client.region_write(self.region, offset, data)),
        };
        match result {
            Err(error) if error.is_fatal() => Err(Unanswered),
            Err(error) => {
                self.warnings.warn_of_refusal(&error, "write", self.region, offset);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

#[cfg(test)]
impl Served {
    /// By one that nobody comes after.
    pub(super) fn unsucceeded() -> Self {
        let generations = Arc::<Generations>::default();
        generations.end();
        Self { generations, generation: 1, can_be_succeeded: false }
    }
}

#[cfg(test)]
mod tests;
