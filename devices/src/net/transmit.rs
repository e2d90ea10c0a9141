//! From the guest to the tap: packets are written straight from the driver's buffers where these are mapped.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outrigger_protocol::server::{Memory, MemoryError};

use super::pace::Pace;
use super::tap::{HEADER_SIZE, MAX_PACKET, Tap};
use crate::transport::chain::{MAX_SEGMENTS, gather};
use crate::transport::{ActiveQueue, Chain, WorkerError};

/// How long a full tap may hold up a packet, in milliseconds, before it is dropped.
const FULL_TIMEOUT_MS: u8 = 10;

/// The sending half of one queue pair.
#[derive(Debug)]
pub struct Transmitter {
    tap: Arc<Tap>,
    pair: u16,
    chain: Chain,
    segments: Vec<libc::iovec>,
    /// A packet whose buffers are not mapped; empty until there is one.
    fetched: Vec<u8>,
    pace: Pace,
}

impl Transmitter {
    /// For one queue pair.
    pub fn new(tap: Arc<Tap>, pair: u16) -> Self {
        let segments = Vec::with_capacity(MAX_SEGMENTS);
        Self { tap, pair, chain: Chain::new(), segments, fetched: Vec::new(), pace: Pace::default() }
    }

    /// Moves packets until told to stop.
    pub fn serve(mut self, active: &mut ActiveQueue) -> Result<(), WorkerError> {
        while !active.stopping() {
            active.queue.suppress_doorbell()?;
            let sent = self.send_batch(active);
            active.publish()?;
            if sent? && !active.queue.want_doorbell()? {
                self.pace.settle();
                active.wait()?;
            }
        }
        Ok(())
    }

    /// Sends at most a queue full; returns whether the queue is empty.
    fn send_batch(&mut self, active: &mut ActiveQueue) -> Result<bool, WorkerError> {
        for _ in 0..active.queue.size() {
            if active.stopping() {
                return Ok(false);
            }
            let Some(head) = active.queue.pop(&mut self.chain)? else { return Ok(true) };
            self.send(active)?;
            active.queue.push(head, 0);
        }
        Ok(false)
    }

    /// Sends the packet in `chain`, or drops it.
    fn send(&mut self, active: &ActiveQueue) -> Result<(), MemoryError> {
        let length = self.chain.readable_bytes() as usize;
        if !(HEADER_SIZE..=MAX_PACKET).contains(&length) {
            active.warn(format_args!("net: dropped a packet of {length} bytes"));
            return Ok(());
        }
        self.pace.moved(length);
        match self.collect(active.queue.memory(), length) {
            Ok(()) => {}
            Err(error @ MemoryError::Disconnected { .. }) => return Err(error),
            Err(error) => {
                active.warn(format_args!("net: dropped a packet: {error}"));
                return Ok(());
            }
        }
        let result = match self.write() {
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(self.tap.queue(self.pair), PollFlags::POLLOUT)];
                // If it fails, so does the write.
                let _ = poll(&mut fds, PollTimeout::from(FULL_TIMEOUT_MS));
                self.write()
            }
            other => other,
        };
        if let Err(errno) = result {
            active.warn(format_args!("net: dropped a packet of {length} bytes: {}: {errno}", self.tap.name()));
        }
        Ok(())
    }

    /// Tells the kernel where the packet of `length` bytes is: in the driver's buffers, or fetched from there.
    fn collect(&mut self, memory: &Memory, length: usize) -> Result<(), MemoryError> {
        self.segments.clear();
        for segment in self.chain.readable() {
            let iov_len = segment.length as usize;
            let Ok(slice) = memory.readable_slice(segment.address, iov_len) else {
                return self.fetch(memory, length);
            };
            let iov_base = slice.ptr_guard().as_ptr().cast_mut().cast();
            match self.segments.last_mut() {
                // Neighbours are one.
                Some(last) if last.iov_base.wrapping_byte_add(last.iov_len) == iov_base => last.iov_len += iov_len,
                _ => self.segments.push(libc::iovec { iov_base, iov_len }),
            }
        }
        Ok(())
    }

    #[cold]
    fn fetch(&mut self, memory: &Memory, length: usize) -> Result<(), MemoryError> {
        self.fetched.resize(MAX_PACKET, 0);
        gather(memory, self.chain.readable().iter().copied(), &mut self.fetched[..length])?;
        self.segments.clear();
        self.segments.push(libc::iovec { iov_base: self.fetched.as_mut_ptr().cast(), iov_len: length });
        Ok(())
    }

    fn write(&self) -> Result<(), Errno> {
        let tap = self.tap.queue(self.pair).as_raw_fd();
        let count = libc::c_int::try_from(self.segments.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: each segment is a range of client memory, which stays mapped while `active.queue` holds it, and which
        // is only read, or of `fetched`. The kernel checks the header, which the guest may change at any time.
        let result = unsafe {
            match self.segments[..] {
                [libc::iovec { iov_base, iov_len }] => libc::write(tap, iov_base, iov_len),
                _ => libc::writev(tap, self.segments.as_ptr(), count),
            }
        };
        Errno::result(result).map(drop)
    }
}
