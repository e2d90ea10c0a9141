//! Bytes and file descriptors over an `AF_UNIX` stream socket, with a deadline on every wait.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// The most descriptors one message may carry here: a message with all doorbells of a 64-queue device fits. Linux's own
/// bound is 253 (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 64;

/// How long to wait for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until then.
    Until(Instant),
    /// As long as it takes: only for the first byte of a message that nobody owes us.
    Forever,
}

/// A connected stream socket.
///
/// It blocks, with the kernel's own receive timeout, so that waiting for a message and receiving it are one system call.
#[derive(Debug)]
pub struct Socket {
    stream: UnixStream,
    control: Vec<u8>,
}

/// What one receive brought.
#[derive(Debug)]
pub struct Received {
    /// Bytes; zero: the peer closed its side.
    pub bytes: usize,
    /// Descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

impl Socket {
    /// Wraps a connected socket. `patience` is how often a wait looks at its deadline, which it therefore exceeds by at
    /// most as much.
    pub fn new(stream: UnixStream, patience: Duration) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(Self { stream, control: cmsg_space!([RawFd; MAX_FDS]) })
    }

    /// A second handle on the same socket, for sending from elsewhere or for polling.
    pub fn try_clone_stream(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }

    /// Receives what is there, at most `buffer.len()` bytes. `ErrorKind::WouldBlock` with [`Wait::No`],
    /// `ErrorKind::TimedOut` when the deadline passed.
    pub fn receive(&mut self, buffer: &mut [u8], wait: Wait) -> io::Result<Received> {
        let mut flags = MsgFlags::MSG_CMSG_CLOEXEC;
        flags.set(MsgFlags::MSG_DONTWAIT, wait == Wait::No);
        loop {
            match self.receive_once(buffer, flags) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match wait {
                    Wait::No => return Err(error),
                    Wait::Until(deadline) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
                    Wait::Until(_) | Wait::Forever => {}
                },
                other => return other,
            }
        }
    }

    fn receive_once(&mut self, buffer: &mut [u8], flags: MsgFlags) -> io::Result<Received> {
        let mut iov = [IoSliceMut::new(buffer)];
        let message = recvmsg::<()>(self.stream.as_raw_fd(), &mut iov, Some(&mut self.control), flags)?;
        let truncated = message.flags.contains(MsgFlags::MSG_CTRUNC);
        let bytes = message.bytes;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just installed these descriptors for us; nobody else knows them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if truncated {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {MAX_FDS} fds in one message")));
        }
        Ok(Received { bytes, fds })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A message on its way out: at most three parts, sent whole or not at all before the deadline.
#[derive(Debug)]
pub struct Outgoing<'a> {
    parts: [&'a [u8]; 3],
    fds: &'a [BorrowedFd<'a>],
    sent: usize,
}

impl<'a> Outgoing<'a> {
    /// The parts follow each other on the wire; the descriptors travel with the first byte.
    pub fn new(parts: [&'a [u8]; 3], fds: &'a [BorrowedFd<'a>]) -> Self {
        Self { parts, fds, sent: 0 }
    }

    /// Sends as much as the socket takes without waiting; true when all is sent.
    pub fn try_send(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        loop {
            let mut skip = self.sent;
            let parts = self.parts.map(|part| {
                let skipped = skip.min(part.len());
                skip -= skipped;
                IoSlice::new(&part[skipped..])
            });
            if parts.iter().all(|part| part.is_empty()) {
                return Ok(true);
            }
            let raw: Vec<RawFd> =
                if self.sent == 0 { self.fds.iter().map(AsRawFd::as_raw_fd).collect() } else { vec![] };
            let rights = [ControlMessage::ScmRights(&raw)];
            let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            match sendmsg::<()>(socket.as_raw_fd(), &parts, control, flags, None) {
                Ok(bytes) => self.sent += bytes,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends everything, waiting for room until `deadline`.
    pub fn send(&mut self, socket: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
        while !self.try_send(socket)? {
            wait_for(socket, PollFlags::POLLOUT, deadline)?;
        }
        Ok(())
    }
}

/// Waits until one of `events` (or an error or hang-up) is there; returns what is.
pub fn wait_for(fd: BorrowedFd<'_>, events: PollFlags, deadline: Instant) -> io::Result<PollFlags> {
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last fraction of a millisecond is not spent spinning.
        let timeout = PollTimeout::try_from(remaining + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(fd, events)];
        match poll(&mut fds, timeout) {
            Ok(0) if remaining.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(fds[0].revents().unwrap_or(PollFlags::empty())),
            Err(errno) => return Err(errno.into()),
        }
    }
}
