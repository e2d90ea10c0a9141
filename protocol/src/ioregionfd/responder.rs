//! The side that answers: a device.

use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zerocopy::{FromBytes, IntoBytes};

use super::access::{Access, Malformed, Operation, Size};
use super::socket::{Inbox, SocketError, SocketType, try_send};
use super::wire::{Command, MESSAGE_SIZE, Response};

/// A device's handling of accesses.
///
/// `user_data` is that of the sub-region's offer, and `offset` is counted from its start; but both, and how far an access
/// reaches, are the word of the other side, which a device checks before use.
pub trait Handler {
    /// Reads `size` bytes; what lies above them in the value is dropped.
    fn read(&mut self, user_data: u64, offset: u64, size: Size) -> u64;

    /// Writes `size` bytes of `data`; what lies above them is zero. Where an answer is wanted, it says that this is done.
    fn write(&mut self, user_data: u64, offset: u64, size: Size, data: u64);
}

/// Why serving ended other than by the other side leaving between two commands.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// It cannot be spoken on.
    #[error("the socket")]
    Socket(#[source] SocketError),
    /// A command that means nothing.
    #[error("a malformed command")]
    Malformed(#[source] Malformed),
    /// A packet of this many bytes (at least), or the start of a command and then the end.
    #[error("a command of {0} bytes instead of {MESSAGE_SIZE}")]
    Length(usize),
    /// Commands come, but answers are not taken: with one access under way at a time there is always room for one.
    #[error("answers are not taken")]
    Unread,
    /// The system refuses.
    #[error("using the socket")]
    Io(#[source] io::Error),
}

/// Bytes received at a time: on a stream, several posted writes can come together.
const BUFFER_SIZE: usize = 8 * MESSAGE_SIZE;

/// Executes the commands that come on `socket` (`AF_UNIX`, stream or seqpacket), in order, until the other side leaves.
/// Waits for a command as long as it takes, and for nothing else.
///
/// # Errors
/// [`ServeError`]. Nothing more is executed then; the caller closes the socket.
pub fn serve(socket: BorrowedFd<'_>, handler: &mut impl Handler) -> Result<(), ServeError> {
    let packets = SocketType::of(socket).map_err(ServeError::Socket)? == SocketType::Seqpacket;
    let (mut inbox, mut buffer) = (Inbox::default(), [0; BUFFER_SIZE]);
    // The start of a command whose rest is still to come.
    let mut kept = 0;
    loop {
        let received = receive(&mut inbox, socket, &mut buffer[kept..]).map_err(ServeError::Io)?;
        let length = kept + received;
        match received {
            0 if kept == 0 => return Ok(()),
            0 => return Err(ServeError::Length(kept)),
            _ if packets && length != MESSAGE_SIZE => return Err(ServeError::Length(length)),
            _ => {}
        }
        let mut rest = &buffer[..length];
        while let Ok((command, after)) = Command::read_from_prefix(rest) {
            rest = after;
            if !execute(socket, handler, &command)? {
                return Ok(());
            }
        }
        kept = rest.len();
        buffer.copy_within(length - kept..length, 0);
    }
}

/// False: the other side has left.
fn execute(socket: BorrowedFd<'_>, handler: &mut impl Handler, command: &Command) -> Result<bool, ServeError> {
    let access = Access::decode(command).map_err(ServeError::Malformed)?;
    let Access { user_data, offset, size, operation } = access;
    let data = match operation {
        Operation::Read => size.truncate(handler.read(user_data, offset, size)),
        Operation::Write { data, .. } => {
            handler.write(user_data, offset, size, data);
            0
        }
    };
    if !access.is_answered() {
        return Ok(true);
    }
    match try_send(socket, Response { data, pad: [0; 3] }.as_bytes()) {
        Ok(()) => Ok(true),
        Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(false),
        Err(Errno::EAGAIN) => Err(ServeError::Unread),
        Err(errno) => Err(ServeError::Io(errno.into())),
    }
}

/// Waits for bytes; zero: the other side has left.
fn receive(inbox: &mut Inbox, socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match inbox.receive(socket, buffer, 0) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(0),
            // Somebody made it a socket that does not block.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                match poll(&mut [PollFd::new(socket, PollFlags::POLLIN)], PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            other => return other,
        }
    }
}
