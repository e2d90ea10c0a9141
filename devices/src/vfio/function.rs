//! A physical function as the [`Device`] that a vfio-user client attaches.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use log::{error, warn};
use nix::errno::Errno;
use outrigger_protocol::pci::{CONFIG_REGION, INTX_IRQ};
use outrigger_protocol::server::{Device, DmaRange, Interrupts, Irq, Journaled, Memory, Region};
use outrigger_protocol::wire;

use super::OpenError;
use super::address::Address;
use super::device_file::DeviceFile;
use super::iommu::DeviceMemory;
use super::irqs::IrqType;
use super::regions::{CAP_POWER, find_capability};

/// The command register (PCI Local Bus 3.0, section 6.2.2).
const COMMAND: u64 = 0x04;
/// Where the capabilities are that every function may have.
const LEGACY_CONFIG_SIZE: usize = 256;
/// Power Management Control/Status, from the start of its capability; bits 0 and 1 are the state (PCI Power Management 1.2,
/// section 3.2.4).
const POWER_CONTROL: usize = 4;
const POWER_STATE: u16 = 3;

/// A physical function that is open.
#[derive(Debug)]
pub struct PhysicalFunction {
    // First, as the device is closed before its group leaves the container.
    regions: Vec<Region>,
    pub(super) file: DeviceFile,
    irqs: Vec<Irq>,
    pub(super) types: Vec<IrqType>,
    pub(super) memory: DeviceMemory,
    pub(super) interrupts: Option<Arc<Interrupts>>,
    /// The result of the last reset.
    was_reset: Result<(), Errno>,
    /// The client has left, and the function goes on.
    has_left: bool,
    /// None: this process opens the function for one client after the other, and it ends with each.
    pub(super) succession: Option<Succession>,
}

/// How the function outlives this process.
#[derive(Debug)]
pub(super) struct Succession {
    pub(super) address: Address,
    /// For a successor, until the client has them.
    pub(super) files: Vec<OwnedFd>,
    /// A predecessor has had the function: which interrupts are enabled is not known yet, and what is mapped.
    pub(super) is_successor: bool,
    /// The client holds the files and a journal: the function is left as it is when this process goes.
    pub(super) is_kept: bool,
}

impl PhysicalFunction {
    pub(super) fn new(
        file: DeviceFile,
        regions: Vec<Region>,
        memory: DeviceMemory,
        succession: Option<Succession>,
    ) -> Result<Self, OpenError> {
        let is_successor = succession.as_ref().is_some_and(|succession| succession.is_successor);
        let kernels = file.irqs()?;
        let types = kernels.iter().map(IrqType::new).collect();
        // This program resizes them itself where VFIO cannot.
        let irqs = kernels.iter().map(|irq| Irq { flags: irq.flags & !wire::IRQ_NORESIZE, ..*irq }).collect();
        let function = Self {
            regions,
            file,
            irqs,
            types,
            memory,
            interrupts: None,
            was_reset: Ok(()),
            has_left: false,
            succession,
        };
        if is_successor {
            return Ok(function);
        }
        function.wake().map_err(|errno| OpenError::Kernel { what: "switching it on", errno })?;
        Ok(function)
    }

    /// Puts the function into power state D0, in which alone it answers.
    fn wake(&self) -> Result<(), Errno> {
        let mut config = [0; LEGACY_CONFIG_SIZE];
        self.file.read(CONFIG_REGION, 0, &mut config)?;
        let Some(control) = find_capability(&config, CAP_POWER).map(|at| at + POWER_CONTROL) else { return Ok(()) };
        let Some(&[low, high]) = config.get(control..control + 2).and_then(<[u8]>::first_chunk) else { return Ok(()) };
        let value = u16::from_le_bytes([low, high]);
        if value & POWER_STATE == 0 {
            return Ok(());
        }
        self.file.write(CONFIG_REGION, control as u64, &(value & !POWER_STATE).to_le_bytes())
    }

    /// Whether the client and a successor have the function when this process goes.
    fn is_kept(&self) -> bool {
        self.succession.as_ref().is_some_and(|succession| succession.is_kept || succession.is_successor)
    }

    /// Disables whatever a predecessor has enabled.
    fn disable_all_interrupts(&self) {
        (0..).zip(&self.types).for_each(|(index, _)| {
            let _ = self.file.act_on_irqs(index, wire::IRQ_SET_ACTION_TRIGGER, 0, 0);
        });
    }

    fn try_reset(&self) -> Result<(), Errno> {
        self.wake()?;
        self.file.reset()?;
        // VFIO puts back what configuration space held before. After power-on a function decodes nothing and does no DMA.
        self.file.write(CONFIG_REGION, COMMAND, &[0, 0])
    }
}

impl Device for PhysicalFunction {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn irqs(&self) -> &[Irq] {
        &self.irqs
    }

    fn connected(&mut self, interrupts: &Arc<Interrupts>) {
        self.interrupts = Some(Arc::clone(interrupts));
    }

    fn memory_changed(&mut self, _memory: &Memory) {}

    fn map(&mut self, range: &DmaRange<'_>) -> Result<(), Errno> {
        self.memory.map(range)
    }

    fn reaches_bars(&self) -> bool {
        true
    }

    fn unmap(&mut self, range: &DmaRange<'_>) {
        if !self.has_left {
            self.memory.unmap(range);
        }
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.file.read(region, offset, data)
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.file.write(region, offset, data)
    }

    fn connect(&mut self, irq: u32, start: u32, eventfds: &[Option<BorrowedFd<'_>>]) -> Result<(), Errno> {
        let kind = self.types.get_mut(irq as usize).ok_or(Errno::EINVAL)?;
        let mut connected = kind.connect(&self.file, irq, start, eventfds, self.interrupts.as_deref());
        // A predecessor had fewer vectors enabled, or another type.
        if connected == Err(Errno::EINVAL) && self.succession.as_ref().is_some_and(|succession| succession.is_successor)
        {
            self.disable_all_interrupts();
            let kind = &mut self.types[irq as usize];
            connected = kind.connect(&self.file, irq, start, eventfds, self.interrupts.as_deref());
        }
        connected.inspect_err(|errno| {
            let count = eventfds.iter().flatten().count();
            warn!("{count} interrupts of type {irq} cannot be connected: {}", errno.desc());
        })
    }

    fn connect_unmask(&mut self, irq: u32, start: u32, eventfds: &[Option<BorrowedFd<'_>>]) -> Result<(), Errno> {
        // VFIO knows it for INTx alone, and while that is connected.
        if irq != INTX_IRQ {
            return Err(Errno::EINVAL);
        }
        let connect = |eventfds: &[_]| self.file.connect_irqs(irq, wire::IRQ_SET_ACTION_UNMASK, start, eventfds);
        match connect(eventfds) {
            // There is one already.
            Err(Errno::EBUSY) => connect(&vec![None; eventfds.len()]).and_then(|()| connect(eventfds)),
            done => done,
        }
    }

    fn mask(&mut self, irq: u32, vector: u32, masked: bool) -> Result<(), Errno> {
        let action = if masked { wire::IRQ_SET_ACTION_MASK } else { wire::IRQ_SET_ACTION_UNMASK };
        self.file.act_on_irqs(irq, action, vector, 1)
    }

    fn reset(&mut self) {
        self.was_reset = self.try_reset();
    }

    fn finish_reset(&mut self) -> Result<(), Errno> {
        self.was_reset.inspect_err(|errno| error!("the device cannot be reset: {}", errno.desc()))
    }

    fn journal(&mut self) -> Option<&mut dyn Journaled> {
        self.succession.is_some().then_some(self as _)
    }

    fn stop(&mut self) {
        self.has_left = self.is_kept();
        if self.has_left {
            // A successor goes on. Once nobody has the files any more, the kernel stops the device and closes its memory to it.
            return;
        }
        // Otherwise what the device is at would fault in the IOMMU. It also takes the registers from a client that has left and
        // still maps them: VFIO lets nobody reach what is not decoded.
        if let Err(errno) = self.file.write(CONFIG_REGION, COMMAND, &[0, 0]) {
            error!("the device cannot be stopped: {}", errno.desc());
        }
    }

    fn disconnected(&mut self) {
        if self.has_left {
            return;
        }
        (0..).zip(&mut self.types).for_each(|(index, kind)| kind.disconnect(&self.file, index));
        self.interrupts = None;
    }
}
