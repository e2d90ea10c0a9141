//! Bytes and file descriptors over an `AF_UNIX` stream socket, with a deadline on every wait.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::foreign::{Debt, ForeignFd};

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
    /// For as long as the kernel's own timeout is: one system call, with nothing received if nothing came.
    Tick,
    /// As long as it takes: only for the first byte of a message that nobody owes us.
    Forever,
}

/// How many descriptors that came by one socket may wait to be closed: many more than any peer has use for, and few
/// enough that a peer whose descriptors cannot be closed does not use up those of this process.
const MAX_OWED: usize = 1024;

/// A connected stream socket.
///
/// It blocks, with the kernel's own receive timeout, so that waiting for a message and receiving it are one system call.
/// That timeout is half of the usual wait; what remains of a deadline after it is waited for exactly. Both are options of
/// the open file, so a peer that holds a duplicate of *this* end can change them: on such a socket (a twin that the
/// server made) nothing is received but with [`Wait::No`].
#[derive(Debug)]
pub struct Socket {
    stream: Arc<ForeignFd>,
    control: ControlBuffer,
    tick: Duration,
    debt: Arc<Debt>,
}

/// The result of one receive.
#[derive(Debug)]
pub struct Received {
    /// Bytes; zero: the peer closed its side.
    pub bytes: usize,
    /// Descriptors that came along.
    pub fds: Vec<ForeignFd>,
}

impl Socket {
    /// Wraps a connected socket. `patience` is how long its waits usually last at most.
    pub fn new(stream: Arc<ForeignFd>, patience: Duration) -> io::Result<Self> {
        let tick = (patience / 2).max(Duration::from_millis(1));
        Self::with_timeout(stream, tick, time_val(tick))
    }

    /// Wraps a connected socket on which a wait is interrupted every `tick` to look at something else ([`Wait::Tick`]).
    pub fn ticking(stream: Arc<ForeignFd>, tick: Duration) -> io::Result<Self> {
        Self::with_timeout(stream, tick, time_val(tick))
    }

    /// Wraps a connected socket that mostly waits for ever, which is cheaper without a timer; a deadline costs a poll.
    pub fn patient(stream: Arc<ForeignFd>) -> io::Result<Self> {
        Self::with_timeout(stream, Duration::MAX, TimeVal::new(0, 0))
    }

    fn with_timeout(stream: Arc<ForeignFd>, tick: Duration, timeout: TimeVal) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(stream.lend(), FcntlArg::F_GETFL)?);
        fcntl(stream.lend(), FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
        setsockopt(&stream.lend(), sockopt::ReceiveTimeout, &timeout)?;
        Ok(Self { stream, control: ControlBuffer::default(), tick, debt: Arc::default() })
    }

    /// Receives what is there, at most `buffer.len()` bytes. `ErrorKind::WouldBlock` with [`Wait::No`] and [`Wait::Tick`],
    /// `ErrorKind::TimedOut` when the deadline has passed and nothing is there (what came while this process was stopped came
    /// in time), `EMFILE` when descriptors were lost because this process may have no more, `ErrorKind::InvalidData` when the peer
    /// sent so many that could not be closed that it may not send more.
    pub fn receive(&mut self, buffer: &mut [u8], wait: Wait) -> io::Result<Received> {
        loop {
            let (mut flags, mut late) = (libc::MSG_CMSG_CLOEXEC, false);
            match wait {
                Wait::No => flags |= libc::MSG_DONTWAIT,
                Wait::Forever | Wait::Tick => {}
                Wait::Until(deadline) => {
                    let remaining = deadline.saturating_duration_since(Instant::now());
                    late = remaining.is_zero();
                    if remaining < self.tick {
                        wait_for(self.stream.lend(), PollFlags::POLLIN, deadline)?;
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
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && matches!(wait, Wait::Until(_) | Wait::Forever) => {}
                other => return other,
            }
        }
    }

    fn receive_once(&mut self, buffer: &mut [u8], flags: libc::c_int) -> io::Result<Received> {
        let Received { bytes, fds } = receive(self.stream.lend(), buffer, &mut self.control, flags, &self.debt)?;
        // Looked at when there are some only: messages mostly bring none.
        if !fds.is_empty() && self.debt.owed() > MAX_OWED {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors without end that cannot be closed"));
        }
        Ok(Received { bytes, fds })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.lend()
    }
}

/// One `recvmsg`, with room for all descriptors that a message can bring, for those that do not fit would be closed by
/// the kernel within this call, however long that takes.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    control: &mut ControlBuffer,
    flags: libc::c_int,
    debt: &Arc<Debt>,
) -> io::Result<Received> {
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid `msghdr`: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_SIZE;
    // SAFETY: `message` describes `buffer` and the control buffer, which are writable, of these sizes, and outlive the
    // call.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags | libc::MSG_CMSG_CLOEXEC) };
    let bytes = usize::try_from(Errno::result(received)?).expect("a count is not negative");
    // Of several that do not all find room the kernel installs those that do, which may be none.
    let is_cut = message.msg_flags & libc::MSG_CTRUNC != 0;
    if message.msg_controllen == 0 && !is_cut {
        return Ok(Received { bytes, fds: Vec::new() });
    }
    // SAFETY: `message` was filled in by a successful recvmsg, and its control buffer is still as that left it.
    let fds = unsafe { take_fds(&message, debt) };
    if is_cut { Err(Errno::EMFILE.into()) } else { Ok(Received { bytes, fds }) }
}

/// Linux's `SCM_MAX_FD`: the most descriptors that one message can carry.
const SCM_MAX_FD: usize = 253;
/// `SCM_PIDFD` (Linux 6.5).
const SCM_PIDFD: libc::c_int = 4;
/// Room for all descriptors of a message, and for what else the kernel puts there if somebody who holds a duplicate of
/// the socket asks for it: credentials, a security label, a pidfd, a time stamp.
const CONTROL_SIZE: usize = {
    let header = size_of::<libc::cmsghdr>().next_multiple_of(size_of::<usize>());
    header + (SCM_MAX_FD * size_of::<RawFd>()).next_multiple_of(size_of::<usize>()) + 1024
};

/// Aligned as the kernel's control messages are.
#[derive(Debug)]
#[repr(C, align(8))]
pub(crate) struct ControlBuffer([u8; CONTROL_SIZE]);

impl Default for ControlBuffer {
    fn default() -> Self {
        Self([0; CONTROL_SIZE])
    }
}

/// Takes the descriptors that came with a message, also when some that belong to it did not fit: whatever the kernel
/// has installed is ours to close.
///
/// # Safety
///
/// `message` must have been filled in by a successful `recvmsg`, whose control buffer is unchanged since, and this must
/// be the only look at it.
#[cold]
unsafe fn take_fds(message: &libc::msghdr, debt: &Arc<Debt>) -> Vec<ForeignFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel wrote `msg_controllen` bytes of well-formed control messages.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return headers that lie wholly within the control buffer.
        let header = unsafe { &*next };
        if header.cmsg_level == libc::SOL_SOCKET && matches!(header.cmsg_type, libc::SCM_RIGHTS | SCM_PIDFD) {
            // SAFETY: as above.
            let data = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            let empty = data as usize - next as usize;
            let count = header.cmsg_len.saturating_sub(empty) / size_of::<RawFd>();
            for i in 0..count {
                // SAFETY: `cmsg_len` covers `count` numbers.
                let number = unsafe { data.add(i).read_unaligned() };
                // The kernel may have an error in place of a pidfd.
                if number >= 0 {
                    // SAFETY: the kernel has just installed this descriptor for us; nobody else knows it.
                    let fd = ForeignFd::owed(unsafe { OwnedFd::from_raw_fd(number) }, debt);
                    if header.cmsg_type == libc::SCM_RIGHTS {
                        fds.push(fd);
                    }
                }
            }
        }
        // SAFETY: `next` came from this message.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
    fds
}

fn time_val(time: Duration) -> TimeVal {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    TimeVal::new(seconds, i64::from(time.subsec_micros()))
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

/// Waits until one of `events` (or an error or hang-up) is there on `fd`, or something to receive on `beside`; returns
/// what is, of each.
pub fn wait_for_either(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    beside: BorrowedFd<'_>,
    deadline: Instant,
) -> io::Result<[PollFlags; 2]> {
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(remaining + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(fd, events), PollFd::new(beside, PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if remaining.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()))),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether a failure to send says that this host or this user has too much of something (descriptors in flight in any of
/// this user's sockets, memory) and nothing of the peer. If nothing of the message was sent, the connection is in step.
pub fn is_local(error: &io::Error) -> bool {
    let local = [libc::ETOOMANYREFS, libc::ENOBUFS, libc::ENOMEM, libc::EMFILE, libc::ENFILE];
    error.raw_os_error().is_some_and(|errno| local.contains(&errno))
}
