//! A vfio-user peer that can misbehave: messages as they are on the wire, with any descriptors, at any time. Nothing here uses the
//! client or server under test, only its wire structures.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use outrigger_protocol::command::Command;
use outrigger_protocol::wire::{FLAG_ERROR, FLAG_NO_REPLY, HEADER_SIZE, Header, TYPE_COMMAND, TYPE_REPLY};
use zerocopy::{FromBytes, IntoBytes};

/// The most descriptors that Linux takes in one message.
pub const MOST_FDS: usize = 253;

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// The bytes after the header.
    pub payload: Vec<u8>,
    /// The descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// Whether it is this command.
    pub fn is(&self, command: Command) -> bool {
        self.header.is_command() && self.header.command == command as u16
    }

    /// The 32-bit field at this offset of the payload; zero beyond its end.
    pub fn u32_at(&self, offset: usize) -> u32 {
        let bytes = self.payload.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    }

    /// The 64-bit field at this offset of the payload; zero beyond its end.
    pub fn u64_at(&self, offset: usize) -> u64 {
        let bytes = self.payload.get(offset..offset + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_ne_bytes)
    }
}

/// The bytes of a message whose header tells the truth.
pub fn message(id: u16, command: Command, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEADER_SIZE + payload.len()).expect("messages are small");
    let header = Header { message_id: id, command: command as u16, message_size: size, flags, error: 0 };
    [header.as_bytes(), payload].concat()
}

/// Sends bytes, `fds` with the first of them. Waits until the peer has room.
///
/// # Errors
/// The connection's.
pub fn send(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let control = if fds.is_empty() { Vec::new() } else { vec![ControlMessage::ScmRights(fds)] };
    let iov = [IoSlice::new(bytes)];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &iov, &control, MsgFlags::MSG_NOSIGNAL, None)?;
    let mut stream = stream;
    stream.write_all(&bytes[sent..])
}

/// Sends a command, which is to be answered.
///
/// # Errors
/// The connection's.
pub fn command(stream: &UnixStream, id: u16, command: Command, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
    send(stream, &message(id, command, TYPE_COMMAND, payload), fds)
}

/// Answers `request`, if it wants an answer.
///
/// # Errors
/// The connection's.
pub fn reply(stream: &UnixStream, request: &Message, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if request.header.flags & FLAG_NO_REPLY != 0 {
        return Ok(());
    }
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    send(stream, &reply_bytes(request, payload), &fds)
}

/// The bytes of the answer to `request`.
pub fn reply_bytes(request: &Message, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEADER_SIZE + payload.len()).expect("messages are small");
    let header = Header { message_size: size, flags: TYPE_REPLY, error: 0, ..request.header };
    [header.as_bytes(), payload].concat()
}

/// Refuses `request` with an errno value.
///
/// # Errors
/// The connection's.
pub fn refuse(stream: &UnixStream, request: &Message, errno: u32) -> io::Result<()> {
    if request.header.flags & FLAG_NO_REPLY != 0 {
        return Ok(());
    }
    let size = u32::try_from(HEADER_SIZE).expect("16");
    let header = Header { message_size: size, flags: TYPE_REPLY | FLAG_ERROR, error: errno, ..request.header };
    send(stream, header.as_bytes(), &[])
}

/// Waits for the next message. `None`: the peer has closed the connection.
///
/// # Errors
/// The connection's; it may end within a message.
pub fn receive(mut stream: &UnixStream) -> io::Result<Option<Message>> {
    let mut bytes = [0; HEADER_SIZE];
    let mut fds = Vec::new();
    let first = {
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let mut space = cmsg_space!([RawFd; MOST_FDS]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
        for control in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(rights) = control {
                // SAFETY: the kernel has just installed these descriptors for us.
                fds.extend(rights.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        received.bytes
    };
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut bytes[first..])?;
    let (header, _) = Header::read_from_prefix(&bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut payload = vec![0; (header.message_size as usize).saturating_sub(HEADER_SIZE)];
    stream.read_exact(&mut payload)?;
    Ok(Some(Message { header, payload, fds }))
}
