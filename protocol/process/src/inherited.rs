//! State that a program inherits from whoever started it, brought into a known form before it has any other thread.
//!
//! | inherited | what is done | why |
//! |---|---|---|
//! | blocked signals | unblocked | a caller that blocks SIGTERM would make the program unstoppable |
//! | SIGINT, SIGQUIT, SIGHUP, SIGTERM ignored | left ignored, see [`is_ignored`] | `nohup`, and `&` in a script, mean it |
//! | SIGCHLD ignored | default | the kernel would discard the exit status of every child |
//! | SIGXFSZ | ignored | a file size limit is an error of one write, not the end of the program |
//! | soft limit of descriptors | raised to the hard limit | 1,024 is less than one guest with many vectors takes |
//!
//! The rest (umask, working directory, niceness, other limits) is the caller's to choose, and is left alone.

use std::io;
use std::os::fd::RawFd;
use std::sync::OnceLock;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, signal};

use crate::launch;

/// The soft limit of descriptors as the caller left it, for children.
static CALLERS_DESCRIPTORS: OnceLock<(u64, u64)> = OnceLock::new();

/// Brings inherited state into the form that the [module](self) describes. Call it first in `main`.
///
/// # Errors
/// The host's, which are not expected for valid signals and a soft limit within the hard one.
pub fn normalize() -> io::Result<()> {
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    // SAFETY: neither disposition runs a handler.
    unsafe {
        signal(Signal::SIGCHLD, SigHandler::SigDfl)?;
        signal(Signal::SIGXFSZ, SigHandler::SigIgn)?;
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let _ = CALLERS_DESCRIPTORS.set((soft, hard));
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// Whether the caller had this signal ignored: such a signal must not be blocked or waited for, since a blocked signal is
/// delivered to a signalfd even if it is ignored.
#[must_use]
pub fn is_ignored(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: no new action is given, and `action` has room for the present one.
    let result = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: written by the call, which succeeded.
    result == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Whether a descriptor was open when this program began: one that this program opens itself closes when it executes another.
#[must_use]
pub fn is_callers(number: RawFd) -> bool {
    // SAFETY: a system call on plain values.
    number > 2 && unsafe { libc::fcntl(number, libc::F_GETFD) } == 0
}

/// The descriptors above 2 that the caller has left open, but for those that [`launch::KEPT`] names: to be asked before this program
/// opens any.
#[must_use]
pub fn callers_files() -> Vec<RawFd> {
    let kept = std::env::var(launch::KEPT).unwrap_or_default();
    let is_kept = |number: RawFd| kept.split(',').any(|kept| kept.parse() == Ok(number));
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<RawFd> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // The directory's own is closed by now.
    numbers.into_iter().filter(|&number| is_callers(number) && !is_kept(number)).collect()
}

/// The limits of descriptors, soft and hard, that the caller had set before [`normalize`].
pub(crate) fn callers_descriptors() -> Option<(u64, u64)> {
    CALLERS_DESCRIPTORS.get().copied()
}
