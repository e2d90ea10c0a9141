//! A device with every kind of region and interrupt, which writes down what is done to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use outrigger_protocol::migration::DeviceState;
use outrigger_protocol::pci;
use outrigger_protocol::server::{
    Device, DmaRange, Feature, Interrupts, IoFd, IoFdKind, Irq, Journaled, Memory, MemoryError, Migration, Region,
    RegionMapping,
};
use outrigger_protocol::wire;

use super::journal::TestJournal;
use super::migration::TestMigration;

/// Reached by messages: `MESSAGES_SIZE` bytes of storage, with doorbells.
pub const MESSAGES: u32 = 0;
/// Sparse-mappable, with two areas.
pub const SPARSE: u32 = 1;
/// Mappable as a whole.
pub const WHOLE: u32 = 2;
/// Sparse-mappable, with more areas than fit into a kilobyte.
pub const MANY_AREAS: u32 = 3;
/// Cannot be written.
pub const READ_ONLY: u32 = 4;
/// Does not exist.
pub const ABSENT: u32 = 5;
/// Of `REGION_TYPE`, reached by messages.
pub const TYPED: u32 = 9;
/// Of `REGION_TYPE`, sparse-mappable as `SPARSE` is.
pub const TYPED_SPARSE: u32 = 10;
pub const NUM_REGIONS: u32 = 11;

pub const REGION_TYPE: wire::CapType = wire::CapType { region_type: 0x8000_1af4, subtype: 3 };

pub const MESSAGES_SIZE: u64 = 2 << 20;
pub const SPARSE_AREAS: [(u64, u64); 2] = [(0x1000, 0x1000), (0x4000, 0x2000)];
pub const SPARSE_OFFSET: u64 = 0x8000;
pub const MANY: u64 = 100;
pub const VECTORS: u32 = 4;
/// Reads and writes at this offset of `MESSAGES` fail with `EIO`.
pub const BAD_OFFSET: u64 = MESSAGES_SIZE - 16;

/// A write of an address and a length (64 bits each) at this offset of `MESSAGES` copies client memory to right behind.
pub const COPY_OFFSET: u64 = MESSAGES_SIZE - 64;

/// The device's state, as a test can see it.
#[derive(Default)]
pub struct State {
    pub memory: Memory,
    pub interrupts: Option<Arc<Interrupts>>,
    /// (region, offset, bytes) of each write.
    pub writes: Vec<(u32, u64, Vec<u8>)>,
    pub unmasked: Vec<u32>,
    pub resets: usize,
    pub connected: usize,
    pub disconnected: usize,
    /// The states that a device that migrates went through.
    pub transitions: Vec<DeviceState>,
    /// The data of its new state.
    pub received: Vec<u8>,
    /// The steps of its journal, each with the first word then.
    pub journal: Vec<(&'static str, u64)>,
    /// The calls that a device with hardware passes on to it.
    pub passed_on: Vec<PassedOn>,
    /// The error of those calls.
    pub refusal: Option<Errno>,
    /// Whether eventfds for unmasking are taken.
    pub unmasks_by_eventfd: bool,
}

/// A call that a device with hardware passes on to it.
#[derive(Debug, PartialEq, Eq)]
pub enum PassedOn {
    /// Address, size, whether it is mapped here, whether it is readable and writable.
    Map(u64, u64, bool, (bool, bool)),
    /// Address and size.
    Unmap(u64, u64),
    /// Type, first vector, and of each vector whether there is an eventfd.
    Connect(u32, u32, Vec<bool>),
    ConnectUnmask(u32, u32, Vec<bool>),
    /// Type, vector, whether it is masked now.
    Mask(u32, u32, bool),
    /// The client has left.
    Stop,
}

pub struct TestDevice {
    state: Arc<Mutex<State>>,
    regions: Vec<Region>,
    irqs: Vec<Irq>,
    storage: Vec<u8>,
    doorbells: Vec<EventFd>,
    feature: Vec<u8>,
    /// There when the device migrates; such a device also logs its DMA.
    migration: Option<TestMigration>,
    /// There when the device keeps a journal.
    journal: Option<TestJournal>,
}

fn backed(size: u64, offset: u64, areas: Vec<(u64, u64)>) -> Region {
    let fd: OwnedFd = super::memfd(offset + size);
    Region { mapping: Some(RegionMapping { fd, offset, areas }), ..Region::messages(size) }
}

impl TestDevice {
    pub fn new(state: Arc<Mutex<State>>) -> Self {
        let many = (0..MANY).map(|i| (i * 0x2000, 0x1000)).collect();
        let regions = vec![
            Region::messages(MESSAGES_SIZE),
            backed(0x8000, SPARSE_OFFSET, SPARSE_AREAS.into()),
            backed(0x3000, 0, Vec::new()),
            backed(MANY * 0x2000, 0, many),
            Region { size: 0x100, readable: true, ..Region::default() },
            Region::default(),
            Region::default(),
            Region::messages(256),
            Region::default(),
            Region { region_type: Some(REGION_TYPE), ..Region::messages(64) },
            Region { region_type: Some(REGION_TYPE), ..backed(0x8000, SPARSE_OFFSET, SPARSE_AREAS.into()) },
        ];
        let mut irqs = vec![Irq::default(); pci::NUM_IRQS as usize];
        let intx = wire::IRQ_EVENTFD | wire::IRQ_MASKABLE | wire::IRQ_AUTOMASKED;
        irqs[pci::INTX_IRQ as usize] = Irq { count: 1, flags: intx };
        irqs[pci::MSIX_IRQ as usize] = Irq { count: VECTORS, flags: wire::IRQ_EVENTFD };
        let doorbells = (0..2).map(|_| EventFd::new().unwrap()).collect();
        let storage = vec![0; usize::try_from(MESSAGES_SIZE).unwrap()];
        Self { state, regions, irqs, storage, doorbells, feature: Vec::new(), migration: None, journal: None }
    }

    /// The same, but it migrates.
    pub fn migrating(state: Arc<Mutex<State>>, pre_copy: bool) -> Self {
        Self { migration: Some(TestMigration::new(state.clone(), pre_copy)), ..Self::new(state) }
    }

    /// The same, but it keeps a journal.
    pub fn journaled(state: Arc<Mutex<State>>) -> Self {
        Self { journal: Some(TestJournal::new(state.clone())), ..Self::new(state) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn pass_on(&self, call: PassedOn) -> Result<(), Errno> {
        let mut state = self.state();
        state.passed_on.push(call);
        state.refusal.map_or(Ok(()), Err)
    }
}

fn are_there(eventfds: &[Option<BorrowedFd<'_>>]) -> Vec<bool> {
    eventfds.iter().map(Option::is_some).collect()
}

impl Device for TestDevice {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn irqs(&self) -> &[Irq] {
        &self.irqs
    }

    fn connected(&mut self, interrupts: &Arc<Interrupts>) {
        let mut state = self.state();
        state.connected += 1;
        state.interrupts = Some(interrupts.clone());
    }

    fn memory_changed(&mut self, memory: &Memory) {
        self.state().memory = memory.clone();
    }

    fn map(&mut self, range: &DmaRange<'_>) -> Result<(), Errno> {
        let &DmaRange { address, size, host, readable, writable, .. } = range;
        assert!(!self.state().memory.is_readable(address, 1), "it is shown before it is accepted");
        if let Some(host) = host.filter(|_| readable) {
            // SAFETY: mapped, and readable.
            unsafe { host.read_volatile() };
        }
        self.pass_on(PassedOn::Map(address, size, host.is_some(), (readable, writable)))
    }

    fn unmap(&mut self, range: &DmaRange<'_>) {
        assert!(!self.state().memory.is_readable(range.address, 1), "it is taken back while it is shown");
        if let Some(host) = range.host.filter(|_| range.readable) {
            // SAFETY: still mapped, and readable.
            unsafe { host.read_volatile() };
        }
        // Nothing can be refused here.
        let _ = self.pass_on(PassedOn::Unmap(range.address, range.size));
    }

    fn stop(&mut self) {
        // Nothing can be refused here.
        let _ = self.pass_on(PassedOn::Stop);
    }

    fn connect(&mut self, irq: u32, start: u32, eventfds: &[Option<BorrowedFd<'_>>]) -> Result<(), Errno> {
        self.pass_on(PassedOn::Connect(irq, start, are_there(eventfds)))
    }

    fn connect_unmask(&mut self, irq: u32, start: u32, eventfds: &[Option<BorrowedFd<'_>>]) -> Result<(), Errno> {
        if !self.state().unmasks_by_eventfd {
            return Err(Errno::EINVAL);
        }
        self.pass_on(PassedOn::ConnectUnmask(irq, start, are_there(eventfds)))
    }

    fn mask(&mut self, irq: u32, vector: u32, masked: bool) -> Result<(), Errno> {
        self.pass_on(PassedOn::Mask(irq, vector, masked))
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        assert!(!data.is_empty(), "an empty read reached the device");
        match region {
            MESSAGES if offset == BAD_OFFSET => return Err(Errno::EIO),
            MESSAGES => {
                let start = usize::try_from(offset).unwrap();
                data.copy_from_slice(&self.storage[start..start + data.len()]);
            }
            _ => data.fill(u8::try_from(region).unwrap()),
        }
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        assert!(!data.is_empty(), "an empty write reached the device");
        if region == MESSAGES {
            if offset == BAD_OFFSET {
                return Err(Errno::EIO);
            }
            if offset == COPY_OFFSET {
                let memory = self.state().memory.clone();
                let field = |at: usize| u64::from_ne_bytes(data[at..at + 8].try_into().unwrap());
                return copy(&memory, field(0), field(8)).map_err(|_| Errno::EFAULT);
            }
            let start = usize::try_from(offset).unwrap();
            self.storage[start..start + data.len()].copy_from_slice(data);
        }
        self.state().writes.push((region, offset, data.to_vec()));
        Ok(())
    }

    fn io_fds(&self, region: u32) -> Vec<IoFd<'_>> {
        let io_fd =
            |offset, size, kind, fd: usize| IoFd { offset, size, kind, pio: false, fd: self.doorbells[fd].as_fd() };
        if region == WHOLE {
            let ioregionfd = |user_data, posted_writes| IoFdKind::Ioregionfd { user_data, posted_writes };
            return vec![
                io_fd(0, 8, ioregionfd(1, true), 0),
                IoFd { pio: true, ..io_fd(0x10, 4, ioregionfd(u64::MAX, false), 1) },
                io_fd(0x20, 0, ioregionfd(3, false), 0),
                IoFd { pio: true, ..io_fd(0x30, 2, IoFdKind::Ioeventfd { datamatch: Some(9) }, 0) },
            ];
        }
        if region != MESSAGES {
            return Vec::new();
        }
        vec![
            io_fd(0x100, 4, IoFdKind::Ioeventfd { datamatch: Some(7) }, 0),
            io_fd(0x200, 0, IoFdKind::Ioeventfd { datamatch: None }, 1),
        ]
    }

    fn unmasked(&mut self, irq: u32) {
        self.state().unmasked.push(irq);
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        self.migration.as_mut().map(|migration| migration as &mut dyn Migration)
    }

    fn journal(&mut self) -> Option<&mut dyn Journaled> {
        self.journal.as_mut().map(|journal| journal as &mut dyn Journaled)
    }

    fn logs_dma(&self) -> bool {
        self.migration.is_some()
    }

    /// 101 can be read, 102 also changed, 103 is longer than a page, 104 is its request, 105 is longer than a message.
    fn feature(&self, index: u16) -> Option<Feature> {
        (101..=105).contains(&index).then_some(Feature { get: true, set: index == 102 })
    }

    fn get_feature(&mut self, index: u16, request: &[u8]) -> Result<Vec<u8>, Errno> {
        Ok(match index {
            101 => vec![1; 8],
            102 => self.feature.clone(),
            103 => vec![3; 10_000],
            104 => request.to_vec(),
            _ => vec![5; (1 << 20) + 1],
        })
    }

    fn set_feature(&mut self, index: u16, data: &[u8]) -> Result<(), Errno> {
        assert_eq!(index, 102);
        self.feature = data.to_vec();
        Ok(())
    }

    fn reset(&mut self) {
        self.storage.fill(0);
        if let Some(migration) = &mut self.migration {
            migration.reset();
        }
        self.state().resets += 1;
    }

    fn disconnected(&mut self) {
        let mut state = self.state();
        state.disconnected += 1;
        state.interrupts = None;
    }
}

/// Copies client memory to right behind.
pub fn copy(memory: &Memory, address: u64, length: u64) -> Result<(), MemoryError> {
    let mut data = vec![0; usize::try_from(length).unwrap()];
    memory.read(address, &mut data)?;
    memory.write(address + length, &data)
}
