//! Messages out of a stream of bytes.
//!
//! A [`Receiver`] reads ahead, so that a short message costs one system call, and hands out one whole message at a time.
//! Nothing that a peer sends makes it hold more than the limit it was given.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::socket::{MAX_FDS, Received, Socket, Wait};
use crate::wire::{HEADER_SIZE, Header};

/// What is read at once: all messages but bulk transfers fit.
const READ_AHEAD: usize = 4096;

/// Why no message could be received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The peer closed the connection between two messages.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer closed the connection within a message.
    #[error("the peer closed the connection within a message, after {received} bytes of it")]
    Truncated {
        /// How much of the message had come.
        received: usize,
    },
    /// The size in a header cannot be right.
    #[error("a message claims {size} bytes; between {HEADER_SIZE} and {limit} are legal here")]
    Size {
        /// What the header says.
        size: u32,
        /// The most that was negotiated.
        limit: usize,
    },
    /// Descriptors beyond what one message may carry.
    #[error("more than {MAX_FDS} fds before the end of a message")]
    Fds,
    /// Nothing (more) came before the deadline.
    #[error("nothing came within the deadline")]
    TimedOut,
    /// The socket failed.
    #[error("cannot receive")]
    Io(#[source] io::Error),
}

/// One whole message.
#[derive(Debug)]
pub struct Message<'a> {
    /// As received; the size has been checked.
    pub header: Header,
    /// What follows the header.
    pub payload: &'a [u8],
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl<'a> Message<'a> {
    /// Splits the payload into its fixed structure and what follows. `None`: too short.
    pub fn parse<T: FromBytes + KnownLayout + Immutable + Copy>(&self) -> Option<(T, &'a [u8])> {
        T::read_from_prefix(self.payload).ok()
    }
}

/// Assembles messages from a socket.
#[derive(Debug)]
pub struct Receiver {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Descriptors with the position in `buffer` where the bytes end that they came with.
    fds: Vec<(usize, OwnedFd)>,
    limit: usize,
    patience: Duration,
}

impl Receiver {
    /// Takes messages of at most `limit` bytes, header included, each of which must be complete `patience` after its
    /// first bytes.
    pub fn new(limit: usize, patience: Duration) -> Self {
        Self { buffer: vec![0; READ_AHEAD], start: 0, end: 0, fds: Vec::new(), limit, patience }
    }

    /// Changes the limit, when a new one has been negotiated.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Whether bytes have been read that no message has been made of yet.
    pub fn has_buffered(&self) -> bool {
        self.start != self.end
    }

    /// The next message. `wait` is for its first bytes; `None`: there is none yet (only with [`Wait::No`]).
    pub fn receive(&mut self, socket: &mut Socket, wait: Wait) -> Result<Option<Message<'_>>, ReceiveError> {
        let mut wait = wait;
        let header = loop {
            let have = self.end - self.start;
            let mut needed = HEADER_SIZE;
            if let Ok((header, _)) = Header::read_from_prefix(&self.buffer[self.start..self.end]) {
                needed = self.checked_size(header)?;
                if have >= needed {
                    break header;
                }
            }
            if have > 0 && !matches!(wait, Wait::Until(_)) {
                wait = Wait::Until(Instant::now() + self.patience);
            }
            self.make_room(needed);
            if !self.fill(socket, wait)? {
                return Ok(None);
            }
        };
        let body = self.start + HEADER_SIZE;
        self.start += header.message_size as usize;
        // Linux ends a receive behind the bytes that descriptors came with, so those whose bytes end beyond this
        // message belong to a later one.
        let mine = self.fds.iter().take_while(|(end, _)| *end <= self.start).count();
        let fds = self.fds.drain(..mine).map(|(_, fd)| fd).collect();
        Ok(Some(Message { header, payload: &self.buffer[body..self.start], fds }))
    }

    fn checked_size(&self, header: Header) -> Result<usize, ReceiveError> {
        let size = header.message_size as usize;
        if size < HEADER_SIZE || size > self.limit {
            return Err(ReceiveError::Size { size: header.message_size, limit: self.limit });
        }
        Ok(size)
    }

    /// Moves what is buffered to the front, and makes the buffer large enough for `needed` bytes.
    fn make_room(&mut self, needed: usize) {
        if self.start > 0 && (self.start == self.end || self.start + needed > self.buffer.len()) {
            self.buffer.copy_within(self.start..self.end, 0);
            for (end, _) in &mut self.fds {
                *end = end.saturating_sub(self.start);
            }
            self.end -= self.start;
            self.start = 0;
        }
        if self.start + needed > self.buffer.len() {
            self.buffer.resize(self.start + needed, 0);
        }
    }

    /// Reads more bytes; false: there are none (only with [`Wait::No`]).
    fn fill(&mut self, socket: &mut Socket, wait: Wait) -> Result<bool, ReceiveError> {
        let Received { bytes, fds } = match socket.receive(&mut self.buffer[self.end..], wait) {
            Ok(received) => received,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::WouldBlock if wait == Wait::No => Ok(false),
                    io::ErrorKind::TimedOut => Err(ReceiveError::TimedOut),
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Err(self.closed()),
                    _ => Err(ReceiveError::Io(error)),
                };
            }
        };
        if bytes == 0 {
            return Err(self.closed());
        }
        if self.fds.len() + fds.len() > MAX_FDS {
            return Err(ReceiveError::Fds);
        }
        self.end += bytes;
        self.fds.extend(fds.into_iter().map(|fd| (self.end, fd)));
        Ok(true)
    }

    fn closed(&self) -> ReceiveError {
        match self.end - self.start {
            0 => ReceiveError::Closed,
            received => ReceiveError::Truncated { received },
        }
    }
}

#[cfg(test)]
mod tests;
