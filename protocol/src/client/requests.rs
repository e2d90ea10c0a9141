//! A server's requests to its client, and the replies that wait for room on the socket.

use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use zerocopy::IntoBytes;

use super::exported::ExportedMemory;
use crate::codec::Message;
use crate::command::Command;
use crate::socket::Outgoing;
use crate::wire::{self, FLAG_ERROR, HEADER_SIZE, Header, TYPE_REPLY};

/// With this many bytes of replies unsent, no more requests are taken.
const BACKLOG: usize = 1 << 20;

/// Replies that the server has not taken yet.
///
/// A client that is in the middle of sending something else, or whose server is busy sending, cannot wait for room
/// without the two waiting for each other. So it keeps its replies here, and keeps receiving. At most [`BACKLOG`] bytes
/// and one reply are kept.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    sent: usize,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Bytes that the server has not taken yet.
    pub(super) fn unsent(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Whether the server must take replies before it may ask for more.
    pub(super) fn is_full(&self) -> bool {
        self.unsent() >= BACKLOG
    }

    /// Sends what the socket takes without waiting; true when nothing is left.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        while !self.is_empty() {
            let mut rest = Outgoing::new([&self.bytes[self.sent..], &[], &[]], &[]);
            let all = rest.try_send(socket);
            self.sent += rest.sent();
            if !all? {
                if self.sent >= BACKLOG {
                    self.bytes.drain(..self.sent);
                    self.sent = 0;
                }
                return Ok(false);
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(true)
    }

    /// Does what a request asks, and keeps the reply.
    pub(super) fn answer(&mut self, message: &Message<'_>, memory: &ExportedMemory) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER_SIZE]);
        let result = match Command::from_number(message.header.command) {
            _ if !message.fds.is_empty() => Err(Errno::EINVAL),
            Some(Command::DmaRead) => dma_read(message, memory, &mut self.bytes),
            Some(Command::DmaWrite) => dma_write(message, memory, &mut self.bytes),
            _ => Err(Errno::ENOTSUP),
        };
        if message.header.no_reply() {
            self.bytes.truncate(start);
            return;
        }
        let mut header = Header { flags: TYPE_REPLY, error: 0, ..message.header };
        if let Err(errno) = result {
            self.bytes.truncate(start + HEADER_SIZE);
            header.flags |= FLAG_ERROR;
            header.error = (errno as i32).unsigned_abs();
        }
        let size = self.bytes.len() - start;
        header.message_size = u32::try_from(size).expect("a reply is bounded by max_data_xfer_size");
        self.bytes[start..][..HEADER_SIZE].copy_from_slice(header.as_bytes());
    }
}

fn dma_read(message: &Message<'_>, memory: &ExportedMemory, reply: &mut Vec<u8>) -> Result<(), Errno> {
    let (access, rest) = message.parse::<wire::DmaAccess>().ok_or(Errno::EINVAL)?;
    if !rest.is_empty() || access.count > memory.max_transfer() {
        return Err(Errno::EINVAL);
    }
    let count = usize::try_from(access.count).map_err(|_| Errno::EINVAL)?;
    // Before there is room for it: most of what is refused is refused here.
    memory.check_readable(access.address, count)?;
    reply.extend_from_slice(access.as_bytes());
    let start = reply.len();
    reply.resize(start + count, 0);
    memory.read(access.address, &mut reply[start..])
}

fn dma_write(message: &Message<'_>, memory: &ExportedMemory, reply: &mut Vec<u8>) -> Result<(), Errno> {
    let (access, data) = message.parse::<wire::DmaAccess>().ok_or(Errno::EINVAL)?;
    if access.count != data.len() as u64 || access.count > memory.max_transfer() {
        return Err(Errno::EINVAL);
    }
    memory.write(access.address, data)?;
    reply.extend_from_slice(access.as_bytes());
    Ok(())
}
