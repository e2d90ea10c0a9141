//! The user that a process runs as, and what is left of that user's power.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
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

/// Whether this process is root's, or has any of root's power.
#[must_use]
pub fn is_privileged() -> bool {
    let sets = [CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient];
    Uid::effective().is_root() || sets.into_iter().any(|set| caps::read(None, set).is_ok_and(|set| !set.is_empty()))
}

/// Whether a program has more power than whoever starts it: it is set-user-ID or set-group-ID, or has file capabilities
/// (capabilities(7)).
#[must_use]
pub fn has_privileges(program: &Path) -> bool {
    const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;
    let is_set_id = std::fs::metadata(program).is_ok_and(|file| file.mode() & SET_ID != 0);
    let path = CString::new(program.as_os_str().as_bytes()).unwrap_or_default();
    // SAFETY: reads two strings, and writes nothing into a buffer of no bytes.
    let length = unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    is_set_id || length >= 0
}

/// Gives up all capabilities but `kept`, for this thread and those that it starts, and lets no program that is executed have more.
///
/// # Errors
/// None is expected: nobody is refused to have less.
pub fn keep_only(kept: &[Capability]) -> io::Result<()> {
    let kept: CapsHashSet = kept.iter().copied().collect();
    for capability in caps::runtime::procfs_all_supported(None).map_err(io::Error::other)?.difference(&kept) {
        // Takes a capability itself; where that is missing, nothing can be executed that would gain by it, either.
        let _ = caps::drop(None, CapSet::Bounding, *capability);
    }
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        let left = caps::read(None, set).map_err(io::Error::other)?.intersection(&kept).copied().collect();
        caps::set(None, set, &left).map_err(io::Error::other)?;
    }
    forbid_gains()
}

/// No program that is executed has more privileges than this process (prctl(2), `PR_SET_NO_NEW_PRIVS`).
fn forbid_gains() -> io::Result<()> {
    // SAFETY: a system call on plain values.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
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
    forbid_gains()
}
