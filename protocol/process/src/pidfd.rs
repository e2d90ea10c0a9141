//! A process by its descriptor (pidfd_open(2)), which is never that of another one with the same number.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;

/// A process. Readable when it has ended.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// The process of this number, which is to be a child of the caller's that it has not waited for.
    ///
    /// # Errors
    /// There is none, or no descriptor is left.
    pub fn open(id: u32) -> io::Result<Self> {
        // SAFETY: a system call on plain values.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) })?;
        let fd = i32::try_from(fd).expect("descriptors are small");
        // SAFETY: the call has just made this descriptor, and it is nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a signal, unless the process has ended.
    pub fn signal(&self, signal: Signal) {
        let (fd, number) = (self.0.as_raw_fd(), signal as libc::c_int);
        // SAFETY: a system call on plain values and no pointer to anything.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, number, std::ptr::null::<libc::siginfo_t>(), 0) };
    }

    /// Whether the process, a child, is stopped, as by SIGSTOP.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.state(libc::WSTOPPED | libc::WNOWAIT).is_ok_and(|state| state.is_some())
    }

    /// How the process, a child, has ended, if it has; it can be asked once.
    ///
    /// # Errors
    /// It is no child, or has been asked before.
    pub fn take_status(&self) -> io::Result<Option<ExitStatus>> {
        self.state(libc::WEXITED).map(|state| {
            let (code, value) = state?;
            // As wait(2) has it: the status in the second byte, a signal in the first, and a bit for a core dump.
            Some(ExitStatus::from_raw(match code {
                libc::CLD_EXITED => value << 8,
                libc::CLD_DUMPED => value | 0x80,
                _ => value,
            }))
        })
    }

    /// Kills the process, a child, and waits for its end, for `limit` milliseconds at most. One that the kernel holds for longer
    /// stays a zombie until this process ends.
    pub fn end(&self, limit: u16) {
        self.signal(Signal::SIGKILL);
        _ = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], limit);
        _ = self.take_status();
    }

    /// The process's `si_code` and `si_status`, if its state is one of `options`.
    fn state(&self, options: libc::c_int) -> io::Result<Option<(libc::c_int, libc::c_int)>> {
        // SAFETY: all zeros are a valid `siginfo_t`, in which no process is named.
        let mut information: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = libc::id_t::try_from(self.0.as_raw_fd()).unwrap_or(0);
        // SAFETY: `information` has room for what the call writes.
        let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut information, options | libc::WNOHANG) };
        Errno::result(result)?;
        // SAFETY: the call, or the zeros above, have set these members.
        let (process, status) = unsafe { (information.si_pid(), information.si_status()) };
        Ok((process != 0).then_some((information.si_code, status)))
    }
}

impl From<OwnedFd> for PidFd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<PidFd> for OwnedFd {
    fn from(process: PidFd) -> Self {
        process.0
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
