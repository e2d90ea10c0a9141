//! A client of a device process that drives a virtio disk by hand: message by message, with memory, rings and eventfds that it can treat
//! as it likes. One queue, one request at a time (virtio 1.2, 2.7, 4.1 and 5.2).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use outrigger_protocol::command::Command;
use outrigger_protocol::pci::{CONFIG_REGION, MSIX_IRQ};
use outrigger_protocol::wire;
use zerocopy::IntoBytes;

use crate::process::eventually;
use crate::raw::{self, Message};

/// Bytes of memory, from address 0 on.
pub const MEMORY: u64 = 1 << 20;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x5000;
const STATUS_BYTE: u64 = 0x6000;
const QUEUE_SIZE: u16 = 8;
const SECTOR: u32 = 512;
/// Longer than a request takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Registers of the common configuration structure (4.1.4.3).
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURES: u64 = 12;
const STATUS: u64 = 20;
const QUEUE: u64 = 22;
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// Where one of the device's structures is: region and offset.
#[derive(Clone, Copy, Default)]
struct Place(u32, u64);

/// See the [module](self).
pub struct Driver {
    /// The connection.
    pub stream: UnixStream,
    /// The memory that the device is shown.
    pub memory: File,
    /// The eventfd of the device's only vector.
    pub eventfd: EventFd,
    next_id: u16,
    requests: u16,
    common: Place,
    notify: Place,
}

impl Driver {
    /// Connects, and negotiates.
    ///
    /// # Errors
    /// The connection's.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let memory = File::from(memfd_create("driver", MFdFlags::MFD_CLOEXEC)?);
        memory.set_len(MEMORY)?;
        let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let (common, notify) = (Place::default(), Place::default());
        let mut driver = Self { stream, memory, eventfd, next_id: 0, requests: 0, common, notify };
        let version = [&[0, 0, 1, 0], &br#"{"capabilities":{"max_msg_fds":64}}"#[..], &[0]].concat();
        driver.ask(Command::Version, &version, &[])?;
        Ok(driver)
    }

    /// Sends a command and takes its reply.
    ///
    /// # Errors
    /// The connection's; or the device refuses.
    pub fn ask(&mut self, command: Command, payload: &[u8], fds: &[RawFd]) -> io::Result<Message> {
        self.next_id = self.next_id.wrapping_add(1);
        raw::command(&self.stream, self.next_id, command, payload, fds)?;
        loop {
            let message = raw::receive(&self.stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if message.header.is_reply() && message.header.message_id == self.next_id {
                return match message.header.flags & wire::FLAG_ERROR {
                    0 => Ok(message),
                    _ => Err(io::Error::other(format!("{command:?} is refused: errno {}", message.header.error))),
                };
            }
        }
    }

    /// Makes all memory available to the device: to map, or by messages alone.
    ///
    /// # Errors
    /// The connection's.
    pub fn map(&mut self, shared: bool) -> io::Result<()> {
        let flags = wire::DMA_READABLE | wire::DMA_WRITEABLE;
        let request = wire::DmaMap { argsz: 32, flags, offset: 0, address: 0, size: MEMORY };
        let memory = self.memory.as_raw_fd();
        self.ask(Command::DmaMap, request.as_bytes(), if shared { std::slice::from_ref(&memory) } else { &[] })?;
        Ok(())
    }

    /// Gives it the eventfd for the first MSI-X vector.
    ///
    /// # Errors
    /// The connection's.
    pub fn connect_interrupt(&mut self, fd: RawFd) -> io::Result<()> {
        let flags = wire::IRQ_SET_DATA_EVENTFD | wire::IRQ_SET_ACTION_TRIGGER;
        let request = wire::IrqSet { argsz: 20, flags, index: MSIX_IRQ, start: 0, count: 1 };
        self.ask(Command::DeviceSetIrqs, request.as_bytes(), &[fd])?;
        Ok(())
    }

    /// Reads `count` bytes of a region.
    ///
    /// # Errors
    /// The connection's.
    pub fn read(&mut self, region: u32, offset: u64, count: u32) -> io::Result<Vec<u8>> {
        let access = wire::RegionAccess { offset, region, count };
        let reply = self.ask(Command::RegionRead, access.as_bytes(), &[])?;
        Ok(reply.payload.get(16..).unwrap_or_default().to_vec())
    }

    /// Writes to a region.
    ///
    /// # Errors
    /// The connection's.
    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let count = u32::try_from(data.len()).map_err(io::Error::other)?;
        let access = wire::RegionAccess { offset, region, count };
        self.ask(Command::RegionWrite, &[access.as_bytes(), data].concat(), &[])?;
        Ok(())
    }

    /// Takes the descriptors of the queues' doorbells, as a VMM does for KVM.
    ///
    /// # Errors
    /// The connection's.
    pub fn doorbells(&mut self) -> io::Result<Vec<OwnedFd>> {
        let mut fds = Vec::new();
        for region in 0..6 {
            let request = wire::RegionIoFds { argsz: 1 << 16, flags: 0, index: region, count: 0 };
            if let Ok(mut reply) = self.ask(Command::DeviceGetRegionIoFds, request.as_bytes(), &[]) {
                fds.append(&mut reply.fds);
            }
        }
        Ok(fds)
    }

    /// Resets the device, and starts its first queue with the first MSI-X vector.
    ///
    /// # Errors
    /// The connection's; or the device is not one for this driver.
    pub fn start(&mut self) -> io::Result<()> {
        let config = self.read(CONFIG_REGION, 0, 256)?;
        self.common = structure(&config, 1)?;
        self.notify = structure(&config, 2)?;
        self.register(STATUS, &[0])?;
        let common = self.common;
        let mut reset = || self.read(common.0, common.1 + STATUS, 1).is_ok_and(|status| status == [0]);
        if !eventually(PATIENCE, &mut reset) {
            return Err(io::Error::other("it does not reset"));
        }
        self.register(STATUS, &[ACKNOWLEDGE | DRIVER])?;
        for (word, accepted) in [(0u32, 0u32), (1, 1)] {
            self.register(DRIVER_FEATURE_SELECT, &word.to_le_bytes())?;
            self.register(DRIVER_FEATURES, &accepted.to_le_bytes())?;
        }
        self.register(STATUS, &[ACKNOWLEDGE | DRIVER | FEATURES_OK])?;
        self.register(QUEUE, &[0, 0])?;
        self.register(QUEUE + 2, &QUEUE_SIZE.to_le_bytes())?;
        self.register(QUEUE + 4, &[0, 0])?;
        for (at, address) in [(0, DESCRIPTORS), (8, AVAILABLE), (16, USED)] {
            self.register(QUEUE + 10 + at, &address.to_le_bytes())?;
        }
        self.memory.write_all_at(&[0; 64], AVAILABLE)?;
        self.memory.write_all_at(&[0; 128], USED)?;
        self.requests = 0;
        self.register(QUEUE + 6, &[1, 0])?;
        self.register(STATUS, &[ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK])
    }

    /// Makes a request for the first sector available, and rings the doorbell.
    ///
    /// # Errors
    /// The connection's.
    pub fn submit(&mut self) -> io::Result<()> {
        self.memory.write_all_at(&[0; 16], HEADER)?;
        self.memory.write_all_at(&[0xff], STATUS_BYTE)?;
        let chain = [(HEADER, 16u32, 1u16), (DATA, SECTOR, 3), (STATUS_BYTE, 1, 2)];
        for (index, (address, length, flags)) in (0u16..).zip(chain) {
            let entry =
                [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &(index + 1).to_le_bytes()];
            self.memory.write_all_at(&entry.concat(), DESCRIPTORS + u64::from(index) * 16)?;
        }
        self.requests = self.requests.wrapping_add(1);
        self.memory.write_all_at(&self.requests.to_le_bytes(), AVAILABLE + 2)?;
        self.ring()
    }

    /// Rings the doorbell, whatever there is to find.
    ///
    /// # Errors
    /// The connection's.
    pub fn ring(&mut self) -> io::Result<()> {
        let Place(region, offset) = self.notify;
        self.write(region, offset, &[0, 0])
    }

    /// Whether the last request completes, and does so well.
    pub fn completes(&mut self) -> bool {
        let mut used = [0; 2];
        let mut status = [0xff];
        eventually(PATIENCE, || {
            let read = self.memory.read_exact_at(&mut used, USED + 2);
            read.is_ok() && u16::from_le_bytes(used) == self.requests
        }) && self.memory.read_exact_at(&mut status, STATUS_BYTE).is_ok()
            && status == [0]
    }

    /// A register of the common configuration structure.
    fn register(&mut self, register: u64, value: &[u8]) -> io::Result<()> {
        let Place(region, offset) = self.common;
        // Registers of 64 bits are two of 32 (4.1.3.1).
        for (at, part) in (0u64..).step_by(4).zip(value.chunks(4)) {
            self.write(region, offset + register + at, part)?;
        }
        Ok(())
    }
}

/// Where the structure of this kind is.
fn structure(config: &[u8], kind: u8) -> io::Result<Place> {
    let byte = |at: usize| config.get(at).copied().unwrap_or(0);
    let mut at = usize::from(byte(0x34));
    for _ in 0..48 {
        if byte(at) == 9 && byte(at + 3) == kind {
            let offset = u32::from_le_bytes([8, 9, 10, 11].map(|byte_of| byte(at + byte_of)));
            return Ok(Place(byte(at + 4).into(), offset.into()));
        }
        at = usize::from(byte(at + 1));
    }
    Err(io::Error::other("it is no virtio device"))
}
