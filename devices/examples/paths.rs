//! A device with the same registers behind every path that an access can take, so that the paths can be compared.
//!
//! Each page of BAR 0 has registers of 32 bits: at 0 one that returns what was written to it last, and at 4 the number
//! of writes to it; at 8 and 12 two that all pages have in common, a word that anybody writes, and a number that is one
//! higher each time it is read. How a page is offered is all that differs ([`Offer`]); what the client does not take is
//! accessed by message and works the same. Two pages cannot keep their promise: who rings a doorbell by eventfd tells no
//! value, so the first register says what the common word was then; and memory counts nothing, but the common word is in it.
//!
//!     paths /run/paths.sock &
//!     outrigger run --kernel vmlinuz --device socket=/run/paths.sock --show-devices
//!
//! or, as Outrigger starts it itself:
//!
//!     outrigger run --kernel vmlinuz --device program=./paths --show-devices

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
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
const BAR_SIZE: u32 = 0x1_0000;

/// How a page is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    Message,
    Ioregionfd(SocketType, Writes),
    /// As another page, and on its descriptor.
    OnDescriptorOf(usize, Writes),
    Doorbell,
    Mapped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    Answered,
    Posted,
}

/// The pages, from the start of the BAR.
const PAGES: [Offer; 9] = [
    Offer::Message,
    Offer::Ioregionfd(SocketType::Stream, Writes::Answered),
    Offer::Ioregionfd(SocketType::Seqpacket, Writes::Answered),
    Offer::Ioregionfd(SocketType::Stream, Writes::Posted),
    Offer::Ioregionfd(SocketType::Seqpacket, Writes::Posted),
    Offer::Doorbell,
    Offer::Mapped,
    Offer::OnDescriptorOf(1, Writes::Posted),
    Offer::OnDescriptorOf(2, Writes::Posted),
];
const DOORBELL_PAGE: usize = 5;
const MAPPED_PAGE: u64 = 6;

/// Offsets in a page.
const VALUE: u64 = 0;
const WRITES: u64 = 4;
const COMMON: u64 = 8;
const TICKET: u64 = 12;

/// A page's own registers. No lock: each is a word by itself.
#[derive(Debug, Default)]
struct Page {
    value: AtomicU32,
    writes: AtomicU32,
}

/// All registers.
#[derive(Debug)]
struct Registers {
    pages: [Page; PAGES.len()],
    tickets: AtomicU32,
    /// The file that the guest maps.
    mapped: File,
}

impl Registers {
    fn read(&self, page: usize, offset: u64) -> u32 {
        match (offset, self.pages.get(page)) {
            (VALUE, Some(page)) => page.value.load(Ordering::Acquire),
            (WRITES, Some(page)) => page.writes.load(Ordering::Acquire),
            (COMMON, Some(_)) => self.common(),
            (TICKET, Some(_)) => self.tickets.fetch_add(1, Ordering::AcqRel),
            _ => 0,
        }
    }

    fn write(&self, page: usize, offset: u64, value: u32) {
        match offset {
            VALUE if page == DOORBELL_PAGE => self.rung(1),
            VALUE => self.count(page, value, 1),
            COMMON if page < PAGES.len() => {
                let written = self.mapped.write_all_at(&value.to_ne_bytes(), MAPPED_PAGE * PAGE + COMMON);
                written.unwrap_or_else(|error| eprintln!("paths: writing its own memory: {error}"));
            }
            _ => {}
        }
    }

    fn common(&self) -> u32 {
        let mut word = [0xff; 4];
        let read = self.mapped.read_exact_at(&mut word, MAPPED_PAGE * PAGE + COMMON);
        read.unwrap_or_else(|error| eprintln!("paths: reading its own memory: {error}"));
        u32::from_ne_bytes(word)
    }

    fn rung(&self, times: u32) {
        self.count(DOORBELL_PAGE, self.common(), times);
    }

    fn count(&self, page: usize, value: u32, times: u32) {
        if let Some(page) = self.pages.get(page) {
            page.value.store(value, Ordering::Release);
            page.writes.fetch_add(times, Ordering::AcqRel);
        }
    }
}

/// All registers, for the thread of an ioregionfd. `user_data` is the number of the page.
struct Access(Arc<Registers>);

impl Handler for Access {
    fn read(&mut self, user_data: u64, offset: u64, _size: Size) -> u64 {
        self.0.read(number(user_data), offset).into()
    }

    fn write(&mut self, user_data: u64, offset: u64, size: Size, data: u64) {
        self.0.write(number(user_data), offset, first_word(&data.to_le_bytes()[..size.bytes()]));
    }
}

/// Of a page; none has the highest one.
fn number(page: u64) -> usize {
    usize::try_from(page).unwrap_or(usize::MAX)
}

/// The first four bytes, or as many as there are.
fn first_word(data: &[u8]) -> u32 {
    data.iter().take(4).rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

/// The device.
pub struct Paths {
    config: ConfigSpace,
    regions: [Region; 8],
    registers: Arc<Registers>,
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
        let areas = vec![(MAPPED_PAGE * PAGE, PAGE)];
        let mut regions: [Region; 8] = Default::default();
        regions[BAR0_REGION as usize] = Region {
            mapping: Some(RegionMapping { fd: mapped.try_clone()?.into(), offset: 0, areas }),
            ..Region::messages(BAR_SIZE.into())
        };
        regions[CONFIG_REGION as usize] = Region::messages(256);
        let registers = Arc::new(Registers { pages: Default::default(), tickets: AtomicU32::new(0), mapped });
        let doorbell = EventFd::new(0)?;
        let (counted, rung) = (Arc::clone(&registers), doorbell.try_clone()?);
        Builder::new().name("doorbell".into()).spawn(move || {
            while let Ok(rings) = rung.read() {
                counted.rung(u32::try_from(rings).unwrap_or(u32::MAX));
            }
        })?;
        Ok(Self { config, regions, registers, doorbell, endpoints: Vec::new() })
    }

    fn endpoint(&self, page: usize) -> Option<io::Result<(usize, Endpoint)>> {
        let Offer::Ioregionfd(kind, _) = PAGES[page] else { return None };
        let endpoint = Endpoint::start(&format!("page-{page}"), kind, Access(Arc::clone(&self.registers)));
        Some(endpoint.map(|endpoint| (page, endpoint)))
    }

    fn io_fd<'a>(&'a self, page: usize) -> Option<IoFd<'a>> {
        let ioregionfd = |on: usize, writes: Writes| {
            let (_, endpoint) = self.endpoints.iter().find(|(of, _)| *of == on)?;
            let kind = IoFdKind::Ioregionfd { user_data: page as u64, posted_writes: writes == Writes::Posted };
            Some((PAGE, kind, endpoint.as_fd()))
        };
        let (size, kind, fd) = match PAGES[page] {
            Offer::Message | Offer::Mapped => return None,
            Offer::Ioregionfd(_, writes) => ioregionfd(page, writes)?,
            Offer::OnDescriptorOf(other, writes) => ioregionfd(other, writes)?,
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
        match offset / PAGE {
            _ if region == CONFIG_REGION => self.config.read(number(offset), data),
            MAPPED_PAGE => self.registers.mapped.read_exact_at(data, offset).map_err(|_| Errno::EIO)?,
            page => {
                let word = self.registers.read(number(page), offset % PAGE).to_le_bytes();
                data.iter_mut().zip(word).for_each(|(byte, value)| *byte = value);
            }
        }
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match offset / PAGE {
            _ if region == CONFIG_REGION => {
                // No capability of it asks for a reset.
                self.config.write(number(offset), data);
            }
            MAPPED_PAGE => self.registers.mapped.write_all_at(data, offset).map_err(|_| Errno::EIO)?,
            page => self.registers.write(number(page), offset % PAGE, first_word(data)),
        }
        Ok(())
    }

    fn io_fds(&self, region: u32) -> Vec<IoFd<'_>> {
        if region == BAR0_REGION { (0..PAGES.len()).filter_map(|page| self.io_fd(page)).collect() } else { Vec::new() }
    }

    fn reset(&mut self) {
        self.config.reset();
        self.registers.tickets.store(0, Ordering::Release);
        for page in &self.registers.pages {
            page.value.store(0, Ordering::Release);
            page.writes.store(0, Ordering::Release);
        }
    }

    fn disconnected(&mut self) {
        self.endpoints.clear();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let mut device = Paths::new()?;
    let listener = match arguments.as_slice() {
        [path] => Listener::bind(path.as_ref())?,
        // Outrigger has started it: `--options TEXT --fd 0` (docs/DEVICE-PROGRAMS.md).
        [_, _, fd, number] if fd == "--fd" && number == "0" => {
            let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
            return Ok(serve(&mut device, socket, &Options::default())?);
        }
        _ => return Err("usage: paths SOCKET".into()),
    };
    loop {
        let served = serve(&mut device, listener.accept()?, &Options::default());
        served.unwrap_or_else(|error| eprintln!("paths: {error}"));
    }
}
