//! The device processes that this one has started: each is watched by a pidfd, and all are ended at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use outrigger_process::output::tell;

/// A process that was started.
#[derive(Debug)]
pub struct DeviceProcess {
    program: String,
    id: u32,
    /// Readable when the process has ended.
    pidfd: OwnedFd,
    child: Mutex<Child>,
}

/// How much time processes have to end.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// By themselves, after their sockets were closed: they finish what the guest has asked for.
    pub alone: Duration,
    /// After SIGTERM.
    pub term: Duration,
    /// After SIGKILL. What is left then is held by the kernel.
    pub kill: Duration,
}

impl DeviceProcess {
    /// Takes charge of a child.
    ///
    /// # Errors
    /// If the system has no descriptors left; the child is killed then.
    pub fn new(program: String, mut child: Child) -> io::Result<Self> {
        let id = child.id();
        // SAFETY: a system call on plain values.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) };
        let fd = Errno::result(fd).inspect_err(|_| _ = child.kill())?;
        let number = i32::try_from(fd).expect("descriptors are small");
        // SAFETY: the call has just made this descriptor, and it is nobody else's.
        let pidfd = unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Self { program, id, pidfd, child: Mutex::new(child) })
    }

    /// Its name.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Sends a signal, unless the process has ended.
    pub fn signal(&self, signal: Signal) {
        let (fd, number) = (self.pidfd.as_raw_fd(), signal as libc::c_int);
        // SAFETY: a system call on plain values and no pointer to anything.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, number, std::ptr::null::<libc::siginfo_t>(), 0) };
    }

    /// How it ended, if it has, or does within `limit`.
    pub fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        wait_for_all(&[self], limit);
        self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().ok().flatten()
    }
}

/// All processes of a run.
#[derive(Clone, Debug, Default)]
pub struct Processes(Arc<Mutex<Vec<Arc<DeviceProcess>>>>);

impl Processes {
    /// Adds a process that ends with the run.
    pub fn add(&self, process: &Arc<DeviceProcess>) {
        self.lock().push(Arc::clone(process));
    }

    /// Sends a signal to all that have not ended.
    pub fn signal_all(&self, signal: Signal) {
        self.lock().iter().for_each(|process| process.signal(signal));
    }

    /// Waits for the end of all, whose connections must have been ended, and helps where it does not come.
    pub fn end(&self, patience: Patience) {
        let Patience { alone, term, kill } = patience;
        if self.wait(alone) {
            return;
        }
        if !alone.is_zero() {
            self.left().iter().for_each(|process| {
                log::warn!("{} (process {}) does not end by itself", process.program, process.id);
            });
        }
        // A process that is stopped does not take the first without the second.
        self.signal_all(Signal::SIGTERM);
        self.signal_all(Signal::SIGCONT);
        if self.wait(term) {
            return;
        }
        self.signal_all(Signal::SIGKILL);
        if !self.wait(kill) {
            self.name_the_rest();
        }
    }

    /// Tells of each process that is left after SIGKILL, and is not waited for.
    pub fn name_the_rest(&self) {
        for DeviceProcess { program, id, .. } in self.left().iter().map(AsRef::as_ref) {
            tell(format_args!("{program} (process {id}) was killed and is held by the kernel, in I/O perhaps"));
        }
    }

    /// Waits until all have ended, for `limit` at most; whether they have.
    fn wait(&self, limit: Duration) -> bool {
        let all = self.lock().clone();
        let all: Vec<&DeviceProcess> = all.iter().map(AsRef::as_ref).collect();
        wait_for_all(&all, limit);
        // Each has to be asked, or it stays a zombie.
        all.iter().filter(|process| process.wait(Duration::ZERO).is_none()).count() == 0
    }

    fn left(&self) -> Vec<Arc<DeviceProcess>> {
        let all = self.lock().clone();
        all.into_iter().filter(|process| process.wait(Duration::ZERO).is_none()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<DeviceProcess>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until all processes have ended, for `limit` at most.
fn wait_for_all(processes: &[&DeviceProcess], limit: Duration) {
    let deadline = Instant::now() + limit;
    let mut left: Vec<PollFd<'_>> =
        processes.iter().map(|process| PollFd::new(process.pidfd.as_fd(), PollFlags::POLLIN)).collect();
    while !left.is_empty() {
        let remaining = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last fraction of a millisecond is not spent spinning.
        let timeout = PollTimeout::try_from(remaining + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut left, timeout) {
            Ok(0) if remaining.is_zero() => return,
            Ok(_) => left.retain(|fd| !fd.any().unwrap_or(true)),
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        if remaining.is_zero() {
            return;
        }
    }
}

/// How a process ended, for people.
#[must_use]
pub fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(Ok(signal))) => format!("was killed by {signal}"),
        _ => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn start(script: &str) -> Arc<DeviceProcess> {
        let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
        Arc::new(DeviceProcess::new("sh".to_owned(), child).unwrap())
    }

    #[test]
    fn an_end_is_noticed_with_its_status() {
        let process = start("exit 3");
        assert_eq!(process.wait(Duration::from_secs(10)).and_then(|status| status.code()), Some(3));
        // What has ended can be asked and signalled again.
        process.signal(Signal::SIGKILL);
        assert_eq!(process.wait(Duration::ZERO).map(ending), Some("ended with status 3".to_owned()));
    }

    #[test]
    fn those_that_ignore_sigterm_or_are_stopped_end_together() {
        let processes = Processes::default();
        let (seconds, milliseconds) = (Duration::from_secs, Duration::from_millis);
        let all: Vec<_> = (0..3).map(|_| start("trap '' TERM; while :; do sleep 0.1; done")).collect();
        let stopped = start("kill -STOP $$; sleep 60");
        all.iter().chain([&stopped]).for_each(|process| processes.add(process));
        std::thread::sleep(milliseconds(300));
        let begun = Instant::now();
        processes.end(Patience { alone: Duration::ZERO, term: milliseconds(300), kill: seconds(10) });
        assert!(begun.elapsed() < seconds(5), "one after the other: {:?}", begun.elapsed());
        for process in &all {
            assert_eq!(process.wait(Duration::ZERO).and_then(|status| status.signal()), Some(9));
        }
        assert_eq!(stopped.wait(Duration::ZERO).and_then(|status| status.signal()), Some(15));
    }

    #[test]
    fn those_that_end_by_themselves_are_not_signalled() {
        let processes = Processes::default();
        let process = start("sleep 0.2; exit 5");
        processes.add(&process);
        processes.end(Patience { alone: Duration::from_secs(10), term: Duration::ZERO, kill: Duration::ZERO });
        assert_eq!(process.wait(Duration::ZERO).and_then(|status| status.code()), Some(5));
    }
}
