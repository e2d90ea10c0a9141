//! A request queue on an io_uring.
//!
//! Reads and writes of a disk that is in memory are done without the ring.
//!
//! Data in the page cache is moved on submission: then nothing is ever under way while the worker waits, and it
//! waits by reading the doorbell. Once something has to be waited for, the doorbell is part of the ring: one system call
//! submits whatever the driver made available, and waits for the next completion or the doorbell, whichever comes first.
//! The doorbell is a multishot poll then, which is never read: each ring adds to the eventfd's counter and completes the
//! poll once, and nothing looks at the counter. Now and then it is taken out of the ring, to see if it is still needed
//! there; and at the end, as the thread uses the ring again.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use io_uring::{cqueue, squeue};
use outrigger_protocol::server::MemoryError;

use super::at_once;
use super::bounce::Bounce;
use super::request::{Disk, Operation, Parsed, Request, Status};
use super::uring::{Ring, arm, disarm};
use crate::transport::chain::MAX_SEGMENTS;
use crate::transport::{ActiveQueue, Chain, WorkerError};

/// Completions carry the head of their chain; this is no head.
const DOORBELL_TOKEN: u64 = u64::MAX;
/// Nor is this: the poll for the doorbell was taken out of the ring, which another completion tells.
const DISARM_TOKEN: u64 = u64::MAX - 1;
/// How many waits for nothing but the doorbell it stays in the ring.
const MAX_IDLE_WAITS: u32 = 64;
/// How often the kernel may ask to try again.
const MAX_RETRIES: u8 = 16;

/// Serves a request queue until told to stop.
pub fn serve(disk: Disk, active: &mut ActiveQueue) -> Result<(), WorkerError> {
    // Readers share the lock on the disk, which is no fence then. The ring holds what is registered until the kernel has done
    // with all of it, some 30 ms after the process has ended (Linux 6.18): too long for other disks.
    let fence = active.fence().filter(|_| disk.backing.readonly).map(|fence| fence.as_fd().as_raw_fd());
    let mut ring =
        Ring::take(active.doorbell().as_raw_fd(), fence).map_err(WorkerError::host("cannot set up io_uring"))?;
    let size = usize::from(active.queue.size());
    let mut service = Service {
        disk,
        ring: &mut ring,
        requests: vec![Request::default(); size],
        buffers: Vec::new(),
        slots: vec![0; size],
        free: Vec::with_capacity(size),
        bounces: std::iter::repeat_with(|| None).take(size).collect(),
        chain: Chain::new(),
        in_flight: 0,
        doorbell_armed: false,
        disarming: 0,
        idle_waits: 0,
    };
    let result = service.run(active);
    // Also after an error: the kernel is still at work on client memory.
    let drained = service.drain(active);
    // A ring that is not empty is closed.
    let emptied = match service.in_flight {
        0 => service.disarm(active).and_then(|()| ring.release().map_err(WorkerError::host("cannot empty io_uring"))),
        _ => Ok(()),
    };
    result.and(drained).and(emptied)
}

struct Service<'r> {
    disk: Disk,
    ring: &'r mut Ring,
    /// By head.
    requests: Vec<Request>,
    /// By slot, [`MAX_SEGMENTS`] each: as many as requests were ever under way at once.
    buffers: Vec<Box<[libc::iovec]>>,
    /// By head.
    slots: Vec<usize>,
    free: Vec<usize>,
    /// By head; of requests whose data is not mapped.
    bounces: Vec<Option<Bounce>>,
    chain: Chain,
    in_flight: usize,
    /// The doorbell is part of the ring.
    doorbell_armed: bool,
    /// How many attempts to take it out are under way.
    disarming: usize,
    /// Waits for nothing else since then.
    idle_waits: u32,
}

impl Service<'_> {
    fn run(&mut self, active: &mut ActiveQueue) -> Result<(), WorkerError> {
        while !active.stopping() {
            let left = self.ring.has_unsubmitted();
            let taken = self.take(active)?;
            // With the doorbell in the ring, the call that waits submits as well, if there is nothing more to take.
            if taken && (left || !self.doorbell_armed) {
                self.enter(0)?;
                self.complete(active)?;
            }
            active.publish()?;
            // Until here the doorbell was not wanted, as the queue was about to be looked at.
            if !taken && !active.queue.want_doorbell()? {
                self.wait(active)?;
            }
        }
        Ok(())
    }

    /// Waits for the doorbell, or for a request that is under way, whichever comes first.
    fn wait(&mut self, active: &mut ActiveQueue) -> Result<(), WorkerError> {
        match (self.in_flight, self.doorbell_armed) {
            (0, false) => return active.wait(),
            (0, true) => {
                self.idle_waits += 1;
                if self.idle_waits == MAX_IDLE_WAITS {
                    self.begin_disarm()?;
                }
            }
            (_, false) => {
                // SAFETY: the entry refers to nothing but a registered file.
                unsafe { self.submit(&arm(DOORBELL_TOKEN)) }?;
                (self.doorbell_armed, self.idle_waits) = (true, 0);
            }
            (_, true) => {}
        }
        active.interruptible(|| self.enter(1))?;
        self.complete(active)
    }

    /// Has the doorbell taken out of the ring.
    fn begin_disarm(&mut self) -> Result<(), WorkerError> {
        // SAFETY: the entry refers to nothing.
        unsafe { self.submit(&disarm(DOORBELL_TOKEN, DISARM_TOKEN)) }?;
        self.disarming += 1;
        Ok(())
    }

    /// Takes the doorbell out of a ring that has nothing else in it, and sees the last completions.
    fn disarm(&mut self, active: &mut ActiveQueue) -> Result<(), WorkerError> {
        while self.doorbell_armed || self.disarming > 0 {
            if self.disarming == 0 {
                self.begin_disarm()?;
            }
            self.enter(1)?;
            self.complete(active)?;
        }
        Ok(())
    }

    /// Waits for what the kernel is doing and tells the driver.
    fn drain(&mut self, active: &mut ActiveQueue) -> Result<(), WorkerError> {
        let mut result = Ok(());
        while self.in_flight > 0 {
            if let Err(error) = self.enter(1) {
                // Unheard of. The kernel may still be at work on client memory: it stays mapped for good, as do our buffers.
                std::mem::forget(active.queue.memory().clone());
                std::mem::forget(std::mem::take(&mut self.bounces));
                return Err(error);
            }
            result = result.and(self.complete(active));
        }
        active.publish()?;
        result
    }

    /// Takes what the driver made available, at most a queue full; returns whether there was anything.
    fn take(&mut self, active: &mut ActiveQueue) -> Result<bool, WorkerError> {
        active.queue.suppress_doorbell()?;
        for count in 0..active.queue.size() {
            if active.stopping() {
                break;
            }
            let Some(head) = active.queue.pop(&mut self.chain)? else { return Ok(count > 0) };
            self.begin(active, head)?;
        }
        Ok(true)
    }

    fn begin(&mut self, active: &mut ActiveQueue, head: u16) -> Result<(), WorkerError> {
        let index = usize::from(head);
        self.slots[index] = self.free.pop().unwrap_or_else(|| {
            let null = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
            self.buffers.push(vec![null; MAX_SEGMENTS].into_boxed_slice());
            self.buffers.len() - 1
        });
        let buffers = &mut self.buffers[self.slots[index]];
        let (request, parsed) =
            Request::parse(&self.disk, active.queue.memory(), &self.chain, buffers, &mut self.bounces[index])?;
        self.requests[index] = request;
        let (status, written) = match parsed {
            Parsed::Submit => return self.resubmit(active, head),
            Parsed::Done(status, written) => (status, written),
            Parsed::Failed(status, error) => {
                active.warn(format_args!("blk: request refused: {error}"));
                (status, 0)
            }
        };
        Ok(self.end(active, head, status, written)?)
    }

    /// Has the kernel do what remains of a request, or the next piece of it.
    fn resubmit(&mut self, active: &mut ActiveQueue, head: u16) -> Result<(), WorkerError> {
        let index = usize::from(head);
        let request = &mut self.requests[index];
        let buffers = &mut self.buffers[self.slots[index]];
        if let Some(bounce) = &mut self.bounces[index] {
            let fetched = match request.operation {
                Operation::Write => bounce.fetch(active.queue.memory(), request.done(), request.remaining),
                _ => Ok(()),
            };
            request.set_buffer(bounce.buffer(request.remaining), buffers);
            if let Err(error) = fetched {
                return self.unreached(active, head, error);
            }
        } else if self.disk.backing.in_memory && request.is_new() {
            // SAFETY: the buffers are client memory, mapped while `active.queue` is there, and open in the direction of
            // the request, as `Request::parse` has checked.
            if let Some(result) = unsafe { at_once::perform(&self.disk, request, buffers) } {
                // The remainder, if there is one, takes the ring.
                return self.finish(active, head, result);
            }
        }
        let entry = self.requests[index].submission(&self.disk, buffers).user_data(head.into());
        // SAFETY: the entry refers to `buffers` and to client memory or a bounce buffer. All stay until it completes:
        // those of a slot are left alone while its chain is in flight, neither they nor the mapping go away before
        // `drain` has waited for all requests, and the kernel accepts any content of shared memory.
        unsafe { self.submit(&entry) }?;
        self.in_flight += 1;
        Ok(())
    }

    /// Queues an entry for submission.
    ///
    /// # Safety
    /// All that it refers to stays until it completes.
    unsafe fn submit(&mut self, entry: &squeue::Entry) -> Result<(), WorkerError> {
        // SAFETY: the caller's promise.
        unsafe { self.ring.push(entry) }.map_err(WorkerError::host("cannot submit I/O"))
    }

    /// Submits what is queued and waits for `want` completions.
    fn enter(&mut self, want: usize) -> Result<(), WorkerError> {
        self.ring.enter(want).map_err(WorkerError::host("cannot enter io_uring"))
    }

    /// Handles all completions.
    fn complete(&mut self, active: &mut ActiveQueue) -> Result<(), WorkerError> {
        let mut result = Ok(());
        while let Some(completion) = self.ring.complete() {
            match completion.user_data() {
                DOORBELL_TOKEN => {
                    self.doorbell_armed &= cqueue::more(completion.flags());
                    continue;
                }
                DISARM_TOKEN => {
                    self.disarming -= 1;
                    continue;
                }
                _ => {}
            }
            let head = u16::try_from(completion.user_data()).expect("a head, as submitted");
            self.in_flight -= 1;
            // The first error counts; the rest must be taken off the ring all the same.
            result = result.and(self.finish(active, head, completion.result()));
        }
        result
    }

    fn finish(&mut self, active: &mut ActiveQueue, head: u16, result: i32) -> Result<(), WorkerError> {
        let index = usize::from(head);
        let request = &mut self.requests[index];
        let moved = result.cast_unsigned();
        if let (Some(bounce), Operation::Read, 1..) = (&self.bounces[index], request.operation, result)
            && let Err(error) = bounce.deliver(active.queue.memory(), request.done(), moved)
        {
            return self.unreached(active, head, error);
        }
        let status = match (request.operation, result) {
            (Operation::Read | Operation::Write, 1..) if moved < request.remaining => {
                request.advance(moved, &mut self.buffers[self.slots[index]]);
                return self.go_on(active, head);
            }
            (Operation::Read | Operation::Write, 0) => {
                self.warn(active, head, "the file ends there");
                Status::IoError
            }
            (_, 0..) if request.becomes_flush(&self.disk) => return self.go_on(active, head),
            (_, 0..) => Status::Ok,
            (Operation::Zero, error) if error == -libc::EOPNOTSUPP => {
                // Some file systems can only punch holes.
                request.operation = Operation::ZeroUnmap;
                return self.go_on(active, head);
            }
            (Operation::Discard | Operation::ZeroUnmap, error) if error == -libc::EOPNOTSUPP => Status::Unsupported,
            (_, error) if [-libc::EINTR, -libc::EAGAIN].contains(&error) && request.retries < MAX_RETRIES => {
                request.retries += 1;
                return self.go_on(active, head);
            }
            (_, error) => {
                self.warn(active, head, &io::Error::from_raw_os_error(-error).to_string());
                Status::IoError
            }
        };
        let written = self.requests[index].written(status);
        Ok(self.end(active, head, status, written)?)
    }

    /// Submits the rest of a request, unless the queue was abandoned.
    fn go_on(&mut self, active: &mut ActiveQueue, head: u16) -> Result<(), WorkerError> {
        if !active.abandoned() {
            return self.resubmit(active, head);
        }
        let written = self.requests[usize::from(head)].written(Status::IoError);
        Ok(self.end(active, head, Status::IoError, written)?)
    }

    fn warn(&self, active: &ActiveQueue, head: u16, cause: &str) {
        let Request { operation, offset, length, .. } = self.requests[usize::from(head)];
        active.warn(format_args!("blk: {operation:?} of {length} bytes at byte {offset}: {cause}"));
    }

    /// A message about a request's data went wrong: the request fails, or with the client gone the whole service.
    fn unreached(&mut self, active: &mut ActiveQueue, head: u16, error: MemoryError) -> Result<(), WorkerError> {
        if matches!(error, MemoryError::Disconnected { .. }) {
            return Err(error.into());
        }
        self.warn(active, head, &error.to_string());
        let written = self.requests[usize::from(head)].written(Status::IoError);
        Ok(self.end(active, head, Status::IoError, written)?)
    }

    /// Reports a request, the first `written` bytes of whose data were written to the driver's buffers.
    fn end(&mut self, active: &mut ActiveQueue, head: u16, status: Status, written: u32) -> Result<(), MemoryError> {
        self.bounces[usize::from(head)] = None;
        self.free.push(self.slots[usize::from(head)]);
        let request = &self.requests[usize::from(head)];
        active.queue.memory().write_array(request.status_address, [status as u8])?;
        active.queue.push(head, request.used_length(written));
        Ok(())
    }
}
