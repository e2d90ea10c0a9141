//! Messages out of a stream of bytes.
//!
//! A [`Receiver`] reads ahead, so that a short message costs one system call, and hands out one whole message at a time.
//! Nothing that a peer sends makes it hold more than the limit it was given.

use std::io;
use std::time::{Duration, Instant};

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::foreign::ForeignFd;
use crate::socket::{MAX_FDS, Received, Socket, Wait};
use crate::wire::{HEADER_SIZE, Header};

/// Bytes read at once: all messages but bulk transfers fit.
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
        /// The size in the header.
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
    /// The bytes after the header.
    pub payload: &'a [u8],
    /// The descriptors that came with it.
    pub fds: Vec<ForeignFd>,
}

impl<'a> Message<'a> {
    /// Splits the payload into its fixed structure and what follows. `None`: too short.
    pub fn parse<T: FromBytes + KnownLayout + Immutable + Copy>(&self) -> Option<(T, &'a [u8])> {
        T::read_from_prefix(self.payload).ok()
    }
}

/// The structures of an array. Read one by one, for a payload begins anywhere in a buffer: behind a message of odd length
/// it is not aligned.
pub(crate) fn structures<T: FromBytes>(bytes: &[u8]) -> impl ExactSizeIterator<Item = T> {
    bytes.chunks_exact(size_of::<T>()).map(|one| T::read_from_bytes(one).expect("a chunk is as long as one"))
}

/// Assembles messages from a socket.
#[derive(Debug)]
pub struct Receiver {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Descriptors with the position in `buffer` where the bytes end that they came with.
    fds: Vec<(usize, ForeignFd)>,
    limit: usize,
    patience: Duration,
    /// By when the message at `start` must be whole, once a part of it is there.
    due: Option<Instant>,
}

impl Receiver {
    /// Takes messages of at most `limit` bytes, header included, each of which must be complete `patience` after its
    /// first bytes.
    pub fn new(limit: usize, patience: Duration) -> Self {
        Self { buffer: vec![0; READ_AHEAD], start: 0, end: 0, fds: Vec::new(), limit, patience, due: None }
    }

    /// Changes how long a message may take from its first bytes on; not for one that has begun.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Changes the limit, when a new one has been negotiated.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Whether [`Receiver::buffered`] has a message (or an error) to hand out.
    pub fn has_whole(&self) -> bool {
        !matches!(self.whole(), Ok(None))
    }

    /// The next message. `wait` is for its first bytes; `None`: there is none yet (only with [`Wait::No`] and [`Wait::Tick`]).
    pub fn receive(&mut self, socket: &mut Socket, wait: Wait) -> Result<Option<Message<'_>>, ReceiveError> {
        while self.whole()?.is_none() {
            if !self.read_ahead(socket, wait)? {
                return Ok(None);
            }
        }
        self.buffered()
    }

    /// The next message if all of it has been read already.
    pub fn buffered(&mut self) -> Result<Option<Message<'_>>, ReceiveError> {
        let Some(header) = self.whole()? else { return Ok(None) };
        let body = self.start + HEADER_SIZE;
        self.start += header.message_size as usize;
        self.due = None;
        // Linux ends a receive behind the bytes that descriptors came with, so those whose bytes end beyond this
        // message belong to a later one.
        let mine = self.fds.iter().take_while(|(end, _)| *end <= self.start).count();
        let fds = self.fds.drain(..mine).map(|(_, fd)| fd).collect();
        Ok(Some(Message { header, payload: &self.buffer[body..self.start], fds }))
    }

    /// Receives once, at most what completes the next message or a page; false: there was nothing (only with
    /// [`Wait::No`] and [`Wait::Tick`]).
    pub fn read_ahead(&mut self, socket: &mut Socket, wait: Wait) -> Result<bool, ReceiveError> {
        let have = self.end - self.start;
        let wait = if have > 0 { self.wait_for_rest(wait)? } else { wait };
        let needed = self.header()?.map_or(HEADER_SIZE, |header| header.message_size as usize);
        let room = (needed - have.min(needed)).max(READ_AHEAD);
        self.make_room(have + room);
        self.fill(socket, room, wait)
    }

    /// A message that has begun is waited for until it is due, whoever waits.
    fn wait_for_rest(&mut self, wait: Wait) -> Result<Wait, ReceiveError> {
        let now = Instant::now();
        let due = *self.due.get_or_insert(now + self.patience);
        match wait {
            _ if now >= due => Err(ReceiveError::TimedOut),
            // A peer that sends byte by byte has always a byte there.
            Wait::Until(deadline) if now >= deadline => Err(ReceiveError::TimedOut),
            Wait::No | Wait::Tick => Ok(wait),
            Wait::Until(deadline) => Ok(Wait::Until(deadline.min(due))),
            Wait::Forever => Ok(Wait::Until(due)),
        }
    }

    /// The header of the next message, checked.
    fn header(&self) -> Result<Option<Header>, ReceiveError> {
        let Ok((header, _)) = Header::read_from_prefix(&self.buffer[self.start..self.end]) else { return Ok(None) };
        let size = header.message_size as usize;
        if size < HEADER_SIZE || size > self.limit {
            return Err(ReceiveError::Size { size: header.message_size, limit: self.limit });
        }
        Ok(Some(header))
    }

    fn whole(&self) -> Result<Option<Header>, ReceiveError> {
        let have = self.end - self.start;
        Ok(self.header()?.filter(|header| have >= header.message_size as usize))
    }

    /// Moves what is buffered to the front if `needed` bytes from there do not fit, and makes the buffer large enough.
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

    /// Reads more bytes; false: there are none (only with [`Wait::No`] and [`Wait::Tick`]).
    fn fill(&mut self, socket: &mut Socket, room: usize, wait: Wait) -> Result<bool, ReceiveError> {
        let Received { bytes, fds } = match socket.receive(&mut self.buffer[self.end..][..room], wait) {
            Ok(received) => received,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::WouldBlock if matches!(wait, Wait::No | Wait::Tick) => Ok(false),
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
