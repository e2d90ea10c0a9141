//! Limits of the process, and the ways into its memory and environment.

use std::ffi::c_char;
use std::io;

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{SFlag, fstat};

/// Descriptors that a process may open besides those that it has: eventfds for two vectors of each of 255 queues, of the client that
/// leaves and of the one that comes, and what one message brings.
const DESCRIPTORS: u64 = 2048;

/// Room that the log has if it is a file, in bytes: other processes may write there, too.
const LOG: u64 = 1 << 30;

/// Lowers the limits that a device has no use for.
pub(super) fn lower(file_size: u64) -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = DESCRIPTORS.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let log = fstat(io::stderr())
        .ok()
        .filter(|status| SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG);
    let log = log.map_or(0, |status| status.st_size.cast_unsigned() + LOG);
    let length = file_size.max(log);
    setrlimit(Resource::RLIMIT_FSIZE, length, length)?;
    Ok(())
}

/// Closes this process to debuggers and to `/proc/PID/mem` of others, and forbids core dumps (prctl(2), `PR_SET_DUMPABLE`).
pub(super) fn forbid_dumps() -> io::Result<()> {
    // SAFETY: a system call on plain values.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    Ok(())
}

/// Overwrites it: everything that was to be read in it has been read, and somebody may have left a secret there. Its text would
/// stay where the kernel has put it.
pub(super) fn forget_environment() {
    unsafe extern "C" {
        /// The C library's list (environ(7)), null at its end.
        static mut environ: *mut *mut c_char;
    }
    // SAFETY: there is one thread, and no reference to a variable's value. Each entry is a string that can be written: it is on the
    // stack, where the kernel has put it, or on the heap.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            (*entry).write_bytes(0, libc::strlen(*entry));
            entry = entry.add(1);
        }
        libc::clearenv();
    }
}
