//! A vfio-user device as a function on the PCI bus.

use std::fmt::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_protocol::client::{Client, ClientError};
use outrigger_protocol::pci::CONFIG_REGION;
use vmm_sys_util::eventfd::EventFd;

use super::config_space::{ConfigSpace, touches};
use super::discovery::Description;
use super::exits::Served;
use super::interrupts::Interrupts;
use super::message::note;
use super::placement::Placement;
use super::regions::Regions;
use super::{AttachError, Backplane};
use crate::irq::IrqError;
use crate::layout::intx_gsi;
use crate::pci::bar::{Bars, Kind, ROM};
use crate::pci::windows::Windows;
use crate::pci::{Function, Slot, capabilities, register};
use crate::stats::DeviceLine;

/// A device process, attached.
pub struct Device {
    slot: Slot,
    client: Arc<Client>,
    backplane: Backplane,
    /// Vendor and device id, for people.
    identity: u32,
    resettable: bool,
    flr: Option<(u16, u8)>,
    regions: Regions,
    state: Mutex<State>,
    /// Accesses to configuration space.
    config_accesses: AtomicU64,
}

struct State {
    config: ConfigSpace,
    bars: Bars,
    interrupts: Interrupts,
    placements: [Option<Placement>; ROM + 1],
    /// The server is gone: everything reads as all-ones.
    dead: bool,
}

impl Device {
    /// Builds the function and gives its BARs their places. The guest's memory must have been mapped by the caller.
    ///
    /// # Errors
    /// If the device cannot be attached.
    pub fn new(
        client: Arc<Client>,
        description: &Description,
        slot: Slot,
        backplane: &Backplane,
        windows: &mut Windows,
    ) -> Result<Self, AttachError> {
        let gsi = intx_gsi(slot.0, 0);
        let interrupts = Interrupts::new(&backplane.vm, &backplane.routes, description, gsi)?;
        let mut bars = description.bars.clone();
        windows.place(&mut bars)?;
        let mut config = ConfigSpace::new(description, u8::try_from(gsi).unwrap_or(0));
        config.refresh_bars(&bars);
        let regions = Regions::new(&client, description, &interrupts, backplane)?;
        let state = State { config, bars, interrupts, placements: Default::default(), dead: false };
        Ok(Self {
            slot,
            client,
            backplane: backplane.clone(),
            identity: capabilities::read_u32(&description.config, 0),
            resettable: description.resettable,
            flr: description.flr,
            regions,
            state: Mutex::new(state),
            config_accesses: AtomicU64::new(0),
        })
    }

    /// Where it sits.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The connection to its process.
    #[must_use]
    pub fn client(&self) -> &Arc<Client> {
        &self.client
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

    /// The guest has ended an INTx interrupt: the device may assert it again.
    pub fn unmask_intx(&self) {
        match self.client.unmask_irq(outrigger_protocol::pci::INTX_IRQ, 0) {
            // Who shares the pin with a device that died still ends interrupts; the death was told.
            Ok(()) | Err(ClientError::Disconnected(_)) => {}
            Err(error) => log::warn!("{}: unmasking INTx: {error}", self.slot),
        }
    }

    /// The machine is reset: the device forgets everything.
    pub fn reset(&self) {
        self.reset_locked(&mut self.lock());
    }

    /// Ends the connection, and with it every wait for the server.
    pub fn disconnect(&self) {
        self.client.close();
        self.regions.ioregionfds.close();
    }

    /// How many accesses to each part the VMM answered, where it answered any.
    #[must_use]
    pub fn served(&self) -> Vec<DeviceLine> {
        let line = |part: String, served| DeviceLine { what: format!("{} {part}", self.slot), served };
        let message = self.config_accesses.load(Ordering::Relaxed);
        let config = line("configuration".into(), Served { message, ..Served::default() });
        let regions = self.regions.placeables.iter().enumerate();
        let regions = regions.map(|(index, placeable)| line(region_name(index), placeable.exits.served()));
        std::iter::once(config).chain(regions).filter(|line| line.served != Served::default()).collect()
    }

    /// The server is gone: from now on everything reads as all-ones, and writes vanish. False: that was so already.
    #[must_use]
    pub fn withdraw_once(&self) -> bool {
        // Whoever waits for the server holds the state; this ends the wait.
        self.disconnect();
        let mut state = self.lock();
        state.placements = Default::default();
        !std::mem::replace(&mut state.dead, true)
    }

    /// The path that each part of each region takes, one line each.
    #[must_use]
    pub fn describe(&self) -> String {
        let state = self.lock();
        let mut text = String::new();
        let (vendor, device) = (self.identity & 0xffff, self.identity >> 16);
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
            let paths = &self.regions.placeables[index].paths;
            for part in paths.complete() {
                let Range { start, end } = part.range;
                let _ = write!(text, "\n    {start:#07x}-{:#07x}  {}", end - 1, paths.explain(&part));
            }
        }
        text
    }

    fn reset_locked(&self, state: &mut State) {
        state.placements = Default::default();
        state.config.reset();
        for index in 0..=ROM {
            state.bars.place(index, 0);
        }
        state.config.refresh_bars(&state.bars);
        self.update_interrupts(state);
        if let Err(error) = state.interrupts.reset_table() {
            log::error!("{}: resetting MSI-X: {error}", self.slot);
        }
        if self.resettable
            && let Err(error) = self.client.reset()
        {
            note(&error, "reset", CONFIG_REGION, 0);
        }
    }

    /// Follows the command register and the BARs.
    fn update_placements(&self, state: &mut State) {
        let command = state.config.command();
        let wanted = |index| state.bars.decoded(index, command);
        // Take away first: a BAR may move to where another one was.
        for index in 0..=ROM {
            let placed = state.placements[index].as_ref().map(|placement| placement.address);
            if placed.is_some() && placed != wanted(index) {
                state.placements[index] = None;
            }
        }
        for index in 0..=ROM {
            if let (None, Some(address), Some(bar)) = (&state.placements[index], wanted(index), state.bars.get(index)) {
                state.placements[index] = self.regions.placeables[index].place(&self.backplane, bar, address);
            }
        }
    }

    fn update_interrupts(&self, state: &mut State) {
        if let Err(error) = state.interrupts.follow(&self.client, state.config.mode()) {
            log::warn!("{}: {error}", self.slot);
        }
    }

    /// Tells the server what the guest wrote, without what is none of its business.
    fn forward_write(&self, range: &Range<u16>, data: &[u8]) {
        let mut bytes = [0; 4];
        let bytes = &mut bytes[..data.len()];
        bytes.copy_from_slice(data);
        if let Some((at, bit)) = self.flr.filter(|(at, _)| range.contains(at)) {
            bytes[usize::from(at - range.start)] &= !(1 << bit);
        }
        if let Err(error) = self.client.region_write(CONFIG_REGION, range.start.into(), bytes) {
            note(&error, "write", CONFIG_REGION, range.start.into());
        }
    }

    fn initiates_flr(&self, range: &Range<u16>, data: &[u8]) -> bool {
        self.flr.is_some_and(|(at, bit)| range.contains(&at) && data[usize::from(at - range.start)] & 1 << bit != 0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Function for Device {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let range = register_range(offset, data);
        self.config_accesses.fetch_add(1, Ordering::Relaxed);
        let state = self.lock();
        if state.dead {
            return data.fill(0xff);
        }
        if state.config.needs_server(&range)
            && let Err(error) = self.client.region_read(CONFIG_REGION, offset.into(), data)
        {
            note(&error, "read", CONFIG_REGION, offset.into());
            return data.fill(0xff);
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
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let range = register_range(offset, data);
        self.config_accesses.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        let state = &mut *state;
        if state.dead {
            return;
        }
        if state.config.write_bars(&range, data, &mut state.bars) {
            return self.update_placements(state);
        }
        state.config.write(&range, data);
        if touches(&range, register::COMMAND, 2) {
            self.update_placements(state);
        }
        self.update_interrupts(state);
        if !touches(&range, register::INTERRUPT_LINE, 1) {
            self.forward_write(&range, data);
        }
        if self.initiates_flr(&range, data) {
            self.reset_locked(state);
        }
    }
}

fn region_name(index: usize) -> String {
    if index == ROM { "ROM".into() } else { format!("BAR{index}") }
}

fn register_range(offset: u16, data: &[u8]) -> Range<u16> {
    offset..offset + u16::try_from(data.len()).expect("the bus passes on at most four bytes")
}
