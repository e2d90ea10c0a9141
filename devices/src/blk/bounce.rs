//! A request whose data the kernel cannot reach: client memory that this process has not mapped. Its data goes through a
//! buffer of ours, a piece at a time, and between that buffer and the client in messages.

use outrigger_protocol::server::{Memory, MemoryError};

use crate::transport::Segment;
use crate::transport::chain::{gather, part, scatter};

/// The most bytes of one request that are here at a time, so that what all requests of a queue take stays within 16 MiB.
const PIECE: u32 = 64 << 10;

/// The data of one request.
#[derive(Debug)]
pub struct Bounce {
    segments: Vec<Segment>,
    bytes: Box<[u8]>,
}

impl Bounce {
    /// For `length` bytes of data in `segments`.
    pub fn new(segments: impl Iterator<Item = Segment>, length: u32) -> Self {
        Self { segments: segments.collect(), bytes: vec![0; length.min(PIECE) as usize].into_boxed_slice() }
    }

    /// Where the kernel finds or leaves the next piece, if `remaining` bytes are left.
    pub fn buffer(&mut self, remaining: u32) -> libc::iovec {
        let iov_len = self.bytes.len().min(remaining as usize);
        libc::iovec { iov_base: self.bytes.as_mut_ptr().cast(), iov_len }
    }

    /// Fetches the piece that starts at byte `done` of the data, before the kernel writes it to the disk.
    pub fn fetch(&mut self, memory: &Memory, done: u32, remaining: u32) -> Result<(), MemoryError> {
        let length = self.bytes.len().min(remaining as usize);
        gather(memory, part(&self.segments, done, remaining), &mut self.bytes[..length])
    }

    /// Passes on `length` bytes that the kernel has read from the disk, to byte `done` of the data.
    pub fn deliver(&self, memory: &Memory, done: u32, length: u32) -> Result<(), MemoryError> {
        let bytes = &self.bytes[..self.bytes.len().min(length as usize)];
        scatter(memory, part(&self.segments, done, length), bytes)
    }
}
