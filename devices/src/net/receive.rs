//! From the tap to the guest: packets are read straight into the driver's buffers where these are mapped.
//!
//! Buffers are taken from the queue ahead of need, as the size of a packet is known only after it was read: enough for the
//! packets that come these days, as the kernel looks at each buffer for each packet. The rest of a larger one is copied.
//! Unused buffers stay for the next packet, also of the worker that comes after this one.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use outrigger_protocol::server::{Memory, MemoryError};

use super::pace::Pace;
use super::tap::{HEADER_SIZE, MAX_PACKET, Tap};
use crate::transport::chain::{part, scatter};
use crate::transport::{ActiveQueue, Chain, Segment, WorkerError};

/// Packets handled before the driver is told.
const BATCH: usize = 64;
/// Buffers in one read, short of the kernel's limit (`UIO_MAXIOV`, 1,024) by one chain and the overflow.
const MAX_BUFFERS: usize = 512;
/// After so many packets that would have fit the interface's MTU, the next ones are expected to.
const FEW_LARGE: u32 = 64;
/// After a wake-up for a single packet, so many are expected to be alike.
const ALONE: u32 = 7;
/// Where the header counts the buffers that a packet takes.
const NUM_BUFFERS_OFFSET: u32 = 10;

/// A chain taken from the queue and not filled yet.
#[derive(Debug)]
struct Buffer {
    head: u16,
    length: usize,
    segments: usize,
}

/// The receiving half of one queue pair.
#[derive(Debug)]
pub struct Receiver {
    tap: Arc<Tap>,
    pair: u16,
    /// A packet may take more than one buffer.
    mergeable: bool,
    /// Bytes of the largest packet without segmentation offload, and of the largest that the driver takes.
    normal: usize,
    largest: usize,
    /// Bytes of buffers to have before reading: one of these two.
    wanted: usize,
    /// Packets in a row that were not larger than `normal`.
    small: u32,
    /// For so many wake-ups, one packet is all that is expected.
    alone: u32,
    buffers: VecDeque<Buffer>,
    available: usize,
    /// The segments of `buffers` from `first` on, in order, and where the kernel finds them.
    segments: Vec<Segment>,
    mapped: Vec<libc::iovec>,
    first: usize,
    /// How many of them are reached by messages only: with any, packets take the way through `overflow`.
    unmapped: usize,
    chain: Chain,
    pace: Pace,
    /// Takes the rest of a packet that is longer than `buffers`.
    overflow: Box<[u8]>,
}

enum Next {
    /// There is more to do at once.
    Continue,
    /// The tap has nothing.
    Tap,
    /// The driver has given no buffers.
    Buffers,
    /// The queue is detached from the tap.
    Detached,
}

impl Receiver {
    /// For one queue pair. `mergeable` and `large`: what the driver accepted.
    pub fn new(tap: Arc<Tap>, pair: u16, mergeable: bool, large: bool) -> Self {
        let normal = HEADER_SIZE + 14 + 4 + usize::from(tap.mtu);
        Self {
            tap,
            pair,
            mergeable,
            normal,
            largest: if large { MAX_PACKET } else { normal },
            wanted: normal,
            small: 0,
            alone: 0,
            buffers: VecDeque::with_capacity(MAX_BUFFERS),
            available: 0,
            segments: Vec::with_capacity(4 * MAX_BUFFERS),
            mapped: Vec::with_capacity(4 * MAX_BUFFERS),
            first: 0,
            unmapped: 0,
            chain: Chain::new(),
            pace: Pace::default(),
            overflow: vec![0; MAX_PACKET].into_boxed_slice(),
        }
    }

    /// Moves packets until told to stop.
    pub fn serve(mut self, active: &mut ActiveQueue) -> Result<(), WorkerError> {
        while !active.stopping() {
            let next = self.receive(active);
            active.publish()?;
            match next? {
                Next::Continue => {}
                Next::Buffers => {
                    if !active.queue.want_doorbell()? {
                        active.wait()?;
                    }
                    active.queue.suppress_doorbell()?;
                }
                Next::Tap => {
                    self.pace.settle();
                    self.wait(active, self.tap.queue(self.pair))?;
                }
                Next::Detached => {
                    if self.wait(active, borrow(self.tap.wake(self.pair)))? {
                        // Readable, so this does not fail; nobody else reads it.
                        let _ = self.tap.wake(self.pair).read();
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves packets until there are no more, or `BATCH` of them. Where packets come one by one, it does not look for a
    /// second one: waiting tells as well.
    fn receive(&mut self, active: &mut ActiveQueue) -> Result<Next, WorkerError> {
        for count in 0..BATCH {
            if active.stopping() {
                break;
            }
            self.fill(active, self.wanted)?;
            if self.buffers.is_empty() {
                return Ok(Next::Buffers);
            }
            match self.read() {
                Ok((length, direct)) => {
                    self.pace.moved(length);
                    self.deliver(active, length, direct)?;
                }
                Err(Errno::EAGAIN) => {
                    if count > 0 {
                        self.alone = if count == 1 { ALONE } else { 0 };
                    }
                    return Ok(Next::Tap);
                }
                // EIO: switched off; nothing comes until it is switched on, which poll notices.
                Err(Errno::EIO | Errno::EINTR) => return Ok(Next::Tap),
                Err(Errno::EBADFD) => return Ok(Next::Detached),
                Err(errno) => return Err(WorkerError::host("cannot read from the tap")(errno.into())),
            }
            if self.alone > 0 {
                self.alone -= 1;
                return Ok(Next::Tap);
            }
        }
        Ok(Next::Continue)
    }

    /// Takes buffers from the queue until a packet of `wanted` bytes fits.
    fn fill(&mut self, active: &mut ActiveQueue, wanted: usize) -> Result<(), WorkerError> {
        while self.buffers.is_empty() || (self.mergeable && self.available < wanted) {
            if self.segments.len() - self.first > MAX_BUFFERS {
                return Ok(());
            }
            let Some(head) = active.queue.pop(&mut self.chain)? else { return Ok(()) };
            let writable = self.chain.writable();
            let length = self.chain.writable_bytes() as usize;
            if length < HEADER_SIZE {
                return Err(WorkerError::host("malformed buffer")(io::Error::other("no room for a packet's header")));
            }
            let memory = active.queue.memory();
            if !writable.iter().all(|segment| memory.is_writable(segment.address, segment.length as usize)) {
                if self.buffers.is_empty() {
                    active.warn(format_args!("net: a buffer is not in memory that the client made available"));
                    active.queue.push(head, 0);
                    continue;
                }
                // Its turn comes when those before it are used.
                active.queue.undo_pop(head);
                return Ok(());
            }
            if self.segments.len() + writable.len() >= self.segments.capacity() {
                self.segments.drain(..self.first);
                self.mapped.drain(..self.first);
                self.first = 0;
            }
            for segment in writable {
                let iov_len = segment.length as usize;
                let iov_base: *mut libc::c_void = match memory.writable_slice(segment.address, iov_len) {
                    Ok(slice) => slice.ptr_guard_mut().as_ptr().cast(),
                    Err(_) => std::ptr::null_mut(),
                };
                self.unmapped += usize::from(iov_base.is_null());
                self.mapped.push(libc::iovec { iov_base, iov_len });
                self.segments.push(*segment);
            }
            self.buffers.push_back(Buffer { head, length, segments: writable.len() });
            self.available += length;
        }
        Ok(())
    }

    /// Reads one packet into the buffers, and what does not fit into `overflow`; all of it if not all buffers are mapped.
    /// Returns its length, and how many bytes went to the buffers.
    fn read(&mut self) -> Result<(usize, usize), Errno> {
        let room = if self.unmapped == 0 { self.available } else { 0 };
        let first = if self.unmapped == 0 { self.first } else { self.mapped.len() };
        let buffers = self.mapped.len();
        if room < MAX_PACKET {
            let (iov_base, iov_len) = (self.overflow.as_mut_ptr().cast(), self.overflow.len());
            self.mapped.push(libc::iovec { iov_base, iov_len });
        }
        let targets = &self.mapped[first..];
        let count = libc::c_int::try_from(targets.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: each target is a range of client memory, which stays mapped while `active.queue` holds it, or
        // `overflow`, which nobody else refers to. Any content of shared memory is fine.
        let result = unsafe { libc::readv(self.tap.queue(self.pair).as_raw_fd(), targets.as_ptr(), count) };
        self.mapped.truncate(buffers);
        let length = usize::try_from(Errno::result(result)?).unwrap_or(0);
        Ok((length, length.min(room)))
    }

    /// Hands the packet that was read to the driver, or drops it.
    fn deliver(&mut self, active: &mut ActiveQueue, length: usize, direct: usize) -> Result<(), WorkerError> {
        self.expect_like(length);
        if length > self.available {
            self.fill(active, length)?;
        }
        if length < HEADER_SIZE || length > self.available {
            // The driver has given too little room; a packet lost is what networks do then.
            log::debug!("net: dropped a packet of {length} bytes, {} bytes of buffers", self.available);
            return Ok(());
        }
        // Before the driver sees the packet, which is when it is published.
        self.place(active.queue.memory(), length, direct)?;
        let mut rest = length;
        while rest > 0 {
            let Some(buffer) = self.buffers.pop_front() else { break };
            let used = rest.min(buffer.length);
            active.queue.push(buffer.head, u32::try_from(used).unwrap_or(u32::MAX));
            self.available -= buffer.length;
            if self.unmapped > 0 {
                let mapped = &self.mapped[self.first..][..buffer.segments];
                self.unmapped -= mapped.iter().filter(|buffer| buffer.iov_base.is_null()).count();
            }
            self.first += buffer.segments;
            rest -= used;
        }
        if self.first == self.segments.len() {
            self.segments.clear();
            self.mapped.clear();
            self.first = 0;
        }
        Ok(())
    }

    /// The next packets may be like this one.
    fn expect_like(&mut self, length: usize) {
        self.small = if length > self.normal { 0 } else { self.small.saturating_add(1) };
        self.wanted = match self.small {
            0 => self.largest,
            FEW_LARGE.. => self.normal,
            _ => self.wanted,
        };
    }

    /// Completes the packet that was read in the driver's buffers: counts them in its header, and brings there what is not
    /// there yet, all but the first `direct` bytes.
    fn place(&mut self, memory: &Memory, length: usize, direct: usize) -> Result<(), MemoryError> {
        let mut rest = length;
        let buffers = self.buffers.iter().take_while(|buffer| {
            let needed = rest > 0;
            rest = rest.saturating_sub(buffer.length);
            needed
        });
        let count = u16::try_from(buffers.count()).unwrap_or(u16::MAX).to_le_bytes();
        if direct == 0 {
            self.overflow[NUM_BUFFERS_OFFSET as usize..][..count.len()].copy_from_slice(&count);
        } else {
            match self.segments[self.first..] {
                [Segment { address, length }, ..] if length as usize >= HEADER_SIZE => {
                    memory.write_array(address.saturating_add(NUM_BUFFERS_OFFSET.into()), count)?;
                }
                // Drivers may cut a header anywhere (virtio 1.2, section 2.7.4.1).
                ref segments => scatter(memory, part(segments, NUM_BUFFERS_OFFSET, 2), &count)?,
            }
        }
        if direct == length {
            return Ok(());
        }
        let copied = &self.overflow[..length - direct];
        let [skip, take] = [direct, copied.len()].map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX));
        scatter(memory, part(&self.segments[self.first..], skip, take), copied)
    }

    /// Waits until `source` is readable, or the doorbell rings; returns whether it was `source`.
    fn wait(&self, active: &ActiveQueue, source: BorrowedFd<'_>) -> Result<bool, WorkerError> {
        let mut fds =
            [PollFd::new(source, PollFlags::POLLIN), PollFd::new(active.doorbell().as_fd(), PollFlags::POLLIN)];
        match active.interruptible(|| poll(&mut fds, PollTimeout::NONE)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(WorkerError::host("cannot wait for the tap")(errno.into())),
        }
        let [source, doorbell] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if doorbell.contains(PollFlags::POLLIN) {
            active.wait()?;
        }
        if source.contains(PollFlags::POLLERR) {
            // A detached tap: the next read says so. One that went away for good says so as well.
            log::debug!("net: {} is detached", self.tap.name());
        }
        Ok(source.contains(PollFlags::POLLIN))
    }
}

fn borrow(eventfd: &vmm_sys_util::eventfd::EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd is borrowed for as long as the result.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}
