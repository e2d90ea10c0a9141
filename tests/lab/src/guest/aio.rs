//! Linux' native asynchronous I/O (`io_setup(2)` and its family), without a library's bookkeeping between the load and the kernel.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, null_mut};
use std::time::{Duration, Instant};

/// `struct iocb` (Linux, include/uapi/linux/aio_abi.h).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}
const _: () = assert!(size_of::<Iocb>() == 64);

/// `struct io_event`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Direction {
    /// `IOCB_CMD_PREAD`.
    Read = 0,
    /// `IOCB_CMD_PWRITE`.
    Write = 1,
}

/// A fixed number of operations in flight on one file, each with its own buffer.
#[derive(Debug)]
pub struct Depth {
    context: libc::c_ulong,
    operations: Box<[Iocb]>,
    pointers: Box<[*mut Iocb]>,
    events: Box<[Event]>,
    buffers: NonNull<libc::c_void>,
    block: usize,
}

impl Depth {
    /// `depth` operations of `block` bytes. `file` must outlive what is submitted, which [`Depth::run`] sees to.
    pub fn new(file: &File, direction: Direction, depth: usize, block: usize) -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes the context's number and nothing else.
        result(unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) })?;
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE);
        // SAFETY: a new mapping, which nobody else refers to.
        let buffers = unsafe { libc::mmap(null_mut(), depth * block, protection, flags, -1, 0) };
        let Some(buffers) = NonNull::new(buffers).filter(|buffers| buffers.as_ptr() != libc::MAP_FAILED) else {
            return Err(io::Error::last_os_error());
        };
        let operation = |index| Iocb {
            opcode: direction as u16,
            fd: file.as_raw_fd().cast_unsigned(),
            buffer: buffers.as_ptr() as u64 + (index * block) as u64,
            length: block as u64,
            ..Iocb::default()
        };
        let mut operations: Box<[_]> = (0..depth).map(operation).collect();
        let pointers = operations.iter_mut().map(|operation| &raw mut *operation).collect();
        Ok(Self { context, operations, pointers, events: vec![Event::default(); depth].into(), buffers, block })
    }

    /// Does an operation at each of `offsets`, as many at a time as the depth allows, and waits for all of them.
    pub fn run(&mut self, offsets: &[u64]) -> io::Result<()> {
        let depth = self.operations.len().min(offsets.len());
        let (first, mut rest) = offsets.split_at(depth);
        for (operation, &offset) in self.operations.iter_mut().zip(first) {
            operation.offset = offset.cast_signed();
        }
        self.submit(depth)?;
        let mut in_flight = depth;
        while in_flight > 0 {
            let done = self.wait()?;
            in_flight -= done;
            let again = done.min(rest.len());
            for (slot, event) in self.events[..again].iter().enumerate() {
                let operation = event.object as *mut Iocb;
                // SAFETY: the kernel gives back the addresses that it was given, which are in `operations`, and it has no
                // more use for this one.
                unsafe { (*operation).offset = rest[slot].cast_signed() };
                self.pointers[slot] = operation;
            }
            rest = &rest[again..];
            self.submit(again)?;
            in_flight += again;
        }
        Ok(())
    }

    /// Does operations at `offsets` until `pauses` of at least `least` have passed between one completion and the next;
    /// returns how long these took together.
    pub fn run_until_paused(
        &mut self,
        mut offsets: impl Iterator<Item = u64>,
        pauses: usize,
        least: Duration,
    ) -> io::Result<Duration> {
        let more = || io::Error::other("the offsets came to their end");
        for operation in &mut self.operations {
            operation.offset = offsets.next().ok_or_else(more)?.cast_signed();
        }
        let mut in_flight = self.operations.len();
        self.submit(in_flight)?;
        let (mut left, mut total, mut last) = (pauses, Duration::ZERO, Instant::now());
        while in_flight > 0 {
            let done = self.wait()?;
            in_flight -= done;
            let now = Instant::now();
            let pause = now - std::mem::replace(&mut last, now);
            if pause >= least && left > 0 {
                (left, total) = (left - 1, total + pause);
            }
            if left == 0 {
                continue;
            }
            for (slot, event) in self.events[..done].iter().enumerate() {
                let operation = event.object as *mut Iocb;
                // SAFETY: as in `run`.
                unsafe { (*operation).offset = offsets.next().ok_or_else(more)?.cast_signed() };
                self.pointers[slot] = operation;
            }
            self.submit(done)?;
            in_flight += done;
        }
        Ok(total)
    }

    fn submit(&mut self, count: usize) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        // SAFETY: the first `count` pointers lead to operations that are not in flight, with buffers of their own.
        let submitted = unsafe { libc::syscall(libc::SYS_io_submit, self.context, count, self.pointers.as_mut_ptr()) };
        match result(submitted)? {
            submitted if submitted == count => Ok(()),
            submitted => Err(io::Error::other(format!("{submitted} of {count} operations were submitted"))),
        }
    }

    /// At least one event; returns how many of `events` are filled.
    fn wait(&mut self) -> io::Result<usize> {
        let (room, events) = (self.events.len(), self.events.as_mut_ptr());
        // SAFETY: `events` has room for as many as are asked for.
        let filled = unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, 1, room, events, null_mut::<libc::timespec>())
        };
        let filled = result(filled)?;
        match self.events[..filled].iter().find(|event| event.result != self.block as i64) {
            None => Ok(filled),
            Some(event) => Err(io::Error::other(format!("an operation ended with {}", event.result))),
        }
    }
}

impl Drop for Depth {
    fn drop(&mut self) {
        // SAFETY: destroying the context waits for what is in flight, after which nothing refers to the buffers, which are
        // a mapping of ours.
        unsafe {
            libc::syscall(libc::SYS_io_destroy, self.context);
            libc::munmap(self.buffers.as_ptr(), self.operations.len() * self.block);
        }
    }
}

fn result(value: libc::c_long) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::Error::last_os_error())
}
