//! A device that uses all that a client gives it, on the client's command.

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use outrigger_protocol::journal::{JournalFormat, JournalMemory};
use outrigger_protocol::migration::DeviceState;
use outrigger_protocol::server::{
    Device, Feature, Interrupts, IoFd, IoFdKind, Irq, Journaled, Memory, MemoryError, Migration, Region, RegionMapping,
};
use outrigger_protocol::{pci, wire};
use vm_memory::Bytes;

use crate::allocations::count_this_thread;
use crate::descriptors::memfd;

/// Reached by messages.
pub const MESSAGES: u32 = 0;
/// The size of [`MESSAGES`], more than one message carries.
pub const MESSAGES_SIZE: u64 = 2 << 20;
/// A write of an [`Order`] at this offset of [`MESSAGES`] is carried out.
pub const ORDERS: u64 = 0x1000;
/// The last bytes of [`MESSAGES`] cannot be accessed.
pub const BAD_OFFSET: u64 = MESSAGES_SIZE - 16;

/// An order to the device.
#[derive(Clone, Copy, Debug, Default, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct Order {
    /// Copy, load, store, borrow or interrupt.
    pub what: u8,
    /// Interrupt type.
    pub irq: u8,
    /// Of that type.
    pub vector: u8,
    /// Not zero: in another thread, while the client goes on.
    pub elsewhere: u8,
    /// Bytes.
    pub length: u32,
    /// DMA address.
    pub address: u64,
}

/// The first [`Order::what`] that is an interrupt.
pub const INTERRUPT: u8 = 8;
/// The most bytes of one order: two messages.
const MAX_ORDER: usize = (1 << 20) + 4096;

/// The features that are the device's own: those before are the library's.
const GENERIC: RangeInclusive<u16> = 9..=13;

/// A device for one input.
#[derive(Debug)]
pub struct FuzzDevice {
    regions: Vec<Region>,
    irqs: Vec<Irq>,
    storage: Vec<u8>,
    doorbells: [EventFd; 2],
    hands: Arc<Mutex<Hands>>,
    worker: Option<(SyncSender<Order>, JoinHandle<()>)>,
    feature: Vec<u8>,
    state: State,
    journal: Kept,
    with_worker: bool,
}

/// The state that migrates.
#[derive(Debug)]
struct State {
    state: DeviceState,
    data: Vec<u8>,
}

impl Default for State {
    fn default() -> Self {
        Self { state: DeviceState::Running, data: vec![9; 5000] }
    }
}

impl Migration for State {
    fn pre_copy(&self) -> bool {
        true
    }

    fn state(&self) -> DeviceState {
        self.state
    }

    fn transition(&mut self, to: DeviceState) -> Result<(), Errno> {
        // A device that has taken too little fails.
        if self.state == DeviceState::Resuming && self.data.len() % 7 == 3 {
            self.state = DeviceState::Error;
            return Err(Errno::EIO);
        }
        self.state = to;
        Ok(())
    }

    fn read_data(&mut self, data: &mut [u8]) -> Result<usize, Errno> {
        assert!(self.state.is_saving(), "data was read in {:?}", self.state);
        let length = data.len().min(self.data.len());
        data[..length].copy_from_slice(&self.data[..length]);
        self.data.drain(..length);
        Ok(length)
    }

    fn write_data(&mut self, data: &[u8]) -> Result<(), Errno> {
        assert_eq!(self.state, DeviceState::Resuming, "data was written");
        assert!(data.len() <= 1 << 20, "{} bytes at once", data.len());
        self.data = data.to_vec();
        Ok(())
    }
}

/// The format of the device's journal.
pub fn journal_format() -> JournalFormat {
    JournalFormat { format: "fuzz/1".into(), size: 8192 }
}

/// A journal all of whose words are used.
#[derive(Debug, Default)]
struct Kept(Option<JournalMemory>);

impl Kept {
    fn write(&mut self, memory: JournalMemory) {
        assert_eq!(memory.words().len(), 1024, "the journal has another size");
        memory.words().iter().for_each(|word| word.store(7, Ordering::Relaxed));
        self.0 = Some(memory);
    }
}

impl Journaled for Kept {
    fn format(&self) -> JournalFormat {
        journal_format()
    }

    fn begin(&mut self, memory: JournalMemory) -> Result<Vec<OwnedFd>, Errno> {
        assert!(self.0.is_none(), "there is a journal already");
        self.write(memory);
        Ok((0..3).map(memfd).collect())
    }

    fn offer(&mut self, memory: &JournalMemory) -> Result<(), Errno> {
        assert!(self.0.is_none(), "there is a journal already");
        match memory.words().iter().map(|word| word.load(Ordering::Relaxed)).sum::<u64>() % 3 {
            0 => Ok(()),
            _ => Err(Errno::EPROTO),
        }
    }

    fn take(&mut self, memory: JournalMemory) -> Result<(), Errno> {
        self.write(memory);
        Ok(())
    }
}

/// Memory and interrupts from the client.
#[derive(Debug, Default)]
struct Hands {
    memory: Memory,
    interrupts: Option<Arc<Interrupts>>,
}

impl FuzzDevice {
    /// `with_worker`: orders may be carried out elsewhere.
    pub fn new(with_worker: bool) -> Self {
        let backed = |size, offset, areas| {
            let fd: OwnedFd = memfd(offset + size);
            Region {
                size,
                readable: true,
                writable: true,
                mapping: Some(RegionMapping { fd, offset, areas }),
                ..Region::default()
            }
        };
        let regions = vec![
            Region::messages(MESSAGES_SIZE),
            backed(0x8000, 0x8000, vec![(0x1000, 0x1000), (0x4000, 0x2000)]),
            backed(0x3000, 0, Vec::new()),
            backed(0xc8000, 0, (0..100).map(|i| (i * 0x2000, 0x1000)).collect()),
            Region { size: 0x100, readable: true, ..Region::default() },
            Region { size: u64::MAX, writable: true, ..Region::default() },
            Region::default(),
            Region::messages(256),
            Region::default(),
        ];
        let mut irqs = vec![Irq::default(); pci::NUM_IRQS as usize];
        let intx = wire::IRQ_EVENTFD | wire::IRQ_MASKABLE | wire::IRQ_AUTOMASKED;
        irqs[pci::INTX_IRQ as usize] = Irq { count: 1, flags: intx };
        irqs[pci::MSI_IRQ as usize] = Irq { count: 2, flags: wire::IRQ_EVENTFD | wire::IRQ_MASKABLE };
        irqs[pci::MSIX_IRQ as usize] = Irq { count: 100, flags: wire::IRQ_EVENTFD };
        Self {
            regions,
            irqs,
            storage: vec![0; 0x2000],
            doorbells: [(); 2].map(|()| EventFd::new().expect("an eventfd")),
            hands: Arc::default(),
            worker: None,
            feature: Vec::new(),
            state: State::default(),
            journal: Kept::default(),
            with_worker,
        }
    }

    fn check(&self, region: u32, offset: u64, length: usize) {
        let region = &self.regions[region as usize];
        assert!(length > 0 && length <= 1 << 20, "an access of {length} bytes reached the device");
        let end = offset.checked_add(length as u64);
        assert!(end.is_some_and(|end| end <= region.size), "an access beyond a region reached the device");
    }
}

impl Device for FuzzDevice {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn irqs(&self) -> &[Irq] {
        &self.irqs
    }

    fn connected(&mut self, interrupts: &Arc<Interrupts>) {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner).interrupts = Some(interrupts.clone());
        if self.with_worker {
            let (orders, received) = sync_channel::<Order>(16);
            let hands = self.hands.clone();
            let worker = std::thread::spawn(move || {
                count_this_thread();
                for order in received {
                    let _ = obey(&hands, order);
                }
            });
            self.worker = Some((orders, worker));
        }
    }

    fn journal(&mut self) -> Option<&mut dyn Journaled> {
        Some(&mut self.journal)
    }

    fn memory_changed(&mut self, memory: &Memory) {
        // A thread that uses the old memory holds the lock.
        self.hands.lock().expect("no panic in an order").memory = memory.clone();
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.check(region, offset, data.len());
        assert!(self.regions[region as usize].readable, "a read of a region that cannot be read reached the device");
        if region == MESSAGES && offset >= BAD_OFFSET {
            return Err(Errno::EIO);
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match self.storage.get(start..).and_then(|stored| stored.get(..data.len())) {
            Some(stored) if region == MESSAGES => data.copy_from_slice(stored),
            _ => data.fill(offset.to_le_bytes()[0]),
        }
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.check(region, offset, data.len());
        assert!(
            self.regions[region as usize].writable,
            "a write of a region that cannot be written reached the device"
        );
        if region != MESSAGES {
            return Ok(());
        }
        if offset >= BAD_OFFSET {
            return Err(Errno::EIO);
        }
        if offset == ORDERS
            && let Ok((order, _)) = <Order as zerocopy::FromBytes>::read_from_prefix(data)
        {
            return match &self.worker {
                Some((orders, _)) if order.elsewhere != 0 => orders.try_send(order).map_err(|_| Errno::EBUSY),
                _ => obey(&self.hands, order).map_err(|_| Errno::EFAULT),
            };
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(stored) = self.storage.get_mut(start..).and_then(|stored| stored.get_mut(..data.len())) {
            stored.copy_from_slice(data);
        }
        Ok(())
    }

    fn io_fds(&self, region: u32) -> Vec<IoFd<'_>> {
        if region != MESSAGES {
            return Vec::new();
        }
        let io_fd = |offset, size, datamatch, fd| IoFd {
            offset,
            size,
            kind: IoFdKind::Ioeventfd { datamatch },
            pio: false,
            fd,
        };
        let handed_over = |offset, posted_writes| IoFd {
            offset,
            size: 8,
            kind: IoFdKind::Ioregionfd { user_data: offset, posted_writes },
            pio: false,
            fd: self.doorbells[0].as_fd(),
        };
        let [first, second] = &self.doorbells;
        let mut io_fds = vec![
            io_fd(0x100, 4, Some(7), first.as_fd()),
            io_fd(0x200, 0, None, second.as_fd()),
            handed_over(0x40, false),
            handed_over(0x48, true),
        ];
        // More than one message carries.
        io_fds.extend((0..70).map(|i| io_fd(0x300 + i * 4, 4, None, second.as_fd())));
        io_fds
    }

    fn unmasked(&mut self, irq: u32) {
        let hands = self.hands.lock().expect("no panic in an order");
        if let Some(interrupts) = &hands.interrupts {
            interrupts.trigger(irq, 0);
        }
    }

    fn feature(&self, index: u16) -> Option<Feature> {
        GENERIC.contains(&index).then_some(Feature { get: true, set: index == 10 })
    }

    fn get_feature(&mut self, index: u16, request: &[u8]) -> Result<Vec<u8>, Errno> {
        Ok(match index {
            9 => vec![1; 8],
            10 => self.feature.clone(),
            11 => vec![3; 10_000],
            12 => request.to_vec(),
            _ => vec![5; (1 << 20) + 1],
        })
    }

    fn set_feature(&mut self, index: u16, data: &[u8]) -> Result<(), Errno> {
        assert_eq!(index, 10);
        self.feature = data.to_vec();
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(&mut self.state)
    }

    fn logs_dma(&self) -> bool {
        true
    }

    fn reset(&mut self) {
        self.storage.fill(0);
        self.state = State::default();
    }

    fn disconnected(&mut self) {
        if let Some((orders, worker)) = self.worker.take() {
            drop(orders);
            worker.join().expect("no panic in an order");
        }
        *self.hands.lock().expect("no panic in an order") = Hands::default();
    }
}

fn obey(hands: &Mutex<Hands>, order: Order) -> Result<(), MemoryError> {
    let hands = hands.lock().expect("no panic in an order");
    let (memory, address) = (&hands.memory, order.address);
    let length = (order.length as usize).min(MAX_ORDER);
    match order.what {
        0 => memory.read(address, &mut vec![0; length]),
        1 => memory.write(address, &vec![order.what; length]),
        2 => {
            let mut data = vec![0; length];
            memory.read(address, &mut data)?;
            memory.write(address.wrapping_add(length as u64), &data)
        }
        3 => memory.load_u16(address, Ordering::Acquire).map(|_| ()),
        4 => memory.store_u16(address, 0x1234, Ordering::Release),
        5 => {
            let slice = memory.readable_slice(address, length)?;
            let mut data = vec![0; length.min(4096)];
            let _ = slice.read_slice(&mut data[..length.min(4096)], 0);
            Ok(())
        }
        6 => {
            let slice = memory.writable_slice(address, length)?;
            let _ = slice.write_slice(&vec![6; length.min(4096)], 0);
            Ok(())
        }
        7 => {
            let open = (memory.is_mapped(address, length), memory.is_readable(address, length));
            let read = memory.read(address, &mut vec![0; length]);
            // Memory that is said not to be there is not found either.
            assert!(open.1 || length == 0 || read.is_err());
            read
        }
        INTERRUPT.. => {
            if let Some(interrupts) = &hands.interrupts {
                let _ = interrupts.is_connected(order.irq.into());
                interrupts.trigger(order.irq.into(), order.vector.into());
            }
            Ok(())
        }
    }
}
