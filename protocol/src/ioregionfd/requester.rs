//! The side that asks: what KVM does in the kernel, for a VMM on a host whose KVM does not.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use zerocopy::{FromBytes, IntoBytes};

use super::access::{Access, Operation, Size};
use super::socket::{Inbox, SocketError, SocketType, bytes_waiting, try_send};
use super::wire::{MESSAGE_SIZE, Response};
use crate::foreign::ForeignFd;
use crate::socket::wait_for;

/// One end of an ioregionfd, from which accesses are sent; any number of threads may share it.
///
/// One access is under way at a time, so the answer that comes is the answer to it. A device that breaks this (an
/// answer that nobody waits for, or of another length, or too late) has lost the connection: it is shut down, and every
/// access from then on fails at once with [`AccessError::Broken`], since no answer could be trusted to be the right one.
///
/// The device process may have kept a copy of our end and so controls its flags and options, timeouts included. That is
/// why no call here relies on them: nothing blocks but `poll`.
#[derive(Debug)]
pub struct Requester {
    fd: Arc<ForeignFd>,
    deadline: Duration,
    in_flight: Mutex<Inbox>,
    broken: AtomicBool,
}

/// Why an access was not answered. All but the first are final: they are [`AccessError::Broken`] from the next access on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// An earlier access failed, or the connection was closed by [`Requester::close`].
    #[error("the connection is broken since an earlier access")]
    Broken,
    /// The device has closed its end, or ours was shut down.
    #[error("the device has hung up")]
    HungUp,
    /// The device did not take the command, or did not answer it, within this time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// Something came that is no answer to anything: no command was under way.
    #[error("an answer to nothing")]
    Unasked,
    /// The answer has this many bytes (at least).
    #[error("an answer of {0} bytes instead of {MESSAGE_SIZE}")]
    Length(usize),
    /// The system refuses.
    #[error("using the socket")]
    Io(#[source] io::Error),
}

impl Requester {
    /// Sends accesses on `fd`, a connected `AF_UNIX` stream or seqpacket socket; each ends after `deadline` at the latest.
    /// With more threads than one a thread waits its turn besides, at most `deadline` for each of those before it.
    ///
    /// # Errors
    /// The descriptor is no such socket.
    pub fn new(fd: Arc<ForeignFd>, deadline: Duration) -> Result<Self, SocketError> {
        SocketType::of(fd.lend())?;
        Ok(Self { fd, deadline, in_flight: Mutex::default(), broken: AtomicBool::new(false) })
    }

    /// Reads a register: the value, no larger than `size`.
    ///
    /// # Errors
    /// [`AccessError`]; the guest then reads all-ones.
    pub fn read(&self, user_data: u64, offset: u64, size: Size) -> Result<u64, AccessError> {
        let data = self.access(&Access { user_data, offset, size, operation: Operation::Read })?;
        Ok(size.truncate(data))
    }

    /// Writes a register. A posted write returns when the socket has it, any other when the device has done it.
    ///
    /// # Errors
    /// [`AccessError`]; the write is lost then, or nobody knows whether it was done.
    pub fn write(&self, user_data: u64, offset: u64, size: Size, data: u64, posted: bool) -> Result<(), AccessError> {
        let operation = Operation::Write { data, posted };
        self.access(&Access { user_data, offset, size, operation }).map(drop)
    }

    /// Ends the connection: an access that another thread waits for fails, as does every later one.
    pub fn close(&self) {
        self.broken.store(true, Ordering::Release);
        self.fd.hang_up();
    }

    /// Whether every access fails from now on.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn access(&self, access: &Access) -> Result<u64, AccessError> {
        // A thread that panicked with it left nothing half done but an answer, which counts as unasked.
        let mut inbox = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_broken() {
            return Err(AccessError::Broken);
        }
        let result = self.exchange(&mut inbox, access);
        if result.is_err() {
            self.close();
        }
        result
    }

    fn exchange(&self, inbox: &mut Inbox, access: &Access) -> Result<u64, AccessError> {
        let deadline = Instant::now() + self.deadline;
        // Costs a system call that finds nothing. Without it one answer too many would go unnoticed, and every access
        // from then on would get the answer of the one before. A hang-up is noticed when the command is sent, and an
        // empty packet when the answer is received.
        if bytes_waiting(self.fd.lend()).map_err(io_error)? > 0 {
            return Err(AccessError::Unasked);
        }
        let command = access.encode();
        let mut late = false;
        while let Err(errno) = try_send(self.fd.lend(), command.as_bytes()) {
            match errno {
                Errno::EAGAIN if late => return Err(AccessError::TimedOut(self.deadline)),
                Errno::EAGAIN => late = self.wait(PollFlags::POLLOUT, deadline)?,
                errno => return Err(io_error(errno)),
            }
        }
        if access.is_answered() { self.receive(inbox, deadline) } else { Ok(0) }
    }

    fn receive(&self, inbox: &mut Inbox, deadline: Instant) -> Result<u64, AccessError> {
        // One byte more than an answer has shows that there is more.
        let mut buffer = [0; MESSAGE_SIZE + 1];
        loop {
            let late = self.wait(PollFlags::POLLIN, deadline)?;
            match inbox.try_receive(self.fd.lend(), &mut buffer) {
                Ok(0) => return Err(AccessError::HungUp),
                Ok(MESSAGE_SIZE) => break,
                Ok(length) => return Err(AccessError::Length(length)),
                // Another holder of a copy of our end has taken it.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(receive_error(error)),
                Err(_) if late => return Err(AccessError::TimedOut(self.deadline)),
                Err(_) => {}
            }
        }
        match Response::read_from_prefix(&buffer) {
            Ok((response, _)) => Ok(response.data),
            Err(_) => Err(AccessError::Length(0)),
        }
    }

    /// Waits for one of `events`. True: it is there and the time is over, so this was the last wait. What came while this
    /// process was stopped came in time.
    fn wait(&self, events: PollFlags, deadline: Instant) -> Result<bool, AccessError> {
        match wait_for(self.fd.lend(), events, deadline) {
            Ok(_) => Ok(Instant::now() >= deadline),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(AccessError::TimedOut(self.deadline)),
            Err(error) => Err(AccessError::Io(error)),
        }
    }
}

fn io_error(errno: Errno) -> AccessError {
    match errno {
        Errno::EPIPE | Errno::ECONNRESET => AccessError::HungUp,
        errno => AccessError::Io(errno.into()),
    }
}

fn receive_error(error: io::Error) -> AccessError {
    match error.kind() {
        io::ErrorKind::ConnectionReset => AccessError::HungUp,
        _ => AccessError::Io(error),
    }
}
