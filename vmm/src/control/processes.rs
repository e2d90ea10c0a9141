//! The device processes that this one has started: each is watched by a pidfd, and all are ended at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;
use outrigger_process::output::tell;
use outrigger_process::pidfd::PidFd;

/// How long a process that cannot be watched may take to end. In milliseconds.
const KILL_LIMIT: u16 = 1000;

/// A process that was started, a child of this one.
#[derive(Debug)]
pub struct DeviceProcess {
    program: String,
    id: u32,
    /// Readable when the process has ended.
    pidfd: PidFd,
    /// Readable when the process may have stopped, gone on or ended since it was last read.
    changed: EventFd,
    /// How it has ended, once that was found.
    status: Mutex<Option<ExitStatus>>,
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
    /// If the system has no descriptors left; the child is killed then, and waited for.
    pub fn new(program: String, id: u32, pidfd: PidFd) -> io::Result<Self> {
        let changed = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let changed = changed.inspect_err(|_| pidfd.end(KILL_LIMIT))?;
        Ok(Self { program, id, pidfd, changed, status: Mutex::default() })
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
        self.pidfd.signal(signal);
    }

    /// Readable when the process may have stopped, gone on or ended since [`is_stopped`](Self::is_stopped) was asked.
    pub fn changed(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    /// Whether the process is stopped, as by SIGSTOP.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        // An error says that there was nothing to read.
        let _ = self.changed.read();
        self.pidfd.is_stopped()
    }

    /// How it ended, if it has, or does within `limit`.
    pub fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        wait_for_all(&[self], limit);
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if status.is_none() {
            *status = self.pidfd.take_status().ok().flatten();
        }
        *status
    }
}

/// All processes of a run.
#[derive(Clone, Debug, Default)]
pub struct Processes(Arc<Mutex<All>>);

#[derive(Debug, Default)]
struct All {
    processes: Vec<Arc<DeviceProcess>>,
    /// The run ends: those that are added later came too late.
    ended: bool,
}

impl Processes {
    /// Adds a process that ends with the run; if that is ending already, at once.
    pub fn add(&self, process: &Arc<DeviceProcess>) {
        let mut all = self.lock();
        all.processes.push(Arc::clone(process));
        if all.ended {
            process.signal(Signal::SIGKILL);
        }
    }

    /// Forgets a process that has ended. One that has not stays.
    pub fn remove(&self, process: &Arc<DeviceProcess>) {
        if process.wait(Duration::ZERO).is_some() {
            self.lock().processes.retain(|other| !Arc::ptr_eq(other, process));
        }
    }

    /// Sends a signal to all that have not ended.
    pub fn signal_all(&self, signal: Signal) {
        self.lock().processes.iter().for_each(|process| process.signal(signal));
    }

    /// From now on no process lives that is added.
    pub fn begin_end(&self) {
        self.lock().ended = true;
    }

    /// One of them has stopped, gone on or ended: each is told to look.
    pub fn notice(&self) {
        self.lock().processes.iter().for_each(|process| _ = process.changed.write(1));
    }

    /// Waits for the end of all, whose connections must have been ended, and helps where it does not come.
    pub fn end(&self, patience: Patience) {
        let Patience { alone, term, kill } = patience;
        self.begin_end();
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
        let all = self.lock().processes.clone();
        let all: Vec<&DeviceProcess> = all.iter().map(AsRef::as_ref).collect();
        wait_for_all(&all, limit);
        // Each has to be asked, or it stays a zombie.
        all.iter().filter(|process| process.wait(Duration::ZERO).is_none()).count() == 0
    }

    fn left(&self) -> Vec<Arc<DeviceProcess>> {
        let all = self.lock().processes.clone();
        all.into_iter().filter(|process| process.wait(Duration::ZERO).is_none()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, All> {
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

    #[expect(clippy::zombie_processes, reason = "it is waited for by its descriptor")]
    fn start(script: &str) -> Arc<DeviceProcess> {
        let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
        let pidfd = PidFd::open(child.id()).unwrap();
        Arc::new(DeviceProcess::new("sh".to_owned(), child.id(), pidfd).unwrap())
    }

    #[test]
    fn an_end_is_noticed_with_its_status() {
        let process = start("exit 3");
        assert_eq!(process.wait(Duration::from_secs(10)).and_then(|status| status.code()), Some(3));
        // An ended process can be asked and signalled again.
        process.signal(Signal::SIGKILL);
        assert_eq!(process.wait(Duration::ZERO).map(ending), Some("ended with status 3".to_owned()));
    }

    #[test]
    fn a_process_that_is_stopped_is_so_until_it_goes_on_or_ends() {
        let process = start("sleep 60");
        let becomes = |stopped| {
            (0..1000).any(|_| {
                std::thread::sleep(Duration::from_millis(5));
                process.is_stopped() == stopped
            })
        };
        assert!(!process.is_stopped());
        for (signal, stopped) in [(Signal::SIGSTOP, true), (Signal::SIGCONT, false), (Signal::SIGSTOP, true)] {
            process.signal(signal);
            assert!(becomes(stopped), "{signal}");
            assert_eq!(process.is_stopped(), stopped, "asking changes nothing");
        }
        process.signal(Signal::SIGKILL);
        assert!(becomes(false));
        assert!(process.wait(Duration::from_secs(10)).is_some());
    }

    #[test]
    fn a_process_that_comes_after_the_end_does_not_live() {
        let processes = Processes::default();
        processes.begin_end();
        let process = start("sleep 60");
        processes.add(&process);
        assert_eq!(process.wait(Duration::from_secs(10)).and_then(|status| status.signal()), Some(9));
        processes.remove(&process);
        assert!(processes.left().is_empty() && processes.lock().processes.is_empty());
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
