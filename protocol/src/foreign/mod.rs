//! Descriptors that came from a peer.
//!
//! A descriptor is as hostile as the bytes it came with. The open file behind it is shared with the peer, which can clear
//! O_NONBLOCK at any time; its file system may be a process of the peer's (FUSE), so that even `fstat` waits for as long
//! as the peer likes; and closing it can wait, too: a TCP socket lingers (SO_LINGER), a FUSE file is flushed, a Unix
//! socket closes the descriptors in its queue. So whatever a peer sends becomes a [`ForeignFd`] at once. It offers only
//! what cannot block, and it is closed on threads that nothing waits for.

mod closer;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::stat::fstat;
use outrigger_process::links;

pub(crate) use closer::Debt;

/// A descriptor from a peer, or one whose closing closes a peer's: a socket with unread messages.
///
/// Not [`AsFd`] on purpose: most functions that take a descriptor may block.
#[derive(Debug)]
pub struct ForeignFd {
    fd: ManuallyDrop<OwnedFd>,
    debt: Option<Arc<Debt>>,
}

/// The facts about a file that is memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFile {
    /// Bytes, at this moment.
    pub length: u64,
    /// Whether the file can become shorter: it is not sealed against that (`F_SEAL_SHRINK`).
    pub shrinks: bool,
}

/// A file that is not known to be memory: reading a page of it may wait for a file system, or for a process of the
/// peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the file is not memory (a memfd, or a file in tmpfs or hugetlbfs)")]
pub struct NotMemory;

impl ForeignFd {
    /// For a descriptor that counts against its sender until it is closed.
    pub(crate) fn owed(fd: OwnedFd, debt: &Arc<Debt>) -> Self {
        Self { fd: ManuallyDrop::new(fd), debt: Some(Arc::clone(debt)) }
    }

    /// For calls that cannot block whatever the file is: registering it with KVM, `poll`, `getsockopt`, and on a socket
    /// `sendmsg` and `recvmsg` with `MSG_DONTWAIT`. Not for `fstat`, `read`, `write` or `mmap`.
    pub fn lend(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Another descriptor of the same open file, which is as foreign.
    ///
    /// # Errors
    /// This process may have no more descriptors.
    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(Self { fd: ManuallyDrop::new(self.fd.try_clone()?), debt: self.debt.clone() })
    }

    /// Whether this is memory, which can be mapped, measured and read without waiting for anybody: a memfd, or a file in
    /// tmpfs or hugetlbfs. The kernel answers that without asking the file's own file system: no others have seals
    /// (`fcntl(2)`, "File sealing"; `mm/memfd.c`, `memfd_file_seals_ptr`).
    ///
    /// Where `shrinks` is set, the pages can still go away: touching one is SIGBUS then, and EFAULT for the kernel.
    ///
    /// # Errors
    /// It is something else, or not known.
    pub fn memory(&self) -> Result<MemoryFile, NotMemory> {
        let seals = fcntl(&*self.fd, FcntlArg::F_GET_SEALS).map_err(|_| NotMemory)?;
        // Safe now: neither tmpfs nor hugetlbfs waits for anything here.
        let length = fstat(&*self.fd).ok().and_then(|stat| u64::try_from(stat.st_size).ok()).ok_or(NotMemory)?;
        let shrinks = !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK);
        Ok(MemoryFile { length, shrinks })
    }

    /// For `mmap`, if this is memory.
    ///
    /// # Errors
    /// See [`ForeignFd::memory`].
    pub fn lend_memory(&self) -> Result<(BorrowedFd<'_>, MemoryFile), NotMemory> {
        Ok((self.fd.as_fd(), self.memory()?))
    }

    /// Whether this is an eventfd. What is done with it may still block: the peer can clear O_NONBLOCK.
    pub fn is_eventfd(&self) -> bool {
        self.is_anonymous("eventfd")
    }

    /// For `mmap`, if this is a device of the kernel's VFIO: one that a group gave out (`VFIO_GROUP_GET_DEVICE_FD`,
    /// `<linux/vfio.h>`), or a device's own file (`/dev/vfio/devices/vfioN`). The kernel's driver answers then, and what it maps
    /// are the device's registers, without waiting for anybody.
    pub fn lend_vfio_device(&self) -> Option<BorrowedFd<'_>> {
        (self.is_anonymous("vfio-device") || self.is_vfio_character_device()).then(|| self.fd.as_fd())
    }

    /// Whether this is one of VFIO's character devices. The number says which driver answers, in whatever file system the node
    /// is; that file system is not asked (AT_STATX_DONT_SYNC): it may be a process of the peer's. A descriptor that was opened
    /// for its path alone (O_PATH) has a number, too, and nothing can be done with it.
    fn is_vfio_character_device(&self) -> bool {
        let mut status = std::mem::MaybeUninit::<nix::libc::statx>::zeroed();
        let flags = nix::libc::AT_EMPTY_PATH | nix::libc::AT_STATX_DONT_SYNC;
        // SAFETY: the kernel reads a string, and fills in a structure of this size.
        let done = unsafe {
            nix::libc::statx(self.fd.as_raw_fd(), c"".as_ptr(), flags, nix::libc::STATX_TYPE, status.as_mut_ptr())
        };
        if done != 0 {
            return false;
        }
        // SAFETY: it was all zeros before the kernel filled it in.
        let status = unsafe { status.assume_init() };
        let is_character_device = u32::from(status.stx_mode) & nix::libc::S_IFMT == nix::libc::S_IFCHR;
        is_character_device
            && std::fs::read_to_string("/proc/devices").is_ok_and(|devices| {
                let characters = devices.split("\n\n").next().unwrap_or_default();
                characters.lines().any(|line| {
                    let (number, name) = line.trim().split_once(' ').unwrap_or_default();
                    name == "vfio-dev" && number.parse() == Ok(status.stx_rdev_major)
                })
            })
    }

    /// Whether the open file has no inode of its own but the kernel's, under this name (`fs/anon_inodes.c`). The kernel
    /// makes up the link itself, and no file of a file system has one that begins like this: those begin with a slash.
    fn is_anonymous(&self, name: &str) -> bool {
        let link = links::of(self.fd.as_fd());
        link.is_ok_and(|link| {
            link.to_str().and_then(|link| link.strip_prefix("anon_inode:[")) == Some(&format!("{name}]"))
        })
    }

    /// For a descriptor that is known to be closed without waiting.
    pub(crate) fn into_owned(mut self) -> OwnedFd {
        // SAFETY: `self` is forgotten right after, so the descriptor has one owner.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        self.debt = None;
        std::mem::forget(self);
        fd
    }

    /// Ends a socket's connection in both directions, for every process that holds it.
    pub fn hang_up(&self) {
        // Fails only if it is not connected any more.
        let _: Result<(), Errno> = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
    }
}

impl<F: Into<OwnedFd>> From<F> for ForeignFd {
    fn from(fd: F) -> Self {
        Self { fd: ManuallyDrop::new(fd.into()), debt: None }
    }
}

impl Drop for ForeignFd {
    fn drop(&mut self) {
        // SAFETY: nothing looks at the field any more.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        closer::close(fd, self.debt.take());
    }
}

#[cfg(test)]
mod tests;
