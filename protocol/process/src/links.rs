//! The links of this process's descriptors (`/proc/self/fd`, proc(5)), for a process that has given up all paths, too. No other
//! way tells the kind of a descriptor without asking the file system behind it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, readlinkat};
use nix::libc;
use nix::sys::stat::Mode;

/// The directory, of a process that keeps it.
static DIRECTORY: OnceLock<OwnedFd> = OnceLock::new();

/// Keeps the directory, for when there is no `/proc` any more: once, the first time that it succeeds.
///
/// As a mount of its own, where the process may make one, it has no way to what was above it (open_tree(2)).
///
/// # Errors
/// There is no `/proc`.
pub(crate) fn keep(reach: Reach) -> io::Result<()> {
    if DIRECTORY.get().is_some() {
        return Ok(());
    }
    let directory = match reach {
        Reach::Alone => {
            let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
            let path = c"/proc/self/fd".as_ptr();
            // SAFETY: reads a path.
            let made = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path, flags) };
            let number = RawFd::try_from(Errno::result(made)?).map_err(io::Error::other)?;
            // SAFETY: the call has just made it.
            unsafe { OwnedFd::from_raw_fd(number) }
        }
        Reach::Host => {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            open("/proc/self/fd", flags, Mode::empty())?
        }
    };
    let _ = DIRECTORY.set(directory);
    Ok(())
}

/// The way out of the directory that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// None: it is a mount of its own.
    Alone,
    /// The host's `/proc`.
    Host,
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
