//! What the kernel says of this process's descriptors (`/proc/self/fd`, proc(5)), in a process that has given up all paths, too. It is
//! the one way to tell the kind of a descriptor without asking whatever is behind it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use nix::fcntl::{OFlag, open, readlinkat};
use nix::sys::stat::Mode;

/// The directory, of a process that keeps it.
static DIRECTORY: OnceLock<OwnedFd> = OnceLock::new();

/// Keeps the directory, for when there is no `/proc` any more. It can be used for nothing but [`of`] without a right to open paths.
///
/// # Errors
/// There is no `/proc`.
pub(crate) fn keep() -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let _ = DIRECTORY.set(open("/proc/self/fd", flags, Mode::empty())?);
    Ok(())
}

/// The link of a descriptor, as `anon_inode:[eventfd]`.
///
/// # Errors
/// The kernel's.
pub fn of(fd: BorrowedFd<'_>) -> io::Result<OsString> {
    let number = fd.as_raw_fd();
    let link = match DIRECTORY.get() {
        Some(directory) => readlinkat(directory, number.to_string().as_str())?,
        None => std::fs::read_link(format!("/proc/self/fd/{number}"))?.into_os_string(),
    };
    Ok(link)
}
