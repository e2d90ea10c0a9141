//! A virtio device as a PCI function: the [`Device`] that a vfio-user client attaches.

use std::fmt::Arguments;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use log::debug;
use nix::errno::Errno;
use outrigger_protocol::pci::{BAR0_REGION, CONFIG_REGION, INTX_IRQ, MSIX_IRQ, NUM_IRQS, NUM_REGIONS};
use outrigger_protocol::server::{Device, Interrupts, IoFd, IoFdKind, Irq, Memory, Region};
use outrigger_protocol::wire::{IRQ_AUTOMASKED, IRQ_EVENTFD, IRQ_MASKABLE};
use vmm_sys_util::eventfd::EventFd;

use super::MAX_QUEUES;
use super::device::VirtioDevice;
use super::pci_config::{
    COMMON_OFFSET, CONFIG_SIZE, ConfigEvent, ConfigSpace, DEVICE_OFFSET, DEVICE_SIZE, ISR_OFFSET, MSIX_BAR,
    MSIX_BAR_SIZE, NOTIFY_MULTIPLIER, NOTIFY_OFFSET, REGISTERS_BAR_SIZE, Window,
};
use super::queue::{Queue, QueueState};
use super::registers::{Action, CommonRegisters, TRANSPORT_FEATURES};
use super::signals::Signals;
use super::worker::{Context, STOP_DEADLINE, Worker, WorkerError};

const MSIX_REGION: u32 = MSIX_BAR as u32;

/// One queue's service.
#[derive(Debug, Default)]
enum Service {
    /// Not enabled.
    #[default]
    Off,
    /// Enabled; goes on from here when it can.
    Suspended(QueueState),
    /// In service.
    Running(Worker),
    /// Its worker could not be started or stopped: out of service until the device is reset.
    Broken,
}

/// A virtio device on the PCI bus.
#[derive(Debug)]
pub struct PciFunction<D> {
    device: D,
    config: ConfigSpace,
    registers: CommonRegisters,
    signals: Arc<Signals>,
    doorbells: Vec<Arc<EventFd>>,
    services: Vec<Service>,
    /// The client owns the MSI-X table: to us it is plain memory.
    msix: Vec<u8>,
    memory: Memory,
    /// None: no client, or one that came after another and has not reset the device yet.
    interrupts: Option<Arc<Interrupts>>,
    /// The client that started the queues has left. Its successor's memory is another guest's, so queues stay
    /// suspended until its driver resets the device.
    orphaned: bool,
    regions: [Region; NUM_REGIONS as usize],
    irqs: [Irq; NUM_IRQS as usize],
}

impl<D: VirtioDevice> PciFunction<D> {
    /// Puts `device` on the bus.
    ///
    /// # Errors
    /// No eventfd could be had for a doorbell.
    pub fn new(device: D) -> io::Result<Self> {
        let queues = device.queues();
        assert!(queues <= MAX_QUEUES, "a device has at most {MAX_QUEUES} queues");
        let vectors = u32::from(queues) + 1;
        let mut regions: [Region; NUM_REGIONS as usize] = Default::default();
        regions[BAR0_REGION as usize] = Region::messages(REGISTERS_BAR_SIZE);
        regions[MSIX_REGION as usize] = Region::messages(MSIX_BAR_SIZE);
        regions[CONFIG_REGION as usize] = Region::messages(CONFIG_SIZE as u64);
        let mut irqs = [Irq::default(); NUM_IRQS as usize];
        irqs[INTX_IRQ as usize] = Irq { count: 1, flags: IRQ_EVENTFD | IRQ_MASKABLE | IRQ_AUTOMASKED };
        irqs[MSIX_IRQ as usize] = Irq { count: vectors, flags: IRQ_EVENTFD };
        Ok(Self {
            config: ConfigSpace::new(device.identity(), queues, device.config().len()),
            registers: CommonRegisters::new(device.features() | TRANSPORT_FEATURES, queues),
            signals: Arc::new(Signals::new(queues)),
            // Blocking, so that a worker which has nothing else to wait for waits by reading.
            doorbells: (0..queues).map(|_| EventFd::new(libc::EFD_CLOEXEC).map(Arc::new)).collect::<io::Result<_>>()?,
            services: (0..queues).map(|_| Service::Off).collect(),
            msix: vec![0; usize_from(MSIX_BAR_SIZE)],
            memory: Memory::default(),
            interrupts: None,
            orphaned: false,
            device,
            regions,
            irqs,
        })
    }

    /// Tells the driver that it must reset the device, and the log why.
    fn fail(&self, reason: Arguments<'_>) {
        if let Some(interrupts) = &self.interrupts {
            self.signals.fail(interrupts, format_args!("{} {reason}", self.device.name()));
        }
    }

    fn indices(&self) -> std::ops::Range<u16> {
        0..self.device.queues()
    }

    /// The driver is ready.
    fn start(&mut self) {
        let features = self.registers.features();
        debug!("{}: driver ready, features {features:#x}", self.device.name());
        if let Err(error) = self.device.activate(features) {
            return self.fail(format_args!("cannot start: {error}"));
        }
        for index in self.indices() {
            if let Some(layout) = self.registers.queue(index) {
                if !layout.is_reachable(&self.memory) {
                    return self.fail(format_args!("queue {index}: not in memory that the client made available"));
                }
                self.services[usize::from(index)] = Service::Suspended(QueueState::default());
            }
        }
        self.resume();
    }

    /// Starts the workers of all suspended queues whose memory is there.
    fn resume(&mut self) {
        if self.orphaned || !self.registers.is_running() {
            return;
        }
        for index in self.indices() {
            self.resume_queue(index);
        }
    }

    fn resume_queue(&mut self, index: u16) {
        let service = &mut self.services[usize::from(index)];
        let (Service::Suspended(state), Some(interrupts)) = (&*service, &self.interrupts) else { return };
        let Some(layout) = self.registers.queue(index) else { return };
        if !layout.is_reachable(&self.memory) {
            // A client that moves memory takes it away first: the queue goes on once it is back.
            return;
        }
        let queue = Queue::new(layout, self.memory.clone(), *state);
        let context = Context {
            name: self.device.name(),
            index,
            doorbell: Arc::clone(&self.doorbells[usize::from(index)]),
            signals: Arc::clone(&self.signals),
            interrupts: Arc::clone(interrupts),
        };
        let started = self
            .device
            .start(index, self.registers.features())
            .and_then(|work| Worker::start(context, queue, work).map_err(WorkerError::host("cannot start a thread")));
        match started {
            Ok(worker) => *service = Service::Running(worker),
            Err(error) => {
                *service = Service::Broken;
                self.fail(format_args!("queue {index}: {error}"));
            }
        }
    }

    /// Stops all workers. When this returns, nothing refers to client memory (but see [`super::worker`]).
    fn suspend(&mut self) {
        let deadline = Instant::now() + STOP_DEADLINE;
        for service in &self.services {
            if let Service::Running(worker) = service {
                worker.begin_stop();
            }
        }
        for index in self.indices() {
            self.suspend_queue(index, deadline);
        }
    }

    fn suspend_queue(&mut self, index: u16, deadline: Instant) {
        let service = &mut self.services[usize::from(index)];
        if !matches!(service, Service::Running(_)) {
            return;
        }
        // Broken until it is known to have stopped.
        if let Service::Running(worker) = std::mem::replace(service, Service::Broken) {
            match worker.stop(deadline) {
                Some(state) => *service = Service::Suspended(state),
                None => self.fail(format_args!("queue {index}: could not be stopped")),
            }
        }
    }

    fn stop(&mut self) {
        self.suspend();
        self.services.iter_mut().for_each(|service| *service = Service::Off);
        self.registers.reset();
        self.signals.reset();
        self.device.deactivate();
        self.orphaned = false;
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::None => {}
            Action::Reset => self.stop(),
            Action::Start => self.start(),
            Action::StartQueue(index) => {
                self.services[usize::from(index)] = Service::Suspended(QueueState::default());
                self.resume();
            }
            Action::StopQueue(index) => {
                self.suspend_queue(index, Instant::now() + STOP_DEADLINE);
                self.services[usize::from(index)] = Service::Off;
            }
            Action::ConfigVector(vector) => self.signals.set_config_vector(vector),
            Action::QueueVector(queue, vector) => self.signals.set_queue_vector(queue, vector),
            Action::BadQueue(index, error) => {
                self.fail(format_args!("queue {index}: {error}"));
            }
        }
    }

    fn read_registers(&mut self, offset: u64, data: &mut [u8]) {
        let length = data.len();
        data.fill(0);
        match offset {
            COMMON_OFFSET..ISR_OFFSET => self.registers.read(
                usize_from(offset - COMMON_OFFSET),
                data,
                self.signals.needs_reset(),
                self.signals.generation(),
            ),
            ISR_OFFSET if length > 0 => data[0] = self.signals.take_isr(),
            DEVICE_OFFSET..NOTIFY_OFFSET => {
                let config = self.device.config().iter().skip(usize_from(offset - DEVICE_OFFSET));
                data.iter_mut().zip(config).for_each(|(byte, &value)| *byte = value);
            }
            _ => {}
        }
    }

    fn write_registers(&mut self, offset: u64, data: &[u8]) {
        match offset {
            COMMON_OFFSET..ISR_OFFSET => {
                let action = self.registers.write(usize_from(offset - COMMON_OFFSET), data);
                self.act(action);
            }
            DEVICE_OFFSET..NOTIFY_OFFSET => {
                let at = usize_from(offset - DEVICE_OFFSET);
                if at + data.len() <= self.device.config().len() {
                    self.device.write_config(at, data);
                }
            }
            NOTIFY_OFFSET.. => {
                let index = usize_from((offset - NOTIFY_OFFSET) / u64::from(NOTIFY_MULTIPLIER));
                if let Some(doorbell) = self.doorbells.get(index) {
                    // Fails only with the counter at its maximum, which means that it rings already.
                    let _ = doorbell.write(1);
                }
            }
            _ => {}
        }
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
                self.config.set_window_data(value);
            }
        }
        self.config.read(at, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match self.config.write(usize_from(offset), data) {
            ConfigEvent::None => Ok(()),
            ConfigEvent::FunctionReset => {
                self.reset();
                Ok(())
            }
            ConfigEvent::WriteWindow(Window { bar, offset, length }, value) => {
                self.write(bar.into(), offset.into(), &value[..length])
            }
        }
    }
}

/// Offsets were checked against a region's size, which is at most 16 KiB.
fn usize_from(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX / 2)
}

impl<D: VirtioDevice> Device for PciFunction<D> {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn irqs(&self) -> &[Irq] {
        &self.irqs
    }

    fn connected(&mut self, interrupts: &Arc<Interrupts>) {
        self.interrupts = Some(Arc::clone(interrupts));
    }

    fn memory_changed(&mut self, memory: &Memory) {
        self.suspend();
        self.memory = memory.clone();
        self.resume();
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        match region {
            BAR0_REGION => self.read_registers(offset, data),
            MSIX_REGION => data.copy_from_slice(self.access_msix(offset, data.len())?),
            CONFIG_REGION => self.read_config(offset, data),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match region {
            BAR0_REGION => self.write_registers(offset, data),
            MSIX_REGION => self.access_msix(offset, data.len())?.copy_from_slice(data),
            CONFIG_REGION => return self.write_config(offset, data),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// The doorbells. Size zero matches any width, as drivers write two bytes or four, and lets KVM take its shortest
    /// path ("fast MMIO"), which doesn't decode the instruction.
    fn io_fds(&self, region: u32) -> Vec<IoFd<'_>> {
        if region != BAR0_REGION {
            return Vec::new();
        }
        let offsets = (NOTIFY_OFFSET..).step_by(NOTIFY_MULTIPLIER as usize);
        let doorbell = |(doorbell, offset): (&Arc<EventFd>, u64)| {
            // SAFETY: the eventfd lives as long as `self`, which the result borrows.
            let fd = unsafe { BorrowedFd::borrow_raw(doorbell.as_raw_fd()) };
            (offset, fd)
        };
        let io_fd =
            |(offset, fd)| IoFd { offset, size: 0, kind: IoFdKind::Ioeventfd { datamatch: None }, pio: false, fd };
        self.doorbells.iter().zip(offsets).map(doorbell).map(io_fd).collect()
    }

    fn unmasked(&mut self, irq: u32) {
        if let (INTX_IRQ, Some(interrupts)) = (irq, &self.interrupts) {
            self.signals.intx_unmasked(interrupts);
        }
    }

    fn reset(&mut self) {
        self.stop();
        self.config.reset();
        self.msix.fill(0);
    }

    fn disconnected(&mut self) {
        self.suspend();
        self.orphaned = self.registers.is_running();
        self.memory = Memory::default();
        self.interrupts = None;
    }
}

impl<D> Drop for PciFunction<D> {
    fn drop(&mut self) {
        for service in self.services.drain(..) {
            if let Service::Running(worker) = service {
                worker.stop(Instant::now() + STOP_DEADLINE);
            }
        }
    }
}

// Device configuration must fit between the registers around it.
const _: () = assert!(DEVICE_OFFSET + DEVICE_SIZE <= NOTIFY_OFFSET);
