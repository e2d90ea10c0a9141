//! A child process that inherits nothing of its parent's state but what it is given, and ends with its parent.

use std::ffi::c_int;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;

use crate::inherited::callers_descriptors;

/// Environment variables that a child keeps.
const KEPT: [&str; 2] = ["RUST_LOG", "RUST_BACKTRACE"];

/// Signals that a child ignores if its parent does, since the caller of both meant it.
const CALLERS: [c_int; 4] = [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTERM];

/// Signals that stop a process which uses the terminal from the background; a child writes its log there all the same.
const BACKGROUND: [c_int; 2] = [libc::SIGTTIN, libc::SIGTTOU];

/// The highest signal number of Linux on x86-64.
const LAST_SIGNAL: c_int = 64;

/// Makes `command` start its program in a known state: no signal is blocked; each is at its default but for those that
/// the caller of this program ignores; no descriptor but 0, 1 and 2 and those without `FD_CLOEXEC` that a later
/// `pre_exec` makes; the caller's limit of descriptors; an environment of `RUST_LOG` and `RUST_BACKTRACE` at most; a process
/// group of its own, so that Ctrl-C at the terminal is for the parent, which ends its children in order.
///
/// The child is killed when the thread that spawns it ends, however that comes about, so that thread has to live as long
/// as the parent (`PR_SET_PDEATHSIG`, see prctl(2)). A program that changes its credentials or capabilities later loses
/// this setting and has to make it again.
pub fn prepare(command: &mut Command) -> &mut Command {
    prepare_for(command, std::process::id())
}

/// The same for a child of `parent`, a process that is not this one.
pub fn prepare_for(command: &mut Command, parent: u32) -> &mut Command {
    command.env_clear();
    for name in KEPT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.process_group(0);
    let limits = callers_descriptors();
    // SAFETY: between fork and exec the closure makes system calls only, with values of its own.
    unsafe { command.pre_exec(move || in_child(parent, limits)) }
}

/// Leaves these descriptors open in the program, under the same numbers. Call it after [`prepare`].
pub fn keep(command: &mut Command, numbers: Vec<RawFd>) {
    // SAFETY: between fork and exec the closure makes system calls only, on plain values.
    unsafe { command.pre_exec(move || numbers.iter().try_for_each(|&number| inherit(number))) };
}

fn inherit(number: RawFd) -> io::Result<()> {
    // SAFETY: a system call on plain values.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })?;
    Ok(())
}

/// Runs between fork and exec, so it is async-signal-safe: system calls only, no allocation.
fn in_child(parent: u32, descriptors: Option<(u64, u64)>) -> io::Result<()> {
    // SAFETY: all of these are system calls on plain values and on structures that live across the call. No disposition
    // that is set here runs a handler.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        // The parent may have ended before that; then somebody else is the parent now. One in another PID namespace has number 0.
        let parent_now = u32::try_from(libc::getppid());
        if parent_now != Ok(parent) && parent_now != Ok(0) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        for number in 1..=LAST_SIGNAL {
            let mut action: libc::sigaction = std::mem::zeroed();
            let is_changeable = libc::sigaction(number, std::ptr::null(), &raw mut action) == 0;
            let ignored = action.sa_sigaction == libc::SIG_IGN && CALLERS.contains(&number);
            action = std::mem::zeroed();
            action.sa_sigaction = if ignored || BACKGROUND.contains(&number) { libc::SIG_IGN } else { libc::SIG_DFL };
            if is_changeable {
                // Refused for SIGKILL, SIGSTOP and those that the C library keeps for itself.
                libc::sigaction(number, &raw const action, std::ptr::null_mut());
            }
        }
        let mut none = std::mem::zeroed();
        check(libc::sigemptyset(&raw mut none))?;
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()))?;
        // Closing them here would close the pipe by which exec's failure is reported.
        let (first, last) = (3u32, u32::MAX);
        let closed = libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC);
        check(c_int::try_from(closed).unwrap_or(-1))?;
        if let Some((soft, hard)) = descriptors {
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))?;
        }
    }
    Ok(())
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
