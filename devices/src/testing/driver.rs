//! The driver of a device.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outrigger_protocol::client::{Client, ClientError, IoFd, IoFdKind, Journal};
use outrigger_protocol::foreign::ForeignFd;
use outrigger_protocol::ioregionfd::{Requester, Size};
use outrigger_protocol::migration::DeviceState;
use outrigger_protocol::pci::{BAR0_REGION, INTX_IRQ, MSIX_IRQ};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::transport::VirtioDevice;
use crate::transport::pci_config::{COMMON_OFFSET, ISR_OFFSET, NOTIFY_OFFSET, REGISTERS_BAR_SIZE};
use crate::transport::registers::{FEATURE_VERSION_1, STATUS_DRIVER_OK, STATUS_FEATURES_OK};

use super::{DEADLINE, RAM_SIZE, RAM_START, Served, Way};

/// A queue as the driver sees it.
#[derive(Debug, Default)]
pub struct DriverQueue {
    base: u64,
    size: u16,
    available: u16,
    used: u16,
    free: VecDeque<u16>,
}

impl DriverQueue {
    fn driver(&self) -> u64 {
        self.base + 0x2000
    }
    fn device(&self) -> u64 {
        self.base + 0x4000
    }
}

/// A buffer: address, length, whether the device writes it.
pub type Buffer = (u64, u32, bool);

/// The driver of a device.
pub struct Driver {
    pub client: Arc<Client>,
    /// If they are not reached by message.
    registers: Option<Requester>,
    threads: Vec<JoinHandle<()>>,
    pub ram: GuestMemoryMmap,
    pub file: std::fs::File,
    way: Way,
    pub interrupts: Vec<EventFd>,
    /// Which kind they are.
    irq: u32,
    queues: Vec<DriverQueue>,
    journal: Option<Journal>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Driver {
    /// Gives the device its memory as `way` says; `threads` end with the connection.
    pub fn new(
        client: Arc<Client>,
        threads: Vec<JoinHandle<()>>,
        (ram, file): (GuestMemoryMmap, std::fs::File),
        way: Way,
    ) -> Self {
        let (interrupts, queues) = (Vec::new(), Vec::new());
        let mut driver =
            Self { client, registers: None, threads, ram, file, way, interrupts, irq: MSIX_IRQ, queues, journal: None };
        driver.map(RAM_START, RAM_SIZE);
        driver.registers = (way == Way::Ioregionfd).then(|| driver.requester());
        driver
    }

    fn leave(&mut self) {
        self.client.close();
        let sound = self.threads.drain(..).all(|thread| thread.join().is_ok());
        assert!(std::thread::panicking() || sound, "the server panicked");
    }

    /// Has the device keep a journal; returns what is to be kept for a successor.
    pub fn begin_journal(&mut self) -> Vec<ForeignFd> {
        let journal = Journal::create(self.client.journal_format().unwrap()).unwrap();
        let kept = self.client.begin_journal(&journal).unwrap();
        self.journal = Some(journal);
        kept
    }

    /// The journal as it is.
    pub fn journal(&self) -> &Journal {
        self.journal.as_ref().unwrap()
    }

    /// Leaves the device, whose journal is at rest then, and has another one go on.
    pub fn go_on_with<D: VirtioDevice, E: VirtioDevice>(
        &mut self,
        predecessor: Served<D>,
        successor: &Served<E>,
    ) -> Result<(), ClientError> {
        self.go_on_with_after(predecessor, successor, || {})
    }

    /// The same; something happens when the predecessor is gone.
    pub fn go_on_with_after<D: VirtioDevice, E: VirtioDevice>(
        &mut self,
        predecessor: Served<D>,
        successor: &Served<E>,
        between: impl FnOnce(),
    ) -> Result<(), ClientError> {
        self.registers = None;
        self.leave();
        drop(predecessor);
        between();
        (self.client, self.threads) = successor.connect(&self.ram);
        self.client.offer_journal(self.journal())?;
        self.map(RAM_START, RAM_SIZE);
        self.registers = (self.way == Way::Ioregionfd).then(|| self.requester());
        self.connect_interrupts();
        self.client.take_journal()
    }

    /// Has the device migrate to another server, by the protocol alone.
    pub fn migrate<D: VirtioDevice, E: VirtioDevice>(&mut self, source: Served<D>, target: &Served<E>) {
        self.registers = None;
        self.client.set_device_state(DeviceState::StopCopy).unwrap();
        let mut data = vec![0; 1 << 20];
        let length = self.client.read_migration_data(&mut data).unwrap();
        let (client, threads) = target.connect(&self.ram);
        client.set_device_state(DeviceState::Resuming).unwrap();
        client.write_migration_data(&data[..length]).unwrap();
        client.set_device_state(DeviceState::Stop).unwrap();
        self.leave();
        drop(source);
        (self.client, self.threads) = (client, threads);
        self.map(RAM_START, RAM_SIZE);
        self.registers = (self.way == Way::Ioregionfd).then(|| self.requester());
        self.connect_interrupts();
        self.client.set_device_state(DeviceState::Running).unwrap();
    }

    /// Lets the device reach the start of our memory at `address`.
    pub fn map(&self, address: u64, size: u64) {
        let file = (self.way == Way::Mapped).then(|| (self.file.as_fd(), 0));
        self.client.dma_map(address, size, file).unwrap();
    }

    /// Reads registers; by message if the width is none that a register can have.
    pub fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        match (&self.registers, Size::of(N)) {
            (Some(registers), Some(size)) => {
                data.copy_from_slice(&registers.read(0, offset, size).unwrap().to_le_bytes()[..N]);
            }
            _ => self.client.region_read(BAR0_REGION, offset, &mut data).unwrap(),
        }
        data
    }

    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        match (&self.registers, Size::of(data.len())) {
            (Some(registers), Some(size)) => {
                registers.write(0, offset, size, u64::from_le_bytes(value), false).unwrap();
            }
            _ => self.client.region_write(BAR0_REGION, COMMON_OFFSET + offset, data).unwrap(),
        }
    }

    /// The device's registers by ioregionfd, as it offers them to this client.
    pub fn register_fd(&self) -> IoFd {
        let io_fds = self.client.region_io_fds(BAR0_REGION, REGISTERS_BAR_SIZE).unwrap();
        let mut io_fds = io_fds.into_iter().filter(|io_fd| matches!(io_fd.kind, IoFdKind::Ioregionfd { .. }));
        let (io_fd, None) = (io_fds.next().unwrap(), io_fds.next()) else { panic!("more than one ioregionfd") };
        io_fd
    }

    pub fn requester(&self) -> Requester {
        Requester::new(self.register_fd().fd, DEADLINE).unwrap()
    }

    pub fn status(&self) -> u8 {
        self.read::<1>(0x14)[0]
    }

    pub fn set_status(&self, status: u8) {
        self.write(0x14, &[status]);
    }

    pub fn isr(&self) -> u8 {
        self.read::<1>(ISR_OFFSET)[0]
    }

    fn eventfds(count: u32) -> Vec<EventFd> {
        (0..count).map(|_| EventFd::new(libc::EFD_NONBLOCK).unwrap()).collect()
    }

    /// MSI-X: vector 0 for configuration changes, then one per queue.
    pub fn use_msix(&mut self, queues: u16) {
        self.interrupts = Self::eventfds(u32::from(queues) + 1);
        self.irq = MSIX_IRQ;
        self.connect_interrupts();
        self.write(0x10, &[0, 0]);
        for queue in 0..queues {
            self.write(0x16, &queue.to_le_bytes());
            self.write(0x1a, &(queue + 1).to_le_bytes());
        }
    }

    pub fn use_intx(&mut self) {
        self.interrupts = Self::eventfds(1);
        self.irq = INTX_IRQ;
        self.connect_interrupts();
    }

    fn connect_interrupts(&self) {
        // SAFETY: the eventfds live until after the call.
        let fds: Vec<_> = self.interrupts.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }).collect();
        if !fds.is_empty() {
            self.client.set_irq_eventfds(self.irq, 0, &fds).unwrap();
        }
    }

    /// Resets, and waits until that is over, as drivers must.
    pub fn reset(&self) {
        self.set_status(0);
        self.wait_for_reset();
    }

    /// Waits for a reset that has begun.
    pub fn wait_for_reset(&self) {
        let deadline = Instant::now() + DEADLINE;
        while self.status() != 0 {
            assert!(Instant::now() < deadline, "the reset is not over");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Resets and negotiates, up to FEATURES_OK.
    pub fn negotiate(&mut self, features: u64) {
        self.reset();
        self.queues.clear();
        self.set_status(3);
        let features = (features | FEATURE_VERSION_1).to_le_bytes();
        for (select, half) in (0u32..).zip(features.chunks(4)) {
            self.write(0x08, &select.to_le_bytes());
            self.write(0x0c, half);
        }
        self.set_status(3 | STATUS_FEATURES_OK);
        assert_eq!(self.status(), 3 | STATUS_FEATURES_OK);
    }

    /// Sets up and enables the next queue.
    pub fn enable_queue(&mut self, size: u16) {
        let index = u16::try_from(self.queues.len()).unwrap();
        let base = RAM_START + u64::from(index) * 0x8000;
        for address in base..base + 0x6000 {
            self.ram.write_obj(0u8, GuestAddress(address)).unwrap();
        }
        let queue = DriverQueue { base, size, free: (0..size).collect(), ..DriverQueue::default() };
        self.write(0x16, &index.to_le_bytes());
        self.write(0x18, &size.to_le_bytes());
        for (offset, address) in [(0x20, base), (0x28, queue.driver()), (0x30, queue.device())] {
            self.write(offset, &address.to_le_bytes());
        }
        self.write(0x1c, &[1, 0]);
        self.queues.push(queue);
    }

    pub fn driver_ok(&self) {
        self.set_status(3 | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
    }

    /// All of the above, with MSI-X.
    pub fn start(&mut self, features: u64, queues: u16, size: u16) {
        self.negotiate(features);
        self.use_msix(queues);
        (0..queues).for_each(|_| self.enable_queue(size));
        self.driver_ok();
    }

    /// Makes a chain available, without notifying; returns its head.
    pub fn add(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let queue = &mut self.queues[queue];
        let descriptors: Vec<u16> = queue.free.drain(..buffers.len()).collect();
        for (position, (&index, &(address, length, writable))) in descriptors.iter().zip(buffers).enumerate() {
            let next = descriptors.get(position + 1).copied();
            let flags = u16::from(next.is_some()) | u16::from(writable) << 1;
            let at = GuestAddress(queue.base + 16 * u64::from(index));
            self.ram.write_obj(address, at).unwrap();
            self.ram.write_obj(length, GuestAddress(at.0 + 8)).unwrap();
            self.ram.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
            self.ram.write_obj(next.unwrap_or(0), GuestAddress(at.0 + 14)).unwrap();
        }
        // Not given back to `free`: tests make few requests, or free them by themselves.
        let slot = queue.driver() + 4 + 2 * u64::from(queue.available % queue.size);
        self.ram.write_obj(descriptors[0], GuestAddress(slot)).unwrap();
        queue.available = queue.available.wrapping_add(1);
        self.ram.store(queue.available, GuestAddress(queue.driver() + 2), Ordering::SeqCst).unwrap();
        descriptors[0]
    }

    pub fn free(&mut self, queue: usize, descriptors: impl IntoIterator<Item = u16>) {
        self.queues[queue].free.extend(descriptors);
    }

    /// Tells the device, in the used-event field, to interrupt when used entry `index` is there.
    pub fn set_used_event(&self, queue: usize, index: u16) {
        let queue = &self.queues[queue];
        self.ram.write_obj(index, GuestAddress(queue.driver() + 4 + 2 * u64::from(queue.size))).unwrap();
    }

    pub fn notify(&self, queue: usize) {
        let at = NOTIFY_OFFSET + 4 * queue as u64;
        self.client.region_write(BAR0_REGION, at, &u16::try_from(queue).unwrap().to_le_bytes()).unwrap();
    }

    /// Waits for the next used entry: head and bytes written.
    pub fn used(&mut self, queue: usize) -> (u16, u32) {
        let deadline = Instant::now() + DEADLINE;
        let queue = &mut self.queues[queue];
        let index = GuestAddress(queue.device() + 2);
        while self.ram.load::<u16>(index, Ordering::SeqCst).unwrap() == queue.used {
            assert!(Instant::now() < deadline, "nothing was used");
            std::thread::sleep(Duration::from_micros(100));
        }
        let entry = queue.device() + 4 + 8 * u64::from(queue.used % queue.size);
        queue.used = queue.used.wrapping_add(1);
        let head: u32 = self.ram.read_obj(GuestAddress(entry)).unwrap();
        (u16::try_from(head).unwrap(), self.ram.read_obj(GuestAddress(entry + 4)).unwrap())
    }

    /// The used index, and that of what was waited for.
    pub fn used_index(&self, queue: usize) -> u16 {
        self.ram.load(GuestAddress(self.queues[queue].device() + 2), Ordering::SeqCst).unwrap()
    }

    pub fn used_so_far(&self, queue: usize) -> u16 {
        self.queues[queue].used
    }

    /// Waits for an interrupt; returns how many times it fired.
    pub fn interrupted(&self, vector: usize) -> u64 {
        let eventfd = &self.interrupts[vector];
        // SAFETY: the eventfd is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) };
        let timeout = PollTimeout::try_from(DEADLINE).unwrap();
        assert_eq!(poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout), Ok(1), "no interrupt on {vector}");
        eventfd.read().unwrap()
    }

    /// How many times an interrupt fired so far.
    pub fn interrupts_so_far(&self, vector: usize) -> u64 {
        self.interrupts[vector].read().unwrap_or(0)
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}
