//! What the registers of a virtio device control: the device, its negotiation with the driver, and the service of its
//! queues.

use std::fmt::Arguments;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use log::debug;
use outrigger_protocol::server::{Interrupts, Memory};
use vmm_sys_util::eventfd::EventFd;

use super::device::VirtioDevice;
use super::pci_config::{COMMON_OFFSET, DEVICE_OFFSET, DEVICE_SIZE, ISR_OFFSET, NOTIFY_MULTIPLIER, NOTIFY_OFFSET};
use super::queue::{Queue, QueueState};
use super::registers::{Action, CommonRegisters, TRANSPORT_FEATURES};
use super::signals::Signals;
use super::worker::{Context, STOP_DEADLINE, Worker, WorkerError};

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

/// A virtio device behind its registers.
///
/// Register accesses come by message, on the thread that serves the client, or by ioregionfd, on the thread of
/// [`super::register_fd`]. These two share it under a lock, which no queue's thread takes. An access holds the lock until
/// it is done, a reset and a queue that is stopped included, so none of the two ever sees half of the other's.
#[derive(Debug)]
pub struct Control<D> {
    device: D,
    registers: CommonRegisters,
    signals: Arc<Signals>,
    doorbells: Vec<Arc<EventFd>>,
    services: Vec<Service>,
    memory: Memory,
    /// None: no client, or one that came after another and has not reset the device yet.
    interrupts: Option<Arc<Interrupts>>,
    /// The client that started the queues has left. Its successor's memory is another guest's, so queues stay
    /// suspended until its driver resets the device.
    orphaned: bool,
}

impl<D: VirtioDevice> Control<D> {
    /// After power-on, without a client.
    ///
    /// # Errors
    /// No eventfd could be had for a doorbell.
    pub fn new(device: D) -> io::Result<Self> {
        let queues = device.queues();
        Ok(Self {
            registers: CommonRegisters::new(device.features() | TRANSPORT_FEATURES, queues),
            signals: Arc::new(Signals::new(queues)),
            // Blocking, so that a worker which has nothing else to wait for waits by reading.
            doorbells: (0..queues).map(|_| EventFd::new(libc::EFD_CLOEXEC).map(Arc::new)).collect::<io::Result<_>>()?,
            services: (0..queues).map(|_| Service::Off).collect(),
            memory: Memory::default(),
            interrupts: None,
            orphaned: false,
            device,
        })
    }

    /// One for each queue.
    pub fn doorbells(&self) -> &[Arc<EventFd>] {
        &self.doorbells
    }

    /// A client is there.
    pub fn connected(&mut self, interrupts: &Arc<Interrupts>) {
        self.interrupts = Some(Arc::clone(interrupts));
    }

    /// From when this returns, no queue refers to other memory of the client than this.
    pub fn memory_changed(&mut self, memory: &Memory) {
        self.suspend();
        self.memory = memory.clone();
        self.resume();
    }

    /// The client unmasked INTx.
    pub fn intx_unmasked(&self) {
        if let Some(interrupts) = &self.interrupts {
            self.signals.intx_unmasked(interrupts);
        }
    }

    /// The client is gone.
    pub fn disconnected(&mut self) {
        self.suspend();
        self.orphaned = self.registers.is_running();
        self.memory = Memory::default();
        self.interrupts = None;
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

    /// Back to the state after power-on, with no queue running.
    pub fn reset(&mut self) {
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
            Action::Reset => self.reset(),
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

    /// Reads at `offset` of the registers' BAR; within it.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
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

    /// Writes at `offset` of the registers' BAR; within it.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
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
}

/// Offsets were checked against a region's size, which is at most 16 KiB.
pub(super) fn usize_from(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX / 2)
}

impl<D> Drop for Control<D> {
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
