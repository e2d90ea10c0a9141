//! How long a process that is to serve a device is waited for, whatever it is doing.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::control::processes::DeviceProcess;

/// How often within its deadline a process is looked at.
pub(super) const PROBES: u32 = 8;
/// A few frames.
const STACK: usize = 64 << 10;

/// The process to wait for, and for how long.
pub(super) struct Watchdog<'a> {
    pub(super) end: Instant,
    pub(super) process: Option<&'a DeviceProcess>,
    /// A process that is stopped at two looks in a row is not waited for any longer. Another one may do better.
    pub(super) probe: Duration,
}

impl Watchdog<'_> {
    /// Does `work`; calls `give_up`, upon which it ends, when the time is over. Returns what came of it, and whether it was
    /// given up.
    pub(super) fn watch<T>(&self, give_up: impl FnOnce() + Send, work: impl FnOnce() -> T) -> (T, bool) {
        let (working, is_done) = channel::<()>();
        thread::scope(|scope| {
            let watch = move || {
                let mut was_stopped = false;
                loop {
                    let remaining = self.end.saturating_duration_since(Instant::now());
                    // Nothing is ever sent: it is the sender that goes.
                    if is_done.recv_timeout(remaining.min(self.probe)) != Err(RecvTimeoutError::Timeout) {
                        return false;
                    }
                    let is_stopped = self.process.is_some_and(DeviceProcess::is_stopped);
                    if remaining.is_zero() || (was_stopped && is_stopped) {
                        give_up();
                        return true;
                    }
                    was_stopped = is_stopped;
                }
            };
            let watcher = thread::Builder::new().name("deadline".into()).stack_size(STACK).spawn_scoped(scope, watch);
            // Without a thread each message still has its own deadline.
            let watcher = watcher.inspect_err(|error| log::debug!("no thread that watches a deadline: {error}")).ok();
            let result = work();
            drop(working);
            (result, watcher.is_some_and(|watcher| watcher.join().unwrap_or(false)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sys::signal::Signal;
    use outrigger_process::pidfd::PidFd;

    use super::*;

    #[test]
    fn work_that_takes_too_long_is_given_up() {
        let watchdog = |time| Watchdog { end: Instant::now() + time, process: None, probe: Duration::from_secs(1) };
        let (give_up, is_given_up) = channel();
        let give_up = move || give_up.send(()).unwrap();
        assert_eq!(watchdog(Duration::from_millis(20)).watch(give_up, || is_given_up.recv().unwrap()), ((), true));
        assert_eq!(watchdog(Duration::from_secs(600)).watch(|| panic!("it is done in time"), || 3), (3, false));
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "it is waited for by its descriptor")]
    fn a_process_that_is_stopped_is_given_up_before_the_end() {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = PidFd::open(child.id()).unwrap();
        let process = DeviceProcess::new("sleep".to_owned(), child.id(), pidfd).unwrap();
        process.signal(Signal::SIGSTOP);
        let (end, probe) = (Instant::now() + Duration::from_secs(600), Duration::from_millis(20));
        let (give_up, is_given_up) = channel();
        let watchdog = Watchdog { end, process: Some(&process), probe };
        let given_up = watchdog.watch(move || give_up.send(()).unwrap(), || is_given_up.recv().is_ok());
        assert_eq!(given_up, (true, true));
        process.signal(Signal::SIGKILL);
        assert!(process.wait(Duration::from_secs(10)).is_some());
    }
}
