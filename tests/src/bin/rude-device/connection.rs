//! A client's connection, on which a device is honest until a manner takes over.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_protocol::command::Command;
use outrigger_protocol::pci::BAR0_REGION;
use outrigger_protocol::wire;
use outrigger_tests::raw::{self, Message};
use zerocopy::IntoBytes;

use crate::device::{Device, Offers};

/// One client, and the device that it has.
pub struct Connection {
    /// The main socket.
    pub stream: UnixStream,
    /// The device underneath.
    pub device: Device,
    /// Held while a message is sent, since two threads may.
    pub sending: Arc<Mutex<()>>,
    next_id: u16,
}

impl Connection {
    /// With a client that has just connected.
    ///
    /// # Errors
    /// The system's.
    pub fn new(stream: UnixStream, offers: &'static Offers) -> io::Result<Self> {
        Ok(Self { stream, device: Device::new(offers)?, sending: Arc::default(), next_id: 0 })
    }

    /// The next request; replies to what this device has asked are dropped. `None`: the client has left.
    ///
    /// # Errors
    /// The connection's.
    pub fn request(&mut self) -> io::Result<Option<Message>> {
        while let Some(mut message) = raw::receive(&self.stream)? {
            if !message.header.is_reply() {
                self.device.keep(&mut message);
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Answers as an honest device does, with more descriptors than that if wanted.
    ///
    /// # Errors
    /// The connection's.
    pub fn answer_with(&mut self, request: &Message, more: &[RawFd]) -> io::Result<()> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        match self.device.answer(request) {
            Ok(_) if request.header.flags & wire::FLAG_NO_REPLY != 0 => Ok(()),
            Ok((payload, fds)) => {
                let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).chain(more.iter().copied()).collect();
                raw::send(&self.stream, &raw::reply_bytes(request, &payload), &fds)
            }
            Err(errno) => raw::refuse(&self.stream, request, errno),
        }
    }

    /// Answers as an honest device does.
    ///
    /// # Errors
    /// The connection's.
    pub fn answer(&mut self, request: &Message) -> io::Result<()> {
        self.answer_with(request, &[])
    }

    /// Is honest until `wanted` comes, which is not answered. `None`: the client has left.
    ///
    /// # Errors
    /// The connection's.
    pub fn until(&mut self, wanted: impl Fn(&Message) -> bool) -> io::Result<Option<Message>> {
        while let Some(request) = self.request()? {
            if wanted(&request) {
                return Ok(Some(request));
            }
            self.answer(&request)?;
        }
        Ok(None)
    }

    /// Is honest until a driver uses the device, and answers that, too. False: the client has left.
    ///
    /// # Errors
    /// The connection's.
    pub fn until_used(&mut self) -> io::Result<bool> {
        let Some(request) = self.until(used)? else { return Ok(false) };
        self.answer(&request)?;
        Ok(true)
    }

    /// Is honest until the client leaves.
    ///
    /// # Errors
    /// The connection's.
    pub fn serve(&mut self) -> io::Result<()> {
        self.until(|_| false).map(|_| ())
    }

    /// Asks for `count` bytes at the start of guest memory, by the twin socket if there is one.
    ///
    /// # Errors
    /// The connection's.
    pub fn dma_read(&mut self, count: u64, fds: &[RawFd]) -> io::Result<()> {
        self.next_id = self.next_id.wrapping_add(1);
        let access = wire::DmaAccess { address: 0, count };
        let stream = self.device.twin.as_ref().map_or(&self.stream, |(_, ours)| ours);
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        raw::command(stream, self.next_id, Command::DmaRead, access.as_bytes(), fds)
    }
}

/// Whether a driver accesses registers.
pub fn used(request: &Message) -> bool {
    (request.is(Command::RegionRead) || request.is(Command::RegionWrite)) && request.u32_at(8) == BAR0_REGION
}
