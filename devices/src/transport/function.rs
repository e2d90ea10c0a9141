//! A virtio device as a PCI function: the [`Device`] that a vfio-user client attaches.

mod journaled;
mod migration;

use std::cell::OnceCell;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use log::warn;
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use outrigger_protocol::ioregionfd::Endpoint;
use outrigger_protocol::pci::{BAR0_REGION, CONFIG_REGION, INTX_IRQ};
use outrigger_protocol::server::{Device, Interrupts, IoFd, IoFdKind, Irq, Journaled, Memory, Migration, Region};

use crate::crew::Needs;

use super::control::{Control, usize_from};
use super::device::VirtioDevice;
use super::iommu::Iommu;
use super::pci_config::{ConfigEvent, ConfigSpace, MSIX_BAR, MSIX_BAR_SIZE, NOTIFY_MULTIPLIER, NOTIFY_OFFSET, Window};
use super::shared::Shared;
use super::{MAX_QUEUES, register_fd};
use crate::sandbox::Profile;
use migration::Progress;

const MSIX_REGION: u32 = MSIX_BAR as u32;

/// A virtio device on the PCI bus.
#[derive(Debug)]
pub struct PciFunction<D> {
    name: &'static str,
    registers: Shared<D>,
    doorbells: Vec<Arc<EventFd>>,
    /// Of this client, from when it asks. None: there could be none, and accesses come by message.
    register_fd: OnceCell<Option<Endpoint>>,
    config: ConfigSpace,
    /// The client owns the MSI-X table: to us it is plain memory.
    msix: Vec<u8>,
    migration: Progress,
    profile: Option<Profile>,
}

impl<D: VirtioDevice> PciFunction<D> {
    /// Puts `device` on the bus of a guest that has an IOMMU or not.
    ///
    /// # Errors
    /// No eventfd could be had for a doorbell.
    pub fn new(device: D, iommu: Iommu) -> io::Result<Self> {
        let queues = device.queues();
        assert!(queues <= MAX_QUEUES, "a device has at most {MAX_QUEUES} queues");
        let (name, profile) = (device.name(), device.profile());
        let config = ConfigSpace::new(device.identity(), queues, device.config().len());
        let control = Control::new(device, iommu)?;
        let function = Self {
            name,
            doorbells: control.doorbells().to_vec(),
            registers: Shared::new(control),
            register_fd: OnceCell::new(),
            config,
            msix: vec![0; MSIX_BAR_SIZE as usize],
            migration: Progress::default(),
            profile,
        };
        function.record_config();
        Ok(function)
    }

    /// The profile under which its process is sealed.
    #[must_use]
    pub fn profile(&self) -> Option<Profile> {
        self.profile
    }

    /// The threads that it needs.
    #[must_use]
    pub fn needs(&self) -> Needs {
        let queues = u16::try_from(self.doorbells.len()).expect("MAX_QUEUES at most");
        Needs { queues, ioregionfds: 1 }
    }

    /// The doorbells. Size zero matches any width, as drivers write two bytes or four, and lets KVM take its shortest
    /// path ("fast MMIO"), which doesn't decode the instruction.
    fn doorbell_fds(&self) -> impl Iterator<Item = IoFd<'_>> {
        let offsets = (NOTIFY_OFFSET..).step_by(NOTIFY_MULTIPLIER as usize);
        self.doorbells.iter().zip(offsets).map(|(doorbell, offset)| {
            let fd = doorbell.as_fd();
            IoFd { offset, size: 0, kind: IoFdKind::Ioeventfd { datamatch: None }, pio: false, fd }
        })
    }

    /// The registers. Writes are answered: see [`register_fd`].
    fn register_fd(&self) -> Option<IoFd<'_>> {
        let endpoint = self.register_fd.get_or_init(|| {
            let started = register_fd::start(self.name, &self.registers);
            started.inspect_err(|error| warn!("{}: no ioregionfd for its registers: {error}", self.name)).ok()
        });
        let kind = IoFdKind::Ioregionfd { user_data: 0, posted_writes: false };
        let (offset, size) = (register_fd::START, register_fd::SIZE);
        endpoint.as_ref().map(|endpoint| IoFd { offset, size, kind, pio: false, fd: endpoint.as_fd() })
    }

    fn access_msix(&mut self, offset: u64, length: usize) -> Result<&mut [u8], Errno> {
        let at = usize_from(offset);
        self.msix.get_mut(at..at + length).ok_or(Errno::EINVAL)
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        let at = usize_from(offset);
        if let Some(Window { bar, offset, length }) = self.config.window(at, data.len()) {
            let mut value = [0; 4];
            if self.read(bar.into(), offset.into(), &mut value[..length]).is_ok() {
                self.config.set_window_data(&value[..length]);
                self.record_config();
            }
        }
        self.config.read(at, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let event = self.config.write(usize_from(offset), data);
        self.record_config();
        match event {
            ConfigEvent::None => Ok(()),
            ConfigEvent::FunctionReset => {
                Device::reset(self);
                Ok(())
            }
            ConfigEvent::WriteWindow(Window { bar, offset, length }, value) => {
                self.write(bar.into(), offset.into(), &value[..length])
            }
        }
    }
}

impl<D: VirtioDevice> Device for PciFunction<D> {
    fn regions(&self) -> &[Region] {
        self.config.regions()
    }

    fn irqs(&self) -> &[Irq] {
        self.config.irqs()
    }

    fn connected(&mut self, interrupts: &Arc<Interrupts>) {
        self.doorbells = self.registers.connected(interrupts);
    }

    fn memory_changed(&mut self, memory: &Memory) {
        self.registers.memory_changed(memory);
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        match region {
            BAR0_REGION => self.registers.read(offset, data),
            MSIX_REGION => data.copy_from_slice(self.access_msix(offset, data.len())?),
            CONFIG_REGION => self.read_config(offset, data),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match region {
            BAR0_REGION => self.registers.write(offset, data),
            MSIX_REGION => self.access_msix(offset, data.len())?.copy_from_slice(data),
            CONFIG_REGION => return self.write_config(offset, data),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// The registers last: a client that takes fewer descriptors is better off with doorbells.
    fn io_fds(&self, region: u32) -> Vec<IoFd<'_>> {
        match region {
            BAR0_REGION => self.doorbell_fds().chain(self.register_fd()).collect(),
            _ => Vec::new(),
        }
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn journal(&mut self) -> Option<&mut dyn Journaled> {
        Some(self)
    }

    fn unmasked(&mut self, irq: u32) {
        if irq == INTX_IRQ {
            self.registers.intx_unmasked();
        }
    }

    fn reset(&mut self) {
        self.migration = Progress::default();
        self.registers.reset();
        self.config.reset();
        self.record_config();
        self.msix.fill(0);
    }

    fn finish_reset(&mut self) -> Result<(), Errno> {
        if self.registers.reset_is_over() { Ok(()) } else { Err(Errno::ETIMEDOUT) }
    }

    fn disconnected(&mut self) {
        // First: once its thread has ended, the client that left has no way to the registers.
        self.register_fd.take();
        self.registers.disconnected();
    }
}
