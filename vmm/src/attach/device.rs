//! A vfio-user device as a function on the PCI bus.

use std::fmt::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_protocol::pci::CONFIG_REGION;
use vmm_sys_util::eventfd::EventFd;

use super::address_map::Claim;
use super::bus_master::BusMaster;
use super::config_space::{ConfigSpace, touches};
use super::discovery::Description;
use super::dispatch::{AccessCounts, Dispatch, Served};
use super::generations::Generations;
use super::identity::Identity;
use super::interrupts::{InterruptError, Interrupts};
use super::link::Link;
use super::peer_to_peer::{PeerToPeer, Target};
use super::region::{Placement, Region, regions};
use super::warnings::Warnings;
use super::{AttachError, Backplane};
use crate::irq::IrqError;
use crate::machine::layout::intx_gsi;
use crate::machine::stats::DeviceLine;
use crate::pci::bar::{BARS, Bar, Bars, Kind, ROM};
use crate::pci::windows::Windows;
use crate::pci::{Function, Slot, capabilities, command, register};

mod take_over;

pub use take_over::{Knows, Successor};

/// A device: what the guest sees of it, for as long as the slot exists.
pub struct Device {
    slot: Slot,
    backplane: Backplane,
    bus_master: Arc<BusMaster>,
    warnings: Arc<Warnings>,
    generations: Arc<Generations>,
    can_be_succeeded: bool,
    p2p: bool,
    identity: Identity,
    /// Vendor and device id, for people.
    ids: u32,
    resettable: bool,
    flr: Option<(u16, u8)>,
    state: Mutex<State>,
    /// Accesses to configuration space.
    config_accesses: AtomicU64,
}

struct State {
    config: ConfigSpace,
    bars: Bars,
    interrupts: Interrupts,
    life: Life,
}

/// Whether something serves the device.
enum Life {
    Attached(Box<Attachment>),
    /// Its process is gone: everything reads as all-ones, and writes vanish.
    Lost {
        /// The VMM's own answers until then.
        served: Vec<DeviceLine>,
    },
}

/// The service of a device now. It may be lost, and be replaced.
struct Attachment {
    link: Arc<Link>,
    generation: u64,
    /// By index.
    regions: Vec<Arc<Region>>,
    /// Where the guest put them, as long as it lets them be decoded.
    claims: [Option<Claim>; ROM + 1],
    /// The VMM's own answers in each region before this attachment.
    served_before: Vec<AccessCounts>,
}

/// A slot before anything serves it.
pub struct Place {
    /// Where it is.
    pub slot: Slot,
    /// Whether the device may reach memory on its own.
    pub bus_master: Arc<BusMaster>,
    /// The device's servers, one after another.
    pub generations: Arc<Generations>,
    /// Whether a process that ends may have a successor.
    pub can_be_succeeded: bool,
    /// Whether it reaches the BARs of other physical devices.
    pub p2p: bool,
}

/// The connection was lost, and the access is to be done on that of a later generation.
struct Unanswered(u64);

impl Device {
    /// Builds the function and gives its BARs their places. The guest's memory must have been mapped by the caller.
    ///
    /// # Errors
    /// If the device cannot be attached.
    pub fn new(
        place: Place,
        link: Arc<Link>,
        description: &Description,
        backplane: &Backplane,
        windows: &mut Windows,
    ) -> Result<Self, AttachError> {
        let Place { slot, bus_master, generations, can_be_succeeded, p2p } = place;
        let gsi = intx_gsi(slot.0, 0);
        let warnings = Warnings::new(slot);
        let interrupts = Interrupts::new(&backplane.addresses.vm, &backplane.routes, description, gsi)?;
        let mut bars = description.bars.clone();
        windows.place(&mut bars)?;
        let mut config = ConfigSpace::new(description, u8::try_from(gsi).unwrap_or(0));
        config.refresh_bars(&bars);
        let generation = generations.next_generation();
        let served = Served { generations: generations.clone(), generation, can_be_succeeded };
        let regions = regions(&link, description, interrupts.msix.as_ref(), &served, backplane, &warnings)?;
        generations.publish(dispatches(&regions));
        let served_before = vec![AccessCounts::default(); regions.len()];
        if p2p {
            backplane.addresses.peers.join(slot, &link, &warnings);
            backplane.addresses.peers.settle(slot);
        }
        let attachment = Attachment { link, generation, regions, claims: Default::default(), served_before };
        let state = State { config, bars, interrupts, life: Life::Attached(Box::new(attachment)) };
        let device = Self {
            slot,
            backplane: backplane.clone(),
            bus_master,
            warnings,
            generations,
            can_be_succeeded,
            p2p,
            identity: Identity::of(description),
            ids: capabilities::read_u32(&description.config, 0),
            resettable: description.resettable,
            flr: description.flr,
            state: Mutex::new(state),
            config_accesses: AtomicU64::new(0),
        };
        device.forward_bars(&device.lock());
        Ok(device)
    }

    /// Its log lines.
    pub(super) fn warnings(&self) -> &Warnings {
        &self.warnings
    }

    /// A duplicate of the eventfd that KVM signals when the guest has ended an INTx interrupt, if there is a pin.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn resample(&self) -> Result<Option<EventFd>, IrqError> {
        let state = self.lock();
        let intx = state.interrupts.intx.as_ref();
        intx.map(|intx| intx.resample().try_clone().map_err(IrqError::EventFd)).transpose()
    }

    /// The machine is reset: the device forgets everything.
    pub fn reset(&self) {
        self.reset_locked(&mut self.lock());
    }

    /// How many accesses to each part the VMM answered, where it answered any.
    #[must_use]
    pub fn served(&self) -> Vec<DeviceLine> {
        let message = self.config_accesses.load(Ordering::Relaxed);
        let served = AccessCounts { message, ..AccessCounts::default() };
        let config = DeviceLine { what: format!("{} configuration", self.slot), served };
        let regions = match &self.lock().life {
            Life::Attached(attachment) => self.served_regions(attachment),
            Life::Lost { served } => served.clone(),
        };
        std::iter::once(config).chain(regions).filter(|line| line.served != AccessCounts::default()).collect()
    }

    fn served_regions(&self, attachment: &Attachment) -> Vec<DeviceLine> {
        let regions = attachment.regions.iter().enumerate();
        let what = |index| format!("{} {}", self.slot, region_name(index));
        let served = |(index, region): (usize, &Arc<Region>)| {
            let served = region.dispatch.counts().and(attachment.served_before[index]);
            DeviceLine { what: what(index), served }
        };
        regions.map(served).collect()
    }

    /// Takes away what served the device, whose link has failed: from now on everything reads as all-ones, writes vanish,
    /// and no interrupt comes. False: that was so already.
    pub fn withdraw(&self) -> bool {
        let mut state = self.lock();
        let Life::Attached(attachment) = &state.life else { return false };
        let served = self.served_regions(attachment);
        let link = attachment.link.clone();
        state.interrupts.disconnect();
        // Dropped with the state locked: a guest that moves a BAR meanwhile finds the place free.
        state.life = Life::Lost { served };
        // After the mappings of its registers, which keep a physical device open.
        link.untie();
        self.generations.end();
        // Waits for other devices' processes.
        self.peers().leave(self.slot);
        true
    }

    /// The path that each part of each region takes, one line each.
    ///
    /// To be called before the guest runs: all BARs are where they are to be for a moment, so that what KVM refuses is
    /// shown, too.
    #[must_use]
    pub fn describe(&self) -> String {
        let state = self.lock();
        drop(self.place_all(&state));
        let mut text = String::new();
        let (vendor, device) = (self.ids & 0xffff, self.ids >> 16);
        let _ = write!(text, "{}  {vendor:04x}:{device:04x}", self.slot);
        for (index, bar) in state.bars.iter() {
            let name = region_name(index);
            let kind = match bar.kind {
                Kind::Io => "I/O ports",
                Kind::Rom | Kind::Memory32 { prefetchable: false } => "32-bit memory",
                Kind::Memory32 { prefetchable: true } => "32-bit prefetchable memory",
                Kind::Memory64 { prefetchable: false } => "64-bit memory",
                Kind::Memory64 { prefetchable: true } => "64-bit prefetchable memory",
            };
            let _ = write!(text, "\n  {name}  {kind} at {:#x}, {:#x} bytes", bar.address, bar.size);
            let Life::Attached(attachment) = &state.life else { continue };
            for (Range { start, end }, line) in attachment.regions[index].dispatch.plan.lines() {
                let _ = write!(text, "\n    {start:#07x}-{:#07x}  {line}", end - 1);
            }
        }
        text
    }

    /// Every BAR at its address, whatever the command register says.
    fn place_all(&self, state: &State) -> Vec<Placement> {
        let Life::Attached(attachment) = &state.life else { return Vec::new() };
        let place = |(index, bar): (usize, &Bar)| {
            attachment.regions[index].place(&self.backplane.addresses, bar, bar.address).ok()
        };
        state.bars.iter().filter(|(_, bar)| bar.address != 0).filter_map(place).collect()
    }

    fn reset_locked(&self, state: &mut State) {
        if let Life::Attached(attachment) = &mut state.life {
            attachment.claims = Default::default();
            self.peers().keep(self.slot, &[]);
        }
        state.config.reset();
        for index in 0..=ROM {
            state.bars.place(index, 0);
        }
        state.config.refresh_bars(&state.bars);
        self.follow_bus_master(state);
        self.update_interrupts(state);
        if let Err(error) = state.interrupts.reset_table() {
            self.warnings.warn(format_args!("resetting MSI-X: {error}"));
        }
        if self.resettable
            && let Life::Attached(attachment) = &state.life
            && let Err(error) = attachment.link.call(|client| client.reset())
        {
            self.warnings.warn_of_refusal(&error, "reset", CONFIG_REGION, 0);
        }
        self.forward_bars(state);
    }

    /// Follows the command register and the BARs.
    fn update_placements(&self, state: &mut State) {
        let command = state.config.command();
        let wanted = |index| state.bars.decoded(index, command);
        let Life::Attached(attachment) = &mut state.life else { return };
        let Attachment { regions, claims, .. } = &mut **attachment;
        // Take away first: a BAR may move to where another one was.
        for (index, claim) in claims.iter_mut().enumerate() {
            claim.take_if(|claim| Some(claim.address) != wanted(index));
        }
        for (index, claim) in claims.iter_mut().enumerate() {
            if let (None, Some(address), Some(bar)) = (&claim, wanted(index), state.bars.get(index)) {
                *claim = Some(self.backplane.addresses.claim(&regions[index], bar, address));
            }
        }
        self.peers().keep(self.slot, &attachment.targets());
    }

    /// Lets other devices reach what the server has been told to decode.
    fn show_to_peers(&self, state: &State) {
        if let Life::Attached(attachment) = &state.life {
            self.peers().show(self.slot, attachment.targets());
        }
    }

    fn peers(&self) -> &PeerToPeer {
        &self.backplane.addresses.peers
    }

    fn follow_bus_master(&self, state: &State) {
        self.bus_master.set(state.config.command() & command::BUS_MASTER != 0);
    }

    /// Tells the server where all of its BARs are now.
    fn forward_bars(&self, state: &State) {
        let registers = (0..).map(|index| register::BAR0 + 4 * index).take(BARS).chain([register::ROM]);
        for (index, register) in registers.enumerate().filter(|(index, _)| state.bars.is_implemented(*index)) {
            forward_bar(state, register, &state.bars.read(index).to_le_bytes());
        }
    }

    fn update_interrupts(&self, state: &mut State) {
        let Life::Attached(attachment) = &state.life else { return };
        match state.interrupts.follow(&attachment.link, state.config.mode()) {
            Err(InterruptError::Client(error)) if error.is_fatal() => {}
            Err(error) => self.warnings.warn(format_args!("{error}")),
            Ok(()) => {}
        }
    }

    /// Tells the server what the guest wrote, without what is none of its business.
    fn forward_write(&self, config: &mut ConfigSpace, link: &Link, range: &Range<u16>, data: &[u8]) {
        let mut bytes = [0; 4];
        let bytes = &mut bytes[..data.len()];
        bytes.copy_from_slice(data);
        if let Some((at, bit)) = self.flr.filter(|(at, _)| range.contains(at)) {
            bytes[usize::from(at - range.start)] &= !(1 << bit);
        }
        config.remember(range, bytes);
        if let Err(error) = link.call(|client| client.region_write(CONFIG_REGION, range.start.into(), bytes)) {
            self.warnings.warn_of_refusal(&error, "write", CONFIG_REGION, range.start.into());
        }
    }

    fn initiates_flr(&self, range: &Range<u16>, data: &[u8]) -> bool {
        self.flr.is_some_and(|(at, bit)| range.contains(&at) && data[usize::from(at - range.start)] & 1 << bit != 0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attachment {
    /// The areas that other devices' DMA may reach, as far as they are decoded.
    fn targets(&self) -> Vec<Target> {
        let claims = self.claims.iter().map(|claim| claim.as_ref().filter(|claim| claim.is_placed()));
        let placed = self.regions.iter().zip(claims).filter_map(|(region, claim)| Some((region, claim?)));
        placed.flat_map(|(region, claim)| region.targets(claim.address)).collect()
    }
}

impl State {
    /// The connection to what serves the device, as long as it holds.
    fn link(&self) -> Option<&Link> {
        match &self.life {
            Life::Attached(attachment) if attachment.link.lost().is_none() => Some(&attachment.link),
            _ => None,
        }
    }

    /// An error once the connection is lost, while nobody knows whether there will be another.
    fn check_link(&self) -> Result<(), Unanswered> {
        match &self.life {
            Life::Attached(attachment) if attachment.link.lost().is_some() => Err(Unanswered(attachment.generation)),
            _ => Ok(()),
        }
    }
}

impl Function for Device {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config_accesses.fetch_add(1, Ordering::Relaxed);
        while let Err(Unanswered(generation)) = self.config_read_once(offset, data) {
            if !self.generations.wait_after(generation) {
                return data.fill(0xff);
            }
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.config_accesses.fetch_add(1, Ordering::Relaxed);
        while let Err(Unanswered(generation)) = self.config_write_once(offset, data) {
            if !self.generations.wait_after(generation) {
                return;
            }
        }
    }
}

impl Device {
    fn config_read_once(&self, offset: u16, data: &mut [u8]) -> Result<(), Unanswered> {
        let range = register_range(offset, data);
        let state = self.lock();
        state.check_link()?;
        let Some(link) = state.link() else {
            data.fill(0xff);
            return Ok(());
        };
        if state.config.needs_server(&range)
            && let Err(error) = link.call(|client| client.region_read(CONFIG_REGION, offset.into(), data))
        {
            state.check_link()?;
            self.warnings.warn_of_refusal(&error, "read", CONFIG_REGION, offset.into());
            data.fill(0xff);
            return Ok(());
        }
        state.config.overlay(&range, data);
        if let (Some(at), Some(msi)) = (state.config.msi_pending_register(), &state.interrupts.msi)
            && touches(&range, at, 4)
        {
            let pending = msi.pending().to_le_bytes();
            for (register, byte) in range.zip(data).filter(|(register, _)| (at..at + 4).contains(register)) {
                *byte = pending[usize::from(register - at)];
            }
        }
        Ok(())
    }

    /// Steps before the connection is lost are done again by the next one: all of them lead to the same state.
    fn config_write_once(&self, offset: u16, data: &[u8]) -> Result<(), Unanswered> {
        let range = register_range(offset, data);
        let mut state = self.lock();
        let state = &mut *state;
        state.check_link()?;
        if state.link().is_none() {
            return Ok(());
        }
        if state.config.write_bars(&range, data, &mut state.bars) {
            self.update_placements(state);
            forward_bar(state, range.start, data);
            state.check_link()?;
            self.show_to_peers(state);
            return Ok(());
        }
        state.config.write(&range, data);
        if touches(&range, register::COMMAND, 2) {
            self.update_placements(state);
            self.follow_bus_master(state);
        }
        self.update_interrupts(state);
        if !touches(&range, register::INTERRUPT_LINE, 1)
            && let Life::Attached(attachment) = &state.life
        {
            self.forward_write(&mut state.config, &attachment.link, &range, data);
        }
        state.check_link()?;
        if touches(&range, register::COMMAND, 2) {
            self.show_to_peers(state);
        }
        if self.initiates_flr(&range, data) {
            self.reset_locked(state);
        }
        state.check_link()
    }
}

/// Tells the server what was written to one of its BARs. A server may find a BAR by its own copy of the register; one that
/// does not may refuse.
fn forward_bar(state: &State, register: u16, data: &[u8]) {
    let Some(link) = state.link() else { return };
    if let Err(error) = link.call(|client| client.region_write(CONFIG_REGION, register.into(), data)) {
        log::debug!("write to the BAR at {register:#x} of configuration space: {error}");
    }
}

fn dispatches(regions: &[Arc<Region>]) -> Vec<Arc<Dispatch>> {
    regions.iter().map(|region| region.dispatch.clone()).collect()
}

/// A region's name for people, by its index.
pub(crate) fn region_name(index: usize) -> String {
    if index == ROM { "ROM".into() } else { format!("BAR{index}") }
}

fn register_range(offset: u16, data: &[u8]) -> Range<u16> {
    offset..offset + u16::try_from(data.len()).expect("the bus passes on at most four bytes")
}

#[cfg(test)]
mod tests;
