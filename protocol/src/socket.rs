//! Bytes and file descriptors over an `AF_UNIX` stream socket, with a deadline on every wait.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};

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
/// That timeout is half of the usual wait; what remains of a deadline after it is waited for exactly.
#[derive(Debug)]
pub struct Socket {
    stream: Arc<UnixStream>,
    control: ControlBuffer,
    tick: Duration,
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
    /// Wraps a connected socket. `patience` is how long its waits usually last at most.
    pub fn new(stream: impl Into<Arc<UnixStream>>, patience: Duration) -> io::Result<Self> {
        let stream = stream.into();
        let tick = (patience / 2).max(Duration::from_millis(1));
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(tick))?;
        Ok(Self { stream, control: ControlBuffer([0; CONTROL_SIZE]), tick })
    }

    /// Wraps a connected socket that mostly waits for ever, which is cheaper without a timer; a deadline costs a poll.
    pub fn patient(stream: impl Into<Arc<UnixStream>>) -> io::Result<Self> {
        let stream = stream.into();
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(None)?;
        Ok(Self { stream, control: ControlBuffer([0; CONTROL_SIZE]), tick: Duration::MAX })
    }

    /// Receives what is there, at most `buffer.len()` bytes. `ErrorKind::WouldBlock` with [`Wait::No`],
    /// `ErrorKind::TimedOut` when the deadline has passed and nothing is there (what came while this process was stopped came
    /// in time), `ErrorKind::InvalidData` when descriptors were lost because they were more than [`MAX_FDS`] or than this
    /// process may have open.
    pub fn receive(&mut self, buffer: &mut [u8], wait: Wait) -> io::Result<Received> {
        loop {
            let (mut flags, mut late) = (libc::MSG_CMSG_CLOEXEC, false);
            match wait {
                Wait::No => flags |= libc::MSG_DONTWAIT,
                Wait::Forever => {}
                Wait::Until(deadline) => {
                    let remaining = deadline.saturating_duration_since(Instant::now());
                    late = remaining.is_zero();
                    if remaining < self.tick {
                        wait_for(self.stream.as_fd(), PollFlags::POLLIN, deadline)?;
                        flags |= libc::MSG_DONTWAIT;
                    }
                }
            }
            match self.receive_once(buffer, flags) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Somebody else has received what was there.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && late => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && wait != Wait::No => {}
                other => return other,
            }
        }
    }

    fn receive_once(&mut self, buffer: &mut [u8], flags: libc::c_int) -> io::Result<Received> {
        let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: all-zero is a valid `msghdr`: null pointers with zero lengths.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = self.control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_SIZE;
        // SAFETY: `message` describes `buffer` and the control buffer, which are writable, of these sizes, and
        // outlive the call.
        let received = unsafe { libc::recvmsg(self.stream.as_raw_fd(), &raw mut message, flags) };
        let bytes = usize::try_from(Errno::result(received)?).expect("a count is not negative");
        // SAFETY: `message` was filled in by a successful recvmsg, and its control buffer is still as that left it.
        let fds = unsafe { take_fds(&message) };
        if message.msg_flags & libc::MSG_CTRUNC != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more fds in one message than can be taken"));
        }
        Ok(Received { bytes, fds })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Room for one `SCM_RIGHTS` with [`MAX_FDS`] descriptors.
const CONTROL_SIZE: usize = {
    let header = size_of::<libc::cmsghdr>().next_multiple_of(size_of::<usize>());
    header + (MAX_FDS * size_of::<RawFd>()).next_multiple_of(size_of::<usize>())
};

/// Aligned as the kernel's control messages are.
#[derive(Debug)]
#[repr(C, align(8))]
struct ControlBuffer([u8; CONTROL_SIZE]);

/// Takes the descriptors that came with a message, also when some that belong to it did not fit: whatever the kernel
/// has installed is ours to close.
///
/// # Safety
///
/// `message` must have been filled in by a successful `recvmsg`, whose control buffer is unchanged since, and this must
/// be the only look at it.
unsafe fn take_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel wrote `msg_controllen` bytes of well-formed control messages.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return headers that lie wholly within the control buffer.
        let header = unsafe { &*next };
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: as above.
            let data = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            let empty = data as usize - next as usize;
            let count = header.cmsg_len.saturating_sub(empty) / size_of::<RawFd>();
            for i in 0..count {
                // SAFETY: `cmsg_len` covers `count` descriptors, which the kernel has just installed for us; nobody
                // else knows them.
                fds.push(unsafe { OwnedFd::from_raw_fd(data.add(i).read_unaligned()) });
            }
        }
        // SAFETY: `next` came from this message.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
    fds
}

const SEND_FLAGS: MsgFlags = MsgFlags::MSG_NOSIGNAL.union(MsgFlags::MSG_DONTWAIT);
/// Up to this many bytes are copied together.
const SHORT: usize = 128;

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

    /// How many bytes have been sent. Once it is more than none, nothing else may be sent before the rest.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// Sends as much as the socket takes without waiting; true when all is sent.
    pub fn try_send(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        loop {
            let left = self.parts.iter().map(|part| part.len()).sum::<usize>() - self.sent;
            if left == 0 {
                return Ok(true);
            }
            let result = match self.sent == 0 && !self.fds.is_empty() {
                false if left <= SHORT => self.send_short(socket),
                with_fds => self.send_parts(socket, with_fds),
            };
            match result {
                Ok(bytes) => self.sent += bytes,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn send_parts(&self, socket: BorrowedFd<'_>, with_fds: bool) -> nix::Result<usize> {
        let parts = self.unsent().map(IoSlice::new);
        let raw: Vec<RawFd> = if with_fds { self.fds.iter().map(AsRawFd::as_raw_fd).collect() } else { vec![] };
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if with_fds { &rights[..] } else { &rights[..0] };
        sendmsg::<()>(socket.as_raw_fd(), &parts, control, SEND_FLAGS, None)
    }

    /// A register access is short: copied together, it is sent by a system call that has less to look at.
    fn send_short(&self, socket: BorrowedFd<'_>) -> nix::Result<usize> {
        let (mut bytes, mut length) = ([0; SHORT], 0);
        for part in self.unsent() {
            bytes[length..][..part.len()].copy_from_slice(part);
            length += part.len();
        }
        send(socket.as_raw_fd(), &bytes[..length], SEND_FLAGS)
    }

    fn unsent(&self) -> [&'a [u8]; 3] {
        let mut skip = self.sent;
        self.parts.map(|part| {
            let skipped = skip.min(part.len());
            skip -= skipped;
            &part[skipped..]
        })
    }

    /// Sends everything, waiting for room until `deadline`.
    pub fn send(&mut self, socket: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
        while !self.try_send(socket)? {
            wait_for(socket, PollFlags::POLLOUT, deadline)?;
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
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
