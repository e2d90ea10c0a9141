//! Requests and replies on one socket, and the server's requests that come in between.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use zerocopy::IntoBytes;

use super::error::ClientError;
use super::exported::ExportedMemory;
use crate::codec::{Message, ReceiveError, Receiver};
use crate::command::Command;
use crate::socket::{Outgoing, Socket, Wait, wait_for};
use crate::wire::{self, FLAG_ERROR, FLAG_NO_REPLY, HEADER_SIZE, Header, TYPE_COMMAND, TYPE_REPLY};

/// One socket. Whoever waits on it for a reply also serves what the server asks meanwhile, so that neither side can
/// wait for the other for ever.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    outgoing: UnixStream,
    receiver: Receiver,
    memory: Arc<ExportedMemory>,
    deadline: Duration,
    next_id: u16,
    /// Posted writes whose replies some servers send although none is wanted.
    posted: u64,
    scratch: Vec<u8>,
}

impl Connection {
    pub(super) fn new(
        stream: UnixStream,
        memory: Arc<ExportedMemory>,
        limit: usize,
        deadline: Duration,
    ) -> io::Result<Self> {
        let outgoing = stream.try_clone()?;
        let socket = Socket::new(stream, deadline)?;
        let receiver = Receiver::new(limit, deadline);
        Ok(Self { socket, outgoing, receiver, memory, deadline, next_id: 0, posted: 0, scratch: Vec::new() })
    }

    /// Sends a command and waits for its reply, which `read` makes sense of: `Err` is a description of what is wrong
    /// with it.
    pub(super) fn request<T>(
        &mut self,
        command: Command,
        parts: [&[u8]; 2],
        fds: &[BorrowedFd<'_>],
        read: impl FnOnce(Message<'_>) -> Result<T, &'static str>,
    ) -> Result<T, ClientError> {
        let deadline = Instant::now() + self.deadline;
        let id = self.send(command, 0, parts, fds, deadline)?;
        loop {
            let message = match self.receiver.receive(&mut self.socket, Wait::Until(deadline)) {
                Ok(Some(message)) => message,
                Ok(None) => continue,
                Err(source) => return Err(self.receive_error(command, source)),
            };
            let header = message.header;
            if header.is_command() {
                serve(&message, &self.memory, &mut self.scratch, &self.outgoing, deadline)
                    .map_err(|source| ClientError::Io { command, source })?;
                if Instant::now() >= deadline {
                    return Err(ClientError::TimedOut { command, deadline: self.deadline });
                }
                continue;
            }
            let malformed = |problem| ClientError::Malformed { command, problem };
            if !header.is_reply() {
                return Err(malformed("a message that is neither command nor reply"));
            }
            if header.message_id != id || header.command != command as u16 {
                if header.command == Command::RegionWrite as u16 && self.posted > 0 {
                    self.posted -= 1;
                    continue;
                }
                return Err(malformed("a reply to something else"));
            }
            if header.flags & FLAG_ERROR != 0 {
                let errno = i32::try_from(header.error).map_or(Errno::UnknownErrno, Errno::from_raw);
                return Err(ClientError::Refused { command, errno });
            }
            return read(message).map_err(malformed);
        }
    }

    /// Sends a command whose reply nobody wants.
    pub(super) fn post(&mut self, command: Command, parts: [&[u8]; 2]) -> Result<(), ClientError> {
        self.send(command, FLAG_NO_REPLY, parts, &[], Instant::now() + self.deadline)?;
        self.posted += 1;
        Ok(())
    }

    /// Serves what the server has sent while nobody waited, without waiting for more.
    pub(super) fn serve_ready(&mut self) -> Result<(), ClientError> {
        let command = Command::DmaRead;
        loop {
            let message = match self.receiver.receive(&mut self.socket, Wait::No) {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(source) => return Err(self.receive_error(command, source)),
            };
            let header = message.header;
            if header.is_command() {
                let deadline = Instant::now() + self.deadline;
                serve(&message, &self.memory, &mut self.scratch, &self.outgoing, deadline)
                    .map_err(|source| ClientError::Io { command, source })?;
            } else if header.command == Command::RegionWrite as u16 && self.posted > 0 {
                self.posted -= 1;
            } else {
                return Err(ClientError::Malformed { command, problem: "a reply that nobody waits for" });
            }
        }
    }

    /// Changes the largest message that is taken, when it has been negotiated.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.receiver.set_limit(limit);
    }

    fn send(
        &mut self,
        command: Command,
        flags: u32,
        parts: [&[u8]; 2],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<u16, ClientError> {
        self.next_id = self.next_id.wrapping_add(1);
        let size = HEADER_SIZE + parts[0].len() + parts[1].len();
        let header = Header {
            message_id: self.next_id,
            command: command as u16,
            message_size: u32::try_from(size).expect("commands are split by max_data_xfer_size"),
            flags: TYPE_COMMAND | flags,
            error: 0,
        };
        let mut outgoing = Outgoing::new([header.as_bytes(), parts[0], parts[1]], fds);
        loop {
            match outgoing.try_send(self.outgoing.as_fd()) {
                Ok(true) => return Ok(header.message_id),
                Ok(false) => {}
                Err(source) => return Err(self.io_error(command, source)),
            }
            // The server takes no more. It may be waiting for us to answer what it asked.
            let events = PollFlags::POLLOUT | PollFlags::POLLIN;
            let ready =
                wait_for(self.outgoing.as_fd(), events, deadline).map_err(|source| self.io_error(command, source))?;
            if ready.contains(PollFlags::POLLIN) {
                self.serve_ready()?;
            }
        }
    }

    fn io_error(&self, command: Command, source: io::Error) -> ClientError {
        match source.kind() {
            io::ErrorKind::TimedOut => ClientError::TimedOut { command, deadline: self.deadline },
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Disconnected(command),
            _ => ClientError::Io { command, source },
        }
    }

    fn receive_error(&self, command: Command, source: ReceiveError) -> ClientError {
        match source {
            ReceiveError::TimedOut => ClientError::TimedOut { command, deadline: self.deadline },
            ReceiveError::Closed | ReceiveError::Truncated { .. } => ClientError::Disconnected(command),
            source => ClientError::Receive { command, source },
        }
    }
}

/// Answers one request of the server.
fn serve(
    message: &Message<'_>,
    memory: &ExportedMemory,
    scratch: &mut Vec<u8>,
    outgoing: &UnixStream,
    deadline: Instant,
) -> io::Result<()> {
    scratch.clear();
    let result = match Command::from_number(message.header.command) {
        Some(Command::DmaRead) => dma_read(message, memory, scratch),
        Some(Command::DmaWrite) => dma_write(message, memory, scratch),
        _ => Err(Errno::ENOTSUP),
    };
    if message.header.no_reply() {
        return Ok(());
    }
    let mut header = Header { flags: TYPE_REPLY, error: 0, ..message.header };
    if let Err(errno) = result {
        scratch.clear();
        header.flags |= FLAG_ERROR;
        header.error = (errno as i32).unsigned_abs();
    }
    header.message_size = u32::try_from(HEADER_SIZE + scratch.len()).map_err(io::Error::other)?;
    Outgoing::new([header.as_bytes(), scratch, &[]], &[]).send(outgoing.as_fd(), deadline)
}

fn dma_read(message: &Message<'_>, memory: &ExportedMemory, reply: &mut Vec<u8>) -> Result<(), Errno> {
    let (access, rest) = message.parse::<wire::DmaAccess>().ok_or(Errno::EINVAL)?;
    if !rest.is_empty() || access.count > memory.max_transfer() {
        return Err(Errno::EINVAL);
    }
    let count = usize::try_from(access.count).map_err(|_| Errno::EINVAL)?;
    reply.extend_from_slice(access.as_bytes());
    reply.resize(size_of::<wire::DmaAccess>() + count, 0);
    memory.read(access.address, &mut reply[size_of::<wire::DmaAccess>()..])
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
