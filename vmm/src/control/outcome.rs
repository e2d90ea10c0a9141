//! How a run ends, and the exit status that reports it to the caller.
//!
//! Anything that can end the guest (a vCPU, the ACPI sleep register, a signal, Ctrl-A x, the control socket) holds a
//! [`Stop`] and requests an [`Outcome`]; the first request wins, but the user's wish also cuts short an end that the guest
//! asked for.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;

/// Exit status: the guest powered off, or was stopped through the control socket.
pub const STATUS_POWER_OFF: u8 = 0;
/// Exit status: Outrigger itself failed.
pub const STATUS_FAILED: u8 = 1;
/// Exit status: the command line, or a file named on it, cannot be used.
pub const STATUS_USAGE: u8 = 2;
/// Exit status: the host lacks something (KVM, a permission, a capability, memory).
pub const STATUS_HOST: u8 = 3;
/// Exit status: the guest asked for a reboot.
pub const STATUS_REBOOT: u8 = 4;
/// Exit status: the guest crashed (triple fault, or something KVM cannot run).
pub const STATUS_CRASH: u8 = 5;
/// Exit status: a device process died during the run.
pub const STATUS_DEVICE_DIED: u8 = 6;

/// Why the guest no longer runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reboot,
    /// A vCPU cannot go on: triple fault, KVM internal error, failed entry.
    Crash {
        /// The cause on the first line, then the registers, one group per line.
        report: String,
    },
    /// The guest powered off or rebooted, but had lost a device process before.
    DeviceDied,
    /// A signal ended the run.
    Interrupted(Signal),
    /// The user typed Ctrl-A x at the console.
    UserQuit,
    /// The user stopped the run through the control socket. That is how such a run is meant to end, so the status is that
    /// of a guest that powered off; SIGTERM may come from anybody, and has a status of its own.
    Stopped,
    /// A part of Outrigger failed while the guest was running.
    Failed {
        /// The failure and its cause, in one line.
        report: String,
    },
}

impl Outcome {
    /// The exit status of the `outrigger` process, as `outrigger run --help` documents it.
    pub fn status(&self) -> u8 {
        match self {
            Outcome::PowerOff | Outcome::Stopped => STATUS_POWER_OFF,
            Outcome::Failed { .. } => STATUS_FAILED,
            Outcome::Reboot => STATUS_REBOOT,
            Outcome::Crash { .. } => STATUS_CRASH,
            Outcome::DeviceDied => STATUS_DEVICE_DIED,
            Outcome::Interrupted(signal) => signal_status(*signal),
            Outcome::UserQuit => signal_status(Signal::SIGINT),
        }
    }

    /// Whether the guest ended by its own wish.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        matches!(self, Outcome::PowerOff | Outcome::Reboot)
    }

    /// Whether it was the user's wish.
    #[must_use]
    pub fn is_users(&self) -> bool {
        matches!(self, Outcome::Interrupted(_) | Outcome::UserQuit | Outcome::Stopped)
    }

    /// Whether the outcome is worth a message to the user; a clean power-off, a reboot and the user's own wish are not.
    pub fn is_failure(&self) -> bool {
        matches!(self, Outcome::Crash { .. } | Outcome::DeviceDied | Outcome::Failed { .. })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::PowerOff => f.write_str("the guest powered off"),
            Outcome::Reboot => f.write_str("the guest asked for a reboot"),
            Outcome::Crash { report } => write!(f, "the guest crashed: {report}"),
            Outcome::DeviceDied => f.write_str("the guest ended after a device process had died"),
            Outcome::Interrupted(signal) => write!(f, "ended by {signal}"),
            Outcome::UserQuit => f.write_str("ended by Ctrl-A x"),
            Outcome::Stopped => f.write_str("stopped through the control socket"),
            Outcome::Failed { report } => f.write_str(report),
        }
    }
}

/// The shell's convention for a process ended by a signal.
fn signal_status(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(STATUS_FAILED)
}

/// The wish to end the run, shared by everything that may have it.
#[derive(Debug, Clone)]
pub struct Stop(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    first: OnceLock<Outcome>,
    /// The user's first wish, whatever was before.
    users: OnceLock<Outcome>,
    wake: EventFd,
}

impl Stop {
    /// Nothing is requested yet.
    ///
    /// # Errors
    /// The host's error where no eventfd can be made.
    pub fn new() -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Stop(Arc::new(Shared { first: OnceLock::new(), users: OnceLock::new(), wake })))
    }

    /// Ends the run with `outcome`, unless an earlier request already did. Never blocks.
    pub fn request(&self, outcome: Outcome) {
        // Errors say that an earlier request won.
        if outcome.is_users() {
            let _ = self.0.users.set(outcome.clone());
        }
        let _ = self.0.first.set(outcome);
        // Fails only with EAGAIN at 2^64-2 unread requests, and then the reader is awake anyway.
        let _ = self.0.wake.write(1);
    }

    /// Whether the run is to end. vCPU threads ask between two entries of the guest.
    pub fn requested(&self) -> bool {
        self.0.first.get().is_some()
    }

    /// Whether the user wants the run to end: nothing is to take long any more.
    pub fn is_users(&self) -> bool {
        self.0.users.get().is_some()
    }

    /// Waits until the run is to end.
    pub fn wait(&self) {
        while !self.requested() {
            // Fails with EINTR only.
            let _ = poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
        }
    }

    /// The run's outcome; `None` while it goes on.
    pub fn outcome(&self) -> Option<Outcome> {
        let first = self.0.first.get()?;
        Some(self.0.users.get().filter(|_| first.is_orderly()).unwrap_or(first).clone())
    }
}

/// Readable from the first request on (an eventfd that is never read).
impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(stop: &Stop) -> bool {
        poll(&mut [PollFd::new(stop.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn statuses_are_those_documented() {
        let crash = Outcome::Crash { report: String::new() };
        let failed = Outcome::Failed { report: String::new() };
        let table = [
            (Outcome::PowerOff, 0),
            (failed, 1),
            (Outcome::Reboot, 4),
            (crash, 5),
            (Outcome::DeviceDied, 6),
            (Outcome::Interrupted(Signal::SIGINT), 130),
            (Outcome::Interrupted(Signal::SIGTERM), 143),
            (Outcome::UserQuit, 130),
            (Outcome::Stopped, 0),
        ];
        for (outcome, status) in table {
            assert_eq!(outcome.status(), status, "{outcome:?}");
        }
    }

    #[test]
    fn the_first_request_wins_and_wakes() {
        let stop = Stop::new().unwrap();
        assert!(!stop.requested() && stop.outcome().is_none() && !readable(&stop));
        let other = stop.clone();
        other.request(Outcome::Reboot);
        stop.request(Outcome::PowerOff);
        assert!(stop.requested() && readable(&stop));
        assert_eq!(stop.outcome(), Some(Outcome::Reboot));
    }

    #[test]
    fn the_users_wish_cuts_short_an_orderly_end_only() {
        let stop = Stop::new().unwrap();
        stop.request(Outcome::Reboot);
        assert!(!stop.is_users());
        stop.request(Outcome::Interrupted(Signal::SIGTERM));
        stop.request(Outcome::UserQuit);
        assert!(stop.is_users());
        assert_eq!(stop.outcome(), Some(Outcome::Interrupted(Signal::SIGTERM)));

        let stop = Stop::new().unwrap();
        let crash = Outcome::Crash { report: "triple fault".to_owned() };
        stop.request(crash.clone());
        stop.request(Outcome::UserQuit);
        assert_eq!(stop.outcome(), Some(crash));
    }
}
