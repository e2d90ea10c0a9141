//! Requests to a disk that is in memory: plain system calls execute them at once, because there is no device to wait
//! for. io_uring hands a write to such a file to a thread of the kernel's, and a read as well (seen with Linux 6.18),
//! because tmpfs does not promise io_uring not to wait.

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::request::{Disk, Operation, Request};

/// Executes the rest of a request. Returns what its completion would: bytes moved, or a negative errno. `None`: this
/// kind of request is not executed at once.
///
/// # Safety
/// `buffers`, those of the request, are in memory that stays during the call, that the kernel may write if the request is
/// a read, and that holds nothing but bytes that anyone may change at any time.
pub unsafe fn perform(disk: &Disk, request: &Request, buffers: &[libc::iovec]) -> Option<i32> {
    let file = disk.backing.file.as_raw_fd();
    let offset = i64::try_from(request.offset).ok()?;
    let buffers = request.left(buffers);
    let (vector, count) = (buffers.as_ptr(), libc::c_int::try_from(buffers.len()).ok()?);
    let sync = if disk.write_through { libc::RWF_DSYNC } else { 0 };
    // SAFETY: the caller's promise.
    let result = unsafe {
        match (request.operation, buffers) {
            (Operation::Read, &[buffer]) => libc::pread(file, buffer.iov_base, buffer.iov_len, offset),
            (Operation::Read, _) => libc::preadv(file, vector, count, offset),
            (Operation::Write, &[buffer]) if sync == 0 => libc::pwrite(file, buffer.iov_base, buffer.iov_len, offset),
            (Operation::Write, _) => libc::pwritev2(file, vector, count, offset, sync),
            (Operation::Flush, _) => libc::fdatasync(file) as isize,
            (Operation::Discard | Operation::Zero | Operation::ZeroUnmap, _) => return None,
        }
    };
    match Errno::result(result) {
        // The kernel moves less than 2 GiB at a time.
        Ok(moved) => i32::try_from(moved).ok(),
        Err(errno) => Some(-(errno as i32)),
    }
}
