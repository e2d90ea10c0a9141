//! A thread's io_uring: made once, restricted to what requests need, and used by one queue after the other.
//!
//! The ring can do no more than what is listed here, whoever has taken over the process: it opens nothing, connects nowhere,
//! and makes no new descriptors (`IORING_REGISTER_RESTRICTIONS`, Linux 5.10). What belongs to a queue in service, its doorbell and
//! its fence, is put in when the service begins and taken out at its end.

use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::{Mutex, Once, PoisonError};

use io_uring::register::Restriction;
use io_uring::{IoUring, Submitter, cqueue, opcode, squeue, types};
use outrigger_process::seal::filter;

use crate::transport::layout::MAX_QUEUE_SIZE;

/// Every request of the largest queue, and the doorbell. The completion queue has twice as many.
const ENTRIES: u32 = 2 * MAX_QUEUE_SIZE as u32;
/// The doorbell among the registered files.
const DOORBELL_FILE: types::Fixed = types::Fixed(0);
/// Registered files: the doorbell and the fence.
const FILES: usize = 2;
/// No file.
const NONE: RawFd = -1;
/// `IORING_REGISTER_FILES_UPDATE`, `IORING_UNREGISTER_RING_FDS` (`<linux/io_uring.h>`).
const FILES_UPDATE: u8 = 6;
const UNREGISTER_RING_FDS: u8 = 21;

/// A ring that nothing is under way in, except while a queue uses it.
pub struct Ring {
    // Dropped in this order: these refer to the last.
    submitter: Submitter<'static>,
    submissions: squeue::SubmissionQueue<'static>,
    completions: cqueue::CompletionQueue<'static>,
    _owner: Owner,
    /// The thread has made it before it was needed, and keeps it.
    is_kept: bool,
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The thread has the ring open beside the descriptor. Fails before Linux 5.18, where it has not.
        let _ = self.submitter.unregister_ring_fd();
    }
}

/// Closes the ring when it is dropped.
struct Owner(NonNull<IoUring>);

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: it is from a box ([`Ring::new`]), and all references to it were in the fields before this one.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Whether a ring is disabled until it is restricted and enabled.
#[derive(Clone, Copy)]
struct Restrictable(bool);

/// Rings that no thread has yet.
static BUILT: Mutex<Vec<(IoUring, Restrictable)>> = Mutex::new(Vec::new());

thread_local! {
    /// While no queue uses it.
    static KEPT: Cell<Option<Ring>> = const { Cell::new(None) };
}

/// The entry that waits for the doorbell, again and again; it refers to nothing but the registered file.
pub fn arm(token: u64) -> squeue::Entry {
    let poll = opcode::PollAdd::new(DOORBELL_FILE, libc::POLLIN.cast_unsigned().into()).multi(true);
    poll.build().user_data(token)
}

/// The entry that ends the wait with this token; it refers to nothing. Not a removal of the poll (`IORING_OP_POLL_REMOVE`),
/// which fails while the doorbell rings: a client may ring it all the time.
pub fn disarm(armed: u64, token: u64) -> squeue::Entry {
    opcode::AsyncCancel::new(armed).build().user_data(token)
}

/// Whether this process may use io_uring.
pub fn probe() -> io::Result<()> {
    build().map(drop)
}

/// Builds `count` rings for threads that come later: a ring of a process with `CAP_IPC_LOCK` does not count against the limit
/// of locked memory, which all processes of a user share (Linux 6.18).
pub fn build_beforehand(count: u16) -> io::Result<()> {
    let rings = (0..count).map(|_| build()).collect::<io::Result<Vec<_>>>()?;
    BUILT.lock().unwrap_or_else(PoisonError::into_inner).extend(rings);
    Ok(())
}

/// Makes the calling thread's ring, which it keeps from now on: for a thread that may not make one later.
pub fn prepare() -> io::Result<()> {
    let mut ring = Ring::new()?;
    ring.is_kept = true;
    KEPT.set(Some(ring));
    Ok(())
}

impl Ring {
    /// The calling thread's ring, or a new one if it has none, with these files in it. To be given back by [`Ring::release`].
    pub fn take(doorbell: RawFd, fence: Option<RawFd>) -> io::Result<Self> {
        let ring = match KEPT.take() {
            Some(ring) => ring,
            None if filter::is_installed() => {
                return Err(io::Error::other("this thread has lost its ring, and may not make another"));
            }
            None => Self::new()?,
        };
        match ring.set_files([doorbell, fence.unwrap_or(NONE)]) {
            Ok(()) => Ok(ring),
            Err(error) => {
                ring.keep();
                Err(error)
            }
        }
    }

    /// Takes the files out of a ring in which nothing is under way any more, and has the thread keep it if it was the
    /// thread's.
    pub fn release(self) -> io::Result<()> {
        self.set_files([NONE; FILES])?;
        self.keep();
        Ok(())
    }

    fn keep(self) {
        if self.is_kept {
            KEPT.set(Some(self));
        }
    }

    fn new() -> io::Result<Self> {
        let built = BUILT.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (ring, Restrictable(is_restrictable)) = built.map_or_else(build, Ok)?;
        let owner = Owner(NonNull::from(Box::leak(Box::new(ring))));
        // SAFETY: it lives as long as `owner`, which is dropped after what refers to it, and there is no other reference.
        let ring: &'static mut IoUring = unsafe { &mut *owner.0.as_ptr() };
        let (mut submitter, submissions, completions) = ring.split();
        // Spares the kernel a look-up for each call; before Linux 5.18 it goes without.
        let _ = submitter.register_ring_fd();
        submitter.register_files(&[NONE; FILES])?;
        if is_restrictable {
            submitter.register_restrictions(&mut restrictions())?;
            submitter.register_enable_rings()?;
        } else {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| log::warn!("blk: this kernel cannot restrict io_uring (Linux 5.10 can)"));
        }
        Ok(Self { submitter, submissions, completions, _owner: owner, is_kept: false })
    }

    fn set_files(&self, files: [RawFd; FILES]) -> io::Result<()> {
        self.submitter.register_files_update(0, &files).map(drop)
    }

    /// Whether there are entries that the kernel has not seen.
    pub fn has_unsubmitted(&self) -> bool {
        !self.submissions.is_empty()
    }

    /// Queues an entry for submission.
    ///
    /// # Safety
    /// All that it refers to stays until it completes.
    pub unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller's promise.
        let mut pushed = unsafe { self.submissions.push(entry) };
        if pushed.is_err() {
            // Cannot happen with a queue twice as long as what can be in flight, but costs nothing to get right.
            self.enter(0)?;
            // SAFETY: the caller's promise.
            pushed = unsafe { self.submissions.push(entry) };
        }
        pushed.map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    /// Submits what is queued and waits for `want` completions.
    pub fn enter(&mut self, want: usize) -> io::Result<()> {
        if want == 0 && self.submissions.is_empty() {
            return Ok(());
        }
        self.submissions.sync();
        let result = self.submitter.submit_and_wait(want);
        self.submissions.sync();
        self.completions.sync();
        match result.map_err(|error| (error.raw_os_error(), error)) {
            // EAGAIN, EBUSY: the kernel is short of memory or of completions taken; both pass.
            Ok(_) | Err((Some(libc::EINTR | libc::EAGAIN | libc::EBUSY), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    /// Takes a completion.
    pub fn complete(&mut self) -> Option<cqueue::Entry> {
        self.completions.next()
    }
}

/// Everything that a ring may be told: the operations of [`super::request`], waiting for the doorbell, and the end of that.
fn restrictions() -> [Restriction; 11] {
    let operations = [
        opcode::Read::CODE,
        opcode::Readv::CODE,
        opcode::Write::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::PollAdd::CODE,
        opcode::AsyncCancel::CODE,
    ]
    .map(Restriction::sqe_op);
    let [a, b, c, d, e, f, g, h] = operations;
    let flags = Restriction::sqe_flags_allowed(squeue::Flags::FIXED_FILE.bits());
    let [files, close] = [FILES_UPDATE, UNREGISTER_RING_FDS].map(Restriction::register_op);
    [a, b, c, d, e, f, g, h, flags, files, close]
}

/// A ring that the kernel lets be restricted before it is enabled, or one that is enabled (before Linux 5.10).
fn build() -> io::Result<(IoUring, Restrictable)> {
    let mut plain = IoUring::builder();
    plain.dontfork();
    let mut disabled = plain.clone();
    disabled.setup_r_disabled();
    // Completions are handled when we ask for them, on this thread, rather than by interrupting it (Linux 6.1).
    let mut best = disabled.clone();
    best.setup_single_issuer().setup_defer_taskrun();
    let older = [(disabled, Restrictable(true)), (plain, Restrictable(false))];
    let mut built = best.build(ENTRIES).map(|ring| (ring, Restrictable(true)));
    for (builder, restrictable) in older {
        match built {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                built = builder.build(ENTRIES).map(|ring| (ring, restrictable));
            }
            _ => break,
        }
    }
    built
}

#[cfg(test)]
mod tests;
