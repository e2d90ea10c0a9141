//! A process that the user has started, and its child, which does the work and gives up all else.
//!
//! A process that is sealed has no path by which it could remove what it has made, and cannot enter a PID namespace: only its
//! child can. So [`go_on_in_child`] makes a child that goes on, and the first process stays as its guardian, outside and with nothing
//! open. It passes signals on, cleans up when the child has ended, and ends with the child's status.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, pipe2};

use crate::seal::{self, namespaces};
use crate::{inherited, output};

/// How long a child may take to end that was told to.
const END: Duration = Duration::from_secs(1);
/// How long the line of a child's end may take to be written.
const LINE: Duration = Duration::from_millis(100);

/// The process that waits for this one, as this one sees it.
#[derive(Debug)]
pub struct Guardian(OwnedFd);

/// Makes a child, in which this returns; this process waits for its end, does `clean_up`, and ends with the same status, or with 128
/// and the number of the signal that has ended the child. Signals of `ends`, which are to be blocked, are passed on; a child that
/// takes too long to end then is killed. When the guardian ends first, the child is killed.
///
/// If the child is to have a PID namespace `of_its_own`, it is the first process there where the host permits that: to root, or to a
/// user who may have a user namespace.
///
/// # Errors
/// The system makes no process; or there is a second thread, which would not be in the child.
pub fn go_on_in_child(ends: &SigSet, of_its_own: bool, clean_up: impl FnOnce()) -> io::Result<Guardian> {
    if seal::threads()? != 1 {
        return Err(io::Error::other("a second thread would not be in the child"));
    }
    let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
    let mut waited = *ends;
    waited.add(Signal::SIGCHLD);
    // Of Ctrl-Z. The first process of a PID namespace ignores it, and this one is to stop with it.
    if !inherited::is_ignored(Signal::SIGTSTP) {
        waited.add(Signal::SIGTSTP);
    }
    let before = waited.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    if of_its_own {
        enter_pid_namespace();
    }
    // SAFETY: there is one thread, so that no lock is held by another.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            output::discard();
            close_all_but(&ours);
            guard(child, &waited, clean_up)
        }
        ForkResult::Child => {
            drop(ours);
            before.thread_set_mask()?;
            // SAFETY: a system call on plain values.
            Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
            let guardian = Guardian(theirs);
            guardian.check()?;
            Ok(guardian)
        }
    }
}

impl Guardian {
    /// Checks that the guardian is there, once this process is sure to die with it.
    ///
    /// # Errors
    /// It has ended.
    pub fn check(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        // The other end of the pipe is the guardian's alone.
        match poll(&mut fds, PollTimeout::ZERO)? {
            0 => Ok(()),
            _ => Err(io::Error::other("the process that has started this one has ended")),
        }
    }
}

/// Has the next child be the first process of a PID namespace, if that is permitted: the child sees by its number whether it is. This
/// process can start no thread from then on (clone(2), EINVAL).
fn enter_pid_namespace() {
    // What privileges it has count for nothing outside of a user namespace of its own, but it stays the same user there.
    if !seal::is_privileged() {
        let _ = namespaces::own_user();
    }
    let _ = unshare(CloneFlags::CLONE_NEWPID);
}

/// Closes what the child has open as well: what it gives back is free when the child gives it back.
fn close_all_but(kept: &OwnedFd) {
    let kept = kept.as_raw_fd().cast_unsigned();
    for (first, last) in [(3, kept.saturating_sub(1)), (kept + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: this process uses none of them any more, and does not return to whatever had them.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

fn guard(child: Pid, waited: &SigSet, clean_up: impl FnOnce()) -> ! {
    let mut deadline = None;
    let mut killed = false;
    let status = loop {
        match next(waited, deadline) {
            Some(Signal::SIGCHLD) => {
                if let Some(status) = status_of(child) {
                    break status;
                }
            }
            Some(Signal::SIGTSTP) => stop_with(child),
            Some(signal) => {
                let _ = kill(child, signal);
                deadline.get_or_insert(Instant::now() + END);
            }
            None => {
                (deadline, killed) = (None, true);
                let _ = kill(child, Signal::SIGKILL);
            }
        }
    };
    clean_up();
    let code = match status {
        Ok(code) => code,
        // As it was told, if not by itself.
        Err(Signal::SIGKILL) if killed => 0,
        Err(signal) => {
            output::tell(format_args!("the process that serves was ended by {signal}"));
            output::finish(LINE);
            128 + signal as i32
        }
    };
    // SAFETY: ends the process, which is a copy of one that has ended in its own way.
    unsafe { libc::_exit(code) }
}

/// Waits for a signal; none: the deadline has passed.
fn next(waited: &SigSet, deadline: Option<Instant>) -> Option<Signal> {
    loop {
        let Some(deadline) = deadline else {
            match waited.wait() {
                Ok(signal) => return Some(signal),
                Err(_) => continue,
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let left = libc::timespec {
            tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(0),
            tv_nsec: left.subsec_nanos().into(),
        };
        // SAFETY: reads a set and a time.
        let number = unsafe { libc::sigtimedwait(waited.as_ref(), std::ptr::null_mut(), &raw const left) };
        match Signal::try_from(number) {
            Ok(signal) => return Some(signal),
            Err(_) if Errno::last() == Errno::EAGAIN => return None,
            Err(_) => {}
        }
    }
}

/// The status of a child that has ended, or the signal that has ended it.
fn status_of(child: Pid) -> Option<Result<i32, Signal>> {
    match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => Some(Ok(code)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(Err(signal)),
        _ => None,
    }
}

/// Stops the child and this process, until it is continued.
fn stop_with(child: Pid) {
    let _ = kill(child, Signal::SIGSTOP);
    let _ = kill(getpid(), Signal::SIGSTOP);
    let _ = kill(child, Signal::SIGCONT);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The threads of this test's process would be missing in the child.
    #[test]
    fn a_process_with_several_threads_makes_no_child() {
        std::thread::scope(|scope| {
            let waits = scope.spawn(std::thread::park);
            let result = go_on_in_child(&SigSet::empty(), false, || panic!("there is nothing to clean up"));
            waits.thread().unpark();
            assert_eq!(result.unwrap_err().to_string(), "a second thread would not be in the child");
        });
    }
}
