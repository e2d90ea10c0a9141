//! The sockets that the protocol is spoken on: `AF_UNIX`, connected, stream or seqpacket.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, getpeername, getsockopt, send, socketpair, sockopt,
};

use crate::foreign::Debt;
use crate::socket::{ControlBuffer, receive};

/// How messages are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketType {
    /// `SOCK_STREAM`: by their length alone.
    Stream,
    /// `SOCK_SEQPACKET`: each is a packet.
    Seqpacket,
}

/// A descriptor that the protocol cannot be spoken on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// A file, a pipe, an eventfd, a socket of another kind.
    #[error("not a stream or seqpacket socket of the AF_UNIX family")]
    Unsupported,
    /// A socket that nobody is at the other end of.
    #[error("a socket that is not connected")]
    Unconnected,
    /// The system refuses.
    #[error("looking at the socket")]
    Io(#[source] io::Error),
}

impl SocketType {
    /// The type of a socket.
    ///
    /// # Errors
    /// It is none that the protocol can be spoken on.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, SocketError> {
        let kind = match getsockopt(&fd, sockopt::SockType) {
            Ok(SockType::Stream) => Self::Stream,
            Ok(SockType::SeqPacket) => Self::Seqpacket,
            Ok(_) | Err(Errno::ENOTSOCK) => return Err(SocketError::Unsupported),
            Err(errno) => return Err(SocketError::Io(errno.into())),
        };
        match getpeername::<UnixAddr>(fd.as_raw_fd()) {
            Ok(_) => Ok(kind),
            Err(Errno::ENOTCONN) => Err(SocketError::Unconnected),
            // The address is of another family.
            Err(Errno::EINVAL) => Err(SocketError::Unsupported),
            Err(errno) => Err(SocketError::Io(errno.into())),
        }
    }

    /// Two ends of a connection, closed on `execve`.
    ///
    /// # Errors
    /// The system refuses.
    pub fn pair(self) -> io::Result<(OwnedFd, OwnedFd)> {
        let kind = match self {
            Self::Stream => SockType::Stream,
            Self::Seqpacket => SockType::SeqPacket,
        };
        Ok(socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?)
    }
}

/// Sends a message if there is room for it now. A few bytes fit whole or not at all.
pub(super) fn try_send(fd: BorrowedFd<'_>, message: &[u8]) -> nix::Result<()> {
    loop {
        match send(fd.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
            Ok(sent) if sent == message.len() => return Ok(()),
            Ok(_) => return Err(Errno::EMSGSIZE),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// The receiver of a socket. Descriptors have no business there; they are closed elsewhere.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    control: ControlBuffer,
    debt: Arc<Debt>,
}

impl Inbox {
    /// Receives what is there now; zero: the other end is closed.
    pub(super) fn try_receive(&mut self, fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive(fd, buffer, libc::MSG_DONTWAIT)
    }

    /// Receives, waiting if that is how the socket is.
    pub(super) fn receive(&mut self, fd: BorrowedFd<'_>, buffer: &mut [u8], flags: i32) -> io::Result<usize> {
        loop {
            match receive(fd, buffer, &mut self.control, flags, &self.debt) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(received) if received.fds.is_empty() => return Ok(received.bytes),
                Ok(_) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors, which have no business here"));
                }
            }
        }
    }
}

/// How many bytes are there to be received. Cheaper than a receive that finds none, and takes nothing.
pub(super) fn bytes_waiting(fd: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the call writes one integer, which outlives it.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    // The kernel never counts below zero.
    Ok(usize::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::socket::{Backlog, SockaddrIn, bind, connect, getsockname, listen, socket};

    use super::*;

    #[test]
    fn what_is_no_connected_unix_socket_is_refused() {
        let unsupported = |fd: BorrowedFd<'_>| matches!(SocketType::of(fd), Err(SocketError::Unsupported));
        let (pipe, _) = nix::unistd::pipe().unwrap();
        assert!(unsupported(pipe.as_fd()));
        let (datagrams, _other) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::empty()).unwrap();
        assert!(unsupported(datagrams.as_fd()));
        let server = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        bind(server.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        listen(&server, Backlog::new(1).unwrap()).unwrap();
        let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        let address: SockaddrIn = getsockname(server.as_raw_fd()).unwrap();
        connect(client.as_raw_fd(), &address).unwrap();
        assert!(unsupported(client.as_fd()));
        let alone = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
        assert!(matches!(SocketType::of(alone.as_fd()), Err(SocketError::Unconnected)));
    }

    #[test]
    fn a_pair_is_what_it_was_made_as() {
        for kind in [SocketType::Stream, SocketType::Seqpacket] {
            let (a, b) = kind.pair().unwrap();
            assert_eq!(SocketType::of(a.as_fd()).unwrap(), kind);
            assert_eq!(SocketType::of(b.as_fd()).unwrap(), kind);
        }
    }
}
