//! A virtio device as its registers control it: the device, its negotiation with the driver, and the service of its
//! queues.

mod resume;

use std::fmt::Arguments;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use log::debug;
use nix::sys::eventfd::{EfdFlags, EventFd};
use outrigger_protocol::server::{Interrupts, Memory};

use super::device::VirtioDevice;
use super::iommu::Iommu;
use super::journal::{DEVICE_WORDS, Fence, Journal};
use super::pci_config::{COMMON_OFFSET, DEVICE_OFFSET, DEVICE_SIZE, ISR_OFFSET, NOTIFY_MULTIPLIER, NOTIFY_OFFSET};
use super::queue::Queue;
use super::registers::{Action, CommonRegisters, NO_VECTOR, TRANSPORT_FEATURES};
use super::signals::Signals;
use super::worker::{Context, Ended, Endings, Order, STOP_DEADLINE, Worker, WorkerError};

pub use resume::TakeError;

/// One queue's service.
#[derive(Debug, Default)]
enum Service {
    /// Not enabled.
    #[default]
    Off,
    /// Enabled; goes on where the journal says when it can. Or a predecessor served it until now, and was killed at any
    /// moment.
    Suspended { succeeds: bool },
    /// In service.
    Running(Worker),
    /// Its worker was told to stop and has not ended yet: it may still be writing client memory.
    Stopping { worker: Worker, since: Instant, then: Then },
    /// Its worker could not be started, or was not suspended in time: out of service until the driver resets it.
    Broken,
}

/// The state of a queue once its worker has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Off,
    Suspended,
    Broken,
}

impl Service {
    /// Stops the worker, if there is one.
    fn stop(&mut self, order: Order, then: Then) {
        *self = match std::mem::take(self) {
            Self::Running(worker) => {
                worker.tell(order);
                Self::Stopping { worker, since: Instant::now(), then }
            }
            Self::Stopping { worker, since, then: before } => {
                worker.tell(order);
                let then = if order == Order::Abandon { then } else { before };
                Self::Stopping { worker, since, then }
            }
            idle if then == Then::Suspended => idle,
            _ => Self::Off,
        }
    }

    /// Takes note of a worker that has ended.
    fn settle(&mut self) {
        let Self::Stopping { worker, then, .. } = self else { return };
        *self = match (worker.ended(), *then) {
            (Ended::No, _) => return,
            (_, Then::Off) => Self::Off,
            (Ended::Yes, Then::Suspended) => Self::Suspended { succeeds: false },
            (Ended::Panicked, _) | (_, Then::Broken) => Self::Broken,
        };
    }

    fn is_stopping(&self) -> bool {
        matches!(self, Self::Stopping { .. })
    }
}

/// A virtio device behind its registers.
///
/// [`super::shared`] has it under a lock, and waits without that lock for what takes time: a reset, a queue that stops.
/// Each is in two parts, therefore: it begins, and it is over once [`Control::settle`] has found that all workers have
/// ended which it has told to stop. Whatever comes in between finds a device that is being reset, or has no memory.
#[derive(Debug)]
pub struct Control<D> {
    device: D,
    /// Features offered besides the device's own.
    transport_features: u64,
    registers: CommonRegisters,
    signals: Arc<Signals>,
    doorbells: Vec<Arc<EventFd>>,
    /// A client has had them.
    shown_doorbells: bool,
    services: Vec<Service>,
    /// Some of `services` are stopping.
    stopping: bool,
    endings: Arc<Endings>,
    memory: Memory,
    /// The client's memory is about to change: no worker starts.
    frozen: bool,
    /// None: no client, or one that came after another and has not reset the device yet.
    interrupts: Option<Arc<Interrupts>>,
    /// The client that started the queues has left. Its successor's memory is another guest's, so queues stay
    /// suspended until its driver resets the device.
    orphaned: bool,
    journal: Journal,
    fence: Option<Fence>,
    /// The device is stopped, for its state to be read or written.
    stopped: bool,
    /// It has another's state, whose driver has seen this configuration, and has not gone on yet.
    loaded: Option<Vec<u8>>,
}

impl<D: VirtioDevice> Control<D> {
    /// After power-on, without a client.
    ///
    /// # Errors
    /// No eventfd could be had for a doorbell.
    pub fn new(device: D, iommu: Iommu) -> io::Result<Self> {
        let queues = device.queues();
        let transport_features = TRANSPORT_FEATURES | iommu.features();
        let journal = Journal::own(queues)?;
        let registers = CommonRegisters::new(device.features() | transport_features, queues);
        registers.record_all(&journal);
        Ok(Self {
            registers,
            transport_features,
            signals: Arc::new(Signals::new(queues, journal.clone())),
            doorbells: doorbells(queues)?,
            shown_doorbells: false,
            services: (0..queues).map(|_| Service::Off).collect(),
            stopping: false,
            endings: Arc::default(),
            memory: Memory::default(),
            frozen: false,
            interrupts: None,
            orphaned: false,
            journal,
            fence: None,
            stopped: false,
            loaded: None,
            device,
        })
    }

    /// One for each queue.
    pub fn doorbells(&self) -> &[Arc<EventFd>] {
        &self.doorbells
    }

    /// Where the ends of workers are counted.
    pub fn endings(&self) -> &Arc<Endings> {
        &self.endings
    }

    /// A client is there. It gets doorbells of its own: the one before may have kept its descriptors, and could empty
    /// or fill them.
    pub fn connected(&mut self, interrupts: &Arc<Interrupts>) {
        if std::mem::replace(&mut self.shown_doorbells, true) {
            match doorbells(self.device.queues()) {
                Ok(doorbells) => self.doorbells = doorbells,
                Err(error) => log::warn!("{}: keeps the doorbells that it has: {error}", self.device.name()),
            }
        }
        self.interrupts = Some(Arc::clone(interrupts));
    }

    /// Tells all workers to stop: client memory is about to change, or the client is gone.
    pub fn begin_suspend(&mut self) {
        self.frozen = true;
        for service in &mut self.services {
            service.stop(Order::Suspend, Then::Suspended);
        }
        self.stopping = true;
        self.settle();
    }

    /// From now on, no queue refers to other memory of the client than this; but for those of workers that have not ended
    /// yet, which are out of service, and keep the memory that they had.
    pub fn end_suspend(&mut self, memory: &Memory) {
        self.settle();
        for index in self.indices() {
            if let Service::Stopping { then: then @ Then::Suspended, .. } = &mut self.services[usize::from(index)] {
                *then = Then::Broken;
                self.fail(format_args!("queue {index}: I/O does not finish"));
            }
        }
        self.memory = memory.clone();
        self.frozen = false;
        self.resume();
    }

    /// The client unmasked INTx.
    pub fn intx_unmasked(&self) {
        if let Some(interrupts) = &self.interrupts {
            self.signals.intx_unmasked(interrupts);
        }
    }

    /// The client is gone, and the queues are suspended.
    pub fn disconnected(&mut self) {
        self.orphaned = self.registers.is_running();
        self.leave_journal();
        self.end_suspend(&Memory::default());
        self.interrupts = None;
    }

    /// Whether a reset of the device or of a queue has begun and is not over.
    pub fn is_resetting(&self) -> bool {
        let stops = |service: &Service| matches!(service, Service::Stopping { then: Then::Off, .. });
        self.stopping && self.services.iter().any(stops)
    }

    /// Takes note of workers that have ended. Returns until when it is worth waiting for the others; none: there is none,
    /// and a reset is over.
    pub fn settle(&mut self) -> Option<Instant> {
        if !self.stopping {
            return None;
        }
        for index in self.indices() {
            let service = &mut self.services[usize::from(index)];
            service.settle();
            if !service.is_stopping() && self.registers.reset_queue(index) {
                self.journal.queue(index).clear();
                self.registers.record_queue(&self.journal, index);
            }
        }
        let since = self.services.iter().filter_map(|service| match service {
            Service::Stopping { since, .. } => Some(*since),
            _ => None,
        });
        let wait_until = since.max().map(|since| since + STOP_DEADLINE);
        self.stopping = wait_until.is_some();
        if !self.stopping && self.registers.is_resetting() {
            self.signals.reset();
            if let Err(error) = self.device.deactivate() {
                self.signals.warn(format_args!("{}: cannot go out of service: {error}", self.device.name()));
            }
            self.orphaned = false;
            self.registers.reset();
            (0..DEVICE_WORDS).for_each(|word| self.journal.set_device(word, 0));
            self.indices().for_each(|queue| self.journal.queue(queue).clear());
            self.registers.record_all(&self.journal);
        }
        wait_until
    }

    /// Tells the driver that it must reset the device, and the log why.
    fn fail(&self, reason: Arguments<'_>) {
        self.signals.fail(self.interrupts.as_deref(), format_args!("{} {reason}", self.device.name()));
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
            if !self.enable(index) {
                return;
            }
        }
        self.resume();
    }

    /// Takes a queue into service if the driver has enabled it; returns whether that went well.
    fn enable(&mut self, index: u16) -> bool {
        if let Some(layout) = self.registers.queue(index) {
            if !layout.is_reachable(&self.memory) {
                self.fail(format_args!("queue {index}: not in memory that the client made available"));
                return false;
            }
            self.journal.queue(index).clear();
            self.services[usize::from(index)] = Service::Suspended { succeeds: false };
        }
        true
    }

    /// Starts the workers of all suspended queues whose memory is there.
    fn resume(&mut self) {
        if self.frozen || self.stopped || self.orphaned || self.registers.is_resetting() || !self.registers.is_running()
        {
            return;
        }
        for index in self.indices() {
            self.resume_queue(index);
        }
    }

    fn resume_queue(&mut self, index: u16) {
        let service = &mut self.services[usize::from(index)];
        let (&Service::Suspended { succeeds }, Some(interrupts)) = (&*service, &self.interrupts) else { return };
        let Some(layout) = self.registers.queue(index) else { return };
        if !layout.is_reachable(&self.memory) {
            // A client that moves memory takes it away first: the queue goes on once it is back.
            return;
        }
        let queue = Queue::new(layout, self.memory.clone(), self.journal.queue(index));
        let context = Context {
            name: self.device.name(),
            index,
            doorbell: Arc::clone(&self.doorbells[usize::from(index)]),
            signals: Arc::clone(&self.signals),
            interrupts: Arc::clone(interrupts),
            endings: Arc::clone(&self.endings),
            journal: self.journal.clone(),
            fence: self.fence.clone(),
            succeeds,
        };
        let started = queue.map_err(WorkerError::from).and_then(|queue| {
            let work = self.device.start(index, self.registers.features())?;
            Worker::start(context, queue, work).map_err(WorkerError::host("cannot start a thread"))
        });
        match started {
            Ok(worker) => *service = Service::Running(worker),
            Err(error) => {
                *service = Service::Broken;
                self.fail(format_args!("queue {index}: {error}"));
            }
        }
    }

    /// A reset begins. Once it is over, the device is back in the state after power-on; until then, the status says that
    /// it is not.
    pub fn begin_reset(&mut self) {
        self.registers.begin_reset();
        self.registers.record_common(&self.journal);
        for service in &mut self.services {
            service.stop(Order::Abandon, Then::Off);
        }
        self.stopping = true;
        self.settle();
    }

    fn begin_queue_reset(&mut self, index: u16) {
        self.signals.set_queue_vector(index, NO_VECTOR);
        self.services[usize::from(index)].stop(Order::Abandon, Then::Off);
        self.stopping = true;
        self.settle();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::None => {}
            Action::Reset => self.begin_reset(),
            Action::Start => self.start(),
            Action::StartQueue(index) => {
                if self.enable(index) {
                    self.resume();
                }
            }
            Action::ResetQueue(index) => self.begin_queue_reset(index),
            Action::ConfigVector(vector) => self.signals.set_config_vector(vector),
            Action::QueueVector(queue, vector) => self.signals.set_queue_vector(queue, vector),
            Action::BadQueue(index, error) => {
                self.fail(format_args!("queue {index}: {error}"));
            }
        }
    }

    /// Reads at `offset` of the registers' BAR; within it.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.settle();
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
        self.settle();
        match offset {
            COMMON_OFFSET..ISR_OFFSET => {
                let queue = self.registers.selected_queue();
                let action = self.registers.write(usize_from(offset - COMMON_OFFSET), data);
                self.registers.record(&self.journal, queue);
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
                if let (Some(doorbell), Some(interrupts)) = (self.doorbells.get(index), &self.interrupts) {
                    // Fails only with the counter at its maximum, which means that it rings already.
                    let _ = interrupts.interruptible(|| doorbell.write(1));
                }
            }
            _ => {}
        }
    }
}

/// Blocking, so that a worker which has nothing else to wait for waits by reading.
fn doorbells(queues: u16) -> io::Result<Vec<Arc<EventFd>>> {
    (0..queues).map(|_| EventFd::from_flags(EfdFlags::EFD_CLOEXEC)).map(|made| Ok(Arc::new(made?))).collect()
}

/// Offsets were checked against a region's size, which is at most 16 KiB.
pub(super) fn usize_from(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX / 2)
}

impl<D> Drop for Control<D> {
    fn drop(&mut self) {
        self.services.iter_mut().for_each(|service| service.stop(Order::Abandon, Then::Off));
        let deadline = Instant::now() + STOP_DEADLINE;
        for service in &self.services {
            if let Service::Stopping { worker, .. } = service {
                worker.wait(deadline);
            }
        }
    }
}

#[cfg(test)]
mod killed_tests;

// Device configuration must fit between the registers around it.
const _: () = assert!(DEVICE_OFFSET + DEVICE_SIZE <= NOTIFY_OFFSET);
