//! The user that a process runs as, and what is left of that user's power.

use std::io;

use caps::CapSet;
use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::unistd::{Gid, Uid, getppid, setgroups, setresgid, setresuid};

/// The user and group that own nothing ("nobody"), to which those are mapped that a namespace does not know.
pub(super) const NOBODY: u32 = 65534;

/// The process that started this one, and whether this one is to die with it.
#[derive(Debug)]
pub(super) struct Parent {
    id: nix::unistd::Pid,
    signal: c_int,
}

impl Parent {
    pub(super) fn of_this_process() -> io::Result<Self> {
        let mut signal: c_int = 0;
        // SAFETY: writes an integer.
        Errno::result(unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) })?;
        Ok(Self { id: getppid(), signal })
    }

    /// A change of user or capabilities has undone this (prctl(2), `PR_SET_PDEATHSIG`).
    pub(super) fn die_with_it(&self) -> io::Result<()> {
        // SAFETY: a system call on plain values.
        Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, self.signal) })?;
        if self.signal != 0 && getppid() != self.id {
            return Err(io::Error::other("the process that has started this one has ended"));
        }
        Ok(())
    }
}

/// From root to a user that owns nothing. Any other user stays what it is: its own namespace maps no other.
pub(super) fn change() -> io::Result<()> {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    if !Uid::effective().is_root() {
        return Ok(());
    }
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    Ok(())
}

/// Empties every set of capabilities, and lets no program that is executed have more.
pub(super) fn drop_capabilities() -> io::Result<()> {
    // The bounding set takes a capability to lower, which may be gone with root; nothing can be executed that would gain by it.
    for number in 0..=63 {
        // SAFETY: a system call on plain values; fails for numbers that are no capability.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    // SAFETY: a system call on plain values.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    Ok(())
}
