//! The base of every rude device: an honest PCI function that speaks vfio-user, message by message, so that a manner can
//! answer one of them otherwise.
//!
//! BAR 0 has a page of registers that are reached by messages, a page that can be mapped, and a page behind an ioregionfd; BAR 1 has the
//! MSI-X table. It has an interrupt pin, which it raises when the guest writes to [`RAISE`].

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::memfd::{MFdFlags, memfd_create};
use outrigger_protocol::command::Command;
use outrigger_protocol::ioregionfd::SocketType;
use outrigger_protocol::pci::{BAR0_REGION, CONFIG_REGION, INTX_IRQ, MSIX_IRQ, NUM_IRQS, NUM_REGIONS};
use outrigger_protocol::wire;
use outrigger_tests::raw::Message;
use zerocopy::IntoBytes;

/// Offset in BAR 0: a write raises the interrupt pin and fires every MSI-X vector.
pub const RAISE: u64 = 0x10;
/// Bytes of BAR 0.
pub const BAR0_SIZE: u64 = 0x1_0000;
/// The page of BAR 0 that can be mapped.
pub const MAPPED: u64 = 0x1000;
/// The page of BAR 0 behind an ioregionfd.
pub const IOREGION: u64 = 0x2000;
const PAGE: u64 = 0x1000;
const VECTORS: u32 = 4;
const BAR1_REGION: u32 = 1;
/// Vendor and device; the payload knows it by these.
const ID: u32 = 0x10f3_1af4;
const EINVAL: u32 = 22;

/// A device's offers besides messages.
pub struct Offers {
    /// The server's requests come on a second socket.
    pub twin: bool,
    /// A page that can be mapped, in a file made so.
    pub mapped: Option<fn() -> io::Result<File>>,
    /// Where BAR 0 ends, when it is a large one of 64 bits that can be mapped as a whole.
    pub size: u64,
    /// A page behind an ioregionfd.
    pub ioregionfd: bool,
    /// The most bytes in one message.
    pub transfer: u32,
}

/// Messages alone.
pub const MESSAGES: Offers =
    Offers { twin: false, mapped: None, size: BAR0_SIZE, ioregionfd: false, transfer: 1 << 20 };

/// See the [module](self).
pub struct Device {
    /// Its offers.
    pub offers: &'static Offers,
    /// The file behind the mappable page.
    pub memory: Option<File>,
    /// The client's end of the twin socket, and the device's.
    pub twin: Option<(UnixStream, UnixStream)>,
    /// The client's end of the ioregionfd, and the device's.
    pub ioregionfd: Option<(OwnedFd, OwnedFd)>,
    /// The eventfds of each interrupt type.
    pub eventfds: [Vec<File>; NUM_IRQS as usize],
    config: [u8; 256],
    registers: Vec<u8>,
}

/// The bytes and descriptors of an answer, or the errno value of a refusal.
pub type Answer<'a> = Result<(Vec<u8>, Vec<BorrowedFd<'a>>), u32>;

impl Device {
    /// A device after power-on.
    ///
    /// # Errors
    /// The system's, where it has no memory or descriptors left.
    pub fn new(offers: &'static Offers) -> io::Result<Self> {
        let wide = if offers.size > BAR0_SIZE { 4 } else { 0 };
        let mut config = [0; 256];
        let mut put = |at: usize, value: u32| config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0x00, ID);
        put(0x04, 1 << 20); // a list of capabilities
        put(0x08, 0x08_80_00 << 8); // another base system peripheral
        put(0x10, wide);
        put(0x2c, ID);
        put(0x34, 0x40);
        put(0x3c, 0x100); // INTA
        put(0x40, (VECTORS - 1) << 16 | 0x11); // MSI-X, the last capability
        put(0x44, if wide > 0 { 2 } else { BAR1_REGION });
        put(0x48, 0x800 | if wide > 0 { 2 } else { BAR1_REGION });
        Ok(Self {
            offers,
            memory: offers.mapped.map(|file| file()).transpose()?,
            twin: offers.twin.then(UnixStream::pair).transpose()?,
            ioregionfd: offers.ioregionfd.then(|| SocketType::Seqpacket.pair()).transpose()?,
            eventfds: Default::default(),
            config,
            registers: vec![0; usize::try_from(BAR0_SIZE).map_err(io::Error::other)?],
        })
    }

    /// Does what a request asks for, and says what an honest device would answer.
    pub fn answer(&mut self, request: &Message) -> Answer<'_> {
        match Command::from_number(request.header.command).ok_or(EINVAL)? {
            Command::Version => Ok(self.version()),
            Command::DmaMap | Command::DeviceReset | Command::DeviceSetIrqs => Ok((Vec::new(), Vec::new())),
            Command::DmaUnmap => Ok((request.payload.clone(), Vec::new())),
            Command::DeviceGetInfo => {
                let flags = wire::DEVICE_RESET_SUPPORTED | wire::DEVICE_IS_PCI;
                let info = wire::DeviceInfo { argsz: 16, flags, num_regions: NUM_REGIONS, num_irqs: NUM_IRQS };
                Ok((info.as_bytes().to_vec(), Vec::new()))
            }
            Command::DeviceGetRegionInfo => Ok(self.region_info(request.u32_at(8))),
            Command::DeviceGetRegionIoFds => Ok(self.io_fds(request.u32_at(8))),
            Command::DeviceGetIrqInfo => {
                let index = request.u32_at(8);
                let (count, flags) = match index {
                    INTX_IRQ => (1, wire::IRQ_EVENTFD | wire::IRQ_MASKABLE | wire::IRQ_AUTOMASKED),
                    MSIX_IRQ => (VECTORS, wire::IRQ_EVENTFD),
                    _ => (0, 0),
                };
                Ok((wire::IrqInfo { argsz: 16, flags, index, count }.as_bytes().to_vec(), Vec::new()))
            }
            Command::RegionRead => {
                let (start, bytes) = request
                    .payload
                    .split_at_checked(16)
                    .map(|(access, _)| access)
                    .map_or_else(|| (Vec::new(), Vec::new()), |access| (access.to_vec(), self.read(request)));
                Ok(([start, bytes].concat(), Vec::new()))
            }
            Command::RegionWrite => {
                self.write(request);
                Ok((request.payload.get(..16).unwrap_or_default().to_vec(), Vec::new()))
            }
            _ => Err(EINVAL),
        }
    }

    /// Keeps the eventfds that come with a request.
    pub fn keep(&mut self, request: &mut Message) {
        let flags = request.u32_at(4);
        if !request.is(Command::DeviceSetIrqs) || flags & wire::IRQ_SET_ACTION_TRIGGER == 0 {
            return;
        }
        if let Some(eventfds) = self.eventfds.get_mut(request.u32_at(8) as usize) {
            *eventfds = request.fds.drain(..).map(File::from).collect();
        }
    }

    /// Raises the pin and fires each vector that is connected.
    pub fn fire(&self) {
        for mut eventfd in self.eventfds.iter().flatten() {
            // The only failure is a counter at its maximum.
            let _ = eventfd.write(&1u64.to_ne_bytes());
        }
    }

    fn version(&self) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        let twin = self.twin.as_ref().map_or("", |_| r#","twin_socket":{"supported":true,"fd_index":0}"#);
        let transfer = self.offers.transfer;
        let json = format!(r#"{{"capabilities":{{"max_msg_fds":64,"max_data_xfer_size":{transfer}{twin}}}}}"#);
        let payload = [&[0, 0, 1, 0], json.as_bytes(), &[0]].concat();
        (payload, self.twin.iter().map(|(theirs, _)| theirs.as_fd()).collect())
    }

    fn region_info(&self, index: u32) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        let large = self.offers.size > BAR0_SIZE;
        let access = wire::REGION_READ | wire::REGION_WRITE;
        let size = match index {
            BAR0_REGION => self.offers.size,
            BAR1_REGION if !large => PAGE,
            2 if large => PAGE,
            CONFIG_REGION => 256,
            _ => 0,
        };
        let mut info = wire::RegionInfo { argsz: 32, flags: access, index, cap_offset: 0, size, offset: 0 };
        let Some(memory) = self.memory.as_ref().filter(|_| index == BAR0_REGION) else {
            return (info.as_bytes().to_vec(), Vec::new());
        };
        info.flags |= wire::REGION_MMAP;
        if large {
            return (info.as_bytes().to_vec(), vec![memory.as_fd()]);
        }
        (info.flags, info.cap_offset, info.argsz) = (info.flags | wire::REGION_CAPS, 32, 64);
        let header = wire::CapHeader { id: wire::REGION_CAP_SPARSE_MMAP, version: 1, next: 0 };
        let areas = wire::SparseMmap { nr_areas: 1, reserved: 0 };
        let area = wire::SparseMmapArea { offset: MAPPED, size: PAGE };
        let payload = [info.as_bytes(), header.as_bytes(), areas.as_bytes(), area.as_bytes()].concat();
        (payload, vec![memory.as_fd()])
    }

    fn io_fds(&self, index: u32) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        let offered = self.ioregionfd.as_ref().filter(|_| index == BAR0_REGION);
        let Some((theirs, _)) = offered else {
            return (wire::RegionIoFds { argsz: 16, flags: 0, index, count: 0 }.as_bytes().to_vec(), Vec::new());
        };
        let head = wire::RegionIoFds { argsz: 56, flags: 0, index, count: 1 };
        let kind = wire::IO_FD_IOREGIONFD;
        let entry = wire::IoFd { offset: IOREGION, size: PAGE, fd_index: 0, kind, ..Default::default() };
        ([head.as_bytes(), entry.as_bytes()].concat(), vec![theirs.as_fd()])
    }

    fn read(&self, request: &Message) -> Vec<u8> {
        let (offset, region, count) = access(request);
        let bytes: &[u8] = match region {
            BAR0_REGION => &self.registers,
            CONFIG_REGION => &self.config,
            _ => &[],
        };
        (offset..offset.saturating_add(count)).map(|at| bytes.get(at).copied().unwrap_or(0)).collect()
    }

    fn write(&mut self, request: &Message) {
        let (offset, region, _) = access(request);
        let bytes: &mut [u8] = match region {
            BAR0_REGION => &mut self.registers,
            // The client keeps what of configuration space can be written.
            _ => return,
        };
        for (at, value) in (offset..).zip(request.payload.iter().skip(16)) {
            bytes.get_mut(at).into_iter().for_each(|byte| *byte = *value);
        }
        if offset as u64 == RAISE {
            self.fire();
        }
    }
}

fn access(request: &Message) -> (usize, u32, usize) {
    let offset = usize::try_from(request.u64_at(0)).unwrap_or(usize::MAX);
    (offset, request.u32_at(8), request.u32_at(12).min(1 << 20) as usize)
}

/// Memory that the guest can be shown, as good servers have it.
///
/// # Errors
/// The system's.
pub fn memfd() -> io::Result<File> {
    let file = File::from(memfd_create("rude", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(BAR0_SIZE)?;
    Ok(file)
}
