//! Processes without a program of their own: a copy of this one, with one thread and little else.

use std::ffi::{CStr, c_int, c_ulong};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid, dup2_stdin, dup2_stdout, getppid, setpgid};

use crate::pidfd::PidFd;

/// Exit status of a copy that panicked, or could not be brought into its known state.
pub const EXIT_BROKEN: u8 = 70;

/// A process that this process's parent has to wait for.
#[derive(Debug)]
pub struct Sibling {
    /// Its number.
    pub id: u32,
    /// Its descriptor.
    pub pidfd: PidFd,
}

/// Starts a copy of this process, which does `body` and ends with the status that it returns. The copy is called `name` (15
/// characters at most), has all signals blocked, a process group of its own, standard error and the descriptors `keep`, and
/// /dev/null in place of standard input and output. It is killed when the thread that calls this ends (prctl(2),
/// `PR_SET_PDEATHSIG`).
///
/// # Errors
/// The system makes no process.
///
/// # Safety
/// No other thread holds a lock that `body` takes; the C library sees to that of its allocator (fork(3)). `body` uses no
/// descriptor but those of `keep`.
pub unsafe fn fork(name: &CStr, keep: &[RawFd], body: impl FnOnce() -> u8) -> io::Result<Pid> {
    let parent = Pid::this();
    let mut before = SigSet::empty();
    // No signal ends the copy before it has them blocked, or the terminal's would.
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: the caller's promise.
    let result = unsafe { nix::unistd::fork() };
    if matches!(result, Ok(ForkResult::Child)) {
        finish(|| match begin(name, keep, parent) {
            Ok(()) => body(),
            Err(_) => EXIT_BROKEN,
        });
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    match result? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => unreachable!("it has ended"),
    }
}

/// Starts a copy of this process in new `namespaces`, which does `body` and ends with the status that it returns. It is a child
/// of this process's parent (clone(2), `CLONE_PARENT`), which alone can wait for it, and is told of its end by SIGCHLD if it is
/// told of this one's. It has all descriptors of this process.
///
/// # Errors
/// The system makes no process, or not with these namespaces.
///
/// # Safety
/// This process has one thread.
pub unsafe fn sibling(namespaces: CloneFlags, body: impl FnOnce() -> u8) -> io::Result<Sibling> {
    // Its signal at the end, in the lowest byte, is that of this process whatever is said here.
    let flags = libc::CLONE_PARENT | libc::CLONE_PIDFD | namespaces.bits();
    let flags = c_ulong::from(flags.cast_unsigned());
    let mut pidfd: RawFd = -1;
    let (same_stack, none) = (0 as c_ulong, 0 as c_ulong);
    // Not clone3, which containers refuse as a whole for want of a look at its arguments.
    // SAFETY: the new process has a copy of everything, this stack too, and there is no other thread whose locks it would find
    // held. `pidfd` has room for what the call writes.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, same_stack, &raw mut pidfd, none, none) };
    if result == 0 {
        finish(body);
    }
    let id = u32::try_from(Errno::result(result)?).expect("processes have positive numbers");
    // SAFETY: the call has just made this descriptor, and it is nobody else's.
    let pidfd = PidFd::from(unsafe { OwnedFd::from_raw_fd(pidfd) });
    Ok(Sibling { id, pidfd })
}

/// Does `body`, and ends this process without what the program it is a copy of would do at its end.
fn finish(body: impl FnOnce() -> u8) -> ! {
    let status = catch_unwind(AssertUnwindSafe(body)).unwrap_or(EXIT_BROKEN);
    // SAFETY: ends the process.
    unsafe { libc::_exit(status.into()) }
}

fn begin(name: &CStr, keep: &[RawFd], parent: Pid) -> io::Result<()> {
    // SAFETY: system calls on plain values and on a string that lives across the call.
    unsafe {
        Errno::result(libc::prctl(libc::PR_SET_PDEATHSIG, Signal::SIGKILL as c_int))?;
        Errno::result(libc::prctl(libc::PR_SET_NAME, name.as_ptr()))?;
    }
    // The parent may have ended before that.
    if getppid() != parent {
        return Err(Errno::ESRCH.into());
    }
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    drop(null);
    close_others(keep)
}

/// Closes all descriptors but 0, 1, 2 and those of `keep`.
fn close_others(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|&number| u32::try_from(number).ok()).collect();
    keep.sort_unstable();
    let mut first = 3;
    for last in keep.into_iter().map(Some).chain([None]) {
        let end = last.unwrap_or(u32::MAX);
        let upto = if last.is_some() { end.saturating_sub(1) } else { end };
        if first <= upto {
            // SAFETY: whatever had these descriptors in this copy uses them no more, as the caller of `fork` promises.
            Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, upto, 0) })?;
        }
        first = first.max(end.saturating_add(1));
    }
    Ok(())
}
