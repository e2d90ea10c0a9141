//! A device with the same registers behind every path that an access can take, so that the paths can be compared.
//!
//! Each page of BAR 0 has a 32-bit register at 0, which returns what was written to it last, at 4 the number of writes to
//! it, and at 8 how often this one was read before. How a page is offered is all that differs ([`Offer`]); what the
//! client does not take is accessed by message and works the same. Two pages cannot keep their promise: who rings a
//! doorbell by eventfd tells no value, and nobody counts writes to memory.
//!
//!     paths /run/paths.sock &
//!     outrigger run --kernel vmlinuz --device socket=/run/paths.sock --show-devices

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::Builder;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use outrigger_protocol::ioregionfd::{Endpoint, Handler, Size, SocketType};
use outrigger_protocol::pci::{BAR0_REGION, CONFIG_REGION};
use outrigger_protocol::server::{
    ConfigSpace, Device, Interrupts, IoFd, IoFdKind, Irq, Listener, Memory, Options, Region, RegionMapping, serve,
};
use vmm_sys_util::eventfd::EventFd;

const PAGE: u64 = 0x1000;
const BAR_SIZE: u32 = 0x8000;

/// How a page is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    Message,
    Ioregionfd(SocketType, Writes),
    Doorbell,
    Mapped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    Answered,
    Posted,
}

/// The pages, from the start of the BAR.
const PAGES: [Offer; 7] = [
    Offer::Message,
    Offer::Ioregionfd(SocketType::Stream, Writes::Answered),
    Offer::Ioregionfd(SocketType::Seqpacket, Writes::Answered),
    Offer::Ioregionfd(SocketType::Stream, Writes::Posted),
    Offer::Ioregionfd(SocketType::Seqpacket, Writes::Posted),
    Offer::Doorbell,
    Offer::Mapped,
];

/// The registers of a page. No lock: each is a word by itself.
#[derive(Debug, Default)]
struct Registers {
    value: AtomicU32,
    writes: AtomicU32,
    reads: AtomicU32,
}

impl Registers {
    fn read(&self, offset: u64) -> u32 {
        match offset {
            0 => self.value.load(Ordering::Acquire),
            4 => self.writes.load(Ordering::Acquire),
            8 => self.reads.fetch_add(1, Ordering::AcqRel),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, value: u32) {
        if offset == 0 {
            self.value.store(value, Ordering::Release);
            self.writes.fetch_add(1, Ordering::AcqRel);
        }
    }
}

type Pages = Arc<[Registers; PAGES.len()]>;

/// One page, for the thread of its ioregionfd. `user_data` means nothing here, as each page has its own descriptor.
struct Page(Pages, usize);

impl Handler for Page {
    fn read(&mut self, _user_data: u64, offset: u64, _size: Size) -> u64 {
        self.0[self.1].read(offset).into()
    }

    fn write(&mut self, _user_data: u64, offset: u64, size: Size, data: u64) {
        self.0[self.1].write(offset, first_word(&data.to_le_bytes()[..size.bytes()]));
    }
}

/// The first four bytes, or as many as there are.
fn first_word(data: &[u8]) -> u32 {
    data.iter().take(4).rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

/// The device.
pub struct Paths {
    config: ConfigSpace,
    regions: [Region; 8],
    pages: Pages,
    mapped: File,
    doorbell: EventFd,
    /// This client's, by page.
    endpoints: Vec<(usize, Endpoint)>,
}

impl Paths {
    /// After power-on.
    pub fn new() -> io::Result<Self> {
        let mapped = File::from(memfd_create(c"paths", MFdFlags::MFD_CLOEXEC)?);
        mapped.set_len(BAR_SIZE.into())?;
        let config = ConfigSpace::new(0x1af4, 0x10f1, 0x08_80_00).with_bar(BAR0_REGION, BAR_SIZE);
        let offered = PAGES.iter().zip(0..).filter(|(offer, _)| **offer == Offer::Mapped);
        let areas = offered.map(|(_, page)| (page * PAGE, PAGE)).collect();
        let mut regions: [Region; 8] = Default::default();
        regions[BAR0_REGION as usize] = Region {
            mapping: Some(RegionMapping { fd: mapped.try_clone()?.into(), offset: 0, areas }),
            ..Region::messages(BAR_SIZE.into())
        };
        regions[CONFIG_REGION as usize] = Region::messages(256);
        let (pages, doorbell) = (Pages::default(), EventFd::new(0)?);
        let (counted, rung) = (Arc::clone(&pages), doorbell.try_clone()?);
        Builder::new().name("doorbell".into()).spawn(move || {
            for (registers, _) in counted.iter().zip(PAGES).filter(|(_, offer)| *offer == Offer::Doorbell) {
                while let Ok(rings) = rung.read() {
                    registers.writes.fetch_add(u32::try_from(rings).unwrap_or(u32::MAX), Ordering::AcqRel);
                }
            }
        })?;
        Ok(Self { config, regions, pages, mapped, doorbell, endpoints: Vec::new() })
    }

    fn endpoint(&self, page: usize) -> Option<io::Result<(usize, Endpoint)>> {
        let Offer::Ioregionfd(kind, _) = PAGES[page] else { return None };
        let endpoint = Endpoint::start(&format!("page-{page}"), kind, Page(Arc::clone(&self.pages), page));
        Some(endpoint.map(|endpoint| (page, endpoint)))
    }

    /// The page at an offset of the BAR, and the offset in it.
    fn page(&self, offset: u64) -> Option<(Offer, &Registers, u64)> {
        let page = usize::try_from(offset / PAGE).ok()?;
        Some((*PAGES.get(page)?, &self.pages[page], offset % PAGE))
    }

    fn io_fd<'a>(&'a self, page: usize) -> Option<IoFd<'a>> {
        let (size, kind, fd) = match PAGES[page] {
            Offer::Message | Offer::Mapped => return None,
            Offer::Ioregionfd(_, writes) => {
                let (_, endpoint) = self.endpoints.iter().find(|(of, _)| *of == page)?;
                let kind = IoFdKind::Ioregionfd { user_data: 0, posted_writes: writes == Writes::Posted };
                (PAGE, kind, endpoint.as_fd())
            }
            Offer::Doorbell => {
                // SAFETY: the eventfd lives as long as `self`, which the result borrows.
                let fd: BorrowedFd<'a> = unsafe { BorrowedFd::borrow_raw(self.doorbell.as_raw_fd()) };
                // Any width of write.
                (0, IoFdKind::Ioeventfd { datamatch: None }, fd)
            }
        };
        Some(IoFd { offset: page as u64 * PAGE, size, kind, pio: false, fd })
    }
}

impl Device for Paths {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn irqs(&self) -> &[Irq] {
        self.config.irqs()
    }

    fn connected(&mut self, _interrupts: &Arc<Interrupts>) {
        let endpoints: io::Result<_> = (0..PAGES.len()).filter_map(|page| self.endpoint(page)).collect();
        self.endpoints = endpoints.unwrap_or_else(|error| {
            eprintln!("paths: no ioregionfds: {error}");
            Vec::new()
        });
    }

    fn memory_changed(&mut self, _memory: &Memory) {}

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        data.fill(0);
        match self.page(offset) {
            _ if region == CONFIG_REGION => self.config.read(usize::try_from(offset).unwrap_or(usize::MAX), data),
            Some((Offer::Mapped, ..)) => self.mapped.read_exact_at(data, offset).map_err(|_| Errno::EIO)?,
            Some((_, registers, at)) => {
                data.iter_mut().zip(registers.read(at).to_le_bytes()).for_each(|(byte, value)| *byte = value);
            }
            None => {}
        }
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match self.page(offset) {
            _ if region == CONFIG_REGION => self.config.write(usize::try_from(offset).unwrap_or(usize::MAX), data),
            Some((Offer::Mapped, ..)) => self.mapped.write_all_at(data, offset).map_err(|_| Errno::EIO)?,
            Some((_, registers, at)) => registers.write(at, first_word(data)),
            None => {}
        }
        Ok(())
    }

    fn io_fds(&self, region: u32) -> Vec<IoFd<'_>> {
        if region == BAR0_REGION { (0..PAGES.len()).filter_map(|page| self.io_fd(page)).collect() } else { Vec::new() }
    }

    fn reset(&mut self) {
        self.config.reset();
        for registers in self.pages.iter() {
            registers.value.store(0, Ordering::Release);
            registers.writes.store(0, Ordering::Release);
            registers.reads.store(0, Ordering::Release);
        }
    }

    fn disconnected(&mut self) {
        self.endpoints.clear();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: paths SOCKET")?;
    let mut device = Paths::new()?;
    let listener = Listener::bind(path.as_ref())?;
    loop {
        let served = serve(&mut device, listener.accept()?, &Options::default());
        served.unwrap_or_else(|error| eprintln!("paths: {error}"));
    }
}
